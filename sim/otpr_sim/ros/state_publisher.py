# SPDX-License-Identifier: Apache-2.0
"""Publishes the simulated robot's state on the topics that a contract reads."""

from collections.abc import Callable
from typing import Any

from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from sensor_msgs.msg import JointState

from otpr_policy.contract import MessageType, ObservationSource, RobotContract
from otpr_policy.errors import ContractError, unknown
from otpr_policy.ros.messages import MESSAGE_CLASSES, STATE_PUBLISHER_QOS, ns_to_stamp, set_pose
from otpr_sim.env import Pose, RobotEnv

_HAND = "ee"


class StatePublisher:
    """One publisher for each topic of the contract. A field named ``<thing>_...`` is about the hand (``ee``) or an object of the task."""

    def __init__(self, node: Node, contract: RobotContract, env: RobotEnv) -> None:
        """Raises ContractError when the contract reads something that the simulation does not have."""
        self._env = env
        topics: dict[str, tuple[Any, Callable[[], Any]]] = {}
        for name, source in contract.observations.items():
            make = self._message_maker(name, source)
            if source.topic not in topics:
                publisher = node.create_publisher(MESSAGE_CLASSES[source.type], source.topic, STATE_PUBLISHER_QOS)
                topics[source.topic] = (publisher, make)
        self._topics = list(topics.values())

    def publish(self, stamp_ns: int) -> None:
        """Sends the present state, all of it with one stamp."""
        stamp = ns_to_stamp(stamp_ns)
        for publisher, make in self._topics:
            message = make()
            message.header.stamp = stamp
            publisher.publish(message)

    def _message_maker(self, name: str, source: ObservationSource) -> Callable[[], Any]:
        if source.type is MessageType.JOINT_STATE:
            missing = [joint for joint in source.joints if joint not in self._env.joint_names]
            if missing:
                raise ContractError(f"observations.{name}: {unknown('joint of the twin', missing[0], self._env.joint_names)}")
            return self._joint_state
        if source.frame != self._env.frame_id:
            raise ContractError(f"observations.{name}: the twin gives poses in frame {self._env.frame_id!r}, not {source.frame!r}")
        thing = name.split("_")[0]
        if thing == _HAND:
            return lambda: self._pose(self._env.ee_pose())
        objects = self._env.object_poses()
        if thing not in objects:
            raise ContractError(f"observations.{name}: {unknown('object of the twin', thing, [_HAND, *objects])}")
        return lambda: self._pose(self._env.object_poses()[thing])

    def _joint_state(self) -> JointState:
        return JointState(
            name=list(self._env.joint_names),
            position=self._env.joint_positions().tolist(),
            velocity=self._env.joint_velocities().tolist(),
        )

    def _pose(self, pose: Pose) -> PoseStamped:
        message = PoseStamped()
        message.header.frame_id = self._env.frame_id
        set_pose(message.pose, pose.position, pose.quaternion)
        return message
