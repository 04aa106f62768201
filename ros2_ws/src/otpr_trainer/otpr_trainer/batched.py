# SPDX-License-Identifier: Apache-2.0
"""One inference for all environments of a :class:`otpr_sim.vector.VectorEnv`, with each episode's own history and noise.

An episode is the same as in :func:`otpr_trainer.rollout.run_episode`, up to the rounding of float32 in a batch.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from otpr_policy.chunk import episode_rng
from otpr_policy.errors import EnvironmentSetupError
from otpr_policy.history import ObservationHistory
from otpr_policy.spec import Array, PolicySpec
from otpr_sim.rollout import EpisodeResult
from otpr_sim.vector import NONE, Begun, ChunkResult, Integers, VectorEnv

ATTEMPTS = 3
"""How often an episode is played before it is said that its worker always dies of it."""


class BatchPolicy(Protocol):
    """A policy that infers for many environments at once."""

    @property
    def spec(self) -> PolicySpec:
        """What it reads and writes."""

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the standard normal numbers that one inference consumes in each environment."""

    def infer_batch(self, observations: NDArray[Any], noise: NDArray[Any]) -> Array:
        """Observations (B, To, Do) and noise (B, *noise_shape) to actions (B, Ta, Da), in physical units."""


class EpisodeBatch:
    """History and noise stream of the episode that each of N environments is in: what a RecedingHorizon holds for one."""

    def __init__(self, seed: int, observation_horizon: int, begun: Begun) -> None:
        """Starts with the episodes that ``VectorEnv.reset(seed)`` has begun."""
        self._seed = seed
        self._horizon = observation_horizon
        self._histories = [ObservationHistory(observation_horizon) for _ in begun.episodes]
        self._rngs: list[np.random.Generator | None] = [None] * len(begun.episodes)
        self._begin(begun)

    @property
    def running(self) -> Integers:
        """Environments that have an episode, (B,), ascending; the rows of what the two methods below return."""
        return np.array([env for env, rng in enumerate(self._rngs) if rng is not None], dtype=np.int64)

    def observations(self) -> Array:
        """What the policy is to act on, (B, To, Do)."""
        return np.stack([self._histories[env].stack() for env in self.running])

    def draw(self, shape: tuple[int, ...]) -> Array:
        """The next standard normal numbers of each episode, (B, *shape)."""
        return np.stack([rng.standard_normal(shape) for rng in self._rngs if rng is not None])

    def follow(self, result: ChunkResult) -> Array:
        """Takes in what a chunk led to.

        Returns:
            The histories after the chunk and before any new episode, (N, To, Do): the next state of a transition, for instance to
            bootstrap from where an episode was truncated. NaN where nothing moved.
        """
        after = np.full((len(self._histories), self._horizon, result.observations.shape[2]), np.nan)
        for env in np.flatnonzero(result.moved):
            for observation in result.observations[env, : result.executed[env]]:
                self._histories[env].append(observation)
            after[env] = self._histories[env].stack()
        for env in np.flatnonzero(result.ended | result.lost):
            self._rngs[env] = None
        self._begin(result.begun)
        return after

    def _begin(self, begun: Begun) -> None:
        for env in np.flatnonzero(begun.episodes != NONE):
            self._histories[env].clear()
            self._histories[env].append(begun.observations[env])
            self._rngs[env] = episode_rng(self._seed, int(begun.episodes[env]))


def collect_episodes(vector: VectorEnv, policy: BatchPolicy, seed: int, episodes: int) -> Iterator[EpisodeResult]:
    """Results of episodes 0..episodes-1 in the order in which they end. Those that are lost with a worker are played again.

    Raises:
        EnvironmentSetupError: an episode was lost again and again.
    """
    assert vector.executed_length == policy.spec.executed_length
    assert not policy.spec.reads_previous, "previous chunks are kept by RecedingHorizon alone"
    wanted: Iterable[int] = range(episodes)
    for _ in range(ATTEMPTS):
        lost: list[int] = []
        yield from _play(vector, policy, seed, wanted, lost)
        if not lost:
            return
        wanted = sorted(lost)
    raise EnvironmentSetupError(f"a worker process died {ATTEMPTS} times while it played episode {lost[0]} of seed {seed}")


def _play(vector: VectorEnv, policy: BatchPolicy, seed: int, episodes: Iterable[int], lost: list[int]) -> Iterator[EpisodeResult]:
    """Plays each episode once; appends those that are lost to ``lost``."""
    batch = EpisodeBatch(seed, policy.spec.observation_horizon, vector.reset(seed, episodes))
    actions = np.full((vector.envs, policy.spec.chunk_length, policy.spec.action.size), np.nan)
    while len(batch.running):
        actions[batch.running] = policy.infer_batch(batch.observations(), batch.draw(policy.noise_shape))
        result = vector.step(actions)
        batch.follow(result)
        lost.extend(int(number) for number in result.episodes[result.lost])
        for env in np.flatnonzero(result.ended):
            yield EpisodeResult(int(result.episodes[env]), bool(result.success[env]), int(result.lengths[env]))
