# SPDX-License-Identifier: Apache-2.0
"""What DQL, QSM, DIPO and QVPO share: the Q of the policy itself, learnt by temporal differences. They differ in what Q does to a policy.

The critic is ours, so that a comparison is of policies: values start near 0, and a return that was seen bounds them from below (see
docs/otpr.md). ``observed_returns`` off is the papers' critic.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from otpr_trainer.config import not_negative, positive, setting
from otpr_trainer.critic import ChunkCritic
from otpr_trainer.data.replay import Transitions
from otpr_trainer.finetune_critic import AlternatingFineTuner, CriticSettings
from otpr_trainer.learner import Setup
from otpr_trainer.selection import CriticConfig

PAPER: dict[str, Any] = {"observed_returns": False, "selection_start": 1_000_000_000}
"""The papers' critic: temporal differences alone. And plain samples in training episodes, which is QSM's and DIPO's way of acting.

DQL's code acts otherwise: it draws 50 samples, and one of them by a softmax of Q.
"""


@dataclass(frozen=True)
class TDSettings(CriticSettings):
    """Settings that they share, beyond those of all with a critic."""

    critic_heads: int = setting(2, "critics in the ensemble; two, as in the papers")
    pessimism: float = setting(
        1.0, "standard deviations of the ensemble below its mean; of two critics 1 is their minimum, as in the papers"
    )
    observed_returns: bool = setting(True, "a return that was seen bounds a value from below, as for otpr; the papers go without")
    target_candidates: int = setting(1, "chunks of the policy in the next state, of which the best is backed up; 1 is a plain sample")
    actor_start: int = setting(4000, "environment steps from which the policy learns, as for otpr: a young critic points anywhere")

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "critic_heads", "target_candidates")
        not_negative(self, "pessimism")


class TDFineTuner(AlternatingFineTuner):
    """Q by temporal differences, then the policy."""

    config: TDSettings
    critic_metrics = ("critic/loss", "critic/gradient")

    def __init__(self, config: TDSettings, setup: Setup) -> None:
        super().__init__(config, setup)
        self.config = config
        sizes = CriticConfig(config.critic_width, config.critic_depth, config.critic_heads, config.pessimism)
        self.critic_config = sizes.to_json()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setup.seed)
            ensemble = sizes.network(self.policy_config)
        rates = {"learning_rate": config.critic_learning_rate, "target_rate": config.target_rate}
        self.critic = self.learnt = ChunkCritic(ensemble, pessimism=config.pessimism, **rates)

    def next_value(self, batch: Transitions) -> Tensor:
        """min_i Q'_i(s', a'), (B,), a' of the averaged policy; of several a' the one with most."""
        condition = self.replay.condition[batch.next_state]
        chunks = self.executed(self.actor.draw(condition, self.config.target_candidates))
        return self.critic.target_values(condition, chunks, self.generator).amax(1)

    def critic_loss(self, batch: Transitions) -> Tensor:
        """Cross entropy of Q(s, a) with max(r + gamma^k min_i Q'_i(s', a'), G), G the return that was seen after (s, a)."""
        y = batch.backup(self.next_value(batch), self.config.observed_returns)
        return self.critic.loss(self.replay.condition[batch.state], self.executed(batch.chunk), y)

    def critic_update(self, batch: Transitions) -> dict[str, Tensor | float]:
        """One gradient step."""
        loss = self.critic_loss(batch)
        return {"critic/loss": loss, "critic/gradient": self.critic.step(loss)}

    def policy_updates_due(self, before: int, after: int) -> int:
        """None before ``actor_start``."""
        return super().policy_updates_due(before, after) if after >= self.config.actor_start else 0
