# SPDX-License-Identifier: Apache-2.0
"""Laws of delta actions: doing nothing stays exactly, turns are about the fixed axes and come after the present rotation."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_policy
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from otpr_policy.command import WRITES, CartesianTarget, check_commands, delta_to_target
from otpr_policy.errors import SpecError
from otpr_policy.rotation import matrix_to_columns, matrix_to_quaternion, quaternion_to_matrix
from otpr_policy.spec import Array, Field, PolicySpec, Semantics, VectorSpec


def _target(rotation: Rotation, position: list[float], delta: list[float], turn: list[float], gripper: float = 0.02) -> CartesianTarget:
    observation = {"ee_position": np.array(position), "ee_rotation": matrix_to_columns(rotation.as_matrix())}
    action = {"ee_position_delta": np.array(delta), "ee_rotation_delta": np.array(turn), "gripper_position": np.array([gripper])}
    return delta_to_target(observation, action)


def _matrix(target: CartesianTarget) -> Array:
    return quaternion_to_matrix(target.quaternion)


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.floats(-3, 3)] * 3), st.tuples(*[st.floats(-1e3, 1e3)] * 3), st.floats(0, 0.04))
def test_the_action_that_does_nothing_returns_the_pose(turn: tuple[float, ...], position: tuple[float, ...], gripper: float) -> None:
    rotation = Rotation.from_rotvec(turn)
    target = _target(rotation, list(position), [0.0] * 3, [0.0] * 3, gripper)
    assert target.position.tolist() == list(position)  # exactly, no rounding
    assert target.gripper_position == gripper
    np.testing.assert_allclose(_matrix(target), rotation.as_matrix(), atol=1e-15, rtol=0)


def test_from_an_axis_aligned_pose_doing_nothing_is_exact_in_rotation_too() -> None:
    downwards = Rotation.from_matrix(np.diag([1.0, -1.0, -1.0]))  # a gripper that points at the table
    target = _target(downwards, [0.4, 0.1, 0.2], [0.0] * 3, [0.0] * 3)
    assert target.quaternion.tolist() == [1.0, 0.0, 0.0, 0.0]


def test_a_quarter_turn_about_z_of_a_gripper_that_points_down() -> None:
    # R_z(90) diag(1, -1, -1) = [[0, 1, 0], [1, 0, 0], [0, 0, -1]], half a turn about (1, 1, 0) / sqrt 2.
    downwards = Rotation.from_matrix(np.diag([1.0, -1.0, -1.0]))
    target = _target(downwards, [0.4, 0.1, 0.2], [0.01, -0.02, 0.03], [0.0, 0.0, np.pi / 2], 0.04)
    np.testing.assert_allclose(_matrix(target), [[0, 1, 0], [1, 0, 0], [0, 0, -1]], atol=1e-15)
    np.testing.assert_allclose(target.quaternion, [np.sqrt(0.5), np.sqrt(0.5), 0, 0], atol=1e-15)
    np.testing.assert_allclose(target.position, [0.41, 0.08, 0.23], atol=1e-15)
    assert target.gripper_position == 0.04


def test_the_turn_is_about_the_fixed_axes_and_not_about_the_hands_own() -> None:
    # The hand is turned by 90 degrees about x; a further quarter about the base's z takes the hand's y, which points
    # along the base's z, nowhere. About the hand's own z it would end elsewhere.
    about_x = Rotation.from_euler("x", 90, degrees=True)
    target = _target(about_x, [0.0] * 3, [0.0] * 3, [0.0, 0.0, np.pi / 2])
    np.testing.assert_allclose(_matrix(target) @ [0, 1, 0], [0, 0, 1], atol=1e-15)
    np.testing.assert_allclose(_matrix(target) @ [1, 0, 0], [0, 1, 0], atol=1e-15)
    np.testing.assert_allclose(_matrix(target), [[0, 0, 1], [1, 0, 0], [0, 1, 0]], atol=1e-15)


def test_the_position_delta_is_in_the_fixed_frame_whatever_the_hands_rotation() -> None:
    upside_down = Rotation.from_euler("xyz", [170, 20, 100], degrees=True)
    target = _target(upside_down, [1.0, 2.0, 3.0], [0.5, 0.25, -0.125], [0.1, 0.2, 0.3])
    assert target.position.tolist() == [1.5, 2.25, 2.875]


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.floats(-3, 3)] * 3), st.tuples(*[st.floats(-0.5, 0.5)] * 3))
def test_a_turn_and_its_opposite_cancel(start: tuple[float, ...], turn: tuple[float, ...]) -> None:
    rotation = Rotation.from_rotvec(start)
    there = Rotation.from_quat(_target(rotation, [0.0] * 3, [0.0] * 3, list(turn)).quaternion)
    back = _target(there, [0.0] * 3, [0.0] * 3, [-angle for angle in turn])
    np.testing.assert_allclose(_matrix(back), rotation.as_matrix(), atol=1e-14)
    assert (there * rotation.inv()).magnitude() == pytest.approx(np.linalg.norm(turn), abs=1e-7)


def test_the_quaternion_is_the_matrixs_whichever_sign_the_measurement_had() -> None:
    rotation = Rotation.from_euler("xyz", [10, 20, 30], degrees=True)
    target = _target(rotation, [0.0] * 3, [0.0] * 3, [0.0] * 3)
    np.testing.assert_allclose(target.quaternion, matrix_to_quaternion(rotation.as_matrix()), atol=1e-15)
    assert np.linalg.norm(target.quaternion) == pytest.approx(1.0, abs=1e-15)


def test_the_target_does_not_share_memory_with_the_measurement() -> None:
    observation = {"ee_position": np.array([1.0, 2.0, 3.0]), "ee_rotation": np.array([1.0, 0, 0, 0, 1.0, 0])}
    action = {"ee_position_delta": np.zeros(3), "ee_rotation_delta": np.zeros(3), "gripper_position": np.array([0.02])}
    target = delta_to_target(observation, action)
    observation["ee_position"][:] = 99.0
    action["ee_position_delta"][:] = 99.0
    assert target.position.tolist() == [1.0, 2.0, 3.0]


def test_two_targets_are_equal_only_if_they_are_one() -> None:
    first, second = (_target(Rotation.identity(), [0.1, 0.2, 0.3], [0.0] * 3, [0.0] * 3) for _ in range(2))
    assert first == first
    assert first != second  # rather than numpy's error about the truth of an array
    assert len({first, second}) == 2


# Which policies can be commanded


def _policy(side: str, name: str, field: Field | None) -> PolicySpec:
    """The lift policy with one field of its observation or action replaced, dropped (None), or added at the end."""
    spec: VectorSpec = getattr(tiny_policy.SPEC, side)
    fields = {**{old.name: old for old in spec.fields}, name: field}
    changed = VectorSpec(tuple(kept for kept in fields.values() if kept is not None))
    return replace(tiny_policy.SPEC, observation=changed) if side == "observation" else replace(tiny_policy.SPEC, action=changed)


def _field(name: str, unit: str, size: int, semantics: Semantics = Semantics.MEASURED) -> Field:
    return Field(name, unit, (-0.5,) * size, (0.25,) * size, semantics)


def test_a_policy_may_read_more_than_a_target_is_made_from_and_state_its_actions_in_any_order() -> None:
    check_commands(tiny_policy.SPEC)
    check_commands(_policy("observation", "camera", _field("camera", "1", 9)))
    check_commands(_policy("observation", "cube_position", None))
    check_commands(replace(tiny_policy.SPEC, action=VectorSpec(tiny_policy.ACTION.fields[::-1])))


@pytest.mark.parametrize("name", ["ee_position", "ee_rotation"])
def test_a_policy_that_does_not_read_where_the_hand_is_cannot_be_commanded(name: str) -> None:
    with pytest.raises(SpecError, match=f"made from the observation field '{name}'; the policy reads .*cube_position"):
        check_commands(_policy("observation", name, None))


@pytest.mark.parametrize(
    ("name", "size", "unit", "needed"),
    [
        ("ee_position", 2, "m", "3 numbers in 'm'"),
        ("ee_position", 3, "mm", "3 numbers in 'm'"),
        ("ee_rotation", 4, "1", "6 numbers in '1'"),
        ("ee_rotation", 6, "rad", "6 numbers in '1'"),
    ],
)
def test_where_the_hand_is_must_be_read_in_the_size_and_unit_that_targets_are_made_from(
    name: str, size: int, unit: str, needed: str
) -> None:
    with pytest.raises(SpecError, match=f"{name} must be {needed}; the policy reads {size} in '{unit}'"):
        check_commands(_policy("observation", name, _field(name, unit, size)))


@pytest.mark.parametrize("name", list(WRITES))
def test_each_action_field_must_be_written_in_its_own_size_unit_and_meaning(name: str) -> None:
    size, unit, semantics = WRITES[name]
    for wrong in (
        _field(name, unit, size + 1, semantics),
        _field(name, "in" + unit, size, semantics),
        *(_field(name, unit, size, other) for other in Semantics if other is not semantics),
    ):
        with pytest.raises(SpecError) as caught:
            check_commands(_policy("action", name, wrong))
        written = f"the policy writes {wrong.size} {wrong.semantics.value} in '{wrong.unit}'"
        assert str(caught.value) == f"{name} must be {size} {semantics.value} numbers in '{unit}'; {written}"


def test_an_action_field_too_few_or_too_many_is_refused_rather_than_ignored() -> None:
    changes: dict[str, Field | None] = {**dict.fromkeys(WRITES), "elbow": _field("elbow", "rad", 1, Semantics.DELTA)}
    for name, field in changes.items():
        with pytest.raises(SpecError, match="commands carry ee_position_delta, ee_rotation_delta, gripper_position; the policy writes"):
            check_commands(_policy("action", name, field))
