# SPDX-License-Identifier: Apache-2.0
"""The real control thread with a policy that is slow, hangs or raises: no tick waits for it, and what it cannot do in time is silence."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import contracts
import numpy as np
import pytest
import tiny_policy
from numpy.typing import NDArray
from rclpy.lifecycle import TransitionCallbackReturn
from std_srvs.srv import SetBool

from otpr_policy.chunk import episode_rng
from otpr_policy.chunk_executor import ChunkExecutor
from otpr_policy.control import State
from otpr_policy.health import Counters
from otpr_policy.inference import OnnxPolicy
from otpr_policy.inference_worker import InferenceWorker, Waiting
from otpr_policy.ros.control_thread import ControlThread, Pacing
from otpr_policy.spec import Array
from otpr_policy.timeline import Gap

LONG = replace(tiny_policy.SPEC, chunk_length=16, executed_length=8)
SUCCESS = TransitionCallbackReturn.SUCCESS
pytestmark = [pytest.mark.ros, pytest.mark.faults]


class Sleeping:
    """A policy that takes its time without the interpreter's lock, as ONNX Runtime does."""

    spec = LONG
    noise_shape = (1, 16, 7)

    def __init__(self, duration_s: float, slept_s: list[tuple[float, float]]) -> None:
        """``slept_s`` takes from when and for how long."""
        self._duration_s = duration_s
        self._slept_s = slept_s

    def infer(self, observation: NDArray[Any], noise: NDArray[Any]) -> Array:
        began_s = time.monotonic()
        time.sleep(self._duration_s)
        self._slept_s.append((began_s, time.monotonic() - began_s))
        return np.asarray(noise[0])


@dataclass(frozen=True)
class Played:
    """A run of the control thread.

    Args:
        acted: whether each tick had an action, from the first that had one to the machine's first stall.
        stalled: why the rest cannot be judged, or empty.
    """

    acted: list[bool]
    stalled: str
    counters: Counters
    executor: ChunkExecutor


def run_control_thread(duration_s: float, rate_hz: float, ticks: int) -> Played:
    """Plays until so many ticks had an action. What the machine itself holds up by more than a period is nobody's promise after that."""
    period_s = 1 / rate_hz
    slept_s: list[tuple[float, float]] = []
    worker = InferenceWorker.open(lambda: Sleeping(duration_s, slept_s), Waiting.on_clock(period_s))
    slept_s.clear()  # what it measured itself by
    executor = ChunkExecutor(worker)
    executor.reset(episode_rng(0, 0))
    acted: list[bool] = []
    began_s: list[float] = []
    done = threading.Event()
    counters = Counters()

    def tick(_now_ns: int) -> bool:
        began_s.append(time.monotonic())
        acted.append(not isinstance(executor.act(len(acted) + counters.skipped_ticks, np.zeros(LONG.observation.size)), Gap))
        if sum(acted) >= ticks:
            done.set()
        return True

    thread = ControlThread(
        tick,
        pacing=Pacing.CLOCK,
        period_s=period_s,
        data_clock_ns=lambda: 0,
        buffer=SimpleNamespace(),
        counters=counters,  # type: ignore[arg-type]
    )
    try:
        assert done.wait(60)
    finally:
        thread.close()
        assert worker.close(5.0) == 0
    late_s = [(began_s[i], began_s[i + 1] - began_s[i] - period_s) for i in range(len(began_s) - 1)]
    stalls_s = sorted((at_s, by_s) for at_s, by_s in late_s + [(at_s, took_s - duration_s) for at_s, took_s in slept_s] if by_s > period_s)
    until_s, by_s = stalls_s[0] if stalls_s else (math.inf, 0.0)
    judged = [had for at_s, had in zip(began_s, acted, strict=True) if at_s <= until_s]
    stalled = f"this machine is busy, it held something up for {1e3 * by_s:.0f} ms" if stalls_s else ""
    after_first = judged[judged.index(True) :] if True in judged else []
    return Played(after_first, stalled, counters, executor)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8])
def test_with_a_delay_of_up_to_most_of_the_chunk_no_tick_is_without_an_action_and_none_is_late(share: float) -> None:
    rate_hz, ticks = 20.0, 60
    idle = run_control_thread(0.0, rate_hz, ticks)  # what this machine misses by itself
    played = run_control_thread(share * LONG.chunk_length / rate_hz, rate_hz, ticks)
    done = played.executor.counters
    assert all(played.acted), done
    if not played.stalled:
        assert played.counters.deadline_misses <= idle.counters.deadline_misses + 2
    assert done.discarded_actions >= (done.chunks - 1) * int(share * LONG.chunk_length)
    if len(played.acted) < ticks / 2:
        pytest.skip(f"void after {len(played.acted)} ticks: {played.stalled}")


# In the node


@pytest.fixture
def slow_bench(make_bench: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A node whose policy takes half of its chunk; its gate, while clear, makes inference hang."""
    infer = OnnxPolicy.infer
    gate = threading.Event()
    gate.set()

    def slow(self: OnnxPolicy, *inputs: Any, **more: Any) -> Array:
        time.sleep(delay_s[0])
        gate.wait(60)
        return infer(self, *inputs, **more)

    delay_s = [0.0]
    monkeypatch.setattr(OnnxPolicy, "infer", slow)
    delay_s[0] = 0.02  # the warm-up need not take a minute
    robot = contracts.write(tmp_path / "patient.yaml", max_age_s=5.0)
    bench = make_bench(policy=str(tiny_policy.write(tmp_path / "long.onnx", LONG)), robot=robot, pacing="clock")
    assert bench.policy.trigger_configure() is SUCCESS
    delay_s[0] = 0.4
    bench.policy._slot.running.worker._estimate.add(0.4)  # as if it had been measured
    assert bench.policy.trigger_activate() is SUCCESS
    bench.wait_until_connected()
    yield SimpleNamespace(bench=bench, gate=gate)
    gate.set()


def stream(bench: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        bench.robot.publish()
        time.sleep(0.01)


def engage(bench: Any) -> Any:
    return bench.call(SetBool, "/policy_node/engage", SetBool.Request(data=True))


def test_a_hanging_inference_ends_in_silence_and_a_stop_and_the_node_can_be_taken_down(slow_bench: Any) -> None:
    bench, gate = slow_bench.bench, slow_bench.gate
    stream(bench, 0.3)
    assert engage(bench).success
    stream(bench, 1.5)
    if bench.policy._control.state is State.STOPPED and "watchdog" in bench.policy._control.reason:
        pytest.skip(f"void: this machine is busy: {bench.policy._control.reason}")
    assert bench.policy._control.state is State.ENGAGED
    assert len(bench.robot.poses) > 5
    gate.clear()
    stream(bench, 2.5)
    assert bench.policy._control.state is State.STOPPED
    assert "inference is late" in bench.policy._control.reason
    sent = len(bench.robot.poses)
    stream(bench, 0.2)
    assert len(bench.robot.poses) == sent
    began = time.monotonic()
    assert bench.policy.trigger_deactivate() is SUCCESS
    assert bench.policy.trigger_cleanup() is SUCCESS
    assert time.monotonic() - began < 5.0
