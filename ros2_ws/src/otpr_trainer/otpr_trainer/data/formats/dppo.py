# SPDX-License-Identifier: Apache-2.0
"""DPPO's dataset: a folder with ``train.npz`` and ``normalization.npz`` (Ren et al. 2024, arXiv 2409.00588, its data processing).

``states`` and ``actions`` hold all steps of all episodes one after the other, each column scaled to [-1, 1] by
2 (x - min) / (max - min + 1e-6) - 1; ``traj_lengths`` cuts them. Where there is a simulator, the columns are the ones that DPPO's
robomimic tasks use: robosuite's hand position, hand quaternion, fingers and object, and robosuite's normalised actions. Else they
are our fields in their order.
"""

import io
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otpr_policy.errors import DemonstrationError, TaskError
from otpr_policy.files import write_bytes
from otpr_policy.spec import Array
from otpr_sim import registry
from otpr_sim.env import TaskSpec
from otpr_sim.native import NativeView
from otpr_trainer.data.archives import read_npz
from otpr_trainer.data.demonstrations import Demonstrations, Episode
from otpr_trainer.data.formats import osc_actions
from otpr_trainer.data.formats.foreign import foreign_set
from otpr_trainer.data.formats.model_geometry import ModelGeometry
from otpr_trainer.data.formats.packed import NAMES, episode_lengths, finite, pack, unpack
from otpr_trainer.data.formats.robosuite_fields import SIZES, our_fields
from otpr_trainer.data.formats.simulated import native_episode

TRAIN, NORMALIZATION = "train.npz", "normalization.npz"
STANDARD = ("states", "actions", "rewards", "terminals", "traj_lengths")
_OURS, _DIGEST = "otpr.", "otpr.standard_sha256"
_OBSERVATION = (*SIZES, "object")
_EPSILON = 1e-6  # DPPO's, against columns that never change
_ROUNDING = 1e-6  # of single precision: how far a number may lie beyond [-1, 1] after it was scaled there and back

Normalization = dict[str, Array]


def write_dppo(directory: Path, demos: Demonstrations) -> None:
    """Writes the folder's two files. Raises OutputError, and DemonstrationError, see :func:`native_episode`."""
    states, actions = _columns(demos)
    scaled: Normalization = {
        "obs_min": states.min(0),
        "obs_max": states.max(0),
        "action_min": actions.min(0),
        "action_max": actions.max(0),
    }
    packed = pack(demos)
    standard: dict[str, NDArray[Any]] = {
        "states": _scale(states, scaled["obs_min"], scaled["obs_max"]),
        "actions": _scale(actions, scaled["action_min"], scaled["action_max"]),
        "rewards": packed["reward"],
        "terminals": np.zeros(len(states), dtype=bool),  # DPPO's own files never set one: robosuite does not end an episode
        "traj_lengths": packed["length"],
    }
    ours = {f"{_OURS}{name}": values for name, values in packed.items()} | {_DIGEST: _digest(standard, scaled)}
    _write(Path(directory) / NORMALIZATION, scaled)
    _write(Path(directory) / TRAIN, standard | ours)


def read_dppo(path: Path, task: str | None = None, foreign: bool = False) -> Demonstrations:
    """Reads the folder, or its ``train.npz`` with the ``normalization.npz`` beside it.

    Args:
        path: of either.
        task: name of our task, which a file that we did not write does not say.
        foreign: read what DPPO's names say, though the file has a copy of ours.

    Raises:
        DemonstrationError: damaged, pickled, incomplete, not finite, or columns that no task of ours has; names array and place.
    """
    path = Path(path) / TRAIN if Path(path).is_dir() else Path(path)
    arrays = read_npz(path)
    normalization = read_npz(path.parent / NORMALIZATION)
    for name in STANDARD:
        if name not in arrays:
            raise DemonstrationError(f"{path}: array {name!r} is missing; there are {', '.join(sorted(arrays)) or 'none'}")
    if _DIGEST in arrays and not foreign:
        if not np.array_equal(arrays[_DIGEST], _digest(arrays, normalization)):
            raise DemonstrationError(
                f"{path} or {NORMALIZATION} was changed after otpr wrote it, and the copy that otpr keeps in it was not; "
                "--foreign reads what DPPO's names say and leaves our copy alone"
            )
        return unpack(path, {name: arrays[f"{_OURS}{name}"] for name in NAMES if f"{_OURS}{name}" in arrays})
    if task is None:
        raise DemonstrationError(f"{path} does not say which task it is of; pass --task")
    return _read_foreign(path, arrays, normalization, registry.spec(task))


def _columns(demos: Demonstrations) -> tuple[Array, Array]:
    """What DPPO is shown and what it does, before scaling: (N, n) and (N, Da)."""
    header = demos.header
    states, actions = [], []
    if all(episode.state.shape[1] for episode in demos.episodes):
        try:
            with NativeView(header.task) as view:
                for number, episode in enumerate(demos.episodes):
                    native = native_episode(view, episode, header, number)
                    states.append(np.concatenate([native.observation[name][:-1] for name in _OBSERVATION], axis=1))
                    actions.append(native.action)
            return np.concatenate(states), np.concatenate(actions)
        except TaskError:  # not one of robosuite's
            pass
    return np.concatenate([e.observation[:-1] for e in demos.episodes]), np.concatenate([e.action for e in demos.episodes])


def _read_foreign(path: Path, arrays: dict[str, NDArray[Any]], normalization: dict[str, NDArray[Any]], task: TaskSpec) -> Demonstrations:
    lengths = episode_lengths(path, "traj_lengths", arrays["traj_lengths"])
    steps = int(lengths.sum())
    rewards = finite(path, "rewards", arrays["rewards"], (steps,))
    states, actions = finite(path, "states", arrays["states"], (steps, None)), finite(path, "actions", arrays["actions"], (steps, None))
    for name in ("obs_min", "obs_max", "action_min", "action_max"):
        if name not in normalization:
            raise DemonstrationError(f"{path.parent / NORMALIZATION}: array {name!r} is missing; without it the numbers have no unit")
        size = (states if name.startswith("obs") else actions).shape[1]
        normalization[name] = finite(path.parent / NORMALIZATION, name, normalization[name], (size,))
    states = _unscale(states, normalization["obs_min"], normalization["obs_max"])
    actions = _unscale(actions, normalization["action_min"], normalization["action_max"])
    geometry = None
    if states.shape[1] != task.observation.size:
        with NativeView(task.name) as view:
            geometry = ModelGeometry.parse(view.model_file())
    episodes = []
    for number, (end, length) in enumerate(zip(np.cumsum(lengths), lengths, strict=True)):
        if length < 2:
            raise DemonstrationError(f"{path}: episode {number} has one step; the state after the last action is not in the file")
        rows = slice(end - length, end)
        try:
            observation, action = _fields(states[rows], actions[rows], task, geometry)
        except DemonstrationError as error:
            raise DemonstrationError(f"{path}: episode {number}: {error}") from error
        # The file ends with the last action; of a step whose outcome is unknown nothing can be learnt.
        episodes.append(Episode(number, observation, action[:-1], np.empty((length, 0)), rewards[rows][:-1]))
    return foreign_set("dppo", path, task, episodes, task.control_rate_hz)


def _fields(states: Array, actions: Array, task: TaskSpec, geometry: ModelGeometry | None) -> tuple[Array, Array]:
    if geometry is None:
        if actions.shape[1] != task.action.size:
            raise DemonstrationError(f"actions have {actions.shape[1]} columns; {task.name!r} has {task.action.size}")
        return states, actions
    ends = np.cumsum(list(SIZES.values()))
    if states.shape[1] <= ends[-1]:
        raise DemonstrationError(f"states have {states.shape[1]} columns; {task.name!r} has {task.observation.size}, or robosuite's for it")
    parts = dict(zip(_OBSERVATION, np.split(states, ends, axis=1), strict=True))
    actions = np.where(np.abs(actions) <= 1.0 + _ROUNDING, np.clip(actions, -1.0, 1.0), actions)
    return our_fields(task.name, task.observation, parts, geometry), osc_actions.physical(actions, task.action)


def _scale(values: Array, low: Array, high: Array) -> Array:
    return 2.0 * (values - low) / (high - low + _EPSILON) - 1.0


def _unscale(values: Array, low: Array, high: Array) -> Array:
    return (values + 1.0) / 2.0 * (high - low + _EPSILON) + low


def _digest(standard: dict[str, NDArray[Any]], normalization: dict[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """Identity of what DPPO reads."""
    digest = sha256()
    for name, values in sorted({**{name: standard[name] for name in STANDARD}, **normalization}.items()):
        digest.update(f"{name} {values.dtype.str} {values.shape} ".encode() + np.ascontiguousarray(values).tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def _write(path: Path, arrays: dict[str, Any]) -> None:
    archive = io.BytesIO()
    np.savez_compressed(archive, **arrays)
    write_bytes(path, archive.getvalue())
