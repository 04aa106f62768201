# SPDX-License-Identifier: Apache-2.0
"""LeRobotDataset v3, written and read by lerobot itself in a process and an environment of its own.

lerobot pins versions of torch and numpy that are not ours, so it is never imported here: plain arrays cross to the interpreter that
the user names, and a small script there (:mod:`otpr_trainer.data.formats.lerobot_bridge`) calls its API.
"""

import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otpr_policy.errors import DemonstrationError, EnvironmentSetupError, OutputError
from otpr_policy.files import make_directory
from otpr_policy.spec import Array, VectorSpec
from otpr_sim import registry
from otpr_trainer.data.archives import read_npz
from otpr_trainer.data.demonstrations import Demonstrations, Episode, Header
from otpr_trainer.data.formats import lerobot_bridge
from otpr_trainer.data.formats.foreign import check_bounds, check_same, foreign_set, of_ours
from otpr_trainer.data.formats.packed import finite, pack

TIMEOUT_S = 3600.0
_INSTALL = (
    "make an environment for it, such as 'python3.12 -m venv lerobot && lerobot/bin/pip install lerobot', and pass "
    "--lerobot-python lerobot/bin/python"
)


def write_lerobot(directory: Path, demos: Demonstrations, python: Path | None) -> None:
    """Writes a dataset.

    Args:
        directory: must not exist.
        demos: what to write.
        python: interpreter that has lerobot; None where this one has.

    Raises:
        EnvironmentSetupError: there is no such interpreter, or it has no lerobot.
        DemonstrationError: lerobot refused.
        OutputError: the directory exists; lerobot never writes into one.
    """
    if directory.exists():
        raise OutputError(f"{directory} exists; lerobot makes its folder itself, so remove it or choose another path")
    with tempfile.TemporaryDirectory() as temporary:
        packed = Path(temporary) / "packed.npz"
        np.savez(packed, **pack(demos))
        make_directory(directory.parent)
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as beside:  # whole or not at all
            _run(python, temporary, "write", packed, Path(beside) / "dataset")
            os.rename(Path(beside) / "dataset", directory)


def read_lerobot(directory: Path, python: Path | None, task: str | None = None, foreign: bool = False) -> Demonstrations:
    """Reads a dataset.

    Args:
        directory: the dataset's root.
        python: see :func:`write_lerobot`.
        task: name of our task, which a dataset that we did not write does not say.
        foreign: read what LeRobot's names say, though the dataset has a header of ours.

    Raises:
        EnvironmentSetupError, DemonstrationError: as in :func:`write_lerobot`; the names, rate, or numbers do not fit, with the place.
    """
    with tempfile.TemporaryDirectory() as temporary:
        columns = Path(temporary) / "columns.npz"
        _run(python, temporary, "read", directory.resolve(), columns)
        arrays = read_npz(columns)
    names, text = _json(directory, arrays["json.names"]), arrays["json.header"].tobytes().decode()
    if text and not foreign:
        header = Header.from_json(_json(directory, arrays["json.header"]), f"{directory / lerobot_bridge.HEADER}")
        return _ours(directory, header, arrays, names)
    if task is None:
        raise DemonstrationError(f"{directory} does not say which task of ours it is of; pass --task")
    spec = registry.spec(task)
    episodes = _episodes(directory, arrays, names, spec.observation, spec.action, whole=False)
    return foreign_set("lerobot", directory / "meta" / "info.json", spec, episodes, float(arrays["fps"]))


def _ours(directory: Path, header: Header, arrays: dict[str, NDArray[Any]], names: dict[str, Any]) -> Demonstrations:
    episodes = _episodes(directory, arrays, names, header.observation, header.action, whole=True)
    for number, episode in enumerate(episodes):
        check_bounds(directory, number, episode, header.action)
    if float(arrays["fps"]) != header.control_rate_hz:
        raise DemonstrationError(f"{directory}: {float(arrays['fps']):g} frames per second, but otpr wrote {header.control_rate_hz:g}")
    return of_ours(directory, header, episodes)


def _episodes(
    directory: Path, arrays: dict[str, NDArray[Any]], names: dict[str, Any], observation: VectorSpec, action: VectorSpec, whole: bool
) -> list[Episode]:
    """``whole``: what follows the last step, and what only we store, must be there; else the last step is left out without it."""
    states = _by_name(directory, "observation.state", arrays, names, observation)
    actions = _by_name(directory, "action", arrays, names, action)
    after = None
    if whole or "next.observation.state" in arrays:
        after = _by_name(directory, "next.observation.state", arrays, names, observation)
    rewards = finite(directory, "next.reward", _column(directory, "next.reward", arrays).reshape(-1), (len(states),))
    index = finite(directory, "episode_index", _column(directory, "episode_index", arrays), (len(states),)).astype(np.int64)
    episodes = []
    starts = np.flatnonzero(np.diff(index, prepend=-1))
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(index)], strict=True)):
        rows = slice(start, end)
        attempt = int(_column(directory, "otpr.attempt", arrays).reshape(-1)[start]) if whole else number
        if after is None:
            if end - start < 2:
                raise DemonstrationError(f"{directory}: episode {number} has one frame; the state after its action is not in the dataset")
            episodes.append(Episode(attempt, states[rows], actions[rows][:-1], np.empty((end - start, 0)), rewards[rows][:-1]))
            continue
        check_same(directory, f"next.observation.state of episode {number}", after[rows][:-1], states[rows][1:])
        simulator = np.empty((end - start + 1, 0))
        if whole and "otpr.state" in arrays:
            now, then = (
                finite(directory, name, _wide(_column(directory, name, arrays)), (len(states), None))[rows]
                for name in ("otpr.state", "otpr.next_state")
            )
            check_same(directory, f"otpr.next_state of episode {number}", then[:-1], now[1:])
            simulator = np.concatenate([now, then[-1:]])
        observed = np.concatenate([states[rows], after[rows][-1:]])
        episodes.append(Episode(attempt, observed, actions[rows], simulator, rewards[rows]))
    return episodes


def _by_name(directory: Path, feature: str, arrays: dict[str, NDArray[Any]], names: dict[str, Any], spec: VectorSpec) -> Array:
    """A feature's columns in the order of ``spec``, found by their names alone."""
    values = _column(directory, feature, arrays)
    found = names.get(feature)
    wanted = [spec.label(index) for index in range(spec.size)]
    if not isinstance(found, list) or len(set(map(str, found))) != len(found):
        raise DemonstrationError(f"{directory}: feature {feature!r} does not name its components each once, so their order is unknown")
    missing = [label for label in wanted if label not in found]
    if missing:
        raise DemonstrationError(f"{directory}: feature {feature!r} lacks {', '.join(missing)}; it has {', '.join(map(str, found))}")
    return finite(directory, feature, _wide(values), (None, len(found)))[:, [found.index(label) for label in wanted]]


def _column(directory: Path, name: str, arrays: dict[str, NDArray[Any]]) -> NDArray[Any]:
    if name not in arrays:
        raise DemonstrationError(f"{directory}: feature {name!r} is missing; there are {', '.join(sorted(arrays))}")
    return arrays[name]


def _wide(values: NDArray[Any]) -> NDArray[Any]:
    """(N, n): lerobot gives back a feature of one number without its second dimension."""
    return values.reshape(len(values), -1) if values.ndim == 1 else values


def _json(directory: Path, content: NDArray[Any]) -> dict[str, Any]:
    try:
        data = json.loads(content.tobytes())
    except (ValueError, RecursionError) as error:
        raise DemonstrationError(f"{directory}: meta is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise DemonstrationError(f"{directory}: meta must be a JSON object")
    return data


def _run(python: Path | None, temporary: str, *words: str | Path) -> None:
    if python is None and find_spec("lerobot") is None:
        raise EnvironmentSetupError(f"LeRobot datasets are written and read by lerobot, which is not installed here; {_INSTALL}")
    # Our interpreter's search path is not the other's; nothing may be fetched; caches go with the temporary folder.
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": temporary, "HF_DATASETS_CACHE": temporary}
    command = [str(python or sys.executable), lerobot_bridge.__file__, *map(str, words)]
    try:
        done = subprocess.run(command, env=kept | offline, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentSetupError(f"{python} cannot be run: {error}; {_INSTALL}") from error
    reason = done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
    if done.returncode == lerobot_bridge.REFUSED:
        raise DemonstrationError(f"lerobot refused: {reason}")
    if done.returncode != 0:
        raise EnvironmentSetupError(f"{python or sys.executable} has no lerobot that works: {reason}; {_INSTALL}")
