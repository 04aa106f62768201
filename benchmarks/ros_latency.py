# SPDX-License-Identifier: Apache-2.0
"""From observation to command over ROS 2, between processes: the policy node against a bare rclpy node that echoes a pose.

This process publishes a robot's state at 100 Hz and receives what comes back; its monotonic clock stamps both ends. In every round it
speaks to the policy node for some seconds and then to the echo node. The policy node reads three topics, infers every fourth tick, and
answers every fifth state, since its rate is 20 Hz; the echo node answers every pose with a pose. All of them run by SCHED_FIFO where
permitted, the echo node at the priority of the policy node's callbacks, or none of them does.

On a virtual machine the hypervisor takes the processors for other guests, in bursts of seconds. So turns are short, and there are two
tables: of all turns, and of those of either node in which it took next to nothing.

Run `make bench-ros`. It writes out/bench/ros_latency.json and prints a table.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import rclpy
from geometry_msgs.msg import PoseStamped
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_srvs.srv import SetBool, Trigger

from otpr_policy.contract import Reliability
from otpr_policy.errors import EnvironmentSetupError, OtprError
from otpr_policy.files import make_directory, write_text
from otpr_policy.health import Percentiles
from otpr_policy.machine import machine, stolen_s
from otpr_policy.realtime import Role, Scheduler
from otpr_policy.ros.messages import COMMAND_QOS, STATE_PUBLISHER_QOS, ns_to_stamp, stamp_to_ns, subscription_qos
from otpr_policy.ros.process import start_ros

RATE_HZ = 100.0
GOAL = 2.0  # times the echo node's p99
DISTURBED = 0.002  # share of all processors' time that the hypervisor takes in a turn, from which on the turn counts as disturbed
SETTLE_S = 1.5  # before each measurement: engaging, the phase of ticks to samples, caches
ANSWER_S = 0.1  # after each measurement, for what is under way; states go on, or ticks would answer the last one once more and late
ECHO_IN, ECHO_OUT = "/bench/state", "/bench/echo"
# Within the shipped policy's training range, hand down.
HAND, TURN, CUBE, FINGER = (0.51, 0.0, 0.02), (0.5**0.5, 0.5**0.5, 0.0, 0.0), (0.54, 0.0, -0.06), 0.03


class Robot(Node):
    """Publishes states and notes when what answers them comes back."""

    def __init__(self) -> None:
        super().__init__("latency_robot", start_parameter_services=False)
        self._hand = self.create_publisher(PoseStamped, "/ee_pose", STATE_PUBLISHER_QOS)
        self._cube = self.create_publisher(PoseStamped, "/objects/cube/pose", STATE_PUBLISHER_QOS)
        self._joints = self.create_publisher(JointState, "/joint_states", STATE_PUBLISHER_QOS)
        self._state = self.create_publisher(PoseStamped, ECHO_IN, STATE_PUBLISHER_QOS)
        self.create_subscription(PoseStamped, "/target_pose", self._received, COMMAND_QOS)
        self.create_subscription(PoseStamped, ECHO_OUT, self._received, COMMAND_QOS)
        self._sent_ns: dict[int, int] = {}
        self._noting = False
        self.latencies_s: list[float] = []

    def publish_robot(self) -> None:
        """The whole state, on three topics with one stamp, the hand last."""
        stamp = self._next_stamp()
        joints = JointState(name=["panda_finger_joint1", "panda_finger_joint2"], position=[FINGER, FINGER])
        joints.header.stamp = ns_to_stamp(stamp)
        messages = ((self._joints, joints), (self._cube, _pose(stamp, CUBE, (0.0, 0.0, 0.0, 1.0))), (self._hand, _pose(stamp, HAND, TURN)))
        self._note(stamp)
        for publisher, message in messages:
            publisher.publish(message)

    def publish_pose(self) -> None:
        """One pose for the echo node."""
        stamp = self._next_stamp()
        message = _pose(stamp, HAND, TURN)
        self._note(stamp)
        self._state.publish(message)

    def note(self, noting: bool) -> None:
        """From here on answers to new states are measured, or not. Beginning forgets what was measured."""
        if noting:
            self.latencies_s = []
            self._sent_ns.clear()
        self._noting = noting

    def listeners(self) -> int:
        """How many of our state topics are heard."""
        return sum(publisher.get_subscription_count() > 0 for publisher in (self._hand, self._cube, self._joints, self._state))

    def _note(self, stamp: int) -> None:
        if self._noting:
            self._sent_ns[stamp] = time.monotonic_ns()

    def _next_stamp(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    def _received(self, message: PoseStamped) -> None:
        now_ns = time.monotonic_ns()
        sent_ns = self._sent_ns.pop(stamp_to_ns(message.header.stamp), None)
        if sent_ns is not None:
            self.latencies_s.append((now_ns - sent_ns) * 1e-9)


def _pose(stamp_ns: int, position: tuple[float, ...], quaternion: tuple[float, ...]) -> PoseStamped:
    message = PoseStamped()
    message.header.frame_id = "panda_link0"
    message.header.stamp = ns_to_stamp(stamp_ns)
    p, o = message.pose.position, message.pose.orientation
    p.x, p.y, p.z = position
    o.x, o.y, o.z, o.w = quaternion
    return message


def echo(fifo: bool) -> None:
    """The node to compare with: one subscription, one publisher, the default executor."""
    start_ros()
    node = Node("echo")
    publisher = node.create_publisher(PoseStamped, ECHO_OUT, COMMAND_QOS)
    node.create_subscription(PoseStamped, ECHO_IN, publisher.publish, subscription_qos(Reliability.BEST_EFFORT))
    scheduler = Scheduler(fifo)
    scheduler.enter(Role.CALLBACKS)
    scheduler.enter_middleware()
    with suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(node)


@dataclass
class Link:
    """This process's node and its executor's thread."""

    robot: Robot
    scheduler: Scheduler
    _closed: bool = False
    _executor: SingleThreadedExecutor = field(default_factory=SingleThreadedExecutor)

    def __post_init__(self) -> None:
        self._executor.add_node(self.robot)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def call(self, kind: Any, name: str, request: Any) -> Any:
        """Calls a service while states go on, so that the node can engage on them. Raises EnvironmentSetupError without an answer."""
        client = self.robot.create_client(kind, name)
        future = client.call_async(request) if client.wait_for_service(timeout_sec=10.0) else None
        end = time.monotonic() + 10.0
        while future is not None and not future.done() and time.monotonic() < end:
            self.robot.publish_robot()
            time.sleep(1.0 / RATE_HZ)
        self.robot.destroy_client(client)
        if future is None or not future.done():
            raise EnvironmentSetupError(f"no answer from {name}")
        return future.result()

    def close(self) -> None:
        """Ends the executor, then the node."""
        self._closed = True
        self._thread.join()
        self._executor.shutdown()
        self.robot.destroy_node()

    def _spin(self) -> None:
        self.scheduler.enter(Role.CALLBACKS)
        while not self._closed:
            self._executor.spin_once(timeout_sec=0.05)


def stream(publish: Callable[[], None], seconds: float) -> None:
    """States at 100 Hz on a grid."""
    start = time.monotonic()
    for tick in range(round(seconds * RATE_HZ)):
        time.sleep(max(0.0, start + tick / RATE_HZ - time.monotonic()))
        publish()


@dataclass(frozen=True)
class Turn:
    """Some seconds of speaking to one node: its latencies [s], and what share of all processors' time the hypervisor took."""

    node: str
    latencies_s: list[float]
    stolen: float


def measure(link: Link, rounds: int, seconds: float) -> list[Turn]:
    """Both nodes by turns."""
    robot = link.robot
    turns: list[Turn] = []
    for turn in range(rounds):
        stream(robot.publish_robot, 0.5)
        link.call(Trigger, "/policy_node/reset", Trigger.Request())
        stream(robot.publish_robot, 0.3)
        answer = link.call(SetBool, "/policy_node/engage", SetBool.Request(data=True))
        if not answer.success:
            raise EnvironmentSetupError(f"the policy node does not engage: {answer.message}")
        for name, publish in (("policy", robot.publish_robot), ("echo", robot.publish_pose)):
            stream(publish, SETTLE_S)
            stolen_before_s = stolen_s()
            robot.note(True)
            stream(publish, seconds)
            robot.note(False)
            stream(publish, ANSWER_S)
            stolen = (stolen_s() - stolen_before_s) / ((seconds + ANSWER_S) * (os.cpu_count() or 1))
            turns.append(Turn(name, robot.latencies_s, stolen))
            if name == "policy":
                link.call(SetBool, "/policy_node/engage", SetBool.Request(data=False))
        print(f"round {turn + 1} of {rounds}, {(rounds - turn - 1) * 2 * (seconds + SETTLE_S):.0f} s left", file=sys.stderr)
    return turns


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown for docs/results.md."""
    lines = ["| node | answers | p50 | p99 | p99.9 | max | p50 / echo | p99 / echo |", "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        figures = " | ".join(f"{row['observation_to_command_ms'][key]:.2f} ms" for key in ("p50", "p99", "p999", "max"))
        lines.append(f"| {row['node']} | {row['answers']} | {figures} | {row['ratio_p50']:.2f} | {row['ratio_p99']:.2f} |")
    return "\n".join(lines) + "\n"


def _rows(turns: list[Turn]) -> list[dict[str, Any]]:
    seen = {name: [latency for turn in turns if turn.node == name for latency in turn.latencies_s] for name in ("policy", "echo")}
    figures = {name: Percentiles.of(values) for name, values in seen.items()}
    rows = []
    for name, percentiles in figures.items():
        reference = figures["echo"]
        if percentiles is None or reference is None:
            raise EnvironmentSetupError(f"no answer came from the {name} node")
        ratios = {"ratio_p50": percentiles.p50 / reference.p50, "ratio_p99": percentiles.p99 / reference.p99}
        rows.append({"node": name, "answers": len(seen[name]), "observation_to_command_ms": percentiles.to_json(), **ratios})
    return rows


def _start(arguments: list[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, *arguments], stdout=sys.stderr)


def run(options: argparse.Namespace, fifo: bool) -> list[Turn]:
    """Starts both nodes, measures, and ends them in any case."""
    realtime = "true" if fifo else "false"
    parameters = {"policy": options.policy, "robot": options.robot, "autostart": "true", "realtime": realtime}
    ros = [word for name, value in parameters.items() for word in ("-p", f"{name}:={value}")]
    children = [_start(["-m", "otpr_policy.ros.node", "--ros-args", *ros])]
    children.append(_start([__file__, "--role", "echo", *([] if fifo else ["--no-fifo"])]))
    start_ros()
    scheduler = Scheduler(fifo)
    scheduler.enter(Role.CONTROL)
    link = Link(Robot(), scheduler)
    scheduler.enter_middleware()
    try:
        end = time.monotonic() + 60.0
        while link.robot.listeners() < 4:
            if time.monotonic() > end or any(child.poll() is not None for child in children):
                raise EnvironmentSetupError("the nodes do not come up; their reasons are above")
            time.sleep(0.05)
        return measure(link, options.rounds, options.seconds)
    finally:
        link.close()
        for child in children:
            child.terminate()
        for child in children:
            try:
                child.wait(10.0)
            except subprocess.TimeoutExpired:
                child.kill()
        rclpy.try_shutdown()


def main() -> int:
    """Measures, prints the table, writes the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--policy", default="policies/lift.onnx", help="policy file (default policies/lift.onnx)")
    parser.add_argument("--robot", default="panda_twin", help="robot contract with the twin's topics (default panda_twin)")
    parser.add_argument("--rounds", type=int, default=16, help="alternations (default 16)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of measuring each node in a round (default 5)")
    parser.add_argument("--no-fifo", action="store_true", help="ordinary scheduling for all")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder of ros_latency.json (default out/bench)")
    parser.add_argument("--role", choices=["echo"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role == "echo":
        echo(not options.no_fifo)
        return 0
    probe = threading.Thread(target=(scheduler := Scheduler(not options.no_fifo)).enter, args=(Role.CONTROL,))
    probe.start()
    probe.join()
    fifo = scheduler.enabled and not scheduler.denials
    load, stolen_before_s = os.getloadavg()[0], stolen_s()
    try:
        turns = run(options, fifo)
        rows = _rows(turns)
    except OtprError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    here = {**machine(), "onnxruntime": version("onnxruntime"), "load_at_start": load, "stolen_s": stolen_s() - stolen_before_s}
    scheduling = "SCHED_FIFO" if fifo else "ordinary"
    quiet = [turn for turn in turns if turn.stolen < DISTURBED]
    nodes = {turn.node for turn in quiet}
    undisturbed = _rows(quiet) if len(nodes) == 2 else []
    report = {
        "rows": rows,
        "undisturbed": undisturbed,
        "turns": [asdict(turn) for turn in turns],
        "goal": {"ratio_p99": GOAL},
        "scheduling": scheduling,
        "state_rate_hz": RATE_HZ,
        "machine": here,
    }
    make_directory(options.out)
    write_text(options.out / "ros_latency.json", json.dumps(report, indent=2) + "\n")
    stolen = f"taken by the hypervisor {here['stolen_s']:.1f} s"
    print(f"all {len(turns)} turns\n{table(rows)}")
    print(f"the {len(quiet)} turns in which the hypervisor took less than {100 * DISTURBED:g} % of the processors\n{table(undisturbed)}")
    print(f"scheduling: {scheduling}; load at start {load:.1f}; {stolen}; goal: p99 at most {GOAL:g} times the echo node's")
    return 0


if __name__ == "__main__":
    sys.exit(main())
