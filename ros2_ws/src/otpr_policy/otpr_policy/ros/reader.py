# SPDX-License-Identifier: Apache-2.0
"""Reads the topics that come at a rate, in a thread that waits for nothing else.

Before each wait rclpy's executor gathers all that a node has, some thirty services, timers and subscriptions of a policy node, and holds
the interpreter's lock meanwhile, with every message anew. Here it is the subscriptions alone.
"""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.guard_condition import GuardCondition
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.qos import QoSProfile

Keep = Callable[[Any], Any]


class Reader:
    """Subscriptions of a node whose messages its executor leaves alone."""

    def __init__(self, node: Node, keep: Keep, failed: Callable[[Exception], None]) -> None:
        """Without a topic.

        Args:
            node: whose subscriptions these are.
            keep: takes what cleanup destroys.
            failed: told, in the thread, what taking a message or a callback raised, and reading goes on; or what ended the thread.
        """
        self._node = node
        self._keep = keep
        self._failed = failed
        self._group = _NotForExecutors()
        self._callbacks: list[tuple[Any, Callable[[Any], None]]] = []
        self._events: list[Any] = []  # such as of a publisher whose QoS does not fit
        self._wake = GuardCondition(None, self._group, context=node.context)
        self._closed = False
        self._thread: threading.Thread | None = None

    def subscribe(self, kind: Any, topic: str, callback: Callable[[Any], None], qos: QoSProfile) -> None:
        """Adds a topic, before :meth:`start`."""
        subscription = self._node.create_subscription(kind, topic, callback, qos, callback_group=self._group)
        self._callbacks.append((self._keep(subscription), callback))
        handlers: Any = subscription.event_handlers  # a list, which rclpy's annotation forgets
        self._events += handlers

    def start(self, on_thread_start: Callable[[], None]) -> None:
        """Begins to read. ``on_thread_start`` is called in the thread first, such as to ask for a priority."""
        self._thread = threading.Thread(target=self._run, args=(on_thread_start,), name="otpr-reader", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, before the subscriptions are destroyed, and waits for it. Once closed it stays so."""
        self._closed = True
        if self._thread is not None:
            self._wake.trigger()
            self._thread.join()
            self._thread = None
        self._wake.destroy()

    def _run(self, on_thread_start: Callable[[], None]) -> None:
        try:
            on_thread_start()
            self._read_until_closed()
        except Exception as error:  # nothing is read from here on, of which the age of the data alone would tell
            self._failed(error)

    def _read_until_closed(self) -> None:
        context = self._node.context
        with ExitStack() as held:  # nothing of it is destroyed under the wait set's feet
            subscriptions = [subscription.handle for subscription, _ in self._callbacks]
            for resource in (context.handle, self._wake.handle, *subscriptions, *self._events):
                held.enter_context(resource)
            wait_set = rclpy_implementation.WaitSet(len(subscriptions), 1, 0, 0, 0, len(self._events), context.handle)
            while True:
                wait_set.clear_entities()
                for subscription in subscriptions:
                    wait_set.add_subscription(subscription)
                for event in self._events:
                    event.add_to_wait_set(wait_set)
                wait_set.add_guard_condition(self._wake.handle)
                wait_set.wait(-1)
                if self._closed:
                    return
                self._read(wait_set.get_ready_entities("subscription"))
                for event in self._events:
                    if event.is_ready(wait_set):
                        self._try(partial(_tell, event))

    def _read(self, ready: list[int]) -> None:
        for subscription, callback in self._callbacks:
            if subscription.handle.pointer in ready:
                self._try(partial(_take, subscription, callback))

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # whatever it is, it must be seen, and the other topics be read
            self._failed(error)


def _take(subscription: Any, callback: Callable[[Any], None]) -> None:
    taken = subscription.handle.take_message(subscription.msg_type, subscription.raw)
    if taken is not None:
        callback(taken[0])


def _tell(event: Any) -> None:
    told = event.take_data()
    if told is not None:
        event.callback(told)


class _NotForExecutors(CallbackGroup):
    """A group of which no executor may run anything.

    Events of its subscriptions are no exception: Fast DDS wakes who waits for an event of a subscription with every message of it, too, and
    an executor that gathers all of a node each time holds the interpreter's lock against the reader and the control loop.
    """

    def can_execute(self, entity: Any) -> bool:
        return False

    def beginning_execution(self, entity: Any) -> bool:
        return False

    def ending_execution(self, entity: Any) -> None:
        raise AssertionError("nothing was begun")
