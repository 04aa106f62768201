# SPDX-License-Identifier: Apache-2.0
"""The recorder's process, against real ROS 2: what was published is in the episode, byte for byte, and survives a kill."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rclpy
from geometry_msgs.msg import PoseStamped
from rclpy.context import Context
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.rosbag2 import Reader
from std_msgs.msg import String
from std_srvs.srv import Trigger

from otpr_operator.bag import recover, unfinished
from otpr_operator.ros.recorder import RecorderNode
from otpr_policy.recording import Ending, Verdict, read_recording
from otpr_policy.ros.messages import LATCHED_QOS, ns_to_stamp, set_pose

pytestmark = pytest.mark.ros
IDENTITY = json.dumps({"sha256": "ab" * 32, "task": "lift", "algorithm": "bc"})


class Operator:
    """A node that publishes a hand's pose, watches the recorder, and calls its services."""

    def __init__(self) -> None:
        self._context = Context()
        rclpy.init(context=self._context)
        self.node = Node("operator", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self.status: dict[str, Any] = {}
        self.node.create_subscription(String, "/recorder/status", lambda message: self.status.update(json.loads(message.data)), LATCHED_QOS)
        self.poses = self.node.create_publisher(PoseStamped, "/ee_pose", 1000)  # a busy machine shall lose few
        self.commands = self.node.create_publisher(String, "/recorder/command", 10)
        self._identity = self.node.create_publisher(String, "/policy_node/artifact", LATCHED_QOS)
        self._identity.publish(String(data=IDENTITY))
        self.sent: list[bytes] = []

    def wait_for(self, condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, f"waited for {what}; {self.status}"
            self._executor.spin_once(timeout_sec=0.02)

    def publish(self, count: int, period_s: float = 0.005) -> None:
        self.wait_for(lambda: self.poses.get_subscription_count() == 1, "the recorder to listen")
        for _ in range(count):
            message = PoseStamped()
            message.header.stamp = ns_to_stamp(int(self.node.get_clock().now().nanoseconds))
            message.header.frame_id = "panda_link0"
            set_pose(message.pose, np.array([0.5, 0.0, 0.1 + 1e-4 * len(self.sent)]), np.array([1.0, 0.0, 0.0, 0.0]))
            self.sent.append(bytes(serialize_message(message)))
            self.poses.publish(message)
            time.sleep(period_s)

    def call(self, action: str) -> Trigger.Response:
        client = self.node.create_client(Trigger, f"/recorder/{action}")
        self.wait_for(client.service_is_ready, f"service {action}")
        future = client.call_async(Trigger.Request())
        self.wait_for(future.done, f"an answer to {action}")
        self.node.destroy_client(client)
        return future.result()

    def received(self) -> int:
        return int(self.status.get("received", {}).get("/ee_pose", 0))

    def close(self) -> None:
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown(context=self._context)


@pytest.fixture
def operator() -> Iterator[Operator]:
    made = Operator()
    yield made
    made.close()


@pytest.fixture
def start_recorder(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []

    def start(autostart: bool = False, **options: Any) -> subprocess.Popen[bytes]:
        values = {"robot": "panda_twin", "directory": str(tmp_path), "autostart": autostart}
        words = [word for key, value in values.items() for word in ("-p", f"{key}:={json.dumps(value)}")]
        processes.append(subprocess.Popen([sys.executable, "-m", "otpr_operator.ros.recorder", "--ros-args", *words], **options))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def wait_for_file(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob("*/*.mcap")):
        assert time.monotonic() < deadline, "the recorder did not start"
        assert process.poll() is None
        time.sleep(0.05)


def test_an_unattended_recorder_completes_its_episode_when_it_is_interrupted_and_says_what_the_checks_found(
    tmp_path: Path, start_recorder: Any, operator: Operator
) -> None:
    states = operator.node.create_publisher(String, "/policy_node/state", LATCHED_QOS)
    states.publish(String(data="HOLD: the device is gone"))
    process = start_recorder(autostart=True, stderr=subprocess.PIPE)
    wait_for_file(tmp_path, process)
    operator.wait_for(lambda: operator.status.get("received", {}).get("/policy_node/state"), "the state to be recorded")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 0
    assert b"HOLD after " in said and b" s: the device is gone" in said
    assert b"/joint_states never came" in said
    (directory,) = tmp_path.iterdir()
    with Reader(directory) as reader:
        assert "/policy_node/artifact" in reader.topics
    assert read_recording(directory).ending is Ending.INTERRUPTED


def test_what_has_come_and_was_not_read_yet_is_recorded_when_all_ends(
    tmp_path: Path, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", os.fdopen(os.open(os.devnull, os.O_RDONLY)))  # no terminal
    words = {"robot": "panda_twin", "directory": str(tmp_path), "autostart": True}
    arguments = [word for key, value in words.items() for word in ("-p", f"{key}:={json.dumps(value)}")]
    context = Context()
    rclpy.init(context=context, args=["--ros-args", *arguments])
    recorder = RecorderNode(context=context)  # nobody spins it
    told = ["ENGAGED", "HOLD: the device is gone", "READY: shut down"]
    states = operator.node.create_publisher(String, "/policy_node/state", LATCHED_QOS)
    operator.wait_for(lambda: states.get_subscription_count() == 1, "the recorder to listen")
    for state in told:
        states.publish(String(data=state))
        assert states.wait_for_all_acked(Duration(seconds=10))
    recorder.close()
    recorder.destroy_node()
    rclpy.try_shutdown(context=context)
    (directory,) = tmp_path.iterdir()
    with Reader(directory) as reader:
        connections = [connection for connection in reader.connections if connection.topic == "/policy_node/state"]
        recorded = [deserialize_message(bytes(message), String).data for _, _, message in reader.messages(connections)]
    assert recorded == told


def test_episodes_are_started_judged_saved_and_discarded_by_service_and_by_topic(
    tmp_path: Path, start_recorder: Any, operator: Operator
) -> None:
    """Three episodes: one saved by services, one discarded, one started and ended by topic. What was sent is what is stored."""
    start_recorder()
    assert not operator.call("save").success
    operator.publish(1)
    assert operator.call("start").success
    operator.sent.clear()
    operator.publish(60)
    operator.wait_for(lambda: operator.received() >= 45, "most of 60 poses")
    assert not operator.call("start").success
    assert operator.call("success").success
    assert operator.status["phase"] == "review"
    assert any("/joint_states never came" in problem for problem in operator.status["problems"])
    assert operator.call("save").success
    assert operator.call("start").success
    assert operator.call("discard").success
    for word in ("start", "failure", "save"):
        before = operator.status["phase"]
        operator.commands.publish(String(data=word))
        operator.wait_for(lambda phase=before: operator.status["phase"] != phase, f"the answer to {word}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["episode_0000", "episode_0001"]
    recording = read_recording(tmp_path / "episode_0000")
    assert (recording.verdict, recording.ending, recording.damage) == (Verdict.SUCCESS, Ending.SAVED, "")
    stored = list(recording.topics["/ee_pose"].messages)
    kept = iter(operator.sent)
    assert all(message in kept for message in stored), "stored is what was sent, in this order"
    (report,) = (entry for entry in recording.report["topics"] if entry["topic"] == "/ee_pose")
    assert 45 <= report["received"] == len(stored) <= report["expected"] <= 60
    assert recording.artifacts == (json.loads(IDENTITY),)
    assert recording.contract.robot == "panda_twin"
    assert len(recording.facts["git_commit"]) >= 7
    heights = recording.field("ee_position").values[:, 2]
    np.testing.assert_allclose(np.round((heights - 0.1) / 1e-4) * 1e-4 + 0.1, heights, atol=1e-12)
    assert read_recording(tmp_path / "episode_0001").verdict is Verdict.FAILURE


def test_a_killed_recorder_loses_less_than_a_second(tmp_path: Path, start_recorder: Any, operator: Operator) -> None:
    process = start_recorder(autostart=True)
    operator.publish(300)
    operator.wait_for(lambda: operator.received() >= 200, "most of the poses")
    killed_ns = time.time_ns()
    process.kill()
    process.wait()
    (directory,) = unfinished(tmp_path)
    recording = read_recording(directory)
    assert recording.ending is Ending.KILLED
    assert killed_ns - recording.topics["/ee_pose"].received_ns[-1] < 1e9
    recover(directory)
    with Reader(directory) as reader:
        assert reader.message_count >= len(recording.topics["/ee_pose"].messages)


def test_keys_drive_the_recorder_over_a_pseudo_terminal(tmp_path: Path, start_recorder: Any, operator: Operator) -> None:
    """s, y, space: an episode is saved as a success. The terminal is given back."""
    ours, theirs = os.openpty()

    before = termios.tcgetattr(theirs)
    process = start_recorder(stdin=theirs, stderr=theirs, start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
    operator.wait_for(lambda: operator.status.get("phase") == "idle", "the recorder")
    for key, phase in (("s", "recording"), ("y", "review"), ("x", "review"), (" ", "idle")):
        os.write(ours, key.encode())
        operator.wait_for(lambda wanted=phase: operator.status["phase"] == wanted, f"{phase} after {key!r}")
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert termios.tcgetattr(theirs) == before
    assert b"y success" in os.read(ours, 65536)
    assert read_recording(tmp_path / "episode_0000").verdict is Verdict.SUCCESS
