# SPDX-License-Identifier: Apache-2.0
"""A robot made of nothing but messages, so that the policy node can be tested without a simulation."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import contracts
import numpy as np
import pytest
import rclpy
import tiny_policy
from geometry_msgs.msg import PoseStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from otpr_policy.contract import load_contract
from otpr_policy.ros.messages import COMMAND_QOS, STATE_PUBLISHER_QOS, ns_to_stamp, set_pose
from otpr_policy.ros.node import PolicyNode
from otpr_policy.ros.process import start_ros
from otpr_policy.spec import Array

TIMEOUT_S = 10.0


@pytest.fixture(scope="session", autouse=True)
def _rclpy() -> Iterator[None]:
    """One rclpy context for all tests of this folder."""
    start_ros()
    yield
    rclpy.try_shutdown()


@dataclass
class RobotState:
    """What the fake robot measures; a test changes it to inject a fault."""

    ee_position: Array = field(default_factory=lambda: np.array([0.5, 0.05, 0.1]))
    ee_quaternion: Array = field(default_factory=lambda: np.array([1.0, 0.0, 0.0, 0.0]))
    cube_position: Array = field(default_factory=lambda: np.array([0.45, 0.02, -0.09]))
    joints: dict[str, float] = field(default_factory=lambda: {"panda_finger_joint2": 0.011, "panda_finger_joint1": 0.012})
    frame: str = "panda_link0"


class FakeRobot:
    """Publishes a state when told to, collects commands, and calls services."""

    def __init__(self) -> None:
        self.node = Node("fake_robot")
        self.state = RobotState()
        self.poses: list[PoseStamped] = []
        self.grippers: list[Float64MultiArray] = []
        self._publishers = {
            "/ee_pose": self.node.create_publisher(PoseStamped, "/ee_pose", STATE_PUBLISHER_QOS),
            "/objects/cube/pose": self.node.create_publisher(PoseStamped, "/objects/cube/pose", STATE_PUBLISHER_QOS),
            "/joint_states": self.node.create_publisher(JointState, "/joint_states", STATE_PUBLISHER_QOS),
        }
        self.node.create_subscription(PoseStamped, "/target_pose", self.poses.append, COMMAND_QOS)
        self.node.create_subscription(Float64MultiArray, "/gripper_controller/commands", self.grippers.append, COMMAND_QOS)

    def observation(self) -> dict[str, Array]:
        """The present state as the policy should read it."""
        from otpr_policy.rotation import matrix_to_columns, quaternion_to_matrix

        return {
            "ee_position": self.state.ee_position,
            "ee_rotation": matrix_to_columns(quaternion_to_matrix(self.state.ee_quaternion)),
            "gripper_position": np.array([self.state.joints["panda_finger_joint1"], self.state.joints["panda_finger_joint2"]]),
            "cube_position": self.state.cube_position,
        }

    def now_ns(self) -> int:
        """The data's clock."""
        return int(self.node.get_clock().now().nanoseconds)

    def publish(self, stamp_ns: int | None = None, only: tuple[str, ...] | None = None) -> int:
        """Publishes the state on every topic, or only on some, and returns the stamp."""
        stamp = self.now_ns() if stamp_ns is None else stamp_ns
        for topic in only or tuple(self._publishers):
            message = self._message(topic)
            message.header.stamp = ns_to_stamp(stamp)
            self._publishers[topic].publish(message)
        return stamp

    def _message(self, topic: str) -> Any:
        if topic == "/joint_states":
            return JointState(name=list(self.state.joints), position=list(self.state.joints.values()))
        message = PoseStamped()
        message.header.frame_id = self.state.frame
        if topic == "/ee_pose":
            set_pose(message.pose, self.state.ee_position, self.state.ee_quaternion)
        else:
            set_pose(message.pose, self.state.cube_position, np.array([0.0, 0.0, 0.0, 1.0]))
        return message


class Bench:
    """A policy node and a fake robot on one executor thread."""

    def __init__(self, **parameters: Any) -> None:
        # Off unless a test is about it: it is of the whole process, which here is that of all tests.
        overrides = [Parameter(name, value=value) for name, value in {"realtime": False, **parameters}.items()]
        self.policy = PolicyNode(parameter_overrides=overrides)
        self.robot = FakeRobot()
        self.contract = load_contract(parameters["robot"])
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.policy)
        self._executor.add_node(self.robot.node)
        self._closed = False
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def wait_for(self, condition: Callable[[], Any], what: str, timeout_s: float = TIMEOUT_S) -> Any:
        """Waits until the condition is true and returns its value."""
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
            time.sleep(0.005)
        return value

    def wait_until_connected(self) -> None:
        """Waits until every topic between node and robot has its two ends."""
        topics = [source.topic for source in self.contract.observations.values()]
        commands = [self.contract.pose_command.topic, self.contract.gripper_command.topic]
        node = self.robot.node
        self.wait_for(
            lambda: all(node.count_subscribers(topic) and self.policy.count_publishers(topic) for topic in topics + commands),
            "the topics to connect",
        )
        self.wait_for(lambda: self.policy.count_subscribers(commands[0]) == 1, "the robot to listen")

    def call(self, kind: Any, name: str, request: Any) -> Any:
        """Calls a service from the robot's node."""
        client = self.robot.node.create_client(kind, name)
        assert client.wait_for_service(timeout_sec=TIMEOUT_S), f"no service {name}"
        future = client.call_async(request)
        self.wait_for(future.done, f"an answer from {name}")
        self.robot.node.destroy_client(client)
        return future.result()

    def close(self) -> None:
        """Ends in order: control thread, executor, nodes."""
        self.policy.close()
        self._closed = True
        self._thread.join()
        for node in (self.policy, self.robot.node):
            self._executor.remove_node(node)
            node.destroy_node()
        self._executor.shutdown()

    def _spin(self) -> None:
        while not self._closed:
            self._executor.spin_once(timeout_sec=0.02)


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Makes benches with the tiny policy on the twin's contract, and closes them."""
    benches: list[Bench] = []

    def make(**parameters: Any) -> Bench:
        policy, robot = tiny_policy.write(tmp_path / "tiny.onnx"), contracts.write(tmp_path / "robot.yaml")
        defaults = {"policy": str(policy), "robot": robot, "noise_seed": 7, "flight_directory": str(tmp_path / "flights")}
        benches.append(Bench(**(defaults | parameters)))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()
