# SPDX-License-Identifier: Apache-2.0
"""A process between a robot and its policy node that passes state messages on, and, when it is told to, not as they are.

    python relay.py CONTRACT PREFIX SEED [sim]

CONTRACT is the policy node's; what it reads on /PREFIX/x comes from /x. With `sim`, /clock comes from /PREFIX/clock. /faults/relay
(latched JSON: kind, topics) says what to do to which topics; each kind is one function below.
"""

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import yaml
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import String

from otpr_policy.ros.messages import LATCHED_QOS
from otpr_policy.ros.process import start_ros

QOS = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
HOUR_S = 3600
Sent = list[tuple[float, Any]]  # after how long [s], and what
Fault = Callable[[Any, np.random.Generator], Sent]


def _shift(message: Any, seconds: int) -> Any:
    stamp = message.clock if isinstance(message, Clock) else message.header.stamp
    stamp.sec = max(0, stamp.sec + seconds)
    return message


def _with_a_number(value: float) -> Fault:
    def change(message: Any, rng: np.random.Generator) -> Sent:
        if isinstance(message, JointState):
            for index, name in enumerate(message.name):
                if "finger" in name:
                    message.position[index] = value
        else:
            setattr(message.pose.position, rng.choice(["x", "y", "z"]), value)
        return [(0.0, message)]

    return change


def _joints(change: Callable[[list[str], list[float]], None]) -> Fault:
    def changed(message: Any, _rng: np.random.Generator) -> Sent:
        names, positions = list(message.name), list(message.position)
        change(names, positions)
        message.name, message.position, message.velocity, message.effort = names, positions, [], []
        return [(0.0, message)]

    return changed


def _reverse(names: list[str], positions: list[float]) -> None:
    names.reverse()
    positions.reverse()


def _forget_the_first_finger(names: list[str], positions: list[float]) -> None:
    index = next(index for index, name in enumerate(names) if "finger" in name)
    del names[index], positions[index]


def _call_all_fingers_the_same(names: list[str], _positions: list[float]) -> None:
    fingers = [index for index, name in enumerate(names) if "finger" in name]
    for index in fingers[1:]:
        names[index] = names[fingers[0]]


def _turn_names_without_numbers(names: list[str], _positions: list[float]) -> None:
    names.append(names.pop(0))


def _drop_a_number(_names: list[str], positions: list[float]) -> None:
    del positions[-1]


def _in_frame(message: Any, _rng: np.random.Generator) -> Sent:
    message.header.frame_id = "world"
    return [(0.0, message)]


def _without_rotation(message: Any, _rng: np.random.Generator) -> Sent:
    o = message.pose.orientation
    o.x = o.y = o.z = o.w = 0.0
    return [(0.0, message)]


class _Frozen:
    """Every message with the stamp of the first."""

    def __init__(self) -> None:
        self._stamps: dict[type, Time] = {}

    def __call__(self, message: Any, _rng: np.random.Generator) -> Sent:
        message.header.stamp = self._stamps.setdefault(type(message), message.header.stamp)
        return [(0.0, message)]


class _Restarted:
    """Every stamp as if time began with the first message, as when a simulation or a recording starts over."""

    def __init__(self) -> None:
        self._began_s: int | None = None

    def __call__(self, message: Any, _rng: np.random.Generator) -> Sent:
        if self._began_s is None:
            self._began_s = (message.clock if isinstance(message, Clock) else message.header.stamp).sec
        return [(0.0, _shift(message, -self._began_s))]


KINDS: dict[str, Callable[[], Fault]] = {
    "silent": lambda: lambda _m, _rng: [],
    "lost": lambda: lambda m, rng: [(0.0, m)] if rng.random() > 0.6 else [],
    "late": lambda: lambda m, rng: [(rng.uniform(0.15, 0.3), m)],
    "reordered": lambda: lambda m, rng: [(rng.choice([0.0, 0.025, 0.04]), m)],
    "duplicated": lambda: lambda m, rng: [(0.0, m), (0.0, m), (rng.uniform(0, 0.2), m)],
    "an hour ahead": lambda: lambda m, _rng: [(0.0, _shift(m, HOUR_S))],
    "an hour behind": lambda: lambda m, _rng: [(0.0, _shift(m, -HOUR_S))],
    "frozen stamp": _Frozen,
    "starts over": _Restarted,
    "nan": lambda: _with_a_number(float("nan")),
    "inf": lambda: _with_a_number(float("inf")),
    "1e30": lambda: _with_a_number(1e30),
    "wrong frame": lambda: _in_frame,
    "no rotation": lambda: _without_rotation,
    "joints in another order": lambda: _joints(_reverse),
    "names in another order": lambda: _joints(_turn_names_without_numbers),
    "missing name": lambda: _joints(_forget_the_first_finger),
    "duplicate name": lambda: _joints(_call_all_fingers_the_same),
    "missing number": lambda: _joints(_drop_a_number),
}


class Relay(Node):
    """Passes on what comes, through the fault of the moment."""

    def __init__(self, contract: dict[str, Any], prefix: str, seed: int, simulated: bool) -> None:
        """Connects both sides."""
        super().__init__("relay", start_parameter_services=False)
        self._rng = np.random.default_rng(seed)
        self._fault: Fault | None = None
        self._topics: list[str] = []
        self.create_subscription(String, "/faults/relay", self._on_fault, LATCHED_QOS)
        kinds = {"geometry_msgs/msg/PoseStamped": PoseStamped, "sensor_msgs/msg/JointState": JointState}
        topics = {source["topic"]: kinds[source["type"]] for source in contract["observations"].values()}
        for topic, kind in topics.items():
            self._connect(kind, topic.removeprefix(f"/{prefix}"), topic)
        if simulated:
            self._connect(Clock, f"/{prefix}/clock", "/clock")

    def _connect(self, kind: Any, source: str, destination: str) -> None:
        publisher = self.create_publisher(kind, destination, QOS)
        self.create_subscription(kind, source, lambda message: self._pass_on(destination, publisher, message), QOS)

    def _on_fault(self, message: String) -> None:
        order = json.loads(message.data)
        self._topics = order["topics"]
        self._fault = KINDS[order["kind"]]() if order["kind"] else None

    def _pass_on(self, topic: str, publisher: Any, message: Any) -> None:
        if self._fault is None or topic not in self._topics:
            publisher.publish(message)
            return
        for after_s, sent in self._fault(message, self._rng):
            if after_s <= 0:
                publisher.publish(sent)
            else:
                self._later(after_s, publisher, copy.deepcopy(sent))

    def _later(self, after_s: float, publisher: Any, message: Any) -> None:
        def send() -> None:
            timer.cancel()
            self.destroy_timer(timer)
            publisher.publish(message)

        timer = self.create_timer(after_s, send)


def main() -> int:
    """Passes messages on until it is killed."""
    contract_path, prefix, seed = sys.argv[1:4]
    start_ros()
    rclpy.spin(Relay(yaml.safe_load(Path(contract_path).read_text(encoding="utf-8")), prefix, int(seed), "sim" in sys.argv[4:]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
