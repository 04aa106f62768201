# SPDX-License-Identifier: Apache-2.0
"""A diffusion policy whose last denoising steps learn by their likelihood: it acts with exploration noise and knows how likely it acted.

Ren et al. 2024, "Diffusion Policy Policy Optimization" (arXiv 2409.00588), sec. 4. Of n denoising steps the last K' learn; those before
are the start policy's for good. Where K' is n there is one network; else a second, frozen one is part of the policy, of its checkpoints
and of its exported graph.
"""

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from otpr_policy.errors import RunError
from otpr_policy.spec import Array
from otpr_sim.vector import Integers
from otpr_trainer.chain_likelihood import chain_pairs, step_log_prob
from otpr_trainer.checkpoint import optimizer_state, restore_optimizer, select
from otpr_trainer.diffusion import ReverseChain
from otpr_trainer.policy import DiffusionPolicy

ROWS = 8192  # denoising steps per pass of the network: more only costs memory


class ChainActor:
    """Samples chains, and yields the log-likelihood of their steps.

    Attributes:
        start: the policy that fine-tuning started from; it never changes.
        policy: the one that learns; denoising steps before the last K' have a frozen network.
        reverse: the chain.
        learning_steps: K'.
    """

    def __init__(
        self,
        start: DiffusionPolicy,
        reverse: ReverseChain,
        *,
        learning_steps: int,
        exploration_std: float,
        likelihood_std: float,
        learning_rate: float,
    ) -> None:
        """Begins as ``start``.

        Args:
            start: left as it is, and kept.
            reverse: the chain that acts.
            learning_steps: K', 1..n.
            exploration_std: least standard deviation of a step when acting.
            likelihood_std: least standard deviation in likelihoods, above 0: that of the last step is 0 by itself.
            learning_rate: AdamW's.

        Raises:
            RunError: ``learning_steps`` is not in 1..n.
        """
        if not 1 <= learning_steps <= reverse.steps:
            raise RunError(f"{learning_steps} fine-tuned steps are not in 1..{reverse.steps}, the denoising steps of the chain")
        self.start = copy.deepcopy(start).eval().requires_grad_(False)
        self.reverse = reverse
        self.learning_steps = learning_steps
        self._first = reverse.steps - learning_steps  # position of the first step that learns
        self.policy = self.start.freezing(reverse.timesteps[self._first - 1]) if self._first else copy.deepcopy(self.start)
        self.policy.network.requires_grad_(True)
        self.exploration_std = exploration_std
        self._likelihood_std = likelihood_std
        self._timesteps = torch.tensor(reverse.timesteps)
        self._optimizer = torch.optim.AdamW(self.policy.network.parameters(), learning_rate, weight_decay=0.0, fused=True)

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(draws, Ta, Da), the normal draws of one chain that explores."""
        spec = self.policy.config.spec
        return self.reverse.noise_count(self.exploration_std), spec.chunk_length, spec.action.size

    def condition(self, observation: NDArray[Any]) -> Tensor:
        """Observations (B, To, Do) in physical units to network conditions (B, condition_size)."""
        return self.policy.condition(torch.as_tensor(observation, dtype=torch.float32))

    @torch.no_grad()
    def sample(self, condition: Tensor, noise: Tensor) -> Tensor:
        """What the last K' steps went through, (B, K' + 1, Ta, Da); the last is the chunk. noise: (B, *noise_shape)."""
        return self._learning_part(self.policy, condition, noise)

    @torch.no_grad()
    def sample_start(self, condition: Tensor, noise: Tensor) -> Tensor:
        """:meth:`sample` as the start policy would, all of its steps."""
        return self._learning_part(self.start, condition, noise)

    def log_prob(self, condition: Tensor, chain: Tensor, row: Tensor, index: Tensor) -> Tensor:
        """Mean log-likelihood per executed element of single steps, (B,); see :func:`chain_likelihood.step_log_prob`.

        Args:
            condition: of each chain, (N, condition_size).
            chain: (N, K' + 1, Ta, Da).
            row: which chain, (B,).
            index: which of its K' steps, 0 the noisiest, (B,).
        """
        x_k, x_prev = chain_pairs(chain, row, index)
        step = self._first + index
        eps: Tensor = self.policy.network(x_k, self._timesteps[step], condition[row])
        executed = self.policy.config.spec.executed_length
        return step_log_prob(self.reverse, step, x_prev, x_k, eps, self._likelihood_std, executed)

    @torch.no_grad()
    def log_probs(self, condition: Tensor, chain: Tensor) -> Tensor:
        """:meth:`log_prob` of every step of every chain, (N, K')."""
        rows = torch.arange(len(chain) * self.learning_steps)
        parts = [self.log_prob(condition, chain, part // self.learning_steps, part % self.learning_steps) for part in rows.split(ROWS)]
        return torch.cat(parts).reshape(-1, self.learning_steps)

    def step(self, loss: Tensor) -> Tensor:
        """One gradient step on ``loss``; returns the gradient's norm."""
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.policy.network.parameters() if p.grad is not None])
        self._optimizer.step()
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """State by name; the policy as ``policy.*``, which is what evaluation and export read."""
        tensors = {f"policy.{name}": tensor for name, tensor in self.policy.state_dict().items()}
        return tensors | optimizer_state(self._optimizer, "actor_optimizer.")

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of :meth:`tensors`. Raises RuntimeError on another network's."""
        self.policy.load_state_dict(select(tensors, "policy."))
        restore_optimizer(self._optimizer, tensors, "actor_optimizer.")

    def _learning_part(self, policy: DiffusionPolicy, condition: Tensor, noise: Tensor) -> Tensor:
        return torch.stack(policy.denoise(condition, noise, self.reverse, self.exploration_std)[self._first :], dim=1)


class RecordingActor:
    """An ``otpr_trainer.interaction.Actor`` that explores, and keeps the chain behind each of its decisions."""

    def __init__(self, actor: ChainActor) -> None:
        self._actor = actor
        self._chains: dict[int, list[Tensor]] = {}
        self.spec = actor.policy.config.spec
        self.noise_shape = actor.noise_shape

    def decide(self, observations: NDArray[Any], noise: NDArray[Any], episodes: Integers) -> Array:
        """See Actor."""
        chains = self._actor.sample(self._actor.condition(observations), torch.as_tensor(noise, dtype=torch.float32))
        for episode, chain in zip(episodes.tolist(), chains, strict=True):
            self._chains.setdefault(episode, []).append(chain)
        return self._actor.policy.physical_action(chains[:, -1]).numpy().astype(np.float64)

    def chains(self, episode: int) -> Tensor:
        """Of all decisions in an episode, in order, (T, K' + 1, Ta, Da)."""
        return torch.stack(self._chains[episode])
