# SPDX-License-Identifier: Apache-2.0
"""What a comparison has found so far: numbers of every seed, their means, and paired differences. Rendering is elsewhere."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from otpr_trainer.compare.jobs import Job, Kind
from otpr_trainer.compare.metrics import last_row, lost
from otpr_trainer.compare.plan import Plan
from otpr_trainer.compare.records import Record, Records
from otpr_trainer.compare.statistics import Estimate, estimate


@dataclass(frozen=True)
class SeedResult:
    """One policy's evaluation.

    Args:
        seed: of demonstrations and training.
        outcomes: 1 or 0 for each scene, in order.
        mean_steps: control steps per episode.
        environment_steps: that training took, 0 of what was cloned.
        seconds: wall clock of training; None when the run's metrics are gone.
    """

    seed: int
    outcomes: tuple[int, ...]
    mean_steps: float
    environment_steps: int
    seconds: float | None

    @property
    def success(self) -> float:
        """Share of scenes that it solved."""
        return sum(self.outcomes) / len(self.outcomes)


@dataclass(frozen=True)
class Row:
    """One method, acting in one way, on one task and preset, over the seeds that are done."""

    task: str
    preset: str
    method: str
    candidates: int
    seeds: tuple[SeedResult, ...]

    @property
    def acting(self) -> str:
        """How it acts, for people."""
        return "one sample" if self.candidates == 1 else f"best of {self.candidates}"

    @property
    def label(self) -> str:
        """Method and way of acting, for people."""
        return self.method if self.candidates == 1 else f"{self.method}, {self.acting}"

    @property
    def success(self) -> Estimate:
        """Mean over seeds and scenes."""
        return estimate([one.outcomes for one in self.seeds])

    def difference(self, other: "Row") -> Estimate | None:
        """Mean of ours minus theirs, paired by seed and scene; None without a seed in common."""
        theirs = {one.seed: one.outcomes for one in other.seeds}
        pairs = [(one.outcomes, theirs[one.seed]) for one in self.seeds if one.seed in theirs]
        if not pairs:
            return None
        return estimate([[a - b for a, b in zip(ours, others, strict=True)] for ours, others in pairs])

    @property
    def environment_steps(self) -> float:
        """Mean over seeds."""
        return sum(one.environment_steps for one in self.seeds) / len(self.seeds)

    @property
    def seconds(self) -> float | None:
        """Mean wall clock of training; None when it is not known of each seed."""
        known = [one.seconds for one in self.seeds if one.seconds is not None]
        return sum(known) / len(known) if len(known) == len(self.seeds) else None


@dataclass(frozen=True)
class Results:
    """All rows, in the plan's order, and which jobs they are from."""

    plan: Plan
    rows: tuple[Row, ...]
    missing: tuple[str, ...]  # jobs that are not done
    commits: tuple[str, ...]  # of the code that the jobs ran with
    machines: tuple[dict[str, Any], ...] = ()  # that the jobs ran on, as far as their records say it, with the number of "jobs" of each
    lost: tuple[dict[str, Any], ...] = ()  # "run" that lost episodes with a worker process: how many "training" and "evaluation" episodes

    def start(self, row: Row) -> Row | None:
        """The start policy's row for the same task and preset; None for itself."""
        return self._row(row, self.plan.start.algorithm)

    def control(self, row: Row) -> Row | None:
        """The control's row, acting in its first way; None for itself and without a control."""
        return self._row(row, self.plan.control)

    def _row(self, row: Row, method: str) -> Row | None:
        found = [other for other in self.rows if (other.task, other.preset, other.method) == (row.task, row.preset, method)]
        return found[0] if found and found[0] is not row else None


def by_table(results: Results) -> list[tuple[str, str, list[Row]]]:
    """Task, preset and the rows of each table, in the plan's order."""
    return [(*key, list(rows)) for key, rows in groupby(results.rows, key=lambda row: (row.task, row.preset))]


def gather(plan: Plan, jobs: tuple[Job, ...], records: Records) -> Results:
    """Reads what is done."""
    done = {job.name: record for job in jobs if (record := records.done(job)) is not None}
    played = {job.run for job in jobs if job.budget}  # the others have not met the task in training
    found: dict[tuple[str, str, str, int], list[SeedResult]] = {}
    for job in jobs:
        if job.kind is Kind.EVALUATE and job.name in done:
            result = done[job.name].result
            steps, seconds = _spent(job, records.directory, played=job.run in played)
            outcomes = tuple(int(outcome) for outcome in result["outcomes"])
            found.setdefault((job.task, job.preset, job.method, job.candidates), []).append(
                SeedResult(job.seed, outcomes, float(result["mean_steps"]), steps, seconds)
            )
    order = {(job.task, job.preset, job.method, job.candidates): None for job in jobs if job.kind is Kind.EVALUATE}
    rows = tuple(Row(*key, tuple(found[key])) for key in sorted(order, key=lambda key: _place(plan, key)) if key in found)
    commits = tuple(sorted({record.git_commit for record in done.values()}))
    return Results(
        plan, rows, tuple(job.name for job in jobs if job.name not in done), commits, _machines(done.values()), _lost(done, jobs, records)
    )


def _machines(records: Iterable[Record]) -> tuple[dict[str, Any], ...]:
    counts = Counter(json.dumps(record.machine) for record in records if record.machine is not None)
    return tuple({**json.loads(text), "jobs": count} for text, count in counts.most_common())


def _lost(done: Iterable[str], jobs: tuple[Job, ...], records: Records) -> tuple[dict[str, Any], ...]:
    counts = {job.run: lost(records.directory / job.run) for job in jobs if job.kind is Kind.TRAIN and job.name in done}
    return tuple(
        {"run": run, "training": training, "evaluation": judged} for run, (training, judged) in counts.items() if training or judged
    )


def _place(plan: Plan, key: tuple[str, str, str, int]) -> tuple[int, int]:
    """Tables by task and preset; within one, the order of the jobs."""
    return [task.name for task in plan.tasks].index(key[0]), plan.evaluation.presets.index(key[1])


def _spent(job: Job, directory: Path, *, played: bool) -> tuple[int, float | None]:
    row = last_row(directory / job.run / "metrics.csv")
    if row is None:
        return 0, None
    return int(row["step"]) if played else 0, row["seconds"]


def to_json(results: Results) -> list[dict[str, Any]]:
    """The rows as plain data, all seeds' numbers included."""
    data = []
    for row in results.rows:
        entry: dict[str, Any] = {
            "task": row.task,
            "preset": row.preset,
            "method": row.method,
            "candidates": row.candidates,
            "success": row.success.to_json(),
            "environment_steps": row.environment_steps,
            "training_seconds": row.seconds,
            "seeds": [
                {
                    "seed": one.seed,
                    "successes": sum(one.outcomes),
                    "episodes": len(one.outcomes),
                    "success_rate": one.success,
                    "mean_steps": one.mean_steps,
                    "environment_steps": one.environment_steps,
                    "training_seconds": one.seconds,
                    "outcomes": "".join(map(str, one.outcomes)),
                }
                for one in row.seeds
            ],
        }
        for name, other in (("against_start", results.start(row)), ("against_control", results.control(row))):
            difference = None if other is None else row.difference(other)
            entry[name] = None if difference is None else difference.to_json()
        data.append(entry)
    return data
