# SPDX-License-Identifier: Apache-2.0
"""Which episodes of a set are bad, and why: what a person would see in a plot, said by name and step.

An episode is compared with the others, never with numbers made for one robot: how far a field steps and how much a joint moves is
what the median episode says. Half of a set may be broken before this misleads.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otpr_policy.errors import DemonstrationError, TaskError
from otpr_policy.spec import Array, Semantics, VectorSpec
from otpr_sim import registry
from otpr_trainer.data.demonstrations import Episode, Header, episode_path

REPEATS = 2
"""A robot that moves does not measure the same numbers to the last bit this often again: samples were dropped and held."""
JUMP = 5.0
"""Times the median episode's largest step. A larger step of a field is none that the robot made."""
STILL = 1e-3
"""Of the median episode's range. A component that moves less, while it moves in the others, is dead."""
FLOOR = 1e-3
"""Of the nominal range. Steps and ranges below this are noise, whatever the others do."""
SHORT = 0.25
"""Of the median length."""
MIN_STEPS = 2


class Fault(Enum):
    """What can be wrong with an episode."""

    UNREADABLE = "unreadable"
    DROP = "drop"
    JUMP = "jump"
    DEAD = "dead"
    SHORT = "too short"
    UNLABELLED = "no label"
    RECORDING = "recording"


@dataclass(frozen=True)
class Problem:
    """One fault. ``step``: first step where it shows, or None where it is of the whole episode; ``text``: one sentence."""

    episode: int
    fault: Fault
    step: int | None
    text: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"episode": self.episode, "fault": self.fault.value, "step": self.step, "text": self.text}


@dataclass(frozen=True)
class Report:
    """What a set's check found.

    Args:
        episodes: how many there are.
        problems: in the order of episodes.
        notes: what is strange of the set as a whole; ``wrong`` are those that make it unfit.
        wrong: such as another control rate than the task's.
    """

    episodes: int
    problems: tuple[Problem, ...]
    wrong: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def bad(self) -> tuple[int, ...]:
        """Numbers of the episodes that have a problem."""
        return tuple(sorted({problem.episode for problem in self.problems}))

    @property
    def fine(self) -> bool:
        """Whether nothing is wrong; notes do not count."""
        return not self.problems and not self.wrong

    def to_json(self) -> dict[str, Any]:
        """The keys that scripts rely on."""
        return {
            "episodes": self.episodes,
            "bad": list(self.bad),
            "problems": [problem.to_json() for problem in self.problems],
            "wrong": list(self.wrong),
            "notes": list(self.notes),
        }


def check(directory: Path) -> tuple[Report, dict[int, Episode]]:
    """Looks at every episode; one that cannot be read is a problem, not the end.

    Returns:
        The report, and the episodes that can be read, by number.

    Raises:
        DemonstrationError: there is no set, or none of its episodes can be read.
    """
    header = Header.read(directory)
    problems, episodes = [], {}
    for number in range(header.kept):
        try:
            episodes[number] = Episode.read(episode_path(directory, number), header)
        except DemonstrationError as error:
            problems.append(Problem(number, Fault.UNREADABLE, None, str(error)))
    if not episodes:
        raise DemonstrationError(
            f"none of the {header.kept} episodes in {directory} can be read" + "".join(f"; {p.text}" for p in problems[:1])
        )
    problems += find_problems(header, episodes)
    wrong = _wrong(header)
    if not header.complete:
        wrong.append(f"{header.kept} of {header.wanted} episodes are there; finish with 'otpr demos collect --resume'")
    report = Report(
        header.kept, tuple(sorted(problems, key=lambda p: (p.episode, p.fault.value))), tuple(wrong), tuple(_notes(header, episodes))
    )
    return report, episodes


def find_problems(header: Header, episodes: dict[int, Episode]) -> list[Problem]:
    """Everything that is wrong with episodes that could be read."""
    spec = header.observation
    steps = np.stack([_largest_steps(spec, episode.observation)[0] for episode in episodes.values()])
    ranges = np.stack([np.ptp(episode.observation, axis=0) for episode in episodes.values()])
    usual_step, usual_range = np.median(steps, axis=0), np.median(ranges, axis=0)
    usual_length = float(np.median([len(episode) for episode in episodes.values()]))
    found: list[Problem] = []
    for number, episode in episodes.items():
        found += _drops(number, header.action, episode)
        found += _jumps(number, spec, episode, usual_step)
        found += _dead(number, spec, episode, usual_range)
        length = len(episode)
        if length < MIN_STEPS or length < SHORT * usual_length:
            found.append(Problem(number, Fault.SHORT, None, f"has {length} steps, the median episode {usual_length:g}"))
        if not episode.reward.any():
            found.append(Problem(number, Fault.UNLABELLED, None, "has no step with a reward: nothing says that the task was solved"))
    return found


def _drops(number: int, action: VectorSpec, episode: Episode) -> Sequence[Problem]:
    same = (episode.observation[1:] == episode.observation[:-1]).all(axis=1)
    steps = [values for name, values in action.split(episode.action).items() if action[name].semantics is Semantics.DELTA]
    told = np.concatenate(steps, axis=1).any(axis=1) if steps else np.ones(len(episode), dtype=bool)
    start, longest = _longest_run(same & told)  # one that is told to stand still may measure the same numbers
    if longest < REPEATS:
        return ()
    text = f"observation {start} stands for {longest + 1} steps to the last bit: samples were dropped"
    return (Problem(number, Fault.DROP, start, text),)


def _jumps(number: int, spec: VectorSpec, episode: Episode, usual: Array) -> list[Problem]:
    sizes, places = _largest_steps(spec, episode.observation)
    found = []
    for index, field in enumerate(spec.fields):
        if sizes[index] > JUMP * usual[index] and sizes[index] > FLOOR * _width(spec, field.name):
            size, usually = f"{sizes[index]:.3g} {field.unit}", f"{usual[index]:.3g}"
            text = f"{field.name} jumps by {size} at step {places[index]}; the median episode's largest step is {usually}"
            found.append(Problem(number, Fault.JUMP, int(places[index]), text))
    return found


def _dead(number: int, spec: VectorSpec, episode: Episode, usual: Array) -> list[Problem]:
    width = spec.high - spec.low
    still = (np.ptp(episode.observation, axis=0) <= STILL * usual) & (usual > FLOOR * width)
    return [
        Problem(number, Fault.DEAD, None, f"{spec.label(int(column))} never moves; in the median episode it covers {usual[column]:.3g}")
        for column in np.flatnonzero(still)
    ]


def _largest_steps(spec: VectorSpec, observation: Array) -> tuple[Array, Array]:
    """Per field (F,): the largest step's Euclidean length, and the step after which it is."""
    lengths = [np.linalg.norm(np.diff(values, axis=0), axis=1) for values in spec.split(observation).values()]
    return np.array([values.max() for values in lengths]), np.array([int(values.argmax()) for values in lengths])


def _width(spec: VectorSpec, name: str) -> float:
    field = spec[name]
    return float(np.linalg.norm(np.subtract(field.high, field.low)))


def _longest_run(flags: NDArray[np.bool_]) -> tuple[int, int]:
    """Start and length of the longest run of True."""
    best = start = length = 0
    for index, flag in enumerate(flags):
        length = length + 1 if flag else 0
        if length > best:
            best, start = length, index - length + 1
    return start, best


def _wrong(header: Header) -> list[str]:
    try:
        task = registry.spec(header.task)
    except TaskError:
        return []
    found = []
    if header.control_rate_hz != task.control_rate_hz:
        found.append(f"recorded at {header.control_rate_hz:g} Hz, but {task.name!r} is controlled at {task.control_rate_hz:g} Hz")
    for side, ours, theirs in (("observation", task.observation, header.observation), ("action", task.action, header.action)):
        differing = sorted({f.name for f in ours.fields} ^ {f.name for f in theirs.fields})
        found += [f"{side} field {name!r} is in one of the set and the task {task.name!r}, not in both" for name in differing]
        for name in (f.name for f in ours.fields if f.name in theirs.names):
            (size, unit), (wanted, usual) = (theirs[name].size, theirs[name].unit), (ours[name].size, ours[name].unit)
            if (size, unit) != (wanted, usual):
                found.append(f"{side} field {name!r} is {size} numbers in {unit!r}, but {task.name!r} has {wanted} in {usual!r}")
    return found


def _notes(header: Header, episodes: dict[int, Episode]) -> list[str]:
    """Components that are the same number in the whole set."""
    found = []
    for side, spec in (("observation", header.observation), ("action", header.action)):
        values = np.concatenate([getattr(episode, side) for episode in episodes.values()])
        found += [
            f"{side} {spec.label(int(column))} is {values[0, column]:g} in every step"
            for column in np.flatnonzero(np.ptp(values, axis=0) == 0)
        ]
    return found


def report_text(report: Report) -> str:
    """For a person."""
    lines = [f"episode {p.episode:>4}  {p.fault.value:<10}  {p.text}" for p in report.problems]
    lines += [f"set           wrong       {text}" for text in report.wrong]
    lines += [f"set           note        {text}" for text in report.notes]
    bad = len(report.bad)
    lines.append(f"{bad} of {report.episodes} episodes are bad" if not report.fine else f"all {report.episodes} episodes are fine")
    return "\n".join(lines)


def report_json(report: Report) -> str:
    """For a program."""
    return json.dumps(report.to_json())
