# SPDX-License-Identifier: Apache-2.0
"""The picture of a rehearsal: how much of each gap a policy bears, and success against every factor."""

from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from otpr_policy.errors import EnvironmentSetupError
from otpr_policy.files import atomic_path
from otpr_policy.success import SuccessRate
from otpr_sim.rehearsal.analysis import Findings, Sweep

_COLUMNS = 3
_HURTS, _HOLDS, _JOINT = "#d1495b", "#2a9d5c", "#7a7a7a"


def draw(findings: Findings, target: Path, title: str) -> None:
    """Draws one panel for the ranking and one for each factor.

    Raises:
        EnvironmentSetupError: matplotlib is not installed.
        OutputError: ``target`` cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EnvironmentSetupError(f"nothing drawn: matplotlib is not installed ({error}); pip install matplotlib") from error
    rows = ceil(len(findings.sweeps) / _COLUMNS)
    heights = [0.8 + 0.32 * len(findings.sweeps), *([2.7] * rows)]
    figure = Figure(figsize=(12, sum(heights) + 0.6), layout="constrained")
    figure.suptitle(title)
    grid = figure.add_gridspec(1 + rows, _COLUMNS, height_ratios=heights)
    _ranking(figure.add_subplot(grid[0, :]), findings)
    for place, sweep in enumerate(findings.sweeps):
        _sweep(figure.add_subplot(grid[1 + place // _COLUMNS, place % _COLUMNS]), sweep, findings)
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _ranking(axis: Any, findings: Findings) -> None:
    reaches = [sweep.farthest if sweep.breaks_at is None else abs(sweep.breaks_at.gap) for sweep in findings.sweeps]
    for place, (sweep, reach) in enumerate(zip(findings.sweeps, reaches, strict=True)):
        at = sweep.breaks_at
        axis.barh(place, reach, color=_HOLDS if at is None else _HURTS, alpha=0.75, height=0.6)
        text = f"  no loss found up to {reach:.1f}" if at is None else f"  {at.success.rate:.2f} at {sweep.factor.show(at.value)}"
        axis.text(reach, place, text, va="center")
    axis.axvline(1.0, color="black", linewidth=1, linestyle=":")
    axis.set_yticks(range(len(findings.sweeps)))
    axis.set_yticklabels([sweep.factor.label for sweep in findings.sweeps])
    axis.set_ylim(len(findings.sweeps) - 0.5, -0.5)
    axis.set_xlim(0, 1.35 * max(reaches, default=1.0))
    axis.set_xlabel("multiples of a typical gap (dotted: 1)")
    axis.set_title("Where success is first lower than at nominal: what hurts first is on top")


def _sweep(axis: Any, sweep: Sweep, findings: Findings) -> None:
    factor = sweep.factor
    for number, one in enumerate(sweep.bins):
        if one.success is not None:
            low, high = one.success.interval
            label = "all factors at random" if number == 0 else None
            left, right = one.low * factor.scale, one.high * factor.scale
            axis.fill_between([left, right], low, high, color=_JOINT, alpha=0.18, linewidth=0)
            axis.plot([left, right], [one.success.rate] * 2, color=_JOINT, linewidth=1.5, label=label)
    points: list[tuple[float, SuccessRate]] = [(factor.nominal, findings.nominal)]
    points += [(level.value, level.success) for level in sweep.levels]
    points.sort(key=lambda point: point[0])
    values = np.array([value for value, _ in points]) * factor.scale
    bands = np.array([rate.interval for _, rate in points])
    axis.fill_between(values, bands[:, 0], bands[:, 1], color="C0", alpha=0.2, linewidth=0)
    axis.plot(values, [rate.rate for _, rate in points], "o-", color="C0", markersize=4, label="this factor alone")
    hurting = [level for level in sweep.levels if level.hurts]
    axis.plot([level.value * factor.scale for level in hurting], [level.success.rate for level in hurting], "o", color=_HURTS, markersize=6)
    axis.axvline(factor.typical * factor.scale, color="black", linewidth=1, linestyle=":")
    if factor.ratio:
        axis.set_xscale("log", base=2)
        axis.set_xticks(values, [f"{value:g}" for value in values])
        axis.minorticks_off()
    axis.set(ylim=(-0.03, 1.03), title=factor.label, xlabel="factor" if factor.unit == "x" else factor.unit)
    axis.grid(alpha=0.3)
    if sweep is findings.sweeps[0]:
        axis.legend(loc="lower left", fontsize=8)
