# SPDX-License-Identifier: Apache-2.0
"""When the control thread ticks, with a buffer whose clock the test holds."""

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from otpr_policy.health import Counters
from otpr_policy.ros.control_thread import ControlThread, Pacing

PERIOD_NS = 50_000_000
pytestmark = pytest.mark.ros


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def lockstep(tick: Callable[[int], bool]) -> tuple[ControlThread, SimpleNamespace]:
    buffer = SimpleNamespace(complete_until_ns=None)
    thread = ControlThread(
        tick,
        pacing=Pacing.OBSERVATION,
        period_s=0.05,
        data_clock_ns=lambda: 0,
        buffer=buffer,
        counters=Counters(),  # type: ignore[arg-type]
    )
    return thread, buffer


def arrive(thread: ControlThread, buffer: SimpleNamespace, stamp_ns: int) -> None:
    buffer.complete_until_ns = stamp_ns
    thread.sample_arrived()


def test_an_observation_is_answered_once_even_when_engaging_falls_into_its_tick() -> None:
    """Engaging asks for another look while the tick that already answers is under way."""
    ticks: list[int] = []
    inside, go_on = threading.Event(), threading.Event()

    def tick(now_ns: int) -> bool:
        ticks.append(now_ns)
        inside.set()
        assert go_on.wait(5)
        return True

    thread, buffer = lockstep(tick)
    try:
        arrive(thread, buffer, 1_000_000_000)
        assert inside.wait(5)
        thread.answer_again()
        go_on.set()
        time.sleep(0.05)  # a second answer would come now
        arrive(thread, buffer, 1_000_000_000 + PERIOD_NS)
        wait_for(lambda: len(ticks) >= 2)
        arrive(thread, buffer, 1_000_000_000 + 2 * PERIOD_NS)
        wait_for(lambda: ticks[-1] == 1_000_000_000 + 2 * PERIOD_NS)
        assert ticks == [1_000_000_000, 1_000_000_000 + PERIOD_NS, 1_000_000_000 + 2 * PERIOD_NS]
    finally:
        thread.close()


def test_an_observation_that_was_let_pass_is_answered_after_engaging() -> None:
    ticks: list[int] = []
    engaged = False

    def tick(now_ns: int) -> bool:
        ticks.append(now_ns)
        return engaged

    thread, buffer = lockstep(tick)
    try:
        arrive(thread, buffer, 7)
        wait_for(lambda: ticks == [7])
        thread.sample_arrived()
        engaged = True
        thread.answer_again()
        wait_for(lambda: ticks == [7, 7])
        thread.answer_again()  # answered by now
        arrive(thread, buffer, 7 + PERIOD_NS - 1)  # not a control period newer
        arrive(thread, buffer, 7 + PERIOD_NS)
        wait_for(lambda: len(ticks) == 3)
        assert ticks == [7, 7, 7 + PERIOD_NS]
    finally:
        thread.close()


def test_a_clock_that_starts_over_is_followed() -> None:
    ticks: list[int] = []

    def tick(now_ns: int) -> bool:
        ticks.append(now_ns)
        return True

    thread, buffer = lockstep(tick)
    try:
        arrive(thread, buffer, 9_000_000_000)
        wait_for(lambda: len(ticks) == 1)
        arrive(thread, buffer, 0)
        wait_for(lambda: ticks == [9_000_000_000, 0])
    finally:
        thread.close()


@pytest.mark.parametrize("where", ["tick", "before a tick"])
def test_after_a_stall_the_count_of_ticks_with_those_skipped_is_what_the_clock_says(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Also that of the tick that was held up before it began. Each begins within its period; a period more is the machine's."""
    counters, period_s = Counters(), 0.02
    ticks: list[tuple[float, int]] = []
    waits = 0

    def stall(thread: ControlThread) -> None:
        nonlocal waits
        waits += 1
        if where == "before a tick" and waits == 4:
            time.sleep(4.75 * period_s)

    def tick(_now_ns: int) -> bool:
        counters.ticks += 1
        ticks.append((time.monotonic(), counters.elapsed_ticks))
        if where == "tick" and len(ticks) == 3:
            time.sleep(4.75 * period_s)
        return True

    monkeypatch.setattr(ControlThread, "_wait_for_sample", stall)
    thread = ControlThread(
        tick,
        pacing=Pacing.CLOCK,
        period_s=period_s,
        data_clock_ns=lambda: 0,
        buffer=SimpleNamespace(),
        counters=counters,  # type: ignore[arg-type]
    )
    try:
        wait_for(lambda: len(ticks) >= 8)
    finally:
        thread.close()
    assert counters.skipped_ticks >= 3
    began_s, first = ticks[0]
    behind = [(at_s - began_s) / period_s - (count - first) for at_s, count in ticks]
    assert all(-1.0 < periods < 2.0 for periods in behind), behind


def test_on_the_clock_ticks_keep_their_rate_and_late_ones_are_counted_not_made_up_for() -> None:
    counters = Counters()
    starts: list[float] = []

    def tick(_now_ns: int) -> bool:
        starts.append(time.monotonic())
        if len(starts) == 3:
            time.sleep(0.075)  # 3.75 periods
        return True

    thread = ControlThread(
        tick,
        pacing=Pacing.CLOCK,
        period_s=0.02,
        data_clock_ns=lambda: 0,
        buffer=SimpleNamespace(),
        counters=counters,  # type: ignore[arg-type]
    )
    try:
        wait_for(lambda: len(starts) >= 8)
    finally:
        thread.close()
    assert counters.deadline_misses >= 1
    assert counters.skipped_ticks >= 2
    phases = [((start - starts[0]) / 0.02) % 1 for start in starts]
    assert all(min(phase, 1 - phase) < 0.45 for phase in phases), "ticks drift off the grid"
