# SPDX-License-Identifier: Apache-2.0
"""Success of all methods at a glance: a line per method and way of acting, with its interval and a dot for each seed."""

from pathlib import Path

from otpr_policy.errors import EnvironmentSetupError
from otpr_policy.files import atomic_path
from otpr_trainer.compare.results import Results, by_table


def draw(results: Results, target: Path) -> bool:
    """Draws one panel per task and preset. Returns False when there is no result yet.

    Raises:
        EnvironmentSetupError: matplotlib is not installed.
        OutputError: ``target`` cannot be written.
    """
    tables = by_table(results)
    if not tables:
        return False
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EnvironmentSetupError(f"nothing drawn: matplotlib is not installed ({error}); pip install matplotlib") from error
    heights = [0.9 + 0.34 * len(rows) for _, _, rows in tables]
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    axes = figure.subplots(len(tables), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (task, preset, rows) in zip(axes, tables, strict=True):
        for place, row in enumerate(rows):
            value = row.success
            colour = "C7" if row.method == results.plan.start.algorithm else "C0" if row.candidates == 1 else "C1"
            axis.plot([value.low, value.high], [place, place], color=colour, linewidth=6, alpha=0.35, solid_capstyle="butt")
            axis.plot([one.success for one in row.seeds], [place] * len(row.seeds), "o", color=colour, markersize=4, alpha=0.7)
            axis.plot([value.mean], [place], "|", color=colour, markersize=16, markeredgewidth=3)
        axis.set(title=f"{task}, preset {preset}", xlabel="success", xlim=(-0.02, 1.02), yticks=range(len(rows)))
        axis.set_yticklabels([row.label for row in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.grid(axis="x", alpha=0.3)
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return True
