# SPDX-License-Identifier: Apache-2.0
"""Chunks of a policy in training, by a chain of few steps: what replay, actors and critics need of any diffusion policy."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from otpr_policy.spec import Array, PolicySpec
from otpr_trainer.diffusion import ReverseChain, ddim
from otpr_trainer.networks.mlp import DiffusionMLP
from otpr_trainer.policy import DiffusionPolicy

DRAW_BATCH = 4096  # states per pass of the chain: more only costs memory


class ChunkSampler:
    """Samples chunks with few steps of DDIM.

    Attributes:
        policy: what it samples from.
        reverse: the chain that samples.
    """

    def __init__(self, policy: DiffusionPolicy, *, sampling_steps: int, generator: torch.Generator, eta: float = 1.0) -> None:
        """All randomness comes from ``generator``. ``eta``: DDIM's; 1 as in the exported policy."""
        self.policy = policy
        self.reverse: ReverseChain = ddim(policy.schedule, min(sampling_steps, policy.schedule.steps), eta)
        self._generator = generator

    @property
    def spec(self) -> PolicySpec:
        """What the policy reads and writes."""
        return self.policy.config.spec

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(n, Ta, Da), the normal draws of one chain."""
        return self.reverse.noise_count(), self.spec.chunk_length, self.spec.action.size

    def condition(self, observation: NDArray[Any]) -> Tensor:
        """Observations (B, To, Do) in physical units to network conditions (B, To * Do)."""
        return self.policy.condition(torch.as_tensor(observation, dtype=torch.float32))

    def normalized(self, action: NDArray[Any]) -> Tensor:
        """Actions (..., Da) in physical units to what the chain works on."""
        return self.policy.action.normalize(torch.as_tensor(action, dtype=torch.float32))

    def physical(self, chunk: Tensor) -> Array:
        """Normalised chunks (B, Ta, Da) to physical units, within the action's bounds."""
        return self.policy.physical_action(chunk).numpy().astype(np.float64)

    @torch.no_grad()
    def sample(self, condition: Tensor, noise: Tensor) -> Tensor:
        """Normalised chunks, (B, S, Ta, Da). condition: (B, To * Do); noise: (B, S, *noise_shape)."""
        return self.chunks(self.policy.network, condition, noise)

    def chunks(self, network: DiffusionMLP, condition: Tensor, noise: Tensor) -> Tensor:
        """What :meth:`sample` yields with another network, and with its gradient."""
        context = network.condition_term(condition).repeat_interleave(noise.shape[1], 0)
        times = dict(zip(self.reverse.timesteps, network.time_term(torch.tensor(self.reverse.timesteps)), strict=True))
        chain = self.reverse.sample(lambda x_k, k: network.denoise(x_k, context + times[k]), noise.flatten(0, 1))
        return chain[-1].reshape(*noise.shape[:2], *chain[-1].shape[1:])

    def draw(self, condition: Tensor, count: int) -> Tensor:
        """``count`` fresh chunks in each state, (B, count, Ta, Da)."""
        if count == 0:
            return condition.new_empty((len(condition), 0, *self.noise_shape[1:]))
        parts = [
            self.sample(part, torch.randn((len(part), count, *self.noise_shape), generator=self._generator))
            for part in condition.split(DRAW_BATCH)
        ]
        return torch.cat(parts)
