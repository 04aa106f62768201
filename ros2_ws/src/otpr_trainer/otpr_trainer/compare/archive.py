# SPDX-License-Identifier: Apache-2.0
"""A comparison's evidence without what made it: small text that can be committed, and that grows by parts run elsewhere.

An archive is laid out as the directory that it is of, so that the same report is written of it: plan.json, which says that it is an
archive, the records of the jobs that are done, and of each run what the report reads. It has no path of the machine.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from otpr_policy.errors import OutputError
from otpr_policy.files import write_text
from otpr_trainer.compare.jobs import Job, Kind
from otpr_trainer.compare.metrics import LOST, last_row, rows
from otpr_trainer.compare.plan import RECORDS, Plan
from otpr_trainer.compare.records import ARCHIVE, PLAN, Record, Records

_PLACES = ("directory", "run", "video")  # what commands print of where they wrote, which the words of their jobs say already
_CLOCK = "seconds"  # what they print that is another each time
_BEGINNINGS = {"demos_sha256": "other demonstrations", "init_sha256": "another start policy"}  # shared by what is compared
_KEPT = {  # of the JSON files that a job begins with
    "config.json": ("algorithm", "task", "seed", *_BEGINNINGS, "corrections_sha256", "git_commit", "otpr_version", "created"),
    "demos.json": ("task", "source", "seed", "wanted", "attempts", "kept"),
}
_NAMED = 5  # conflicts at most


@dataclass(frozen=True)
class Addition:
    """What an archive lacks. ``plan``: of its plan.json; ``jobs``: with their records; ``files``: text by path below the directory."""

    plan: dict[str, Any]
    jobs: dict[Job, Record]
    files: dict[str, str]


def addition(plan: Plan, jobs: tuple[Job, ...], records: Records, target: Path) -> Addition:
    """What of the jobs that are done the archive does not have yet. Writes nothing.

    Args:
        plan: as given; settled in the directory of the records.
        jobs: all of the plan.
        records: of the comparison's directory, which may itself be an archive.
        target: the archive's directory, which need not be there.

    Raises:
        PlanError: the archive is of another plan; says what differs.
        OutputError: it is no archive, or what it has does not go with what would be added, by name.
    """
    there, place, out = Records(target, "--archive"), target.resolve(), records.directory.resolve()
    if place == out:
        raise OutputError(f"--archive and --out are both {target}; choose another --archive")
    if place.is_relative_to(out) and place.relative_to(out).parts[0] in {RECORDS, *(job.task for job in jobs)}:
        raise OutputError(f"{target} is where jobs of --out write; choose another --archive")
    ran = records.settled()  # by the program that ran the jobs, which this one may not be
    settings, code = ran["settings"], ran["code"]
    content: dict[str, Any] = {"plan": asdict(plan), "settings": settings, "code": code}
    if (target / PLAN).exists():
        theirs = there.settled()
        if theirs["kind"] != ARCHIVE:
            raise OutputError(f"{target} is a comparison in which jobs run, and no archive; choose another --archive")
        content["settings"] = {**theirs["settings"], **settings}
        content["code"] = {**theirs["code"], **code}
        there.refuse_another(theirs, content, ("plan", "settings"))
        there.refuse_other_code(plan, theirs["code"], code)
    else:
        there.refuse_foreign()
    done = {job: replace(record, result=_without(record.result, _PLACES)) for job in jobs if (record := records.done(job)) is not None}
    _refuse_conflicts(jobs, done, records, there)
    new = {job: record for job, record in done.items() if there.done(job) is None}
    kept = {job.run for job in jobs if job.kind is not Kind.EVALUATE and there.done(job) is not None}  # their files are of those jobs
    runs = dict.fromkeys(job.run for job in new if job.run not in kept)
    return Addition(content, new, dict(pair for run in runs for pair in _files(records.directory, run)))


def add(plan: Plan, jobs: tuple[Job, ...], records: Records, target: Path) -> int:
    """Adds to an archive, or begins it; what it has stays as it is. Returns how many jobs it gained. Raises as :func:`addition` does."""
    found, there = addition(plan, jobs, records, target), Records(target, "--archive")
    there.begin(ARCHIVE, found.plan)
    for path, text in found.files.items():
        write_text(target / path, text)
    for job, record in found.jobs.items():  # last, so that a job is recorded when all of it is there
        there.write(job, record)
    return len(found.jobs)


def _refuse_conflicts(jobs: tuple[Job, ...], done: dict[Job, Record], records: Records, there: Records) -> None:
    """Raises OutputError when a job came out differently there, or when what is compared did not begin alike."""
    conflicts = [f"{job.name} came out differently there" for job, record in done.items() if _differs(job, record, records, there)]
    begun: dict[tuple[str, int, str], set[str]] = {}
    for job, name, value in _beginnings(jobs, there):
        begun.setdefault((job.task, job.seed, name), set()).add(value)
    conflicts += [
        f"{job.run} began with {_BEGINNINGS[name]} than the runs there"
        for job, name, value in _beginnings(jobs, records)
        if value not in begun.get((job.task, job.seed, name), {value})
    ]
    if conflicts:
        more = f" and {len(conflicts) - _NAMED} more" if len(conflicts) > _NAMED else ""
        raise OutputError(f"nothing was added to {there.directory}: {'; '.join(conflicts[:_NAMED])}{more}; choose another --archive")


def _differs(job: Job, record: Record, records: Records, there: Records) -> bool:
    """Whether there is a record of the job that says something else than this one, but for when and how long it ran.

    A training prints no outcome: its learning curve tells one from another.
    """
    if not there.recorded(job):
        return False
    other, ignored = there.same(job), (*_PLACES, _CLOCK)
    if other is None or _without(other.result, ignored) != _without(record.result, ignored):
        return True
    return job.kind is Kind.TRAIN and _curve(there, job) != _curve(records, job)


def _curve(records: Records, job: Job) -> list[str]:
    """What a run's evaluations.csv says, but for when; empty without one. As text, in which NaN is itself."""
    return [json.dumps(_without(row, (_CLOCK,))) for row in rows(records.directory / job.run / "evaluations.csv")]


def _beginnings(jobs: Iterable[Job], records: Records) -> Iterator[tuple[Job, str, str]]:
    """Of each training that is done, what it began with: key of config.json and hash."""
    for job in jobs:
        if job.kind is Kind.TRAIN and records.done(job) is not None:
            config = _read(records.directory / job.output)
            yield from ((job, name, config[name]) for name in _BEGINNINGS if config.get(name))


def _files(directory: Path, run: str) -> Iterator[tuple[str, str]]:
    """Path and text of what the archive has of a run or of demonstrations."""
    for name, keys in _KEPT.items():
        if (directory / run / name).exists():
            content = _read(directory / run / name)
            yield f"{run}/{name}", json.dumps({key: content[key] for key in keys if key in content}, indent=2) + "\n"
    spent = last_row(directory / run / "metrics.csv")
    if spent is not None:  # as the same reader reads it
        head, row = "step,seconds", f"{int(spent['step'])},{spent['seconds']!r}"
        if spent.get(LOST):
            head, row = f"{head},{LOST}", f"{row},{int(spent[LOST])}"
        yield f"{run}/metrics.csv", f"{head}\n{row}\n"
    if (directory / run / "evaluations.csv").exists():
        yield f"{run}/evaluations.csv", (directory / run / "evaluations.csv").read_text(encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty when it cannot be read."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _without(result: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in names}
