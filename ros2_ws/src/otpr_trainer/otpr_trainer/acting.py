# SPDX-License-Identifier: Apache-2.0
"""How a policy acts while it is fine-tuned: as one plain sample, or as the one of several that its critic values most."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from otpr_policy.spec import Array
from otpr_sim.vector import Integers
from otpr_trainer.actor import DiffusionActor
from otpr_trainer.critic import ChunkCritic
from otpr_trainer.policy import TorchPolicy

Choosing = Callable[[Integers], NDArray[np.bool_]]
"""Episode numbers (B,) to whether the critic chooses in them, (B,)."""


def always(episodes: Integers) -> NDArray[np.bool_]:
    """The critic chooses in every episode."""
    return np.ones(len(episodes), dtype=bool)


def never(episodes: Integers) -> NDArray[np.bool_]:
    """Every episode is played by plain samples."""
    return np.zeros(len(episodes), dtype=bool)


def every_other(episodes: Integers) -> NDArray[np.bool_]:
    """The critic chooses in odd episodes, so that both ways of acting are measured side by side."""
    return episodes % 2 == 1


class Acting:
    """An ``otpr_trainer.interaction.Actor``: S chunks of the averaged policy, and the critic's favourite where it chooses."""

    def __init__(self, actor: DiffusionActor, critic: ChunkCritic | None = None, candidates: int = 1, choosing: Choosing = never) -> None:
        """Without a critic, or where it never chooses, one chunk is drawn."""
        self._actor = actor
        self._critic = critic
        self._choosing = choosing
        self.spec = actor.spec
        self.noise_shape = (1 if critic is None or choosing is never else candidates, *actor.noise_shape)

    def decide(self, observations: NDArray[Any], noise: NDArray[Any], episodes: Integers) -> Array:
        """See Actor. A plain episode takes the first chunk."""
        condition = self._actor.condition(observations)
        chunks = self._actor.sample(condition, torch.as_tensor(noise, dtype=torch.float32))
        choice = torch.zeros(len(chunks), dtype=torch.int64)
        if self._critic is not None and chunks.shape[1] > 1:
            values = self._critic.lower_bound(self._critic.values(condition, chunks[:, :, : self.spec.executed_length]))
            choice = torch.where(torch.as_tensor(self._choosing(episodes)), values.argmax(1), choice)
        return self._actor.physical(chunks[torch.arange(len(chunks)), choice])


class AsEvaluated:
    """An ``otpr_trainer.interaction.Actor`` that acts as ``otpr eval`` and the exported file do: one sample, no noise but the chain's."""

    def __init__(self, policy: TorchPolicy) -> None:
        self._policy = policy
        self.spec = policy.spec
        self.noise_shape = policy.noise_shape

    def decide(self, observations: NDArray[Any], noise: NDArray[Any], episodes: Integers) -> Array:
        """See Actor."""
        return self._policy.infer_batch(observations, noise)
