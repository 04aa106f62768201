# SPDX-License-Identifier: Apache-2.0
"""The limits of one robot, checked when they are made: a limit that is NaN or upside down would silently hold nothing."""

from dataclasses import dataclass

import numpy as np

from otpr_policy.errors import ContractError

_ABOVE_ZERO = (
    "max_distance_m",
    "max_rotation_rad",
    "max_velocity_m_s",
    "max_acceleration_m_s2",
    "max_angular_velocity_rad_s",
    "max_angular_acceleration_rad_s2",
    "max_gripper_velocity_m_s",
)
_AT_LEAST_ZERO = ("workspace_margin_m", "action_margin", "observation_margin", "observation_floor", "rate_margin", "ramp_in_s")


@dataclass(frozen=True)
class Limits:
    """Limits of one robot, from its contract. docs/safety.md has them in a table.

    Args:
        workspace_low, workspace_high: the box that target positions must lie in, (3,) [m], in the robot's frame.
        workspace_margin_m: how far outside the box a target is still clamped onto it; beyond, it is rejected.
        max_distance_m: farthest that a target may lie from the measured hand.
        max_rotation_rad: largest angle between target and measured orientation.
        action_margin: an action field may lie outside its range by this fraction of the range and be clamped.
        observation_margin: an observation may lie outside its training range by this fraction of the range.
        observation_floor: and in any case by this much, in the field's unit, for fields that hardly moved in training.
        max_velocity_m_s: fastest that the target position may move.
        max_acceleration_m_s2: how fast the target position may gain speed or change direction; slowing down is free.
        max_angular_velocity_rad_s, max_angular_acceleration_rad_s2: the same for its orientation.
        max_gripper_velocity_m_s: fastest that the finger target may move.
        rate_margin: a velocity may exceed its limit by this fraction of it and be clamped; beyond, it is rejected. An acceleration is
            only ever clamped.
        ramp_in_s: for how long after engaging, and after a hold, velocities and accelerations grow to their limits.
        gripper_low_m, gripper_high_m: range of the finger joint's target; ``action_margin`` of it outside is clamped, further is rejected.

    Raises:
        ContractError: a limit is not finite, negative, zero where nothing could move, or upside down.
    """

    workspace_low: tuple[float, float, float]
    workspace_high: tuple[float, float, float]
    workspace_margin_m: float
    max_distance_m: float
    max_rotation_rad: float
    action_margin: float
    observation_margin: float
    observation_floor: float
    max_velocity_m_s: float
    max_acceleration_m_s2: float
    max_angular_velocity_rad_s: float
    max_angular_acceleration_rad_s2: float
    max_gripper_velocity_m_s: float
    rate_margin: float
    ramp_in_s: float
    gripper_low_m: float
    gripper_high_m: float

    def __post_init__(self) -> None:
        for axis, low, high in zip("xyz", self.workspace_low, self.workspace_high, strict=True):
            if not (np.isfinite(low) and np.isfinite(high) and low < high):
                raise ContractError(f"limits: workspace {axis} [{low}, {high}] is not a finite range")
        if not (np.isfinite(self.gripper_low_m) and np.isfinite(self.gripper_high_m) and self.gripper_low_m < self.gripper_high_m):
            raise ContractError(
                f"limits: gripper_low_m {self.gripper_low_m} and gripper_high_m {self.gripper_high_m} are not a finite range"
            )
        for name in _ABOVE_ZERO:
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ContractError(f"limits: {name} is {getattr(self, name)}, must be a finite number above 0")
        for name in _AT_LEAST_ZERO:
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ContractError(f"limits: {name} is {getattr(self, name)}, must be a finite number of at least 0")
