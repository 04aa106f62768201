# SPDX-License-Identifier: Apache-2.0
"""What a scripted operator sees: where hand and cube are, how the policy node and the recorder stand, and whether the task is solved."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_msgs.msg import Bool, Int32, String

from otpr_policy.contract import RobotContract
from otpr_policy.control import State
from otpr_policy.decoding import decode
from otpr_policy.errors import EnvironmentSetupError
from otpr_policy.ros.messages import LATCHED_QOS, MESSAGE_CLASSES, subscription_qos
from otpr_policy.ros.process import start_ros
from otpr_policy.spec import Array

_SPIN_S = 0.02


class Onlooker:
    """Subscribes to what an operator looks at. ``alive`` is asked while waiting; it raises when there is nothing to wait for."""

    def __init__(self, contract: RobotContract, fields: tuple[str, ...], context: Context, alive: Callable[[], None]) -> None:
        self._alive = alive
        self._node = Node("pilot", context=context)
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self._node)
        self.seen: dict[str, Array] = {}  # newest value of each field
        self.state = ""  # of the policy node
        self.held = ""  # its first state since this was emptied in which the robot did not obey
        self.solved = False
        self.episode = -1  # of the twin
        self.recorder: dict[str, Any] = {}  # its status
        listen = self._node.create_subscription
        for name in fields:
            source = contract.observations[name]
            take = partial(self._on_message, name, source)
            listen(MESSAGE_CLASSES[source.type], source.topic, take, subscription_qos(source.reliability))
        listen(String, "/policy_node/state", self._on_state, LATCHED_QOS)
        listen(Bool, "/twin/success", self._on_success, LATCHED_QOS)
        listen(Int32, "/twin/episode", self._on_episode, LATCHED_QOS)
        listen(String, "/recorder/status", self._on_recorder, LATCHED_QOS)

    def spin(self, seconds: float) -> None:
        """Looks for that long."""
        end = time.monotonic() + seconds
        while (remaining := end - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=min(remaining, _SPIN_S))
        self._alive()

    def wait_for(self, holds: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Looks until something holds. Raises EnvironmentSetupError when it does not in time."""
        end = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() > end:
                raise EnvironmentSetupError(f"waited {timeout_s:.0f} s for {what}; the policy node says {self.state or 'nothing'!r}")
            self.spin(_SPIN_S)

    def close(self) -> None:
        """Leaves the graph."""
        self._executor.remove_node(self._node)
        self._node.destroy_node()
        self._executor.shutdown()

    def _on_message(self, name: str, source: Any, message: Any) -> None:
        self.seen[name] = decode(source, message)

    def _on_state(self, message: String) -> None:
        self.state = message.data
        if not self.held and message.data.startswith((State.HOLD.value, State.STOPPED.value)):
            self.held = message.data

    def _on_success(self, message: Bool) -> None:
        self.solved = message.data

    def _on_episode(self, message: Int32) -> None:
        self.episode = message.data

    def _on_recorder(self, message: String) -> None:
        self.recorder = json.loads(message.data)


@contextmanager
def looking(contract: RobotContract, fields: tuple[str, ...], alive: Callable[[], None]) -> Iterator[Onlooker]:
    """An onlooker in a context of its own; both are gone afterwards, in order."""
    context = Context()
    start_ros(context=context)
    try:
        onlooker = Onlooker(contract, fields, context, alive)
        try:
            yield onlooker
        finally:
            onlooker.close()
    finally:
        rclpy.try_shutdown(context=context)
