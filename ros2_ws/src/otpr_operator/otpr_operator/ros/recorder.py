# SPDX-License-Identifier: Apache-2.0
"""The recorder: everything that a contract names, what the policy node says, and which artifact it ran, in one bag."""

import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message
from std_msgs.msg import Float64MultiArray, String

from otpr_operator.bag import BagWriter
from otpr_policy.contract import RobotContract, load_contract
from otpr_policy.errors import ContractError, OutputError
from otpr_policy.ros.messages import COMMAND_QOS, LATCHED_QOS, MESSAGE_CLASSES, subscription_qos
from otpr_policy.ros.parameters import declare, parameter
from otpr_policy.ros.process import run_node

_IDENTITY_TOPIC = "/policy_node/artifact"


@dataclass(frozen=True)
class RecorderParameters:
    """Parameters of the recorder."""

    robot: str = parameter("", "name of an installed robot contract, or path of one (.yaml)")
    directory: str = parameter("", "directory that recordings are made in; each start makes a new one, named after the time")


class RecorderNode(Node):
    """Subscribes to raw messages, so that what is stored is what came, byte for byte."""

    def __init__(self) -> None:
        super().__init__("recorder")
        parameters = declare(self, RecorderParameters)
        if not parameters.robot or not parameters.directory:
            raise ContractError("parameters 'robot' and 'directory' must be given")
        contract = load_contract(parameters.robot)
        topics = _topics(contract)
        target = Path(parameters.directory) / time.strftime("%Y%m%d_%H%M%S")
        self._bag = BagWriter(target, {topic: _type_name(kind) for topic, (kind, _) in topics.items()})
        self._bag.note("robot", contract.robot)
        self.failure: OutputError | None = None
        for topic, (kind, qos) in topics.items():
            self.create_subscription(kind, topic, partial(self._on_message, topic), qos, raw=True)
        self.get_logger().info(f"recording {len(topics)} topics into {target}")

    def close(self) -> None:
        """Completes the recording and says what is in it."""
        self._bag.close()
        counts = ", ".join(f"{topic} {count}" for topic, count in self._bag.counts.items())
        self.get_logger().info(f"recorded {self._bag.directory}: {counts}")

    def _on_message(self, topic: str, message: bytes) -> None:
        if self.failure is not None:
            return
        try:
            self._bag.write(topic, int(self.get_clock().now().nanoseconds), message)
            if topic == _IDENTITY_TOPIC:
                self._bag.note("artifact", deserialize_message(message, String).data)
        except OutputError as error:  # noted, not raised: what was recorded so far must still be completed
            self.failure = error
            self.get_logger().error(str(error))


def _topics(contract: RobotContract) -> dict[str, tuple[Any, QoSProfile]]:
    topics: dict[str, tuple[Any, QoSProfile]] = {
        source.topic: (MESSAGE_CLASSES[source.type], subscription_qos(source.reliability)) for source in contract.observations.values()
    }
    topics[contract.pose_command.topic] = (PoseStamped, COMMAND_QOS)
    topics[contract.gripper_command.topic] = (Float64MultiArray, COMMAND_QOS)
    topics["/policy_node/state"] = (String, LATCHED_QOS)
    topics[_IDENTITY_TOPIC] = (String, LATCHED_QOS)
    topics["/diagnostics"] = (DiagnosticArray, QoSProfile(depth=10))
    return topics


def _type_name(kind: Any) -> str:
    return f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"


def main() -> int:
    """The process of the recorder; ends with status 1 when the disk does not take the recording."""
    return run_node(RecorderNode, keep_on=lambda node: node.failure is None)


if __name__ == "__main__":
    sys.exit(main())
