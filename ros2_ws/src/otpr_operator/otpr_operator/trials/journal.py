# SPDX-License-Identifier: Apache-2.0
"""The journal of trials: one JSON line per event, on the disk before the next thing happens.

A line names the trial by its number and never its condition: what the operator might read tells nothing.
"""

import errno
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from otpr_policy.errors import OutputError

JOURNAL_FILE = "journal.jsonl"


class Ended(Enum):
    """How a run ended. Whether the task succeeded is another question."""

    SUCCESS_SEEN = "success_seen"  # by the twin
    TIME_OUT = "time_out"
    STOPPED = "stopped"  # by the policy node; the detail has its reason
    OPERATOR = "operator"  # the operator ended it
    FAULT = "fault"  # a process died or did not answer
    INTERRUPTED = "interrupted"  # Ctrl-C, or the command itself was killed


class Verdict(Enum):
    """The answer to the one question of a trial."""

    SUCCESS = "success"
    FAILURE = "failure"
    INVALID = "invalid"  # it says nothing about the condition; the trial is repeated


@dataclass(frozen=True)
class Run:
    """One run of one trial.

    Args:
        ended: how.
        detail: why, in words; empty where there is nothing to add.
        seconds: from engaging to the end.
        measured: counters and latencies that the nodes told at the end, by name.
    """

    ended: Ended
    detail: str = ""
    seconds: float = 0.0
    measured: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """A verdict and, for a failure or an invalid trial, why."""

    verdict: Verdict
    reason: str = ""


@dataclass
class Attempt:
    """What the journal knows of one attempt at a trial; ``run`` and ``judgement`` are None as long as they are not known."""

    trial: int
    number: int
    run: Run | None = None
    judgement: Judgement | None = None


class Journal:
    """The journal of one directory. Opening it completes nothing and forgets nothing, except half a line that a crash left."""

    def __init__(self, directory: Path) -> None:
        """Reads what is there. Raises OutputError when it cannot be read or a line in the middle of it is broken."""
        self.path = Path(directory) / JOURNAL_FILE
        self._whole = 0  # bytes up to the end of the last whole line
        self.events = self._read()

    def started(self, at: str, trial: int, attempt: int, card: str) -> None:
        """A trial begins."""
        self._append({"event": "started", "at": at, "trial": trial, "attempt": attempt, "card": card})

    def ended(self, at: str, trial: int, attempt: int, run: Run) -> None:
        """A run is over."""
        self._append({"event": "ended", "at": at, "trial": trial, "attempt": attempt, **asdict(run), "ended": run.ended.value})

    def judged(self, at: str, trial: int, attempt: int, judgement: Judgement, by: str) -> None:
        """The verdict is known."""
        said = {"verdict": judgement.verdict.value, "reason": judgement.reason, "by": by}
        self._append({"event": "verdict", "at": at, "trial": trial, "attempt": attempt, **said})

    def note(self, at: str, event: str, **facts: Any) -> None:
        """Anything else that the report may want: a session begins, a pause."""
        self._append({"event": event, "at": at, **facts})

    def attempts(self) -> list[Attempt]:
        """Every attempt in order."""
        return attempts(self.events)

    def _append(self, event: dict[str, Any]) -> None:
        line = (json.dumps(event) + "\n").encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                os.ftruncate(descriptor, self._whole)  # half a line that a crash left
                os.lseek(descriptor, 0, os.SEEK_END)
                if os.write(descriptor, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}; the trial that was under way is repeated") from error
        self._whole += len(line)
        self.events.append(event)

    def _read(self) -> list[dict[str, Any]]:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise OutputError(f"cannot read {self.path}: {error.strerror}") from error
        *lines, _half = content.split(b"\n")
        events = []
        for number, line in enumerate(lines, 1):
            try:
                event = json.loads(line)
                _check(event)
            except (ValueError, KeyError, TypeError) as error:
                raise OutputError(f"{self.path}, line {number}, is not an event of a journal of trials") from error
            events.append(event)
        self._whole = sum(len(line) + 1 for line in lines)
        return events


def attempts(events: Iterable[dict[str, Any]]) -> list[Attempt]:
    """Every attempt that some events tell of, in order of their beginning."""
    found: dict[tuple[int, int], Attempt] = {}
    for event in events:
        if event["event"] not in ("started", "ended", "verdict"):
            continue
        key = event["trial"], event["attempt"]
        attempt = found.setdefault(key, Attempt(*key))
        if event["event"] == "ended":
            attempt.run = Run(Ended(event["ended"]), event["detail"], event["seconds"], event["measured"])
        elif event["event"] == "verdict":
            attempt.judgement = Judgement(Verdict(event["verdict"]), event["reason"])
    return list(found.values())


def _check(event: dict[str, Any]) -> None:
    """Raises KeyError, ValueError or TypeError when an event lacks what :func:`attempts` needs."""
    attempts([event])
    if not isinstance(event["at"], str):
        raise TypeError
