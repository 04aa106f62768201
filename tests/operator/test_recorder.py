# SPDX-License-Identifier: Apache-2.0
"""Recording: what was published is in the bag, byte for byte, and rosbag2's own format reader finds it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rosbags.rosbag2 import Reader

from otpr_operator.bag import BagWriter
from otpr_policy.errors import OutputError

TYPES = {"/target_pose": "geometry_msgs/msg/PoseStamped", "/gripper_controller/commands": "std_msgs/msg/Float64MultiArray"}


def test_a_bag_gives_back_what_was_written(tmp_path: Path) -> None:
    bag = BagWriter(tmp_path / "bag", TYPES)
    written = [("/target_pose", 10 + n, bytes([0, 1, 0, 0, n])) for n in range(5)]
    for topic, stamp, message in written:
        bag.write(topic, stamp, message)
    bag.note("artifact", "abc")
    bag.close()
    with Reader(tmp_path / "bag") as reader:
        read = [(connection.topic, stamp, bytes(message)) for connection, stamp, message in reader.messages()]
        assert {connection.topic for connection in reader.connections} == set(TYPES)
    assert read == written
    assert bag.counts == {"/target_pose": 5, "/gripper_controller/commands": 0}
    assert "artifact: abc" in (tmp_path / "bag" / "metadata.yaml").read_text()


def test_a_recording_is_never_written_over(tmp_path: Path) -> None:
    BagWriter(tmp_path / "bag", TYPES).close()
    with pytest.raises(OutputError, match="exists"):
        BagWriter(tmp_path / "bag", TYPES)


@pytest.mark.ros
def test_the_recorder_process_completes_its_bag_when_it_is_interrupted(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "otpr_operator.ros.recorder", "--ros-args", "-p", "robot:=panda_twin", "-p", f"directory:={tmp_path}"],
        env={**os.environ},
    )
    try:
        deadline = time.monotonic() + 20
        while not list(tmp_path.glob("*/*.mcap")):
            assert time.monotonic() < deadline, "the recorder did not start"
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
    (directory,) = tmp_path.iterdir()
    with Reader(directory) as reader:
        assert "/policy_node/artifact" in reader.topics
