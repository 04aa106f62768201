# SPDX-License-Identifier: Apache-2.0
"""The diffusion policy as torch computes it: normaliser, denoising network, schedule, and the chain that makes an action chunk."""

import copy
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from otpr_policy.errors import RunError, SpecError
from otpr_policy.spec import Array, PolicySpec
from otpr_trainer.diffusion import ReverseChain, cosine_schedule, reverse_chain
from otpr_trainer.networks.mlp import DiffusionMLP
from otpr_trainer.normalization import AffineLayer, AffineMap

POSITION_UNIT = "m"
"""Fields of three numbers in it are positions, all in the robot's base frame."""


@dataclass(frozen=True)
class PolicyConfig:
    """What a policy must be built from before its weights can be loaded.

    ``relative_positions``: the network is also shown the difference of every two positions among the observation's fields.
    ``frozen_from``: training steps from it up are denoised by a second network, which fine-tuning left as it was; None without one.
    """

    spec: PolicySpec
    train_steps: int  # K of the cosine schedule
    width: int
    depth: int
    time_size: int
    relative_positions: bool = False
    frozen_from: int | None = None

    @property
    def position_pairs(self) -> tuple[tuple[int, int], ...]:
        """First components of every two positions whose difference the network is shown."""
        fields = self.spec.observation.fields
        starts = np.cumsum([0, *(field.size for field in fields)])
        positions = [int(start) for start, field in zip(starts, fields, strict=False) if field.size == 3 and field.unit == POSITION_UNIT]
        return tuple(combinations(positions, 2)) if self.relative_positions else ()

    @property
    def condition_size(self) -> int:
        """Length of the network's condition."""
        return self.spec.observation_horizon * (self.spec.observation.size + 3 * len(self.position_pairs))

    def to_json(self) -> dict[str, Any]:
        """Plain data for a run's config.json."""
        sizes = {"train_steps": self.train_steps, "width": self.width, "depth": self.depth, "time_size": self.time_size}
        return {"spec": self.spec.to_json(), **sizes, "relative_positions": self.relative_positions, "frozen_from": self.frozen_from}

    @classmethod
    def from_json(cls, data: Any) -> "PolicyConfig":
        """Parses :meth:`to_json`'s form. Raises RunError naming what is wrong."""
        try:
            sizes = {key: int(data[key]) for key in ("train_steps", "width", "depth", "time_size")}
            relative = bool(data.get("relative_positions", False))  # runs from before it do without
            frozen_from = None if data.get("frozen_from") is None else int(data["frozen_from"])
            return cls(PolicySpec.from_json(data["spec"]), **sizes, relative_positions=relative, frozen_from=frozen_from)
        except (KeyError, TypeError, ValueError, SpecError) as error:
            raise RunError(f"the run's policy description is not readable: {error}") from error


class DiffusionPolicy(nn.Module):
    """A conditional diffusion model of action chunks (Diffusion Policy, Chi et al. 2023, arXiv 2303.04137)."""

    def __init__(self, config: PolicyConfig, observation: AffineMap | None = None, action: AffineMap | None = None) -> None:
        """Builds the policy. Without maps they are the identity, to be replaced by loading weights."""
        super().__init__()
        spec = config.spec
        self.config = config
        self.schedule = cosine_schedule(config.train_steps)
        self.observation = AffineLayer(observation or _identity(spec.observation.size))
        self.action = AffineLayer(action or _identity(spec.action.size))
        chunk_shape = (spec.chunk_length, spec.action.size)
        sizes = (chunk_shape, config.condition_size, config.width, config.depth, config.time_size)
        self.network = DiffusionMLP(*sizes)
        self.frozen = None if config.frozen_from is None else DiffusionMLP(*sizes).requires_grad_(False)

    def network_at(self, k: int) -> DiffusionMLP:
        """The network that denoises training step ``k``."""
        frozen_from = self.config.frozen_from
        if self.frozen is None or frozen_from is None or k < frozen_from:
            return self.network
        return self.frozen

    def freezing(self, k: int) -> "DiffusionPolicy":
        """A copy of a policy with one network that denoises training steps from ``k`` up with a second, frozen copy of it."""
        assert self.frozen is None
        policy = copy.deepcopy(self)
        policy.config = replace(self.config, frozen_from=k)
        policy.frozen = copy.deepcopy(self.network).requires_grad_(False)
        return policy

    def condition(self, observation: Tensor) -> Tensor:
        """Observations in physical units (B, To, Do) to the network's condition (B, condition_size).

        Behind the normalised observation come the differences of positions, in units of the wider of the two ranges. A few
        demonstrations do not tell a network that it is the object relative to the hand that matters; the differences do.
        """
        parts = [self.observation.normalize(observation)]
        half_width = self.observation.half_width
        for i, j in self.config.position_pairs:
            width = torch.maximum(half_width[i : i + 3], half_width[j : j + 3])
            parts.append((observation[..., j : j + 3] - observation[..., i : i + 3]) / width)
        return torch.cat(parts, dim=-1).flatten(1)

    def chain(self, observation: Tensor, noise: Tensor, reverse: ReverseChain, std_floor: float = 0.0) -> list[Tensor]:
        """Normalised chunks of each denoising step, start first, n + 1 tensors (B, Ta, Da); see :meth:`ReverseChain.sample`."""
        return self.denoise(self.condition(observation), noise, reverse, std_floor)

    def denoise(self, condition: Tensor, noise: Tensor, reverse: ReverseChain, std_floor: float = 0.0) -> list[Tensor]:
        """:meth:`chain` for conditions (B, condition_size)."""

        def predict_noise(x_k: Tensor, k: int) -> Tensor:
            eps: Tensor = self.network_at(k)(x_k, torch.full((len(x_k),), k, device=x_k.device), condition)
            return eps

        return reverse.sample(predict_noise, noise, std_floor)

    def physical_action(self, chunk: Tensor) -> Tensor:
        """A normalised chunk (B, Ta, Da) to physical units, within the action's bounds."""
        bounds = self.config.spec.action
        low, high = (torch.tensor(end, dtype=chunk.dtype, device=chunk.device) for end in (bounds.low, bounds.high))
        return self.action.denormalize(chunk).clamp(low, high)


class TorchPolicy:
    """A :class:`DiffusionPolicy` with a sampler chosen; an ``otpr_policy.chunk.ChunkPolicy`` and ``otpr_trainer.batched.BatchPolicy``."""

    candidates: int = 1
    """S, how many chains are run for one chunk; see :class:`otpr_trainer.selection.SelectingPolicy`."""

    def __init__(self, policy: DiffusionPolicy, reverse: ReverseChain) -> None:
        self.policy = policy.eval()
        self.reverse = reverse

    @staticmethod
    def with_sampler(policy: DiffusionPolicy, sampler: str, steps: int | None, eta: float = 0.0) -> "TorchPolicy":
        """Chooses the sampler by name; see :func:`otpr_trainer.diffusion.reverse_chain` for errors."""
        return TorchPolicy(policy, reverse_chain(policy.schedule, sampler, steps, eta))

    @property
    def spec(self) -> PolicySpec:
        """What the policy reads and writes."""
        return self.policy.config.spec

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """(S * draws of one chain, Ta, Da), one candidate after the other."""
        return self.candidates * self.reverse.noise_count(), self.spec.chunk_length, self.spec.action.size

    def infer(self, observation: NDArray[Any], noise: NDArray[Any]) -> Array:
        """Observations (To, Do) and noise (noise_shape) to actions (Ta, Da), in physical units."""
        return self.infer_batch(observation[None], noise[None])[0]

    @torch.no_grad()
    def infer_batch(self, observations: NDArray[Any], noise: NDArray[Any]) -> Array:
        """Observations (B, To, Do) and noise (B, *noise_shape) to actions (B, Ta, Da), in physical units."""
        assert noise.shape[1:] == self.noise_shape and len(noise) == len(observations)
        assert observations.shape[1:] == (self.spec.observation_horizon, self.spec.observation.size)
        observation, draws = (torch.as_tensor(values, dtype=torch.float32) for values in (observations, noise))
        chunks = self.choose(observation, self.chains(observation, draws)[-1])
        return self.policy.physical_action(chunks).numpy().astype(np.float64)

    def chains(self, observations: Tensor, noise: Tensor) -> list[Tensor]:
        """Normalised chunks of each denoising step, start first, n + 1 tensors (B * S, Ta, Da), the S of one observation together.

        observations: (B, To, Do); noise: (B, *noise_shape).
        """
        draws = noise.reshape(len(noise) * self.candidates, -1, *self.noise_shape[1:])
        return self.policy.chain(observations.repeat_interleave(self.candidates, dim=0), draws, self.reverse)

    def choose(self, observations: Tensor, chunks: Tensor) -> Tensor:
        """The chunk to act with, (B, Ta, Da), of all finished ones (B * S, Ta, Da); here S is 1. observations: (B, To, Do)."""
        return chunks


def _identity(size: int) -> AffineMap:
    return AffineMap(np.zeros(size), np.ones(size))
