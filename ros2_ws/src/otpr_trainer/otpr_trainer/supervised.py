# SPDX-License-Identifier: Apache-2.0
"""What every algorithm shares that learns from demonstrations alone: windows, optimiser, averaged weights, and the checkpoint of that."""

import copy
import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from otpr_policy.errors import RunError
from otpr_policy.spec import PolicySpec
from otpr_trainer import learner
from otpr_trainer.checkpoint import Checkpoint, optimizer_state, restore_optimizer, select
from otpr_trainer.config import positive, setting
from otpr_trainer.data.demonstrations import Demonstrations
from otpr_trainer.data.windows import cut
from otpr_trainer.learner import Setup, retry_seed
from otpr_trainer.normalization import AffineMap
from otpr_trainer.policy import ChainPolicy, PolicyConfig

Policy = TypeVar("Policy", bound=ChainPolicy)


@dataclass(frozen=True)
class Settings:
    """Settings that all of them have. Defaults learn Lift in about a minute on one CPU core."""

    chunk_length: int = setting(4, "actions per chunk, Ta; at 20 Hz 4 span 0.2 s, and chunks of 8 solved Lift less often")
    executed_length: int = setting(4, "actions carried out before the next inference, 1..Ta")
    observation_horizon: int = setting(2, "observations that the policy reads, To; two show whether fingers still move")
    train_steps: int = setting(20, "denoising steps of training, K; as DPPO for low-dimensional observations")
    width: int = setting(256, "units per hidden layer")
    depth: int = setting(3, "hidden layers")
    relative_positions: bool = setting(True, "show the network the object relative to the hand: differences of all positions")
    time_size: int = setting(32, "length of the embedding of the denoising step, even")
    iterations: int = setting(6000, "gradient steps")
    batch_size: int = setting(256, "windows per gradient step")
    learning_rate: float = setting(1e-3, "AdamW's, after warm-up; decays to a tenth along a cosine")
    warmup: int = setting(100, "gradient steps over which the learning rate rises from 0; keeps Adam's first estimates from overshooting")
    weight_decay: float = setting(1e-6, "AdamW's; next to none, as in DPPO")
    ema_decay: float = setting(0.995, "per gradient step, of the averaged weights that are evaluated; averages over about 200 steps")

    def __post_init__(self) -> None:
        positive(self, "chunk_length", "executed_length", "observation_horizon", "train_steps")
        positive(self, "width", "depth", "iterations", "batch_size")
        if self.time_size < 2 or self.time_size % 2:
            raise RunError(f"time_size must be even and at least 2, got {self.time_size}")
        if not (self.learning_rate > 0 and self.weight_decay >= 0 and 0 <= self.ema_decay < 1 and self.warmup >= 0):
            raise RunError("learning_rate must be above 0, weight_decay and warmup at least 0, ema_decay in [0, 1)")


class SupervisedLearner(learner.Learner, Generic[Policy]):
    """Learns by gradient steps on :meth:`batch_loss`. All its randomness comes from one generator.

    Attributes:
        policy: the network that gradient steps change.
        ema: its exponential moving average, which is evaluated and exported.
        name: the algorithm's, for names of metrics.
    """

    name: str
    unit = "it"
    log_every = 50
    checkpoint_every = 1000

    def __init__(self, config: Settings, setup: Setup, kind: type[Policy], policy_config: PolicyConfig) -> None:
        """Raises DemonstrationError when the episodes are shorter than a chunk, SpecError when the lengths do not fit together."""
        self.config = config
        self.total = config.iterations
        self.policy_config = policy_config
        observation, action = _affine_maps(setup.demos)
        windows = cut(setup.demos, config.observation_horizon, config.chunk_length)
        self._seed = setup.seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setup.seed)
            self.policy: Policy = kind(policy_config, observation, action)
        self.ema: Policy = copy.deepcopy(self.policy).requires_grad_(False)
        self._generator = torch.Generator().manual_seed(setup.seed)
        self._observation = torch.as_tensor(windows.observation, dtype=torch.float32)
        self._chunk = self.policy.action.normalize(torch.as_tensor(windows.action, dtype=torch.float32))
        self._optimizer = torch.optim.AdamW(self.policy.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True)
        self.step = 0

    @abstractmethod
    def losses(self, rows: Tensor) -> dict[str, Tensor]:
        """What a gradient step is to lower, the sum of these, by the names to report them under. rows: of a random batch, (B,)."""

    def phase(self) -> tuple[int, int]:
        """How many gradient steps of the present schedule of the learning rate are done, and how many it has."""
        return self.step, self.total

    def update(self) -> dict[str, Tensor | float]:
        """One gradient step on a random batch; returns metrics."""
        losses = self.losses(torch.randint(len(self._chunk), (self.config.batch_size,), generator=self._generator))
        learning_rate = self._learning_rate()
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        with torch.no_grad():  # or autograd would remember every step
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.policy.parameters()), 1.0 - self.config.ema_decay)
        self.step += 1
        return {**{name: loss.detach() for name, loss in losses.items()}, f"{self.name}/learning_rate": learning_rate}

    def checkpoint(self) -> Checkpoint:
        """All that :meth:`restore` needs to go on as if nothing had happened."""
        tensors = {f"policy.{name}": tensor for name, tensor in self.ema.state_dict().items()}
        tensors |= {f"learner.{name}": tensor for name, tensor in self.policy.state_dict().items()}
        tensors |= optimizer_state(self._optimizer, "optimizer.")
        tensors["generator"] = self._generator.get_state()
        return Checkpoint(self.step, tensors, {})

    def restore(self, checkpoint: Checkpoint) -> None:
        """The inverse of :meth:`checkpoint`. Raises RunError when it is of another network."""
        try:
            self.ema.load_state_dict(checkpoint.policy_tensors())
            self.policy.load_state_dict(select(checkpoint.tensors, "learner."))
            self._generator.set_state(checkpoint.tensors["generator"])
        except (KeyError, RuntimeError) as error:
            raise RunError(f"the checkpoint is of another network: {error}") from error
        restore_optimizer(self._optimizer, checkpoint.tensors, "optimizer.")
        self.step = checkpoint.step

    def diverted(self, attempt: int) -> None:
        """Draws other batches and noise from here on."""
        self._generator.manual_seed(retry_seed(self._seed, self.step, attempt))

    def _learning_rate(self) -> float:
        """Linear warm-up, then half a cosine down to a tenth."""
        config, (done, total) = self.config, self.phase()
        if done < config.warmup:
            return config.learning_rate * (done + 1) / config.warmup
        progress = (done - config.warmup) / max(total - config.warmup, 1)
        return config.learning_rate * (0.1 + 0.9 * 0.5 * (1.0 + math.cos(math.pi * progress)))


def policy_config(config: Settings, demos: Demonstrations) -> PolicyConfig:
    """The observation's ranges become those that were seen; the action keeps its hard bounds."""
    spec = PolicySpec(
        observation=demos.observation,
        action=demos.header.action,
        observation_horizon=config.observation_horizon,
        chunk_length=config.chunk_length,
        executed_length=config.executed_length,
        control_rate_hz=demos.header.control_rate_hz,
    )
    return PolicyConfig(spec, config.train_steps, config.width, config.depth, config.time_size, config.relative_positions)


def _affine_maps(demos: Demonstrations) -> tuple[AffineMap, AffineMap]:
    """Both from the ranges in the demonstrations: with the clip of x0_hat, no action goes beyond what was demonstrated."""
    return tuple(
        AffineMap.from_range(seen.low, seen.high, nominal.low, nominal.high)
        for seen, nominal in ((demos.observation, demos.header.observation), (demos.action, demos.header.action))
    )  # type: ignore[return-value]
