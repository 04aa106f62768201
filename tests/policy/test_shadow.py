# SPDX-License-Identifier: Apache-2.0
"""Shadow mode: what a policy proposes is compared with what was commanded, by hand-computed numbers."""

import json
from pathlib import Path

import numpy as np
import pytest

from otpr_policy.command import CartesianTarget
from otpr_policy.rotation import matrix_to_quaternion, rotation_vector_to_matrix
from otpr_policy.shadow import ShadowComparison, write_report
from otpr_policy.spec import Array

PERIOD_NS = 50_000_000
UPRIGHT = np.array([0.0, 0.0, 0.0, 1.0])


def turned(vector: list[float]) -> Array:
    return matrix_to_quaternion(rotation_vector_to_matrix(np.array(vector)))


def command(comparison: ShadowComparison, stamp_ns: int, position: list[float], quaternion: Array = UPRIGHT, fingers: float = 0.04) -> None:
    comparison.gripper_commanded(fingers)
    comparison.pose_commanded(stamp_ns, np.array(position), quaternion)


def propose(comparison: ShadowComparison, stamp_ns: int, position: list[float], quaternion: Array = UPRIGHT, fingers: float = 0.04) -> None:
    comparison.propose(stamp_ns, CartesianTarget(np.array(position), quaternion, fingers))


def test_errors_are_proposal_minus_command_by_field() -> None:
    comparison = ShadowComparison(0.05)
    for step, offset in enumerate(([0.003, 0.0, 0.004], [0.0, 0.0, 0.0])):
        stamp = 10**9 + step * PERIOD_NS
        command(comparison, stamp, [0.5, 0.0, 0.1], fingers=0.04)
        propose(comparison, stamp, [0.5 + offset[0], offset[1], 0.1 + offset[2]], turned([0, 0.2 * (step == 0), 0]), 0.01 + 0.03 * step)
    errors = comparison.errors()
    position, rotation, fingers = (errors[name] for name in ("ee_position_delta", "ee_rotation_delta", "gripper_position"))
    assert (position.pairs, position.unit, position.max) == (2, "m", pytest.approx(0.005))
    assert position.rms == pytest.approx(0.005 / np.sqrt(2))
    assert position.mean == pytest.approx((0.0015, 0.0, 0.002))
    assert (rotation.unit, rotation.max) == ("rad", pytest.approx(0.2))
    assert rotation.mean == pytest.approx((0.0, 0.1, 0.0))
    assert fingers.mean == pytest.approx((-0.015,))
    assert comparison.facts()["shadow_rms_ee_position_delta_m"] == f"{0.005 / np.sqrt(2):.6f}"


def test_a_command_is_compared_with_the_proposal_of_its_own_instant_whichever_came_first() -> None:
    for first in (command, propose):
        comparison = ShadowComparison(0.05)
        for step in range(10):
            stamp = 10**9 + step * PERIOD_NS
            for act in (first, propose if first is command else command):
                act(comparison, stamp + (7_000_000 if act is propose else 0), [0.1 * step, 0.0, 0.0])
        propose(comparison, 2 * 10**9, [0.0, 0.0, 0.0])  # shows that nothing nearer can come
        errors = comparison.errors()["ee_position_delta"]
        assert (errors.pairs, errors.max) == (10, 0.0)


def test_what_lies_further_apart_than_a_period_is_not_compared() -> None:
    comparison = ShadowComparison(0.05)
    propose(comparison, 10**9, [0.0, 0.0, 0.0])
    command(comparison, 10**9 + PERIOD_NS + 1, [0.9, 0.0, 0.0])
    propose(comparison, 3 * 10**9, [0.0, 0.0, 0.0])
    assert comparison.errors() == {}
    assert comparison.facts()["shadow_pairs"] == "0"


def test_a_command_that_is_no_pose_is_not_compared() -> None:
    comparison = ShadowComparison(0.05)
    propose(comparison, 10**9, [0.0, 0.0, 0.0])
    command(comparison, 10**9, [np.nan, 0.0, 0.0])
    command(comparison, 10**9, [0.0, 0.0, 0.0], quaternion=np.zeros(4))
    assert comparison.errors() == {}


def test_the_report_is_for_programs_and_for_people(tmp_path: Path) -> None:
    comparison = ShadowComparison(0.05)
    command(comparison, 10**9, [0.5, 0.0, 0.1])
    propose(comparison, 10**9, [0.51, 0.0, 0.1])
    write_report(tmp_path / "shadow.json", comparison, {"sha256": "ab"})
    data = json.loads((tmp_path / "shadow.json").read_text())
    assert (data["sha256"], data["proposals"], data["commands"]) == ("ab", 1, 1)
    assert data["fields"]["ee_position_delta"]["rms"] == pytest.approx(0.01)
    assert "ee_position_delta  m     0.0100" in (tmp_path / "shadow.md").read_text()
