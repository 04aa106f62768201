# SPDX-License-Identifier: Apache-2.0
"""Runs episodes through the topics: engage the policy, wait for the outcome, disengage; reset the twin where there is one.

It is a process beside policy node and robot or twin and uses nothing but their services and topics, as an operator's
tool would.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Bool, Int32, String
from std_srvs.srv import SetBool, Trigger

from otpr_policy.bringup import POLICY_STATUS, TWIN_STATUS
from otpr_policy.control import State
from otpr_policy.errors import EnvironmentSetupError
from otpr_policy.ros.messages import LATCHED_QOS, stamp_to_ns
from otpr_policy.ros.process import start_ros

_POLL_S = 0.05
_CALL_TIMEOUT_S = 10.0
_AFTER_SUCCESS_S = 0.3
_LOCKSTEP_WALL_LIMIT_S = 300.0
_LOCKSTEP_HOLD_S = 3.0  # a state may be lost and is sent again every half second; a hold that outlasts this is for good


SUCCESS, HORIZON, OPERATOR = "success", "horizon", "operator"  # how an episode ends that the policy node did not stop; the last by a person


@dataclass(frozen=True)
class Outcome:
    """How one episode went.

    Args:
        episode: the twin's number of it; 0 on a real robot.
        success: whether the twin saw the task solved; False on a real robot, which cannot tell.
        seconds: from engaging to the end, on the task's clock.
        ended: :data:`SUCCESS`, :data:`HORIZON`, :data:`OPERATOR`, or the state of the policy node with the reason why it stopped,
            or holds for good, as it does in lockstep.
    """

    episode: int
    success: bool
    seconds: float
    ended: str


class EpisodeRunner:
    """Talks to one policy node and at most one twin. ``alive`` is asked while waiting, so that a dead process ends the wait at once."""

    def __init__(self, context: Context, *, horizon_s: float, lockstep: bool, alive: Callable[[], str | None], twin: bool = True) -> None:
        """Args:
        context: an initialised rclpy context.
        horizon_s: an episode that lasts longer has failed.
        lockstep: whether time is the simulation's (/clock) instead of the wall's.
        alive: returns None, or which process is dead.
        twin: whether there is a twin, to be reset and asked for success; without, a person is in both places.
        """
        self._horizon_s = horizon_s
        self._lockstep = lockstep
        self._alive = alive
        self._node = Node("episode_runner", context=context)
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self._node)
        self._success: bool | None = None
        self._episode: int | None = None
        self._policy_state = ""
        self._twin = twin
        self.engaged = False  # whether the newest episode got as far as that
        self.artifact: dict[str, str] = {}  # what the policy node says it runs
        self._simulated_s = 0.0
        self._moved_s = time.monotonic()  # when simulated time last moved
        self.diagnostics: dict[str, dict[str, str]] = {}  # status name -> its newest values
        self._engage_client = self._node.create_client(SetBool, "/policy_node/engage")
        self._clear_client = self._node.create_client(Trigger, "/policy_node/reset")
        self._clients = [self._engage_client, self._clear_client]
        if twin:
            self._next_client = self._node.create_client(Trigger, "/twin/reset")
            self._clients.append(self._next_client)
            self._node.create_subscription(Bool, "/twin/success", self._on_success, LATCHED_QOS)
            self._node.create_subscription(Int32, "/twin/episode", self._on_episode, LATCHED_QOS)
        self._node.create_subscription(String, "/policy_node/artifact", self._on_artifact, LATCHED_QOS)
        self._node.create_subscription(String, "/policy_node/state", self._on_state, LATCHED_QOS)
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        if lockstep:
            self._node.create_subscription(Clock, "/clock", self._on_clock, 1)

    def wait_until_ready(self, timeout_s: float) -> None:
        """Waits until the nodes serve. Raises EnvironmentSetupError when one is dead or the time is over."""
        nodes = "policy node and twin" if self._twin else "the policy node"
        self._wait_for(lambda: all(client.service_is_ready() for client in self._clients), timeout_s, f"{nodes} to start")
        self._wait_for(lambda: bool(self.artifact), timeout_s, "the policy node's artifact")
        if self._twin:
            self._wait_for(lambda: self._episode is not None and self._success is not None, timeout_s, "the twin's first state")

    def run_episode(self, wants_end: Callable[[], bool] = lambda: False) -> Outcome:
        """Runs the episode that the robot stands at the start of, and disengages, whatever happens on the way.

        Args:
            wants_end: asked many times a second; True ends the episode.
        """
        self.engaged = False
        self._engage()
        self.engaged = True
        start_s = self._now_s()
        try:
            # The answer may have come from another node of the name, one that was about to end: the state tells.
            self._wait_for(lambda: not self._disengaged(), _CALL_TIMEOUT_S, "the policy node to be engaged, as it said it was")
            limit_s = _LOCKSTEP_WALL_LIMIT_S if self._lockstep else self._horizon_s + _CALL_TIMEOUT_S
            endings: list[str] = []

            def over() -> bool:
                endings.extend(filter(None, [OPERATOR if wants_end() else self._ended(start_s)]))
                return bool(endings)

            self._wait_for(over, limit_s, "the episode to end")
            ended, seconds = endings[0], self._now_s() - start_s
            if ended == SUCCESS:  # a moment more, so that what is seen and recorded shows it
                self._wait_for(lambda: self._now_s() - start_s >= seconds + _AFTER_SUCCESS_S, limit_s, "the moment after success")
        except KeyboardInterrupt:
            with suppress(EnvironmentSetupError):  # Ctrl-C reached the nodes too: that they have ended is no fault of theirs
                self._disengage()
            raise
        except Exception:
            self._disengage()
            raise
        self._disengage()
        return Outcome(self._episode or 0, ended == SUCCESS, seconds, ended)

    def next_episode(self) -> None:
        """Resets the twin to its next episode and clears a stop of the policy."""
        response = self._call(self._next_client, Trigger.Request())
        episode = int(response.message)
        self._wait_for(lambda: self._episode == episode and self._success is False, _CALL_TIMEOUT_S, f"episode {episode} to start")
        self._call(self._clear_client, Trigger.Request())

    def wait_for_diagnostics(self) -> dict[str, dict[str, str]]:
        """Waits for one more message of each node, so that the numbers are complete; the values by name of the status."""
        self.diagnostics.clear()
        wanted = {POLICY_STATUS, TWIN_STATUS} if self._twin else {POLICY_STATUS}
        self._wait_for(lambda: set(self.diagnostics) >= wanted, _CALL_TIMEOUT_S, "diagnostics")
        return self.diagnostics

    def close(self) -> None:
        """Leaves the graph."""
        self._executor.remove_node(self._node)
        self._node.destroy_node()
        self._executor.shutdown()

    def _engage(self) -> None:
        """Engages. Right after a start or reset the first observation may still be on its way, so it tries for a while."""
        deadline = time.monotonic() + _CALL_TIMEOUT_S
        while True:
            response = self._call(self._engage_client, SetBool.Request(data=True))
            if response.success:
                return
            if time.monotonic() > deadline:
                raise EnvironmentSetupError(f"the policy node refuses to engage: {response.message}")
            self._executor.spin_once(timeout_sec=_POLL_S)

    def _disengage(self) -> None:
        self._call(self._engage_client, SetBool.Request(data=False))

    def _ended(self, start_s: float) -> str | None:
        if self._success:
            return SUCCESS
        if self._policy_state.startswith(State.STOPPED.value):
            return self._policy_state
        if self._disengaged():
            return OPERATOR
        if self._lockstep and self._policy_state.startswith(State.HOLD.value) and time.monotonic() - self._moved_s > _LOCKSTEP_HOLD_S:
            return self._policy_state  # time passes by commands alone, so nothing that is wrong can pass by itself
        return HORIZON if self._now_s() - start_s >= self._horizon_s else None

    def _disengaged(self) -> bool:
        return not self._policy_state or self._policy_state.startswith(State.READY.value)

    def _now_s(self) -> float:
        return self._simulated_s if self._lockstep else time.monotonic()

    def _call(self, client: Any, request: Any) -> Any:
        future = client.call_async(request)
        self._wait_for(future.done, _CALL_TIMEOUT_S, f"an answer from {client.srv_name}")
        return future.result()

    def _wait_for(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            dead = self._alive()
            if dead is not None:
                raise EnvironmentSetupError(dead)
            if time.monotonic() > deadline:
                raise EnvironmentSetupError(f"waited {timeout_s:.0f} s for {what}")
            self._executor.spin_once(timeout_sec=_POLL_S)

    def _on_success(self, message: Bool) -> None:
        self._success = message.data

    def _on_episode(self, message: Int32) -> None:
        self._episode = message.data

    def _on_artifact(self, message: String) -> None:
        self.artifact = json.loads(message.data)

    def _on_state(self, message: String) -> None:
        self._policy_state = message.data

    def _on_clock(self, message: Clock) -> None:
        now_s = stamp_to_ns(message.clock) / 1e9
        if now_s != self._simulated_s:
            self._moved_s = time.monotonic()
        self._simulated_s = now_s

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self.diagnostics[status.name] = {entry.key: entry.value for entry in status.values}


@contextmanager
def running(*, horizon_s: float, lockstep: bool, alive: Callable[[], str | None], twin: bool = True) -> Iterator[EpisodeRunner]:
    """An episode runner in a context of its own, both gone afterwards. Arguments as for :class:`EpisodeRunner`."""
    context = Context()
    # Signals stay Python's: the caller unwinds and stops its processes before the context ends.
    start_ros(context=context)
    try:
        runner = EpisodeRunner(context, horizon_s=horizon_s, lockstep=lockstep, alive=alive, twin=twin)
        try:
            yield runner
        finally:
            runner.close()
    finally:
        rclpy.try_shutdown(context=context)
