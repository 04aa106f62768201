# SPDX-License-Identifier: Apache-2.0
"""DIPO: chunks in replay climb Q by its action-gradient, and the policy clones what they have become.

Yang et al. 2023, "Policy Representation via Diffusion Probability Model for Reinforcement Learning" (arXiv 2305.13122), fine-tuned as in
DPPO's comparison (Ren et al. 2024, arXiv 2409.00588, app. D):

    a <- clip(a + step along dQ(s, a)/da, -1, 1), several times, and kept;    L(theta) = E || eps - eps_theta(a_k, k, s) ||^2
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from otpr_policy.errors import RunError
from otpr_trainer.actor import Targets
from otpr_trainer.checkpoint import Checkpoint
from otpr_trainer.config import not_negative, setting
from otpr_trainer.finetune_td import PAPER, TDFineTuner, TDSettings
from otpr_trainer.learner import Setup

NAME = "dipo"
NEEDS_INIT = True
CHOOSES = True
VARIANTS: dict[str, dict[str, Any]] = {"paper": {**PAPER, "action_steps": 20, "action_learning_rate": 0.03}}


@dataclass(frozen=True)
class Config(TDSettings):
    """Steps as in DPPO's comparison; rates and sizes as for the methods that it is compared with."""

    action_steps: int = setting(10, "gradient steps that a chunk climbs each time that it is cloned; as in DPPO's comparison, 0 is cloning")
    action_learning_rate: float = setting(1e-4, "Adam's, of chunks in units of half the action's range; as in DPPO's comparison")

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "action_steps")
        if not 0 < self.action_learning_rate < float("inf"):
            raise RunError(f"action_learning_rate must be above 0, got {self.action_learning_rate}")


class Learner(TDFineTuner):
    """Q of what was done, then ascent and cloning of what could have been.

    Attributes:
        improved: a chunk for each row of replay, (N, Ta, Da), the one that was done when it is new. Q learns from what was done, whose
            outcome is known.
    """

    config: Config

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.improved = self.replay.transitions.chunk.clone()

    def ascended(self, condition: Tensor, chunk: Tensor) -> Tensor:
        """Chunks some steps of Adam up the pessimistic Q, within [-1, 1]; what is not carried out stays. (B, Ta, Da)."""
        config = self.config
        action = self.critic.ascended(condition, self.executed(chunk), config.action_steps, config.action_learning_rate)
        return torch.cat([action, chunk[:, self.executed_length :]], 1)

    def improve(self, rows: Tensor) -> None:
        """Lets the own chunks among the rows climb. Demonstrations stay: being few they are drawn so often that they would climb away."""
        own = rows[rows >= self.demonstrations].unique()
        if not len(own):
            return
        states = self.replay.transitions.state[own]
        self.improved[own] = self.ascended(self.replay.condition[states], self.improved[own])

    def targets(self, rows: Tensor) -> Targets:
        """Chunks as they are now."""
        states = self.replay.transitions.state[rows]
        return Targets(self.replay.condition[states], self.improved[rows], torch.ones(len(rows)))

    def policy_loss(self, rows: Tensor) -> Tensor:
        """E || eps - eps_theta(a_k, k, s) ||^2 over the rows, improved once more."""
        self.improve(rows)
        return self.actor.cloning_loss(self.targets(rows))

    def learn(self, before: int, after: int) -> dict[str, Tensor | float]:
        """See AlternatingFineTuner. What is new begins as it was done."""
        self.improved = torch.cat([self.improved, self.replay.transitions.chunk[len(self.improved) :]])
        return super().learn(before, after)

    def checkpoint(self) -> Checkpoint:
        """See Learner."""
        base = super().checkpoint()
        return Checkpoint(base.step, {**base.tensors, "improved": self.improved}, base.values)

    def restore(self, checkpoint: Checkpoint) -> None:
        """See Learner."""
        super().restore(checkpoint)
        try:
            self.improved = checkpoint.tensors["improved"].clone()
        except KeyError as error:
            raise RunError(f"the checkpoint is of another algorithm: {error}") from error
