# SPDX-License-Identifier: Apache-2.0
"""The report of a comparison: ``report.json`` for programs, ``report.md`` for people, ``curves.png`` for both to look at."""

import json
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from otpr_policy import __version__
from otpr_policy.errors import EnvironmentSetupError
from otpr_policy.files import write_text
from otpr_trainer.compare import curves
from otpr_trainer.compare.jobs import Job
from otpr_trainer.compare.plan import Plan, shipped
from otpr_trainer.compare.records import Records, machine
from otpr_trainer.compare.results import Results, Row, gather, to_json
from otpr_trainer.compare.statistics import Estimate
from otpr_trainer.run import utc_now

SCHEMA_VERSION = 1


def write(plan: Plan, jobs: tuple[Job, ...], records: Records) -> tuple[Results, str | None]:
    """Writes the report of what is done into the directory.

    Returns:
        The results, and a sentence that says why there are no curves; None when there are.

    Raises:
        OutputError: it cannot be written.
    """
    results = gather(plan, jobs, records)
    why = None
    try:
        drawn = curves.draw(plan, records.directory, records.directory / "curves.png")
    except EnvironmentSetupError as error:
        why, drawn = str(error), False
    done = {job.name: record for job in jobs if (record := records.done(job)) is not None}
    data = {
        "kind": "otpr comparison report",
        "schema_version": SCHEMA_VERSION,
        "otpr_version": __version__,
        "written": utc_now(),
        "plan": asdict(plan),
        "machine": machine(),
        "git_commits": results.commits,
        "rows": to_json(results),
        "jobs": [
            {
                "name": job.name,
                "command": " ".join(("otpr", *job.words)),
                "done": job.name in done,
                **({} if job.name not in done else {key: getattr(done[job.name], key) for key in ("seconds", "finished", "git_commit")}),
            }
            for job in jobs
        ],
        "missing": results.missing,
    }
    write_text(records.directory / "report.json", json.dumps(data, indent=2) + "\n")
    write_text(records.directory / "report.md", markdown(results, jobs, drawn))
    return results, why


def markdown(results: Results, jobs: tuple[Job, ...], drawn: bool) -> str:
    """The report as text."""
    plan, here = results.plan, machine()
    called = plan.name if plan.name in shipped() else "PLAN.yaml"
    done = len(jobs) - len(results.missing)
    lines = [
        f"# {plan.name}",
        "",
        f"`otpr compare {called} --out DIR`; commit {', '.join(results.commits) or 'unknown'}; {here['cores']} cores ({here['cpu']}), "
        f"Python {here['python']}, one thread per job. {done} of {len(jobs)} jobs are done.",
        "",
        f"Budget {plan.budget} environment steps per method and seed. Evaluation: {plan.evaluation.episodes} episodes with seed "
        f"{plan.evaluation.seed}, the same scenes for all; DDIM, {plan.evaluation.steps} steps, eta 1.",
        "",
    ]
    demos = {task.name: task.demos for task in plan.tasks}
    for (task, preset), rows in groupby(results.rows, key=lambda row: (row.task, row.preset)):
        lines += [f"## {task}, {demos[task]} demonstrations, preset {preset}", "", *_table(results, list(rows)), ""]
    lines += [
        "Success: mean over seeds and scenes with a 95 % bootstrap interval over both; differences are paired by seed and scene. "
        "Training time: wall clock, mean over seeds.",
        "",
    ]
    if drawn:
        lines += ["![Learning curves](curves.png)", ""]
    first = [job for job in jobs if job.seed == plan.seeds[0]]
    lines += [f"## Commands of seed {plan.seeds[0]}", "", "```", *(" ".join(("otpr", *job.words)) for job in first), "```", ""]
    if results.missing:
        lines += ["## Not done yet", "", *(f"- {name}" for name in results.missing), ""]
    return "\n".join(lines)


def _table(results: Results, rows: list[Row]) -> list[str]:
    plan = results.plan
    seeds = ", ".join(map(str, plan.seeds))
    header = ["method", "acting", "success", f"of seeds {seeds}", "environment steps", "training", f"against {plan.start.algorithm}"]
    header += [f"against {plan.control}"] if plan.control else []
    lines = [_line(header), _line(["---"] * len(header))]
    for row in rows:
        cells = [
            row.method,
            "one sample" if row.candidates == 1 else f"best of {row.candidates}",
            _rate(row.success),
            _of_seeds(plan, row),
            f"{row.environment_steps:.0f}",
            "" if row.seconds is None else f"{row.seconds:.0f} s",
            _difference(row, results.start(row)),
        ]
        lines.append(_line([*cells, *([_difference(row, results.control(row))] if plan.control else [])]))
    return lines


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rate(value: Estimate) -> str:
    return f"{value.mean:.3f} [{value.low:.2f}, {value.high:.2f}]"


def _of_seeds(plan: Plan, row: Row) -> str:
    found = {one.seed: f"{one.success:.2f}" for one in row.seeds}
    return ", ".join(found.get(seed, "-") for seed in plan.seeds)


def _difference(row: Row, other: Row | None) -> str:
    found = None if other is None else row.difference(other)
    return "" if found is None else f"{found.mean:+.3f} [{found.low:+.2f}, {found.high:+.2f}]"


def paths(directory: Path) -> list[Path]:
    """The report's files that are there."""
    return [path for name in ("report.md", "report.json", "curves.png") if (path := directory / name).exists()]
