# SPDX-License-Identifier: Apache-2.0
"""Another policy while the robot moves: no tick is missed, everybody is told, and what does not fit leaves the old one in its place."""

import argparse
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import contracts
import pytest
import tiny_policy
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from otpr_policy import artifact
from otpr_policy.commands.load import COMMAND
from otpr_policy.control import State
from otpr_policy.errors import ArtifactError, OtprError
from otpr_policy.loading import LoadedPolicy
from otpr_policy.realtime import Role
from otpr_policy.ros import service_call
from otpr_policy.ros.messages import LATCHED_QOS

SUCCESS = TransitionCallbackReturn.SUCCESS
OTHER = replace(tiny_policy.SPEC, observation_horizon=2, chunk_length=8, executed_length=6)
pytestmark = pytest.mark.ros


def stream_until(bench: Any, condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """The robot's state at 100 Hz until something is true."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        bench.robot.publish()
        time.sleep(0.01)


def moving(make_bench: Callable[..., Any], tmp_path: Path) -> Any:
    bench = make_bench(pacing="clock", robot=contracts.write(tmp_path / "patient.yaml", max_age_s=2.0))
    assert bench.policy.trigger_configure() is SUCCESS
    assert bench.policy.trigger_activate() is SUCCESS
    bench.wait_until_connected()
    began = time.monotonic()
    stream_until(bench, lambda: time.monotonic() - began > 0.3)
    assert bench.call(SetBool, "/policy_node/engage", SetBool.Request(data=True)).success
    stream_until(bench, lambda: len(bench.robot.poses) >= 5)
    return bench


def load(bench: Any, path: Path) -> Trigger.Response:
    """Sets the parameter and calls the service, while the robot's state goes on."""
    bench.policy.set_parameters([Parameter("policy", value=str(path))])
    answers: list[Trigger.Response] = []
    thread = threading.Thread(target=lambda: answers.append(bench.call(Trigger, "/policy_node/load", Trigger.Request())))
    thread.start()
    stream_until(bench, lambda: bool(answers))
    thread.join()
    return answers[0]


def test_another_policy_takes_over_while_the_robot_moves(make_bench: Callable[..., Any], tmp_path: Path) -> None:
    bench = moving(make_bench, tmp_path)
    control = bench.policy._control
    told: list[str] = []
    bench.robot.node.create_subscription(String, "/policy_node/artifact", lambda m: told.append(json.loads(m.data)["sha256"]), LATCHED_QOS)
    bench.wait_for(lambda: told, "the first policy's identity")
    other = tiny_policy.write(tmp_path / "other.onnx", OTHER)
    before, underruns = replace(control.counters), control.executor.counters.underruns
    answer = load(bench, other)
    stream_until(bench, lambda: control.counters.commands > before.commands + 20)
    assert answer.success, answer.message
    digest = artifact.load(other).sha256
    assert digest[:12] in answer.message and "before it" in answer.message
    assert told[-1] == digest and len(told) == 2
    assert control.state is State.ENGAGED and control.executor.lanes.spec == OTHER
    assert control.counters.holds == before.holds
    ticks = control.counters.ticks - before.ticks
    assert control.counters.commands - before.commands in (ticks, ticks - 1)  # every tick sent one; the last may not be through
    assert control.executor.counters.underruns == underruns
    assert control.executor.counters.chunks >= 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda: tiny_policy.content(OTHER)[:-50], "truncated"),
        (lambda: b"", "not an ONNX file"),
        (lambda: tiny_policy.content(replace(tiny_policy.SPEC, control_rate_hz=10.0)), "10 Hz, the running policy at 20 Hz"),
        (None, "cannot read policy"),
    ],
)
def test_what_cannot_take_over_is_named_and_the_old_policy_goes_on(
    make_bench: Callable[..., Any], tmp_path: Path, content: Callable[[], bytes] | None, reason: str
) -> None:
    bench = moving(make_bench, tmp_path)
    control, old = bench.policy._control, bench.policy._slot.running
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content())
    answer = load(bench, path)
    assert not answer.success and reason in answer.message and "kept" in answer.message, answer.message
    sent, held = control.counters.commands, control.counters.holds
    stream_until(bench, lambda: control.counters.commands > sent + 10)
    assert control.state is State.ENGAGED and bench.policy._slot.running is old and control.counters.holds == held
    assert bench.policy.get_parameter("policy").value == str(old.path)


def test_a_policy_loaded_while_nothing_moves_is_the_one_that_is_engaged(make_bench: Callable[..., Any], tmp_path: Path) -> None:
    bench = make_bench(pacing="clock")
    assert bench.policy.trigger_configure() is SUCCESS
    answer = load(bench, tiny_policy.write(tmp_path / "other.onnx", OTHER))
    assert answer.success, answer.message
    assert bench.policy._control.executor.lanes.spec == OTHER
    assert bench.policy.trigger_cleanup() is SUCCESS
    assert bench.policy.trigger_configure() is SUCCESS  # and configuring anew takes the same
    assert bench.policy._slot.running.spec == OTHER


def test_the_flight_recorder_knows_a_policys_file_before_it_is_asked(make_bench: Callable[..., Any], tmp_path: Path) -> None:
    bench = make_bench(pacing="clock")
    assert bench.policy.trigger_configure() is SUCCESS
    node = bench.policy
    asked: list[bool] = []
    slot, control = node._slot, node._control

    def announce(new: LoadedPolicy) -> None:
        asked.append(control.executor.asked is new.worker)

    slot.swap(tiny_policy.write(tmp_path / "other.onnx", OTHER), control, node._buffer, node._lock, node._data_time_ns, announce)
    assert asked == [False] and control.executor.asked is slot.running.worker


def test_loading_keeps_the_ordinary_priority_and_only_the_lanes_ask_for_theirs(make_bench: Callable[..., Any], tmp_path: Path) -> None:
    """Loading takes a core for a second; at a real-time priority that core would be a driver's."""
    bench = make_bench(pacing="clock")
    asked: list[tuple[str, Role]] = []
    bench.policy.scheduler.enter = lambda role: asked.append((threading.current_thread().name, role))
    assert bench.policy.trigger_configure() is SUCCESS
    asked.clear()
    answer = load(bench, tiny_policy.write(tmp_path / "other.onnx", OTHER))
    assert answer.success, answer.message
    assert asked == [("otpr-inference-0", Role.INFERENCE)]


def test_no_thread_of_a_replaced_or_refused_policy_stays(make_bench: Callable[..., Any], tmp_path: Path) -> None:
    bench = make_bench(pacing="clock")
    assert bench.policy.trigger_configure() is SUCCESS
    lanes = [thread.name for thread in threading.enumerate() if thread.name.startswith("otpr-inference")]
    other = tiny_policy.write(tmp_path / "other.onnx", OTHER)
    slower = tmp_path / "slower.onnx"
    slower.write_bytes(tiny_policy.content(replace(OTHER, control_rate_hz=10.0)))
    for path, works in ((other, True), (slower, False), (other, True)):
        assert load(bench, path).success is works
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("otpr-inference")] == lanes
    assert bench.policy.trigger_cleanup() is SUCCESS
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("otpr-inference", "otpr-load"))]


def test_the_command_loads_a_file_and_says_in_one_line_what_became_of_it(
    make_bench: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = make_bench(pacing="clock")
    assert bench.policy.trigger_configure() is SUCCESS
    parser = argparse.ArgumentParser()
    COMMAND.add_arguments(parser)
    other = tiny_policy.write(tmp_path / "other.onnx", OTHER)
    assert COMMAND.run(parser.parse_args([str(other)])) == 0
    assert capsys.readouterr().out.startswith(f"now runs {other} ({artifact.load(other).sha256[:12]})")
    slower = tmp_path / "slower.onnx"
    slower.write_bytes(tiny_policy.content(replace(OTHER, control_rate_hz=10.0)))
    with pytest.raises(OtprError, match="it runs at 10 Hz, the running policy at 20 Hz"):
        COMMAND.run(parser.parse_args([str(slower)]))
    other.write_bytes(b"")
    with pytest.raises(ArtifactError, match="not an ONNX file"):
        COMMAND.run(parser.parse_args([str(other)]))
    assert bench.policy._slot.running.spec == OTHER


def test_a_node_that_is_not_there_is_told_long_before_a_large_policy_would_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_call, "_FOUND_S", 0.2)
    began = time.monotonic()
    with pytest.raises(OtprError, match="nobody serves /not_there/set_parameters"):
        service_call.load("/not_there", Path("any.onnx"), 60.0)
    assert time.monotonic() - began < 20.0
