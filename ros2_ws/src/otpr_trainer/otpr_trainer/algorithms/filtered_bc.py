# SPDX-License-Identifier: Apache-2.0
"""Filtered behaviour cloning: go on cloning, from the demonstrations and from one's own successes.

The control that every claim of fine-tuning needs: a method that does not beat it owes its gain to having seen more successes, not to
its critic (Emmons et al. 2022, arXiv 2112.10751, call it percent BC; here the percentile is success).
"""

from dataclasses import dataclass

from torch import Tensor

from otpr_policy.errors import RunError
from otpr_trainer.config import setting
from otpr_trainer.data.replay import Origin
from otpr_trainer.finetune import Settings
from otpr_trainer.finetune_cloning import CloningFineTuner
from otpr_trainer.learner import Setup

NAME = "filtered_bc"
NEEDS_INIT = True


@dataclass(frozen=True)
class Config(Settings):
    """As for the methods that it is the control of."""

    demo_share: float = setting(0.5, "share of demonstrations in a batch; own successes are the rest")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.demo_share <= 1:
            raise RunError(f"demo_share must be in [0, 1], got {self.demo_share}")


class Learner(CloningFineTuner):
    """Plays, keeps what succeeded, and imitates it."""

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup, demo_share=config.demo_share)
        self.config = config

    def own_rows(self) -> Tensor:
        """Own successes."""
        return (self.replay.transitions.origin == Origin.SUCCESS).nonzero()[:, 0]

    def policy_loss(self, rows: Tensor) -> Tensor:
        """E || eps - eps_theta(a_k, k, s) ||^2 over demonstrations and own successes."""
        batch = self.replay.transitions.rows(rows)
        return self.actor.denoising_loss(self.replay.condition[batch.state], batch.chunk).mean()
