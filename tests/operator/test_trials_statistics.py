# SPDX-License-Identifier: Apache-2.0
"""Paired comparisons against numbers worked out by hand, and against scipy."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import binomtest

from otpr_operator.trials.statistics import Paired, holm
from otpr_policy.paired import exact_p, pairs_needed


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (0, 0, 1.0),  # nothing differs, nothing is known
        (1, 0, 1.0),  # one coin: either side is as likely
        (5, 0, 2 / 32),
        (6, 0, 2 / 64),
        (1, 5, 2 * (1 + 6) / 64),
        (3, 3, 1.0),
        (2, 8, 2 * (1 + 10 + 45) / 1024),
    ],
)
def test_mcnemars_exact_p_by_hand(first: int, second: int, p: float) -> None:
    assert exact_p(first, second) == pytest.approx(p, abs=1e-15)
    assert exact_p(second, first) == exact_p(first, second)


@pytest.mark.parametrize(("first", "second"), list(product((0, 1, 4, 13), (0, 2, 9))))
def test_mcnemars_exact_p_is_scipys_binomial_test(first: int, second: int) -> None:
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert exact_p(first, second) == pytest.approx(expected, rel=1e-12)


def test_six_pairs_all_one_way_are_the_least_that_can_count() -> None:
    assert pairs_needed() == 6
    assert pairs_needed(0.01) == 8


def test_scenes_are_counted_by_who_solved_them() -> None:
    one = [True, True, True, False, False, True]
    two = [True, False, False, True, False, True]
    assert Paired.of(one, two) == Paired(both=2, first=2, second=1, neither=1)
    assert Paired.of(one, two).difference == pytest.approx(4 / 6 - 3 / 6)


def test_the_interval_of_a_difference_by_hand() -> None:
    """20 scenes: 10 both, 6 only first, 1 only second, 3 none; rates 0.80 and 0.55."""
    paired = Paired(10, 6, 1, 3)
    # Wilson: 16/20 -> [0.5840, 0.9193], 11/20 -> [0.3421, 0.7418]; phi = (10*3 - 6*1 - 10) / sqrt(16*4*11*9) = 14 / 79.599
    phi = 14 / np.sqrt(16 * 4 * 11 * 9)
    below = np.sqrt((0.80 - 0.58398) ** 2 - 2 * phi * (0.80 - 0.58398) * (0.74180 - 0.55) + (0.74180 - 0.55) ** 2)
    above = np.sqrt((0.91934 - 0.80) ** 2 - 2 * phi * (0.91934 - 0.80) * (0.55 - 0.34209) + (0.55 - 0.34209) ** 2)
    np.testing.assert_allclose(paired.interval, (0.25 - below, 0.25 + above), atol=2e-4)


@pytest.mark.parametrize("counts", [(10, 0, 0, 0), (0, 0, 0, 10), (0, 10, 0, 0), (3, 4, 0, 3), (1, 0, 0, 0), (5, 2, 2, 1)])
def test_an_interval_holds_its_difference_and_turns_round_with_the_conditions(counts: tuple[int, int, int, int]) -> None:
    both, first, second, neither = counts
    low, high = Paired(both, first, second, neither).interval
    assert -1 <= low <= Paired(both, first, second, neither).difference <= high <= 1
    np.testing.assert_allclose(Paired(both, second, first, neither).interval, (-high, -low), atol=1e-12)


def test_holms_correction_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.04 times 3, 2, 1 gives 0.03, 0.04, 0.04.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    # Never smaller than one that was smaller before: 0.02 * 3 = 0.06 lifts 0.025 * 2 = 0.05.
    assert holm([0.025, 0.02, 0.9]) == pytest.approx([0.06, 0.06, 0.9])
    assert holm([0.3]) == [0.3]
    assert holm([0.6, 0.7]) == [1.0, 1.0]
