# SPDX-License-Identifier: Apache-2.0
"""What every dataset that we did not write goes through on its way to a demonstration set."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from otpr_policy.errors import DemonstrationError
from otpr_policy.files import sha256
from otpr_policy.spec import Array, VectorSpec
from otpr_sim.env import TaskSpec
from otpr_trainer.data.demonstrations import Demonstrations, Episode, Header

_FARTHEST = 2.0  # widths of the nominal range, from its middle


def foreign_set(kind: str, path: Path, task: TaskSpec, episodes: Sequence[Episode], rate_hz: float) -> Demonstrations:
    """A set of our task, of episodes that came from elsewhere.

    Args:
        kind: the format.
        path: the file that the numbers were in, which the header will name by its hash.
        task: of ours.
        episodes: read and finite.
        rate_hz: actions per second, as the dataset says.

    Raises:
        DemonstrationError: another rate than the task's, no episode, an action beyond the task's bounds, or an observation so far
            from its nominal range that it must be in another unit or frame; names episode, step and field.
    """
    if rate_hz != task.control_rate_hz:
        raise DemonstrationError(f"{path} was recorded at {rate_hz:g} Hz; {task.name!r} is controlled at {task.control_rate_hz:g} Hz")
    if not episodes:
        raise DemonstrationError(f"{path} has no episode")
    for number, episode in enumerate(episodes):
        check_bounds(path, number, episode, task.action)
        _check_units(path, number, episode, task.observation)
    source: dict[str, float | str] = {"kind": kind, "file": path.name, "sha256": sha256(path)}
    count = len(episodes)
    header = Header(task.name, task.observation, task.action, task.control_rate_hz, source, 0, count, attempts=count, kept=count)
    return Demonstrations(header, tuple(episodes))


def of_ours(path: Path, header: Header, episodes: Sequence[Episode]) -> Demonstrations:
    """A set that we wrote, or some episodes of one; then the header says of how many. Raises DemonstrationError when there is none."""
    count = len(episodes)
    if not episodes:
        raise DemonstrationError(f"{path} has no episode")
    if count != header.kept:
        source = {**header.source, "subset_of": header.kept}
        header = replace(header, source=source, wanted=count, attempts=count, kept=count)
    return Demonstrations(header, tuple(episodes))


def check_bounds(path: Path, number: int, episode: Episode, action: VectorSpec) -> None:
    """Raises DemonstrationError naming the first action that is beyond its bounds."""
    outside = np.argwhere((episode.action < action.low) | (episode.action > action.high))
    if len(outside):
        step, column = map(int, outside[0])
        label = action.label(column)
        raise DemonstrationError(f"{path}: episode {number}, step {step}: {label} is {episode.action[step, column]}, beyond its bounds")


def _check_units(path: Path, number: int, episode: Episode, observation: VectorSpec) -> None:
    width = observation.high - observation.low
    outside = np.argwhere(np.abs(episode.observation - (observation.low + observation.high) / 2) > _FARTHEST * width)
    if len(outside):
        step, column = map(int, outside[0])
        label = observation.label(column)
        unit = observation[label.partition("[")[0]].unit
        usual = f"[{observation.low[column]:g}, {observation.high[column]:g}]"
        value = float(episode.observation[step, column])
        raise DemonstrationError(
            f"{path}: episode {number}, step {step}: {label} is {value} {unit}; {usual} is usual: another unit or frame?"
        )


def check_same(path: Path, name: str, stored: Array, ours: Array) -> None:
    """Raises DemonstrationError when what a format says is not what our own numbers in the same file make of it."""
    if stored.shape != ours.shape or not np.array_equal(stored, ours):
        raise DemonstrationError(
            f"{path}: {name} is not what the copy that otpr keeps in the file says: another program has changed one of them; "
            "--foreign reads what the format says and leaves our copy alone"
        )
