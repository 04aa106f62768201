# SPDX-License-Identifier: Apache-2.0
"""Laws of the data's clock: it is the one it reads, and goes on when that stands still."""

import pytest

from otpr_policy.data_clock import DataClock

pytestmark = pytest.mark.faults


def test_it_is_the_clock_it_reads_forwards_and_backwards() -> None:
    readings = iter([5, 6, 3_600_000_000_006, 0, 1])
    clock = DataClock(lambda: next(readings), lambda: 10**12)
    assert [clock.now_ns() for _ in range(5)] == [5, 6, 3_600_000_000_006, 0, 1]


def test_it_goes_on_at_the_pace_of_the_monotonic_clock_while_the_other_stands_still() -> None:
    reading, monotonic = [1000], [7]
    clock = DataClock(lambda: reading[0], lambda: monotonic[0])
    assert clock.now_ns() == 1000
    for passed in (1, 50, 10**9):
        monotonic[0] = 7 + passed
        assert clock.now_ns() == 1000 + passed
    reading[0] = 1001
    assert clock.now_ns() == 1001
    monotonic[0] += 5
    assert clock.now_ns() == 1006
