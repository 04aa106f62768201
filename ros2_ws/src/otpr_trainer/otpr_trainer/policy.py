# SPDX-License-Identifier: Apache-2.0
"""Policies as torch computes them: normaliser, network, and the chain that makes an action chunk.

There are three kinds: a diffusion, whose chain starts from noise; a bridge (bridge.py), whose chain starts from a source's chunk; and
policies with a Gaussian (gaussian_policy.py), instead of a diffusion or beside one.
"""

import copy
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from otpr_policy.errors import RunError, SpecError, unknown
from otpr_policy.spec import Array, PolicySpec
from otpr_policy.timeline import Committed
from otpr_trainer import interpolant
from otpr_trainer.bridge_sources import SourceConfig
from otpr_trainer.diffusion import SAMPLERS, Chain, Known, ReverseChain, cosine_schedule, reverse_chain
from otpr_trainer.gaussian import GaussianConfig, Role, one_pass
from otpr_trainer.interpolant import Interpolant
from otpr_trainer.networks.mlp import ChunkNetwork, DiffusionMLP
from otpr_trainer.normalization import AffineLayer, AffineMap

POSITION_UNIT = "m"
"""Fields of three numbers in it are positions, all in the robot's base frame."""


@dataclass(frozen=True)
class BridgeConfig:
    """What a policy of an interpolant has beside its network."""

    interpolant: Interpolant
    source: SourceConfig

    @classmethod
    def from_json(cls, data: Any) -> "BridgeConfig":
        """Parses ``dataclasses.asdict``'s form. Raises KeyError, TypeError, ValueError or RunError."""
        return cls(Interpolant.from_json(data["interpolant"]), SourceConfig.from_json(data["source"]))


@dataclass(frozen=True)
class PolicyConfig:
    """What a policy must be built from before its weights can be loaded.

    ``relative_positions``: the network is also shown the difference of every two positions among the observation's fields.
    ``frozen_from``: training steps from it up are denoised by a second network, which fine-tuning left as it was; None without one.
    ``bridge``: of a policy of an interpolant; None for a diffusion.
    ``gaussian``: of a policy with a Gaussian; where that is the policy itself, the sizes here mean nothing.
    """

    spec: PolicySpec
    train_steps: int  # K of the cosine schedule; of a bridge, the scale of its time
    width: int
    depth: int
    time_size: int
    relative_positions: bool = False
    frozen_from: int | None = None
    bridge: BridgeConfig | None = None
    gaussian: GaussianConfig | None = None

    @property
    def own_chain(self) -> Chain | None:
        """The only chain that the policy acts with; None where any of its samplers will do."""
        role = None if self.gaussian is None else self.gaussian.role
        if role is Role.POLICY:
            return one_pass()
        if role is Role.NOISE:
            assert self.gaussian is not None
            return reverse_chain(cosine_schedule(self.train_steps), "ddim", self.gaussian.steps, eta=0.0)
        return None

    @property
    def samplers(self) -> tuple[str, ...]:
        """Names of the samplers; the first takes all steps of training if not told otherwise, the last is the one for few steps."""
        if self.own_chain is not None:
            return (self.own_chain.sampler,)
        return ("ddpm", "ddim") if self.bridge is None else (interpolant.SAMPLER,)

    def chain(self, sampler: str | None = None, steps: int | None = None, eta: float = 0.0) -> Chain:
        """The chain by name. By default the first of ``samplers``, and all steps.

        Raises:
            RunError: the policy has no such sampler, or steps or eta are out of range.
        """
        own = self.own_chain
        if own is not None:
            if (sampler or own.sampler, own.steps if steps is None else steps, eta) != (own.sampler, own.steps, own.eta):
                raise RunError(
                    f"this policy acts with a chain of its own, which it learnt for: {own.sampler}, {own.steps} step(s), eta {own.eta:g}; "
                    f"leave out --sampler, --steps and --eta"
                )
            return own
        name = self.samplers[0] if sampler is None else sampler
        if self.bridge is None:
            return reverse_chain(cosine_schedule(self.train_steps), name, steps, eta)
        if name not in self.samplers:
            if name in SAMPLERS:
                raise RunError(f"sampler {name!r} is a diffusion's; this policy is an interpolant, whose sampler is {self.samplers[0]!r}")
            raise RunError(unknown("sampler", name, self.samplers))
        return self.bridge.interpolant.forward(self.train_steps if steps is None else steps, eta, self.train_steps)

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
        bridge = None if self.bridge is None else asdict(self.bridge)
        gaussian = None if self.gaussian is None else self.gaussian.to_json()
        kind = {"frozen_from": self.frozen_from, "bridge": bridge, "gaussian": gaussian}
        return {"spec": self.spec.to_json(), **sizes, "relative_positions": self.relative_positions, **kind}

    @classmethod
    def from_json(cls, data: Any) -> "PolicyConfig":
        """Parses :meth:`to_json`'s form. Raises RunError naming what is wrong."""
        try:
            sizes = {key: int(data[key]) for key in ("train_steps", "width", "depth", "time_size")}
            relative = bool(data.get("relative_positions", False))  # runs from before it do without
            frozen_from = None if data.get("frozen_from") is None else int(data["frozen_from"])  # likewise, and the two below
            bridge = None if data.get("bridge") is None else BridgeConfig.from_json(data["bridge"])
            gaussian = None if data.get("gaussian") is None else GaussianConfig.from_json(data["gaussian"])
            spec = PolicySpec.from_json(data["spec"])
            return cls(spec, **sizes, relative_positions=relative, frozen_from=frozen_from, bridge=bridge, gaussian=gaussian)
        except (KeyError, TypeError, ValueError, SpecError) as error:
            raise RunError(f"the run's policy description is not readable: {error}") from error


class ChainPolicy(nn.Module, ABC):
    """A conditional model of action chunks that a chain of steps makes from where it starts."""

    def __init__(self, config: PolicyConfig, observation: AffineMap | None, action: AffineMap | None, heads: int | None = None) -> None:
        """Builds the policy.

        Args:
            config: sizes.
            observation: normaliser; without, it is the identity, to be replaced by loading weights.
            action: likewise.
            heads: chunks that the network predicts, see :class:`DiffusionMLP`.
        """
        super().__init__()
        spec = config.spec
        self.config = config
        self.observation = AffineLayer(observation or _identity(spec.observation.size))
        self.action = AffineLayer(action or _identity(spec.action.size))
        self.network = self.make_network(heads)

    def make_network(self, heads: int | None) -> ChunkNetwork:
        """What the chain asks at each step, with random weights. heads: see :class:`DiffusionMLP`."""
        spec, config = self.config.spec, self.config
        chunk_shape = (spec.chunk_length, spec.action.size)
        return DiffusionMLP(chunk_shape, config.condition_size, config.width, config.depth, config.time_size, heads)

    @property
    @abstractmethod
    def source_label(self) -> str:
        """What the chain starts from, for a manifest."""

    @property
    @abstractmethod
    def start_draws(self) -> int:
        """Normal draws (Ta, Da) that the start takes."""

    @abstractmethod
    def start(self, observation: Tensor, condition: Tensor, noise: Tensor, previous: Tensor | None) -> Tensor:
        """Where the chain starts: normalised chunks (B, Ta, Da).

        observation: (B, To, Do) in physical units; condition: (B, condition_size); noise: (B, start_draws, Ta, Da); previous: what the
        last inference yielded, (B, Ta, Da) in physical units, NaN in rows without one; None for none.
        """

    def finish(self, condition: Tensor, chunk: Tensor) -> Tensor:
        """What is made of the chunk (B, Ta, Da), normalised, that the chain ends with; nothing, unless a subclass says otherwise."""
        return chunk

    def noise_count(self, chain: Chain) -> int:
        """Normal draws (Ta, Da) of one sample, at least 1: a graph has a noise input even if nothing is drawn."""
        return max(1, self.start_draws + chain.step_draws())

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

    def chain(
        self,
        observation: Tensor,
        noise: Tensor,
        reverse: Chain,
        std_floor: float = 0.0,
        previous: Tensor | None = None,
        known: Known | None = None,
    ) -> list[Tensor]:
        """Normalised chunks of each denoising step, start first, n + 1 tensors (B, Ta, Da); see :meth:`Chain.run`.

        noise: (B, noise_count(reverse), Ta, Da), or as many more as std_floor asks for; previous: see :meth:`start`; known: normalised.
        """
        condition = self.condition(observation)
        first = self.start_draws
        start = self.start(observation, condition, noise[:, :first], previous)
        return self.from_start(condition, start, noise[:, first : first + reverse.step_draws(std_floor)], reverse, std_floor, known)

    def network_at(self, time: float) -> ChunkNetwork:
        """The network that is asked at a time of the chain."""
        return self.network

    def from_start(
        self, condition: Tensor, start: Tensor, noise: Tensor, reverse: Chain, std_floor: float = 0.0, known: Known | None = None
    ) -> list[Tensor]:
        """:meth:`chain` for conditions (B, condition_size) and chunks to start from (B, Ta, Da). noise: of the steps."""

        def predict(x: Tensor, time: float) -> Tensor:
            prediction: Tensor = self.network_at(time)(x, torch.full((len(x),), time, device=x.device), condition)
            return prediction

        *before, last = reverse.run(predict, start, noise, std_floor, known)
        return [*before, self.finish(condition, last)]

    def physical_action(self, chunk: Tensor) -> Tensor:
        """A normalised chunk (B, Ta, Da) to physical units, within the action's bounds."""
        bounds = self.config.spec.action
        low, high = (torch.tensor(end, dtype=chunk.dtype, device=chunk.device) for end in (bounds.low, bounds.high))
        return self.action.denormalize(chunk).clamp(low, high)


class DiffusionPolicy(ChainPolicy):
    """A conditional diffusion model of action chunks (Diffusion Policy, Chi et al. 2023, arXiv 2303.04137)."""

    source_label = "gaussian"
    start_draws = 1
    network: DiffusionMLP

    def __init__(self, config: PolicyConfig, observation: AffineMap | None = None, action: AffineMap | None = None) -> None:
        """See ChainPolicy."""
        super().__init__(config, observation, action)
        self.schedule = cosine_schedule(config.train_steps)
        self.frozen = None if config.frozen_from is None else self.make_network(None).requires_grad_(False)

    def make_network(self, heads: int | None) -> DiffusionMLP:
        """The noise-predicting network."""
        network = super().make_network(heads)
        assert isinstance(network, DiffusionMLP)
        return network

    def network_at(self, time: float) -> DiffusionMLP:
        """The network that denoises a training step."""
        frozen_from = self.config.frozen_from
        if self.frozen is None or frozen_from is None or time < frozen_from:
            return self.network
        return self.frozen

    def freezing(self, k: int) -> "DiffusionPolicy":
        """A copy of a policy with one network that denoises training steps from ``k`` up with a second, frozen copy of it."""
        assert self.frozen is None
        policy = copy.deepcopy(self)
        policy.config = replace(self.config, frozen_from=k)
        policy.frozen = copy.deepcopy(self.network).requires_grad_(False)
        return policy

    def denoise(self, condition: Tensor, noise: Tensor, reverse: Chain, std_floor: float = 0.0) -> list[Tensor]:
        """:meth:`chain` for conditions (B, condition_size)."""
        return self.from_start(condition, noise[:, 0], noise[:, 1:], reverse, std_floor)

    def start(self, observation: Tensor, condition: Tensor, noise: Tensor, previous: Tensor | None) -> Tensor:
        """Noise."""
        return noise[:, 0]


class TorchPolicy:
    """A :class:`ChainPolicy` with a sampler chosen; an ``otpr_policy.chunk.ChunkPolicy`` and ``otpr_trainer.batched.BatchPolicy``."""

    candidates: int = 1
    """S, how many chains are run for one chunk; see :class:`otpr_trainer.selection.SelectingPolicy`."""

    def __init__(self, policy: ChainPolicy, reverse: Chain, committed_prefix: bool = False) -> None:
        """``committed_prefix``: also read what is committed; for policies that :func:`check_committed_prefix` lets pass."""
        self.policy = policy.eval()
        self.reverse = reverse
        self._spec = replace(policy.config.spec, reads_committed=committed_prefix)

    @staticmethod
    def with_sampler(policy: ChainPolicy, sampler: str | None, steps: int | None, eta: float = 0.0) -> "TorchPolicy":
        """Chooses the sampler by name; see :meth:`PolicyConfig.chain` for errors."""
        return TorchPolicy(policy, policy.config.chain(sampler, steps, eta))

    @property
    def spec(self) -> PolicySpec:
        """What the policy reads and writes."""
        return self._spec

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """(S * draws of one chain, Ta, Da), one candidate after the other."""
        return self.candidates * self.policy.noise_count(self.reverse), self.spec.chunk_length, self.spec.action.size

    def infer(
        self,
        observation: NDArray[Any],
        noise: NDArray[Any],
        previous: NDArray[Any] | None = None,
        committed: Committed | None = None,
    ) -> Array:
        """See ChunkPolicy."""
        last = None if previous is None else previous[None]
        rows = None if committed is None else Committed(committed.actions[None], committed.weight[None])
        return self.infer_batch(observation[None], noise[None], last, rows)[0]

    @torch.no_grad()
    def infer_batch(
        self,
        observations: NDArray[Any],
        noise: NDArray[Any],
        previous: NDArray[Any] | None = None,
        committed: Committed | None = None,
    ) -> Array:
        """Observations (B, To, Do) and noise (B, *noise_shape) to actions (B, Ta, Da), in physical units.

        ``previous``: what the last inferences yielded, (B, Ta, Da), NaN in rows without one; ``committed``: (B, Ta, Da) and (B, Ta).
        """
        assert noise.shape[1:] == self.noise_shape and len(noise) == len(observations)
        assert observations.shape[1:] == (self.spec.observation_horizon, self.spec.observation.size)
        observation, draws = (torch.as_tensor(values, dtype=torch.float32) for values in (observations, noise))
        last = None if previous is None else torch.as_tensor(previous, dtype=torch.float32)
        prefix = None if committed is None else [torch.as_tensor(v, dtype=torch.float32) for v in (committed.actions, committed.weight)]
        chunks = self.choose(observation, self.chains(observation, draws, last, *(prefix or ()))[-1])
        return self.policy.physical_action(chunks).numpy().astype(np.float64)

    def chains(
        self,
        observations: Tensor,
        noise: Tensor,
        previous: Tensor | None = None,
        committed: Tensor | None = None,
        committed_weight: Tensor | None = None,
    ) -> list[Tensor]:
        """Normalised chunks of each denoising step, start first, n + 1 tensors (B * S, Ta, Da), the S of one observation together.

        observations: (B, To, Do); noise: (B, *noise_shape); previous and committed: (B, Ta, Da) or None; committed_weight: (B, Ta).
        """
        draws = noise.reshape(len(noise) * self.candidates, -1, *self.noise_shape[1:])
        last = None if previous is None else previous.repeat_interleave(self.candidates, dim=0)
        known = None
        if committed is not None and committed_weight is not None:
            value = self.policy.action.normalize(committed).repeat_interleave(self.candidates, dim=0)
            known = Known(value, committed_weight.repeat_interleave(self.candidates, dim=0)[..., None])
        each = observations.repeat_interleave(self.candidates, dim=0)
        return self.policy.chain(each, draws, self.reverse, previous=last, known=known)

    def choose(self, observations: Tensor, chunks: Tensor) -> Tensor:
        """The chunk to act with, (B, Ta, Da), of all finished ones (B * S, Ta, Da); here S is 1. observations: (B, To, Do)."""
        return chunks


def check_committed_prefix(config: PolicyConfig, reverse: Chain) -> None:
    """Raises RunError where there is no prediction of the clean chunk in each step, or where another network has the last word."""
    if not isinstance(reverse, ReverseChain) or config.gaussian is not None:
        raise RunError("a committed prefix is painted into a diffusion's predictions of the clean chunk; this policy is no plain diffusion")


def _identity(size: int) -> AffineMap:
    return AffineMap(np.zeros(size), np.ones(size))
