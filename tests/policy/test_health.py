# SPDX-License-Identifier: Apache-2.0
"""Laws of what the node tells of itself."""

import json

import numpy as np
import pytest
import tiny_policy

from otpr_policy.health import Percentiles, SeamRecord
from otpr_policy.timeline import Seam


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


def test_a_seam_is_its_largest_component_in_each_field_as_it_was_carried_out() -> None:
    record = SeamRecord(tiny_policy.ACTION)
    assert record.facts() == {}
    for size in (1.0, 3.0, 2.0):
        left = size * np.array([0.01, -0.02, 0.0, 0.1, 0.0, -0.05, -0.001])
        record.add(Seam(found=10 * left, left=left))
    facts = {key: float(value) for key, value in record.facts().items()}
    assert facts["seam_jump_ee_position_delta_max"] == pytest.approx(0.06)
    assert facts["seam_jump_ee_rotation_delta_max"] == pytest.approx(0.3)
    assert facts["seam_jump_gripper_position_max"] == pytest.approx(0.003)
    assert facts["seam_jump_gripper_position_p99"] == pytest.approx(np.percentile([0.001, 0.002, 0.003], 99))
    assert len(facts) == 6
