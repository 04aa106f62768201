# SPDX-License-Identifier: Apache-2.0
"""Where the control loop's commands go: to the robot, or, in shadow mode, beside it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from geometry_msgs.msg import PoseStamped
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile
from std_msgs.msg import Float64MultiArray, String

from otpr_policy.contract import RobotContract
from otpr_policy.control import Command
from otpr_policy.files import check_writable
from otpr_policy.ros.messages import (
    COMMAND_QOS,
    LABEL_QOS,
    encode_gripper,
    encode_pose,
    pose_position,
    pose_quaternion,
    stamp_to_ns,
)
from otpr_policy.shadow import ShadowComparison, write_report

Keep = Callable[[Any], Any]


class Outlet(Protocol):
    """Takes the command of each tick. Called under the loop's lock."""

    @property
    def publishers(self) -> tuple[Any, ...]:
        """Of the robot's command topics, if there are any."""

    def publish(self, command: Command, permitted: Callable[[], bool]) -> None:
        """Sends a command, if it still may, which is asked before each message: sending one may take long.

        Everything is encoded before anything is sent: a failure to encode leaves nothing half-sent.
        """

    def policy_changed(self) -> None:
        """Another policy acts from here on. Called in the thread of ``~/load``."""

    def facts(self) -> dict[str, str]:
        """What diagnostics tell of it."""

    def close(self, identity: dict[str, str]) -> None:
        """The node does not tick any more. Raises OutputError when a report cannot be written."""


class CommandOutlet:
    """To the robot. Only this makes the command publishers, so that a node in shadow mode has none."""

    def __init__(self, node: LifecycleNode, keep: Keep, contract: RobotContract, qos: QoSProfile) -> None:
        """``qos``: of the command topics."""
        self._frame = contract.pose_command.frame
        self._pose = keep(node.create_lifecycle_publisher(PoseStamped, contract.pose_command.topic, qos))
        self._gripper = keep(node.create_lifecycle_publisher(Float64MultiArray, contract.gripper_command.topic, qos))
        self._commander = keep(node.create_publisher(String, "~/commander", LABEL_QOS))

    @property
    def publishers(self) -> tuple[Any, ...]:
        """See Outlet."""
        return self._pose, self._gripper

    def publish(self, command: Command, permitted: Callable[[], bool]) -> None:
        """See Outlet. The label carries the pose's stamp, by which a recording joins the two, so it need not come first."""
        pose = encode_pose(command.target, self._frame, command.stamp_ns)
        gripper = encode_gripper(command.target)
        label = String(data=json.dumps({"stamp_ns": command.stamp_ns, "commander": command.commander.value}))
        if permitted():
            self._gripper.publish(gripper)
        if permitted():
            self._pose.publish(pose)  # in lockstep the simulation goes on with this one
            self._commander.publish(label)

    def policy_changed(self) -> None:
        """The robot is told the same way."""

    def facts(self) -> dict[str, str]:
        """Nothing that the counters do not say."""
        return {}

    def close(self, identity: dict[str, str]) -> None:
        """Nothing is left to do."""


class ProposalOutlet:
    """Beside the robot: proposals on ``~/proposal/pose`` and ``~/proposal/gripper``, compared with what really commands it."""

    def __init__(self, node: LifecycleNode, keep: Keep, contract: RobotContract, period_s: float, report: Path | None) -> None:
        """Subscribes to the robot's command topics. ``report``: where the comparison is written at the end, .json and .md beside it.

        Raises OutputError when it could not be written there: after a session of an hour it would be too late.
        """
        if report is not None:
            check_writable(report)
        self._frame = contract.pose_command.frame
        self._report = report
        self._period_s = period_s
        self.comparison = ShadowComparison(period_s)
        self._pose = keep(node.create_lifecycle_publisher(PoseStamped, "~/proposal/pose", COMMAND_QOS))
        self._gripper = keep(node.create_lifecycle_publisher(Float64MultiArray, "~/proposal/gripper", COMMAND_QOS))
        keep(node.create_subscription(PoseStamped, contract.pose_command.topic, self._on_pose, COMMAND_QOS))
        keep(node.create_subscription(Float64MultiArray, contract.gripper_command.topic, self._on_gripper, COMMAND_QOS))

    @property
    def publishers(self) -> tuple[Any, ...]:
        """None: whoever only proposes has no command topic."""
        return ()

    def publish(self, command: Command, permitted: Callable[[], bool]) -> None:
        """See Outlet. Nothing moves, so that nobody's permission is asked."""
        pose = encode_pose(command.target, self._frame, command.stamp_ns)
        gripper = encode_gripper(command.target)
        self._gripper.publish(gripper)
        self._pose.publish(pose)
        self.comparison.propose(command.stamp_ns, command.target)

    def policy_changed(self) -> None:
        """What is compared from here on is another policy's: it does not go into one report with the old one's."""
        self.comparison = ShadowComparison(self._period_s)

    def facts(self) -> dict[str, str]:
        """The error so far."""
        return self.comparison.facts()

    def close(self, identity: dict[str, str]) -> None:
        """Writes the report, if one is wanted and there is something to say."""
        if self._report is not None:
            write_report(self._report, self.comparison, identity)

    def _on_pose(self, message: PoseStamped) -> None:
        self.comparison.pose_commanded(stamp_to_ns(message.header.stamp), pose_position(message.pose), pose_quaternion(message.pose))

    def _on_gripper(self, message: Float64MultiArray) -> None:
        if len(message.data) == 1:
            self.comparison.gripper_commanded(message.data[0])
