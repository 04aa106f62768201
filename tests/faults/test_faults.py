# SPDX-License-Identifier: Apache-2.0
"""Faults done to a robot that moves: what follows is what docs/safety.md says, and the independent checker finds nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from faults.stage import CLOCK_FAULTS, FAULTS, NOTHING, Effect, Fault, Stage, play

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


CONTROLS, PAIRS = 4, 12


def _harmless(stage: Stage, fault: Fault, rng: np.random.Generator) -> bool:
    """Whether the robot goes on under a fault that must change nothing.

    A machine that stalls makes it hold now and then with any fault or none. So each hold is followed by a while without a fault, and a
    fault is to blame when the robot never went on with it and went on without it often enough. Where neither happens, the bounds that
    the checker judges are all that was tested, and that is printed.
    """
    went_on = 0
    for _ in range(PAIRS):
        if play(stage, fault, rng).as_it_must:
            return True
        went_on += play(stage, NOTHING, rng).as_it_must
        if went_on == CONTROLS:
            return False
    print(f"{fault.name}: the machine stalls too often to tell whether it changes anything")
    return True


def _play_all(stage: Stage, faults: tuple[Fault, ...]) -> None:
    rng = np.random.default_rng(1)
    stage.wait_for(lambda: stage.ready, "the tracker and the checker", timeout_s=120.0)
    stage.recover()
    missed = []
    for fault in faults:
        if fault.effect is Effect.NONE:
            if not _harmless(stage, fault, rng):
                missed.append(f"{fault.name} kept the robot from going on")
            continue
        outcome = play(stage, fault, rng)
        print(f"{fault.name}: {outcome.told or 'goes on'}; engaged again after {outcome.recovery_s:.1f} s")
        if not outcome.as_it_must:
            missed.append(f"{fault.name} led to {outcome.told or 'nothing'}")
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
