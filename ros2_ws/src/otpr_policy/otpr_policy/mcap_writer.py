# SPDX-License-Identifier: Apache-2.0
"""Writing MCAP files (mcap.py) that survive being killed: what was flushed is readable, with or without the end of the file.

Uncompressed chunks with a CRC32 each, one CRC32 of the data section and one of the summary. A chunk and its indexes go out
in one write, so that a process that dies tears at most the newest one. The writer of rosbags keeps a chunk in memory until it
has a megabyte, which at a robot's rates is a quarter of a minute.
"""

import errno
import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from zlib import crc32

from otpr_policy import __version__
from otpr_policy.errors import OutputError, RecordingError
from otpr_policy.mcap import (
    HEAD,
    MAGIC,
    BadRecordError,
    Channel,
    Fields,
    Message,
    Op,
    Schema,
    body_of,
    chunk_records,
    encode_bytes,
    encode_map,
    encode_text,
    has_end,
    make_record,
    read_bytes,
    read_channel,
    read_messages,
    read_metadata,
    read_schema,
    spans,
)

CHUNK_BYTES = 1 << 20  # a chunk is closed at this size, whatever the caller's own rhythm of flushing


@dataclass(frozen=True)
class _ChunkIndex:
    first_ns: int
    last_ns: int
    offset: int
    length: int
    index_offsets: Mapping[int, int]
    index_length: int
    size: int

    def record(self) -> bytes:
        offsets = b"".join(struct.pack("<HQ", channel, offset) for channel, offset in self.index_offsets.items())
        head = struct.pack("<QQQQ", self.first_ns, self.last_ns, self.offset, self.length)
        sizes = struct.pack("<QQ", self.size, self.size)
        return make_record(Op.CHUNK_INDEX, head + encode_bytes(offsets) + struct.pack("<Q", self.index_length) + encode_text("") + sizes)


@dataclass
class _Chunk:
    """Messages on their way, and where in the chunk each channel's are."""

    records: bytearray = field(default_factory=bytearray)
    index: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def add(self, message: Message) -> None:
        self.index.setdefault(message.channel_id, []).append((message.log_time_ns, len(self.records)))
        head = struct.pack("<HIQQ", message.channel_id, message.sequence, message.log_time_ns, message.publish_time_ns)
        self.records += make_record(Op.MESSAGE, head + message.data)

    def times_ns(self) -> list[int]:
        return [time_ns for entries in self.index.values() for time_ns, _ in entries]


class McapWriter:
    """Writes one file. Not thread-safe.

    Schemas, channels and metadata are in the file when the call returns; messages when :meth:`flush` does. After an OutputError
    the file ends with the last whole record, and the same call can be made again once there is room.
    """

    def __init__(self, path: Path, profile: str) -> None:
        """Begins a new file. Raises OutputError when it exists or cannot be written."""
        self._begin(path, "xb")
        self._append(MAGIC + make_record(Op.HEADER, encode_text(profile) + encode_text(f"otpr {__version__}")))

    def _begin(self, path: Path, mode: str) -> None:
        self.path = path
        try:
            self._file = FileIO(path, mode)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error
        self._offset = 0
        self._crc = 0
        self._chunk = _Chunk()
        self._chunks: list[_ChunkIndex] = []
        self._schemas: dict[tuple[str, str, bytes], Schema] = {}
        self._channels: list[Channel] = []
        self._metadata: list[tuple[int, int, str]] = []  # offset, length, name
        self._counts: dict[int, int] = {}

    @classmethod
    def reopen(cls, path: Path) -> "McapWriter":
        """Opens a file whose writer died: the torn end is cut off, everything before it stays, and the file can be completed.

        Raises RecordingError when it is no MCAP file, is complete already, or is damaged before its end.
        """
        data = read_bytes(path)
        if has_end(data):
            raise RecordingError(f"{path} is complete; there is nothing to recover")
        writer = cls.__new__(cls)
        writer._begin(path, "r+b")
        try:
            writer._take_over(data)
        except BaseException:
            writer._file.close()
            raise
        return writer

    def add_channel(self, topic: str, schema: tuple[str, str, bytes], encoding: str, metadata: Mapping[str, str] | None = None) -> int:
        """Adds a topic and returns its id. ``schema``: name, encoding and text."""
        if schema not in self._schemas:
            made = Schema(len(self._schemas) + 1, *schema)
            self._append(made.record())
            self._schemas[schema] = made
        channel = Channel(len(self._channels) + 1, self._schemas[schema].id, topic, encoding, dict(metadata or {}))
        self._append(channel.record())
        self._channels.append(channel)
        self._counts[channel.id] = 0
        return channel.id

    def add_metadata(self, name: str, facts: Mapping[str, str]) -> None:
        """Adds named facts, after everything written so far."""
        self.flush()
        record = make_record(Op.METADATA, encode_text(name) + encode_map(facts))
        offset = self._offset
        self._append(record)
        self._metadata.append((offset, len(record), name))

    def write(
        self, channel_id: int, log_time_ns: int, data: bytes, publish_time_ns: int | None = None, sequence: int | None = None
    ) -> None:
        """Adds a message, by default published when it is logged and numbered by channel. It is in memory until the next :meth:`flush`."""
        published_ns = log_time_ns if publish_time_ns is None else publish_time_ns
        number = self._counts[channel_id] if sequence is None else sequence
        self._chunk.add(Message(channel_id, number & 0xFFFFFFFF, log_time_ns, published_ns, data))
        self._counts[channel_id] += 1
        if len(self._chunk.records) >= CHUNK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes the messages so far, as one chunk."""
        if not self._chunk.records:
            return
        times, size, start = self._chunk.times_ns(), len(self._chunk.records), self._offset
        head = struct.pack("<QQQI", min(times), max(times), size, crc32(self._chunk.records)) + encode_text("") + struct.pack("<Q", size)
        record = make_record(Op.CHUNK, head + bytes(self._chunk.records))
        indexes, offsets = _message_indexes(self._chunk, start + len(record))
        self._append(record + indexes)
        self._chunks.append(_ChunkIndex(min(times), max(times), start, len(record), offsets, len(indexes), size))
        self._chunk = _Chunk()

    def close(self) -> None:
        """Completes the file."""
        self.flush()
        self._append(make_record(Op.DATA_END, struct.pack("<I", self._crc)) + self._summary(self._offset + HEAD + 4))
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Closes the file as it is. What was flushed can be read, and the file reopened."""
        self._file.close()

    def _summary(self, start: int) -> bytes:
        groups: list[tuple[Op, bytes]] = [
            (Op.SCHEMA, b"".join(schema.record() for schema in self._schemas.values())),
            (Op.CHANNEL, b"".join(channel.record() for channel in self._channels)),
            (Op.STATISTICS, self._statistics()),
            (Op.CHUNK_INDEX, b"".join(chunk.record() for chunk in self._chunks)),
            (
                Op.METADATA_INDEX,
                b"".join(make_record(Op.METADATA_INDEX, struct.pack("<QQ", *at) + encode_text(name)) for *at, name in self._metadata),
            ),
        ]
        summary = b""
        offsets = b""
        for op, records in groups:
            if records:
                offsets += make_record(Op.SUMMARY_OFFSET, struct.pack("<BQQ", op, start + len(summary), len(records)))
            summary += records
        footer = struct.pack("<BQQQ", Op.FOOTER, 20, start, start + len(summary))
        checked = summary + offsets + footer
        return checked + struct.pack("<I", crc32(checked)) + MAGIC

    def _statistics(self) -> bytes:
        first = min((chunk.first_ns for chunk in self._chunks), default=0)
        last = max((chunk.last_ns for chunk in self._chunks), default=0)
        totals = (sum(self._counts.values()), len(self._schemas), len(self._channels), 0, len(self._metadata), len(self._chunks))
        counts = b"".join(struct.pack("<HQ", channel, count) for channel, count in self._counts.items())
        return make_record(Op.STATISTICS, struct.pack("<QHIIIIQQ", *totals, first, last) + encode_bytes(counts))

    def _append(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                written = self._file.write(left)
                if not written:
                    raise OSError(errno.ENOSPC, "No space left on device")
                left = left[written:]
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(self._offset)
                self._file.seek(self._offset)
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from error
        self._offset += len(data)
        self._crc = crc32(data, self._crc)

    def _take_over(self, data: memoryview) -> None:
        """Rebuilds what the writer that died knew, from the whole records of its file."""
        keep, missing = len(MAGIC), b""  # where the file is good up to, and what of the newest chunk's indexes is not there
        for op, start, end in spans(data):
            if op in (Op.DATA_END, Op.FOOTER):
                break
            if op != Op.MESSAGE_INDEX or not missing:
                keep = end
            try:
                body = body_of(data, start, end)
                if op == Op.HEADER:
                    _check_ours(body)
                elif op == Op.SCHEMA:
                    schema = read_schema(body)
                    self._schemas[schema.name, schema.encoding, schema.data] = schema
                elif op == Op.CHANNEL:
                    self._channels.append(read_channel(body))
                    self._counts[self._channels[-1].id] = 0
                elif op == Op.METADATA:
                    self._metadata.append((start, end - start, read_metadata(body)[0]))
                elif op == Op.CHUNK:
                    missing = self._take_over_chunk(data, start, end)
            except BadRecordError as error:
                raise RecordingError(f"{self.path} is damaged at byte {start}: {error}") from error
        if keep == len(MAGIC):
            raise RecordingError(f"{self.path} is torn before anything was recorded")
        self._file.truncate(keep)
        self._file.seek(keep)
        self._offset, self._crc = keep, crc32(data[:keep])
        self._append(missing)

    def _take_over_chunk(self, data: memoryview, start: int, end: int) -> bytes:
        """Notes a chunk, and returns its message indexes if they do not follow it whole."""
        chunk = _Chunk()
        records = chunk_records(body_of(data, start, end))
        for message in read_messages(records):
            chunk.add(message)
            self._counts[message.channel_id] += 1
        times = chunk.times_ns()
        indexes, offsets = _message_indexes(chunk, end)
        self._chunks.append(_ChunkIndex(min(times), max(times), start, end - start, offsets, len(indexes), len(records)))
        return b"" if data[end : end + len(indexes)] == indexes else indexes


def _check_ours(header: memoryview) -> None:
    fields = Fields(header)
    _profile, library = fields.text(), fields.text()
    if not library.startswith("otpr "):
        raise BadRecordError(f"it was written by {library!r}, whose order of indexes is its own")


def _metadata_index(offset: int, length: int, name: str) -> bytes:
    return make_record(Op.METADATA_INDEX, struct.pack("<QQ", offset, length) + encode_text(name))


def _message_indexes(chunk: _Chunk, start: int) -> tuple[bytes, dict[int, int]]:
    """The index records that follow a chunk which ends at ``start``, and the offset of each channel's."""
    records, offsets = b"", {}
    for channel, entries in chunk.index.items():
        offsets[channel] = start + len(records)
        body = b"".join(struct.pack("<QQ", *entry) for entry in entries)
        records += make_record(Op.MESSAGE_INDEX, struct.pack("<H", channel) + encode_bytes(body))
    return records, offsets
