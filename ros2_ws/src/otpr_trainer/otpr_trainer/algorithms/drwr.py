# SPDX-License-Identifier: Apache-2.0
"""Diffusion reward-weighted regression (DRWR): clone what was done, each chunk weighted by the exponential of the return seen after it.

Peters and Schaal 2007, "Reinforcement learning by reward-weighted regression", with a diffusion policy as in DPPO's comparison (Ren et
al. 2024, arXiv 2409.00588, app. D). No critic: a return is all that is known of a chunk, luck included.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from otpr_policy.errors import RunError
from otpr_trainer.actor import Targets
from otpr_trainer.config import positive, setting
from otpr_trainer.finetune import Settings
from otpr_trainer.finetune_cloning import CloningFineTuner, check_regression, exponential_weights
from otpr_trainer.learner import Setup

NAME = "drwr"
NEEDS_INIT = True


@dataclass(frozen=True)
class Config(Settings):
    """Weights as in DPPO's comparison; rates and batches as for the methods that it is compared with."""

    gamma: float = setting(0.99, "discount per environment step, of returns")
    inverse_temperature: float = setting(10.0, "beta, per standard deviation of a batch's returns; as in DPPO's comparison")
    max_weight: float = setting(100.0, "largest weight of a chunk, as in DPPO's comparison")
    recent_steps: int = setting(5000, "own environment steps that are cloned, the newest: near on-policy, as the reference is")
    demo_share: float = setting(0.5, "share of demonstrations in a batch, as for the other methods; own play is the rest")

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "recent_steps")
        check_regression(self.inverse_temperature, self.max_weight)
        if not (0 < self.gamma <= 1 and 0 <= self.demo_share <= 1):
            raise RunError(f"gamma must be in (0, 1], demo_share in [0, 1]; got {self.gamma}, {self.demo_share}")


class Learner(CloningFineTuner):
    """Plays, and imitates the newest of it by its returns."""

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup, demo_share=config.demo_share, gamma=config.gamma)
        self.config = config

    def own_rows(self) -> Tensor:
        """The newest."""
        return torch.arange(max(self.demonstrations, len(self.replay) - self.config.recent_steps), len(self.replay))

    def targets(self, rows: Tensor) -> Targets:
        """What was done, with min(exp(beta G), w_max), G the standard scores of the returns in the batch."""
        batch = self.replay.transitions.rows(rows)
        weight = exponential_weights(batch.observed_return, self.config.inverse_temperature, self.config.max_weight)
        return Targets(self.replay.condition[batch.state], batch.chunk, weight)

    def policy_loss(self, rows: Tensor) -> Tensor:
        """E min(exp(beta G), w_max) || eps - eps_theta(a_k, k, s) ||^2."""
        return self.actor.cloning_loss(self.targets(rows))
