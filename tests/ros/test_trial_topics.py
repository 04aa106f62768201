# SPDX-License-Identifier: Apache-2.0
"""Questions and answers of trials over real topics."""

import time
from collections.abc import Callable, Iterator

import pytest
import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_msgs.msg import String

from otpr_operator.ros.trial_topics import topics
from otpr_policy.ros.messages import LATCHED_QOS

pytestmark = pytest.mark.ros


class Listener:
    def __init__(self) -> None:
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = Node("listener", context=self.context)
        self.heard: list[str] = []
        self.node.create_subscription(String, "/trials/question", lambda message: self.heard.append(message.data), LATCHED_QOS)
        self.publisher = self.node.create_publisher(String, "/trials/answer", 10)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)

    def wait(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not holds():
            assert time.monotonic() < deadline
            self.executor.spin_once(timeout_sec=0.02)

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown(context=self.context)


def test_questions_reach_a_late_listener_and_answers_come_in_order(make_listener: Callable[[], Listener]) -> None:
    with topics() as trials:
        trials.ask("trial 1 of 2")
        listener = make_listener()
        listener.wait(lambda: trials.answer() is None and listener.heard == ["trial 1 of 2"])
        listener.wait(lambda: listener.publisher.get_subscription_count() == 1)
        for text in ("", "s", "f dropped"):
            listener.publisher.publish(String(data=text))
        answers: list[str] = []

        def all_here() -> bool:
            answer = trials.answer()
            answers.extend([] if answer is None else [answer])
            return len(answers) == 3

        listener.wait(all_here)
        assert answers == ["", "s", "f dropped"]


@pytest.fixture
def make_listener() -> Iterator[Callable[[], Listener]]:
    """Makes a node that hears questions and can answer."""
    made: list[Listener] = []

    def make() -> Listener:
        made.append(Listener())
        return made[-1]

    yield make
    for one in made:
        one.close()
