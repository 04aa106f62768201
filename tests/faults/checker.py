# SPDX-License-Identifier: Apache-2.0
"""A process of its own that watches a robot's topics and writes down whether what it saw may be seen: see rules.py.

    python checker.py CONTRACT PERIOD_S VERDICT [sim]

CONTRACT is the policy node's, read as plain YAML; nothing of the safety layer is imported. It tells what it has seen so far, and
whom it has not met yet, on /checker/verdict, listens to /faults/event (JSON: at_s, what, who, pid), and writes VERDICT at SIGTERM.
"""

import heapq
import json
import math
import signal
import sys
import threading
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import yaml
from faults.rules import Bounds, Command, Judge, Sample
from geometry_msgs.msg import PoseStamped
from rclpy.event_handler import SubscriptionEventCallbacks
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
ABSURD = 5.0  # m: no arm on a table measures that
UNIT = 0.02  # further from unit length a quaternion is no rotation
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
        self._fields = fields_by_topic(contract)
        self.judge = Judge(bounds_of(contract, period_s), tuple(contract["observations"]), self.stalls.between, simulated)
        self._heard: list[tuple[float, int, Any]] = []
        self._unheard: set[str] = set()
        self._number = 0
        self._verdict = self.create_publisher(String, "/checker/verdict", LATCHED)
        for topic, (kind, _) in self._fields.items():
            self._listen(kind, topic, ALL, partial(self._samples, topic))
        self._listen(PoseStamped, contract["pose_command"]["topic"], ALL, lambda at_s, m: self.judge.command(at_s, command_of(m)))
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

        self._unheard.add(topic)
        matched = SubscriptionEventCallbacks(matched=lambda _info: self._unheard.discard(topic))
        self.create_subscription(kind, topic, heard, qos, event_callbacks=matched)

    def _samples(self, topic: str, at_s: float, message: Any) -> None:
        for sample in samples_of(message, *self._fields[topic]):
            self.judge.sample(at_s, sample)

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
        told = {"violations": len(self.judge.violations), "commands": self.judge.counts["commands"], "unheard": sorted(self._unheard)}
        self._verdict.publish(String(data=json.dumps(told)))


def samples_of(message: Any, kind: Any, fields: list[dict[str, Any]]) -> list[Sample]:
    """What a message of a state topic says of each of ``fields``, to one who reads these from it and nothing else."""
    found = []
    for source in fields:
        problem = _joints_problem(message, source["joints"]) if kind is JointState else _pose_problem(message, source)
        hand = None
        if problem is None and source["name"] == "ee_position":
            p, o = message.pose.position, message.pose.orientation
            hand = np.array([p.x, p.y, p.z, o.x, o.y, o.z, o.w])
            if _pose_problem(message, {**source, "part": "rotation_columns"}) is not None:
                hand[3:] = np.nan  # fields are read apart: of such a message the position counts
        found.append(Sample(source["name"], _seconds(message.header.stamp), problem, hand))
    return found


def fields_by_topic(contract: dict[str, Any]) -> dict[str, tuple[Any, list[dict[str, Any]]]]:
    """Of each state topic: its message class, and what the contract reads from it."""
    kinds = {"geometry_msgs/msg/PoseStamped": PoseStamped, "sensor_msgs/msg/JointState": JointState}
    topics: dict[str, tuple[Any, list[dict[str, Any]]]] = {}
    for name, source in contract["observations"].items():
        topics.setdefault(source["topic"], (kinds[source["type"]], []))[1].append({"name": name, **source})
    return topics


def bounds_of(contract: dict[str, Any], period_s: float) -> Bounds:
    """The limits of a contract."""
    limits = contract["limits"]
    return Bounds(
        period_s,
        max(source["max_age_s"] for source in contract["observations"].values()),
        tuple(limits["workspace_low"]),
        tuple(limits["workspace_high"]),
        (limits["gripper_low_m"], limits["gripper_high_m"]),
        limits["max_distance_m"],
        limits["max_rotation_rad"],
        limits["max_velocity_m_s"],
        limits["max_acceleration_m_s2"],
        limits["max_angular_velocity_rad_s"],
        limits["max_angular_acceleration_rad_s2"],
        limits["max_gripper_velocity_m_s"],
        contract["pose_command"]["frame"],
    )


def _seconds(stamp: Any) -> float:
    return float(stamp.sec) + 1e-9 * float(stamp.nanosec)


def command_of(message: PoseStamped) -> Command:
    """What a message of the pose command topic says."""
    p, o = message.pose.position, message.pose.orientation
    return Command(_seconds(message.header.stamp), message.header.frame_id, np.array([p.x, p.y, p.z, o.x, o.y, o.z, o.w]))


def _pose_problem(message: PoseStamped, source: dict[str, Any]) -> str | None:
    if message.header.frame_id != source["frame"]:
        return "frame"
    p, o = message.pose.position, message.pose.orientation
    if source["part"] != "position":
        return None if abs(math.hypot(o.x, o.y, o.z, o.w) - 1) < UNIT else "rotation"
    return None if all(_plausible(number) for number in (p.x, p.y, p.z)) else "numbers"


def _joints_problem(message: JointState, joints: list[str]) -> str | None:
    names, values = list(message.name), list(message.position)
    if len(names) != len(values):
        return "lengths"
    for joint in joints:
        if names.count(joint) != 1:
            return "names"
        if not _plausible(values[names.index(joint)]):
            return "numbers"
    return None


def _plausible(number: float) -> bool:
    return math.isfinite(number) and abs(number) <= ABSURD


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
