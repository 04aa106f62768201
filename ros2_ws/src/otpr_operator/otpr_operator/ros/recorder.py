# SPDX-License-Identifier: Apache-2.0
"""The recorder: everything that a contract names and what the policy node says, in one recording per episode.

    by key       s start, y success, n failure, space save, d discard, r redo, where there is a terminal
    by service   ~/start ~/success ~/failure ~/save ~/discard ~/redo (std_srvs/Trigger)
    by topic     ~/command (std_msgs/String), one of these words
    publishes    ~/status (std_msgs/String, JSON, latched)

What they mean is session.py's. One executor thread does all of it.
"""

import hashlib
import json
import sys
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import deserialize_message
from std_msgs.msg import Float64MultiArray, String
from std_srvs.srv import Trigger

from otpr_operator.keys import ACTIONS, LEGEND, Keys
from otpr_operator.session import Action, Phase, RecordedTopic, Reply, Session
from otpr_policy import __version__
from otpr_policy.contract import RobotContract, contract_text, load_contract
from otpr_policy.errors import ContractError, unknown
from otpr_policy.git import git_commit
from otpr_policy.recording import COMMANDER, STATE
from otpr_policy.recording_checks import EpisodeReport, needed_topics
from otpr_policy.ros.messages import COMMAND_QOS, LABEL_QOS, LATCHED_QOS, MESSAGE_CLASSES, subscription_qos
from otpr_policy.ros.parameters import declare, parameter
from otpr_policy.ros.process import run_node
from otpr_policy.ros.timer import create_steady_timer
from otpr_policy.table import format_table

_POLL_S = 0.05
_STATUS_PERIOD_S = 0.5
_QUEUE = 100  # messages per topic that may wait while the disk is slow; a robot's nodes keep only the newest


@dataclass(frozen=True)
class RecorderParameters:
    """Parameters of the recorder."""

    robot: str = parameter("", "name of an installed robot contract, or path of one (.yaml)")
    directory: str = parameter("", "directory of the episodes; each is a directory in it")
    autostart: bool = parameter(False, "start an episode at once, and end when the disk is full")
    policy_node: str = parameter("/policy_node", "full name of the policy node whose state and artifact are recorded")


class RecorderNode(Node):
    """Subscribes to raw messages, so that what is stored is what came, byte for byte."""

    def __init__(self, **options: Any) -> None:
        """``options`` are rclpy's for a node, such as its context."""
        super().__init__("recorder", **options)
        self.parameters = declare(self, RecorderParameters)
        if not self.parameters.robot or not self.parameters.directory:
            raise ContractError("parameters 'robot' and 'directory' must be given")
        contract = load_contract(self.parameters.robot)
        self._facts = _facts(contract, contract_text(self.parameters.robot))
        self._identity_topic = f"{self.parameters.policy_node}/artifact"
        self._simulated_time = bool(self.get_parameter("use_sim_time").value)
        topics = _topics(contract, self.parameters.policy_node)
        ages = needed_topics(contract)
        latched = DurabilityPolicy.TRANSIENT_LOCAL
        recorded = {t: RecordedTopic(_type_name(kind), ages.get(t), qos.durability is latched) for t, (kind, qos) in topics.items()}
        self._session = Session(Path(self.parameters.directory), recorded, self._facts_now, time.monotonic, self._tell)
        self._keys = Keys()
        self._status_s = 0.0
        self._status = ""
        self._recorded = {
            topic: self.create_subscription(kind, topic, partial(self._on_message, topic), _deep(qos), raw=True)
            for topic, (kind, qos) in topics.items()
        }
        self._advertise()
        self.get_logger().info(f"{len(topics)} topics into {self.parameters.directory}")
        if self._keys.active:
            print(LEGEND, file=sys.stderr, flush=True)
        if self.parameters.autostart:
            self._do(Action.START)

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to do: a recording that nobody attends has no more room."""
        return self.parameters.autostart and self._session.failure is not None

    def close(self) -> None:
        """Keeps the episode at hand, and gives the terminal back."""
        self._keys.close()
        self._take_waiting()
        name, counts = self._session.episode, dict(self._session.counts)
        self._session.close()
        if name:
            self.get_logger().info(f"recorded {name}: {', '.join(f'{topic} {count}' for topic, count in counts.items())}")
            if self._session.problems:  # nobody reviewed it
                self._tell(f"{name}: {'; '.join(self._session.problems)}")

    def _advertise(self) -> None:
        self._status_publisher = self.create_publisher(String, "~/status", LATCHED_QOS)
        for action in Action:
            self.create_service(Trigger, f"~/{action.value}", partial(self._on_service, action))
        self.create_subscription(String, "~/command", self._on_command, QoSProfile(depth=10))
        create_steady_timer(self, _POLL_S, self._on_timer)

    def _facts_now(self) -> dict[str, str]:
        return {**self._facts, "started": datetime.now(timezone.utc).isoformat(timespec="milliseconds")}

    # What comes in

    def _on_message(self, topic: str, message: bytes, info: dict[str, Any]) -> None:
        # Under simulated time the wall clocks of sender and middleware would not fit the messages' stamps.
        published_ns = None if self._simulated_time else info["source_timestamp"]
        # The middleware's time of arrival: a message that waited for us, on a busy machine, was there before.
        received_ns = (0 if self._simulated_time else info["received_timestamp"]) or self._now_ns()
        self._session.message(topic, received_ns, message, published_ns, info["publication_sequence_number"])
        if topic == self._identity_topic:
            self._session.identify(deserialize_message(message, String).data)

    def _take_waiting(self) -> None:
        """What has come and was not read yet, on a busy machine the last tenths of a second: among it may be why all ends."""
        waiting: list[tuple[int, str, bytes, dict[str, Any]]] = []
        for topic, subscription in self._recorded.items():
            for _ in range(_QUEUE):  # what comes meanwhile is not waited for
                taken = subscription.handle.take_message(subscription.msg_type, subscription.raw)
                if taken is None:
                    break
                waiting.append((taken[1]["received_timestamp"], topic, *taken))
        for _, topic, message, info in sorted(waiting, key=lambda entry: entry[0]):
            self._on_message(topic, message, info)

    def _on_service(self, action: Action, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        reply = self._do(action)
        response.success, response.message = reply.done, reply.text
        return response

    def _on_command(self, message: String) -> None:
        try:
            self._do(Action(message.data))
        except ValueError:
            self._tell(unknown("recorder command", message.data, [action.value for action in Action]))

    def _on_timer(self) -> None:
        for key in self._keys.pressed():
            if key in ACTIONS:
                self._do(ACTIONS[key])
            elif key.isprintable():
                self._tell(f"key {key!r} has no meaning; {LEGEND}")
        self._session.keep_up()
        if time.monotonic() - self._status_s >= _STATUS_PERIOD_S:
            self._publish_status()

    # What goes out

    def _do(self, action: Action) -> Reply:
        self._take_waiting()  # what came before the order belongs to what it is about
        reviewed = self._session.report
        reply = self._session.act(action, self._now_ns())
        if reply.done:
            self.get_logger().info(reply.text)
        else:
            self._tell(reply.text)
        report = self._session.report
        if report is not None and report is not reviewed:
            print(describe(report), file=sys.stderr, flush=True)
        self._publish_status()
        return reply

    def _tell(self, text: str) -> None:
        self.get_logger().warning(text)

    def _publish_status(self) -> None:
        session = self._session
        self._status_s = time.monotonic()
        facts = {
            "phase": session.phase.value,
            "episode": session.episode,
            "verdict": session.verdict.value,
            "seconds": round(session.seconds, 1),
            "received": dict(session.counts),
            "problems": list(session.problems),
            "failure": "" if session.failure is None else str(session.failure),
        }
        text = json.dumps(facts)
        if text != self._status:
            self._status = text
            self._status_publisher.publish(String(data=text))
        if self._keys.active and session.phase is Phase.RECORDING:
            counts = " ".join(f"{topic} {count}" for topic, count in session.counts.items())
            print(f"\r\x1b[K{session.episode} {session.seconds:.0f} s  {counts}", end="", file=sys.stderr, flush=True)

    def _now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)


def describe(report: EpisodeReport) -> str:
    """The checks of an episode as a table for a person."""
    rows = [
        (t.topic, t.received, t.expected, f"{t.rate_hz:.1f}", f"{1e3 * t.longest_gap_s:.0f}", "; ".join(t.problems) or "good")
        for t in report.topics
    ]
    title = f"{report.seconds:.1f} s"
    table = format_table((title, "received", "expected", "rate [Hz]", "longest gap [ms]", "finding"), rows)
    return "\n".join(["", table, *report.problems])


def _facts(contract: RobotContract, text: str) -> dict[str, str]:
    return {
        "robot": contract.robot,
        "contract": text,
        "contract_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "git_commit": git_commit(),
        "otpr_version": __version__,
    }


def _topics(contract: RobotContract, policy_node: str) -> dict[str, tuple[Any, QoSProfile]]:
    topics: dict[str, tuple[Any, QoSProfile]] = {
        source.topic: (MESSAGE_CLASSES[source.type], subscription_qos(source.reliability)) for source in contract.observations.values()
    }
    topics[contract.pose_command.topic] = (PoseStamped, COMMAND_QOS)
    topics[contract.gripper_command.topic] = (Float64MultiArray, COMMAND_QOS)
    topics[f"{policy_node}{STATE}"] = (String, LATCHED_QOS)
    topics[f"{policy_node}/artifact"] = (String, LATCHED_QOS)
    topics[f"{policy_node}{COMMANDER}"] = (String, LABEL_QOS)
    topics["/diagnostics"] = (DiagnosticArray, QoSProfile(depth=1))
    return topics


def _deep(qos: QoSProfile) -> QoSProfile:
    """The same, but nothing that came is replaced by what came later, a state that was told for a moment only included."""
    return QoSProfile(history=qos.history, depth=_QUEUE, reliability=qos.reliability, durability=qos.durability)


def _type_name(kind: Any) -> str:
    return f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"


def main() -> int:
    """The process of the recorder; ends with status 1 when a recording that nobody attends has no more room."""
    return run_node(RecorderNode, keep_on=lambda node: not node.ended)


if __name__ == "__main__":
    sys.exit(main())
