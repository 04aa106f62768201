# SPDX-License-Identifier: Apache-2.0
"""Between messages and named arrays, and the QoS of every topic.

Positions in messages are always looked up by name; a message that cannot be read yields a reason, never a guess.
Message fields are float64 and are passed on unchanged, so that what one process sends another receives bit for bit.
"""

from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, HistoryPolicy, LivelinessPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from otpr_policy.command import CartesianTarget
from otpr_policy.contract import MessageType, ObservationSource, Part, Reliability
from otpr_policy.rotation import matrix_to_columns, quaternion_to_matrix
from otpr_policy.spec import Array

MESSAGE_CLASSES: dict[MessageType, Any] = {
    MessageType.JOINT_STATE: JointState,
    MessageType.POSE_STAMPED: PoseStamped,
    MessageType.FLOAT64_MULTI_ARRAY: Float64MultiArray,
}

COMMAND_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE)
LATCHED_QOS = QoSProfile(
    history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)
STATE_PUBLISHER_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE)
SWITCH_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)  # reads any publisher

LIVELINESS_LEASE_S = 0.04  # after this long without a sign of life from a commander, a consumer that listens for it stops
_OFFERED_DEADLINE, _REQUESTED_DEADLINE = 3, 4  # in control periods


def offered_command_qos(period_s: float) -> QoSProfile:
    """QoS of a commander in real time: promises a command every few control periods, and a sign of life in every lease.

    A consumer that asks for neither gets the commands all the same.
    """
    return _command_qos(_OFFERED_DEADLINE * period_s)


def requested_command_qos(period_s: float) -> QoSProfile:
    """QoS of a consumer that wants to be told when commands stop or their sender dies. Only a commander that promises both is heard."""
    return _command_qos(_REQUESTED_DEADLINE * period_s)


def _command_qos(deadline_s: float) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=1,
        reliability=ReliabilityPolicy.RELIABLE,
        deadline=Duration(nanoseconds=round(deadline_s * 1e9)),
        liveliness=LivelinessPolicy.MANUAL_BY_TOPIC,
        liveliness_lease_duration=Duration(nanoseconds=round(LIVELINESS_LEASE_S * 1e9)),
    )


def subscription_qos(reliability: Reliability) -> QoSProfile:
    """QoS for reading state: only the newest sample counts."""
    policy = ReliabilityPolicy.RELIABLE if reliability is Reliability.RELIABLE else ReliabilityPolicy.BEST_EFFORT
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=policy)


def stamp_to_ns(stamp: Time) -> int:
    """A message stamp in nanoseconds."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def ns_to_stamp(nanoseconds: int) -> Time:
    """Nanoseconds as a message stamp."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return Time(sec=seconds, nanosec=rest)


def decode(source: ObservationSource, message: Any) -> Array:
    """The field that ``source`` describes, out of its message. Raises ValueError saying what is wrong with the message."""
    if source.type is MessageType.JOINT_STATE:
        return _decode_joints(source, message)
    return _decode_pose(source, message)


def encode_pose(target: CartesianTarget, frame: str, stamp_ns: int) -> PoseStamped:
    """The hand's target, stamped with the observation that it answers."""
    message = PoseStamped()
    message.header.stamp = ns_to_stamp(stamp_ns)
    message.header.frame_id = frame
    set_pose(message.pose, target.position, target.quaternion)
    return message


def encode_gripper(target: CartesianTarget) -> Float64MultiArray:
    """The finger target."""
    return Float64MultiArray(data=[target.gripper_position])


def set_pose(pose: Any, position: Array, quaternion: Array) -> None:
    """Fills a geometry_msgs Pose from (3,) and (4,) x, y, z, w."""
    pose.position.x, pose.position.y, pose.position.z = (float(value) for value in position)
    o = pose.orientation
    o.x, o.y, o.z, o.w = (float(value) for value in quaternion)


def pose_position(pose: Any) -> Array:
    """Position (3,) of a geometry_msgs Pose."""
    return np.array([pose.position.x, pose.position.y, pose.position.z])


def pose_quaternion(pose: Any) -> Array:
    """Orientation (4,) x, y, z, w of a geometry_msgs Pose."""
    o = pose.orientation
    return np.array([o.x, o.y, o.z, o.w])


def _decode_joints(source: ObservationSource, message: JointState) -> Array:
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


def _decode_pose(source: ObservationSource, message: PoseStamped) -> Array:
    if message.header.frame_id != source.frame:
        raise ValueError(f"{source.topic} is in frame {message.header.frame_id!r}, expected {source.frame!r}")
    if source.part is Part.POSITION:
        return pose_position(message.pose)
    return matrix_to_columns(quaternion_to_matrix(pose_quaternion(message.pose)))
