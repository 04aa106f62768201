# SPDX-License-Identifier: Apache-2.0
"""Targets as messages, and the QoS of every topic. decoding.py has the other direction.

Message fields are float64 and are passed on unchanged, so that what one process sends another receives bit for bit.
"""

from typing import Any

from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, HistoryPolicy, LivelinessPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from otpr_policy.command import CartesianTarget
from otpr_policy.contract import MessageType, Reliability
from otpr_policy.decoding import decode, pose_position, pose_quaternion, stamp_to_ns
from otpr_policy.spec import Array

__all__ = [
    "COMMAND_QOS",
    "LATCHED_QOS",
    "MESSAGE_CLASSES",
    "STATE_PUBLISHER_QOS",
    "decode",
    "encode_gripper",
    "encode_pose",
    "ns_to_stamp",
    "pose_position",
    "pose_quaternion",
    "set_pose",
    "stamp_to_ns",
    "subscription_qos",
]

MESSAGE_CLASSES: dict[MessageType, Any] = {
    MessageType.JOINT_STATE: JointState,
    MessageType.POSE_STAMPED: PoseStamped,
    MessageType.FLOAT64_MULTI_ARRAY: Float64MultiArray,
}

COMMAND_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE)
LATCHED_QOS = QoSProfile(
    history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)
# One label per command: a recorder that is a little late must not lose one.
LABEL_QOS = QoSProfile(
    history=HistoryPolicy.KEEP_LAST, depth=20, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.VOLATILE
)
STATE_PUBLISHER_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE)
# Reads any publisher; and a release must not be lost to the press that follows it.
SWITCH_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=20, reliability=ReliabilityPolicy.BEST_EFFORT)

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


def ns_to_stamp(nanoseconds: int) -> Time:
    """Nanoseconds as a message stamp."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return Time(sec=seconds, nanosec=rest)


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
