# SPDX-License-Identifier: Apache-2.0
"""Topics that are read by a thread of their own: whatever the node's executor does, and whatever a callback raises."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rclpy.executors import SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from std_msgs.msg import String

from otpr_policy.ros.reader import Reader

pytestmark = pytest.mark.ros
QOS = QoSProfile(depth=20)


class Desk:
    """A reader of two topics, what it reads, and who writes it."""

    def __init__(self) -> None:
        self.node, self.writer = Node("reads"), Node("writes")
        self.read: dict[str, list[str]] = {"/a": [], "/b": []}
        self.threads: set[str] = set()
        self.failures: list[Exception] = []
        self._kept: list[Any] = []
        self.reader = Reader(self.node, self._keep, self.failures.append)
        self._publishers = {topic: self.writer.create_publisher(String, topic, QOS) for topic in self.read}
        for topic in self.read:
            self.reader.subscribe(String, topic, lambda message, topic=topic: self._take(topic, message), QOS)

    def start(self) -> None:
        self.reader.start(lambda: self.threads.add(threading.current_thread().name))
        assert soon(lambda: all(publisher.get_subscription_count() for publisher in self._publishers.values()))

    def write(self, topic: str, text: str) -> None:
        self._publishers[topic].publish(String(data=text))

    def close(self) -> None:
        self.reader.close()
        for subscription in self._kept:
            self.node.destroy_subscription(subscription)
        self.node.destroy_node()
        self.writer.destroy_node()

    def _keep(self, subscription: Any) -> Any:
        self._kept.append(subscription)
        return subscription

    def _take(self, topic: str, message: String) -> None:
        self.threads.add(threading.current_thread().name)
        if message.data == "bad":
            raise RuntimeError("cannot take that")
        self.read[topic].append(message.data)


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.close()


def soon(condition: Callable[[], Any]) -> bool:
    deadline = time.monotonic() + 10.0
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return bool(condition())


def test_every_message_is_read_once_and_in_order_while_nobody_spins(desk: Desk) -> None:
    desk.start()
    for number in range(10):
        desk.write("/a", f"a{number}")
        desk.write("/b", f"b{number}")
    assert soon(lambda: len(desk.read["/a"]) == len(desk.read["/b"]) == 10)
    assert desk.read == {topic: [f"{topic[1]}{number}" for number in range(10)] for topic in ("/a", "/b")}
    assert desk.threads == {"otpr-reader"}


def test_an_executor_of_the_node_leaves_them_alone(desk: Desk) -> None:
    desk.start()
    heard: list[str] = []
    ordinary = desk.node.create_subscription(String, "/a", lambda message: heard.append(message.data), QOS)
    executor = SingleThreadedExecutor()
    executor.add_node(desk.node)
    assert soon(lambda: desk._publishers["/a"].get_subscription_count() == 2)
    for number in range(10):
        desk.write("/a", str(number))
        executor.spin_once(timeout_sec=0.05)
    while len(heard) < 10:
        executor.spin_once(timeout_sec=5.0)
    executor.remove_node(desk.node)
    executor.shutdown()
    desk.node.destroy_subscription(ordinary)
    assert soon(lambda: len(desk.read["/a"]) == 10)
    assert desk.read["/a"] == heard and desk.threads == {"otpr-reader"}


def test_a_publisher_whose_qos_does_not_fit_is_told_of_as_with_any_subscription(desk: Desk, capfd: pytest.CaptureFixture[str]) -> None:
    desk.start()
    desk.writer.create_publisher(String, "/a", QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    told: list[str] = []
    assert soon(lambda: told.append(capfd.readouterr().err) or "incompatible QoS" in "".join(told))
    assert "New publisher discovered on topic '/a', offering incompatible QoS" in "".join(told)
    desk.write("/a", "read as before")
    assert soon(lambda: desk.read["/a"] == ["read as before"])


def test_an_executor_of_the_node_sleeps_through_the_messages(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fast DDS wakes who waits for an event of a subscription with its messages, too."""
    desk.start()
    waits = []

    class Counted(rclpy_implementation.WaitSet):
        def wait(self, timeout: int) -> None:
            waits.append(timeout)
            super().wait(timeout)

    monkeypatch.setattr(rclpy_implementation, "WaitSet", Counted)  # the reader has made its own already
    executor = SingleThreadedExecutor()
    executor.add_node(desk.node)
    spins = threading.Thread(target=lambda: executor.spin_once(timeout_sec=2.0))
    executor.spin_once(timeout_sec=0.1)
    before = len(waits)
    spins.start()
    for number in range(50):
        desk.write("/a", str(number))
        time.sleep(0.01)
    spins.join()
    executor.remove_node(desk.node)
    executor.shutdown()
    assert len(desk.read["/a"]) == 50
    assert 1 <= len(waits) - before < 10


def test_what_a_callback_raises_is_told_and_reading_goes_on(desk: Desk) -> None:
    desk.start()
    for topic, text in (("/a", "bad"), ("/b", "good"), ("/a", "bad"), ("/a", "good")):
        desk.write(topic, text)
    assert soon(lambda: desk.read == {"/a": ["good"], "/b": ["good"]})
    assert [str(failure) for failure in desk.failures] == ["cannot take that"] * 2


def test_what_telling_of_an_unfit_publisher_raises_is_told_and_reading_goes_on(desk: Desk) -> None:
    def fail(_told: Any) -> None:
        raise RuntimeError("no log")

    for event in desk.reader._events:
        event.callback = fail
    desk.start()
    desk.writer.create_publisher(String, "/a", QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    assert soon(lambda: desk.failures)
    desk.write("/b", "read as before")
    assert soon(lambda: desk.read["/b"] == ["read as before"])
    assert str(desk.failures[0]) == "no log"


def test_a_wait_that_fails_is_told_for_nothing_is_read_any_more(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(rclpy_implementation.WaitSet):
        def wait(self, timeout: int) -> None:
            raise RuntimeError("no more wait sets")

    monkeypatch.setattr(rclpy_implementation, "WaitSet", Broken)
    desk.start()
    assert soon(lambda: desk.failures)
    assert [str(failure) for failure in desk.failures] == ["no more wait sets"]


def test_closing_ends_the_thread_at_once_whether_messages_come_or_not(desk: Desk) -> None:
    desk.start()
    began = time.monotonic()
    desk.reader.close()
    assert time.monotonic() - began < 1.0
    desk.write("/a", "too late")
    time.sleep(0.1)
    assert desk.read["/a"] == [] and not any(thread.name == "otpr-reader" for thread in threading.enumerate())


def test_one_that_was_never_started_can_be_closed(desk: Desk) -> None:
    desk.write("/a", "nobody reads")
    desk.reader.close()
    assert desk.read["/a"] == []
