# SPDX-License-Identifier: Apache-2.0
"""From messages to named arrays: the one way for the live node and for recordings.

Knows the messages by their attributes, so that rclpy's and those that were read from a file both do. Positions in messages are
always looked up by name; a message that cannot be read yields a reason, never a guess.
"""

import math
from typing import Any

import numpy as np

from otpr_policy.contract import MessageType, ObservationSource, Part
from otpr_policy.rotation import matrix_to_columns, quaternion_to_matrix
from otpr_policy.spec import Array

_UNIT_TOLERANCE = 0.01  # of a quaternion's length; drivers that send float32 keep to 1e-6


def stamp_to_ns(stamp: Any) -> int:
    """A message stamp in nanoseconds."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def decode(source: ObservationSource, message: Any) -> Array:
    """The field that ``source`` describes, out of its message. Raises ValueError saying what is wrong with the message."""
    if source.type is MessageType.JOINT_STATE:
        return _decode_joints(source, message)
    return _decode_pose(source, message)


def pose_position(pose: Any) -> Array:
    """Position (3,) of a geometry_msgs Pose."""
    return np.array([pose.position.x, pose.position.y, pose.position.z])


def pose_quaternion(pose: Any) -> Array:
    """Orientation (4,) x, y, z, w of a geometry_msgs Pose."""
    o = pose.orientation
    return np.array([o.x, o.y, o.z, o.w])


def _decode_joints(source: ObservationSource, message: Any) -> Array:
    values = message.position if source.part is Part.POSITION else message.velocity
    names = list(message.name)
    if len(values) != len(names):
        raise ValueError(f"{source.topic} names {len(names)} joints but has {len(values)} {source.part.value} numbers")
    result = []
    for joint in source.joints:
        if names.count(joint) != 1:
            problem = "lacks" if joint not in names else "repeats"
            raise ValueError(f"{source.topic} {problem} joint {joint!r}; it has {', '.join(names)}")
        result.append(values[names.index(joint)])
    return np.array(result, dtype=np.float64)


def _decode_pose(source: ObservationSource, message: Any) -> Array:
    if message.header.frame_id != source.frame:
        raise ValueError(f"{source.topic} is in frame {message.header.frame_id!r}, expected {source.frame!r}")
    if source.part is Part.POSITION:
        return pose_position(message.pose)
    quaternion = pose_quaternion(message.pose)
    if not abs(math.hypot(*quaternion) - 1) <= _UNIT_TOLERANCE:  # one damaged number would otherwise pass as another orientation
        raise ValueError(f"not a rotation: quaternion {quaternion.tolist()} is not of unit length")
    return matrix_to_columns(quaternion_to_matrix(quaternion))
