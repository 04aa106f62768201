# SPDX-License-Identifier: Apache-2.0
"""A whole demonstration set as a few named arrays, bit for bit: what formats carry along, and what crosses to another interpreter."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otpr_policy.errors import DemonstrationError
from otpr_policy.spec import Array
from otpr_trainer.data.demonstrations import Demonstrations, Episode, Header
from otpr_trainer.data.formats.foreign import check_bounds

NAMES = ("header", "length", "attempt", "observation", "action", "reward", "state")


def pack(demos: Demonstrations) -> dict[str, NDArray[Any]]:
    """Arrays by name: ``header`` is JSON in bytes; ``length`` and ``attempt`` (E,); the others have all episodes one after the other.

    Raises:
        DemonstrationError: episodes with simulator states of different lengths.
    """
    episodes = demos.episodes
    if len({episode.state.shape[1] for episode in episodes}) > 1:
        raise DemonstrationError("the episodes have simulator states of different lengths")
    return {
        "header": np.frombuffer(json.dumps(demos.header.to_json()).encode(), np.uint8),
        "length": np.array([len(episode) for episode in episodes], np.int64),
        "attempt": np.array([episode.attempt for episode in episodes], np.int64),
        "observation": np.concatenate([episode.observation for episode in episodes]),
        "action": np.concatenate([episode.action for episode in episodes]),
        "reward": np.concatenate([episode.reward for episode in episodes]),
        "state": np.concatenate([episode.state for episode in episodes]),
    }


def unpack(path: Path, arrays: Mapping[str, NDArray[Any]]) -> Demonstrations:
    """The inverse of :func:`pack`. Raises DemonstrationError naming file and array."""
    for name in NAMES:
        if name not in arrays:
            raise DemonstrationError(f"{path}: array {name!r} is missing; there are {', '.join(sorted(arrays)) or 'none'}")
    try:
        data = json.loads(np.asarray(arrays["header"], np.uint8).tobytes())
    except (ValueError, RecursionError) as error:
        raise DemonstrationError(f"{path}: header is not JSON: {error}") from error
    header = Header.from_json(data, f"{path}: header")
    lengths = episode_lengths(path, "length", arrays["length"])
    count, steps = len(lengths), int(lengths.sum())
    if header.kept != count:
        raise DemonstrationError(f"{path}: the header counts {header.kept} episodes, the arrays have {count}")
    observation = finite(path, "observation", arrays["observation"], (steps + count, header.observation.size))
    action = finite(path, "action", arrays["action"], (steps, header.action.size))
    reward = finite(path, "reward", arrays["reward"], (steps,))
    state = finite(path, "state", arrays["state"], (steps + count, None))
    attempt = finite(path, "attempt", arrays["attempt"], (count,)).astype(np.int64)
    episodes = []
    for number, (end, length) in enumerate(zip(np.cumsum(lengths), lengths, strict=True)):
        rows, longer = slice(end - length, end), slice(end - length + number, end + number + 1)
        episode = Episode(int(attempt[number]), observation[longer], action[rows], state[longer], reward[rows])
        check_bounds(path, number, episode, header.action)
        episodes.append(episode)
    return Demonstrations(header, tuple(episodes))


def episode_lengths(path: Path, name: str, values: NDArray[Any]) -> NDArray[np.int64]:
    """Numbers of steps (E,). Raises DemonstrationError unless they are whole and positive."""
    if values.ndim != 1 or values.dtype.kind not in "iu" or not len(values) or (values < 1).any() or (values > 1 << 40).any():
        raise DemonstrationError(f"{path}: {name} must be a list of whole numbers above 0, at least one")
    return values.astype(np.int64)


def finite(path: Path, name: str, values: NDArray[Any], shape: tuple[int | None, ...]) -> Array:
    """Finite numbers of a shape, in which None fits any length. Raises DemonstrationError naming the array and the place."""
    if values.dtype.kind not in "biuf" or values.ndim != len(shape):
        raise DemonstrationError(
            f"{path}: {name} holds {values.dtype} of shape {values.shape}, expected numbers in {len(shape)} dimensions"
        )
    if any(want not in (None, got) for want, got in zip(shape, values.shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise DemonstrationError(f"{path}: {name} has shape {values.shape}, expected ({wanted})")
    numbers = values.astype(np.float64)
    if not np.isfinite(numbers).all():
        where = tuple(map(int, np.argwhere(~np.isfinite(numbers))[0]))
        raise DemonstrationError(f"{path}: {name} holds a number that is not finite: {numbers[where]} at {list(where)}")
    return numbers
