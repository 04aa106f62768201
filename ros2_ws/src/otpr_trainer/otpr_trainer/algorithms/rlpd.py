# SPDX-License-Identifier: Apache-2.0
"""RLPD: soft actor-critic with demonstrations in half of each batch and an ensemble of critics with LayerNorm; no diffusion.

Ball et al. 2023, "Efficient online reinforcement learning with offline data" (arXiv 2302.02948):

    y = r + gamma^k min_{i in Z} Q'_i(s', a'),  a' ~ pi(. | s'),  Z two of E at random;   no entropy in y where reward is sparse
    actor: maximise E mean_i Q_i(s, a) - alpha log pi(a | s)

Here an action is a chunk and gamma counts environment steps, as for the methods that it is compared with. Of the policy that the others
start from it takes what that is shown and its normalisation, and no weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from otpr_trainer.config import setting
from otpr_trainer.gaussian import GaussianConfig, Role
from otpr_trainer.gaussian_policy import GaussianPolicy
from otpr_trainer.policy import DiffusionPolicy
from otpr_trainer.sac import SacSettings, SoftActorCritic
from otpr_trainer.sampler import ChunkSampler

NAME = "rlpd"
NEEDS_INIT = True
OWN_CHAIN = True
VARIANTS = {"paper": {"observed_returns": False, "critic_updates": 5.0}}
"""``paper``: temporal differences alone, 20 critic steps per chunk of 4."""


@dataclass(frozen=True)
class Config(SacSettings):
    """Ten critics with LayerNorm, half demonstrations and the target entropy are the paper's."""

    critic_heads: int = setting(10, "critics in the ensemble, of which a target takes two")
    critic_updates: float = setting(1.0, "gradient steps of the critics per environment step; 1 is four per chunk of 4, the paper has 20")


class Learner(SoftActorCritic):
    """A Gaussian from nothing."""

    policy: GaussianPolicy

    def make_actor(self, start: DiffusionPolicy) -> ChunkSampler:
        """The start policy, for what it is shown and its normalisation."""
        return ChunkSampler(start, sampling_steps=1, generator=self.generator)

    def gaussian_config(self) -> GaussianConfig:
        """The policy itself."""
        return GaussianConfig(Role.POLICY, self.config.actor_width, self.config.actor_depth)

    def propose(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Chunks a ~ pi(. | s). What is not carried out of them has no value and no entropy."""
        noise = self.normal(len(states), *self.policy.gaussian.chunk_shape)
        chunk, log_prob = self.policy.sample(self.replay.condition[states], noise)
        return chunk, self.executed(log_prob).sum((1, 2))

    def actor_value(self, values: Tensor) -> Tensor:
        """Their mean (released code)."""
        return values.mean(0)

    def begin(self, condition: Tensor, noise: Tensor) -> Tensor:
        """Uniform in the normalised range (-1, 1)."""
        return torch.erf(noise[:, 0] / 2**0.5)  # 2 Phi(z) - 1

    def explore(self, condition: Tensor, noise: Tensor) -> Tensor:
        """Chunks a ~ pi(. | s)."""
        return self.policy.sample(condition, noise[:, 0])[0]
