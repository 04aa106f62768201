# SPDX-License-Identifier: Apache-2.0
"""A recording session: which episode is being recorded and what becomes of it. Knows no ROS, no keys, no clock of its own.

    IDLE ──start──> RECORDING ──success, failure──> REVIEW ──save──> IDLE      save while recording: review only if a check fails
                    redo: discard and start          discard: delete, IDLE

An episode is in its file from the first message on. What ends the session early, a full disk or the recorder itself, keeps it.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from otpr_operator.bag import BagWriter, prepare
from otpr_policy.errors import OutputError, RecordingError
from otpr_policy.files import make_directory
from otpr_policy.recording import ARTIFACT, Ending, Verdict, read_recording
from otpr_policy.recording_checks import EpisodeReport, check_recording, silent_limit_s


class Phase(Enum):
    """Where the session stands."""

    IDLE = "idle"
    RECORDING = "recording"
    REVIEW = "review"  # ended, and not yet saved or discarded


class Action(Enum):
    """What an operator can ask for; the names are those of keys' legends, services and messages."""

    START = "start"
    SUCCESS = "success"
    FAILURE = "failure"
    SAVE = "save"
    DISCARD = "discard"
    REDO = "redo"


@dataclass(frozen=True)
class Reply:
    """Whether an action was done, and what to tell the operator."""

    done: bool
    text: str


@dataclass(frozen=True)
class RecordedTopic:
    """A topic of every episode.

    Args:
        type: its ROS type.
        max_age_s: if it is needed, the age above which its data counts as missing; None where nobody waits for it.
        latched: its last message holds until the next, and so is part of an episode that starts after it.
    """

    type: str
    max_age_s: float | None = None
    latched: bool = False


class Session:
    """Not thread-safe: messages, actions and :meth:`keep_up` come from one thread."""

    def __init__(
        self,
        directory: Path,
        topics: Mapping[str, RecordedTopic],
        facts: Callable[[], Mapping[str, str]],
        clock: Callable[[], float],
        tell: Callable[[str], None],
    ) -> None:
        """A session that is IDLE.

        Args:
            directory: of the episodes.
            topics: to be recorded.
            facts: what is stored at the start of each episode.
            clock: seconds that only go forward.
            tell: takes what the operator must hear of by itself.

        Raises:
            OutputError: the directory cannot be made.
        """
        make_directory(directory)
        prepare(recorded.type for recorded in topics.values())
        self.phase = Phase.IDLE
        self.verdict = Verdict.UNJUDGED
        self.report: EpisodeReport | None = None  # of the episode under review or just saved
        self.failure: OutputError | None = None  # why an episode ended by itself
        self._directory = directory
        self._topics = dict(topics)
        self._facts = facts
        self._clock = clock
        self._tell = tell
        self._bag: BagWriter | None = None
        self._latched: dict[str, tuple[bytes, int | None]] = {}  # message and its publisher's count
        self._identity: Mapping[str, str] | None = None
        self._heard_s: dict[str, float] = {}  # needed topic -> when it was last heard
        self._told: set[str] = set()
        self._began_s = 0.0

    @property
    def episode(self) -> str:
        """Name of the episode at hand, or nothing."""
        return "" if self._bag is None else self._bag.directory.name

    @property
    def counts(self) -> Mapping[str, int]:
        """Messages of the episode at hand, by topic."""
        return {} if self._bag is None else self._bag.counts

    @property
    def seconds(self) -> float:
        """For how long the episode at hand has been recorded."""
        return self._clock() - self._began_s if self.phase is Phase.RECORDING else 0.0

    def act(self, action: Action, now_ns: int) -> Reply:
        """Does what the operator asks for, or says why not. ``now_ns``: on the clock that messages are stamped with on arrival."""
        try:
            return self._act(action, now_ns)
        except OutputError as error:
            self._end_by_itself(error)
            return Reply(False, str(error))

    def message(self, topic: str, received_ns: int, data: bytes, published_ns: int | None = None, sequence: int | None = None) -> None:
        """Takes a message that has come."""
        if self._topics[topic].latched:
            self._latched[topic] = (data, sequence)
        if self.phase is not Phase.RECORDING or self._bag is None:
            return
        self._heard_s[topic] = self._clock()
        try:
            self._bag.write(topic, received_ns, data, published_ns, sequence)
        except OutputError as error:
            self._end_by_itself(error)

    def identify(self, identity: str) -> None:
        """Notes which policy runs (JSON), for this episode and those to come."""
        self._identity = {"identity": identity}
        if self.phase is Phase.RECORDING and self._bag is not None:
            try:
                self._bag.note(ARTIFACT, self._identity)
            except OutputError as error:
                self._end_by_itself(error)

    def keep_up(self) -> None:
        """To be called several times a second: makes what came readable, and tells of topics that are silent."""
        if self.phase is not Phase.RECORDING or self._bag is None:
            return
        try:
            self._bag.keep_up()
        except OutputError as error:
            self._end_by_itself(error)
            return
        for topic, recorded in self._topics.items():
            if recorded.max_age_s is None:
                continue
            silent_s = self._clock() - self._heard_s[topic]
            if silent_s > silent_limit_s(recorded.max_age_s) and topic not in self._told:
                self._told.add(topic)
                self._tell(f"{topic} is silent; the episode goes on and will be marked")
            elif silent_s <= recorded.max_age_s:
                self._told.discard(topic)

    def close(self) -> None:
        """Ends the session. An episode that is being recorded or reviewed is kept. Raises OutputError when the disk does not take it."""
        if self.phase is Phase.RECORDING:
            self._end()
        if self.phase is Phase.REVIEW:
            self._keep(Ending.INTERRUPTED)

    def _act(self, action: Action, now_ns: int) -> Reply:
        if self._bag is None:
            if action is not Action.START:
                return Reply(False, "no episode is being recorded; start comes first")
            return self._start(now_ns)
        if action is Action.START:
            wanted = "save, discard or redo it first" if self.phase is Phase.REVIEW else "end it first"
            return Reply(False, f"{self.episode} is under way; {wanted}")
        if action in (Action.DISCARD, Action.REDO):
            name = self.episode
            self._bag.discard()
            self._bag, self.phase = None, Phase.IDLE
            return self._start(now_ns) if action is Action.REDO else Reply(True, f"{name} discarded")
        if action in (Action.SUCCESS, Action.FAILURE):
            self.verdict = Verdict(action.value)
        if self.phase is Phase.RECORDING:
            self._end()
            if action is not Action.SAVE or self.problems:
                return Reply(True, f"{self.episode}: {self.verdict.value}; {self._findings()}; save, discard or redo")
        elif action is not Action.SAVE:
            return Reply(True, f"{self.episode}: {self.verdict.value}")
        return self._keep(Ending.SAVED)

    @property
    def problems(self) -> tuple[str, ...]:
        """What the checks found in the episode under review."""
        return () if self.report is None else self.report.all_problems

    def _start(self, now_ns: int) -> Reply:
        self._bag = BagWriter(
            self._directory / f"episode_{self._next_number():04d}",
            {topic: recorded.type for topic, recorded in self._topics.items()},
            self._facts(),
            self._clock,
        )
        self.phase, self.verdict, self.report = Phase.RECORDING, Verdict.UNJUDGED, None
        self._began_s = self._clock()
        self._heard_s = dict.fromkeys(self._topics, self._began_s)
        self._told.clear()
        if self._identity is not None:
            self._bag.note(ARTIFACT, self._identity)
        for topic, (data, sequence) in self._latched.items():
            self._bag.write(topic, now_ns, data, None, sequence)
        return Reply(True, f"{self.episode} is being recorded")

    def _end(self) -> None:
        """Ends the recording of an episode and checks what is in its file."""
        assert self._bag is not None
        self._bag.flush()
        self.phase = Phase.REVIEW
        try:
            self.report = check_recording(read_recording(self._bag.directory))
        except RecordingError as error:
            self.report = EpisodeReport(0.0, (), (str(error),))

    def _keep(self, ending: Ending) -> Reply:
        assert self._bag is not None
        bag, self._bag, self.phase = self._bag, None, Phase.IDLE
        report = {} if self.report is None else self.report.to_json()
        try:
            bag.close(self.verdict, ending, json.dumps(report))
        except OutputError as error:
            raise OutputError(_left_open(error, bag)) from error
        return Reply(True, f"{bag.directory.name} saved: {self.verdict.value}; {self._findings()}")

    def _end_by_itself(self, error: OutputError) -> None:
        """The disk does not take more: what is there is completed, with the room that was set aside for it."""
        self.failure = error
        if self._bag is None:
            return
        bag, self._bag, self.phase = self._bag, None, Phase.IDLE
        try:
            bag.close(self.verdict, Ending.DISK_FULL)
        except OutputError:
            self._tell(_left_open(error, bag))
        else:
            self._tell(f"{error}; {bag.directory} is kept up to here")

    def _findings(self) -> str:
        return "; ".join(self.problems) or "every check passed"

    def _next_number(self) -> int:
        numbers = [int(match[1]) for path in self._directory.iterdir() if (match := re.fullmatch(r"episode_(\d+)", path.name))]
        return 1 + max(numbers, default=-1)


def _left_open(error: OutputError, bag: BagWriter) -> str:
    return f"{error}; {bag.directory} is readable, 'otpr recordings recover' completes it once there is room"
