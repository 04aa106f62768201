# SPDX-License-Identifier: Apache-2.0
"""Tasks by name. Reading the specification of a task of ours does not import the simulator.

A name that starts with ``gym:`` is a Gymnasium environment, see :mod:`otpr_sim.gym_task`.
"""

from collections.abc import Callable

from otpr_policy.errors import TaskError, unknown
from otpr_sim.env import Stepping, TaskEnv, TaskSpec
from otpr_sim.gym_task import GymTask
from otpr_sim.shift import NOMINAL, Shift, ShiftableEnv
from otpr_sim.shifted_env import ShiftedEnv
from otpr_sim.tasks import can, door, lift, square

_TASKS: dict[str, tuple[TaskSpec, Callable[[Stepping], TaskEnv]]] = {
    task.SPEC.name: (task.SPEC, task.make) for task in (can, door, lift, square)
}


def names() -> tuple[str, ...]:
    """Names of our own tasks, sorted."""
    return tuple(sorted(_TASKS))


def spec(task: str) -> TaskSpec:
    """Specification of a task. Raises TaskError listing the known ones."""
    return _find(task)[0]


def make(task: str, stepping: Stepping = Stepping.COMPILED, shift: Shift = NOMINAL) -> TaskEnv:
    """A new environment of a task, under a distribution shift; close() it after use.

    Raises:
        TaskError: an unknown task (lists the known ones), or one whose physics cannot be shifted.
    """
    env = _find(task)[1](stepping)
    if shift == NOMINAL:
        return env
    if not isinstance(env, ShiftableEnv):
        env.close()
        raise TaskError(f"task {task!r} has no distribution shifts; use the preset nominal")
    return ShiftedEnv(env, shift)


def _find(task: str) -> tuple[TaskSpec, Callable[[Stepping], TaskEnv]]:
    if task.startswith(GymTask.PREFIX):
        from otpr_sim import gym_env

        return gym_env.spec(task), lambda _stepping: gym_env.GymEnv(GymTask.parse(task))  # it steps itself
    if task not in _TASKS:
        raise TaskError(unknown("task", task, (*names(), f"{GymTask.PREFIX}<id>")))
    return _TASKS[task]
