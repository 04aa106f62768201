# SPDX-License-Identifier: Apache-2.0
"""How a policy acts while it is fine-tuned: as one plain sample, or as the one of several that its critic values most."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from otpr_policy.spec import Array
from otpr_sim.vector import Integers
from otpr_trainer.actor import DiffusionActor
from otpr_trainer.critic import ChunkCritic
from otpr_trainer.policy import TorchPolicy

Choosing = Callable[[Integers], NDArray[np.bool_]]
"""Episode numbers (B,) to whether the critic chooses in them, (B,)."""

Weighing = Callable[[Tensor], Tensor]
"""Values of candidates (B, S) to weights >= 0 with which one of them is drawn, (B, S)."""


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
    """An ``otpr_trainer.interaction.Actor``: S chunks of the averaged policy, and the critic's choice among them where it chooses."""

    def __init__(
        self,
        actor: DiffusionActor,
        critic: ChunkCritic | None = None,
        candidates: int = 1,
        choosing: Choosing = never,
        weighing: Weighing | None = None,
    ) -> None:
        """Without a critic, or where it never chooses, one chunk is drawn.

        Args:
            actor: draws chunks.
            critic: values them.
            candidates: S.
            choosing: in which episodes the critic chooses.
            weighing: the chosen chunk is drawn by these weights; None is the one of largest value.
        """
        self._actor = actor
        self._critic = critic
        self._choosing = choosing
        self._weighing = weighing
        self._candidates = 1 if critic is None or choosing is never else candidates
        self.spec = actor.spec
        # One more noise than chunks is what a draw by weights is made from, so that it belongs to the episode like the rest.
        self.noise_shape = (self._candidates + (weighing is not None and self._candidates > 1), *actor.noise_shape)

    def decide(self, observations: NDArray[Any], noise: NDArray[Any], episodes: Integers) -> Array:
        """See Actor. A plain episode takes the first chunk."""
        condition = self._actor.condition(observations)
        normal = torch.as_tensor(noise, dtype=torch.float32)
        chunks = self._actor.sample(condition, normal[:, : self._candidates])
        choice = torch.zeros(len(chunks), dtype=torch.int64)
        if self._critic is not None and self._candidates > 1:
            values = self._critic.lower_bound(self._critic.values(condition, chunks[:, :, : self.spec.executed_length]))
            if self._weighing is None:
                chosen = values.argmax(1)
            else:
                chosen = drawn(self._weighing(values), torch.special.ndtr(normal[:, -1].flatten(1)[:, 0]))
            choice = torch.where(torch.as_tensor(self._choosing(episodes)), chosen, choice)
        return self._actor.physical(chunks[torch.arange(len(chunks)), choice])


def drawn(weights: Tensor, uniform: Tensor) -> Tensor:
    """One column of each row, (B,), with probability proportional to its weight. weights: (B, S), not all 0; uniform: (B,) in [0, 1]."""
    reached = weights.cumsum(1) / weights.sum(1, keepdim=True)
    column = (reached <= uniform[:, None]).sum(1)
    last = weights.shape[1] - 1 - (weights > 0).flip(1).int().argmax(1)  # rounding must not lead behind it
    return torch.minimum(column, last)


class AsEvaluated:
    """An ``otpr_trainer.interaction.Actor`` that acts as ``otpr eval`` and the exported file do: one sample, no noise but the chain's."""

    def __init__(self, policy: TorchPolicy) -> None:
        self._policy = policy
        self.spec = policy.spec
        self.noise_shape = policy.noise_shape

    def decide(self, observations: NDArray[Any], noise: NDArray[Any], episodes: Integers) -> Array:
        """See Actor."""
        return self._policy.infer_batch(observations, noise)
