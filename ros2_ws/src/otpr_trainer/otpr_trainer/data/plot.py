# SPDX-License-Identifier: Apache-2.0
"""One picture of a demonstration set: every episode thin and grey, bad ones thick and in colour."""

from pathlib import Path
from typing import Any

import numpy as np

from otpr_policy.errors import EnvironmentSetupError
from otpr_policy.files import atomic_path
from otpr_policy.spec import Array, Field, VectorSpec
from otpr_trainer.data.check import Report
from otpr_trainer.data.demonstrations import Episode, Header

MAX_NAMED = 8
"""Bad episodes that get a colour and a line in the legend of their own; more are drawn in the last one's."""
_AXES = "xyz"
_COLUMNS = 4


def draw(target: Path, header: Header, episodes: dict[int, Episode], report: Report) -> None:
    """Draws positions over time and in the plane, the other fields, the actions and the lengths.

    Args:
        target: PNG file.
        header: of the set.
        episodes: those that can be read, by number.
        report: says which are bad.

    Raises:
        EnvironmentSetupError: matplotlib is not installed.
        OutputError: ``target`` cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EnvironmentSetupError("plots need matplotlib; install it with 'pip install matplotlib'") from error
    fields = [(field, side) for side in ("observation", "action") for field in getattr(header, side).fields]
    planar = [field for field in header.observation.fields if _is_position(field)]
    panels = len(planar) + len(fields) + 1
    rows = -(-panels // _COLUMNS)
    figure = Figure(figsize=(4.2 * _COLUMNS, 2.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(np.atleast_1d(figure.subplots(rows, _COLUMNS)).ravel())
    used = iter(axes)
    style = _styles(report, episodes)
    for field in planar:
        _plane(next(used), field, header.observation, episodes, style)
    for field, side in fields:
        _over_time(next(used), field, side, header, episodes, style)
    _lengths(next(used), episodes, style)
    for axis in used:
        axis.set_axis_off()
    _legend(figure, report, episodes, style)
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _styles(report: Report, episodes: dict[int, Episode]) -> dict[int, dict[str, Any]]:
    bad = [number for number in report.bad if number in episodes]
    styles: dict[int, dict[str, Any]] = {n: {"color": "0.45", "linewidth": 0.6, "alpha": 0.5, "zorder": 1} for n in episodes}
    for place, number in enumerate(bad):
        styles[number] = {"color": f"C{min(place, MAX_NAMED - 1)}", "linewidth": 1.6, "alpha": 1.0, "zorder": 2}
    return styles


def _is_position(field: Field) -> bool:
    return field.size == 3 and field.unit == "m"


def _plane(axis: Any, field: Field, spec: VectorSpec, episodes: dict[int, Episode], style: dict[int, dict[str, Any]]) -> None:
    for number, episode in episodes.items():
        path = spec.split(episode.observation)[field.name]
        axis.plot(path[:, 0], path[:, 1], **style[number])
        axis.plot(path[0, 0], path[0, 1], "o", markersize=3, color=style[number]["color"], zorder=3)
    axis.set_title(f"{field.name} in the plane (dot: start)", fontsize=9)
    axis.set_xlabel(f"x [{field.unit}]", fontsize=8)
    axis.set_ylabel(f"y [{field.unit}]", fontsize=8)
    axis.set_aspect("equal", adjustable="datalim")
    axis.tick_params(labelsize=7)


def _over_time(axis: Any, field: Field, side: str, header: Header, episodes: dict[int, Episode], style: dict[int, dict[str, Any]]) -> None:
    """All components in one panel, one below the other where they would hide each other."""
    spec: VectorSpec = getattr(header, side)
    every = np.concatenate([spec.split(getattr(episode, side))[field.name] for episode in episodes.values()])
    shift = _shifts(every)
    for number, episode in episodes.items():
        values = spec.split(getattr(episode, side))[field.name]
        time = np.arange(len(values)) / header.control_rate_hz
        for component in range(field.size):
            axis.plot(time, values[:, component] - shift[component], **style[number])
    if field.size == 1:
        axis.set_ylabel(f"[{field.unit}]", fontsize=8)
    else:
        names = list(_AXES) if field.size == 3 and field.unit in ("m", "rad") else [str(c) for c in range(field.size)]
        middles = [float(np.median(every[:, c]) - shift[c]) for c in range(field.size)]
        axis.set_yticks(middles, [f"{name} ≈ {np.median(every[:, c]):.2g}" for c, name in enumerate(names)])
        axis.set_ylabel(f"[{field.unit}], stacked; span {np.ptp(every, axis=0).max():.2g}", fontsize=8)
    axis.set_title(f"{side}: {field.name}", fontsize=9)
    axis.set_xlabel("time [s]", fontsize=8)
    axis.tick_params(labelsize=7)


def _shifts(values: Array) -> Array:
    """How far down each component is moved so that none overlaps the one before."""
    low, high = values.min(0), values.max(0)
    gap = 0.05 * float((high - low).max()) or 1.0
    shift = np.zeros(values.shape[1])
    for component in range(1, values.shape[1]):
        shift[component] = high[component] - (low[component - 1] - shift[component - 1]) + gap
    return shift


def _lengths(axis: Any, episodes: dict[int, Episode], style: dict[int, dict[str, Any]]) -> None:
    for number, episode in episodes.items():
        axis.bar(number, len(episode), color=style[number]["color"], width=0.9)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_title("length", fontsize=9)
    axis.set_xlabel("episode", fontsize=8)
    axis.set_ylabel("steps", fontsize=8)
    axis.tick_params(labelsize=7)


def _legend(figure: Any, report: Report, episodes: dict[int, Episode], style: dict[int, dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    lines, texts = [], []
    for number in [number for number in report.bad if number in episodes][:MAX_NAMED]:
        reasons = sorted({problem.fault.value for problem in report.problems if problem.episode == number})
        lines.append(Line2D([], [], color=style[number]["color"], linewidth=2))
        texts.append(f"episode {number}: {', '.join(reasons)}")
    more = len(report.bad) - len(texts)
    title = f"{report.episodes} episodes, {len(report.bad)} bad" + (f" ({more} more not named or not readable)" if more and texts else "")
    if lines:
        figure.legend(lines, texts, loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(title, fontsize=11)
