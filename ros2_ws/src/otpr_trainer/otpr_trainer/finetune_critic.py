# SPDX-License-Identifier: Apache-2.0
"""What fine-tuning algorithms with a critic of chunks share: its settings, its batches, its checkpoint, and acting by its choice."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from otpr_policy.errors import RunError
from otpr_trainer.acting import Acting, Choosing, always, every_other, never
from otpr_trainer.checkpoint import Checkpoint
from otpr_trainer.config import not_negative, positive, setting
from otpr_trainer.critic import ChunkCritic
from otpr_trainer.data.replay import Transitions, mixed_rows
from otpr_trainer.finetune import FineTuner, Metrics, Settings, due
from otpr_trainer.interaction import Actor
from otpr_trainer.learner import Setup


@dataclass(frozen=True)
class ValueSettings(Settings):
    """Settings that all fine-tuning algorithms have which learn a value, of chunks or of states."""

    gamma: float = setting(0.99, "discount per environment step")
    critic_width: int = setting(256, "units per hidden layer of a critic")
    critic_depth: int = setting(2, "hidden layers of a critic")
    critic_learning_rate: float = setting(3e-4, "AdamW's, of the critics")
    critic_updates: float = setting(0.25, "gradient steps of the critics per environment step; 0.25 is one per chunk of 4")
    warmup_updates: int = setting(
        500, "gradient steps of the critics after the first round, beyond those that its environment steps ask for"
    )
    demo_share: float = setting(0.5, "share of demonstrations in a batch of the critics")

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "critic_width", "critic_depth")
        not_negative(self, "critic_updates", "warmup_updates")
        if not (0 < self.gamma <= 1 and 0 <= self.demo_share < 1):
            raise RunError(f"gamma must be in (0, 1], demo_share in [0, 1); got {self.gamma}, {self.demo_share}")
        if not self.critic_learning_rate > 0:
            raise RunError(f"critic_learning_rate must be above 0, got {self.critic_learning_rate}")

    def critic_updates_due(self, before: int, after: int) -> int:
        """Gradient steps of the critics that a round from step ``before`` to ``after`` asks for."""
        return due(self.critic_updates, before, after) + (self.warmup_updates if before == 0 else 0)


@dataclass(frozen=True)
class CriticSettings(ValueSettings):
    """Settings that all fine-tuning algorithms with a critic of chunks have."""

    target_rate: float = setting(0.005, "share by which target critics follow per gradient step")
    acting_candidates: int = setting(8, "chunks of which the critic chooses when it chooses, S")
    selection_start: int = setting(2000, "environment steps from which the critic chooses in half the episodes")

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "acting_candidates")
        if not 0 < self.target_rate <= 1:
            raise RunError(f"target_rate must be in (0, 1], got {self.target_rate}")


class Learnt(Protocol):
    """What holds all of a critic's state."""

    def tensors(self) -> dict[str, Tensor]:
        """State by name."""

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of :meth:`tensors`. Raises KeyError or RuntimeError on another's."""


class CriticFineTuner(FineTuner):
    """A fine-tuner whose critic chooses among several chunks in half the episodes, once it has seen something.

    Attributes:
        config: the algorithm's settings. Set by the subclass.
        critic: what chooses. Set by the subclass.
        learnt: what holds all of its state; the critic itself, or what it is part of. Set by the subclass.
    """

    config: CriticSettings
    critic: ChunkCritic
    learnt: Learnt

    def __init__(self, config: CriticSettings, setup: Setup, *, candidates: int = 0) -> None:
        """``candidates``: chunks of the policy that replay caches in each state."""
        super().__init__(config, setup, gamma=config.gamma, candidates=candidates)

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

    def rows(self, count: int) -> Tensor:
        """``count`` rows of replay: demonstrations and own experience, see :func:`mixed_rows`."""
        own = torch.arange(self.demonstrations, len(self.replay))
        return mixed_rows(self.demonstrations, own, count, self.config.demo_share, self.generator)

    def critic_batch(self) -> Transitions:
        """A batch for the critics."""
        return self.replay.transitions.rows(self.rows(self.config.batch_size))

    def checkpoint(self) -> Checkpoint:
        """See Learner. Subclasses may add to it."""
        base = super().checkpoint()
        return Checkpoint(base.step, base.tensors | self.learnt.tensors(), base.values)

    def restore(self, checkpoint: Checkpoint) -> None:
        """See Learner. Subclasses may add to it."""
        super().restore(checkpoint)
        try:
            self.learnt.restore(checkpoint.tensors)
        except (KeyError, RuntimeError) as error:
            raise RunError(f"the checkpoint is of another critic: {error}") from error

    def executed(self, chunk: Tensor) -> Tensor:
        """The part of chunks (..., Ta, Da) that is carried out, (..., L, Da)."""
        return chunk[..., : self.executed_length, :]

    def integers(self, high: int, count: int) -> Tensor:
        """``count`` draws from 0..high - 1, (count,)."""
        return torch.randint(high, (count,), generator=self.generator) if count else torch.zeros(0, dtype=torch.int64)

    def _acting(self, selecting: Choosing) -> Acting:
        return Acting(self.actor, self.critic, self.config.acting_candidates, selecting)


class AlternatingFineTuner(CriticFineTuner):
    """After each round first the critic, then the policy. Subclasses say how a batch changes either."""

    phases = ("critic", "policy")
    critic_metrics: tuple[str, ...]
    """Names of what :meth:`critic_update` returns, the loss first."""

    @abstractmethod
    def critic_update(self, batch: Transitions) -> dict[str, Tensor | float]:
        """One gradient step of the critics. Returns metrics."""

    @abstractmethod
    def policy_loss(self, rows: Tensor) -> Tensor:
        """Of rows of replay, (B,). No gradient of it reaches the critics."""

    def policy_updates_due(self, before: int, after: int) -> int:
        """Gradient steps of the policy that a round asks for."""
        return due(self.config.actor_updates, before, after)

    def policy_rows(self) -> Tensor:
        """A batch for the policy, (B,)."""
        return self.rows(self.config.batch_size)

    def learn(self, before: int, after: int) -> dict[str, Tensor | float]:
        """Critics, then policy; each as often as its rate says."""
        metrics = Metrics(*self.critic_metrics, "policy/loss", "policy/gradient")
        with self.timed("critic"):
            for _ in range(self.config.critic_updates_due(before, after)):
                metrics.add(self.critic_update(self.critic_batch()))
        with self.timed("policy"):
            for _ in range(self.policy_updates_due(before, after)):
                loss = self.policy_loss(self.policy_rows())
                metrics.add({"policy/loss": loss, "policy/gradient": self.actor.step(loss)})
        return metrics.means()
