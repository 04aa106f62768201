# SPDX-License-Identifier: Apache-2.0
"""A process of its own that watches a robot's topics and writes down whether what it saw may be seen: see rules.py.

    python checker.py CONTRACT PERIOD_S VERDICT [sim]

CONTRACT is the policy node's, read as plain YAML; nothing of the safety layer is imported. It tells what it has seen so far on
/checker/verdict, listens to /faults/event (JSON: at_s, what, who, pid), and writes VERDICT at SIGTERM.
"""

import heapq
import json
import math
import signal
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import yaml
from faults.rules import Bounds, Command, Judge, Sample
from geometry_msgs.msg import PoseStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64MultiArray, String

from otpr_policy.ros.process import start_ros

ALL = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
ORDER_S = 1.0  # messages are judged in the order of their sending when this much time has passed
JUDGE_S = 0.2
ABSURD = 5.0  # m, or of a unit vector: no arm on a table measures that
LOOK_S = 0.02


class Stalls:
    """For how long the machine kept threads from running: the kernel's run delays, and how late a thread of ours wakes up."""

    def __init__(self) -> None:
        """Starts looking."""
        self._pids: dict[str, int] = {}
        self._seen: deque[tuple[float, float, dict[str, dict[str, int]]]] = deque(maxlen=round(15 / LOOK_S))
        threading.Thread(target=self._run, daemon=True).start()

    def watch(self, who: str, pid: int) -> None:
        """Looks at this process from now on."""
        self._pids[who] = pid

    def between(self, who: str, begin_s: float, end_s: float) -> float:
        """The longest that any thread of it waited for a processor in this while [s]."""
        seen = list(self._seen)
        inside = [look for look in seen if begin_s - LOOK_S <= look[0] <= end_s + 2 * LOOK_S]
        if len(inside) < 2:
            return 0.0
        first, last = inside[0][2].get(who, {}), inside[-1][2].get(who, {})
        waited_s = max((1e-9 * (delay - first[thread]) for thread, delay in last.items() if thread in first), default=0.0)
        return max(waited_s, max(late_s for _, late_s, _ in inside))

    def _run(self) -> None:
        while True:
            due_s = time.time() + LOOK_S
            time.sleep(LOOK_S)
            now_s = time.time()
            self._seen.append((now_s, max(0.0, now_s - due_s - 0.005), {who: _delays(pid) for who, pid in dict(self._pids).items()}))


def _delays(pid: int) -> dict[str, int]:
    delays = {}
    for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            delays[task.parent.name] = int(task.read_text().split()[1])
        except (OSError, IndexError):  # the thread has ended
            continue
    return delays


class Checker(Node):
    """Hears everything, in whatever order it comes, and has it judged in the order in which it was sent."""

    def __init__(self, contract: dict[str, Any], period_s: float, simulated: bool) -> None:
        """Subscribes to what the contract names."""
        super().__init__("checker", start_parameter_services=False)
        self.stalls = Stalls()
        self._fields = _by_topic(contract)
        self.judge = Judge(_bounds(contract, period_s), tuple(self._fields), self.stalls.between, simulated)
        self._heard: list[tuple[float, int, Any]] = []
        self._number = 0
        self._verdict = self.create_publisher(String, "/checker/verdict", LATCHED)
        for topic, (kind, _) in self._fields.items():
            self._listen(kind, topic, ALL, lambda at_s, message, topic=topic: self.judge.sample(at_s, self._sample(topic, message)))
        self._listen(PoseStamped, contract["pose_command"]["topic"], ALL, lambda at_s, m: self.judge.command(at_s, _pose_command(m)))
        self._listen(
            Float64MultiArray,
            contract["gripper_command"]["topic"],
            ALL,
            lambda at_s, m: self.judge.command(at_s, Command(None, "", np.array(m.data))),
        )
        self._listen(String, "/policy_node/state", LATCHED, lambda at_s, m: self.judge.state(at_s, m.data))
        self._listen(Bool, "/twin/holding", LATCHED, lambda at_s, m: self.judge.still(at_s, m.data))
        self.create_subscription(String, "/faults/event", self._on_event, LATCHED)
        if simulated:
            self._listen(Clock, "/clock", ALL, lambda at_s, m: self.judge.clock(at_s, _seconds(m.clock)))
        self._looked_s = self._heard_all_s = time.monotonic()
        self.create_timer(JUDGE_S, self._look)
        self.create_timer(1.0, self._tell)
        self._tell()

    def finish(self) -> dict[str, Any]:
        """Judges the rest."""
        self._judge(0.0)
        return self.judge.verdict()

    def _listen(self, kind: Any, topic: str, qos: QoSProfile, judge: Any) -> None:
        def heard(message: Any, info: Any) -> None:
            at_s = float(info["source_timestamp"]) * 1e-9
            self._keep(at_s, lambda: judge(at_s, message))

        self.create_subscription(kind, topic, heard, qos)

    def _on_event(self, message: String) -> None:
        event = json.loads(message.data)
        if event["what"] == "started":
            self.stalls.watch(event["who"], event["pid"])
        self._keep(event["at_s"], lambda: self.judge.event(event["at_s"], event["what"], event["who"]))

    def _keep(self, at_s: float, judge: Any) -> None:
        self._number += 1
        heapq.heappush(self._heard, (at_s, self._number, judge))

    def _look(self) -> None:
        """Judges, unless this process was held up itself: then there is more to be heard before."""
        now_s = time.monotonic()
        if now_s - self._looked_s > 2 * JUDGE_S:
            self._heard_all_s = now_s + 3 * ORDER_S
        self._looked_s = now_s
        if now_s >= self._heard_all_s:
            self._judge()

    def _judge(self, order_s: float = ORDER_S) -> None:
        until_s = time.time() - order_s
        while self._heard and self._heard[0][0] <= until_s:
            at_s, _, judge = heapq.heappop(self._heard)
            self.judge.until(at_s)
            judge()
        self.judge.until(until_s)

    def _tell(self) -> None:
        told = {"violations": len(self.judge.violations), "commands": self.judge.counts["commands"]}
        self._verdict.publish(String(data=json.dumps(told)))

    def _sample(self, topic: str, message: Any) -> Sample:
        kind, fields = self._fields[topic]
        problem = _joints_problem(message, fields) if kind is JointState else _pose_problem(message, fields)
        position = getattr(message, "pose", None) and message.pose.position
        is_hand = problem is None and any(source["name"].startswith("ee_") for source in fields)
        hand = np.array([position.x, position.y, position.z]) if is_hand else None
        return Sample(topic, _seconds(message.header.stamp), problem, hand)


def _by_topic(contract: dict[str, Any]) -> dict[str, tuple[Any, list[dict[str, Any]]]]:
    kinds = {"geometry_msgs/msg/PoseStamped": PoseStamped, "sensor_msgs/msg/JointState": JointState}
    topics: dict[str, tuple[Any, list[dict[str, Any]]]] = {}
    for name, source in contract["observations"].items():
        topics.setdefault(source["topic"], (kinds[source["type"]], []))[1].append({"name": name, **source})
    return topics


def _bounds(contract: dict[str, Any], period_s: float) -> Bounds:
    limits = contract["limits"]
    return Bounds(
        period_s,
        max(source["max_age_s"] for source in contract["observations"].values()),
        tuple(limits["workspace_low"]),
        tuple(limits["workspace_high"]),
        (contract["teleop"]["gripper_closed"], contract["teleop"]["gripper_open"]),
        limits["max_distance_m"],
        limits["max_velocity_m_s"],
        limits["max_acceleration_m_s2"],
        limits["max_angular_velocity_rad_s"],
        limits["max_gripper_velocity_m_s"],
        contract["pose_command"]["frame"],
    )


def _seconds(stamp: Any) -> float:
    return float(stamp.sec) + 1e-9 * float(stamp.nanosec)


def _pose_command(message: PoseStamped) -> Command:
    p, o = message.pose.position, message.pose.orientation
    return Command(_seconds(message.header.stamp), message.header.frame_id, np.array([p.x, p.y, p.z, o.x, o.y, o.z, o.w]))


def _pose_problem(message: PoseStamped, fields: list[dict[str, Any]]) -> str | None:
    p, o = message.pose.position, message.pose.orientation
    numbers = (p.x, p.y, p.z, o.x, o.y, o.z, o.w)
    if message.header.frame_id != fields[0]["frame"]:
        return "frame"
    if not all(math.isfinite(number) and abs(number) <= ABSURD for number in numbers):
        return "numbers"
    if any(source["part"] != "position" for source in fields) and not abs(math.hypot(*numbers[3:]) - 1) < 0.01:
        return "rotation"
    return None


def _joints_problem(message: JointState, fields: list[dict[str, Any]]) -> str | None:
    names, values = list(message.name), list(message.position)
    if len(names) != len(values):
        return "lengths"
    for joint in (joint for source in fields for joint in source["joints"]):
        if names.count(joint) != 1:
            return "names"
        if not (math.isfinite(values[names.index(joint)]) and abs(values[names.index(joint)]) <= ABSURD):
            return "numbers"
    return None


def main() -> int:
    """Watches until it is told to end."""
    contract_path, period_s, verdict_path = sys.argv[1:4]
    contract = yaml.safe_load(Path(contract_path).read_text(encoding="utf-8"))
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    start_ros()
    checker = Checker(contract, float(period_s), "sim" in sys.argv[4:])
    executor = SingleThreadedExecutor()
    executor.add_node(checker)
    while not ended.is_set():
        executor.spin_once(timeout_sec=0.05)
    end_s = time.monotonic() + ORDER_S
    while time.monotonic() < end_s:  # what is under way
        executor.spin_once(timeout_sec=0.05)
    Path(verdict_path).write_text(json.dumps(checker.finish(), indent=1), encoding="utf-8")
    executor.remove_node(checker)
    checker.destroy_node()
    executor.shutdown()
    rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
