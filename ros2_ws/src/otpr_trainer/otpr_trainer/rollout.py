# SPDX-License-Identifier: Apache-2.0
"""Running a policy in a task, episode by episode; an episode depends on the seed and its number alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from otpr_policy.chunk import ChunkPolicy, episode_rng
from otpr_policy.errors import TaskError
from otpr_policy.receding_horizon import RecedingHorizon
from otpr_policy.spec import PolicySpec, VectorSpec
from otpr_sim import registry
from otpr_sim.env import StepResult, TaskEnv, TaskSpec, episode_seed
from otpr_trainer.sources import PolicySource
from otpr_trainer.workers import ordered_map

SEED_LIMIT = 2**31
"""Seeds that people pass are below it. Above it, still within the 32 bits that numpy's SeedSequence takes as one word, lie the seeds of
collecting demonstrations."""


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


@dataclass(frozen=True)
class Episodes:
    """Builds, in a worker, the function from an episode's number to its result. One environment and policy serve all episodes."""

    source: PolicySource
    task: str
    seed: int
    make_env: Callable[[str], TaskEnv] = registry.make
    delay_ticks: int = 0

    def __call__(self) -> Callable[[int], EpisodeResult]:
        """Makes the environment and the policy that all episodes of this process share."""
        env, policy = self.make_env(self.task), self.source.open()
        return lambda episode: run_episode(env, policy, self.seed, episode, delay_ticks=self.delay_ticks)


def run_episodes(episodes: Episodes, count: int, workers: int) -> Iterator[EpisodeResult]:
    """Results of episodes 0..count-1 in order, the same for every number of workers."""
    return ordered_map(episodes, range(count), min(workers, count))


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
