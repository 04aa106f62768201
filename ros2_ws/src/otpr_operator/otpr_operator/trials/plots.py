# SPDX-License-Identifier: Apache-2.0
"""The pictures of a report of trials."""

from pathlib import Path
from typing import Any

from otpr_operator.trials.results import Results
from otpr_policy.errors import EnvironmentSetupError
from otpr_policy.files import atomic_path

_SOLVED, _FAILED = "#2a9d5c", "#d1495b"


def draw(results: Results, target: Path) -> None:
    """Draws success with its interval, every block's outcomes, and the time to each success.

    Raises:
        EnvironmentSetupError: matplotlib is not installed.
        OutputError: ``target`` cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EnvironmentSetupError(f"nothing drawn: matplotlib is not installed ({error}); pip install matplotlib") from error
    count = len(results.rows)
    figure = Figure(figsize=(11, 2.6 + 1.5 * count), layout="constrained")
    grid = figure.add_gridspec(2, 2)
    _success(figure.add_subplot(grid[0, 0]), results)
    _times(figure.add_subplot(grid[0, 1]), results)
    _outcomes(figure.add_subplot(grid[1, :]), results)
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _success(axis: Any, results: Results) -> None:
    for place, row in enumerate(results.rows):
        if row.success is None:
            continue
        low, high = row.success.interval
        axis.plot([low, high], [place, place], color="C0", linewidth=8, alpha=0.35, solid_capstyle="butt")
        axis.plot([row.success.rate], [place], "|", color="C0", markersize=20, markeredgewidth=3)
    axis.set(xlim=(-0.02, 1.02), xlabel="success", title="Success, 95 % Wilson interval")
    _name_rows(axis, results)


def _times(axis: Any, results: Results) -> None:
    for place, row in enumerate(results.rows):
        times = row.seconds_to_success
        axis.plot(times, [place] * len(times), "o", color=_SOLVED, alpha=0.6)
    axis.set(xlabel="seconds from engaging to success", title="Time to success")
    axis.set_xlim(left=0, right=results.study.time_limit_s)
    _name_rows(axis, results)


def _outcomes(axis: Any, results: Results) -> None:
    for place, row in enumerate(results.rows):
        for solved, colour, marker in ((True, _SOLVED, "s"), (False, _FAILED, "X")):
            blocks = [one.trial.block + 1 for one in row.done if one.success is solved]
            label = ("success" if solved else "failure") if place == 0 else None
            axis.plot(blocks, [place] * len(blocks), marker, color=colour, markersize=9, label=label)
    axis.set(xlabel="block: the trials above each other met the same scene", title="Outcomes", xlim=(0.4, results.study.blocks + 0.6))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    _name_rows(axis, results)


def _name_rows(axis: Any, results: Results) -> None:
    axis.set_yticks(range(len(results.rows)))
    axis.set_yticklabels([row.arm.name for row in results.rows])
    axis.set_ylim(len(results.rows) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.3)
