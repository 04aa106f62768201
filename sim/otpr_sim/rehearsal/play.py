# SPDX-License-Identifier: Apache-2.0
"""Playing the episodes of a rehearsal over worker processes, each result on the disk as it comes. No torch."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from otpr_policy.errors import OutputError, PlanError, TaskError
from otpr_policy.files import write_text
from otpr_policy.inference import OnnxPolicy
from otpr_policy.spec import PolicySpec
from otpr_sim import registry
from otpr_sim.rehearsal.design import Cell, shift_of
from otpr_sim.rehearsal.factors import Factor
from otpr_sim.rollout import run_episode
from otpr_sim.shift import ShiftableEnv
from otpr_sim.shifted_env import ShiftedEnv
from otpr_sim.workers import ordered_map

KIND = "otpr rehearsal"
SCHEMA_VERSION = 1
SETTINGS_FILE = "rehearsal.json"
EPISODES_FILE = "episodes.jsonl"


@dataclass(frozen=True)
class Played:
    """One episode's outcome. ``values``: as in :class:`otpr_sim.rehearsal.design.Cell`."""

    point: str
    episode: int
    values: dict[str, float]
    success: bool
    steps: int


@dataclass(frozen=True)
class Player:
    """Builds, in a worker, the function from a cell to its outcome. One simulation and one policy serve all cells of a process."""

    content: bytes
    spec: PolicySpec
    noise_shape: tuple[int, ...]
    task: str
    seed: int
    factors: tuple[Factor, ...]

    def __call__(self) -> Callable[[Cell], Played]:
        """Makes the simulation and the policy; on the CPU, so that a result does not depend on which GPU is at hand."""
        env = registry.make(self.task)
        if not isinstance(env, ShiftableEnv):
            env.close()
            raise TaskError(f"task {self.task!r} has no distribution shifts to rehearse")
        policy = OnnxPolicy.from_graph(self.content, self.spec, self.noise_shape)

        def play(cell: Cell) -> Played:
            # A wrapper per episode: it sets all that a shift changes, so nothing of the episode before is left.
            result = run_episode(ShiftedEnv(env, shift_of(cell, self.factors)), policy, self.seed, cell.episode)
            return Played(cell.point, cell.episode, dict(cell.values), result.success, result.steps)

        return play


def play(player: Player, cells: Sequence[Cell], workers: int) -> Iterator[Played]:
    """Outcomes in the order of the cells, the same for every number of workers."""
    return ordered_map(player, cells, min(workers, max(1, len(cells))))


class Store:
    """The outcomes of one directory: a file of settings that they belong to, and a line for each."""

    def __init__(self, directory: Path, settings: dict[str, Any]) -> None:
        """Takes the settings as the directory's, or checks that they are.

        Raises:
            PlanError: the directory is of another rehearsal.
            OutputError: it is of something else, or cannot be read or written.
        """
        self.directory = Path(directory)
        self._path = self.directory / EPISODES_FILE
        self._settle(settings)
        self.played = self._read()

    def add(self, one: Played) -> None:
        """Appends an outcome. Raises OutputError."""
        line = (json.dumps(asdict(one)) + "\n").encode()
        try:
            with open(self._path, "r+b" if self._path.exists() else "wb") as file:
                file.truncate(self._whole)  # half a line that a crash left
                file.seek(0, os.SEEK_END)
                file.write(line)
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror}") from error
        self._whole += len(line)
        self.played[one.point, one.episode] = one

    def _settle(self, settings: dict[str, Any]) -> None:
        path = self.directory / SETTINGS_FILE
        ours = json.loads(json.dumps({"kind": KIND, "schema_version": SCHEMA_VERSION, **settings}))
        if not path.exists():
            if self.directory.exists() and (not self.directory.is_dir() or any(one.name != ".lock" for one in self.directory.iterdir())):
                raise OutputError(f"{self.directory} exists and holds no rehearsal; choose another --out")
            write_text(path, json.dumps(ours, indent=2) + "\n")
            return
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))
            if (theirs["kind"], theirs["schema_version"]) != (KIND, SCHEMA_VERSION):
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{path} is not a rehearsal of version {SCHEMA_VERSION}; choose another --out") from error
        changed = [key for key in ours if theirs.get(key) != ours[key]]
        if changed:
            what = ", ".join(f"{key} {theirs.get(key)} -> {ours[key]}" for key in changed)
            raise PlanError(f"{self.directory} was begun with other settings: {what}; choose another --out")

    def _read(self) -> dict[tuple[str, int], Played]:
        self._whole = 0
        try:
            *lines, _half = self._path.read_bytes().split(b"\n") if self._path.exists() else [b""]
            found = [Played(**json.loads(line)) for line in lines]
        except (OSError, ValueError, TypeError) as error:
            raise OutputError(f"{self._path} holds something that is no outcome of a rehearsal: {error}") from error
        self._whole = sum(len(line) + 1 for line in lines)
        return {(one.point, one.episode): one for one in found}
