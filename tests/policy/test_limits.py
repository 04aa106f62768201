# SPDX-License-Identifier: Apache-2.0
"""Laws of the limits themselves: one that holds nothing, or that nothing satisfies, is refused by its name."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from otpr_policy.errors import ContractError
from otpr_policy.limits import Limits

LIMITS = Limits((0.25, -0.45, -0.12), (0.85, 0.45, 0.50), 0.05, 0.10, 0.90, 0.1, 0.5, 0.05, 0.5, 5.0, 1.0, 10.0, 0.2, 1.0, 0.5, 0.0, 0.05)
MAY_BE_ZERO = ("workspace_margin_m", "action_margin", "observation_margin", "observation_floor", "rate_margin", "ramp_in_s")
MUST_MOVE = tuple(field.name for field in fields(Limits) if field.name.startswith("max_"))


def _changed(**changed: Any) -> Limits:
    return replace(LIMITS, **changed)


def test_every_limit_is_a_corner_of_the_workspace_or_among_those_that_follow() -> None:
    ranges = {"workspace_low", "workspace_high", "gripper_low_m", "gripper_high_m"}
    assert {field.name for field in fields(Limits)} == {*ranges, *MAY_BE_ZERO, *MUST_MOVE}
    assert len(MUST_MOVE) == 7


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1e-9])
@pytest.mark.parametrize("name", [*MAY_BE_ZERO, *MUST_MOVE])
def test_a_limit_that_is_not_finite_or_negative_is_refused_by_its_name(name: str, value: float) -> None:
    with pytest.raises(ContractError, match=rf"limits: {name} is {value}, must be a finite number"):
        _changed(**{name: value})


def test_a_margin_may_be_zero_and_a_limit_of_movement_may_not() -> None:
    for name in MAY_BE_ZERO:
        _changed(**{name: 0.0})
    for name in MUST_MOVE:
        _changed(**{name: 5e-324})
        with pytest.raises(ContractError, match=rf"limits: {name} is 0.0, must be a finite number above 0"):
            _changed(**{name: 0.0})


@pytest.mark.parametrize(("axis", "name"), list(enumerate("xyz")))
@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (0.6, 0.5), (np.nan, 0.5), (0.5, np.nan), (-np.inf, 0.5), (0.5, np.inf)])
def test_an_inverted_empty_or_endless_workspace_is_refused(axis: int, name: str, low: float, high: float) -> None:
    lows, highs = list(LIMITS.workspace_low), list(LIMITS.workspace_high)
    lows[axis], highs[axis] = low, high
    with pytest.raises(ContractError, match=f"workspace {name}"):
        _changed(workspace_low=tuple(lows), workspace_high=tuple(highs))


@pytest.mark.parametrize(("low", "high"), [(0.05, 0.05), (0.06, 0.05), (np.nan, 0.05), (0.0, np.nan), (-np.inf, 0.05), (0.0, np.inf)])
def test_an_inverted_empty_or_endless_range_of_the_fingers_is_refused(low: float, high: float) -> None:
    with pytest.raises(ContractError, match=r"gripper_low_m .* gripper_high_m .* not a finite range"):
        _changed(gripper_low_m=low, gripper_high_m=high)
