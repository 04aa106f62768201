# SPDX-License-Identifier: Apache-2.0
"""The operator of trials behind topics: ``/trials/question`` and ``/trials/answer``, for launch files and for Foxglove."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_msgs.msg import String

from otpr_policy.ros.messages import LATCHED_QOS
from otpr_policy.ros.process import start_ros


class TrialTopics:
    """Asks on one topic (latched) and takes answers from another."""

    def __init__(self, context: Context) -> None:
        self._node = Node("trials", context=context)
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self._node)
        self._answers: deque[str] = deque()
        self._questions = self._node.create_publisher(String, "~/question", LATCHED_QOS)
        self._node.create_subscription(String, "~/answer", self._on_answer, 10)

    def ask(self, text: str) -> None:
        """Publishes a text."""
        self._questions.publish(String(data=text.strip()))

    def answer(self) -> str | None:
        """The next answer, or None."""
        self._executor.spin_once(timeout_sec=0)
        return self._answers.popleft() if self._answers else None

    def _on_answer(self, message: String) -> None:
        self._answers.append(message.data)

    def close(self) -> None:
        """Leaves the graph."""
        self._executor.remove_node(self._node)
        self._node.destroy_node()
        self._executor.shutdown()


@contextmanager
def topics() -> Iterator[TrialTopics]:
    """The node in a context of its own, both gone afterwards."""
    context = Context()
    start_ros(context=context)
    try:
        node = TrialTopics(context)
        try:
            yield node
        finally:
            node.close()
    finally:
        rclpy.try_shutdown(context=context)
