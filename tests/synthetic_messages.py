# SPDX-License-Identifier: Apache-2.0
"""Serialised ROS messages made without ROS, for recordings in tests."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from otpr_policy.recording import typestore

POSE = "geometry_msgs/msg/PoseStamped"
JOINTS = "sensor_msgs/msg/JointState"
ARRAY = "std_msgs/msg/Float64MultiArray"
TEXT = "std_msgs/msg/String"


def _make(kind: str, *values: Any) -> Any:
    return typestore().types[kind](*values)


def _cdr(message: Any, kind: str) -> bytes:
    return bytes(typestore().serialize_cdr(message, kind))


def _header(stamp_ns: int, frame: str) -> Any:
    stamp = _make("builtin_interfaces/msg/Time", stamp_ns // 10**9, stamp_ns % 10**9)
    return _make("std_msgs/msg/Header", stamp, frame)


def pose(stamp_ns: int, position: Sequence[float], quaternion: Sequence[float] = (1, 0, 0, 0), frame: str = "panda_link0") -> bytes:
    """A stamped pose."""
    point = _make("geometry_msgs/msg/Point", *map(float, position))
    rotation = _make("geometry_msgs/msg/Quaternion", *map(float, quaternion))
    return _cdr(_make(POSE, _header(stamp_ns, frame), _make("geometry_msgs/msg/Pose", point, rotation)), POSE)


def joints(stamp_ns: int, positions: dict[str, float]) -> bytes:
    """Joint positions by name."""
    values = np.array(list(positions.values()), dtype=np.float64)
    return _cdr(_make(JOINTS, _header(stamp_ns, ""), list(positions), values, np.zeros(0), np.zeros(0)), JOINTS)


def array(values: Sequence[float]) -> bytes:
    """Numbers, as on a gripper's command topic."""
    layout = _make("std_msgs/msg/MultiArrayLayout", [], 0)
    return _cdr(_make(ARRAY, layout, np.array(values, dtype=np.float64)), ARRAY)


def text(value: str) -> bytes:
    """A string."""
    return _cdr(_make(TEXT, value), TEXT)
