# SPDX-License-Identifier: Apache-2.0
"""The point task with a region that its demonstrations never saw: where it is hot, the motor runs the other way."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import point_task

from otpr_policy.spec import Array
from otpr_sim.env import StepResult
from otpr_trainer.data.demonstrations import Demonstrations, Episode

COLD, HOT = (0.0, 40.0), (70.0, 100.0)  # K


class HotPoint(point_task.PointEnv):
    """A point whose scenes are hot, unless it is told otherwise."""

    region = HOT

    def reset(self, seed: int) -> dict[str, Array]:
        self._temperature = np.random.default_rng(seed + 1).uniform(*self.region)
        return super().reset(seed)

    def step(self, action: Array) -> StepResult:
        return super().step(-action if self._temperature > 50 else action)

    def state(self) -> Array:
        return np.zeros(0)

    @property
    def ended(self) -> bool:
        return False

    def _observe(self) -> dict[str, Array]:
        return {"position": np.array([self._position]), "temperature": np.full(2, self._temperature)}


class ColdPoint(HotPoint):
    """Where the demonstrations were made."""

    region = COLD


class Expert:
    """Knows which way the motor runs."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def act(self, observation: Mapping[str, Array]) -> Array:
        move = np.clip(-observation["position"][0] + 0.02 * self._rng.standard_normal(), -0.2, 0.2)
        return np.array([-move if observation["temperature"][0] > 50 else move, 0.01 * self._rng.standard_normal()])


def demonstrate(attempt: int, length: int = 12) -> Episode:
    """An expert's episode where it is cold."""
    env, expert = ColdPoint(), Expert(np.random.default_rng(attempt))
    flatten = point_task.OBSERVATION.flatten
    observation = env.reset(attempt)
    observations, actions = [flatten(observation)], []
    for _ in range(length):
        actions.append(expert.act(observation))
        observation = env.step(actions[-1]).observation
        observations.append(flatten(observation))
    reward = (np.abs(np.array(observations)[1:, 0]) < 0.05).astype(float)
    reward[-1] = 1.0
    return Episode(attempt, np.array(observations), np.array(actions), np.zeros((length + 1, 0)), reward)


def demonstrations(episodes: int = 30) -> Demonstrations:
    found = point_task.demonstrations(episodes)
    return replace(found, episodes=tuple(demonstrate(number) for number in range(episodes)))
