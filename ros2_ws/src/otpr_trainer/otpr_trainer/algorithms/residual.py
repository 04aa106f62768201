# SPDX-License-Identifier: Apache-2.0
"""Residual RL: a Gaussian actor adds a bounded correction to the chunk of the cloned policy, which stays as it is.

Johannink et al. 2019 (arXiv 1812.03201) and Silver et al. 2018 (arXiv 1812.06298); on a frozen diffusion policy with soft actor-critic
and a bound as in "Policy Decorator" (Yuan et al. 2024, arXiv 2412.13630):

    a = clip(b + scale u, -1, 1),   b ~ the cloned policy in s,   u ~ pi(. | s, b) in (-1, 1)
    y = r + gamma^k min_i Q'_i(s', a');   actor: maximise E min_i Q_i(s, a) - alpha log pi(u | s, b)

The correction is of a whole chunk, made when the chunk is, as the cloned policy is queried then. Q sees the sum, so demonstrations,
which have no b, teach it too.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from otpr_policy.errors import RunError
from otpr_trainer.config import positive, setting
from otpr_trainer.gaussian import GaussianConfig, Role
from otpr_trainer.gaussian_policy import ResidualPolicy
from otpr_trainer.learner import Setup
from otpr_trainer.policy import DiffusionPolicy
from otpr_trainer.sac import SacSettings, SoftActorCritic
from otpr_trainer.sampler import ChunkSampler

NAME = "residual"
NEEDS_INIT = True
VARIANTS = {"paper": {"observed_returns": False}}
"""``paper``: temporal differences alone."""


@dataclass(frozen=True)
class Config(SacSettings):
    """The scale is that of Policy Decorator's and ResiP's experiments."""

    scale: float = setting(0.1, "largest correction of an action, as a share of half its normalised range; 0 is the cloned policy")
    sampling_steps: int = setting(5, "denoising steps of the cloned policy's DDIM with eta 1, as in the exported policy")
    cached_candidates: int = setting(4, "chunks of the cloned policy that are kept for each state, of which updates take one")

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "sampling_steps", "cached_candidates")
        if not 0 <= self.scale <= 2:
            raise RunError(f"scale must be in [0, 2], got {self.scale}")


class Learner(SoftActorCritic):
    """The cloned policy, and what is added to it."""

    policy: ResidualPolicy

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup, candidates=config.cached_candidates)

    @property
    def config(self) -> Config:
        """The settings."""
        assert isinstance(self.settings, Config)
        return self.settings

    def make_actor(self, start: DiffusionPolicy) -> ChunkSampler:
        """The cloned policy."""
        return ChunkSampler(start, sampling_steps=self.config.sampling_steps, generator=self.generator)

    def gaussian_config(self) -> GaussianConfig:
        """The correction."""
        return GaussianConfig(Role.RESIDUAL, self.config.actor_width, self.config.actor_depth, self.config.scale)

    def propose(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Chunks a with fresh u. The cloned policy never changes, so b is one of those that replay has kept."""
        column = torch.randint(self.config.cached_candidates, (len(states),), generator=self.generator)
        noise = self.normal(len(states), *self.policy.gaussian.chunk_shape)
        chunk, log_prob = self.policy.sample(self.replay.condition[states], self.replay.candidates[states, column], noise)
        return chunk, self.executed(log_prob).sum((1, 2))

    @property
    def draws(self) -> int:
        """Of the cloned policy's chain, and one for u."""
        return self.actor.noise_shape[0] + 1

    def begin(self, condition: Tensor, noise: Tensor) -> Tensor:
        """The cloned policy alone, b."""
        return self.actor.sample(condition, noise[:, None, :-1])[:, 0]

    def explore(self, condition: Tensor, noise: Tensor) -> Tensor:
        """Chunks a."""
        return self.policy.sample(condition, self.begin(condition, noise), noise[:, -1])[0]
