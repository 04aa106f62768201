# SPDX-License-Identifier: Apache-2.0
"""Recordings as rosbag2 with MCAP storage, which ``ros2 bag`` and Foxglove read. Messages are stored as they came, as CDR."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer, WriterError
from rosbags.typesys import Stores, get_typestore

from otpr_policy.errors import OutputError

_VERSION: Literal[9] = 9  # what ROS 2 Jazzy writes


class BagWriter:
    """One recording. Every topic is known at the start, so that a topic that stayed silent is seen to have been silent."""

    def __init__(self, directory: Path, topics: Mapping[str, str]) -> None:
        """Opens a new recording.

        Args:
            directory: must not exist yet.
            topics: message type of each topic.

        Raises:
            OutputError: the directory exists or cannot be written.
        """
        self.directory = directory
        self.counts: dict[str, int] = dict.fromkeys(topics, 0)
        typestore = get_typestore(Stores.ROS2_JAZZY)
        try:
            self._writer = Writer(directory, version=_VERSION, storage_plugin=StoragePlugin.MCAP)
            self._writer.open()
            self._connections: dict[str, Connection] = {
                topic: self._writer.add_connection(topic, kind, typestore=typestore) for topic, kind in topics.items()
            }
        except (OSError, WriterError) as error:
            raise OutputError(f"cannot record into {directory}: {error}") from error

    def write(self, topic: str, received_ns: int, message: bytes) -> None:
        """Adds a serialised message. Raises OutputError when the disk does not take it."""
        try:
            self._writer.write(self._connections[topic], received_ns, message)
        except OSError as error:
            raise OutputError(f"cannot record into {self.directory}: {error.strerror}") from error
        self.counts[topic] += 1

    def note(self, key: str, value: str) -> None:
        """Adds a fact to the recording's metadata."""
        self._writer.set_custom_data(key, value)

    def close(self) -> None:
        """Completes the recording. Raises OutputError when the disk does not take it."""
        try:
            self._writer.close()
        except OSError as error:
            raise OutputError(f"cannot complete the recording {self.directory}: {error.strerror}") from error
