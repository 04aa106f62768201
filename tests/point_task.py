# SPDX-License-Identifier: Apache-2.0
"""A task small enough for the trainer's tests: a point on a line that must reach the origin. No simulator behind it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from otpr_policy.errors import TaskError
from otpr_policy.spec import Array, Field, Semantics, VectorSpec
from otpr_sim.env import Stepping, StepResult, TaskSpec
from otpr_trainer.data.demonstrations import Demonstrations, Episode, Header, episode_path

if TYPE_CHECKING:
    from otpr_trainer.learner import Setup  # it imports torch, which worker processes do without

OBSERVATION = VectorSpec((Field("position", "m", (-1.0,), (1.0,)), Field("temperature", "K", (0.0, 0.0), (100.0, 100.0))))
ACTION = VectorSpec((Field("move", "m", (-0.2,), (0.2,), Semantics.DELTA), Field("spin", "rad", (-1.0,), (1.0,), Semantics.DELTA)))
SPEC = TaskSpec("point", "A point goes to the origin.", OBSERVATION, ACTION, 20.0, 12, "the point is within 0.05 m of the origin")


class PointEnv:
    """The position starts anywhere in [-1, 1] and moves by the action; the temperature stays at 20 K."""

    spec = SPEC

    def __init__(self, stepping: Stepping = Stepping.STOCK) -> None:
        """The registry says how to step; there is nothing to choose here."""

    def reset(self, seed: int) -> dict[str, Array]:
        self._position = np.random.default_rng(seed).uniform(-1.0, 1.0)
        self._steps = 0
        return self._observe()

    def step(self, action: Array) -> StepResult:
        self._position += float(action[0])
        self._steps += 1
        success = abs(self._position) < 0.05
        return StepResult(self._observe(), float(success), success, not success and self._steps >= SPEC.horizon, success)

    @property
    def ended(self) -> bool:
        return self._steps >= SPEC.horizon

    def state(self) -> Array:
        return np.array([self._position])

    def close(self) -> None:
        """Nothing to free."""

    def _observe(self) -> dict[str, Array]:
        return {"position": np.array([self._position]), "temperature": np.array([20.0, 20.0])}


class PointExpert:
    """Goes to the origin, a little off each time; as a user would bring an expert."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def act(self, observation: dict[str, Array]) -> Array:
        move = -observation["position"][0] + 0.02 * self._rng.standard_normal()
        return np.array([np.clip(move, -0.2, 0.2), 0.01 * self._rng.standard_normal()])


def make_env(task: str) -> PointEnv:
    assert task == "point"
    return PointEnv()


def demonstrate(attempt: int, length: int = 10) -> Episode:
    """An episode that depends on the attempt's number alone."""
    rng = np.random.default_rng(attempt)
    position = rng.uniform(-1.0, 1.0)
    observation, action = [], []
    for _ in range(length):
        observation.append([position, 20.0, 20.0])
        move = float(np.clip(-position + 0.02 * rng.standard_normal(), -0.2, 0.2))
        action.append([move, 0.01 * rng.standard_normal()])
        position += move
    observation.append([position, 20.0, 20.0])
    observations = np.array(observation)
    return Episode(attempt, observations, np.array(action), observations[:, :1], np.append(np.zeros(length - 1), 1.0))


@dataclass(frozen=True)
class PointAttempts:
    """Every third attempt fails. Interrupts before attempt ``interrupted_at``, as Ctrl-C would."""

    interrupted_at: int | None = None

    def __call__(self) -> Callable[[int], Episode | None]:
        return self.attempt

    def attempt(self, number: int) -> Episode | None:
        if number == self.interrupted_at:
            raise KeyboardInterrupt
        return None if number % 3 == 1 else demonstrate(number)


def header(episodes: int) -> Header:
    return Header("point", OBSERVATION, ACTION, SPEC.control_rate_hz, {"kind": "scripted", "noise": 0.02, "speed": 1.0}, 0, episodes)


def demonstrations(episodes: int = 8) -> Demonstrations:
    done = header(episodes)
    for _ in range(episodes):
        done = done.counting(True)
    return Demonstrations(done, tuple(demonstrate(number) for number in range(episodes)))


def setup(episodes: int = 8, seed: int = 0) -> "Setup":
    """What an algorithm that starts from nothing learns this task from."""
    from otpr_trainer.learner import Setup

    return Setup("point", demonstrations(episodes), seed)


def write_demonstrations(directory: Path, episodes: int = 8) -> Demonstrations:
    demos = demonstrations(episodes)
    for number, episode in enumerate(demos.episodes):
        episode.write(episode_path(directory, number), demos.header)
    demos.header.write(directory)
    return demos


def build_job(kind: str) -> Callable[[int], int]:
    """Jobs for worker processes: one that works, one that makes a user's mistake at item 2, one that dies."""
    return {"square": _square, "broken": _broken, "dying": _dying}[kind]


def _square(number: int) -> int:
    return number * number


def _broken(number: int) -> int:
    if number == 2:
        raise TaskError("two is not allowed")
    return number


def _dying(number: int) -> int:
    os._exit(9)
