# SPDX-License-Identifier: Apache-2.0
"""Laws of success rates: the interval is Wilson's, judged by scipy."""

import json

import pytest
from scipy.stats import binomtest

from otpr_policy.success import SuccessRate


@pytest.mark.parametrize("episodes", [1, 2, 5, 20, 97, 100, 1000, 100_000])
def test_the_interval_is_the_score_interval_of_scipy(episodes: int) -> None:
    for successes in sorted({0, 1, episodes // 3, episodes // 2, (19 * episodes) // 20, episodes - 1, episodes}):
        expected = binomtest(successes, episodes).proportion_ci(0.95, method="wilson")
        assert SuccessRate(successes, episodes).interval == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_interval_never_leaves_zero_to_one_and_holds_the_rate() -> None:
    for episodes in range(1, 40):
        for successes in range(episodes + 1):
            low, high = SuccessRate(successes, episodes).interval
            assert 0.0 <= low <= successes / episodes + 1e-15
            assert successes / episodes - 1e-15 <= high <= 1.0
            assert low < high


def test_all_or_nothing_still_has_an_uncertainty() -> None:
    # With p = 1 Wilson's lower end is n / (n + z^2): 20 / (20 + 3.8415) = 0.8389.
    assert SuccessRate(20, 20).interval == pytest.approx((0.838874, 1.0), abs=1e-6)
    assert SuccessRate(0, 20).interval == pytest.approx((0.0, 0.161126), abs=1e-6)


def test_successes_and_failures_mirror_each_other() -> None:
    low, high = SuccessRate(3, 17).interval
    assert SuccessRate(14, 17).interval == pytest.approx((1 - high, 1 - low), abs=1e-15)


def test_text_and_json_carry_the_interval() -> None:
    assert str(SuccessRate(20, 20)) == "20/20 = 1.00 [0.84, 1.00]"
    data = json.loads(json.dumps(SuccessRate(9, 10).to_json()))
    assert data.keys() == {"successes", "episodes", "success_rate", "interval"}
    assert (data["successes"], data["episodes"], data["success_rate"]) == (9, 10, 0.9)
    assert tuple(data["interval"]) == SuccessRate(9, 10).interval


@pytest.mark.parametrize(("successes", "episodes"), [(0, 0), (-1, 5), (6, 5), (0, -1)])
def test_what_is_no_rate_is_refused(successes: int, episodes: int) -> None:
    with pytest.raises(ValueError, match="is not a rate"):
        SuccessRate(successes, episodes)
