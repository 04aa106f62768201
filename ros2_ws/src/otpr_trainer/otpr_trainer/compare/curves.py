# SPDX-License-Identifier: Apache-2.0
"""Learning curves: success of the evaluations during training, against environment steps and against wall clock."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otpr_policy.errors import EnvironmentSetupError
from otpr_policy.files import atomic_path
from otpr_trainer.compare.metrics import rows
from otpr_trainer.compare.plan import Plan

_ACTING = {"policy": "-", "selected": "--"}  # columns of evaluations.csv, with the line of each; "selected" is the critic's choice
_AXES = {"step": "environment steps", "seconds": "seconds of training"}


@dataclass(frozen=True)
class Curve:
    """One run's evaluations during training, in order. ``acting``: as evaluations.csv calls it."""

    method: str
    acting: str
    step: tuple[float, ...]
    seconds: tuple[float, ...]
    success: tuple[float, ...]


def read(plan: Plan, task: str, directory: Path) -> list[Curve]:
    """The curves of all methods and seeds that have any."""
    found = []
    for method in plan.methods:
        for seed in plan.seeds:
            measured = rows(directory / task / method.name / str(seed) / "evaluations.csv")
            for acting in _ACTING:
                kept = [row for row in measured if f"{acting}/success" in row]
                if kept:
                    step, seconds, success = (tuple(row[name] for row in kept) for name in ("step", "seconds", f"{acting}/success"))
                    found.append(Curve(method.name, acting, step, seconds, success))
    return found


def mean(curves: list[Curve]) -> Curve:
    """The mean curve: the n-th evaluation of each run is averaged, step and seconds too, as far as all runs have come.

    Runs of one method evaluate in the same rounds, but a round ends a few steps earlier or later in each.
    """
    length = min(len(curve.step) for curve in curves)

    def average(name: str) -> tuple[float, ...]:
        return tuple(sum(getattr(curve, name)[n] for curve in curves) / len(curves) for n in range(length))

    return Curve(curves[0].method, curves[0].acting, average("step"), average("seconds"), average("success"))


def draw(plan: Plan, directory: Path, target: Path) -> bool:
    """Draws the learning curves of all tasks that have any; a thin line is a seed, a thick one their mean. Returns False when none has.

    Raises:
        EnvironmentSetupError: matplotlib is not installed.
        OutputError: ``target`` cannot be written.
    """
    found = {task.name: curves for task in plan.tasks if (curves := read(plan, task.name, directory))}
    if not found:
        return False
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EnvironmentSetupError(f"no curves drawn: matplotlib is not installed ({error}); pip install matplotlib") from error
    figure = Figure(figsize=(12, 4 * len(found)), layout="constrained")
    axes = figure.subplots(len(found), len(_AXES), squeeze=False, sharey=True)
    for line, (task, curves) in zip(axes, found.items(), strict=True):
        for axis, (name, label) in zip(line, _AXES.items(), strict=True):
            _draw_one(axis, plan, curves, name)
            axis.set(title=task, xlabel=label, ylabel="success", ylim=(-0.03, 1.03))
        # Beside the curves: wherever it lay within, it would cover some.
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=4)
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return True


def _draw_one(axis: Any, plan: Plan, curves: list[Curve], name: str) -> None:
    for colour, method in enumerate(plan.methods):
        for acting, style in _ACTING.items():
            own = [curve for curve in curves if (curve.method, curve.acting) == (method.name, acting)]
            if not own:
                continue
            for curve in own:
                axis.plot(getattr(curve, name), curve.success, style, color=f"C{colour}", alpha=0.3, linewidth=0.8)
            middle = mean(own)
            label = method.name if acting == "policy" else f"{method.name}, critic's choice"
            label += f", {len(own)} of {len(plan.seeds)} seeds" if len(own) < len(plan.seeds) else ""
            # Marks are where it was measured: the last one may lie well before the budget.
            axis.plot(
                getattr(middle, name), middle.success, style, color=f"C{colour}", linewidth=2.2, marker="o", markersize=4, label=label
            )
    axis.grid(alpha=0.3)
