# SPDX-License-Identifier: Apache-2.0
"""Policies with a squashed Gaussian: alone, as the choice of a diffusion's noise, and as a correction of a diffusion's chunk.

Evaluated and exported they act by the Gaussian's mode; in training, by its samples.
"""

import torch
from torch import Tensor

from otpr_trainer.gaussian import GaussianConfig, Role
from otpr_trainer.networks.gaussian import GaussianMLP, ModeNetwork
from otpr_trainer.normalization import AffineMap
from otpr_trainer.policy import ChainPolicy, DiffusionPolicy, PolicyConfig


class GaussianPolicy(ChainPolicy):
    """a = tanh(x), x ~ N(mu(s), sigma(s)); no diffusion (RLPD's actor)."""

    source_label = "none"
    start_draws = 0
    network: ModeNetwork

    def __init__(self, config: PolicyConfig, observation: AffineMap | None = None, action: AffineMap | None = None) -> None:
        """See ChainPolicy."""
        super().__init__(config, observation, action)

    @property
    def gaussian(self) -> GaussianMLP:
        """The actor."""
        return self.network.gaussian

    def make_network(self, heads: int | None) -> ModeNetwork:
        """The Gaussian, whose mode is what the chain's one step yields."""
        return ModeNetwork(_gaussian(self.config, self.config.condition_size))

    def start(self, observation: Tensor, condition: Tensor, noise: Tensor, previous: Tensor | None) -> Tensor:
        """Nothing: the network does not look at it."""
        return condition.new_zeros((len(condition), *self.gaussian.chunk_shape))

    def sample(self, condition: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Chunks with exploration and log pi of each element. condition: (B, condition_size); the others (B, Ta, Da)."""
        return self.gaussian.sample(condition, noise)


class SteeredPolicy(DiffusionPolicy):
    """A frozen diffusion whose noise is chosen: w = bound tanh(x), x ~ N(mu(s), sigma(s)), and its deterministic chain from w (DSRL)."""

    source_label = "noise actor"
    start_draws = 0

    def __init__(self, config: PolicyConfig, observation: AffineMap | None = None, action: AffineMap | None = None) -> None:
        """See ChainPolicy."""
        super().__init__(config, observation, action)
        self.gaussian = _gaussian(config, config.condition_size)
        self.bound = _settings(config).scale

    def start(self, observation: Tensor, condition: Tensor, noise: Tensor, previous: Tensor | None) -> Tensor:
        """The actor's mode."""
        return self.bound * self.gaussian.mode(condition)

    def sample(self, condition: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Noise w with exploration and log pi of each element of w / bound. condition: (B, condition_size); the others (B, Ta, Da)."""
        w, log_prob = self.gaussian.sample(condition, noise)
        return self.bound * w, log_prob


class ResidualPolicy(DiffusionPolicy):
    """A frozen diffusion whose chunk b is corrected: a = clip(b + scale tanh(x), -1, 1), x ~ N(mu(s, b), sigma(s, b))."""

    def __init__(self, config: PolicyConfig, observation: AffineMap | None = None, action: AffineMap | None = None) -> None:
        """See ChainPolicy."""
        super().__init__(config, observation, action)
        self.gaussian = _gaussian(config, config.condition_size + config.spec.chunk_length * config.spec.action.size)
        self.scale = _settings(config).scale

    def finish(self, condition: Tensor, chunk: Tensor) -> Tensor:
        """With the actor's mode added."""
        return self._corrected(chunk, self.gaussian.mode(_seen(condition, chunk)))

    def sample(self, condition: Tensor, chunk: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Corrected chunks with exploration and log pi of each element. condition: (B, condition_size); the others (B, Ta, Da)."""
        residual, log_prob = self.gaussian.sample(_seen(condition, chunk), noise)
        return self._corrected(chunk, residual), log_prob

    def _corrected(self, chunk: Tensor, residual: Tensor) -> Tensor:
        return (chunk + self.scale * residual).clamp(-1.0, 1.0)


ActorPolicy = GaussianPolicy | SteeredPolicy | ResidualPolicy


def build_gaussian_policy(config: PolicyConfig) -> ActorPolicy:
    """The policy of a Gaussian's role, with random weights."""
    role = _settings(config).role
    if role is Role.POLICY:
        return GaussianPolicy(config)
    return SteeredPolicy(config) if role is Role.NOISE else ResidualPolicy(config)


def _seen(condition: Tensor, chunk: Tensor) -> Tensor:
    return torch.cat([condition, chunk.flatten(1)], dim=1)


def _settings(config: PolicyConfig) -> GaussianConfig:
    assert config.gaussian is not None
    return config.gaussian


def _gaussian(config: PolicyConfig, input_size: int) -> GaussianMLP:
    sizes, spec = _settings(config), config.spec
    return GaussianMLP(input_size, (spec.chunk_length, spec.action.size), sizes.width, sizes.depth)
