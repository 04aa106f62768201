# SPDX-License-Identifier: Apache-2.0
"""What a comparison's directory remembers: the plan that it is of, and each finished job with its outcome."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from otpr_policy.errors import OutputError, PlanError
from otpr_policy.files import write_text
from otpr_policy.lock import locked as locked_by
from otpr_trainer.compare import code
from otpr_trainer.compare.jobs import Job
from otpr_trainer.compare.plan import RECORDS, Plan, resolved_settings

KIND = "otpr comparison"
ARCHIVE = "otpr comparison archive"  # see archive.py; another kind, so that no version of the program runs jobs in one
SCHEMA_VERSION = 1
PLAN = "plan.json"
OF_THE_REPORT = ("plan.name", "plan.control")  # they may change: no job depends on them


@dataclass(frozen=True)
class Record:
    """A finished job. ``seconds``: wall clock of the process, imports included; ``result``: what its command printed.

    ``machine``: otpr_policy.machine.machine() where it ran; None of records that older versions wrote.
    """

    words: list[str]
    seconds: float
    finished: str  # ISO 8601, UTC
    git_commit: str
    result: dict[str, Any]
    machine: dict[str, Any] | None = None


class Records:
    """The records in one directory. ``option``: which one named it, for messages."""

    def __init__(self, directory: Path, option: str = "--out") -> None:
        self.directory = Path(directory)
        self._option = option

    def log(self, job: Job) -> Path:
        """Where the job's messages go."""
        return self.directory / RECORDS / f"{job.name}.log"

    def begun(self, job: Job) -> bool:
        """Whether the job has left something to go on with."""
        return bool(job.output) and (self.directory / job.output).exists()

    def recorded(self, job: Job) -> bool:
        """Whether there is a record of the job, whatever it says."""
        return self._path(job).exists()

    def same(self, job: Job) -> Record | None:
        """The record of a job that was finished with the same words."""
        try:
            record = Record(**json.loads(self._path(job).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return record if record.words == list(job.words) else None

    def done(self, job: Job) -> Record | None:
        """The record of a job that was finished with the same words and whose output is still there."""
        return self.same(job) if not job.output or self.begun(job) else None

    def write(self, job: Job, record: Record) -> None:
        """Keeps a record. Raises OutputError."""
        write_text(self._path(job), json.dumps(asdict(record), indent=2) + "\n")

    def forget(self, job: Job) -> None:
        """Removes a job's record, before the job runs."""
        self._path(job).unlink(missing_ok=True)

    def settle(self, plan: Plan, *, create: bool) -> None:
        """Takes the plan as this directory's, or checks that it is, or that it asks for more of the same.

        Seeds, tasks, methods, presets and ways of acting may be added to a plan: what is done stays as it is.

        Args:
            plan: the plan.
            create: begin the directory if nothing is there, and refuse defaults of the algorithms that have changed since. Without, the
                directory must be there, and what it holds may be of an earlier version of the algorithms.

        Raises:
            PlanError: the directory is of another plan, says what differs; or it holds runs of a method that is other code now.
            OutputError: it is not a comparison's, or cannot be written.
        """
        ours = {"plan": asdict(plan), "settings": resolved_settings(plan), "code": code.of(plan)}
        if not (self.directory / PLAN).exists():
            if not create:
                raise OutputError(f"{self.directory} holds no comparison yet; run it without --report-only first")
            self.refuse_foreign()
            self.begin(KIND, ours)
            return
        theirs = self.settled()
        if create and theirs["kind"] == ARCHIVE:
            raise OutputError(f"{self.directory} is an archive, which nothing can run in; pass --report-only, or run in another --out")
        more = self.refuse_another(theirs, ours, ("plan", "settings") if create else ("plan",))
        if create:
            self.refuse_other_code(plan, theirs["code"], ours["code"])
            if more or theirs["code"] != ours["code"]:
                self.begin(KIND, ours)

    def begin(self, kind: str, content: dict[str, Any]) -> None:
        """Writes ``plan.json``. ``content``: the plan, the settings of its start policy and methods, and their code. Raises OutputError."""
        write_text(self.directory / PLAN, json.dumps({"kind": kind, "schema_version": SCHEMA_VERSION, **content}, indent=2) + "\n")

    def settled(self) -> dict[str, Any]:
        """Content of ``plan.json``. Raises OutputError when it is none of ours."""
        path = self.directory / PLAN
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["kind"] in (KIND, ARCHIVE) and data["schema_version"] == SCHEMA_VERSION and {"plan", "settings"} <= set(data):
                return {"code": {}, **data}  # which older versions did not keep
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise OutputError(f"{path} is not a comparison's plan of version {SCHEMA_VERSION}; choose another {self._option}")

    def refuse_foreign(self) -> None:
        """Raises OutputError when a directory without a plan holds something, but for what a write of the plan left that was killed."""
        if not self.directory.exists():
            return
        unfinished = f".{PLAN}."  # as files.py names it
        if not self.directory.is_dir() or any(not one.name.startswith(unfinished) for one in self.directory.iterdir()):
            raise OutputError(f"{self.directory} exists and is not a comparison; choose another {self._option}")

    def refuse_another(self, theirs: dict[str, Any], ours: dict[str, Any], parts: tuple[str, ...]) -> bool:
        """Whether ``ours`` asks for more than ``theirs``, which is this directory's. Raises PlanError when it asks for something else."""
        ours = json.loads(json.dumps(ours))  # tuples become lists
        before, now = ({key: value for part in parts for key, value in _flat(data[part], part)} for data in (theirs, ours))
        old_methods = tuple(f"settings.{name}." for name in theirs["settings"])
        kept = [key for key in {**before, **now} if key not in OF_THE_REPORT and (key in before or key.startswith(old_methods))]
        changed = [
            f"{key.removeprefix('plan.')} {before.get(key, 'absent')} -> {now.get(key, 'absent')}"
            for key in kept
            if before.get(key) != now.get(key)
        ]
        if changed:
            more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
            raise PlanError(f"{self.directory} was begun with another plan: {', '.join(changed[:5])}{more}; choose another {self._option}")
        return now != before

    def refuse_other_code(self, plan: Plan, theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
        """Raises PlanError when a method is other code (:func:`code.of`) than its runs in this directory, which is of ``theirs``."""
        for name in ours:
            if name in theirs and theirs[name] != ours[name]:
                places = (self.directory / where / task.name / name for where in ("", RECORDS) for task in plan.tasks)
                if there := [str(place) for place in places if place.exists()]:
                    raise PlanError(
                        f"{self.directory} holds runs of {name} by other code than its package has now; "
                        f"choose another {self._option}, or remove {' '.join(there)}"
                    )

    def _path(self, job: Job) -> Path:
        return self.directory / RECORDS / f"{job.name}.json"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keeps a second comparison out of a directory. Raises OutputError when there is one in it."""
    with locked_by(directory / RECORDS, "otpr compare"):
        yield


def _flat(data: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Leaves by name. What a list holds is known by itself, not by its place, so that something may be added anywhere."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _flat(value, f"{where}.{key}")
    elif isinstance(data, list):
        for one in data:
            if isinstance(one, dict):
                yield from _flat(one, f"{where}[{one.get('label') or one.get('name') or one['task']}]")
            else:
                yield f"{where} {one}", "present"
    else:
        yield where, data
