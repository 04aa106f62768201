# SPDX-License-Identifier: Apache-2.0
"""Demonstrations on disk: ``demos.json`` says what they are, ``episodes/NNNNNN.npz`` hold one episode each.

An episode file has, for T actions, ``observation.FIELD`` (T + 1, size) with the last row after the last action,
``action.FIELD`` (T, size), ``state`` (T + 1, S; S = 0 where there is no simulator), ``reward`` (T,) and ``attempt`` (). Where a policy
acted too, ``operator`` (T,) is 1 in the steps that an operator commanded and 0 in the others.
Every file is written atomically and the header last, so a directory is valid after any crash.
"""

import io
import json
import shutil
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otpr_policy.errors import DemonstrationError, OutputError, SpecError
from otpr_policy.files import write_bytes, write_text
from otpr_policy.spec import Array, VectorSpec, is_number
from otpr_trainer.data.archives import read_npz

SCHEMA_VERSION = 1
_HEADER = "demos.json"


@dataclass(frozen=True)
class Header:
    """``demos.json``.

    Args:
        task: task name.
        observation: fields of an observation, nominal ranges.
        action: fields of an action, hard bounds.
        control_rate_hz: actions per second.
        source: who demonstrated, with the numbers that make it repeatable.
        seed: of the collection.
        wanted: episodes asked for.
        attempts: episodes tried so far.
        kept: successful ones among them, which are on disk.
    """

    task: str
    observation: VectorSpec
    action: VectorSpec
    control_rate_hz: float
    source: dict[str, float | str]
    seed: int
    wanted: int
    attempts: int = 0
    kept: int = 0

    @property
    def discarded(self) -> int:
        """Attempts that failed the task."""
        return self.attempts - self.kept

    @property
    def complete(self) -> bool:
        """Whether all wanted episodes are there."""
        return self.kept >= self.wanted

    def counting(self, success: bool) -> "Header":
        """The header after one more attempt."""
        return replace(self, attempts=self.attempts + 1, kept=self.kept + int(success))

    def to_json(self) -> dict[str, Any]:
        """Content of ``demos.json``."""
        return {
            "schema_version": SCHEMA_VERSION,
            **{key: value for key, value in asdict(self).items() if key not in ("observation", "action")},
            "observation": self.observation.to_json(),
            "action": self.action.to_json(),
            "discarded": self.discarded,
            "complete": self.complete,
        }

    @classmethod
    def from_json(cls, data: Any, where: str) -> "Header":
        """Parses :meth:`to_json`'s form. Raises DemonstrationError, which begins with ``where``, saying what is wrong."""
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA_VERSION:
            raise DemonstrationError(f"{where} has schema version {version!r}; this program reads version {SCHEMA_VERSION}")
        rest = {key: value for key, value in data.items() if key != "schema_version"}
        derived = {key: rest.pop(key, None) for key in ("discarded", "complete")}
        try:
            rest.update({key: VectorSpec.from_json(rest[key]) for key in ("observation", "action")})
            header = cls(**rest)
            counts = (header.wanted, header.attempts, header.kept, header.seed)
            if not all(type(count) is int for count in counts) or not isinstance(header.source, dict) or not isinstance(header.task, str):
                raise ValueError("task must be text, source an object, and wanted, attempts, kept and seed whole numbers")
            if min(header.wanted, header.attempts, header.kept, header.discarded, header.seed) < 0:
                raise ValueError("a count is negative")
            if not (is_number(header.control_rate_hz) and header.control_rate_hz > 0):
                raise ValueError(f"control_rate_hz is {header.control_rate_hz!r}, must be a finite number above 0")
        except (KeyError, TypeError, ValueError, SpecError) as error:
            raise DemonstrationError(f"{where}: {error}") from error
        if derived != {"discarded": header.discarded, "complete": header.complete}:
            raise DemonstrationError(f"{where}: discarded and complete do not follow from wanted, attempts and kept")
        return header

    def write(self, directory: Path) -> None:
        """Writes ``demos.json`` atomically. Raises OutputError."""
        write_text(directory / _HEADER, json.dumps(self.to_json(), indent=2) + "\n")

    @classmethod
    def read(cls, directory: Path) -> "Header":
        """Reads ``demos.json``. Raises DemonstrationError naming the file and what is wrong with it."""
        path = Path(directory) / _HEADER
        try:
            data = json.loads(path.read_text())
        except OSError as error:
            raise DemonstrationError(f"{directory} holds no demonstrations: cannot read {path.name} ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            raise DemonstrationError(f"{path} is not JSON: {error}") from error
        return cls.from_json(data, str(path))


@dataclass(frozen=True, eq=False)
class Episode:
    """One successful episode of T actions. ``observation``: (T + 1, Do), ``action``: (T, Da), ``state``: (T + 1, S), ``reward``: (T,).

    ``operator``: (T,), 1.0 in the steps that an operator commanded, 0.0 in a policy's; None in a demonstration, which is an expert's alone.
    """

    attempt: int
    observation: Array
    action: Array
    state: Array
    reward: Array
    operator: Array | None = None

    def __len__(self) -> int:
        return len(self.action)

    @cached_property
    def content(self) -> bytes:
        """SHA-256 of every number."""
        digest = sha256()
        for array in (self.observation, self.action, self.state, self.reward):
            digest.update(repr(array.shape).encode() + np.ascontiguousarray(array, dtype="<f8").tobytes())
        return digest.digest()

    def write(self, path: Path, header: Header) -> None:
        """Writes the episode atomically. Raises OutputError."""
        arrays = {f"observation.{name}": values for name, values in header.observation.split(self.observation).items()}
        arrays |= {f"action.{name}": values for name, values in header.action.split(self.action).items()}
        arrays |= {} if self.operator is None else {"operator": self.operator}
        archive = io.BytesIO()  # written to disk in one piece: a zip file that meets a full disk complains once more when it is collected
        np.savez(archive, attempt=self.attempt, state=self.state, reward=self.reward, **arrays)
        write_bytes(path, archive.getvalue())

    @classmethod
    def read(cls, path: Path, header: Header) -> "Episode":
        """Reads and checks an episode. Raises DemonstrationError naming the file and the field that is wrong."""
        arrays = read_npz(path)
        reward = _field(arrays, "reward", path, (None,))
        steps = len(reward)
        if steps == 0:
            raise DemonstrationError(f"{path}: reward: the episode has no step")
        observation = [_field(arrays, f"observation.{f.name}", path, (steps + 1, f.size)) for f in header.observation.fields]
        action = [_field(arrays, f"action.{f.name}", path, (steps, f.size)) for f in header.action.fields]
        state = _field(arrays, "state", path, (steps + 1, None))
        attempt = _field(arrays, "attempt", path, ())
        operator = _field(arrays, "operator", path, (steps,)) if "operator" in arrays else None
        if operator is not None and not np.isin(operator, (0.0, 1.0)).all():
            raise DemonstrationError(f"{path}: operator must be 1 in the steps that an operator commanded, and 0 in the others")
        if arrays:
            raise DemonstrationError(f"{path}: unknown fields {', '.join(sorted(arrays))}; the header does not list them")
        episode = cls(int(attempt), np.concatenate(observation, axis=1), np.concatenate(action, axis=1), state, reward, operator)
        outside = (episode.action < header.action.low) | (episode.action > header.action.high)
        if outside.any():
            raise DemonstrationError(f"{path}: {header.action.label(int(np.argmax(outside.any(0))))} is beyond its bounds")
        return episode


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """A checked demonstration set in memory."""

    header: Header
    episodes: tuple[Episode, ...] = field(repr=False)

    @property
    def transitions(self) -> int:
        """Number of actions."""
        return sum(map(len, self.episodes))

    @cached_property
    def sha256(self) -> str:
        """Identity of the content: fields, rate and every number, whatever files they came in."""
        digest = sha256()
        header = self.header
        identity = [header.task, header.observation.to_json(), header.action.to_json(), header.control_rate_hz]
        digest.update(json.dumps(identity).encode())
        for episode in self.episodes:
            labels = () if episode.operator is None else (episode.operator,)
            for array in (episode.observation, episode.action, episode.state, episode.reward, *labels):
                digest.update(repr(array.shape).encode() + np.ascontiguousarray(array, dtype="<f8").tobytes())
        return digest.hexdigest()

    @cached_property
    def observation(self) -> VectorSpec:
        """The observation's fields with the ranges that the demonstrations cover."""
        values = np.concatenate([episode.observation for episode in self.episodes])
        return self.header.observation.with_range(values.min(0), values.max(0))

    @cached_property
    def action(self) -> VectorSpec:
        """The action's fields with the ranges that the demonstrations cover."""
        values = np.concatenate([episode.action for episode in self.episodes])
        return self.header.action.with_range(values.min(0), values.max(0))


def episode_path(directory: Path, number: int) -> Path:
    """Where episode ``number`` (from 0) lies."""
    return Path(directory) / "episodes" / f"{number:06d}.npz"


def write_set(directory: Path, demos: Demonstrations) -> None:
    """Writes a whole set, the header last. Raises OutputError."""
    for number, episode in enumerate(demos.episodes):
        episode.write(episode_path(directory, number), demos.header)
    demos.header.write(directory)


def remove_set(directory: Path) -> None:
    """Removes a demonstration set and nothing else: what does not look like one is not ours to delete. Raises OutputError."""
    try:
        Header.read(directory)
    except DemonstrationError as error:
        raise OutputError(f"{directory} is not a demonstration set, so it is not overwritten: {error}") from error
    shutil.rmtree(directory)


def load(directory: Path, task: str | None = None) -> Demonstrations:
    """Loads and checks all episodes.

    Args:
        directory: what ``otpr demos collect`` wrote.
        task: name that the demonstrations must be of, None for any.

    Raises:
        DemonstrationError: nothing there, another task, an incomplete set, or a file that is missing, damaged, of other
            dimensions or not finite; the message names the file and field.
    """
    directory = Path(directory)
    header = Header.read(directory)
    if task is not None and header.task != task:
        raise DemonstrationError(f"{directory} holds demonstrations of {header.task!r}, not {task!r}")
    if not header.complete or header.kept == 0:
        raise DemonstrationError(f"{directory} holds {header.kept} of {header.wanted} episodes; finish with 'otpr demos collect --resume'")
    return Demonstrations(header, tuple(Episode.read(episode_path(directory, n), header) for n in range(header.kept)))


def _field(arrays: dict[str, NDArray[Any]], name: str, path: Path, shape: tuple[int | None, ...]) -> Array:
    """Takes one array out of ``arrays``; None in ``shape`` fits any length."""
    if name not in arrays:
        raise DemonstrationError(f"{path}: field {name!r} is missing; there are {', '.join(sorted(arrays)) or 'none'}")
    values = arrays.pop(name)
    if not np.issubdtype(values.dtype, np.number) or np.issubdtype(values.dtype, np.complexfloating):
        raise DemonstrationError(f"{path}: {name} holds {values.dtype}, not numbers")
    if values.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, values.shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise DemonstrationError(f"{path}: {name} has shape {values.shape}, expected ({wanted})")
    if not np.isfinite(values).all():
        where = tuple(map(int, np.argwhere(~np.isfinite(values))[0]))
        raise DemonstrationError(f"{path}: {name} holds a number that is not finite: {values[where]} at {list(where)}")
    return values.astype(np.float64)
