# SPDX-License-Identifier: Apache-2.0
"""Whether a recorded episode is fit for use: losses, rates, gaps and jumps, holds and stops, each by a stated rule.

What counts as a gap is the contract's ``max_age_s``: data that comes and goes like that would make the policy hold.
"""

from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np

from otpr_policy.contract import RobotContract
from otpr_policy.control import FIRST_CHUNK, State
from otpr_policy.errors import RecordingError
from otpr_policy.recording import STATE, Recording, Stamps, TopicLog

_RESTS_NAMED = 5  # of one episode; a robot that holds more often is described by the first ones
_SILENT_AT_LEAST_S = 0.5  # a topic that is silent for less at the end has not vanished


@dataclass(frozen=True)
class CheckLimits:
    """What an episode may have.

    Args:
        lost: fraction of a topic's messages that may be lost.
        speed: fastest change of a field between two samples, by unit and second; what is faster is a jump. Far above what an arm can do,
            so that only a tracker that lost its object or a joint that was read wrong is named.
        shortest_s: shortest episode.
    """

    lost: float = 0.01
    speed: tuple[tuple[str, float], ...] = (("m", 5.0), ("rad", 30.0), ("1", 60.0))
    shortest_s: float = 0.5


@dataclass(frozen=True)
class TopicReport:
    """What came on one topic.

    Args:
        received, expected: messages; ``expected`` counts those that the publisher numbered between the first and the last received.
        rate_hz: mean rate between the first and the last message.
        longest_gap_s: longest time between two messages.
        problems: what is wrong with it, in words.
    """

    topic: str
    received: int
    expected: int
    rate_hz: float
    longest_gap_s: float
    problems: tuple[str, ...]


@dataclass(frozen=True)
class EpisodeReport:
    """The checks of one episode."""

    seconds: float
    topics: tuple[TopicReport, ...]
    problems: tuple[str, ...]  # of the whole

    @property
    def all_problems(self) -> tuple[str, ...]:
        """Those of the whole and of each topic."""
        return self.problems + tuple(f"{report.topic} {problem}" for report in self.topics for problem in report.problems)

    def to_json(self) -> dict[str, Any]:
        """Plain data, as it is stored with the episode."""
        return {**asdict(self), "all_problems": list(self.all_problems)}


def check_recording(recording: Recording, limits: CheckLimits | None = None) -> EpisodeReport:
    """Checks an episode; see :class:`CheckLimits` for the rules."""
    limits = limits or CheckLimits()
    contract = recording.contract
    times = [log.received_ns for log in recording.topics.values() if len(log.received_ns)]
    begin = min((int(stamps.min()) for stamps in times), default=0)
    end = max((int(stamps.max()) for stamps in times), default=0)
    ages = needed_topics(contract)
    reports = [_check_topic(recording, log, ages.get(log.topic), end, limits) for log in recording.topics.values()]
    problems = []
    if (end - begin) / 1e9 < limits.shortest_s:
        problems.append(f"lasts {(end - begin) / 1e9:.2f} s, the shortest of use is {limits.shortest_s:g} s")
    commands = (contract.pose_command.topic, contract.gripper_command.topic)
    if not any(topic in recording.topics and len(recording.topics[topic].messages) for topic in commands):
        problems.append(f"no command was given on {' or '.join(commands)}")
    for log in recording.topics.values():
        if log.topic.endswith(STATE) and log.type == "std_msgs/msg/String":
            problems += _rests(log, begin, end)
    if recording.damage and "no end" not in recording.damage:  # an episode that is still being recorded has none
        problems.append(recording.damage)
    return EpisodeReport((end - begin) / 1e9, tuple(reports), tuple(problems))


def needed_topics(contract: RobotContract) -> dict[str, float]:
    """Topics that an observation is made from, and the age [s] above which their data counts as missing."""
    ages: dict[str, float] = {}
    for source in contract.observations.values():
        ages[source.topic] = min(source.max_age_s, ages.get(source.topic, np.inf))
    return ages


def silent_limit_s(max_age_s: float) -> float:
    """A needed topic that has been silent for longer than this has vanished."""
    return max(_SILENT_AT_LEAST_S, 3 * max_age_s)


def _check_topic(recording: Recording, log: TopicLog, max_age_s: float | None, end_ns: int, limits: CheckLimits) -> TopicReport:
    received = len(log.messages)
    expected = max(_numbered(log.sequence), received)
    span_s = (log.received_ns[-1] - log.received_ns[0]) / 1e9 if received else 0.0
    rate_hz = float((received - 1) / span_s) if span_s > 0 else 0.0
    gaps_s = np.diff(log.received_ns) / 1e9
    longest_s = float(gaps_s.max()) if gaps_s.size else 0.0
    problems: list[str] = []
    if max_age_s is not None:
        if received == 0:
            problems.append("never came")
        else:
            silent_s = (end_ns - int(log.received_ns[-1])) / 1e9
            if silent_s > silent_limit_s(max_age_s):
                problems.append(f"vanished {silent_s:.2f} s before the end")
            if longest_s > max_age_s:
                after_s = (log.received_ns[int(gaps_s.argmax())] - log.received_ns[0]) / 1e9
                problems.append(f"has a gap of {longest_s:.3f} s after {after_s:.2f} s; the contract allows {max_age_s:g} s")
            problems += _check_data(recording, log.topic, limits)
    if expected - received > limits.lost * expected:
        problems.append(f"lost {expected - received} of {expected} messages")
    return TopicReport(log.topic, received, expected, rate_hz, longest_s, tuple(problems))


def _rests(log: TopicLog, begin_ns: int, end_ns: int) -> list[str]:
    """When a policy node let the robot hold, or stopped it, and why: from its state as it told it. The first reason of each counts."""
    try:
        told = [str(message.data).partition(": ") for message in log.decoded()]
    except RecordingError as error:
        return [str(error)]
    times_ns = [*log.received_ns.tolist(), end_ns]
    spells = groupby(range(len(told)), key=lambda index: told[index][0] if told[index][2] != FIRST_CHUNK else State.ENGAGED.value)
    found = []
    for state, indices in spells:
        first, *rest = indices
        if state in (State.HOLD.value, State.STOPPED.value):
            after_s, ended_ns = (times_ns[first] - begin_ns) / 1e9, times_ns[first + len(rest) + 1]
            found.append(f"{state} after {after_s:.2f} s for {(ended_ns - times_ns[first]) / 1e9:.2f} s: {told[first][2]}")
    more = len(found) - _RESTS_NAMED
    return found if more <= 0 else [*found[:_RESTS_NAMED], f"and {more} more of HOLD and STOPPED"]


def _numbered(sequence: Stamps) -> int:
    """How many messages the publisher sent; 0 where numbers do not ascend, as with several publishers."""
    return int(sequence[-1] - sequence[0]) + 1 if len(sequence) and (np.diff(sequence) > 0).all() else 0


def _check_data(recording: Recording, topic: str, limits: CheckLimits) -> list[str]:
    problems = []
    speeds = dict(limits.speed)
    for name, source in recording.contract.observations.items():
        if source.topic != topic:
            continue
        try:
            log = recording.field(name)
        except RecordingError as error:
            return [f"cannot be read: {error}"]
        if not np.isfinite(log.values).all():
            problems.append(f"has a number that is not finite in {name}, sample {int(np.argmin(np.isfinite(log.values).all(axis=1)))}")
            continue
        seconds = np.diff(log.stamps_ns) / 1e9
        if (seconds < 0).any():
            problems.append(f"has stamps that go back, first at sample {int(np.argmax(seconds < 0)) + 1}")
            continue
        speed = speeds.get(source.unit)
        if speed is None or not seconds.size:
            continue
        # A sample that is stamped twice has no speed; the shortest time is that of a kilohertz.
        fast = np.abs(np.diff(log.values, axis=0)).max(axis=1) / np.maximum(seconds, 1e-3) > speed
        if fast.any():
            first = int(np.argmax(fast)) + 1
            problems.append(f"jumps {int(fast.sum())} times in {name}, faster than {speed:g} {source.unit}/s; first at sample {first}")
    return problems
