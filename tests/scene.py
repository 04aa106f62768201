# SPDX-License-Identifier: Apache-2.0
"""Processes that a test starts, ends and stops by signals, and what they say on the topics of a driven robot.

Times are the senders' own stamps of what they sent, so that a busy observer does not count.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from geometry_msgs.msg import PoseStamped
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool, Trigger

from otpr_policy.ros.messages import COMMAND_QOS, STATE_PUBLISHER_QOS

# What is latched is told with a depth of one: who listens with that, too, misses a state that the next one follows within a millisecond.
EVERY = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Scene:
    """Processes by name, such as the twin and the node; everything that is sent is noted with its sender's time [s]."""

    def __init__(self, folder: Path, words: Mapping[str, Sequence[str]], tracked: str) -> None:
        """Starts ``words``, command lines by name. ``tracked``: the topic of a pose that the policy node reads."""
        self.log = (folder / "log").open("w")
        self._words = dict(words)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in self._words:
            self.start(name)
        self.observer = Node("observer")
        self.commands: list[float] = []
        self.tracked: list[float] = []
        self.states: list[tuple[float, str]] = []
        self.holding: list[tuple[float, bool]] = []
        self._unheard = {"/target_pose", tracked, "/policy_node/state", "/twin/holding"}
        self._listen(PoseStamped, "/target_pose", lambda _m, info: self.commands.append(_sent_s(info)), COMMAND_QOS)
        self._listen(PoseStamped, tracked, lambda _m, info: self.tracked.append(_sent_s(info)), STATE_PUBLISHER_QOS)
        self._listen(String, "/policy_node/state", lambda m, info: self.states.append((_sent_s(info), m.data)), EVERY)
        self._listen(Bool, "/twin/holding", lambda m, info: self.holding.append((_sent_s(info), m.data)), EVERY)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.observer)
        self._closed = False
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _listen(self, kind: Any, topic: str, note: Any, qos: Any) -> None:
        """``note(message, info)``; a topic counts as heard from the moment when somebody who sends it was met."""
        matched = SubscriptionEventCallbacks(matched=lambda _info: self._unheard.discard(topic))
        self.observer.create_subscription(kind, topic, note, qos, event_callbacks=matched)

    def start(self, name: str) -> None:
        """Starts a process, or starts it again."""
        self.processes[name] = subprocess.Popen(self._words[name], stdout=self.log, stderr=self.log)

    def _spin(self) -> None:
        while not self._closed:
            self._executor.spin_once(timeout_sec=0.02)

    def wait_for(self, condition: Callable[[], Any], what: str, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}; {Path(self.log.name).read_text()[-2000:]}"
            time.sleep(0.005)

    def engage(self) -> None:
        """Waits until the robot moves."""
        self.wait_for(lambda: self.tracked and not self._unheard, "the tracker and whoever else is to be heard", timeout_s=120.0)
        for _ in range(10):  # a machine that starts three processes may stall for longer than the watchdog allows
            self.call(SetBool, "/policy_node/engage", SetBool.Request(data=False))
            self.call(Trigger, "/policy_node/reset", Trigger.Request())
            self.call(Trigger, "/twin/reset", Trigger.Request())  # the attempt before may have taken the cube out of the known range
            sent = len(self.commands)
            answer = self.call(SetBool, "/policy_node/engage", SetBool.Request(data=True))
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline:
                if len(self.commands) > sent + 8 and self.holding and not self.holding[-1][1]:
                    return
                time.sleep(0.005)
        if os.getloadavg()[0] > 3 * (os.cpu_count() or 1):
            pytest.skip(f"this machine is too busy for bounds of time: {answer.message}")
        raise AssertionError(f"the robot does not move: {answer.message}; {Path(self.log.name).read_text()[-2000:]}")

    def call(self, kind: Any, name: str, request: Any) -> Any:
        """Asks until it is answered: the graph may still have the service of a node that was killed, which answers nobody."""
        client = self.observer.create_client(kind, name)
        assert client.wait_for_service(timeout_sec=60), f"no service {name}"
        futures: list[Any] = []
        deadline = time.monotonic() + 60
        while not any(future.done() for future in futures):
            assert time.monotonic() < deadline, f"{name} answers nobody; {Path(self.log.name).read_text()[-2000:]}"
            futures.append(client.call_async(request))
            again = time.monotonic() + 2
            while time.monotonic() < again and not any(future.done() for future in futures):
                time.sleep(0.005)
        answer = next(future.result() for future in futures if future.done())
        self.observer.destroy_client(client)
        return answer

    def send(self, name: str, number: signal.Signals) -> float:
        """Signals a process; returns when."""
        now_s = time.time()
        os.kill(self.processes[name].pid, number)
        return now_s

    def held_s(self, after_s: float) -> float:
        """When the twin held next, after a moment."""
        self.wait_for(lambda: any(held and at_s > after_s for at_s, held in self.holding), "the twin to hold", timeout_s=5.0)
        return next(at_s for at_s, held in self.holding if held and at_s > after_s)

    def state_s(self, word: str, after_s: float) -> float:
        """When the node told a state next, after a moment."""
        self.wait_for(lambda: any(word in text and at_s > after_s for at_s, text in self.states), word, timeout_s=5.0)
        return next(at_s for at_s, text in self.states if word in text and at_s > after_s)

    def close(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGKILL)
            process.wait()
        self._closed = True
        self._thread.join()
        self._executor.remove_node(self.observer)
        self.observer.destroy_node()
        self._executor.shutdown()
        self.log.close()


def _sent_s(info: dict[str, Any]) -> float:
    return float(info["source_timestamp"]) * 1e-9
