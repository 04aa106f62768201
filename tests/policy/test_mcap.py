# SPDX-License-Identifier: Apache-2.0
"""MCAP files: what was written comes back, another implementation reads it, and a torn file keeps every whole chunk."""

import struct
from collections.abc import Sequence
from io import FileIO
from pathlib import Path

import pytest
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from otpr_policy import mcap
from otpr_policy.errors import OutputError, RecordingError
from otpr_policy.mcap import read_mcap
from otpr_policy.mcap_writer import CHUNK_BYTES, McapWriter

SCHEMA = ("std_msgs/msg/String", "ros2msg", b"string data")
OTHER = ("std_msgs/msg/Bool", "ros2msg", b"bool data")
FACTS = {"robot": "panda_twin", "text": "naïve\nlines"}


def begin(path: Path) -> McapWriter:
    writer = McapWriter(path, "ros2")
    for topic, schema in (("/a", SCHEMA), ("/b", OTHER), ("/c", SCHEMA)):
        writer.add_channel(topic, schema, "cdr", {"offered_qos_profiles": "[]"})
    return writer


def write(path: Path, chunks: Sequence[int] = (3, 1, 4)) -> list[tuple[int, int, bytes]]:
    """Writes chunks of so many messages each, facts after the first, and returns the messages."""
    writer = begin(path)
    written = []
    for number, size in enumerate(chunks):
        for _ in range(size):
            n = len(written)
            written.append((1 + n % 2, 10 * n, bytes([n]) * n))
            writer.write(*written[-1])
        writer.flush()
        if number == 0:
            writer.add_metadata("facts", FACTS)
    writer.close()
    return written


def messages(path: Path) -> list[tuple[int, int, bytes]]:
    return [(message.channel_id, message.log_time_ns, message.data) for message in read_mcap(path).messages]


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    written = write(tmp_path / "x.mcap")
    content = read_mcap(tmp_path / "x.mcap")
    assert content.damage == ""
    assert content.profile == "ros2"
    assert messages(tmp_path / "x.mcap") == written
    assert [channel.topic for channel in content.channels.values()] == ["/a", "/b", "/c"]
    assert content.schemas[content.channels[3].schema_id].name == "std_msgs/msg/String"
    assert content.metadata == (("facts", FACTS),)
    assert [message.sequence for message in content.messages if message.channel_id == 1] == [0, 1, 2, 3]


def test_another_implementation_reads_what_we_write(tmp_path: Path) -> None:
    """By its index: rosbags looks up chunks and counts in the summary."""
    written = write(tmp_path / "x.mcap")
    with Reader(tmp_path / "x.mcap") as reader:
        assert {c.topic: (c.msgtype, c.msgcount) for c in reader.connections} == {
            "/a": ("std_msgs/msg/String", 4),
            "/b": ("std_msgs/msg/Bool", 4),
            "/c": ("std_msgs/msg/String", 0),
        }
        assert [(c.id, t, bytes(data)) for c, t, data in reader.messages()] == written
        assert (reader.start_time, reader.end_time) == (0, 71)
        only = [c for c in reader.connections if c.topic == "/b"]
        assert [t for _, t, _ in reader.messages(only, start=20, stop=60)] == [30, 50]


def test_we_read_what_another_implementation_writes(tmp_path: Path) -> None:
    typestore = get_typestore(Stores.ROS2_JAZZY)
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection("/a", "std_msgs/msg/String", typestore=typestore)
        for n in range(5):
            writer.write(connection, 10 + n, bytes([n]))
    content = read_mcap(tmp_path / "bag" / "bag.mcap")
    assert content.damage == ""
    assert [(m.log_time_ns, m.data) for m in content.messages] == [(10 + n, bytes([n])) for n in range(5)]
    assert {channel.topic for channel in content.channels.values()} == {"/a"}


def test_a_file_without_messages_is_a_file(tmp_path: Path) -> None:
    begin(tmp_path / "x.mcap").close()
    assert read_mcap(tmp_path / "x.mcap").damage == ""
    with Reader(tmp_path / "x.mcap") as reader:
        assert reader.message_count == 0


def chunk_ends(data: bytes) -> list[int]:
    return [end for op, _, end in mcap.spans(memoryview(data)) if op == mcap.Op.CHUNK]


def test_cut_anywhere_every_whole_chunk_stays_and_the_file_can_be_completed(tmp_path: Path) -> None:
    """At every byte: reading yields exactly the chunks that are whole, and after recovery rosbags reads the same."""
    written = write(tmp_path / "x.mcap", chunks := (2, 1, 1))
    data = (tmp_path / "x.mcap").read_bytes()
    ends = chunk_ends(data)
    header = next(end for _, _, end in mcap.spans(memoryview(data)))
    torn = tmp_path / "torn.mcap"
    for length in range(len(mcap.MAGIC), len(data)):
        torn.write_bytes(data[:length])
        expected = written[: sum(size for size, end in zip(chunks, ends, strict=True) if end <= length)]
        assert messages(torn) == expected
        assert read_mcap(torn).damage != ""
        if length < header:
            with pytest.raises(RecordingError, match="before anything"):
                McapWriter.reopen(torn)
            continue
        McapWriter.reopen(torn).close()
        assert read_mcap(torn).damage == ""
        assert messages(torn) == expected
        with Reader(torn) as reader:
            assert [(c.id, t, bytes(raw)) for c, t, raw in reader.messages()] == expected


def test_a_reopened_file_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """Cut after the second chunk and written on: the same bytes as without the cut."""
    whole, torn = tmp_path / "whole.mcap", tmp_path / "torn.mcap"
    written = write(whole)
    data = whole.read_bytes()
    torn.write_bytes(data[: chunk_ends(data)[1] + 7])
    writer = McapWriter.reopen(torn)
    for message in written[4:]:
        writer.write(*message)
    writer.close()
    assert torn.read_bytes() == data


def test_a_complete_file_is_not_reopened_and_an_existing_one_not_begun(tmp_path: Path) -> None:
    write(tmp_path / "x.mcap")
    before = (tmp_path / "x.mcap").read_bytes()
    with pytest.raises(RecordingError, match="complete"):
        McapWriter.reopen(tmp_path / "x.mcap")
    with pytest.raises(OutputError, match="exists"):
        McapWriter(tmp_path / "x.mcap", "ros2")
    assert (tmp_path / "x.mcap").read_bytes() == before


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "x.mcap", (2, 1))
    data = (tmp_path / "x.mcap").read_bytes()
    for position in range(len(mcap.MAGIC), len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        (tmp_path / "y.mcap").write_bytes(damaged)
        assert read_mcap(tmp_path / "y.mcap").damage != "", f"byte {position}"


def test_a_damaged_chunk_is_left_out_and_named_and_the_others_stay(tmp_path: Path) -> None:
    written = write(tmp_path / "x.mcap")
    data = bytearray((tmp_path / "x.mcap").read_bytes())
    data[chunk_ends(bytes(data))[1] - 1] ^= 1
    (tmp_path / "x.mcap").write_bytes(data)
    assert messages(tmp_path / "x.mcap") == written[:3] + written[4:]
    assert "chunk's checksum" in read_mcap(tmp_path / "x.mcap").damage


def test_a_chunk_is_written_when_it_is_large_without_being_asked(tmp_path: Path) -> None:
    writer = begin(tmp_path / "x.mcap")
    writer.write(1, 0, bytes(CHUNK_BYTES))
    writer.abandon()
    assert len(read_mcap(tmp_path / "x.mcap").messages) == 1


class FullDisk:
    """A file that takes so many bytes and no more, as a disk does: part of a write goes in, the next one fails."""

    def __init__(self, file: FileIO, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: memoryview) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        taken = self.file.write(data[: self.room])
        self.room -= taken
        return taken

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 1, 30])
def test_a_full_disk_leaves_whole_chunks_and_room_lets_the_writer_go_on(tmp_path: Path, room: int) -> None:
    writer = begin(tmp_path / "x.mcap")
    writer.write(1, 5, b"first")
    writer.flush()
    disk = FullDisk(writer._file, room)
    writer._file = disk  # type: ignore[assignment]
    writer.write(1, 6, b"second")
    size = (tmp_path / "x.mcap").stat().st_size
    with pytest.raises(OutputError, match="No space left"):
        writer.flush()
    assert (tmp_path / "x.mcap").stat().st_size == size, "part of a record was left behind"
    assert messages(tmp_path / "x.mcap") == [(1, 5, b"first")]
    disk.room = 10_000
    writer.close()
    assert messages(tmp_path / "x.mcap") == [(1, 5, b"first"), (1, 6, b"second")]
    assert read_mcap(tmp_path / "x.mcap").damage == ""


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "not an MCAP"), (b"\x89MCAP0\r", "not an MCAP"), (b"\x89HDF\r\n\x1a\n" * 9, "not an MCAP"), (None, "cannot read")],
)
def test_what_is_no_mcap_file_is_refused_in_one_line(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "x.mcap"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecordingError, match=reason) as error:
        read_mcap(path)
    assert "\n" not in str(error.value)


def test_lengths_that_lie_do_not_take_memory_or_crash(tmp_path: Path) -> None:
    for length in (2**63, 2**64 - 1, 10**9):
        (tmp_path / "x.mcap").write_bytes(mcap.MAGIC + struct.pack("<BQ", mcap.Op.CHUNK, length) + b"short")
        assert read_mcap(tmp_path / "x.mcap").messages == ()
