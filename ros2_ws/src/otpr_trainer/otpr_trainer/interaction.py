# SPDX-License-Identifier: Apache-2.0
"""Playing whole episodes with a policy in training, and counting what they cost."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from otpr_policy.spec import Array, PolicySpec
from otpr_sim.vector import NONE, Begun, Integers, VectorEnv
from otpr_trainer.batched import EpisodeBatch
from otpr_trainer.data.replay import Origin, Trajectory


class Actor(Protocol):
    """A policy that may act otherwise from episode to episode."""

    @property
    def spec(self) -> PolicySpec:
        """What it reads and writes."""

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the standard normal numbers that one decision consumes."""

    def decide(self, observations: NDArray[Any], noise: NDArray[Any], episodes: Integers) -> Array:
        """Observations (B, To, Do), noise (B, *noise_shape) and episode numbers (B,) to chunks (B, Ta, Da), in physical units."""


@dataclass(frozen=True, eq=False)
class Played:
    """An episode that was played to its end."""

    episode: int
    trajectory: Trajectory
    success: bool


@dataclass
class Account:
    """Environment steps, each counted once, those of lost episodes included."""

    steps: int = 0
    lost_episodes: int = 0


def play(vector: VectorEnv, actor: Actor, seed: int, episodes: Iterable[int], account: Account) -> Iterator[Played]:
    """Plays each episode once, in whole; those lost with a worker are counted and left out.

    Episode e is the same for any number of environments and workers, up to float32's rounding in a batch, as long as the actor is.
    """
    begun = vector.reset(seed, episodes)
    batch = EpisodeBatch(seed, actor.spec.observation_horizon, begun)
    actions = np.full((vector.envs, actor.spec.chunk_length, actor.spec.action.size), np.nan)
    observed: list[list[Array]] = [[] for _ in range(vector.envs)]
    acted: list[list[Array]] = [[] for _ in range(vector.envs)]
    rewards: list[list[float]] = [[] for _ in range(vector.envs)]

    def begin(new: Begun) -> None:
        for env in np.flatnonzero(new.episodes != NONE):
            observed[env], acted[env], rewards[env] = [new.observations[env]], [], []

    begin(begun)
    while len(batch.running):
        running = batch.running
        actions[running] = actor.decide(batch.observations(), batch.draw(actor.noise_shape), vector.episodes[running])
        result = vector.step(actions)
        batch.follow(result)
        for env in np.flatnonzero(result.moved):
            done = int(result.executed[env])
            account.steps += done
            observed[env].extend(result.observations[env, :done].copy())
            rewards[env].extend(float(result.success[env]) * (np.arange(done) == done - 1))
            acted[env].extend(actions[env, :done].copy())
            if result.ended[env]:
                acted[env].extend(actions[env, done:].copy())
                success = bool(result.success[env])
                origin = Origin.SUCCESS if success else Origin.FAILURE
                over = success or bool(result.terminated[env])  # where success came with the horizon, too: a second one has no value
                whole = Trajectory(np.stack(observed[env]), np.stack(acted[env]), np.array(rewards[env]), over, origin)
                yield Played(int(result.episodes[env]), whole, success)
        account.lost_episodes += int(result.lost.sum())
        begin(result.begun)
