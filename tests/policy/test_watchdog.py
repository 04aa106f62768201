# SPDX-License-Identifier: Apache-2.0
"""Laws of the watchdog: a control thread that is too late loses its permission, and only a reset gives it back."""

import pytest

from otpr_policy.watchdog import Permit, Watchdog


@pytest.mark.parametrize(("period_s", "limit_s"), [(0.05, 0.15), (0.01, 0.05), (1 / 60, 0.05), (0.02, 0.06), (1.0, 3.0)])
def test_three_control_periods_are_allowed_and_in_any_case_50_ms(period_s: float, limit_s: float) -> None:
    assert Watchdog(period_s, 0.0).limit_s == pytest.approx(limit_s)


def test_a_tick_in_time_is_in_order_and_one_too_late_is_not() -> None:
    watchdog = Watchdog(0.25, 10.0)  # in binary 0.75 s is exact
    assert watchdog.problem(10.0) is None
    assert watchdog.problem(10.75) is None
    assert watchdog.problem(10.76) == "watchdog: the control thread has not ticked for 0.760 s, allowed are 0.750 s"
    assert watchdog.beat(10.75) is None
    assert watchdog.problem(11.5) is None
    assert watchdog.problem(11.51) is not None


def test_a_late_tick_is_told_that_it_is_late_and_the_next_in_time_is_not() -> None:
    watchdog = Watchdog(0.25, 0.0)
    assert watchdog.beat(1.0) == "watchdog: the control thread has not ticked for 1.000 s, allowed are 0.750 s"
    assert watchdog.beat(1.5) is None


def test_a_time_that_is_no_number_is_late() -> None:
    assert Watchdog(0.25, 0.0).problem(float("nan")) is not None


def test_a_permit_is_there_until_it_is_taken_away_keeps_its_first_reason_and_comes_back_by_being_granted() -> None:
    permit = Permit()
    assert permit.revoked is None
    permit.revoke("first")
    permit.revoke("second")
    assert permit.revoked == "first"
    permit.grant()
    assert permit.revoked is None
    permit.revoke("third")
    assert permit.revoked == "third"
