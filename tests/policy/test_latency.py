# SPDX-License-Identifier: Apache-2.0
"""Laws of measuring: what sleeps a known time is seen to take it, a missed tick is counted, and busy processes end in any case."""

import os
import time
from pathlib import Path

import pytest

from otpr_policy.latency import back_to_back, busy_processes, paced


class Call:
    """Sleeps in every ``every``-th call, and notes when it is called."""

    def __init__(self, seconds: float, every: int = 1) -> None:
        self.seconds, self.every, self.times = seconds, every, []  # type: ignore[var-annotated]

    def __call__(self) -> None:
        self.times.append(time.perf_counter())
        if len(self.times) % self.every == 0:
            time.sleep(self.seconds)


def test_back_to_back_sees_what_a_call_takes() -> None:
    timing = back_to_back(Call(0.002), 0.1)
    assert timing.inference.p50 >= 2.0 and timing.inference.p50 <= timing.inference.p99 <= timing.inference.max
    assert not timing.paced and timing.ticks == 0


def test_paced_calls_keep_the_rate_and_their_response_has_the_lateness_in_it() -> None:
    call = Call(0.001)
    timing = paced(call, 100.0, 0.3)
    assert timing.ticks == 30 and timing.lateness is not None and timing.response is not None
    assert timing.lateness.p50 >= 0.0 and timing.response.p50 >= 1.0
    assert timing.response.max >= timing.inference.p50
    first, last = call.times[20], call.times[-1]  # after the warm-up
    assert last - first >= 0.27


def test_a_call_that_outlasts_its_period_misses_ticks_and_they_are_not_made_up_for() -> None:
    call = Call(0.025, every=5)  # two and a half periods
    timing = paced(call, 100.0, 0.5)
    assert timing.ticks == 50
    assert 10 <= timing.misses <= 40
    assert len(call.times) - 20 <= 50 - timing.misses + 1, "missed ticks were made up for in a burst"
    assert paced(Call(0.0), 20.0, 0.3).misses == 0


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _children() -> set[int]:
    return {int(child) for task in os.listdir("/proc/self/task") for child in Path(f"/proc/self/task/{task}/children").read_text().split()}


def test_busy_processes_compute_and_end_even_when_the_measuring_raises() -> None:
    before, seen = _children(), set()
    with pytest.raises(RuntimeError, match="measuring failed"), busy_processes(2):
        seen = _children() - before
        assert len(seen) == 2
        ticks = [sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])) for pid in seen]
        time.sleep(0.5)
        assert sum(int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11]) for pid in seen) > sum(ticks)
        raise RuntimeError("measuring failed")
    assert not any(_alive(pid) for pid in seen)
