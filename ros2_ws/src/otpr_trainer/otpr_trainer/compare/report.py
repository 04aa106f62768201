# SPDX-License-Identifier: Apache-2.0
"""The report of a comparison: ``report.json`` for programs, ``report.md`` and ``report.html`` for people, and the pictures in them."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from otpr_policy import __version__
from otpr_policy.document import Block, Heading, Lines, Picture, Table, Text, html, markdown
from otpr_policy.errors import EnvironmentSetupError
from otpr_policy.files import write_text
from otpr_trainer.compare import bars, curves
from otpr_trainer.compare.jobs import Job
from otpr_trainer.compare.overall import Overall, overall
from otpr_trainer.compare.plan import Plan, shipped
from otpr_trainer.compare.records import Records
from otpr_trainer.compare.results import Results, Row, by_table, gather, to_json
from otpr_trainer.compare.statistics import Estimate
from otpr_trainer.run import utc_now

SCHEMA_VERSION = 2  # 1 had the machine that wrote the report, 2 has those that ran the jobs
_CAPTIONS = {  # of the pictures, which show their own text only where they cannot be shown
    "success.png": "Success: a bar is the 95 % interval, a stroke the mean, a dot each seed.",
    "curves.png": "Evaluations during training, each a mark, in other scenes than the tables'. A thin line is a seed, a thick one "
    "the mean; a dashed one acts by the critic's choice.",
}
FILES = ("report.html", "report.md", "report.json", "success.png", "curves.png")


def write(plan: Plan, jobs: tuple[Job, ...], records: Records) -> tuple[Results, str | None]:
    """Writes the report of what is done into the directory.

    Returns:
        The results, and a sentence that says why there are no pictures; None when there are.

    Raises:
        OutputError: it cannot be written.
    """
    results = gather(plan, jobs, records)
    why, pictures = None, []
    try:
        for drawn, name, text in (
            (bars.draw(results, records.directory / "success.png"), "success.png", "Success: mean, 95 % interval, and each seed"),
            (curves.draw(plan, records.directory, records.directory / "curves.png"), "curves.png", "Learning curves"),
        ):
            pictures += [Picture(records.directory / name, text)] if drawn else []
    except EnvironmentSetupError as error:
        why = str(error)
    totals = overall(results)
    done = {job.name: record for job in jobs if (record := records.done(job)) is not None}
    data = {
        "kind": "otpr comparison report",
        "schema_version": SCHEMA_VERSION,
        "otpr_version": __version__,
        "written": utc_now(),
        "plan": asdict(plan),
        "machines": results.machines,
        "git_commits": results.commits,
        "rows": to_json(results),
        "overall": [asdict(one) for one in totals],
        "jobs": [
            {
                "name": job.name,
                "command": " ".join(("otpr", *job.words)),
                "done": job.name in done,
                **({} if job.name not in done else {key: getattr(done[job.name], key) for key in ("seconds", "finished", "git_commit")}),
            }
            for job in jobs
        ],
        "lost_episodes": results.lost,
        "missing": results.missing,
    }
    blocks = document(results, totals, jobs, pictures)
    write_text(records.directory / "report.json", json.dumps(data, indent=2) + "\n")
    write_text(records.directory / "report.md", markdown(blocks))
    write_text(records.directory / "report.html", html(blocks))
    return results, why


def document(results: Results, totals: list[Overall], jobs: tuple[Job, ...], pictures: list[Picture]) -> list[Block]:
    """The report's text."""
    plan = results.plan
    called = plan.name if plan.name in shipped() else "PLAN.yaml"
    demos = {task.name: task.demos for task in plan.tasks}
    done = len(jobs) - len(results.missing)
    blocks: list[Block] = [
        Heading(plan.name, 1),
        Text(
            f"`otpr compare {called} --out DIR`; commit {', '.join(results.commits) or 'unknown'}; "
            f"{machines(results, done)}one thread per job. {done} of {len(jobs)} jobs are done."
        ),
        Text(
            f"Budget {budgets(plan)} environment steps per seed of each method that fine-tunes. Evaluation: "
            f"{plan.evaluation.episodes} episodes with seed {plan.evaluation.seed}, the same scenes for all; DDIM, "
            f"{plan.evaluation.steps} steps, eta 1, or as many of an interpolant; a policy with a chain of its own acts with that."
        ),
    ]
    for task, preset, rows in by_table(results):
        blocks += [Heading(f"{task}, {demos[task]} demonstrations, preset {preset}"), _table(results, rows)]
    blocks += [
        Text(
            "Success: mean over seeds and scenes with a 95 % bootstrap interval over both; differences are paired by seed and scene. "
            "Where all episodes ended alike an interval has no width, which is no certainty; fewer than five seeds say little about "
            "others, so look at each. Training time: wall clock, mean over seeds."
        )
    ]
    if results.lost:
        blocks += [Text(f"Episodes that were lost with a simulator process and left out: {'; '.join(map(_lost, results.lost))}.")]
    if len(plan.tasks) * len(plan.seeds) > 1 and totals:  # of a single run they would say what the table says
        blocks += [
            Heading("All tasks" if len(plan.tasks) > 1 else "All seeds"),
            _overall_table(plan, totals),
            Text(
                "Interquartile mean of the success of runs, and the probability that a run is better than one of the other method on a "
                "task drawn at random; 95 % intervals by stratified bootstrap over seeds (Agarwal et al. 2021)."
            ),
        ]
    for picture in pictures:
        blocks += [picture, Text(_CAPTIONS[picture.path.name])]
    first = tuple(" ".join(("otpr", *job.words)) for job in jobs if job.seed == plan.seeds[0])
    blocks += [Heading(f"Commands of seed {plan.seeds[0]}"), Lines(first, code=True)]
    return blocks + ([Heading("Not done yet"), Lines(results.missing, code=False)] if results.missing else [])


def machines(results: Results, done: int) -> str:
    """What the jobs ran on, with a comma and a space behind it; empty when no record says it. ``done``: number of jobs that are done."""
    told = sum(one["jobs"] for one in results.machines)
    alone = len(results.machines) == 1 and told == done
    texts = [f"{one['cores']} cores ({one['cpu']}), Python {one['python']}" for one in results.machines]
    texts = texts if alone else [f"{text} ({one['jobs']} jobs)" for text, one in zip(texts, results.machines, strict=True)]
    if 0 < told < done:
        texts.append(f"a machine that is not recorded ({done - told} jobs)")
    return "".join(f"{text}, " for text in texts)


def budgets(plan: Plan) -> str:
    """The budget, or that of each task where they differ, and of methods that have one of their own."""
    by_task = {task.name: task.budget or plan.budget for task in plan.tasks}
    alike = len(set(by_task.values())) == 1
    texts = [str(next(iter(by_task.values())))] if alike else [f"{budget} ({name})" for name, budget in by_task.items()]
    return ", ".join(texts + [f"{method.budget} ({method.name})" for method in plan.methods if method.budget])


def _table(results: Results, rows: list[Row]) -> Table:
    plan = results.plan
    seeds = ", ".join(map(str, plan.seeds))
    header = ["method", "acting", "success", f"of seeds {seeds}", "environment steps", "training", f"against {plan.start.algorithm}"]
    header += [f"against {plan.control}"] if plan.control else []
    lines = []
    for row in rows:
        cells = [
            row.method,
            row.acting,
            _rate(row.success),
            _of_seeds(plan, row),
            f"{row.environment_steps:.0f}",
            "" if row.seconds is None else f"{row.seconds:.0f} s",
            _difference(row, results.start(row)),
        ]
        lines.append((*cells, *([_difference(row, results.control(row))] if plan.control else [])))
    return Table(tuple(header), tuple(lines))


def _overall_table(plan: Plan, totals: list[Overall]) -> Table:
    header = ["preset", "method", "seeds", "interquartile mean", f"better than {plan.start.algorithm}"]
    header += [f"better than {plan.control}"] if plan.control else []
    rows = []
    for one in totals:
        cells = [one.preset, one.label, str(one.seeds), _rate(one.middle), _rate(one.over_start)]
        rows.append((*cells, *([_rate(one.over_control)] if plan.control else [])))
    return Table(tuple(header), tuple(rows))


def _rate(value: Estimate | None) -> str:
    return "" if value is None else f"{value.mean:.3f} [{value.low:.2f}, {value.high:.2f}]"


def _of_seeds(plan: Plan, row: Row) -> str:
    found = {one.seed: f"{one.success:.2f}" for one in row.seeds}
    return ", ".join(found.get(seed, "-") for seed in plan.seeds)


def _difference(row: Row, other: Row | None) -> str:
    found = None if other is None else row.difference(other)
    return "" if found is None else f"{found.mean:+.3f} [{found.low:+.2f}, {found.high:+.2f}]"


def _lost(one: Mapping[str, Any]) -> str:
    counts = {"training": one["training"], "evaluations during training": one["evaluation"]}
    return f"{one['run']} ({', '.join(f'{count} of {what}' for what, count in counts.items() if count)})"


def paths(directory: Path) -> list[Path]:
    """The report's files that are there."""
    return [path for name in FILES if (path := directory / name).exists()]
