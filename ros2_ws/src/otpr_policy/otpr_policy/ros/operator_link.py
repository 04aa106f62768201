# SPDX-License-Identifier: Apache-2.0
"""The policy node's end of a teleop device: ``~/operator/twist``, ``~/operator/gripper`` and ``~/operator/device``.

A device proposes; the control loop decides. Nothing here publishes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from geometry_msgs.msg import TwistStamped
from rclpy.node import Node
from std_msgs.msg import Float64MultiArray, String

from otpr_policy.health import Counters
from otpr_policy.operator_stream import OperatorStream
from otpr_policy.ros.messages import COMMAND_QOS, LATCHED_QOS, stamp_to_ns


class OperatorLink:
    """Fills an operator stream from the node's topics. Callbacks only; they never wait for the control loop."""

    def __init__(
        self,
        node: Node,
        keep: Callable[[Any], Any],
        stream: OperatorStream,
        *,
        frame: str,
        now_ns: Callable[[], int],
        counters: Counters,
    ) -> None:
        """Subscribes.

        Args:
            node: the policy node.
            keep: notes an entity for cleanup.
            stream: what is filled.
            frame: the frame that twists must be in.
            now_ns: the data's clock.
            counters: where refused messages are counted.
        """
        self._node = node
        self._stream = stream
        self._frame = frame
        self._now_ns = now_ns
        self._counters = counters
        keep(node.create_subscription(TwistStamped, "~/operator/twist", self._on_twist, COMMAND_QOS))
        keep(node.create_subscription(Float64MultiArray, "~/operator/gripper", self._on_gripper, COMMAND_QOS))
        keep(node.create_subscription(String, "~/operator/device", self._on_device, LATCHED_QOS))

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

    def _refuse(self, reason: str) -> None:
        self._counters.refused_messages += 1
        self._node.get_logger().warning(reason, throttle_duration_sec=1.0)
