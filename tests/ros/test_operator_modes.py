# SPDX-License-Identifier: Apache-2.0
"""The policy node with an operator, over real topics: teleoperation, takeover, a device that vanishes, shadow mode."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_policy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from scene import EVERY
from std_msgs.msg import Float64MultiArray, String
from std_srvs.srv import SetBool, Trigger

from otpr_operator.ros.teleop import TeleopNode
from otpr_operator.teleop.device import Event, Reading
from otpr_policy.command import CartesianTarget
from otpr_policy.control import State
from otpr_policy.errors import OutputError
from otpr_policy.rate import TargetLimiter
from otpr_policy.ros import node as node_module
from otpr_policy.ros.messages import COMMAND_QOS, LATCHED_QOS, encode_gripper, encode_pose, ns_to_stamp, pose_position, stamp_to_ns
from otpr_policy.ros.outlet import CommandOutlet

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
pytestmark = pytest.mark.ros


class Hand:
    """An operator's device, made of messages."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench
        node = bench.robot.node
        self.labels: list[dict[str, Any]] = []
        self.states: list[str] = []
        self._twist = node.create_publisher(TwistStamped, "/policy_node/operator/twist", COMMAND_QOS)
        self._device = node.create_publisher(String, "/policy_node/operator/device", LATCHED_QOS)
        self._gripper = node.create_publisher(Float64MultiArray, "/policy_node/operator/gripper", COMMAND_QOS)
        node.create_subscription(String, "/policy_node/commander", lambda m: self.labels.append(json.loads(m.data)), 20)
        node.create_subscription(String, "/policy_node/state", lambda m: self.states.append(m.data), EVERY)
        bench.wait_for(lambda: node.count_subscribers("/policy_node/operator/twist"), "the node to listen")

    def vanish(self) -> None:
        """As a killed process, once the others have noticed."""
        for publisher in (self._twist, self._device, self._gripper):
            self.bench.robot.node.destroy_publisher(publisher)

    def send(self, linear: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> None:
        message = TwistStamped()
        message.header.stamp = ns_to_stamp(self.bench.robot.now_ns())
        message.header.frame_id = "panda_link0"
        message.twist.linear.x, message.twist.linear.y, message.twist.linear.z = linear
        self._twist.publish(message)

    def close_gripper(self) -> None:
        self._gripper.publish(Float64MultiArray(data=[0.0]))

    def report(self, problem: str) -> None:
        self._device.publish(String(data=problem))

    def stream(self, seconds: float, linear: tuple[float, float, float] | None = (0.0, 0.0, 0.0)) -> None:
        """Robot and operator at 100 Hz for a while; with ``linear`` None the operator is silent."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.bench.robot.publish()
            if linear is not None:
                self.send(linear)
            time.sleep(0.01)


def start(bench: Any) -> None:
    assert bench.policy.trigger_configure() is SUCCESS, bench.policy.failure
    assert bench.policy.trigger_activate() is SUCCESS


def call(bench: Any, name: str, value: bool) -> Any:
    return bench.call(SetBool, f"/policy_node/{name}", SetBool.Request(data=value))


def test_an_operator_alone_commands_through_the_same_node(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(policy="", mode="teleop")
    start(bench)
    hand = Hand(bench)
    hand.stream(0.3, None)
    refused = call(bench, "engage", True)
    assert (refused.success, refused.message) == (False, "no operator: no teleop device sends")
    hand.stream(0.3)
    assert call(bench, "engage", True).success
    hand.stream(0.4, (0.1, 0.0, 0.0))
    hand.close_gripper()
    hand.stream(0.2)
    poses = [pose_position(pose.pose) for pose in bench.robot.poses]
    assert len(poses) >= 8
    assert 0.02 < poses[-1][0] - 0.5 <= 0.05  # 0.1 m/s for 0.4 s; the fake hand never moves
    assert np.allclose(np.array(poses)[:, 1:], [0.05, 0.1], atol=1e-9)
    assert bench.robot.grippers[0].data[0] == pytest.approx(0.012)
    assert bench.robot.grippers[-1].data[0] == 0.0
    assert {label["commander"] for label in hand.labels} == {"operator"}
    refused = call(bench, "takeover", True)
    assert (refused.success, refused.message) == (False, "there is no policy to take over from, or to give back to")


def test_an_operator_takes_over_and_gives_back_and_every_step_is_labelled(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(pacing="clock")
    start(bench)
    hand = Hand(bench)
    hand.stream(0.4)
    assert call(bench, "engage", True).success
    hand.stream(0.3)
    assert call(bench, "takeover", True).message == "operator"
    hand.stream(0.4, (0.0, 0.0, 0.1))
    assert call(bench, "takeover", False).message == "policy"
    hand.stream(0.3, None)
    by_stamp = {label["stamp_ns"]: label["commander"] for label in hand.labels}
    stamps = [stamp_to_ns(pose.header.stamp) for pose in bench.robot.poses]
    order = [by_stamp[stamp] for stamp in stamps if stamp in by_stamp]
    assert len(order) >= 0.9 * len(stamps)  # a busy machine may lose one of either; the stamp tells which belong together
    runs = [name for index, name in enumerate(order) if index == 0 or order[index - 1] != name]
    assert runs == ["policy", "operator", "policy"]
    assert order.count("operator") >= 6
    assert "HOLD: the operator" not in " ".join(hand.states)


@pytest.mark.parametrize("says", ["gamepad: /joy has been silent for 0.4 s", ""])
def test_a_device_that_vanishes_in_a_takeover_holds_and_the_state_says_why(make_bench: Callable[..., Any], says: str) -> None:
    """It may say so itself, or be killed without a word."""
    bench = make_bench(pacing="clock")
    start(bench)
    hand = Hand(bench)
    hand.stream(0.4)
    assert call(bench, "engage", True).success
    assert call(bench, "takeover", True).success
    hand.stream(0.3)
    if says:
        hand.report(says)
    hand.stream(0.35, None)
    sent = len(bench.robot.poses)
    hand.stream(0.15, None)
    assert len(bench.robot.poses) == sent
    expected = f"HOLD: the operator's device is gone: {says}" if says else "HOLD: the operator's command is"
    assert any(state.startswith(expected) for state in hand.states), hand.states
    hand.stream(0.6, None)
    assert hand.states[-1].startswith("STOPPED: the operator's")
    assert hand.labels[-1]["commander"] == "operator"


def test_taking_over_without_a_device_is_refused_and_the_policy_goes_on(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(pacing="clock")
    start(bench)
    hand = Hand(bench)
    hand.stream(0.4, None)
    assert call(bench, "engage", True).success
    assert call(bench, "takeover", True).message == "no operator: no teleop device sends"
    hand.stream(0.3, None)
    assert {label["commander"] for label in hand.labels} == {"policy"}


@pytest.mark.parametrize("moving", [True, False])
def test_a_device_that_is_plugged_in_anew_knows_who_has_the_robot_and_can_give_it_back(
    make_bench: Callable[..., Any], moving: bool
) -> None:
    bench = make_bench(pacing="clock")
    start(bench)
    hand = Hand(bench)
    bench.wait_until_connected()
    hand.stream(0.3)
    assert call(bench, "takeover", True).success  # by a device whose process is killed
    if moving:
        assert call(bench, "engage", True).success
    hand.vanish()
    told: list[str] = []
    node = TeleopNode(bench.contract, [Untouched()], node="/policy_node", tell=told.append, show=lambda state: None)
    bench._executor.add_node(node)

    def stream_until(condition: Callable[[], bool]) -> None:
        until = time.monotonic() + 10.0
        while not condition():
            assert time.monotonic() < until, told
            hand.stream(0.05, None)

    try:
        stream_until(lambda: not node._alone)
        if not moving:  # nothing is commanded, so nothing says who commands
            stream_until(lambda: node.request(Event.TAKE_OVER) is not None)
        stream_until(lambda: node.commands)
        node.request(Event.GIVE_BACK)
        stream_until(lambda: "give back: policy" in told)
        hand.stream(0.2, None)
        assert not node.commands
    finally:
        bench._executor.remove_node(node)
        node.destroy_node()


class Untouched:
    """A device that nobody moves."""

    name = "a device"

    def poll(self, now_s: float) -> Reading:
        return Reading()

    def close(self) -> None:
        pass


def test_of_two_devices_none_drives_until_one_is_gone(make_bench: Callable[..., Any]) -> None:
    """Both are told by name. A device that says that all is well does not speak for the other."""
    bench = make_bench(policy="", mode="teleop")
    start(bench)
    hand = Hand(bench)
    hand.stream(0.3)
    assert call(bench, "engage", True).success
    hand.stream(0.3, (0.1, 0.0, 0.0))
    other = Node("teleop", namespace="/couch")
    twist = other.create_publisher(TwistStamped, "/policy_node/operator/twist", COMMAND_QOS)

    def stream_until(condition: Callable[[], bool]) -> None:
        until = time.monotonic() + 10.0
        while not condition():
            assert time.monotonic() < until, hand.states
            hand.stream(0.05, (0.1, 0.0, 0.0))

    stream_until(lambda: "/couch/teleop" in hand.states[-1])
    assert hand.states[-1].split(": ", 1)[1].startswith("2 devices publish on /policy_node/operator/twist: /couch/teleop, /fake_robot; ")
    stream_until(lambda: hand.states[-1].startswith("STOPPED: 2 devices"))
    sent = len(bench.robot.poses)
    assert bench.call(Trigger, "/policy_node/reset", Trigger.Request()).success
    hand.stream(0.2)
    assert "2 devices publish" in call(bench, "engage", True).message
    assert len(bench.robot.poses) == sent
    other.destroy_publisher(twist)
    stream_until(lambda: call(bench, "engage", True).success)
    stream_until(lambda: len(bench.robot.poses) > sent)
    other.destroy_node()


def test_two_commanders_are_refused_with_an_operator_too(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(policy="", mode="teleop")
    start(bench)
    hand = Hand(bench)
    bench.robot.node.create_publisher(PoseStamped, "/target_pose", COMMAND_QOS)
    bench.wait_for(lambda: bench.policy.count_publishers("/target_pose") == 2, "the second commander")
    hand.stream(0.3)
    assert "2 nodes publish on /target_pose" in call(bench, "engage", True).message


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"mode": "teleop"}, "is for teleoperation without a policy"),
        ({"mode": "shadow", "policy": ""}, "needs the parameter 'policy'"),
        ({"mode": "watch"}, "unknown mode 'watch'; known: command, shadow, teleop"),
    ],
)
def test_a_mode_that_makes_no_sense_is_refused(make_bench: Callable[..., Any], parameters: dict[str, Any], says: str) -> None:
    bench = make_bench(**parameters)
    assert bench.policy.trigger_configure() is FAILURE
    assert says in bench.policy.failure


def test_in_shadow_the_policy_proposes_is_compared_and_has_no_command_publisher(make_bench: Callable[..., Any], tmp_path: Path) -> None:
    report = tmp_path / "shadow.json"
    bench = make_bench(mode="shadow", report=str(report))
    start(bench)
    node = bench.robot.node
    proposals: list[PoseStamped] = []
    records: list[DiagnosticArray] = []
    node.create_subscription(PoseStamped, "/policy_node/proposal/pose", proposals.append, 10)
    node.create_subscription(DiagnosticArray, "/diagnostics", records.append, 10)
    poses = node.create_publisher(PoseStamped, "/target_pose", COMMAND_QOS)
    grippers = node.create_publisher(Float64MultiArray, "/gripper_controller/commands", COMMAND_QOS)
    bench.wait_for(lambda: node.count_subscribers("/target_pose") == 2, "the shadow to listen")  # it, and the robot
    assert bench.policy.count_publishers("/target_pose") == 1  # the operator's, none of its own
    end = time.monotonic() + 2.5
    while time.monotonic() < end:  # an operator who wants to stay where the hand is
        stamp = bench.robot.publish()
        target = CartesianTarget(bench.robot.state.ee_position, bench.robot.state.ee_quaternion, 0.0)
        grippers.publish(encode_gripper(target))
        poses.publish(encode_pose(target, "panda_link0", stamp))
        time.sleep(0.02)
    assert len(proposals) > 10
    bench.wait_for(lambda: any("shadow_rms_ee_position_delta_m" in text for text in facts(records)), "the error in diagnostics")
    assert bench.policy.trigger_deactivate() is SUCCESS
    fields = json.loads(report.read_text())["fields"]
    error = [np.linalg.norm(pose_position(pose.pose) - bench.robot.state.ee_position) for pose in proposals]
    assert fields["ee_position_delta"]["pairs"] > 10
    assert min(error) - 1e-9 <= fields["ee_position_delta"]["p50"] <= max(error) + 1e-9
    assert fields["gripper_position"]["max"] > 0.001
    assert "ee_position_delta" in report.with_suffix(".md").read_text()


def test_a_report_that_could_not_be_written_is_refused_before_the_session(make_bench: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    bench = make_bench(mode="shadow", report=str(tmp_path / "file" / "shadow.json"))
    assert bench.policy.trigger_configure() is FAILURE
    assert "cannot write" in bench.policy.failure


def test_no_thread_stays_when_the_report_cannot_be_written_at_the_end(make_bench: Callable[..., Any], tmp_path: Path) -> None:
    report = tmp_path / "out" / "shadow.json"
    bench = make_bench(mode="shadow", report=str(report))
    start(bench)
    report.mkdir()  # where the file should go
    with pytest.raises(OutputError, match="cannot write"):
        bench.policy.close()
    assert not ours()
    report.rmdir()


def test_a_report_that_cannot_be_written_keeps_nobody_from_taking_the_node_down(make_bench: Callable[..., Any], tmp_path: Path) -> None:
    report = tmp_path / "out" / "shadow.json"
    bench = make_bench(mode="shadow", report=str(report))
    for transitions in (("deactivate", "activate", "deactivate", "cleanup"), ("shutdown",)):
        start(bench)
        report.mkdir()  # where the file should go
        for name in transitions:
            assert getattr(bench.policy, f"trigger_{name}")() is SUCCESS
        assert "cannot write" in bench.policy.failure
        assert not ours()
        assert not bench.policy._entities
        report.rmdir()


@pytest.mark.parametrize("fails", ["control thread", "outlet"])
def test_an_error_in_a_transition_leaves_no_thread_and_the_node_can_be_configured_again(
    make_bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no more threads")

    bench = make_bench(pacing="clock")
    assert bench.policy.trigger_configure() is SUCCESS
    with monkeypatch.context() as patched:
        if fails == "control thread":
            patched.setattr(node_module, "ControlThread", fail)
            bench.policy.trigger_activate()
        else:
            assert bench.policy.trigger_activate() is SUCCESS
            patched.setattr(CommandOutlet, "close", fail)
            bench.policy.trigger_deactivate()
        assert not ours()
        assert not bench.policy._entities
    if fails == "control thread":
        start(bench)


def ours() -> list[str]:
    """Names of the threads that a policy node has."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("otpr-", "watchdog"))]


def test_a_stop_in_shadow_saves_no_flight_and_the_comparison_is_of_one_policy(make_bench: Callable[..., Any], tmp_path: Path) -> None:
    bench = make_bench(mode="shadow")
    start(bench)
    first = bench.policy._outlet.comparison
    stopped, end = 0, time.monotonic() + 3.0
    limits = replace(bench.contract.limits, max_distance_m=1e-6)  # rejects all that the policy wants
    bench.policy._control._limiter = TargetLimiter(limits, 0.05)
    while time.monotonic() < end:
        bench.robot.publish()
        stopped += bench.policy._control.state is State.STOPPED
        time.sleep(0.01)
    assert stopped
    bench.policy.set_parameters([Parameter("policy", value=str(tiny_policy.write(tmp_path / "other.onnx")))])
    answer = bench.call(Trigger, "/policy_node/load", Trigger.Request())
    bench.policy.close()
    assert not list((tmp_path / "flights").glob("*"))
    assert answer.success, answer.message
    assert bench.policy._outlet.comparison is not first


def facts(records: list[DiagnosticArray]) -> list[str]:
    return [entry.key for record in records for status in record.status for entry in status.values]
