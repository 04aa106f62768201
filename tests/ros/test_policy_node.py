# SPDX-License-Identifier: Apache-2.0
"""The policy node against real rclpy: transitions, commands, holds and stops."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_policy
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from rclpy.lifecycle import TransitionCallbackReturn
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from otpr_policy.chunk import episode_rng
from otpr_policy.command import delta_to_target
from otpr_policy.control import State
from otpr_policy.ros.messages import COMMAND_QOS, LATCHED_QOS, pose_position, pose_quaternion, stamp_to_ns
from otpr_policy.share import share_directory

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
PERIOD_NS = 50_000_000
pytestmark = [pytest.mark.ros, pytest.mark.faults]


def start(bench: Any) -> None:
    assert bench.policy.trigger_configure() is SUCCESS
    assert bench.policy.trigger_activate() is SUCCESS
    bench.wait_until_connected()


def engage(bench: Any) -> Any:
    return bench.call(SetBool, "/policy_node/engage", SetBool.Request(data=True))


def state(bench: Any) -> State:
    return bench.policy._control.state


def test_every_lifecycle_transition_succeeds_and_can_be_repeated(make_bench: Callable[..., Any]) -> None:
    node = make_bench().policy
    for _ in range(3):
        assert node.trigger_configure() is SUCCESS
        for _ in range(2):
            assert node.trigger_activate() is SUCCESS
            assert node._thread is not None
            assert node.trigger_deactivate() is SUCCESS
            assert node._thread is None
        assert node.trigger_cleanup() is SUCCESS
        assert node._entities == []
    assert node.trigger_configure() is SUCCESS
    assert node.trigger_activate() is SUCCESS
    assert node.trigger_shutdown() is SUCCESS
    assert node._thread is None


def test_activating_again_says_not_engaged(make_bench: Callable[..., Any]) -> None:
    bench = make_bench()
    start(bench)
    told: list[str] = []
    bench.robot.node.create_subscription(String, "/policy_node/state", lambda m: told.append(m.data), LATCHED_QOS)
    bench.wait_for(lambda: told and told[-1] == "READY: not engaged", "the state")
    assert bench.policy.trigger_deactivate() is SUCCESS
    bench.wait_for(lambda: told[-1] == "READY: deactivated", "the state of a node that does not tick")
    assert bench.policy.trigger_activate() is SUCCESS
    bench.wait_for(lambda: told[-1] == "READY: not engaged", "the state of one that does")


def test_commands_are_the_ones_computed_by_hand(make_bench: Callable[..., Any]) -> None:
    """Two chunks in lockstep: every pose and finger target equals the formula of the tiny policy, with the stamp of its observation."""
    bench = make_bench(pacing="observation")
    start(bench)
    stamp = bench.robot.publish(1_000_000_000)
    bench.wait_for(lambda: bench.policy._buffer.complete_until_ns == stamp, "the first observation")
    assert engage(bench).success
    rng = episode_rng(7, 0)
    robot = bench.robot
    for tick in range(8):
        bench.wait_for(lambda n=tick: len(robot.poses) > n and len(robot.grippers) > n, f"command {tick}")
        if tick % 4 == 0:
            observation = tiny_policy.OBSERVATION.flatten(robot.observation())
            noise = rng.standard_normal(tiny_policy.NOISE_SHAPE)
            chunk = tiny_policy.expected_action(observation[None], noise)
        target = delta_to_target(robot.observation(), tiny_policy.ACTION.split(chunk[tick % 4]))
        np.testing.assert_allclose(pose_position(robot.poses[tick].pose), target.position, atol=1e-6)
        np.testing.assert_allclose(pose_quaternion(robot.poses[tick].pose), target.quaternion, atol=1e-5)
        np.testing.assert_allclose(robot.grippers[tick].data, [target.gripper_position], atol=1e-7)
        assert stamp_to_ns(robot.poses[tick].header.stamp) == stamp
        assert robot.poses[tick].header.frame_id == "panda_link0"
        robot.state.ee_position = robot.state.ee_position + np.array([0.01, -0.005, 0.002])
        robot.state.cube_position = robot.state.cube_position + 0.001
        stamp = robot.publish(stamp + PERIOD_NS)


def test_joints_are_found_by_name_whatever_their_order(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(pacing="observation")
    start(bench)
    bench.robot.state.joints = {"panda_joint1": 9.0, "panda_finger_joint1": 0.03, "panda_finger_joint2": 0.01}
    bench.robot.publish(1_000_000_000)
    bench.wait_for(lambda: bench.policy._buffer.complete_until_ns, "the observation")
    first = bench.policy._buffer.observe(1_000_000_000).values["gripper_position"]
    bench.robot.state.joints = {"panda_finger_joint2": 0.01, "panda_finger_joint1": 0.03, "panda_joint1": 9.0}
    bench.robot.publish(1_050_000_000)
    bench.wait_for(lambda: bench.policy._buffer.complete_until_ns == 1_050_000_000, "the next observation")
    np.testing.assert_array_equal(first, [0.03, 0.01])
    np.testing.assert_array_equal(bench.policy._buffer.observe(1_050_000_000).values["gripper_position"], [0.03, 0.01])


def stream(bench: Any, seconds: float, only: tuple[str, ...] | None = None) -> None:
    """The robot's state at 100 Hz for a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        bench.robot.publish(only=only)
        time.sleep(0.01)


def test_a_stopped_topic_holds_then_stops_and_nothing_more_is_published(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(pacing="clock")
    start(bench)
    stream(bench, 0.3)
    assert engage(bench).success
    stream(bench, 0.5)
    assert state(bench) is State.ENGAGED
    assert len(bench.robot.poses) >= 5
    stream(bench, 0.3, only=("/ee_pose", "/joint_states"))  # the cube's tracker is dead; its limit is 0.1 s
    assert state(bench) is State.HOLD
    assert "cube_position is" in bench.policy._control.reason
    sent = len(bench.robot.poses)
    stream(bench, 0.8, only=("/ee_pose", "/joint_states"))
    assert state(bench) is State.STOPPED
    assert len(bench.robot.poses) == sent
    stream(bench, 0.3)  # data alone does not bring it back
    assert state(bench) is State.STOPPED
    assert len(bench.robot.poses) == sent
    refused = engage(bench)
    assert not refused.success
    assert "reset" in refused.message
    assert bench.call(Trigger, "/policy_node/reset", Trigger.Request()).success
    assert state(bench) is State.READY
    stream(bench, 0.2)
    assert engage(bench).success
    stream(bench, 0.3)
    assert len(bench.robot.poses) > sent


def test_a_short_gap_holds_and_resumes_with_a_new_inference(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(pacing="clock")
    start(bench)
    stream(bench, 0.3)
    assert engage(bench).success
    stream(bench, 0.3)
    time.sleep(0.3)
    assert state(bench) is State.HOLD
    before = bench.policy._control.executor.counters.inferences
    stream(bench, 0.2)
    assert state(bench) is State.ENGAGED
    assert bench.policy._control.executor.counters.inferences > before


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda s: setattr(s, "cube_position", np.array([np.nan, 0, 0])), "not finite"),
        (lambda s: setattr(s, "cube_position", np.array([0.4, np.inf, 0])), "not finite"),
        (lambda s: setattr(s, "cube_position", np.array([0.4, 1e30, 0])), "outside the training range"),
        (lambda s: setattr(s, "ee_quaternion", np.zeros(4)), "not a rotation"),
        (lambda s: setattr(s, "ee_quaternion", np.array([1.0, 0.0, 0.5, 0.0])), "not of unit length"),
        (lambda s: setattr(s, "frame", "world"), "frame 'world'"),
        (lambda s: s.joints.pop("panda_finger_joint2"), "lacks joint 'panda_finger_joint2'"),
    ],
)
def test_bad_input_holds_with_its_reason_and_no_command_follows(make_bench: Callable[..., Any], fault: Any, reason: str) -> None:
    bench = make_bench(pacing="clock")
    start(bench)
    stream(bench, 0.3)
    assert engage(bench).success
    stream(bench, 0.2)
    assert state(bench) is State.ENGAGED
    fault(bench.robot.state)
    stream(bench, 0.3)
    assert state(bench) in (State.HOLD, State.STOPPED)
    assert reason in bench.policy._control.reason
    sent = len(bench.robot.poses)
    stream(bench, 0.15)
    assert len(bench.robot.poses) == sent
    assert all(np.isfinite(pose_position(pose.pose)).all() for pose in bench.robot.poses)


def test_engaging_needs_an_observation_and_an_active_node(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(pacing="clock")
    assert bench.policy.trigger_configure() is SUCCESS
    assert "not active" in engage(bench).message
    assert bench.policy.trigger_activate() is SUCCESS
    bench.wait_until_connected()
    refused = engage(bench)
    assert not refused.success
    assert "has not arrived" in refused.message


def test_a_second_commander_is_refused(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(pacing="clock")
    start(bench)
    rival = bench.robot.node.create_publisher(PoseStamped, "/target_pose", COMMAND_QOS)
    bench.wait_for(lambda: bench.policy.count_publishers("/target_pose") == 2, "the rival to be seen")
    stream(bench, 0.2)
    refused = engage(bench)
    assert not refused.success
    assert "only one may command" in refused.message
    bench.robot.node.destroy_publisher(rival)
    bench.wait_for(lambda: bench.policy.count_publishers("/target_pose") == 1, "the rival to go")
    stream(bench, 0.2)
    assert engage(bench).success


def test_disengaging_is_immediate(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(pacing="observation")
    start(bench)
    stamp = bench.robot.publish(1_000_000_000)
    bench.wait_for(lambda: bench.policy._buffer.complete_until_ns == stamp, "the observation")
    assert engage(bench).success
    bench.wait_for(lambda: len(bench.robot.poses) == 1, "the first command")
    assert bench.call(SetBool, "/policy_node/engage", SetBool.Request(data=False)).success
    assert state(bench) is State.READY
    stamp = bench.robot.publish(stamp + PERIOD_NS)
    bench.wait_for(lambda: bench.policy._control.counters.ticks >= 2, "a tick on the next observation")
    bench.call(Trigger, "/policy_node/reset", Trigger.Request())  # a round trip later than any command could have been
    assert len(bench.robot.poses) == 1


def test_the_artifact_is_published_for_late_joiners_and_diagnostics_carry_it(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(pacing="clock")
    start(bench)
    identities: list[String] = []
    records: list[DiagnosticArray] = []
    bench.robot.node.create_subscription(String, "/policy_node/artifact", identities.append, LATCHED_QOS)
    bench.robot.node.create_subscription(DiagnosticArray, "/diagnostics", records.append, 10)
    bench.wait_for(lambda: identities and records, "identity and diagnostics")
    digest = bench.policy._slot.running.artifact.sha256
    assert json.loads(identities[0].data)["sha256"] == digest
    values = {entry.key: entry.value for entry in records[-1].status[0].values}
    assert values["sha256"] == digest
    assert {"deadline_misses", "clamps", "rejects", "holds", "providers"} <= set(values)


def _changed(contract: dict[str, Any], *path: str, value: Any) -> dict[str, Any]:
    entry = contract
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] = value
    return contract


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: _changed(c, "limits", "max_distance", value=1.0), "unknown key 'max_distance'"),
        (lambda c: c["observations"].pop("cube_position") and c, "unknown observation field 'cube_position'"),
        (lambda c: _changed(c, "observations", "cube_position", "unit", value="mm"), "trained in 'm'"),
        (lambda c: _changed(c, "limits", "workspace_low", value=[0.25, float("nan"), -0.1]), "not a finite range"),
    ],
)
def test_configure_refuses_a_contract_that_does_not_serve(make_bench: Callable[..., Any], tmp_path: Path, change: Any, reason: str) -> None:
    shipped = yaml.safe_load((share_directory() / "config" / "robots" / "panda_twin.yaml").read_text())
    good = tmp_path / "robot.yaml"
    good.write_text(yaml.safe_dump(shipped))
    bench = make_bench(robot=str(good))
    good.write_text(yaml.safe_dump(change(shipped)))
    assert bench.policy.trigger_configure() is FAILURE
    assert reason in bench.policy.failure
    assert bench.policy._entities == []


def test_configure_refuses_a_broken_artifact_and_takes_a_good_one_afterwards(make_bench: Callable[..., Any], tmp_path: Path) -> None:
    whole = tiny_policy.write(tmp_path / "whole.onnx")
    policy = tmp_path / "policy.onnx"
    policy.write_bytes(whole.read_bytes()[:-100])
    bench = make_bench(policy=str(policy))
    assert bench.policy.trigger_configure() is FAILURE
    assert "policy.onnx" in bench.policy.failure
    shutil.copy(whole, policy)
    assert bench.policy.trigger_configure() is SUCCESS


def test_an_inference_that_raises_stops_the_robot_with_its_reason(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(pacing="clock")
    start(bench)
    stream(bench, 0.3)

    def fail(*_: Any) -> None:
        raise RuntimeError("the session is gone")

    bench.policy._slot.running.worker.policies[0].infer = fail
    assert engage(bench).success
    bench.wait_for(lambda: state(bench) is State.STOPPED, "the stop")
    assert "the session is gone" in bench.policy._control.reason
    assert bench.robot.poses == []
