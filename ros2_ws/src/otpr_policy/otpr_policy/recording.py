# SPDX-License-Identifier: Apache-2.0
"""Recorded episodes: what is in the file and how to read it. docs/recording.md gives the layout.

A recording is a rosbag2 directory with one MCAP file: the topics of a robot contract, byte for byte as they came, and metadata
records of our own. :func:`read_recording` needs no ROS.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otpr_policy.contract import RobotContract, parse_contract
from otpr_policy.decoding import decode, pose_position, pose_quaternion, stamp_to_ns
from otpr_policy.errors import ContractError, RecordingError
from otpr_policy.mcap import McapContent, read_mcap
from otpr_policy.spec import Array
from otpr_policy.strict_yaml import parse_yaml

LAYOUT_VERSION = "1"
COMMANDER = "/commander"  # how the topic ends on which a policy node says who sent each command
STATE = "/state"  # how the topic ends on which a policy node says what the robot may do, and why
BEGIN = "otpr.recording"  # the first metadata record: layout, robot, contract, ...
ARTIFACT = "otpr.artifact"  # the identity of the policy that ran, each time that it was told
END = "otpr.end"  # the last one: verdict, how the recording ended, what the checks found
Stamps = NDArray[np.int64]


class Verdict(Enum):
    """What the operator said of an episode."""

    SUCCESS = "success"
    FAILURE = "failure"
    UNJUDGED = "unjudged"


class Ending(Enum):
    """How a recording ended, which is not how the task ended."""

    SAVED = "saved"  # by the operator
    INTERRUPTED = "interrupted"  # the recorder was asked to end while it recorded
    DISK_FULL = "disk full"  # or otherwise not writable; holds what was recorded until then
    KILLED = "killed"  # the recorder died; holds all but the last moments


@dataclass(frozen=True, eq=False)
class TopicLog:
    """The messages of one topic, in order of arrival.

    Args:
        topic, type: names as in ROS.
        received_ns: when each message arrived, on the recorder's clock, (N,).
        sequence: the publisher's count of each message, from which losses can be told, (N,).
        messages: serialised (CDR).
    """

    topic: str
    type: str
    received_ns: Stamps
    sequence: Stamps
    messages: tuple[bytes, ...]

    def decoded(self) -> list[Any]:
        """The messages as objects with ROS's attributes. Raises RecordingError naming the first that cannot be read."""
        found = []
        for number, message in enumerate(self.messages):
            try:
                found.append(typestore().deserialize_cdr(message, self.type))
            except Exception as error:  # whatever damaged bytes do to a parser of another library
                raise RecordingError(f"{self.topic}: message {number} is no {self.type}: {error!r}") from error
        return found


@dataclass(frozen=True, eq=False)
class FieldLog:
    """Samples of one named field: stamps of the data (N,) [ns] and values (N, size)."""

    stamps_ns: Stamps
    values: Array


@dataclass(frozen=True, eq=False)
class TargetLog:
    """Cartesian targets: the stamp of the observation that each answers (N,) [ns], position (N, 3) [m], quaternion (N, 4) x, y, z, w."""

    stamps_ns: Stamps
    received_ns: Stamps
    positions: Array
    quaternions: Array


@dataclass(frozen=True, eq=False)
class Recording:
    """One episode. ``damage`` says what is missing of the file, and is empty for a whole one."""

    path: Path
    topics: Mapping[str, TopicLog]
    facts: Mapping[str, str]
    contract: RobotContract
    artifacts: tuple[Mapping[str, Any], ...]
    verdict: Verdict
    ending: Ending
    report: Mapping[str, Any]
    damage: str

    def field(self, name: str) -> FieldLog:
        """An observation field, decoded by the contract as the policy node decodes it.

        Raises RecordingError when the contract has no such field, or a message does not fit the contract.
        """
        source = self.contract.observations.get(name)
        if source is None:
            raise RecordingError(f"{self.path}: no field {name!r}; it has {', '.join(self.contract.observations)}")
        stamps, values = [], []
        for number, message in enumerate(self._decoded(source.topic)):
            try:
                values.append(decode(source, message))
            except ValueError as error:
                raise RecordingError(f"{self.path}: {source.topic}, message {number}: {error}") from error
            stamps.append(stamp_to_ns(message.header.stamp))
        return FieldLog(np.array(stamps, dtype=np.int64), np.stack(values) if values else np.empty((0, 0)))

    def targets(self) -> TargetLog:
        """What the hand was told."""
        log = self.topics[self.contract.pose_command.topic]
        messages = self._decoded(log.topic)
        return TargetLog(
            np.array([stamp_to_ns(message.header.stamp) for message in messages], dtype=np.int64),
            log.received_ns,
            np.array([pose_position(message.pose) for message in messages]).reshape(-1, 3),
            np.array([pose_quaternion(message.pose) for message in messages]).reshape(-1, 4),
        )

    def gripper_targets(self) -> FieldLog:
        """What the fingers were told [m], (N, 1). Such messages carry no stamp; it is when they arrived."""
        log = self.topics[self.contract.gripper_command.topic]
        values = np.array([message.data[0] for message in self._decoded(log.topic)]).reshape(-1, 1)
        return FieldLog(log.received_ns, values)

    def commanders(self) -> dict[int, str]:
        """Who sent each command, ``policy`` or ``operator``, by the stamp of its pose [ns]; empty where that was not recorded.

        Raises RecordingError when a label cannot be read.
        """
        found: dict[int, str] = {}
        for topic in (topic for topic in self.topics if topic.endswith(COMMANDER)):
            for number, message in enumerate(self._decoded(topic)):
                try:
                    label = json.loads(message.data)
                    found[int(label["stamp_ns"])] = str(label["commander"])
                except (ValueError, KeyError, TypeError) as error:
                    raise RecordingError(f"{self.path}: {topic}, message {number} is no label of a command") from error
        return found

    def _decoded(self, topic: str) -> list[Any]:
        return self._cache.setdefault(topic, self.topics[topic].decoded())

    @cached_property
    def _cache(self) -> dict[str, list[Any]]:
        return {}


def read_recording(path: Path) -> Recording:
    """Reads an episode, given its directory or its .mcap file; what was flushed before the recorder died is there.

    Raises:
        RecordingError: there is none, it is not one of ours, or its contract cannot be used.
    """
    file = mcap_file(path)
    content = read_mcap(file)
    named = {name: facts for name, facts in content.metadata if name in (BEGIN, END)}
    if BEGIN not in named:
        raise RecordingError(f"{file} is not a recorded episode; it lacks the metadata {BEGIN!r}")
    facts = named[BEGIN]
    if facts.get("layout") != LAYOUT_VERSION:
        raise RecordingError(f"{file} has layout {facts.get('layout')!r}; this version reads {LAYOUT_VERSION}")
    end = named.get(END, {})
    try:
        return Recording(
            path=Path(path),
            topics=_topics(content),
            facts=facts,
            contract=parse_contract(parse_yaml(facts["contract"], f"{file}: the contract")),
            artifacts=tuple(json.loads(entry["identity"]) for name, entry in content.metadata if name == ARTIFACT),
            verdict=Verdict(end.get("verdict", Verdict.UNJUDGED.value)),
            ending=Ending(end.get("ending", Ending.KILLED.value)),
            report=json.loads(end.get("report", "{}")),
            damage=content.damage,
        )
    except (KeyError, ValueError, ContractError) as error:
        raise RecordingError(f"{file}: the metadata cannot be used: {error}") from error


def mcap_file(path: Path) -> Path:
    """The .mcap file of a recording's directory, or the path itself. Raises RecordingError when a directory has not exactly one."""
    path = Path(path)
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.mcap"))
    if len(files) != 1:
        raise RecordingError(f"{path} holds {len(files)} .mcap files; a recording has one")
    return files[0]


def _topics(content: McapContent) -> dict[str, TopicLog]:
    logs = {}
    for channel in content.channels.values():
        mine = [message for message in content.messages if message.channel_id == channel.id]
        logs[channel.topic] = TopicLog(
            channel.topic,
            content.schemas[channel.schema_id].name,
            np.array([message.log_time_ns for message in mine], dtype=np.int64),
            np.array([message.sequence for message in mine], dtype=np.int64),
            tuple(message.data for message in mine),
        )
    return logs


@lru_cache(maxsize=1)
def typestore() -> Any:
    """The standard ROS messages, as rosbags describes them."""
    from rosbags.typesys import Stores, get_typestore  # half a second, for those who decode

    return get_typestore(Stores.ROS2_JAZZY)
