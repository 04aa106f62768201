# SPDX-License-Identifier: Apache-2.0
"""The records of MCAP files, and a reader that takes what is whole of a torn one.

    magic | header | schemas, channels, metadata, chunk + its message indexes, ... | data end | summary | footer | magic

Format: https://mcap.dev/spec (version 0), without compression. mcap_writer.py writes such files.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from zlib import crc32

from otpr_policy.errors import RecordingError

MAGIC = b"\x89MCAP0\r\n"
HEAD = 9  # opcode and length of a record


class Op(IntEnum):
    """Opcodes of the records."""

    HEADER = 0x01
    FOOTER = 0x02
    SCHEMA = 0x03
    CHANNEL = 0x04
    MESSAGE = 0x05
    CHUNK = 0x06
    MESSAGE_INDEX = 0x07
    CHUNK_INDEX = 0x08
    STATISTICS = 0x0B
    METADATA = 0x0C
    METADATA_INDEX = 0x0D
    SUMMARY_OFFSET = 0x0E
    DATA_END = 0x0F


@dataclass(frozen=True)
class Schema:
    """How the messages of a channel are to be understood, such as the text of a ROS message definition."""

    id: int
    name: str
    encoding: str
    data: bytes

    def record(self) -> bytes:
        """The bytes of its record."""
        return make_record(
            Op.SCHEMA, struct.pack("<H", self.id) + encode_text(self.name) + encode_text(self.encoding) + encode_bytes(self.data)
        )


@dataclass(frozen=True)
class Channel:
    """A topic with its schema."""

    id: int
    schema_id: int
    topic: str
    encoding: str
    metadata: Mapping[str, str]

    def record(self) -> bytes:
        """The bytes of its record."""
        head = struct.pack("<HH", self.id, self.schema_id)
        return make_record(Op.CHANNEL, head + encode_text(self.topic) + encode_text(self.encoding) + encode_map(self.metadata))


@dataclass(frozen=True)
class Message:
    """One message; times in nanoseconds since 1970."""

    channel_id: int
    sequence: int
    log_time_ns: int
    publish_time_ns: int
    data: bytes


@dataclass(frozen=True)
class McapContent:
    """What a file holds, in file order. ``damage`` says why it is not whole, and is empty when every checksum fits."""

    profile: str
    schemas: Mapping[int, Schema]
    channels: Mapping[int, Channel]
    messages: tuple[Message, ...]
    metadata: tuple[tuple[str, Mapping[str, str]], ...]
    damage: str


def read_mcap(path: Path) -> McapContent:
    """Reads a file, up to where it is torn if it is. A chunk whose checksum is wrong is left out and named in ``damage``.

    Raises RecordingError when there is no such file or it is no MCAP file.
    """
    return _Reader(read_bytes(path)).content()


class _Reader:
    """What has been found so far of one file's content."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._profile = ""
        self._schemas: dict[int, Schema] = {}
        self._channels: dict[int, Channel] = {}
        self._messages: list[Message] = []
        self._metadata: list[tuple[str, Mapping[str, str]]] = []
        self._checked: list[Op] = []  # data end and footer, when they were found
        self._damage: list[str] = []

    def content(self) -> McapContent:
        for op, start, end in spans(self._data):
            try:
                self._take(op, body_of(self._data, start, end))
                if op in (Op.DATA_END, Op.FOOTER):
                    self._check_end(op, start, end)
            except BadRecordError as error:
                self._damage.append(f"damaged at byte {start}: {error}")
        if not has_end(self._data):
            self._damage.append("the file has no end, as after a crash")
        elif self._checked != [Op.DATA_END, Op.FOOTER]:
            self._damage.append("records are damaged")
        known = [message for message in self._messages if message.channel_id in self._channels]
        if len(known) < len(self._messages):
            self._damage.append("messages of channels that the file does not describe")
        metadata = tuple(self._metadata)
        return McapContent(self._profile, self._schemas, self._channels, tuple(known), metadata, "; ".join(self._damage))

    def _take(self, op: int, body: memoryview) -> None:
        if op == Op.HEADER:
            self._profile = Fields(body).text()
        elif op == Op.SCHEMA:
            schema = read_schema(body)
            self._schemas[schema.id] = schema
        elif op == Op.CHANNEL:
            channel = read_channel(body)
            self._channels[channel.id] = channel
        elif op == Op.MESSAGE:
            self._messages.append(read_message(body))
        elif op == Op.METADATA:
            self._metadata.append(read_metadata(body))
        elif op == Op.CHUNK:
            records = chunk_records(body)
            for inner, start, end in spans(records, 0):
                if inner != Op.CHUNK:
                    self._take(inner, body_of(records, start, end))

    def _check_end(self, op: int, start: int, end: int) -> None:
        fields = Fields(body_of(self._data, start, end))
        if op == Op.DATA_END:
            check(self._data[:start], fields.number("I"), "the data section's checksum is wrong")
        else:
            summary, _offsets, checksum = fields.number("Q"), fields.number("Q"), fields.number("I")
            check(self._data[summary : end - 4], checksum, "the summary's checksum is wrong")
        self._checked.append(Op(op))


class BadRecordError(ValueError):
    """A record that does not hold what its kind says."""


class Fields:
    """Takes one field after the other from a record, and refuses to run over its end."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> memoryview:
        """The next ``size`` bytes."""
        if size > len(self._data) - self._at:
            raise BadRecordError("a field runs over the end of its record")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, kind: str, at: int | None = None) -> int:
        """The next little-endian integer, of one of struct's kinds; ``at`` goes there first."""
        self._at = self._at if at is None else at
        return int(struct.unpack("<" + kind, self.take(struct.calcsize("<" + kind)))[0])

    def text(self) -> str:
        """The next text."""
        try:
            return str(self.take(self.number("I")), "utf-8")
        except UnicodeDecodeError as error:
            raise BadRecordError("a text is not UTF-8") from error

    def mapping(self) -> dict[str, str]:
        """The next mapping of texts."""
        inside = Fields(self.take(self.number("I")))
        found = {}
        while inside._at < len(inside._data):
            key = inside.text()
            found[key] = inside.text()
        return found

    def rest(self) -> memoryview:
        """What is left."""
        return self.take(len(self._data) - self._at)


def read_bytes(path: Path) -> memoryview:
    """A file that begins as MCAP does. Raises RecordingError."""
    try:
        data = memoryview(Path(path).read_bytes())
    except OSError as error:
        raise RecordingError(f"cannot read {path}: {error.strerror}") from error
    if data[: len(MAGIC)] != MAGIC:
        raise RecordingError(f"{path} is not an MCAP file")
    return data


def has_end(data: memoryview) -> bool:
    """Whether the last bytes are those of a complete file."""
    return len(data) >= 2 * len(MAGIC) and data[-len(MAGIC) :] == MAGIC


def spans(data: memoryview, start: int = len(MAGIC)) -> Iterator[tuple[int, int, int]]:
    """Opcode, start and end of every whole record."""
    while start + HEAD <= len(data):
        op, length = struct.unpack_from("<BQ", data, start)
        end = start + HEAD + length
        if end > len(data):
            return
        yield op, start, end
        if op == Op.FOOTER:
            return
        start = end


def body_of(data: memoryview, start: int, end: int) -> memoryview:
    """A record's content, given the record's span."""
    return data[start + HEAD : end]


def check(data: memoryview, checksum: int, complaint: str) -> None:
    """Raises BadRecordError unless the CRC32 is this one; 0 says that none was computed."""
    if checksum and crc32(data) != checksum:
        raise BadRecordError(complaint)


def read_schema(body: memoryview) -> Schema:
    """Parses a schema record."""
    fields = Fields(body)
    return Schema(fields.number("H"), fields.text(), fields.text(), bytes(fields.take(fields.number("I"))))


def read_channel(body: memoryview) -> Channel:
    """Parses a channel record."""
    fields = Fields(body)
    return Channel(fields.number("H"), fields.number("H"), fields.text(), fields.text(), fields.mapping())


def read_metadata(body: memoryview) -> tuple[str, dict[str, str]]:
    """Parses a metadata record: its name and its entries."""
    fields = Fields(body)
    return fields.text(), fields.mapping()


def read_message(body: memoryview) -> Message:
    """Parses a message record."""
    fields = Fields(body)
    return Message(fields.number("H"), fields.number("I"), fields.number("Q"), fields.number("Q"), bytes(fields.rest()))


def read_messages(records: memoryview) -> Iterator[Message]:
    """The messages among a chunk's records."""
    return (read_message(body_of(records, start, end)) for op, start, end in spans(records, 0) if op == Op.MESSAGE)


def chunk_records(body: memoryview) -> memoryview:
    """The records in a chunk, checked. Raises BadRecordError when they are damaged or compressed."""
    fields = Fields(body)
    checksum = fields.number("I", 24)
    compression = fields.text()
    if compression:
        raise BadRecordError(f"the chunk is compressed with {compression}, which is not supported")
    records = fields.take(fields.number("Q"))
    check(records, checksum, "the chunk's checksum is wrong")
    return records


def make_record(op: Op, body: bytes) -> bytes:
    """A record as bytes."""
    return struct.pack("<BQ", op, len(body)) + body


def encode_bytes(data: bytes) -> bytes:
    """Bytes with their length before them."""
    return struct.pack("<I", len(data)) + data


def encode_text(text: str) -> bytes:
    """Text as UTF-8 with its length before it."""
    return encode_bytes(text.encode())


def encode_map(entries: Mapping[str, str]) -> bytes:
    """A mapping of texts."""
    return encode_bytes(b"".join(encode_text(key) + encode_text(value) for key, value in entries.items()))
