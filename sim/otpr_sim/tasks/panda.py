# SPDX-License-Identifier: Apache-2.0
"""What all tasks of the Panda arm share: the fields of its hand, and its actions."""

from otpr_policy.spec import Field, Semantics, VectorSpec

WORKSPACE_LOW, WORKSPACE_HIGH = (0.2, -0.5, -0.15), (0.9, 0.65, 0.5)  # m, base frame; a table's top is at about z = -0.1 m

HAND = (
    Field("ee_position", "m", low=WORKSPACE_LOW, high=WORKSPACE_HIGH),
    Field("ee_rotation", "1", low=(-1.0,) * 6, high=(1.0,) * 6),
    Field("gripper_position", "m", low=(0.0, 0.0), high=(0.04, 0.04)),
)
ACTION = VectorSpec(
    (
        Field("ee_position_delta", "m", low=(-0.05,) * 3, high=(0.05,) * 3, semantics=Semantics.DELTA),
        Field("ee_rotation_delta", "rad", low=(-0.5,) * 3, high=(0.5,) * 3, semantics=Semantics.DELTA),
        Field("gripper_position", "m", low=(0.0,), high=(0.04,), semantics=Semantics.ABSOLUTE),
    )
)
CONTROL_RATE_HZ = 20.0
FINGER_RANGE = 0.04  # m
FINGER_START = FINGER_RANGE / 2  # m, set-point at reset
FINGER_SLEW = 0.004  # m per command: robosuite moves its normalised gripper action by 0.2 of the half range


def object_pose(name: str, rotation: bool) -> tuple[Field, ...]:
    """Fields of an object: where it is and, where the task needs it, how it is turned (columns of a rotation matrix)."""
    position = Field(f"{name}_position", "m", low=WORKSPACE_LOW, high=WORKSPACE_HIGH)
    return (position, Field(f"{name}_rotation", "1", low=(-1.0,) * 6, high=(1.0,) * 6)) if rotation else (position,)
