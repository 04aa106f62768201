# SPDX-License-Identifier: Apache-2.0
"""Recordings as rosbag2 with MCAP storage, which ``ros2 bag`` and Foxglove read. Messages are stored as they came, as CDR.

The layout is otpr_policy/recording.py's. What is older than half a second is in the file, so that a recorder that is killed
loses less than a second. ``metadata.yaml``, which rosbag2 wants beside the file, is written at the end; :func:`recover` writes it
for a recording whose recorder died.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from otpr_policy.errors import OutputError, RecordingError
from otpr_policy.files import write_text
from otpr_policy.mcap import McapContent, read_mcap
from otpr_policy.mcap_writer import McapWriter
from otpr_policy.recording import BEGIN, END, LAYOUT_VERSION, Ending, Verdict, mcap_file, typestore

FLUSH_PERIOD_S = 0.5
_RESERVE_BYTES = 1 << 20  # set aside, so that a recording can be completed on a disk that is full
_RESERVE = ".reserve"
_METADATA = "metadata.yaml"
_BAG_VERSION = 9  # what ROS 2 Jazzy writes
_HASH = "topic_type_hash"


class BagWriter:
    """One recording. Every topic is known at the start, so that a topic that stayed silent is seen to have been silent."""

    def __init__(
        self, directory: Path, topics: Mapping[str, str], facts: Mapping[str, str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Opens a new recording.

        Args:
            directory: must not exist yet.
            topics: message type of each topic.
            facts: stored at the start, where a crash cannot take them.
            clock: seconds that only go forward.

        Raises:
            OutputError: the directory exists or cannot be written.
        """
        self.directory = directory
        self.counts: dict[str, int] = dict.fromkeys(topics, 0)
        self._clock = clock
        self._flushed_s = clock()
        try:
            directory.mkdir(parents=True)
        except OSError as error:
            raise OutputError(f"cannot record into {directory}: {error.strerror}") from error
        try:
            _set_aside(directory / _RESERVE)
            self._writer = McapWriter(directory / f"{directory.name}.mcap", "ros2")
            self._writer.add_metadata(BEGIN, {"layout": LAYOUT_VERSION, **facts})
            self._channels = {topic: self._add_channel(topic, kind) for topic, kind in topics.items()}
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise

    def write(self, topic: str, received_ns: int, message: bytes, published_ns: int | None = None, sequence: int | None = None) -> None:
        """Adds a serialised message.

        Args:
            topic: one of those given at the start.
            received_ns: when it arrived, since 1970.
            message: as it came.
            published_ns: when it was sent, by default when it arrived.
            sequence: its publisher's count, by default ours.

        Raises:
            OutputError: the disk does not take it. What came before can be read, and :meth:`close` completes it.
        """
        self._writer.write(self._channels[topic], received_ns, message, published_ns, sequence)
        self.counts[topic] += 1
        self.keep_up()

    def keep_up(self) -> None:
        """Flushes when it is time to. To be called now and then also while no message comes. Raises OutputError as :meth:`write`."""
        if self._clock() - self._flushed_s >= FLUSH_PERIOD_S:
            self.flush()

    def flush(self) -> None:
        """Makes everything so far readable. Raises OutputError as :meth:`write`."""
        self._flushed_s = self._clock()
        self._writer.flush()

    def note(self, name: str, facts: Mapping[str, str]) -> None:
        """Adds a metadata record. Raises OutputError as :meth:`write`."""
        self._writer.add_metadata(name, facts)

    def close(self, verdict: Verdict, ending: Ending, report: str = "{}") -> None:
        """Completes the recording, with what the operator and the checks said of it (JSON).

        Raises OutputError when the disk does not take even that; what was flushed can then still be read and recovered.
        """
        with suppress(OSError):
            (self.directory / _RESERVE).unlink()
        try:
            self._writer.add_metadata(END, {"verdict": verdict.value, "ending": ending.value, "report": report})
            self._writer.close()
            _write_metadata(self._writer.path)
        finally:
            self._writer.abandon()

    def discard(self) -> None:
        """Deletes the recording."""
        self._writer.abandon()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _add_channel(self, topic: str, kind: str) -> int:
        definition, type_hash = _describe(kind)
        metadata = {"offered_qos_profiles": "[]", _HASH: type_hash}
        return self._writer.add_channel(topic, (kind, "ros2msg", definition.encode()), "cdr", metadata)


def recover(path: Path) -> None:
    """Completes a recording whose recorder died: its file gets an end, and ``metadata.yaml``.

    Raises:
        RecordingError: it is complete already, or holds nothing.
        OutputError: it cannot be written.
    """
    file = mcap_file(path)
    with suppress(OSError):
        (file.parent / _RESERVE).unlink()
    if read_mcap(file).damage:
        writer = McapWriter.reopen(file)
        try:
            writer.add_metadata(END, {"verdict": Verdict.UNJUDGED.value, "ending": Ending.KILLED.value, "report": "{}"})
            writer.close()
        finally:
            writer.abandon()
    elif (file.parent / _METADATA).exists():
        raise RecordingError(f"{path} is complete; there is nothing to recover")
    _write_metadata(file)


def unfinished(directory: Path) -> list[Path]:
    """The recordings below a directory that have no ``metadata.yaml``, oldest first."""
    return sorted(file.parent for file in directory.glob("*/*.mcap") if not (file.parent / _METADATA).exists())


def prepare(types: Iterable[str]) -> None:
    """Looks the definitions of message types up, which takes half a second the first time: not while messages are waiting."""
    for kind in types:
        _describe(kind)


@lru_cache
def _describe(kind: str) -> tuple[str, str]:
    """Definition and hash of a message type."""
    definition, _ = typestore().generate_msgdef(kind, ros_version=2)
    return definition, typestore().hash_rihs01(kind)


def _set_aside(path: Path) -> None:
    try:
        with path.open("xb") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, _RESERVE_BYTES)
            except OSError:  # file systems that cannot allocate: real zeros do it too
                file.write(bytes(_RESERVE_BYTES))
    except OSError as error:
        raise OutputError(f"cannot record into {path.parent}: {error.strerror}") from error


def _write_metadata(file: Path) -> None:
    """The description that rosbag2 reads before it opens the file."""
    content = read_mcap(file)
    times = [message.log_time_ns for message in content.messages]
    first, last = (min(times), max(times)) if times else (0, 0)
    duration = {"duration": {"nanoseconds": last - first}, "message_count": len(times)}
    start = {"starting_time": {"nanoseconds_since_epoch": first}}
    information = {
        "version": _BAG_VERSION,
        "storage_identifier": "mcap",
        **duration,
        **start,
        "topics_with_message_count": _topic_entries(content),
        "compression_format": "",
        "compression_mode": "",
        "relative_file_paths": [file.name],
        "files": [{"path": file.name, **duration, **start}],
        "custom_data": {key: value for name, facts in content.metadata for key, value in facts.items() if name in (BEGIN, END)},
        "ros_distro": "jazzy",
    }
    text = yaml.safe_dump({"rosbag2_bagfile_information": information}, sort_keys=False, allow_unicode=True)
    write_text(file.parent / _METADATA, text)


def _topic_entries(content: McapContent) -> list[dict[str, Any]]:
    counts = dict.fromkeys(content.channels, 0)
    for message in content.messages:
        counts[message.channel_id] += 1
    return [
        {
            "topic_metadata": {
                "name": channel.topic,
                "type": content.schemas[channel.schema_id].name,
                "serialization_format": channel.encoding,
                "offered_qos_profiles": [],
                "type_description_hash": channel.metadata.get(_HASH, ""),
            },
            "message_count": counts[channel.id],
        }
        for channel in content.channels.values()
    ]
