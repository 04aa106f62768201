# SPDX-License-Identifier: Apache-2.0
"""The report of a rehearsal: ``report.json`` for programs, ``report.md`` and ``report.html`` for people, and the picture in them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from otpr_policy import __version__
from otpr_policy.document import Block, Heading, Lines, Picture, Table, Text, html, markdown
from otpr_policy.errors import EnvironmentSetupError
from otpr_policy.files import write_text
from otpr_policy.machine import machine
from otpr_policy.success import SuccessRate
from otpr_sim.rehearsal.analysis import LEVEL, Findings, Sweep, in_words
from otpr_sim.rehearsal.design import JOINT_GAP
from otpr_sim.rehearsal.plots import draw

PICTURE = "rehearsal.png"
FILES = ("report.html", "report.md", "report.json", PICTURE)


def write(findings: Findings, settings: dict[str, Any], directory: Path, written: str, missing: int) -> str | None:
    """Writes the report.

    Args:
        findings: what it says.
        settings: what was rehearsed: ``artifact``, ``artifact_sha256``, ``task``, ``seed``.
        directory: where to.
        written: the time, as text.
        missing: episodes that are not played yet.

    Returns:
        Why there is no picture; None when there is one.

    Raises:
        OutputError: it cannot be written.
    """
    title = f"Rehearsal of {settings['artifact']} ({settings['artifact_sha256'][:12]}) on {settings['task']}"
    why, pictures = None, []
    try:
        draw(findings, directory / PICTURE, title)
        pictures = [Picture(directory / PICTURE, "Which gap hurts first, and success against each factor")]
    except EnvironmentSetupError as error:
        why = str(error)
    blocks = document(findings, settings, title, written, missing, pictures)
    data = {
        "kind": "otpr rehearsal report",
        "schema_version": 1,
        "otpr_version": __version__,
        "written": written,
        "machine": machine(),
        **settings,
        "missing": missing,
        **to_json(findings),
    }
    write_text(directory / "report.json", json.dumps(data, indent=2) + "\n")
    write_text(directory / "report.md", markdown(blocks))
    write_text(directory / "report.html", html(blocks))
    return why


def document(findings: Findings, settings: dict[str, Any], title: str, written: str, missing: int, pictures: list[Picture]) -> list[Block]:
    """The report's text."""
    tests = sum(len(sweep.levels) for sweep in findings.sweeps)
    here = machine()
    joint = "" if findings.joint is None else f" With all factors at random, up to {JOINT_GAP:g} typical gaps each: {findings.joint}."
    return [
        Heading(title, 1),
        Text(
            f"Success at nominal: {findings.nominal}.{joint} Scenes of seed {settings['seed']}, the same in every world"
            f"{f'; {missing} episodes are not played yet' if missing else ''}. "
            f"Written {written} by otpr {__version__} on {here['cores']} cores ({here['cpu']}), Python {here['python']}."
        ),
        Heading("What hurts first"),
        Lines(tuple(f"{place}. {line}" for place, line in enumerate(in_words(findings), 1)), code=False),
        Text(
            f"A value hurts when success is lower than at nominal by McNemar's exact test on the scenes (p < {LEVEL:g}, not corrected for "
            f"the {tests} values that were tried: one that hurts while those beyond it do not is chance). Typical gaps are a yardstick of "
            "ours to make factors comparable; a team that knows its own gaps should look at the values."
        ),
        *pictures,
        Text("Bands: 95 % Wilson intervals. Red: hurts. Dotted: a typical gap. Grey: all factors at random, in order of this one."),
        *[block for sweep in findings.sweeps for block in (Heading(sweep.factor.label), _table(sweep, findings.nominal))],
    ]


def to_json(findings: Findings) -> dict[str, Any]:
    """Plain data for programs."""
    return {
        "nominal": findings.nominal.to_json(),
        "joint": None if findings.joint is None else findings.joint.to_json(),
        "ranking": list(in_words(findings)),
        "factors": [_sweep_to_json(sweep) for sweep in findings.sweeps],
    }


def _sweep_to_json(sweep: Sweep) -> dict[str, Any]:
    at = sweep.breaks_at
    return {
        **asdict(sweep.factor),
        "breaks_at": None if at is None else at.value,
        "breaks_at_gaps": None if at is None else abs(at.gap),
        "levels": [
            {
                "value": one.value,
                "gaps": one.gap,
                **one.success.to_json(),
                "lost": one.lost,
                "won": one.won,
                "p": one.p,
                "hurts": one.hurts,
            }
            for one in sweep.levels
        ],
        "bins": [{"low": one.low, "high": one.high, **({} if one.success is None else one.success.to_json())} for one in sweep.bins],
    }


def _table(sweep: Sweep, nominal: SuccessRate) -> Table:
    factor = sweep.factor
    rows = [(factor.nominal, ("nominal", "0", _rate(nominal), "", "", ""))]
    for one in sweep.levels:
        cells = (f"{one.gap:+.1f}", _rate(one.success), str(one.lost), str(one.won), f"{one.p:.2g}{' hurts' if one.hurts else ''}")
        rows.append((one.value, (factor.show(one.value), *cells)))
    header = (f"{factor.name}", "typical gaps", "success", "lost", "won", "p")
    return Table(header, tuple(cells for _, cells in sorted(rows, key=lambda row: row[0])))


def _rate(rate: SuccessRate) -> str:
    low, high = rate.interval
    return f"{rate.successes}/{rate.episodes} = {rate.rate:.2f} [{low:.2f}, {high:.2f}]"


def paths(directory: Path) -> list[Path]:
    """The report's files that are there."""
    return [path for name in FILES if (path := directory / name).exists()]
