# SPDX-License-Identifier: Apache-2.0
"""The flight recorder in the live node: a stop leaves a file, and the file yields every action again."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import contracts
import numpy as np
import pytest
import tiny_policy
from rclpy.lifecycle import TransitionCallbackReturn
from std_srvs.srv import SetBool, Trigger

from otpr_policy.artifact import load
from otpr_policy.flight_file import read_flight
from otpr_policy.inference import OnnxPolicy
from otpr_policy.replay import replay
from otpr_policy.ros.messages import pose_position

pytestmark = pytest.mark.ros
PERIOD_NS = 50_000_000
SUCCESS = TransitionCallbackReturn.SUCCESS


def start(bench: Any) -> None:
    assert bench.policy.trigger_configure() is SUCCESS
    assert bench.policy.trigger_activate() is SUCCESS
    bench.wait_until_connected()


def engage(bench: Any) -> None:
    """While the robot publishes: the answer of a busy machine takes longer than an observation is good for."""
    done = threading.Event()

    def publish() -> None:
        while not done.wait(0.01):
            bench.robot.publish()

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        answer = None
        deadline = time.monotonic() + 10
        while answer is None or not answer.success:
            assert time.monotonic() < deadline, answer
            answer = bench.call(SetBool, "/policy_node/engage", SetBool.Request(data=True))
    finally:
        done.set()
        thread.join()


def stream(bench: Any, seconds: float, only: tuple[str, ...] | None = None) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        bench.robot.state.ee_position = bench.robot.state.ee_position + np.array([1e-4, -2e-4, 1e-4])
        bench.robot.publish(only=only)
        time.sleep(0.01)


def saved(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "flights").glob("flight_*.mcap"))


def again(bench: Any, path: Path) -> Any:
    artifact = load(Path(bench.policy.parameters.policy))
    return replay(read_flight(path).log, {artifact.sha256: OnnxPolicy.from_artifact(artifact)})


def test_a_stop_is_saved_with_its_reason_and_replays_exactly(make_bench: Callable[..., Any], tmp_path: Path) -> None:
    bench = make_bench(pacing="clock")
    start(bench)
    engage(bench)
    stream(bench, 1.0)
    stream(bench, 1.2, only=("/ee_pose", "/joint_states"))  # the cube's tracker is dead: hold, then stop
    bench.wait_for(lambda: saved(tmp_path), "the flight")
    (path,) = saved(tmp_path)
    flight = read_flight(path)
    assert flight.facts["reason"].startswith("STOPPED: ")
    assert flight.log.ticks[-1].state == "STOPPED"
    assert {tick.state for tick in flight.log.ticks} >= {"READY", "ENGAGED", "STOPPED"}
    assert json.loads(flight.facts["policy_paths"]) == {load(Path(bench.policy.parameters.policy)).sha256: bench.policy.parameters.policy}
    assert "stop_after_s: 0.5" in flight.facts["contract"]
    sent = [tick.target.position for tick in flight.log.ticks if tick.target is not None]
    came = [pose_position(pose.pose) for pose in bench.robot.poses]
    assert came  # not all: the robot keeps the newest only, and the machine may be busy
    assert {tuple(position) for position in came} <= {tuple(position) for position in sent}
    report = again(bench, path)
    assert report.exact
    assert report.actions == len(sent) >= 5
    assert report.chunks >= 2
    assert report.uncovered_actions == 0
    assert report.missing_chunks <= 1  # one may be under way when the robot stops
    stream(bench, 0.3)
    assert len(saved(tmp_path)) == 1, "one stop, one flight"


def test_a_flight_is_saved_on_request_while_the_robot_moves_on(make_bench: Callable[..., Any], tmp_path: Path) -> None:
    """In lockstep, where each observation makes one tick: the flight holds the observations that were sent."""
    bench = make_bench(pacing="observation")
    start(bench)
    stamp = bench.robot.publish(1_000_000_000)
    bench.wait_for(lambda: bench.policy._buffer.complete_until_ns == stamp, "the first observation")
    assert bench.call(SetBool, "/policy_node/engage", SetBool.Request(data=True)).success
    for tick in range(10):
        bench.wait_for(lambda n=tick: len(bench.robot.poses) > n, f"command {tick}")
        bench.robot.state.cube_position = bench.robot.state.cube_position + 0.001
        stamp = bench.robot.publish(stamp + PERIOD_NS)
    bench.wait_for(lambda: len(bench.robot.poses) == 11, "the last command")
    answer = bench.call(Trigger, "/policy_node/save", Trigger.Request())
    assert answer.success
    bench.wait_for(lambda: saved(tmp_path), "the flight")
    assert saved(tmp_path) == [Path(answer.message)]
    flown = [tick for tick in read_flight(saved(tmp_path)[0]).log.ticks if tick.target is not None]
    cubes = [tick.observation.values["cube_position"][0] for tick in flown if tick.observation is not None]
    np.testing.assert_allclose(cubes, 0.45 + 0.001 * np.arange(11), atol=1e-15)
    assert [tick.data_ns for tick in flown] == [1_000_000_000 + n * PERIOD_NS for n in range(11)]
    assert again(bench, saved(tmp_path)[0]).exact


def test_a_node_that_is_ended_at_once_still_writes_the_flight(make_bench: Callable[..., Any], tmp_path: Path) -> None:
    bench = make_bench(pacing="clock")
    start(bench)
    stream(bench, 0.2)
    assert bench.call(Trigger, "/policy_node/save", Trigger.Request()).success
    bench.policy.close()
    assert len(saved(tmp_path)) == 1
    assert "otpr-flight-writer" not in {thread.name for thread in threading.enumerate()}


def test_a_stop_by_the_watchdog_is_saved_while_the_control_thread_hangs(make_bench: Callable[..., Any], tmp_path: Path) -> None:
    bench = make_bench(pacing="clock")
    start(bench)
    engage(bench)
    go_on = threading.Event()
    tick = bench.policy._control.tick

    def hang(*arguments: Any) -> Any:
        go_on.wait(20)
        return tick(*arguments)

    bench.policy._control.tick = hang
    try:
        bench.wait_for(lambda: saved(tmp_path), "the flight of a node that hangs")
        assert not go_on.is_set()
        assert read_flight(saved(tmp_path)[0]).facts["reason"].startswith("STOPPED: ")
    finally:
        go_on.set()
    stream(bench, 0.5)
    assert len(saved(tmp_path)) == 1, "one stop, one flight"


def test_the_process_ends_with_status_0_and_leaves_no_thread_to_crash_in(tmp_path: Path) -> None:
    """A thread that still runs policies while Python ends takes the process down with SIGABRT."""
    policy = tiny_policy.write(tmp_path / "tiny.onnx")
    values = {"policy": str(policy), "robot": contracts.write(tmp_path / "robot.yaml"), "autostart": True}
    words = [word for key, value in values.items() for word in ("-p", f"{key}:={json.dumps(value)}")]
    process = subprocess.Popen(
        [sys.executable, "-m", "otpr_policy.ros.node", "--ros-args", *words], stderr=subprocess.PIPE, encoding="utf-8"
    )
    try:
        assert process.stderr is not None
        assert any("engage with ~/engage" in line for line in process.stderr)
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def test_what_cannot_be_written_is_an_error_in_the_log_and_nothing_else(make_bench: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    bench = make_bench(pacing="clock", flight_directory=str(tmp_path / "file/flights"))
    start(bench)
    engage(bench)
    assert bench.call(Trigger, "/policy_node/save", Trigger.Request()).success
    stream(bench, 0.5)
    assert bench.policy._control.state.value == "ENGAGED"
    assert len(bench.robot.poses) >= 5


@pytest.mark.parametrize("parameter", [{"flight_seconds": 0.0}, {"flight_seconds": -1.0}, {"flight_seconds": 1e9}, {"flight_files": 0}])
def test_settings_that_mean_nothing_are_refused_at_configure(make_bench: Callable[..., Any], parameter: dict[str, Any]) -> None:
    node = make_bench(**parameter).policy
    assert node.trigger_configure() is TransitionCallbackReturn.FAILURE
    assert next(iter(parameter)) in node.failure
