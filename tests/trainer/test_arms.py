# SPDX-License-Identifier: Apache-2.0
"""Two ways of acting side by side: when the critic's choice counts as worse, by hand."""

import pytest

from otpr_trainer.arms import WINDOW, Arms


def outcomes(plain, selected):
    """(successes, episodes) of each way of acting."""
    found = Arms()
    for side, (successes, episodes) in enumerate((plain, selected)):
        for number in range(episodes):
            found.add(bool(side), number < successes)
    return found


@pytest.mark.parametrize(
    ("plain", "selected", "expected"),
    [
        ((0, 0), (5, 5), False),  # nothing to compare with
        ((5, 5), (0, 0), False),
        ((30, 50), (30, 50), True),
        ((30, 50), (26, 50), True),  # -0.080 > -sqrt((31 * 21 + 27 * 25) / 52^3) = -0.0971
        ((30, 50), (25, 50), False),  # -0.100
        ((1, 2), (0, 2), False),  # -0.5 < -sqrt((2 * 2 + 1 * 3) / 4^3) = -0.331
        ((50, 50), (49, 50), True),  # -0.020 > -sqrt((51 * 1 + 50 * 2) / 52^3) = -0.0328: the plain arm is not certain
        ((0, 2), (1, 2), True),
    ],
)
def test_acting_by_compatibility_counts_as_worse_beyond_a_standard_error(plain, selected, expected):
    assert outcomes(plain, selected).selecting_is_not_worse is expected


def test_only_the_latest_episodes_count_and_outcomes_survive_as_plain_data():
    found = outcomes((WINDOW, WINDOW), (0, WINDOW))
    assert not found.selecting_is_not_worse
    for _ in range(WINDOW):
        found.add(False, False)
    assert found.selecting_is_not_worse and found.metrics() == {"arms/plain": 0.0, "arms/selected": 0.0}
    again = Arms(found.to_json())
    again.add(True, True)
    assert again.metrics() == {"arms/plain": 0.0, "arms/selected": 1 / WINDOW}
