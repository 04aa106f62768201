# SPDX-License-Identifier: Apache-2.0
"""Reading what a run measured: ``metrics.csv`` and ``evaluations.csv``, finished or not."""

import csv
from pathlib import Path

_TAIL_BYTES = 16384
LOST = "rollout/lost_episodes"  # of metrics.csv: training episodes so far that went with a worker process
_EPISODES = "/episodes"  # how columns of evaluations.csv end that say how many were played to their end


def rows(path: Path) -> list[dict[str, float]]:
    """All whole rows of a run's CSV file; none when there is no such file. Cells that are no numbers are left out."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return []
    whole = text[: text.rfind("\n") + 1]  # a last line without its end is being written
    return _parse(whole.splitlines())


def last_row(path: Path) -> dict[str, float] | None:
    """The newest whole row, without reading the rows before; None when there is none."""
    try:
        with path.open("rb") as file:
            header = file.readline().decode()
            begin = file.tell()
            file.seek(max(begin, path.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return None
    lines = text[: text.rfind("\n") + 1].splitlines()
    found = _parse([header, *lines[-1:]])
    return found[-1] if found else None


def lost(run: Path) -> tuple[int, int]:
    """Episodes that a run lost with a worker process: of training, and of its evaluations, where one has fewer than another."""
    spent = last_row(run / "metrics.csv") or {}
    played = [count for row in rows(run / "evaluations.csv") for name, count in row.items() if name.endswith(_EPISODES)]
    return int(spent.get(LOST, 0)), int(sum(max(played) - count for count in played)) if played else 0


def _parse(lines: list[str]) -> list[dict[str, float]]:
    found = []
    for row in csv.DictReader(lines):
        numbers = {name: _number(cell) for name, cell in row.items() if isinstance(name, str) and isinstance(cell, str)}
        kept = {name: value for name, value in numbers.items() if value is not None}
        if {"step", "seconds"} <= set(kept):
            found.append(kept)
    return found


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
