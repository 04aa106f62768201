# SPDX-License-Identifier: Apache-2.0
"""Laws of what the node tells of itself."""

import json
from typing import Any

import numpy as np
import pytest
import tiny_policy
from numpy.typing import NDArray

from otpr_policy.health import WINDOW, Percentiles, TimedPolicy
from otpr_policy.spec import Array, PolicySpec


class Constant:
    """Acts without looking and takes as long as it is told to."""

    spec: PolicySpec = tiny_policy.SPEC
    noise_shape = tiny_policy.NOISE_SHAPE

    def __init__(self) -> None:
        self.now_s = 100.0
        self.duration_s = 0.0

    def clock(self) -> float:
        return self.now_s

    def infer(self, observation: NDArray[Any], noise: NDArray[Any]) -> Array:
        self.now_s += self.duration_s
        if np.isnan(observation).any():
            raise ValueError("nan")
        return np.full((4, 7), observation[0, 0] + noise[0, 0, 0])


def test_percentiles_are_in_milliseconds_and_interpolate_between_ranks() -> None:
    # 0..1000 ms in steps of one: the q-th percentile of n + 1 equally spaced values is q % of the largest.
    found = Percentiles.of(step / 1000 for step in range(1001))
    assert found is not None
    assert found.to_json() == pytest.approx({"p50": 500.0, "p99": 990.0, "p999": 999.0, "max": 1000.0})
    assert json.loads(json.dumps(found.to_json())).keys() == {"p50", "p99", "p999", "max"}


def test_one_duration_is_every_percentile_and_none_is_none() -> None:
    assert Percentiles.of([0.002]) == Percentiles(2.0, 2.0, 2.0, 2.0)
    assert Percentiles.of([]) is None


def test_the_order_of_durations_does_not_matter() -> None:
    durations = np.random.default_rng(0).exponential(0.01, 500)
    assert Percentiles.of(durations) == Percentiles.of(np.sort(durations)[::-1])


def test_a_timed_policy_is_the_policy_and_notes_how_long_it_took() -> None:
    policy = Constant()
    timed = TimedPolicy(policy, policy.clock)
    assert (timed.spec, timed.noise_shape) == (policy.spec, policy.noise_shape)
    for duration in (0.25, 0.5):
        policy.duration_s = duration
        action = timed.infer(np.ones((1, 14)), np.full((1, 4, 7), 2.0))
        assert action.tolist() == [[3.0] * 7] * 4
    assert list(timed.durations_s) == [0.25, 0.5]


def test_a_failed_inference_is_passed_on_and_is_no_duration() -> None:
    policy = Constant()
    timed = TimedPolicy(policy, policy.clock)
    with pytest.raises(ValueError, match="nan"):
        timed.infer(np.full((1, 14), np.nan), np.zeros((1, 4, 7)))
    assert not timed.durations_s


def test_memory_is_bounded_and_the_newest_durations_are_kept() -> None:
    policy = Constant()
    timed = TimedPolicy(policy, policy.clock)
    timed.durations_s.extend([1.0] * WINDOW)
    policy.duration_s = 0.5
    timed.infer(np.ones((1, 14)), np.zeros((1, 4, 7)))
    assert len(timed.durations_s) == WINDOW
    assert (timed.durations_s[0], timed.durations_s[-1]) == (1.0, 0.5)
