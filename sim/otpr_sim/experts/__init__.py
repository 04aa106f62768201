# SPDX-License-Identifier: Apache-2.0
"""Scripted experts: they solve a task from its observation alone and give the first demonstrations."""

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from otpr_policy.errors import TaskError, unknown
from otpr_policy.spec import Array
from otpr_sim.experts.can import CanExpert
from otpr_sim.experts.door import DoorExpert
from otpr_sim.experts.lift import LiftExpert
from otpr_sim.experts.square import SquareExpert


class Expert(Protocol):
    """Plays one episode. Make a new one for the next."""

    def act(self, observation: Mapping[str, Array]) -> Array:
        """Action (Da,) within the task's bounds for a named observation."""


_EXPERTS: dict[str, Callable[[np.random.Generator, float, float], Expert]] = {
    "can": CanExpert,
    "door": DoorExpert,
    "lift": LiftExpert,
    "square": SquareExpert,
}


def expert(task: str, rng: np.random.Generator, noise: float = 0.15, speed: float = 1.0) -> Expert:
    """An expert for one episode.

    Args:
        task: task name.
        rng: source of its style and its noise; with equal generators two experts act equally.
        noise: standard deviation of the noise on each position delta, as a fraction of its bound; less on rotations.
        speed: fraction of the largest speed to move at, 0 to 1.

    Raises:
        TaskError: no expert for the task (lists those that exist), negative noise, or a speed outside (0, 1].
    """
    if task not in _EXPERTS:
        raise TaskError(f"{unknown('expert task', task, _EXPERTS)}; for another, bring your own with --expert MODULE:NAME")
    if not (np.isfinite(noise) and noise >= 0.0):
        raise TaskError(f"noise must be a number of at least 0, got {noise}")
    if not 0.0 < speed <= 1.0:
        raise TaskError(f"speed must be in (0, 1], got {speed}")
    return _EXPERTS[task](rng, noise, speed)
