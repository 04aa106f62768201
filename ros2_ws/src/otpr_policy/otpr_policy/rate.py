# SPDX-License-Identifier: Apache-2.0
"""How fast a target may move: limits of velocity and acceleration, relative to the target that was sent last.

A target is made from a measurement, so its motion has the measurement's noise in it; but what a controller follows is
the sequence of targets, and that is what is limited here (docs/adr/0010). One target is due per control step, and
limits are per step: a late step gains nothing, and one that follows too soon may be shorter by as much.

A step u is allowed when its length is at most the velocity limit and when some share of the step before, w, lies
within the acceleration limit of it: min over c in [0, 1] of |u - c w| at most a T². So speed is gained and direction
changed at a limited rate, and slowing down is free: no limit here can delay a stop. The allowed steps are a convex set
that contains 0. A step that is too long is cut to the longest allowed one in its own direction, so the target stays
between where it was and where it was asked to go; in particular it stays in the workspace, which is convex too.

Only a velocity far beyond its limit is rejected: any velocity that is allowed may be asked for from rest, whatever
acceleration that is, and getting there more slowly is what the limit is for.
"""

from dataclasses import dataclass
from math import inf, sqrt

import numpy as np

from otpr_policy.command import CartesianTarget
from otpr_policy.limits import Limits
from otpr_policy.rotation import (
    columns_to_matrix,
    matrix_to_quaternion,
    matrix_to_rotation_vector,
    rotation_vector_to_matrix,
)
from otpr_policy.safety import Band, FilteredTarget, filter_target
from otpr_policy.spec import Array

_ROUNDING = 1e-12  # m and rad: what adding and subtracting a step may do to it
_SHORTEST = 1e-3  # of a period; two targets closer than that count as so far apart
_INSIDE = 1 - 1e-9  # a step that was cut ends this far inside its limit, so that rounding cannot put it outside


def longest_step(step: Array, previous: Array, velocity: float, acceleration: float) -> float:
    """How long a step may be in the direction of ``step`` (3,), after the step ``previous`` (3,).

    Args:
        step: its length does not matter; (0, 0, 0) has no direction and may be as long as it likes.
        previous: the step before.
        velocity: longest step at all, v T.
        acceleration: farthest that a step may lie from any share of the one before, a T².
    """
    length = sqrt(step @ step)
    if length == 0:
        return inf
    along = float(step @ previous) / length
    if along <= 0:
        return min(velocity, acceleration)
    size = sqrt(previous @ previous)
    across = sqrt(max(size * size - along * along, 0.0))
    # The share c of the previous step that lets this one reach farthest: c along + sqrt(a² - c² across²) is largest.
    share = 1.0 if across * size <= along * acceleration else along * acceleration / (across * size)
    reach = share * along + sqrt(max(acceleration * acceleration - (share * across) ** 2, 0.0))
    return min(velocity, reach)


@dataclass(frozen=True, eq=False)
class _Motion:
    """The target that was sent last, and the velocities that led to it."""

    position: Array  # (3,) [m]
    rotation: Array  # (3, 3)
    step: Array  # (3,) [m] per period
    turn: Array  # (3,) [rad] per period, a rotation vector in the fixed frame


class TargetLimiter:
    """Holds the targets of one engagement to every limit: workspace, distance, turn, velocity, acceleration.

    Not thread-safe; belongs to the control loop.
    """

    def __init__(self, limits: Limits, period_s: float) -> None:
        """For one target every ``period_s``."""
        self._limits = limits
        self._workspace = np.array(limits.workspace_low), np.array(limits.workspace_high)
        self._period_s = period_s
        self._ramp_steps = max(1, round(limits.ramp_in_s / period_s))
        self.start()

    def start(self) -> None:
        """An engagement starts: hand and fingers are at rest where they are measured."""
        self._finger: float | None = None
        self._sent_s: float | None = None
        self.rest()

    def rest(self) -> None:
        """The robot holds: the hand counts as at rest where it is measured next, and limits grow from small again.

        The finger's last target stays what the next one is measured against. A finger controller keeps it during a
        hold, and going back to the measured position would loosen the grip on what is held.
        """
        self._motion: _Motion | None = None
        self._steps = 0

    def filter(
        self,
        target: CartesianTarget,
        measured_position: Array,
        measured_rotation: Array,
        measured_finger: float | None = None,
        now_s: float | None = None,
    ) -> FilteredTarget:
        """The target to send instead of ``target``; one that is not rejected counts as sent.

        Args:
            target: where hand and fingers shall go.
            measured_position: of the hand, (3,) [m].
            measured_rotation: first two columns of the hand's rotation, (6,).
            measured_finger: position of the commanded finger joint [m]; None if not measured, the first command then sets it.
            now_s: when it will be sent, on a clock that never goes back; None where targets are a period apart by construction.
        """
        passed = 1.0 if now_s is None or self._sent_s is None else (now_s - self._sent_s) / self._period_s
        passed = min(1.0, max(passed, _SHORTEST))  # of a period
        measured = columns_to_matrix(measured_rotation)
        asked = filter_target(target, measured_position, measured, self._limits)
        if asked.band is Band.REJECT:
            return asked
        before = self._motion or self._at_rest(measured_position, measured)
        if before is None:
            return FilteredTarget(target, Band.REJECT, "the hand is outside the workspace")
        result = self._slow_down(asked.target, before, measured_finger, passed)
        if result.band is Band.CLAMP:  # a target between two allowed ones may still be too far from a hand that was pushed away
            final = filter_target(result.target, measured_position, measured, self._limits)
            if final.band is not Band.PASS:
                return FilteredTarget(target, Band.REJECT, f"slowed down, {final.reason}")
        if result.band is not Band.REJECT:
            self._sent(result.target, before, passed)
            self._sent_s = now_s
        return asked if result.band is Band.PASS else result

    def left(self, now_s: float) -> None:
        """The target that was filtered last leaves only now; the next one counts from here."""
        self._sent_s = now_s

    def _at_rest(self, measured_position: Array, measured_rotation: Array) -> _Motion | None:
        position = measured_position.clip(*self._workspace)  # the workspace wins over velocity: a target never starts outside it
        if not np.max(np.abs(position - measured_position)) <= self._limits.workspace_margin_m:
            return None
        return _Motion(position, measured_rotation, np.zeros(3), np.zeros(3))

    def _slow_down(self, target: CartesianTarget, before: _Motion, measured_finger: float | None, passed: float) -> FilteredTarget:
        step, turn = target.position - before.position, matrix_to_rotation_vector(target.rotation @ before.rotation.T)
        finger = measured_finger if self._finger is None else self._finger
        pull = 0.0 if finger is None else target.gripper_position - finger
        lengths = (sqrt(step @ step), sqrt(turn @ turn), abs(pull))
        limits = self._limits
        longest = (limits.max_velocity_m_s, limits.max_angular_velocity_rad_s, limits.max_gripper_velocity_m_s)
        names = ("hand moves by {:.3f} m", "hand turns by {:.3f} rad", "finger moves by {:.3f} m")
        for name, length, velocity in zip(names, lengths, longest, strict=True):
            if not length <= (1 + limits.rate_margin) * velocity * self._period_s + _ROUNDING:
                return FilteredTarget(target, Band.REJECT, f"in one step the target of the {name.format(length)}, far too fast")
        ramp = min(1.0, (self._steps + 1) / self._ramp_steps)
        of_step, of_turn, of_pull = self._shares(lengths, step, turn, before, ramp, passed)
        if min(of_step, of_turn, of_pull) >= 1:
            return FilteredTarget(target, Band.PASS)
        position, quaternion, gripper_position = target.position, target.quaternion, target.gripper_position
        if of_step < 1:  # between two points of the workspace, up to rounding
            position = (before.position + of_step * step).clip(*self._workspace)
        if of_turn < 1:
            quaternion = matrix_to_quaternion(rotation_vector_to_matrix(of_turn * turn) @ before.rotation)
        if finger is not None and of_pull < 1:
            gripper_position = finger + of_pull * pull
        return FilteredTarget(CartesianTarget(position, quaternion, gripper_position), Band.CLAMP, "the target moves too fast")

    def _shares(
        self, lengths: tuple[float, float, float], step: Array, turn: Array, before: _Motion, factor: float, passed: float
    ) -> tuple[float, float, float]:
        """What share of step, turn and finger's way is within the limits times ``factor``, in the part of a period that has passed."""
        limits = self._limits
        period_s = passed * self._period_s
        once, twice = factor * period_s, factor * period_s**2
        longest = (
            longest_step(step, passed * before.step, limits.max_velocity_m_s * once, limits.max_acceleration_m_s2 * twice),
            longest_step(
                turn, passed * before.turn, limits.max_angular_velocity_rad_s * once, limits.max_angular_acceleration_rad_s2 * twice
            ),
            limits.max_gripper_velocity_m_s * once,
        )
        step_share, turn_share, pull_share = map(_share, lengths, longest)
        return step_share, turn_share, pull_share

    def _sent(self, target: CartesianTarget, before: _Motion, passed: float) -> None:
        turn = matrix_to_rotation_vector(target.rotation @ before.rotation.T)
        self._motion = _Motion(target.position, target.rotation, (target.position - before.position) / passed, turn / passed)
        self._finger = target.gripper_position
        self._steps += 1


def _share(length: float, longest: float) -> float:
    """What share of a length is allowed: 1 if all of it is, else a little less than what would reach the limit."""
    return 1.0 if length <= longest + _ROUNDING else longest / length * _INSIDE
