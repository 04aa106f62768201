# SPDX-License-Identifier: Apache-2.0
"""What besides the control loop keeps the robot still: a person's switch, the watchdog, another commander.

The guard's thread waits for nothing. Of the locks that the control thread takes it takes the observation buffer's alone, which is held
for as long as a few numbers are copied, and only after it has said what it has to say of the control thread. While the robot may move it
asserts the liveliness of the command topics; when it stops doing so, a consumer that listens to liveliness stops within
the lease, though the next tick may be far.
"""

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rclpy.node import Node
from sensor_msgs.msg import Joy
from std_msgs.msg import Bool

from otpr_policy.contract import RobotContract
from otpr_policy.control import MAY_MOVE, ControlLoop, State
from otpr_policy.dead_man import DeadMan, DeadManType
from otpr_policy.ros.graph import publisher_names
from otpr_policy.ros.messages import SWITCH_QOS
from otpr_policy.ros.timer import create_steady_timer
from otpr_policy.watchdog import Permit, Watchdog

_CYCLE_S = 0.01
Tell = Callable[[str], None]
_RIVALS_PERIOD_S = 0.1


class Guard:
    """Watches from configure to cleanup; between :meth:`start` and :meth:`close` with a thread of its own."""

    def __init__(
        self, node: Node, contract: RobotContract, keep: Callable[[Any], Any], on_rival: Callable[[str], None], commands: bool = True
    ) -> None:
        """Subscribes, and looks for other commanders and other switches from now on.

        Args:
            node: the policy node.
            contract: the robot's.
            keep: notes an entity that cleanup has to destroy.
            on_rival: called, from the executor's thread, with why another commander, or another switch, must stop the robot.
            commands: False for a node that only proposes: it has no rivals, and needs nobody's hand on a switch.
        """
        self._node = node
        self._on_rival = on_rival
        self._switch = contract.dead_man_switch if commands else None
        # Topics that one node alone may publish on, with what they are and why. ROS counts by names as a launch file has remapped them.
        topics = map(node.resolve_topic_name, (contract.pose_command.topic, contract.gripper_command.topic) if commands else ())
        self._sole = [(f"on {topic}", topic, "only one may command the robot") for topic in topics]
        if self._switch is not None:  # of two the one that is pressed would win: the newest message counts, whoever sent it
            topic = node.resolve_topic_name(self._switch.topic)
            self._sole += [(f"the dead-man switch on {topic}", topic, "there must be one")]
        self._dead_man: DeadMan | None = None
        self.permit = Permit()
        self._watchdog: Watchdog | None = None
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        if self._switch is not None:
            self._dead_man = DeadMan(self._switch.max_age_s)
            kind = Joy if self._switch.type is DeadManType.JOY else Bool
            callback: Any = self._on_switch  # rclpy's annotation knows of no callback that is told when a message came
            keep(node.create_subscription(kind, self._switch.topic, callback, SWITCH_QOS))
        keep(create_steady_timer(node, _RIVALS_PERIOD_S, self._look_for_rivals))

    def start(
        self,
        period_s: float,
        control: ControlLoop,
        fresh: Callable[[], bool],
        publishers: Sequence[Any],
        tell: Tell,
        on_thread_start: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts the watchdog's thread, which only reads what it is given.

        Args:
            period_s: control period.
            control: the control loop; only its state is looked at.
            fresh: whether there is an observation that a tick could use now.
            publishers: of the command topics, whose liveliness is asserted.
            tell: makes it known why the permission was taken away. Must not wait for a lock.
            on_thread_start: called in the thread first, such as to ask for a priority.
        """
        self._watchdog = Watchdog(period_s, time.monotonic())
        self._closed.clear()
        look = partial(self._look, self._watchdog, control, fresh, publishers, tell)
        self._thread = threading.Thread(target=self._run, args=(look, on_thread_start), name="watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread. Harmless without one."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = self._watchdog = None

    def released(self) -> str | None:
        """Why the person's switch does not allow motion; None when it does, or when the contract asks for none."""
        return None if self._dead_man is None else self._dead_man.problem(time.monotonic())

    def let_go(self) -> str | None:
        """As :meth:`released`, and of a release since this was asked last: a control period may be longer than it."""
        return None if self._dead_man is None else self._dead_man.problem_since(time.monotonic())

    def beat(self, control: ControlLoop) -> None:
        """A control step begins. One that comes too late loses its permission even before the watchdog looks, if it has any."""
        if self._watchdog is not None:
            late = self._watchdog.beat(time.monotonic())
            if late is not None and control.state in MAY_MOVE:
                self.permit.revoke(late)

    def refusal(self) -> str | None:
        """Why engaging is refused, as far as the guard knows."""
        rivals = self._rivals(exactly=True)
        if rivals is not None:
            return rivals
        return None if self._watchdog is None else self._watchdog.problem(time.monotonic())

    def _run(self, look: Callable[[], None], on_thread_start: Callable[[], None]) -> None:
        on_thread_start()
        while not self._closed.wait(_CYCLE_S):
            try:
                look()
            except Exception as error:  # a watchdog that ended without a word would be taken for one that finds nothing
                self.permit.revoke(f"internal error of the watchdog: {error!r}")
                self._node.get_logger().error(f"the watchdog failed, and stops the robot:\n{traceback.format_exc()}")

    def _look(self, watchdog: Watchdog, control: ControlLoop, fresh: Callable[[], bool], publishers: Sequence[Any], tell: Tell) -> None:
        state = control.state
        if state not in MAY_MOVE:
            return
        problem = watchdog.problem(time.monotonic())
        if problem is not None and self.permit.revoked is None:
            self.permit.revoke(problem)
            tell(problem)
        if state is State.ENGAGED and self.permit.revoked is None and self.released() is None and fresh():
            for publisher in publishers:
                publisher.assert_liveliness()

    def _on_switch(self, message: Any, info: dict[str, Any]) -> None:
        assert self._dead_man is not None and self._switch is not None
        pressed = self._switch.is_pressed(message.buttons) if self._switch.type is DeadManType.JOY else bool(message.data)
        # It may have waited for the executor. When it came the middleware says, on the computer's own clock, which may be set meanwhile:
        # back, and it counts from now as if it had not waited; on, and it counts as old. Cyclone DDS says when it was taken instead.
        # The monotonic clock is read first: what holds this thread up between the two makes the message older, not newer.
        now_s, now_ns = time.monotonic(), time.time_ns()
        waited_s = max(0.0, (now_ns - (info["received_timestamp"] or now_ns)) * 1e-9)
        self._dead_man.hear(pressed, now_s - waited_s)

    def _look_for_rivals(self) -> None:
        rivals = self._rivals()
        if rivals is not None:
            self._on_rival(rivals)

    def _rivals(self, exactly: bool = False) -> str | None:
        """What is wrong with who publishes; ``exactly``: nobody is wrong too."""
        for what, topic, rule in self._sole:
            count = self._node.count_publishers(topic)
            if count > 1:
                return f"{count} nodes publish {what}: {publisher_names(self._node, topic)}; {rule}"
            if exactly and count != 1:
                return f"{count} nodes publish {what}; {rule}"
        return None
