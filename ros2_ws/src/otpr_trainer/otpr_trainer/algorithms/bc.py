# SPDX-License-Identifier: Apache-2.0
"""Behaviour cloning of a diffusion policy.

Chi et al. 2023, "Diffusion Policy" (arXiv 2303.04137), with the state-based network and windows of DPPO's pre-training
(Ren et al. 2024, arXiv 2409.00588, app. D).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from otpr_policy.spec import Array
from otpr_trainer.learner import Setup
from otpr_trainer.policy import DiffusionPolicy, TorchPolicy
from otpr_trainer.supervised import Settings, SupervisedLearner, policy_config

NAME = "bc"
NEEDS_INIT = False


@dataclass(frozen=True)
class Config(Settings):
    """Settings of behaviour cloning: those that it shares."""


class Learner(SupervisedLearner[DiffusionPolicy]):
    """Learns to denoise the demonstrated chunks."""

    name = NAME

    def __init__(self, config: Config, setup: Setup) -> None:
        """See SupervisedLearner."""
        super().__init__(config, setup, DiffusionPolicy, policy_config(config, setup.demos))

    def loss(self, observation: Tensor, x_0: Tensor, k: Tensor, eps: Tensor) -> Tensor:
        """E || eps - eps_theta(x_k, k, observation) ||^2, the simple loss (DDPM eq. 14), mean over elements."""
        x_k = self.policy.schedule.add_noise(x_0, k, eps)
        eps_theta: Tensor = self.policy.network(x_k, k, self.policy.condition(observation))
        return ((eps - eps_theta) ** 2).mean()

    def losses(self, rows: Tensor) -> dict[str, Tensor]:
        """The loss at uniform training steps."""
        k = torch.randint(self.config.train_steps, (len(rows),), generator=self._generator)
        x_0 = self._chunk[rows]
        eps = torch.randn(x_0.shape, generator=self._generator)
        return {"bc/loss": self.loss(self._observation[rows], x_0, k, eps)}

    def act(self, observation: NDArray[np.float64], noise: NDArray[np.float64]) -> Array:
        """A chunk (Ta, Da) of the averaged policy, all K steps of DDPM. observation: (To, Do); noise: (K, Ta, Da)."""
        return TorchPolicy.with_sampler(self.ema, "ddpm", None).infer(observation, noise)
