# SPDX-License-Identifier: Apache-2.0
"""Faults done to a robot that moves: what follows is what docs/safety.md says, and the independent checker finds nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from faults.stage import CLOCK_FAULTS, FAULTS, Effect, Fault, Stage, play

# In CI one of each kind: what is read, what is inferred, who lives.
SHORT = ("silent", "duplicated", "an hour ahead", "nan", "1e30", "missing name", "inference: hang", "inference: raise", "node killed")
pytestmark = [pytest.mark.ros, pytest.mark.faults]


@pytest.fixture
def make_stage(tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    stages: list[Stage] = []

    def make(simulated: bool = False) -> Stage:
        stages.append(Stage(tmp_path, 1, simulated))
        return stages[-1]

    yield make
    for stage in stages:
        stage.close()


def _play_all(stage: Stage, faults: tuple[Fault, ...], tries: int = 3) -> None:
    rng = np.random.default_rng(1)
    stage.wait_for(lambda: stage.tracked, "the tracker", timeout_s=120.0)
    stage.recover()
    missed = []
    for fault in faults:
        # Where nothing must happen something may, by a stall of the machine; but not again and again.
        outcomes = [play(stage, fault, rng)]
        while not outcomes[-1].as_it_must and fault.effect is Effect.NONE and len(outcomes) < tries:
            outcomes.append(play(stage, fault, rng))
        print(f"{fault.name}: {outcomes[-1].told or 'goes on'}; engaged again after {outcomes[-1].recovery_s:.1f} s")
        if not outcomes[-1].as_it_must:
            missed.append(f"{fault.name} led to {outcomes[-1].told or 'nothing'}")
    verdict = stage.verdict()
    print({key: verdict[key] for key in ("counts", "excused", "hold_ms", "still_ms", "death_ms")})
    assert verdict["violations"] == []
    assert missed == []
    assert verdict["counts"]["commands"] > 10 * len(faults)


def test_the_checker_finds_nothing_while_messages_inference_and_processes_fail(make_stage: Callable[..., Stage]) -> None:
    _play_all(make_stage(), tuple(fault for fault in FAULTS if fault.name in SHORT))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_checker_finds_nothing_whatever_fails(make_stage: Callable[..., Stage]) -> None:
    _play_all(make_stage(), FAULTS)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_checker_finds_nothing_when_the_clock_of_a_simulation_jumps_or_starts_over(make_stage: Callable[..., Stage]) -> None:
    _play_all(make_stage(simulated=True), CLOCK_FAULTS)
