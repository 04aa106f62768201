# SPDX-License-Identifier: Apache-2.0
"""Q-score matching (QSM): the policy's score is to be the action-gradient of Q, and nothing is cloned.

Psenka et al. 2024, "Learning a Diffusion Model Policy from Rewards via Q-Score Matching" (arXiv 2312.11752), as in the authors' code and
in DPPO's comparison (Ren et al. 2024, arXiv 2409.00588, app. D): the gradient is taken at the noisy chunk a_k that the network sees,

    L(theta) = E || -eps_theta(a_k, k, s) - alpha dQ(s, a_k)/da ||^2
"""

from dataclasses import dataclass

from torch import Tensor

from otpr_policy.errors import RunError
from otpr_trainer.config import setting
from otpr_trainer.finetune_td import PAPER, TDFineTuner, TDSettings

NAME = "qsm"
NEEDS_INIT = True
CHOOSES = True
VARIANTS = {"paper": PAPER}


@dataclass(frozen=True)
class Config(TDSettings):
    """Alpha as in DPPO's comparison; rates and sizes as for the methods that it is compared with."""

    alpha: float = setting(10.0, "factor of Q's gradient in the target, an inverse temperature; 10 as in DPPO's comparison")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha < float("inf"):
            raise RunError(f"alpha must be above 0, got {self.alpha}")


class Learner(TDFineTuner):
    """Q, then its gradient into the network of the noise."""

    config: Config

    def score(self, condition: Tensor, x_k: Tensor) -> Tensor:
        """What -eps_theta is to be on the part that is carried out, alpha dQ/da at noisy chunks, (B, L, Da); Q the mean of the critics.

        condition: (B, To * Do); x_k: (B, Ta, Da).
        """
        return self.config.alpha * self.critic.action_gradient(condition, self.executed(x_k))

    def policy_loss(self, rows: Tensor) -> Tensor:
        """E || -eps_theta(a_k, k, s) - alpha dQ(s, a_k)/da ||^2, a_k from what was seen; mean over elements."""
        batch = self.replay.transitions.rows(rows)
        condition = self.replay.condition[batch.state]
        x_k, k, _ = self.actor.noised(batch.chunk)
        eps_theta = self.executed(self.actor.predicted_noise(x_k, k, condition))
        return (-eps_theta - self.score(condition, x_k)).square().mean()
