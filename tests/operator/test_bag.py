# SPDX-License-Identifier: Apache-2.0
"""Recordings on disk: rosbag2's own format reader finds what was written, and no kill or full disk takes more than a second of it."""

import mmap
import os
import random
import signal
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import pytest
from rosbags.rosbag2 import Reader

from otpr_operator.bag import BagWriter, recover, unfinished
from otpr_policy.contract import contract_text
from otpr_policy.errors import OutputError, RecordingError
from otpr_policy.mcap import read_mcap
from otpr_policy.mcap_writer import McapWriter
from otpr_policy.recording import BEGIN, Ending, Verdict, read_recording

TYPES = {"/target_pose": "geometry_msgs/msg/PoseStamped", "/gripper_controller/commands": "std_msgs/msg/Float64MultiArray"}
KILLS = 200
PERIOD_NS = 5_000_000


def facts() -> dict[str, str]:
    return {"robot": "panda_twin", "contract": contract_text("panda_twin")}


def begin(directory: Path, clock: object = time.monotonic) -> BagWriter:
    return BagWriter(directory, TYPES, facts(), clock)  # type: ignore[arg-type]


def times(directory: Path) -> list[int]:
    (file,) = directory.glob("*.mcap")
    return [message.log_time_ns for message in read_mcap(file).messages]


def test_a_bag_gives_back_what_was_written(tmp_path: Path) -> None:
    bag = begin(tmp_path / "bag")
    written = [("/target_pose", 10 + n, bytes([0, 1, 0, 0, n])) for n in range(5)]
    for topic, stamp, message in written:
        bag.write(topic, stamp, message)
    bag.close(Verdict.SUCCESS, Ending.SAVED)
    with Reader(tmp_path / "bag") as reader:
        read = [(connection.topic, stamp, bytes(message)) for connection, stamp, message in reader.messages()]
        assert {connection.topic for connection in reader.connections} == set(TYPES)
        assert (reader.start_time, reader.end_time, reader.message_count) == (10, 15, 5)
    assert read == written
    assert bag.counts == {"/target_pose": 5, "/gripper_controller/commands": 0}
    metadata = (tmp_path / "bag" / "metadata.yaml").read_text()
    assert "verdict: success" in metadata
    assert "robot: panda_twin" in metadata
    assert sorted(path.name for path in (tmp_path / "bag").iterdir()) == ["bag.mcap", "metadata.yaml"]


def test_a_recording_is_never_written_over(tmp_path: Path) -> None:
    begin(tmp_path / "bag").close(Verdict.UNJUDGED, Ending.SAVED)
    with pytest.raises(OutputError, match="exists"):
        begin(tmp_path / "bag")


def test_what_is_half_a_second_old_is_in_the_file(tmp_path: Path) -> None:
    """With a clock that the test holds: messages, and silence that is told by keep_up."""
    now = [0.0]
    bag = begin(tmp_path / "bag", lambda: now[0])
    for n in range(100):
        now[0] = n * 0.1
        bag.write("/target_pose", n, b"x")
        assert len(times(tmp_path / "bag")) >= n - 5
    now[0] += 0.6
    bag.keep_up()
    assert len(times(tmp_path / "bag")) == 100


def test_an_unfinished_recording_is_found_read_and_completed_once(tmp_path: Path) -> None:
    bag = begin(tmp_path / "bag")
    bag.write("/target_pose", 5, b"x")
    bag.flush()
    assert unfinished(tmp_path) == [tmp_path / "bag"]
    assert read_recording(tmp_path / "bag").ending is Ending.KILLED
    assert "no end" in read_recording(tmp_path / "bag").damage
    recover(tmp_path / "bag")
    assert unfinished(tmp_path) == []
    assert read_recording(tmp_path / "bag").damage == ""
    assert read_recording(tmp_path / "bag").ending is Ending.KILLED
    with Reader(tmp_path / "bag") as reader:
        assert reader.message_count == 1
    with pytest.raises(RecordingError, match="complete"):
        recover(tmp_path / "bag")


def test_what_is_no_episode_is_refused_in_one_line(tmp_path: Path) -> None:
    McapWriter(tmp_path / "foreign.mcap", "ros2").close()
    writer = McapWriter(tmp_path / "newer.mcap", "ros2")
    writer.add_metadata(BEGIN, {"layout": "2"})
    writer.close()
    for name, reason in (("foreign.mcap", "not a recorded episode"), ("newer.mcap", "layout '2'"), ("none", "cannot read")):
        with pytest.raises(RecordingError, match=reason) as error:
            read_recording(tmp_path / name)
        assert "\n" not in str(error.value)


class FullDisk:
    """A file that takes so many bytes more, and as many again once something was deleted."""

    def __init__(self, file: FileIO, room: int, reserve: Path) -> None:
        self.file, self.room, self.reserve = file, room, reserve

    def write(self, data: memoryview) -> int:
        if not self.reserve.exists():
            return self.file.write(data)
        if not self.room:
            raise OSError(28, "No space left on device")
        taken = self.file.write(data[: self.room])
        self.room -= taken
        return taken

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)


def test_on_a_full_disk_the_recording_is_completed_in_the_room_set_aside(tmp_path: Path) -> None:
    now = [0.0]
    bag = begin(tmp_path / "bag", lambda: now[0])
    bag._writer._file = FullDisk(bag._writer._file, 2000, tmp_path / "bag/.reserve")  # type: ignore[assignment]
    with pytest.raises(OutputError, match="No space left"):
        for n in range(1000):
            now[0] = n * 0.1
            bag.write("/target_pose", n, bytes(20))
    recorded = bag.counts["/target_pose"]
    bag.close(Verdict.UNJUDGED, Ending.DISK_FULL)
    assert read_recording(tmp_path / "bag").ending is Ending.DISK_FULL
    with Reader(tmp_path / "bag") as reader:
        assert reader.message_count >= recorded > 10


def test_a_recording_that_cannot_even_begin_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise OutputError("No space left on device")

    monkeypatch.setattr(McapWriter, "add_channel", full)
    with pytest.raises(OutputError):
        begin(tmp_path / "bag")
    assert list(tmp_path.iterdir()) == []


@contextmanager
def shared_counter() -> Iterator[mmap.mmap]:
    """Eight bytes that a child writes and its parent reads."""
    memory = mmap.mmap(-1, 8)
    yield memory
    memory.close()


def record_until_killed(directory: Path, accepted: mmap.mmap) -> None:
    """Records two hundred messages per second of a clock that runs as fast as the machine, and notes which were taken."""
    now = [0.0]
    bag = begin(directory, lambda: now[0])
    n = 0
    while True:
        now[0] = n * PERIOD_NS / 1e9
        bag.write("/target_pose", n * PERIOD_NS, bytes(64))
        accepted[:] = struct.pack("<q", n * PERIOD_NS)
        n += 1


def test_two_hundred_kills_at_random_moments_each_lose_less_than_a_second(tmp_path: Path) -> None:
    """Readable every time; recovered, it is a bag with everything up to a second before the kill."""
    begin(tmp_path / "first").discard()  # so that a child begins at once
    rng = random.Random(6)
    worst_s = 0.0
    cut = 0
    for number in range(KILLS):
        directory = tmp_path / f"{number}"
        with shared_counter() as accepted:
            child = os.fork()
            if child == 0:
                try:
                    record_until_killed(directory, accepted)
                finally:
                    os._exit(1)
            while not accepted[:].strip(b"\0"):
                time.sleep(0.001)
            time.sleep(rng.uniform(0.0, 0.02))
            os.kill(child, signal.SIGKILL)
            assert os.waitpid(child, 0)[1] == signal.SIGKILL
            (last_ns,) = struct.unpack("<q", accepted[:])
        found = times(directory)
        assert found == [n * PERIOD_NS for n in range(len(found))]
        worst_s = max(worst_s, (last_ns - (found[-1] if found else 0)) / 1e9)
        cut += last_ns > 500_000_000
        recover(directory)
        with Reader(directory) as reader:
            assert reader.message_count == len(found)
    assert worst_s < 1.0
    assert cut > KILLS / 2, "most writers were killed before they had written anything, which proves nothing"
    print(f"\n{KILLS} kills, at most {worst_s:.3f} s lost")
