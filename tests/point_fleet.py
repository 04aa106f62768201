# SPDX-License-Identifier: Apache-2.0
"""Points for the tests of the vectorised rollout, in worker processes: healthy ones, and ones that fail in the ways environments do."""

import os
import time
from dataclasses import replace

import numpy as np
import point_task

from otpr_policy.errors import TaskError
from otpr_policy.spec import Array
from otpr_sim.env import StepResult, TaskSpec, episode_seed
from otpr_sim.shift import NOMINAL, Shift

SEED = 4


class OddEnd(point_task.PointEnv):
    """Says at the horizon that the episode is both over and cut off, as some environments do."""

    def step(self, action: Array) -> StepResult:
        result = super().step(action)
        return replace(result, terminated=result.terminated or result.truncated, truncated=self._steps >= point_task.SPEC.horizon)


class Slow(point_task.PointEnv):
    """20 ms per step, so that a test can end a worker in the middle of one."""

    def step(self, action: Array) -> StepResult:
        time.sleep(0.02)
        return super().step(action)


class Stuck(point_task.PointEnv):
    """Episode 1 never answers its third step."""

    def reset(self, seed: int) -> dict[str, Array]:
        self._stuck = seed == episode_seed(SEED, 1)
        return super().reset(seed)

    def step(self, action: Array) -> StepResult:
        if self._stuck and self._steps == 2:
            time.sleep(3600)
        return super().step(action)


class Unstable(Stuck):
    """The physics of episode 1 blows up in its third step."""

    def step(self, action: Array) -> StepResult:
        if self._stuck and self._steps == 2:
            raise FloatingPointError("the simulation is unstable")
        return super().step(action)


class Broken(point_task.PointEnv):
    """Cannot be reset."""

    def reset(self, seed: int) -> dict[str, Array]:
        raise ZeroDivisionError("no table to stand on")


class Refused(point_task.PointEnv):
    """A mistake that a user can put right."""

    def __init__(self) -> None:
        raise TaskError("the table must be higher than the floor")


class Dying(point_task.PointEnv):
    """Its process ends while it is made."""

    def __init__(self) -> None:
        os._exit(9)


class Brittle(point_task.PointEnv):
    """Its process ends in the first step."""

    def step(self, action: Array) -> StepResult:
        os._exit(9)


def spec(task: str) -> TaskSpec:
    """With :func:`make`, what ``otpr_sim.registry`` is to a learner."""
    return point_task.SPEC


def make(task: str, shift: Shift = NOMINAL) -> point_task.PointEnv:
    return {"healthy": point_task.PointEnv, "dying": Brittle}[task]()


def chunk(envs: int, length: int, move: float) -> Array:
    """The same move everywhere, (N, Ta, 2)."""
    return np.tile([move, 0.0], (envs, length, 1))
