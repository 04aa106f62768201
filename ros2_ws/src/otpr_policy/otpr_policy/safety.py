# SPDX-License-Identifier: Apache-2.0
"""What may reach the robot. Three bands: inside a limit passes, a little outside is clamped, far outside is rejected.

A clamp is counted, a reject holds the robot. Every comparison is written so that NaN falls into reject: ``np.clip``
returns NaN for NaN, and Python's ``max(-1, min(1, nan))`` even turns it into a full-scale command.
"""

from dataclasses import dataclass
from enum import Enum
from math import acos, dist, hypot, isfinite, pi

import numpy as np

from otpr_policy.command import CartesianTarget
from otpr_policy.limits import Limits
from otpr_policy.spec import Array, VectorSpec

_ROUNDING = float(np.finfo(np.float32).eps)
_UNIT_TOLERANCE = 1e-6  # of a quaternion's length; ours are exact to rounding


class Band(Enum):
    """How far inside or outside the limits a command was."""

    PASS = "pass"
    CLAMP = "clamp"
    REJECT = "reject"


@dataclass(frozen=True, eq=False)
class FilteredAction:
    """An action vector (Da,) after its limits, and why it is not what it was."""

    vector: Array
    band: Band
    reason: str = ""


@dataclass(frozen=True, eq=False)
class FilteredTarget:
    """A target after its limits, and why it is not what it was."""

    target: CartesianTarget
    band: Band
    reason: str = ""


def check_observation(spec: VectorSpec, vector: Array, limits: Limits) -> str | None:
    """None when the vector (Do,) lies near enough to the training range, else the first component that does not.

    A network answers any input, and clipping inside the graph makes even absurd input yield well-formed actions; only
    a check before inference can tell.
    """
    _check_shape(spec, vector)
    slack = np.maximum(limits.observation_margin * (spec.high - spec.low), limits.observation_floor)
    inside = (vector >= spec.low - slack) & (vector <= spec.high + slack)
    if inside.all():
        return None
    index = int(np.argmin(inside))
    return f"{spec.label(index)} = {vector[index]:.4g} is far outside the training range [{spec.low[index]:.4g}, {spec.high[index]:.4g}]"


def filter_action(spec: VectorSpec, vector: Array, limits: Limits) -> FilteredAction:
    """Holds an action vector (Da,) to the bounds of its fields. Inside them it comes back bit for bit.

    A bound that the graph clips to in float32 may lie a rounding beyond the bound in float64; that is cut off and not counted.
    """
    _check_shape(spec, vector)
    rounding = _ROUNDING * np.maximum(np.abs(spec.low), np.abs(spec.high))
    slack = np.maximum(limits.action_margin * (spec.high - spec.low), rounding)
    tolerable = (vector >= spec.low - slack) & (vector <= spec.high + slack)
    if not tolerable.all():
        index = int(np.argmin(tolerable))
        return FilteredAction(vector, Band.REJECT, f"{spec.label(index)} = {vector[index]:.4g} is far outside its bounds")
    clamped = np.clip(vector, spec.low, spec.high)
    changed = np.abs(clamped - vector) > rounding
    if not changed.any():
        return FilteredAction(vector if np.array_equal(clamped, vector) else clamped, Band.PASS)  # np.clip turns -0.0 into 0.0
    return FilteredAction(clamped, Band.CLAMP, f"{spec.label(int(np.argmax(changed)))} is outside its bounds")


def _check_shape(spec: VectorSpec, vector: Array) -> None:
    if vector.shape != (spec.size,):  # numpy would compare one number with all limits
        raise ValueError(f"vector of shape {vector.shape}, expected ({spec.size},)")


def filter_target(target: CartesianTarget, measured_position: Array, measured_rotation: Array, limits: Limits) -> FilteredTarget:
    """Holds a target to the workspace, to the fingers' range, and near the measured hand.

    Args:
        target: where hand and fingers shall go.
        measured_position: of the hand, (3,) [m].
        measured_rotation: of the hand, (3, 3).
        limits: the robot's.
    """
    wanted, quaternion = target.position.tolist(), target.quaternion.tolist()  # Python's floats take a third of the time here
    if not all(map(isfinite, (*wanted, *quaternion, target.gripper_position))):
        return FilteredTarget(target, Band.REJECT, "the target is not finite")
    if not abs(hypot(*quaternion) - 1) <= _UNIT_TOLERANCE:
        return FilteredTarget(target, Band.REJECT, "the target's quaternion is not of unit length")
    angle = _angle((float(np.vdot(target.rotation, measured_rotation)) - 1) / 2)  # the trace of target times transposed measurement
    if not angle <= limits.max_rotation_rad:
        return FilteredTarget(target, Band.REJECT, f"the target is turned by {angle:.2f} rad, allowed are {limits.max_rotation_rad:.2f}")
    box = list(zip(wanted, limits.workspace_low, limits.workspace_high, strict=True))
    outside_m = max(max(low - x, x - high) for x, low, high in box)
    if not outside_m <= limits.workspace_margin_m:
        return FilteredTarget(target, Band.REJECT, f"the target lies {outside_m:.3f} m outside the workspace")
    position = [min(max(x, low), high) for x, low, high in box]
    distance_m = dist(position, measured_position.tolist())
    if not distance_m <= limits.max_distance_m:
        return FilteredTarget(
            target, Band.REJECT, f"the target lies {distance_m:.3f} m from the hand, allowed are {limits.max_distance_m:.3f}"
        )
    low_m, high_m = limits.gripper_low_m, limits.gripper_high_m
    beyond_m = max(low_m - target.gripper_position, target.gripper_position - high_m)
    if not beyond_m <= limits.action_margin * (high_m - low_m):
        return FilteredTarget(target, Band.REJECT, f"the finger's target lies {beyond_m:.3f} m outside [{low_m:g}, {high_m:g}]")
    if outside_m > 0 or beyond_m > 0:
        clamped = CartesianTarget(np.array(position), target.quaternion, min(max(target.gripper_position, low_m), high_m))
        what = f"the target lay {outside_m:.3f} m outside the workspace" if outside_m > 0 else "the finger's target lay outside its range"
        return FilteredTarget(clamped, Band.CLAMP, what)
    return FilteredTarget(target, Band.PASS)


def _angle(cosine: float) -> float:
    """Angle [rad] of a cosine that rounding may have put beyond 1; NaN of NaN."""
    if cosine >= 1:
        return 0.0
    return pi if cosine <= -1 else acos(cosine)
