# SPDX-License-Identifier: Apache-2.0
"""The report of trials: ``report.json`` for programs, ``report.md`` and ``report.html`` for people. It names the conditions."""

import json
from pathlib import Path
from statistics import median
from typing import Any

from otpr_operator.trials.plots import draw
from otpr_operator.trials.results import LATENCIES, Results, Row, to_json
from otpr_policy import __version__
from otpr_policy.document import Block, Heading, Lines, Picture, Table, Text, html, markdown
from otpr_policy.errors import EnvironmentSetupError
from otpr_policy.files import write_text
from otpr_policy.machine import machine
from otpr_policy.paired import pairs_needed

SCHEMA_VERSION = 1
PICTURE = "trials.png"
FILES = ("report.html", "report.md", "report.json", PICTURE)


def write(results: Results, directory: Path, written: str) -> str | None:
    """Writes the report.

    Args:
        results: what it says.
        directory: where to.
        written: the time, as text.

    Returns:
        Why there is no picture; None when there is one.

    Raises:
        OutputError: it cannot be written.
    """
    why, pictures = None, []
    try:
        draw(results, directory / PICTURE)
        pictures = [Picture(directory / PICTURE, "Success with its interval, time to success, and the outcome of every trial")]
    except EnvironmentSetupError as error:
        why = str(error)
    data: dict[str, Any] = {
        "kind": "otpr trial report",
        "schema_version": SCHEMA_VERSION,
        "otpr_version": __version__,
        "written": written,
        "machine": machine(),
        **to_json(results),
    }
    blocks = document(results, written, pictures)
    write_text(directory / "report.json", json.dumps(data, indent=2) + "\n")
    write_text(directory / "report.md", markdown(blocks))
    write_text(directory / "report.html", html(blocks))
    return why


def document(results: Results, written: str, pictures: list[Picture]) -> list[Block]:
    """The report's text."""
    study, here = results.study, machine()
    world = f"on the twin, in {study.pacing.value.replace('_', ' ')}" if study.sim else "on the robot"
    state = f"{results.open} trials are open" if results.open else "all trials are done"
    blocks: list[Block] = [
        Heading(f"Trials: {study.name}", 1),
        Text(
            f"Task {study.task} {world}; {study.blocks} blocks of one trial of each condition on the same card, in an order drawn with "
            f"seed {study.seed}; judged by the {study.judge.value}; at most {study.time_limit_s:g} s each. {state.capitalize()}. "
            f"Written {written} by otpr {__version__} on {here['cores']} cores ({here['cpu']}), Python {here['python']}."
        ),
        Heading("Success"),
        _success(results.rows),
        *pictures,
        Heading("Differences"),
        *_differences(results),
        Heading("Safety"),
        _safety(results.rows),
        Text(
            "Counted by the policy node over all trials of a condition. A stop ends a trial; holds, clamps and rejects are ticks. "
            "Late cycles: 10 ms each that the twin was behind the clock; where there are many, the machine was too slow for real time."
        ),
        Heading("Latency"),
        _latency(results.rows),
        Text("Milliseconds: p50 of the median trial, p99 and maximum of the worst one."),
        Heading("Conditions"),
        _conditions(results.rows),
        Heading("Trials that were repeated"),
    ]
    invalid = [
        (f"trial {one.trial.number}, attempt {one.attempt} ({row.arm.name})", one.reason) for row in results.rows for one in row.invalid
    ]
    blocks.append(Lines(tuple(f"{what}: {why}" for what, why in invalid), code=False) if invalid else Text("None."))
    return [*blocks, Heading("Every trial"), _every_trial(results)]


def _success(rows: tuple[Row, ...]) -> Table:
    header = ("condition", "success", "95 % interval", "median time to success", "how the runs ended")
    lines = []
    for row in rows:
        if row.success is None:
            lines.append((row.arm.name, "no trial yet", "", "", ""))
            continue
        low, high = row.success.interval
        times = row.seconds_to_success
        endings = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in row.endings().items())
        rate = f"{row.success.successes}/{row.success.episodes} = {row.success.rate:.2f}"
        lines.append((row.arm.name, rate, f"[{low:.2f}, {high:.2f}]", f"{median(times):.2f} s" if times else "", endings))
    return Table(header, tuple(lines))


def _differences(results: Results) -> list[Block]:
    header = (
        "first",
        "second",
        "blocks",
        "both",
        "only first",
        "only second",
        "neither",
        "difference",
        "95 % interval",
        "p",
        "p corrected",
    )
    lines = []
    for one in results.comparisons:
        paired, (low, high) = one.paired, one.paired.interval
        counts = (paired.scenes, paired.both, paired.first, paired.second, paired.neither)
        numbers = (f"{paired.difference:+.2f}", f"[{low:+.2f}, {high:+.2f}]", f"{paired.p:.3g}", f"{one.corrected:.3g}")
        lines.append((one.first, one.second, *map(str, counts), *numbers))
    if not lines:
        return [Text("No block has a verdict for two conditions yet.")]
    return [
        Table(header, tuple(lines)),
        Text(
            "p: McNemar's exact test, two-sided, on the blocks in which the two differ; corrected for the number of comparisons by Holm's "
            f"method. Below 0.05 needs at least {pairs_needed()} blocks that differ, all one way: a large p does not show that conditions "
            "are equal. Difference: Newcombe's interval for paired proportions."
        ),
    ]


def _safety(rows: tuple[Row, ...]) -> Table:
    names = tuple(dict.fromkeys(name for row in rows for name in row.counters()))
    header = ("condition", "stops", "faults", *(name.replace("_", " ") for name in names))
    lines = []
    for row in rows:
        endings, counters = row.endings(), row.counters()
        stops = (endings.get("stopped", 0), endings.get("fault", 0))
        lines.append((row.arm.name, *map(str, stops), *(str(counters.get(name, "")) for name in names)))
    return Table(header, tuple(lines))


def _latency(rows: tuple[Row, ...]) -> Table:
    header = ("condition", *(f"{what.replace('_', ' ')} {name}" for what in LATENCIES for name in ("p50", "p99", "max")))
    lines = []
    for row in rows:
        cells = []
        for what in LATENCIES:
            values = row.latency(what)
            cells += [f"{values[name]:.2f}" if name in values else "" for name in ("p50", "p99", "max")]
        lines.append((row.arm.name, *cells))
    return Table(header, tuple(lines))


def _conditions(rows: tuple[Row, ...]) -> Table:
    header = ("condition", "artifact", "sha256", "algorithm", "robot", "preset")
    lines = []
    for row in rows:
        arm = row.arm
        lines.append((arm.name, Path(arm.artifact).name, arm.artifact_sha256, arm.algorithm, Path(arm.robot).name, arm.preset))
    return Table(header, tuple(lines))


def _every_trial(results: Results) -> Table:
    header = ("trial", "block", "card", "condition", "verdict", "reason", "ended", "seconds")
    lines = {}
    for row in results.rows:
        for one in row.done:
            place = (str(one.trial.number), str(one.trial.block + 1), one.trial.card)
            verdict = ("success" if one.success else "failure", one.reason, one.run.ended.value.replace("_", " "), f"{one.run.seconds:.2f}")
            lines[one.trial.number] = (*place, row.arm.name, *verdict)
    return Table(header, tuple(lines[number] for number in sorted(lines)))


def paths(directory: Path) -> list[Path]:
    """The report's files that are there."""
    return [path for name in FILES if (path := directory / name).exists()]
