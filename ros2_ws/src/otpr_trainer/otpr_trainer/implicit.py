# SPDX-License-Identifier: Apache-2.0
"""The critic of implicit Q-learning: V is an expectile of Q over the chunks that were seen, so no chunk that was not is ever valued.

Kostrikov et al. 2021, "Offline Reinforcement Learning with Implicit Q-Learning" (arXiv 2110.06169). Used by IDQL, and by OTPR on request,
as in the code that its authors released.
"""

import torch
from torch import Tensor
from torch.nn import functional

from otpr_trainer.critic import ChunkCritic
from otpr_trainer.data.replay import Transitions
from otpr_trainer.finetune_critic import CriticSettings
from otpr_trainer.networks.critic import EnsembleCritic
from otpr_trainer.policy import PolicyConfig
from otpr_trainer.selection import CriticConfig
from otpr_trainer.value import StateCritic

HEADS = 2
PESSIMISM = 1.0  # with two heads, mean - 1 standard deviation is their minimum, which is IQL's value of a chunk


def critic_config(settings: CriticSettings) -> CriticConfig:
    """What IQL's two Q are built from."""
    return CriticConfig(settings.critic_width, settings.critic_depth, HEADS, PESSIMISM)


class ImplicitCritic:
    """Two Q with slow targets, and V.

    Attributes:
        q: the critics of chunks, with their targets.
        v: V(s).
        expectile: tau, of Q that V regresses to; 0.5 is the mean.
    """

    def __init__(self, settings: CriticSettings, policy: PolicyConfig, expectile: float, seed: int) -> None:
        """``policy``: whose conditions and chunks are valued. ``seed``: of the random weights."""
        self.executed_length = policy.spec.executed_length
        self.expectile = expectile
        rate = settings.critic_learning_rate
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            q = critic_config(settings).network(policy)
            v = EnsembleCritic(policy.condition_size, 0, settings.critic_width, settings.critic_depth, 1)
        self.q = ChunkCritic(q, learning_rate=rate, target_rate=settings.target_rate, pessimism=PESSIMISM)
        self.v = StateCritic(v, learning_rate=rate, weight_decay=1e-4, name="v")

    def v_loss(self, batch: Transitions, conditions: Tensor, generator: torch.Generator) -> Tensor:
        """E |tau - 1(u < 0)| u^2 with u = min_i Q'_i(s, a) - V(s) (eq. 5). conditions: those that the batch's states are rows of."""
        condition, chunk = conditions[batch.state], batch.chunk[:, None, : self.executed_length]
        u = self.q.target_values(condition, chunk, generator)[:, 0] - torch.sigmoid(self.v.logit(condition))
        return ((self.expectile - (u < 0).float()).abs() * u**2).mean()

    def q_loss(self, batch: Transitions, conditions: Tensor) -> Tensor:
        """E (r + gamma^k V(s') - Q_i(s, a))^2 (eq. 6), mean over the two critics."""
        y = batch.backup(self.v.value(conditions[batch.next_state]), observed_returns=False)
        logits = self.q.ensemble(conditions[batch.state], batch.chunk[:, : self.executed_length])
        return functional.mse_loss(torch.sigmoid(logits), y.expand_as(logits))

    def update(self, batch: Transitions, conditions: Tensor, generator: torch.Generator) -> dict[str, Tensor | float]:
        """One gradient step of V, then of Q. Returns metrics."""
        v_loss = self.v_loss(batch, conditions, generator)
        self.v.step(v_loss)
        q_loss = self.q_loss(batch, conditions)
        return {"q/loss": q_loss, "v/loss": v_loss, "q/gradient": self.q.step(q_loss)}

    def tensors(self) -> dict[str, Tensor]:
        """State by name, see :meth:`ChunkCritic.tensors`; V as ``v.*``."""
        return self.q.tensors() | self.v.tensors()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of :meth:`tensors`. Raises KeyError or RuntimeError on another network's."""
        self.q.restore(tensors)
        self.v.restore(tensors)
