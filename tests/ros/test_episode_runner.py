# SPDX-License-Identifier: Apache-2.0
"""How an episode ends that does not end by success: with a policy node that is nothing but its services and topics."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from otpr_policy.errors import EnvironmentSetupError
from otpr_policy.ros import episode_runner
from otpr_policy.ros.episode_runner import OPERATOR, EpisodeRunner, running
from otpr_policy.ros.messages import LATCHED_QOS

pytestmark = pytest.mark.ros


class Policy:
    """A policy node that says of its state what a test tells it to."""

    def __init__(self, when_engaged: str) -> None:
        self.when_engaged = when_engaged
        self.node = Node("policy_node")
        self.engaged: list[bool] = []
        self._state = self.node.create_publisher(String, "~/state", LATCHED_QOS)
        self._artifact = self.node.create_publisher(String, "~/artifact", LATCHED_QOS)
        self.node.create_service(SetBool, "~/engage", self._on_engage)
        self.node.create_service(Trigger, "~/reset", lambda _request, response: response)
        self._artifact.publish(String(data=json.dumps({"sha256": "a"})))
        self.say("READY: not engaged")

    def say(self, state: str) -> None:
        self._state.publish(String(data=state))

    def _on_engage(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self.engaged.append(request.data)
        self.say(self.when_engaged if request.data else "READY: not engaged")
        response.success = True
        return response


@contextmanager
def policy(when_engaged: str) -> Iterator[Policy]:
    """A policy node on a thread of its own."""
    one = Policy(when_engaged)
    executor = SingleThreadedExecutor()
    executor.add_node(one.node)
    closed = threading.Event()

    def spin() -> None:
        while not closed.is_set():
            executor.spin_once(timeout_sec=0.02)

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield one
    finally:
        closed.set()
        thread.join()
        executor.remove_node(one.node)
        one.node.destroy_node()
        executor.shutdown()


@contextmanager
def runner(*, lockstep: bool = False, horizon_s: float = 30.0) -> Iterator[EpisodeRunner]:
    """A runner at a robot without a twin."""
    with running(horizon_s=horizon_s, lockstep=lockstep, alive=lambda: None, twin=False) as one:
        one.wait_until_ready(20.0)
        yield one


def test_a_hold_in_lockstep_is_for_good_and_ends_the_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episode_runner, "_LOCKSTEP_HOLD_S", 0.3)
    with policy("HOLD: too far") as node, runner(lockstep=True) as one:
        outcome = one.run_episode()
    assert (outcome.success, outcome.ended) == (False, "HOLD: too far")
    assert node.engaged == [True, False]


def test_a_hold_in_real_time_may_pass_and_ends_nothing_before_the_horizon() -> None:
    with policy("HOLD: too far"), runner(horizon_s=1.0) as one:
        assert one.run_episode().ended == episode_runner.HORIZON


def test_a_stop_ends_the_episode_with_its_reason() -> None:
    with policy("STOPPED: dropped") as node, runner() as one:
        assert one.run_episode().ended == "STOPPED: dropped"
        assert node.engaged == [True, False]


def test_an_operator_may_end_it_here_or_disengage_elsewhere() -> None:
    with policy("ENGAGED") as node, runner() as one:
        asked: list[bool] = []

        def wants_end() -> bool:
            asked.append(True)
            return len(asked) > 3

        assert one.run_episode(wants_end).ended == OPERATOR

        def disengage() -> bool:
            node.say("READY: not engaged")
            return False

        assert one.run_episode(disengage).ended == OPERATOR
        assert node.engaged == [True, False, True, False]


def test_a_node_that_says_it_is_engaged_and_is_not_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episode_runner, "_CALL_TIMEOUT_S", 1.0)
    with policy("READY: not engaged") as node, runner() as one:
        with pytest.raises(EnvironmentSetupError, match="the policy node to be engaged, as it said it was"):
            one.run_episode()
        assert one.engaged
        assert node.engaged == [True, False]


def test_an_interrupt_that_ended_the_nodes_too_stays_an_interrupt() -> None:
    dead: list[str] = []

    def interrupted() -> bool:
        dead.append("policy_node ended with exit status 0")
        raise KeyboardInterrupt

    with (
        policy("ENGAGED"),
        running(horizon_s=30.0, lockstep=False, alive=lambda: dead[0] if dead else None, twin=False) as one,
    ):
        one.wait_until_ready(20.0)
        with pytest.raises(KeyboardInterrupt):
            one.run_episode(interrupted)
