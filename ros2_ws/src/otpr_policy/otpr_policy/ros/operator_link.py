# SPDX-License-Identifier: Apache-2.0
"""The policy node's end of a teleop device: ``~/operator/twist``, ``~/operator/gripper`` and ``~/operator/device``.

A device proposes; the control loop decides. Nothing here publishes. One device drives: of two whose messages come in turns, neither
has the hand where its operator thinks it is.
"""

from collections.abc import Callable
from threading import Lock
from typing import Any

import numpy as np
from geometry_msgs.msg import TwistStamped
from rclpy.node import Node
from std_msgs.msg import Float64MultiArray, String
from std_srvs.srv import SetBool

from otpr_policy.actors import Actors
from otpr_policy.contract import RobotContract
from otpr_policy.health import Counters
from otpr_policy.ros.graph import publisher_names
from otpr_policy.ros.messages import COMMAND_QOS, LATCHED_QOS, stamp_to_ns
from otpr_policy.ros.timer import create_steady_timer

_RIVALS_PERIOD_S = 0.1


class OperatorLink:
    """Fills an operator stream from the node's topics, and serves ``~/takeover`` (std_srvs/SetBool)."""

    def __init__(
        self,
        node: Node,
        keep: Callable[[Any], Any],
        actors: Actors,
        contract: RobotContract,
        now_ns: Callable[[], int],
        lock: Lock,
        counters: Counters,
    ) -> None:
        """Subscribes and serves.

        Args:
            node: the policy node.
            keep: notes an entity for cleanup.
            actors: whose stream is filled; there is one.
            contract: of the robot.
            now_ns: the data's clock.
            lock: guards the control loop; message callbacks do not take it.
            counters: where refused messages are counted.
        """
        assert actors.stream is not None
        self._node = node
        self._stream = actors.stream
        self._arbiter = actors.arbiter
        self._frame = contract.pose_command.frame
        self._now_ns = now_ns
        self._lock = lock
        self._counters = counters
        listening = (
            keep(node.create_subscription(TwistStamped, "~/operator/twist", self._on_twist, COMMAND_QOS)),
            keep(node.create_subscription(Float64MultiArray, "~/operator/gripper", self._on_gripper, COMMAND_QOS)),
            keep(node.create_subscription(String, "~/operator/device", self._on_device, LATCHED_QOS)),
        )
        self._topics = [subscription.topic_name for subscription in listening]
        keep(node.create_service(SetBool, "~/takeover", self._on_takeover))
        keep(create_steady_timer(node, _RIVALS_PERIOD_S, self._look_for_rivals))

    def _on_takeover(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        """The operator takes the robot, or gives it back. Allowed in any state; what the robot does follows at the next tick."""
        self._look_for_rivals()
        arbiter = self._arbiter
        if arbiter is None:
            refused: str | None = "there is no policy to take over from, or to give back to"
        else:
            with self._lock:
                refused = arbiter.take_over(self._now_ns()) if request.data else arbiter.give_back()
        response.success = refused is None
        response.message = refused or ("operator" if request.data else "policy")
        if refused is None:
            self._node.get_logger().info(f"the {response.message} has the robot")
        return response

    def _on_twist(self, message: TwistStamped) -> None:
        if message.header.frame_id != self._frame:
            self._refuse(f"the operator's twist is in frame {message.header.frame_id!r}, expected {self._frame!r}")
            return
        linear, angular = message.twist.linear, message.twist.angular
        refused = self._stream.push(
            stamp_to_ns(message.header.stamp),
            np.array([linear.x, linear.y, linear.z]),
            np.array([angular.x, angular.y, angular.z]),
            self._now_ns(),
        )
        if refused is not None:
            self._refuse(refused)

    def _on_gripper(self, message: Float64MultiArray) -> None:
        refused = self._stream.push_gripper(message.data[0]) if len(message.data) == 1 else "the operator's gripper is not one number"
        if refused is not None:
            self._refuse(refused)

    def _on_device(self, message: String) -> None:
        self._stream.report_device(message.data)

    def _look_for_rivals(self) -> None:
        problem = ""
        for topic in self._topics:
            devices = self._node.count_publishers(topic)
            if devices > 1:
                problem = f"{devices} devices publish on {topic}: {publisher_names(self._node, topic)}; only one may drive"
                break
        if self._stream.contest(problem):
            self._node.get_logger().warning(problem or "one operator's device is left")

    def _refuse(self, reason: str) -> None:
        self._counters.refused_messages += 1
        self._node.get_logger().warning(reason, throttle_duration_sec=1.0)
