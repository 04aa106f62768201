# SPDX-License-Identifier: Apache-2.0
"""One episode of a policy in a task: what evaluation, videos and rehearsal share. It depends on the seed and its number alone."""

from collections.abc import Callable
from dataclasses import dataclass

from otpr_policy.chunk import ChunkPolicy, episode_rng
from otpr_policy.errors import TaskError
from otpr_policy.receding_horizon import RecedingHorizon
from otpr_policy.spec import PolicySpec, VectorSpec
from otpr_sim.env import StepResult, TaskEnv, TaskSpec, episode_seed


@dataclass(frozen=True)
class EpisodeResult:
    """How one episode went. ``steps``: control steps until its end."""

    episode: int
    success: bool
    steps: int


Watcher = Callable[[StepResult | None], None]
"""Told of every state of an episode: None after the reset, then the result of each step."""


def run_episode(
    env: TaskEnv, policy: ChunkPolicy, seed: int, episode: int, watch: Watcher = lambda result: None, delay_ticks: int = 0
) -> EpisodeResult:
    """Runs episode number ``episode`` of a run with ``seed`` to its end: success, failure for good, or the horizon.

    With ``delay_ticks`` each chunk comes that many control steps after the observation it answers.
    """
    controller = RecedingHorizon(policy, delay_ticks)
    controller.reset(episode_rng(seed, episode))
    observation = env.reset(episode_seed(seed, episode))
    watch(None)
    steps = 0
    while True:
        result = env.step(controller.act(policy.spec.observation.flatten(observation)))
        observation = result.observation
        steps += 1
        watch(result)
        if result.terminated or result.truncated:
            return EpisodeResult(episode, result.success, steps)


def check_fit(policy: PolicySpec, task: TaskSpec) -> None:
    """Raises TaskError when the policy does not read and write what the task has, or at another rate."""
    for side, ours, theirs in (("observation", policy.observation, task.observation), ("action", policy.action, task.action)):
        if signature(ours) != signature(theirs):
            raise TaskError(f"the policy's {side} is {signature(ours)}, task {task.name!r} has {signature(theirs)}")
    if policy.control_rate_hz != task.control_rate_hz:
        raise TaskError(f"the policy runs at {policy.control_rate_hz} Hz, task {task.name!r} at {task.control_rate_hz} Hz")


def signature(vector: VectorSpec) -> str:
    """What two vectors must share for one to be used as the other: names, sizes, units and semantics in order."""
    return ", ".join(f"{field.name} ({field.size} x {field.unit}, {field.semantics.value})" for field in vector.fields)
