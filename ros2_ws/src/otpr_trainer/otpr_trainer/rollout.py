# SPDX-License-Identifier: Apache-2.0
"""Running a policy in a task over many episodes and processes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from otpr_sim import registry
from otpr_sim.env import TaskEnv
from otpr_sim.rollout import EpisodeResult, run_episode
from otpr_sim.workers import ordered_map
from otpr_trainer.sources import PolicySource

SEED_LIMIT = 2**31
"""Seeds that people pass are below it. Above it, still within the 32 bits that numpy's SeedSequence takes as one word, lie the seeds of
collecting demonstrations."""


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
