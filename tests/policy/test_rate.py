# SPDX-License-Identifier: Apache-2.0
"""Laws of the limits of motion: what is slow enough passes bit for bit, and nothing that leaves is ever faster than allowed."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from otpr_policy.command import CartesianTarget
from otpr_policy.limits import Limits
from otpr_policy.rate import TargetLimiter, longest_step
from otpr_policy.rotation import matrix_to_columns
from otpr_policy.safety import Band, FilteredTarget
from otpr_policy.spec import Array

PERIOD_S = 0.1
# With 0.1 s per step: 0.05 m and 0.1 rad of speed, 0.02 m and 0.04 rad of change, 0.02 m of finger.
LIMITS = Limits((0.25, -0.45, -0.12), (0.85, 0.45, 0.50), 0.05, 0.30, 0.90, 0.1, 0.5, 0.05, 0.5, 2.0, 1.0, 4.0, 0.2, 1.0, 0.0, -0.1, 0.1)
DOWN = np.diag([1.0, -1.0, -1.0])
HOME = np.array([0.5, 0.0, 0.1])
X = np.array([1.0, 0.0, 0.0])


class Line:
    """A limiter whose hand is measured at home, told targets by how far along x, turned about z, and how far open."""

    def __init__(self, hand: Array = HOME, finger: float | None = 0.02, **changed: Any) -> None:
        self.limiter = TargetLimiter(replace(LIMITS, **changed), PERIOD_S)
        self.hand, self.finger = hand, finger

    def filter(self, x: float = 0.0, turn: float = 0.0, finger: float = 0.02, direction: Array = X) -> FilteredTarget:
        rotation = Rotation.from_rotvec([0, 0, turn]) * Rotation.from_matrix(DOWN)
        target = CartesianTarget(HOME + x * direction, rotation.as_quat(), finger)
        return self.limiter.filter(target, self.hand, matrix_to_columns(DOWN), self.finger)

    def x(self, x: float) -> tuple[Band, float]:
        filtered = self.filter(x)
        return filtered.band, pytest.approx(float(filtered.target.position[0] - HOME[0]), abs=1e-9)


def _turned(target: CartesianTarget) -> float:
    return float((Rotation.from_quat(target.quaternion) * Rotation.from_matrix(DOWN).inv()).as_rotvec()[2])


# How far a step may go


def _allowed(step: Array, previous: Array, velocity: float, acceleration: float) -> bool:
    """The definition, by brute force over the share of the previous step."""
    shares = np.linspace(0, 1, 4001)
    nearest = np.min(np.linalg.norm(step - shares[:, None] * previous, axis=1))
    return bool(np.linalg.norm(step) <= velocity and nearest <= acceleration + 1e-6)


def test_the_longest_step_is_the_longest_that_the_definition_allows() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        previous, direction = rng.normal(size=(2, 3)) * rng.choice([0.0, 0.01, 1.0, 3.0], size=(2, 1))
        direction = rng.normal(size=3) if not direction.any() else direction
        velocity, acceleration = rng.uniform(0.1, 4.0, size=2)
        longest = longest_step(direction, previous, velocity, acceleration)
        unit = direction / np.linalg.norm(direction)
        assert _allowed((longest - 1e-5) * unit, previous, velocity, acceleration)
        assert not _allowed((longest + 2e-5) * unit, previous, velocity, acceleration)


@pytest.mark.parametrize(
    ("step", "previous", "longest"),
    [
        ([1, 0, 0], [0, 0, 0], 2.0),  # from rest: the acceleration
        ([1, 0, 0], [3, 0, 0], 5.0),  # straight on: as before and the acceleration
        ([1, 0, 0], [4, 0, 0], 5.5),  # the velocity
        ([1, 0, 0], [-3, 0, 0], 2.0),  # back: stop, and then from rest
        ([1, 0, 0], [0, 3, 0], 2.0),  # across
        ([1, 0, 0], [3, 4, 0], 2.5),  # nearest at c = 3 * 2 / (4 * 5) = 0.3: 0.9 + sqrt(4 - 1.44)
        ([1, 0, 0], [3, 1, 0], 3 + 3**0.5),  # nearest at the whole previous step
        ([7, 0, 0], [3, 4, 0], 2.5),  # the length asked for does not matter
        ([0, 0, 0], [3, 4, 0], np.inf),
    ],
)
def test_the_longest_step_of_examples_computed_by_hand(step: list[float], previous: list[float], longest: float) -> None:
    assert longest_step(np.array(step, float), np.array(previous, float), 5.5, 2.0) == pytest.approx(longest)


# One step after another


def test_a_motion_inside_its_limits_passes_and_is_the_same_object() -> None:
    limiter = TargetLimiter(LIMITS, PERIOD_S)
    position = HOME.copy()
    for step in (0.02, 0.03, 0.049, 0.03, -0.019, 0.0, 0.0):
        position = position + step * X
        target = CartesianTarget(position, np.array([1.0, -0.0, 0.0, 0.0]), 0.02)
        filtered = limiter.filter(target, HOME, matrix_to_columns(DOWN), 0.02)
        assert (filtered.band, filtered.reason) == (Band.PASS, "")
        assert filtered.target is target


def test_a_target_speeds_up_to_its_limit_step_by_step_and_stops_at_once() -> None:
    line = Line(rate_margin=10.0)
    assert [line.x(0.2) for _ in range(7)] == [
        (Band.CLAMP, 0.02),
        (Band.CLAMP, 0.06),
        (Band.CLAMP, 0.11),  # 0.05 per step is the velocity limit
        (Band.CLAMP, 0.16),
        (Band.PASS, 0.2),
        (Band.PASS, 0.2),  # from 0.04 per step to 0: slowing down is free
        (Band.PASS, 0.2),
    ]
    assert line.x(0.1) == (Band.CLAMP, 0.18)  # and from rest again


def test_a_step_that_is_cut_ends_inside_its_limit_by_a_billionth_and_is_never_lengthened() -> None:
    line = Line()
    cut = float(line.filter(0.03).target.position[0] - HOME[0])
    assert 0.02 * (1 - 1.1e-9) < cut < 0.02 * (1 - 0.9e-9)
    assert Line().filter(0.02 + 0.7e-12).band is Band.PASS  # what rounding may do is not cut
    assert Line().filter(0.02 + 1.5e-12).band is Band.CLAMP


def test_a_part_at_its_limit_comes_through_bit_for_bit_beside_one_that_is_cut() -> None:
    line = Line(ramp_in_s=0.0)
    target = CartesianTarget(HOME + 0.0199 * X, np.array([1.0, 0.0, 0.0, 0.0]), 0.05)
    cut = line.limiter.filter(target, HOME, matrix_to_columns(DOWN), 0.02).target
    assert cut.position is target.position
    assert cut.quaternion is target.quaternion
    assert cut.gripper_position == pytest.approx(0.04)


def test_a_finger_inside_its_limit_is_not_computed_anew_beside_a_hand_that_is_cut() -> None:
    measured, asked = 0.005, 0.0146
    assert measured + (asked - measured) != asked  # so that it would show
    assert Line(finger=measured).filter(x=0.03, finger=asked).target.gripper_position == asked


def test_a_hand_beside_a_finger_that_is_not_measured_is_slowed_down_alone() -> None:
    cut = Line(finger=None).filter(x=0.03, finger=0.04)
    assert cut.band is Band.CLAMP
    assert cut.target.gripper_position == 0.04


def test_a_hand_exactly_a_margin_outside_the_workspace_may_start() -> None:
    box = {"workspace_low": (-1.0,) * 3, "workspace_high": (1.0,) * 3, "workspace_margin_m": 0.125}  # exact in binary
    limiter = TargetLimiter(replace(LIMITS, **box), PERIOD_S)
    target = CartesianTarget(np.array([1.0, 0.0, 0.0]), np.array([1.0, 0.0, 0.0, 0.0]), 0.02)
    assert limiter.filter(target, np.array([1.125, 0.0, 0.0]), matrix_to_columns(DOWN), 0.02).band is Band.PASS


def test_turning_back_goes_through_rest() -> None:
    line = Line()
    for x in (0.02, 0.05):
        assert line.x(x)[0] is Band.PASS
    assert line.x(0.02) == (Band.CLAMP, 0.03)


def test_a_turn_is_limited_like_a_step() -> None:
    line = Line(rate_margin=20.0)
    turns = [_turned(line.filter(turn=0.5).target) for _ in range(7)]
    assert turns == pytest.approx([0.04, 0.12, 0.22, 0.32, 0.42, 0.5, 0.5], abs=1e-8)


def test_the_finger_has_a_speed_limit() -> None:
    line = Line()
    fingers = [line.filter(finger=finger).target.gripper_position for finger in (0.04, 0.0, 0.0, 0.0, 0.01)]
    assert fingers == pytest.approx([0.04, 0.02, 0.0, 0.0, 0.01], abs=1e-9)
    assert line.filter(finger=0.0).band is Band.PASS
    line = Line(finger=0.05)
    assert line.filter(finger=0.0).band is Band.REJECT  # more than twice what is allowed


def test_a_finger_that_is_not_measured_starts_with_its_first_command() -> None:
    line = Line(finger=None)
    assert line.filter(finger=0.04).band is Band.PASS
    assert line.filter(finger=0.01).target.gripper_position == pytest.approx(0.02)


@pytest.mark.parametrize("part", ["x", "turn", "finger"])
def test_the_parts_are_limited_apart(part: str) -> None:
    """Where one is too fast the others come through bit for bit."""
    asked: dict[str, float] = {"x": 0.01, "turn": 0.02, "finger": 0.03}
    fast = {"x": 0.03, "turn": 0.06, "finger": 0.05}
    whole = Line().filter(**asked).target
    cut = Line().filter(**{**asked, part: fast[part]})
    assert cut.band is Band.CLAMP
    assert cut.reason == "the target moves too fast"
    same = {
        "x": cut.target.position.tobytes() == whole.position.tobytes(),
        "turn": cut.target.quaternion.tobytes() == whole.quaternion.tobytes(),
        "finger": cut.target.gripper_position == whole.gripper_position,
    }
    assert same == {name: name != part for name in asked}


@pytest.mark.parametrize(
    ("asked", "limit", "beyond", "reason"),
    [
        ("x", 0.02, 0.101, "hand moves by 0.101 m"),  # from rest the acceleration limits, and twice the velocity is too much
        ("turn", 0.04, 0.201, "hand turns by 0.201 rad"),
        ("finger", 0.02, 0.041, "finger moves by 0.041 m"),
    ],
)
def test_the_bands_meet_at_the_limit_and_at_the_velocity_with_its_margin(asked: str, limit: float, beyond: float, reason: str) -> None:
    offset = 0.02 if asked == "finger" else 0.0
    sizes = (limit - 1e-9, limit + 1e-9, beyond - 0.001 - 1e-9, beyond)
    at = [Line(finger=0.02).filter(**{asked: offset + size}) for size in sizes]
    assert [filtered.band for filtered in at] == [Band.PASS, Band.CLAMP, Band.CLAMP, Band.REJECT]
    assert at[-1].reason == f"in one step the target of the {reason}, far too fast"


def test_without_a_margin_what_is_faster_than_the_velocity_is_rejected_and_an_acceleration_still_slowed_down() -> None:
    assert Line(rate_margin=0.0).filter(0.0501).band is Band.REJECT
    assert Line(rate_margin=0.0).x(0.0499) == (Band.CLAMP, 0.02)


@pytest.mark.parametrize("rate_hz", [20.0, 100.0])
@pytest.mark.parametrize("margin", [0.0, 1.0])
def test_any_velocity_that_is_allowed_is_reached_from_rest_however_small_the_acceleration(rate_hz: float, margin: float) -> None:
    """A robot near people: 0.25 m/s and 1 m/s^2. To ask for all of the velocity at once is slowed down, and never held."""
    slow = replace(LIMITS, max_velocity_m_s=0.25, max_acceleration_m_s2=1.0, rate_margin=margin, max_distance_m=1.0)
    limiter = TargetLimiter(slow, 1 / rate_hz)
    at, velocities = HOME, []
    for _ in range(round(0.5 * rate_hz)):
        asked = CartesianTarget(at + 0.25 / rate_hz * X, np.array([1.0, 0.0, 0.0, 0.0]), 0.02)
        filtered = limiter.filter(asked, HOME, matrix_to_columns(DOWN), 0.02)
        assert filtered.band is not Band.REJECT
        velocities.append(float(filtered.target.position[0] - at[0]) * rate_hz)
        at = filtered.target.position
    assert np.diff(velocities).max() <= 1.0 / rate_hz + 1e-9
    assert velocities[-1] == pytest.approx(0.25) and velocities[0] == pytest.approx(1.0 / rate_hz)


def test_a_target_that_follows_too_soon_may_be_shorter_by_as_much_and_a_late_one_gains_nothing() -> None:
    """Velocity is 0.5 m/s and acceleration 2 m/s^2 by the clock: in 0.04 s after 0.2 m/s, 0.28 m/s is all there may be."""
    line = Line(rate_margin=99.0)

    def sent(x: float, now_s: float) -> float:
        target = CartesianTarget(HOME + x * X, np.array([1.0, 0.0, 0.0, 0.0]), 0.02)
        return float(line.limiter.filter(target, HOME, matrix_to_columns(DOWN), 0.02, now_s).target.position[0] - HOME[0])

    assert sent(0.2, 10.0) == pytest.approx(0.02)  # from rest, a whole period's
    assert sent(0.2, 10.04) == pytest.approx(0.02 + 0.04 * 0.28)
    assert sent(0.2, 10.14) == pytest.approx(0.0312 + 0.1 * 0.48)
    assert sent(0.25, 10.9) == pytest.approx(0.0792 + 0.05)  # the velocity, for one period


def test_a_turn_that_follows_too_soon_may_be_shorter_by_as_much() -> None:
    """Angular velocity is LIMITS' and acceleration by the clock: after a turn in 0.04 s what counts is its velocity, not its length."""
    line = Line(rate_margin=99.0, max_angular_velocity_rad_s=0.5, max_angular_acceleration_rad_s2=2.0)

    def sent(angle: float, now_s: float) -> float:
        turned = Rotation.from_rotvec([0.0, 0.0, angle]) * Rotation.from_matrix(DOWN)
        target = line.limiter.filter(CartesianTarget(HOME, turned.as_quat(), 0.02), HOME, matrix_to_columns(DOWN), 0.02, now_s).target
        return float((Rotation.from_quat(target.quaternion) * Rotation.from_matrix(DOWN).inv()).as_rotvec()[2])

    assert sent(0.2, 10.0) == pytest.approx(0.02)  # from rest, a whole period's
    assert sent(0.2, 10.04) == pytest.approx(0.02 + 0.04 * 0.28)
    assert sent(0.2, 10.14) == pytest.approx(0.0312 + 0.1 * 0.48)


def test_a_rejected_target_does_not_count_as_sent() -> None:
    line = Line()
    assert line.x(0.02)[0] is Band.PASS
    assert line.x(0.29)[0] is Band.REJECT
    assert line.x(0.06) == (Band.PASS, 0.06)


# Start, rest, ramp


def test_after_a_rest_the_hand_counts_as_at_rest_where_it_is_measured() -> None:
    line = Line()
    for x in (0.02, 0.06, 0.10):
        assert line.x(x) == (Band.PASS, x)
    line.limiter.rest()
    line.hand = HOME + 0.2 * X
    assert line.x(0.24) == (Band.CLAMP, 0.22)
    assert line.x(0.2599) == (Band.PASS, 0.2599)


def test_a_rest_keeps_the_fingers_target_and_a_start_takes_the_measured_one() -> None:
    """What is held is thinner than nothing: measured 0.02 m, commanded 0. Going back to 0.02 m would let it fall."""
    line = Line(finger=0.02)
    assert line.filter(finger=0.0).target.gripper_position == 0.0
    line.limiter.rest()
    line.finger = 0.045
    assert line.filter(finger=0.0).target.gripper_position == 0.0
    line.limiter.start()
    assert line.filter(finger=0.01).target.gripper_position == pytest.approx(0.025)


def test_limits_grow_for_as_long_as_the_ramp_is_and_again_after_a_rest() -> None:
    line = Line(rate_margin=100.0, ramp_in_s=0.4, max_acceleration_m_s2=100.0)
    first = [line.x(0.2)[1] for _ in range(5)]
    assert first == [0.0125, 0.0375, 0.075, 0.125, 0.175]  # a quarter, a half, three quarters of 0.05, and all of it
    line.limiter.rest()
    line.hand = HOME + 0.0 * X
    assert [line.x(0.2)[1] for _ in range(2)] == [0.0125, 0.0375]


def test_the_ramp_scales_acceleration_and_turn_and_finger_too_but_not_what_is_rejected() -> None:
    line = Line(ramp_in_s=0.4)
    filtered = line.filter(x=0.039, turn=0.079, finger=0.059)
    assert filtered.band is Band.CLAMP
    assert filtered.target.position[0] - HOME[0] == pytest.approx(0.005)
    assert _turned(filtered.target) == pytest.approx(0.01)
    assert filtered.target.gripper_position == pytest.approx(0.025)
    assert Line(ramp_in_s=0.4).filter(x=0.101).band is Band.REJECT


def test_a_ramp_of_zero_or_of_less_than_a_step_is_none() -> None:
    for ramp_in_s in (0.0, 0.01, 0.1):
        assert Line(ramp_in_s=ramp_in_s).filter(0.0199).band is Band.PASS


# Together with the other limits


def test_a_hand_outside_the_workspace_is_taken_for_its_nearest_point_inside_or_refused() -> None:
    edge = LIMITS.workspace_low[2]
    down = np.array([0.0, 0.0, 1.0])
    outside = Line(hand=np.array([0.5, 0.0, edge - 0.049]))
    filtered = outside.filter(edge - 0.1 - 0.049, direction=down)
    assert filtered.band is Band.CLAMP
    assert filtered.target.position[2] == edge
    assert outside.filter(edge - 0.1 + 0.02, direction=down).band is Band.PASS
    beyond = Line(hand=np.array([0.5, 0.0, edge - 0.051])).filter(edge - 0.1, direction=down)
    assert (beyond.band, beyond.reason) == (Band.REJECT, "the hand is outside the workspace")


def test_a_target_that_is_slowed_down_while_the_hand_is_pushed_away_is_rejected() -> None:
    line = Line(max_distance_m=0.1, rate_margin=100.0)
    assert line.x(0.01)[0] is Band.PASS
    line.hand = HOME + 0.15 * X
    filtered = line.filter(0.15)
    assert filtered.band is Band.REJECT
    assert filtered.reason.startswith("slowed down, the target lies 0.1")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_rejected_wherever_it_stands(value: float) -> None:
    assert Line().filter(x=value).band is Band.REJECT
    assert Line().filter(finger=value).band is Band.REJECT
    assert Line(finger=value).filter().band is Band.REJECT
    assert Line(hand=np.array([value, 0.0, 0.1])).filter().band is Band.REJECT
