# SPDX-License-Identifier: Apache-2.0
"""Laws of the limits: inside them nothing changes, a little outside is clamped, anything else never reaches the robot."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny_policy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from otpr_policy.command import CartesianTarget
from otpr_policy.limits import Limits
from otpr_policy.rotation import columns_to_matrix
from otpr_policy.safety import Band, check_observation, filter_action, filter_target
from otpr_policy.spec import Array

ACTION, OBSERVATION = tiny_policy.ACTION, tiny_policy.OBSERVATION
LIMITS = Limits(
    workspace_low=(0.25, -0.45, -0.12),
    workspace_high=(0.85, 0.45, 0.50),
    workspace_margin_m=0.05,
    max_distance_m=0.10,
    max_rotation_rad=0.90,
    action_margin=0.1,
    observation_margin=0.5,
    observation_floor=0.05,
    max_velocity_m_s=0.5,
    max_acceleration_m_s2=5.0,
    max_angular_velocity_rad_s=1.0,
    max_angular_acceleration_rad_s2=10.0,
    max_gripper_velocity_m_s=0.2,
    rate_margin=1.0,
    ramp_in_s=0.0,
    gripper_low_m=0.0,
    gripper_high_m=0.05,
)
MIDDLE = (ACTION.low + ACTION.high) / 2
DOWN = np.diag([1.0, -1.0, -1.0])  # a gripper that points at the table
DOWN_QUATERNION = np.array([1.0, 0.0, 0.0, 0.0])
ABSURD = [np.nan, np.inf, -np.inf, 1e30, -1e30, 1.8e308, -1.8e308, np.nextafter(np.inf, 0), 7.0, -7.0]


# Actions


@pytest.mark.parametrize("index", range(ACTION.size))
@pytest.mark.parametrize("value", ABSURD)
def test_an_absurd_number_in_any_component_rejects_the_action_and_is_named(index: int, value: float) -> None:
    vector = MIDDLE.copy()
    vector[index] = value
    filtered = filter_action(ACTION, vector, LIMITS)
    assert filtered.band is Band.REJECT
    assert ACTION.label(index) in filtered.reason


@settings(max_examples=100, deadline=None)
@given(arrays(np.float64, ACTION.size, elements=st.floats(0, 1)))
def test_inside_its_bounds_an_action_passes_bit_for_bit(share: Array) -> None:
    vector = np.clip(ACTION.low + share * (ACTION.high - ACTION.low), ACTION.low, ACTION.high)
    filtered = filter_action(ACTION, vector.copy(), LIMITS)
    assert (filtered.band, filtered.reason) == (Band.PASS, "")
    assert filtered.vector.tobytes() == vector.tobytes()


@pytest.mark.parametrize("value", [-0.0, 5e-324, -5e-324, np.finfo(np.float64).tiny])
def test_zeros_with_a_sign_and_denormal_numbers_pass_bit_for_bit(value: float) -> None:
    vector = np.full(ACTION.size, value)
    vector[-1] = abs(value) if value < 0 else value  # the gripper's lower bound is zero
    filtered = filter_action(ACTION, vector.copy(), LIMITS)
    assert filtered.band is Band.PASS
    assert filtered.vector.tobytes() == vector.tobytes()


def test_a_gripper_at_minus_zero_is_at_its_bound_and_a_denormal_below_it_is_cut_off_without_being_counted() -> None:
    vector = MIDDLE.copy()
    vector[-1] = -0.0
    assert filter_action(ACTION, vector, LIMITS).vector.tobytes() == vector.tobytes()
    vector[-1] = -5e-324
    cut = filter_action(ACTION, vector, LIMITS)
    assert (cut.band, cut.vector[-1]) == (Band.PASS, 0.0)


@pytest.mark.parametrize("index", range(ACTION.size))
@pytest.mark.parametrize("side", [-1, 1])
def test_the_bands_meet_at_the_bound_and_at_the_bound_plus_its_margin(index: int, side: int) -> None:
    bound = (ACTION.low if side < 0 else ACTION.high)[index]
    width = ACTION.high[index] - ACTION.low[index]
    rounding = 2.0**-23 * max(abs(ACTION.low[index]), abs(ACTION.high[index]))  # of a float32 of the bound's size
    edge = bound + side * (0.1 * width)

    def band(value: float) -> tuple[Band, float]:
        vector = MIDDLE.copy()
        vector[index] = value
        filtered = filter_action(ACTION, vector, LIMITS)
        return filtered.band, float(filtered.vector[index])

    assert band(bound) == (Band.PASS, bound)
    assert band(np.nextafter(bound, side * np.inf)) == (Band.PASS, bound)  # cut off, but no fault of the policy
    assert band(bound + side * 0.9 * rounding) == (Band.PASS, bound)
    assert band(bound + side * 1.1 * rounding) == (Band.CLAMP, bound)
    assert band(edge) == (Band.CLAMP, bound)
    assert band(np.nextafter(edge, side * np.inf))[0] is Band.REJECT


def test_a_clamp_changes_the_components_outside_and_no_other() -> None:
    vector = MIDDLE + 0.001
    vector[1], vector[5] = 0.052, -0.53
    filtered = filter_action(ACTION, vector, LIMITS)
    expected = vector.copy()
    expected[1], expected[5] = 0.05, -0.5
    assert filtered.band is Band.CLAMP
    assert filtered.vector.tobytes() == expected.tobytes()
    assert filtered.reason == "ee_position_delta[1] is outside its bounds"
    assert vector[1] == 0.052  # the caller's vector is left alone


@pytest.mark.parametrize("margin", [0.0, 1e-12, 0.1])
def test_a_bound_that_the_graph_clipped_to_in_float32_passes_as_the_bound_whatever_the_margin(margin: float) -> None:
    for bounds in (ACTION.low, ACTION.high):
        vector = bounds.astype(np.float32).astype(np.float64)
        assert (vector != bounds).any()  # 0.05 and 0.04 are none in float32
        filtered = filter_action(ACTION, vector, replace(LIMITS, action_margin=margin))
        assert (filtered.band, filtered.reason) == (Band.PASS, "")
        assert (ACTION.low <= filtered.vector).all()
        assert (filtered.vector <= ACTION.high).all()
        np.testing.assert_allclose(filtered.vector, bounds, atol=1e-8)


def test_without_a_margin_nothing_is_clamped() -> None:
    vector = MIDDLE.copy()
    vector[2] = 0.05 + 1.1 * 2.0**-23 * 0.05
    assert filter_action(ACTION, vector, replace(LIMITS, action_margin=0.0)).band is Band.REJECT
    assert filter_action(ACTION, vector, LIMITS).band is Band.CLAMP


any_number = st.one_of(st.floats(-0.06, 0.06), st.floats(-0.6, 0.6), st.floats())


@settings(max_examples=300, deadline=None)
@given(arrays(np.float64, ACTION.size, elements=any_number))
def test_whatever_comes_in_what_goes_out_is_within_bounds_or_rejected_and_filtering_again_changes_nothing(vector: Array) -> None:
    once = filter_action(ACTION, vector, LIMITS)
    if once.band is Band.REJECT:
        assert filter_action(ACTION, once.vector, LIMITS).band is Band.REJECT
        return
    assert (ACTION.low <= once.vector).all()
    assert (once.vector <= ACTION.high).all()
    twice = filter_action(ACTION, once.vector, LIMITS)
    assert twice.band is Band.PASS
    assert twice.vector.tobytes() == once.vector.tobytes()


# Targets


def _changed(**changed: Any) -> Limits:
    return replace(LIMITS, **changed)


def _target(
    position: Any = (0.5, 0.0, 0.1),
    quaternion: Any = DOWN_QUATERNION,
    gripper: float = 0.02,
    hand: Any = (0.5, 0.0, 0.1),
    limits: Limits = LIMITS,
) -> tuple[Band, CartesianTarget, str]:
    target = CartesianTarget(np.array(position, dtype=float), np.array(quaternion, dtype=float), gripper)
    filtered = filter_target(target, np.array(hand, dtype=float), DOWN, limits)
    return filtered.band, filtered.target, filtered.reason


def test_a_target_inside_every_limit_passes_bit_for_bit() -> None:
    target = CartesianTarget(np.array([0.51, -0.0, 5e-324]), DOWN_QUATERNION, 0.04)
    filtered = filter_target(target, np.array([0.5, 0.0, 0.0]), DOWN, LIMITS)
    assert filtered.band is Band.PASS
    assert filtered.target is target


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e30, 1.7e308])
@pytest.mark.parametrize("part", ["position", "quaternion", "hand"])
@pytest.mark.parametrize("axis", range(3))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_absurd_number_on_any_axis_of_target_or_measurement_rejects(value: float, part: str, axis: int) -> None:
    numbers = np.array({"position": (0.5, 0.0, 0.1), "quaternion": DOWN_QUATERNION, "hand": (0.5, 0.0, 0.1)}[part], dtype=float)
    numbers[axis] = value
    changed: dict[str, Any] = {part: numbers}
    assert _target(**changed)[0] is Band.REJECT


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_gripper_target_that_is_not_finite_rejects(value: float) -> None:
    assert _target(gripper=value)[0] is Band.REJECT


@pytest.mark.parametrize("columns", [[np.nan] * 6, [0.0] * 6, [np.inf, 0, 0, 0, 1, 0], [1.0, 0, 0, 2.0, 0, 0]])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_measured_rotation_that_is_none_rejects(columns: list[float]) -> None:
    target = CartesianTarget(np.array([0.5, 0.0, 0.1]), DOWN_QUATERNION, 0.02)
    assert filter_target(target, target.position, columns_to_matrix(np.array(columns)), LIMITS).band is Band.REJECT


@pytest.mark.parametrize("quaternion", [[0.0] * 4, [1e-9, 0, 0, 0], [2.0, 0, 0, 0], [1.00001, 0, 0, 0], [1e200, 0, 0, 0], [0.5, 0, 0, 0]])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_quaternion_that_is_not_of_unit_length_rejects_and_raises_nothing(quaternion: list[float]) -> None:
    band, _, reason = _target(quaternion=quaternion)
    assert band is Band.REJECT
    assert "unit length" in reason


def test_a_quaternion_may_be_off_unit_length_by_what_rounding_does_and_not_by_more() -> None:
    assert _target(quaternion=[1 + 0.8e-6, 0.0, 0.0, 0.0])[0] is Band.PASS
    assert _target(quaternion=[1 + 1.2e-6, 0.0, 0.0, 0.0])[0] is Band.REJECT


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("side", [-1, 1])
def test_the_workspace_bands_meet_at_the_box_and_at_the_box_plus_its_margin(axis: int, side: int) -> None:
    # An eighth is exact in binary, so that the edges can be hit exactly.
    box = replace(LIMITS, workspace_low=(-1.0,) * 3, workspace_high=(1.0,) * 3, workspace_margin_m=0.125, max_distance_m=0.5)

    def at(value: float) -> tuple[Band, list[float]]:
        position = np.array([0.25, 0.25, 0.25])
        position[axis] = value
        hand = position.copy()
        hand[axis] = side
        band, target, _ = _target(position, hand=hand, limits=box)
        return band, target.position.tolist()

    on_the_box = [0.25, 0.25, 0.25]
    on_the_box[axis] = float(side)
    assert at(side) == (Band.PASS, on_the_box)
    assert at(np.nextafter(side, side * np.inf)) == (Band.CLAMP, on_the_box)
    assert at(side * 1.125) == (Band.CLAMP, on_the_box)
    assert at(np.nextafter(side * 1.125, side * np.inf))[0] is Band.REJECT


def test_a_clamped_target_keeps_orientation_and_gripper() -> None:
    band, target, reason = _target((0.5, 0.0, -0.15), hand=(0.5, 0.0, -0.10))
    assert band is Band.CLAMP
    assert target.position.tolist() == [0.5, 0.0, -0.12]
    assert target.quaternion.tolist() == DOWN_QUATERNION.tolist()
    assert target.gripper_position == 0.02
    assert "0.030 m outside" in reason


def test_the_distance_from_the_hand_is_limited_and_measured_after_the_clamp() -> None:
    assert _target((0.5594, 0.0792, 0.1), hand=(0.5, 0.0, 0.1))[0] is Band.PASS  # 3-4-5: 0.099 m
    band, _, reason = _target((0.563, 0.084, 0.1), hand=(0.5, 0.0, 0.1))  # 0.105 m
    assert band is Band.REJECT
    assert "0.105 m from the hand, allowed are 0.100" in reason
    # 0.11 m away, but 0.07 m once clamped onto the box
    assert _target((0.5, 0.0, -0.16), hand=(0.5, 0.0, -0.05))[0] is Band.CLAMP
    # a hand that was pushed far outside the box may not be pulled back in one leap
    assert _target((0.5, 0.0, -0.12), hand=(0.5, 0.0, -0.30))[0] is Band.REJECT


def test_a_target_exactly_as_far_as_is_allowed_passes() -> None:
    limits = replace(LIMITS, max_distance_m=0.125)  # exact in binary
    assert _target((0.5, 0.0, 0.125), hand=(0.5, 0.0, 0.25), limits=limits)[0] is Band.PASS
    assert _target((0.5, 0.0, 0.125), hand=(0.5, 0.0, np.nextafter(0.25, 1)), limits=limits)[0] is Band.REJECT


def test_a_turn_of_more_than_a_right_angle_is_measured_too() -> None:
    limits = replace(LIMITS, max_rotation_rad=2.0)
    for angle, band in ((1.9, Band.PASS), (2.1, Band.REJECT)):
        turned = Rotation.from_rotvec([0, 0, angle]) * Rotation.from_matrix(DOWN)
        assert _target(quaternion=turned.as_quat(), limits=limits)[0] is band


@pytest.mark.parametrize(
    ("angle", "band"), [(0.0, Band.PASS), (0.899, Band.PASS), (-0.899, Band.PASS), (0.901, Band.REJECT), (3.14, Band.REJECT)]
)
@pytest.mark.parametrize("axis", [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0.0, 0.8]])
def test_the_turn_from_the_measured_orientation_is_limited(angle: float, band: Band, axis: list[float]) -> None:
    turned = Rotation.from_rotvec(angle * np.array(axis)) * Rotation.from_matrix(DOWN)
    for quaternion in (turned.as_quat(), -turned.as_quat()):
        assert _target(quaternion=quaternion)[0] is band


@pytest.mark.parametrize(("angle", "band"), [(0.0, Band.PASS), (0.899, Band.PASS), (0.901, Band.REJECT)])
def test_the_turn_is_measured_between_two_rotations_of_which_neither_is_special(angle: float, band: Band) -> None:
    measured = Rotation.from_euler("xyz", [170, 20, 100], degrees=True)
    turned = Rotation.from_rotvec(angle * np.array([0.48, -0.6, 0.64])) * measured
    target = CartesianTarget(np.array([0.5, 0.0, 0.1]), turned.as_quat(), 0.02)
    assert filter_target(target, target.position, measured.as_matrix(), LIMITS).band is band


@pytest.mark.parametrize("factor", [1.0, 1 + 1e-12, 1 - 1e-12])
def test_rounding_beyond_no_turn_and_half_a_turn_raises_nothing(factor: float) -> None:
    """A cosine a rounding above 1 is no turn, one below -1 is half a turn, which a limit of half a turn allows."""
    target = CartesianTarget(np.array([0.5, 0.0, 0.1]), DOWN_QUATERNION, 0.02)
    half_turn = np.diag([-1.0, 1.0, -1.0])
    assert filter_target(target, target.position, factor * DOWN, _changed(max_rotation_rad=1e-3)).band is Band.PASS
    assert filter_target(target, target.position, factor * half_turn, _changed(max_rotation_rad=np.pi)).band is Band.PASS
    assert filter_target(target, target.position, factor * half_turn, _changed(max_rotation_rad=3.14)).band is Band.REJECT


def test_a_finger_range_that_does_not_begin_at_zero_is_clamped_to_by_its_width() -> None:
    """By hand: half of 0.5 m is allowed beyond 1 m, the end included."""
    limits = _changed(gripper_low_m=0.5, gripper_high_m=1.0, action_margin=0.5)
    assert _target(gripper=1.25, limits=limits)[0] is Band.CLAMP
    assert _target(gripper=1.2501, limits=limits)[0] is Band.REJECT
    assert _target(gripper=0.25, limits=limits)[1].gripper_position == 0.5


def test_what_was_clamped_is_named_and_a_target_on_the_edge_is_inside() -> None:
    edge, hand = (0.85, 0.0, 0.1), (0.85, 0.0, 0.1)
    assert _target(edge, hand=hand)[0] is Band.PASS and _target(edge, gripper=0.05, hand=hand)[0] is Band.PASS
    assert _target(edge, gripper=0.051, hand=hand)[::2] == (Band.CLAMP, "the finger's target lay outside its range")
    assert _target((0.86, 0.0, 0.1), hand=hand)[2] == "the target lay 0.010 m outside the workspace"


positions = arrays(np.float64, 3, elements=st.one_of(st.floats(-1, 1), st.floats()))


@settings(max_examples=300, deadline=None)
@given(positions, positions, arrays(np.float64, 4, elements=st.one_of(st.floats(-1, 1), st.floats())), st.floats(), st.booleans())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_whatever_the_target_it_ends_inside_every_limit_or_is_rejected_and_filtering_again_changes_nothing(
    position: Array, hand: Array, quaternion: Array, gripper: float, near: bool
) -> None:
    if near:  # or nearly every example is rejected
        hand, quaternion, gripper = np.clip(position, [0.25, -0.45, -0.12], [0.85, 0.45, 0.50]), DOWN_QUATERNION, 0.02
    target = CartesianTarget(position, quaternion, gripper)
    once = filter_target(target, hand, DOWN, LIMITS)
    if once.band is Band.REJECT:
        return
    assert (LIMITS.workspace_low <= once.target.position).all()
    assert (once.target.position <= LIMITS.workspace_high).all()
    assert np.linalg.norm(once.target.position - hand) <= LIMITS.max_distance_m
    assert np.isfinite(once.target.quaternion).all()
    assert np.isfinite(once.target.gripper_position)
    twice = filter_target(once.target, hand, DOWN, LIMITS)
    assert twice.band is Band.PASS
    assert twice.target is once.target


# Observations


def _observation() -> Array:
    return (OBSERVATION.low + OBSERVATION.high) / 2


@pytest.mark.parametrize("index", range(OBSERVATION.size))
@pytest.mark.parametrize("value", ABSURD)
def test_an_absurd_observation_is_found_in_any_component_and_named(index: int, value: float) -> None:
    vector = _observation()
    vector[index] = value
    problem = check_observation(OBSERVATION, vector, LIMITS)
    assert problem is not None
    assert problem.startswith(OBSERVATION.label(index))
    assert f"{OBSERVATION.low[index]:.4g}" in problem


def test_the_first_of_several_problems_is_named() -> None:
    vector = _observation()
    vector[[4, 9]] = np.nan
    assert str(check_observation(OBSERVATION, vector, LIMITS)).startswith("ee_rotation[1] = nan")


@pytest.mark.parametrize("index", range(OBSERVATION.size))
@pytest.mark.parametrize("side", [-1, 1])
def test_an_observation_may_lie_outside_the_training_range_by_the_larger_of_margin_and_floor(index: int, side: int) -> None:
    low, high = OBSERVATION.low[index], OBSERVATION.high[index]
    edge = (low if side < 0 else high) + side * max(0.5 * (high - low), 0.05)  # for a finger, 0.04 m wide, the floor decides
    vector = _observation()
    for value in (low, high, edge):
        vector[index] = value
        assert check_observation(OBSERVATION, vector, LIMITS) is None
    vector[index] = np.nextafter(edge, side * np.inf)
    assert check_observation(OBSERVATION, vector, LIMITS) is not None


@pytest.mark.parametrize("shape", [(), (1,), (6,), (8,), (1, 7), (7, 1), (7, 7), (0,)])
def test_a_vector_of_another_shape_is_a_bug_of_the_caller_and_not_compared_with_all_limits_at_once(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(7,\)"):
        filter_action(ACTION, np.full(shape, 0.01), LIMITS)
    with pytest.raises(ValueError, match=rf"expected \({OBSERVATION.size},\)"):
        check_observation(OBSERVATION, np.full(shape, 0.01), LIMITS)


def test_two_results_are_equal_only_if_they_are_one() -> None:
    target = CartesianTarget(np.array([0.5, 0.0, 0.1]), DOWN_QUATERNION, 0.02)
    actions = [filter_action(ACTION, MIDDLE, LIMITS) for _ in range(2)]
    targets = [filter_target(target, target.position, DOWN, LIMITS) for _ in range(2)]
    assert actions[0] != actions[1]  # rather than numpy's error about the truth of an array
    assert targets[0] != targets[1]
    assert len({*actions, *targets}) == 4


@pytest.mark.parametrize(
    ("finger", "band", "sent"),
    [
        (0.0, Band.PASS, 0.0),
        (0.05, Band.PASS, 0.05),
        (-0.0049, Band.CLAMP, 0.0),  # within a tenth of the range
        (0.0549, Band.CLAMP, 0.05),
        (-0.0051, Band.REJECT, None),
        (0.0551, Band.REJECT, None),
        (-5.0, Band.REJECT, None),
        (1e30, Band.REJECT, None),
    ],
)
def test_the_fingers_have_a_range_of_the_robots_own(finger: float, band: Band, sent: float | None) -> None:
    """Whatever range an artifact claims."""
    target = CartesianTarget(np.array([0.5, 0.0, 0.0]), DOWN_QUATERNION, finger)
    filtered = filter_target(target, target.position, DOWN, LIMITS)
    assert filtered.band is band
    if sent is not None:
        assert filtered.target.gripper_position == sent
        assert np.array_equal(filtered.target.position, target.position)


def test_a_target_outside_workspace_and_finger_range_is_brought_back_in_both() -> None:
    target = CartesianTarget(np.array([0.86, 0.0, 0.0]), DOWN_QUATERNION, 0.051)
    filtered = filter_target(target, np.array([0.85, 0.0, 0.0]), DOWN, LIMITS)
    assert filtered.band is Band.CLAMP
    assert (filtered.target.position[0], filtered.target.gripper_position) == (0.85, 0.05)
