# SPDX-License-Identifier: Apache-2.0
"""``~/state`` (std_msgs/String, latched) and the log: what the robot may do, and why."""

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from std_msgs.msg import String

from otpr_policy.control import State
from otpr_policy.ros.messages import LATCHED_QOS


class StateTopic:
    """Tells a state when it is another than the one told last. Made in configure."""

    def __init__(self, node: Node, keep: Callable[[Any], Any]) -> None:
        """``keep``: takes what cleanup destroys."""
        self._logger = node.get_logger()
        self._publisher = keep(node.create_publisher(String, "~/state", LATCHED_QOS))
        self._told = ""
        self._logged: State | None = None

    def tell(self, state: State, reason: str) -> None:
        """The state as it is. Called under the control loop's lock, so that what is told last was set last."""
        text = f"{state.value}: {reason}" if reason else state.value
        if text != self._told:
            self._told = text
            self._publisher.publish(String(data=text))
        if state is not self._logged:  # a reason may change with every tick; the log gets the first one
            self._logged = state
            if state in (State.HOLD, State.STOPPED):  # two calls: rclpy ties a severity to the place of the call
                self._logger.warning(text)
            else:
                self._logger.info(text)

    def tell_stopped(self, reason: str) -> None:
        """A stop that the control loop does not know of yet. Called while the control thread may hang with its lock."""
        text = f"{State.STOPPED.value}: {reason}"
        self._told = ""  # it may hang in telling another state, which then arrives after this: the loop has to tell the stop again
        self._publisher.publish(String(data=text))
        self._logger.error(text)
