# SPDX-License-Identifier: Apache-2.0
"""What fine-tuning algorithms with a critic of chunks share: its settings, its batches, and acting by its choice."""

from dataclasses import dataclass

import torch
from torch import Tensor

from otpr_policy.errors import RunError
from otpr_trainer.acting import Acting, Choosing, always, every_other, never
from otpr_trainer.config import not_negative, positive, setting
from otpr_trainer.critic import ChunkCritic
from otpr_trainer.data.replay import Transitions
from otpr_trainer.finetune import FineTuner, Settings, due
from otpr_trainer.interaction import Actor
from otpr_trainer.learner import Setup


@dataclass(frozen=True)
class CriticSettings(Settings):
    """Settings that all fine-tuning algorithms with a critic have."""

    gamma: float = setting(0.99, "discount per environment step")
    critic_width: int = setting(256, "units per hidden layer of a critic")
    critic_depth: int = setting(2, "hidden layers of a critic")
    critic_learning_rate: float = setting(3e-4, "AdamW's, of the critics")
    critic_updates: float = setting(0.25, "gradient steps of the critics per environment step; 0.25 is one per chunk of 4")
    target_rate: float = setting(0.005, "share by which target critics follow per gradient step")
    warmup_updates: int = setting(
        500, "gradient steps of the critics after the first round, beyond those that its environment steps ask for"
    )
    demo_share: float = setting(0.5, "share of demonstrations in a batch of the critics")
    acting_candidates: int = setting(8, "chunks of which the critic chooses when it chooses, S")
    selection_start: int = setting(2000, "environment steps from which the critic chooses in half the episodes")

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "critic_width", "critic_depth", "acting_candidates")
        not_negative(self, "critic_updates", "warmup_updates")
        if not (0 < self.gamma <= 1 and 0 <= self.demo_share < 1 and 0 < self.target_rate <= 1):
            raise RunError("gamma and target_rate must be in (0, 1], demo_share in [0, 1)")
        if not self.critic_learning_rate > 0:
            raise RunError(f"critic_learning_rate must be above 0, got {self.critic_learning_rate}")


class CriticFineTuner(FineTuner):
    """A fine-tuner whose critic chooses among several chunks in half the episodes, once it has seen something.

    Attributes:
        config: the algorithm's settings. Set by the subclass.
        critic: what chooses. Set by the subclass.
        demonstrations: rows of replay that are demonstrations; they are the first.
    """

    config: CriticSettings
    critic: ChunkCritic

    def __init__(self, config: CriticSettings, setup: Setup, *, candidates: int = 0) -> None:
        """``candidates``: chunks of the policy that replay caches in each state."""
        super().__init__(config, setup, gamma=config.gamma, candidates=candidates)
        self.demonstrations = len(self.replay)

    @property
    def selecting(self) -> Choosing:
        """In which training episodes the critic chooses now."""
        return every_other if self.step >= self.config.selection_start else never

    def acting(self) -> Actor:
        """Half the episodes by the critic's choice."""
        return self._acting(self.selecting)

    def evaluated(self) -> dict[str, Actor]:
        """One plain sample, and the critic's favourite of several."""
        return {"policy": self._acting(never), "selected": self._acting(always)}

    def critic_batch(self) -> Transitions:
        """Demonstrations and own experience, half and half (RLPD, Ball et al. 2023, arXiv 2302.02948); both with replacement."""
        size, played = self.config.batch_size, len(self.replay) - self.demonstrations
        own = 0 if played == 0 else size - int(size * self.config.demo_share)
        expert_rows = self.integers(self.demonstrations, size - own)
        own_rows = self.demonstrations + self.integers(played, own)
        return self.replay.transitions.rows(torch.cat([expert_rows, own_rows]))

    def critic_updates_due(self, before: int, after: int) -> int:
        """Gradient steps of the critics that a round asks for."""
        return due(self.config.critic_updates, before, after) + (self.config.warmup_updates if before == 0 else 0)

    def executed(self, chunk: Tensor) -> Tensor:
        """The part of chunks (..., Ta, Da) that is carried out, (..., L, Da)."""
        return chunk[..., : self.executed_length, :]

    def integers(self, high: int, count: int) -> Tensor:
        """``count`` draws from 0..high - 1, (count,)."""
        return torch.randint(high, (count,), generator=self.generator) if count else torch.zeros(0, dtype=torch.int64)

    def _acting(self, selecting: Choosing) -> Acting:
        return Acting(self.actor, self.critic, self.config.acting_candidates, selecting)
