# SPDX-License-Identifier: Apache-2.0
"""Diffusion-QL (DQL): clone what was seen, and climb Q by its gradient through the whole sampling chain.

Wang et al. 2023, "Diffusion Policies as an Expressive Policy Class for Offline Reinforcement Learning" (arXiv 2208.06193), fine-tuned
online as in DPPO's comparison (Ren et al. 2024, arXiv 2409.00588, app. D):

    L(theta) = E || eps - eps_theta(a_k, k, s) ||^2 - eta E_{a ~ pi_theta} Q(s, a) / E |Q(s, a)|
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from otpr_trainer.config import not_negative, setting
from otpr_trainer.finetune_td import PAPER, TDFineTuner, TDSettings

NAME = "dql"
NEEDS_INIT = True
CHOOSES = True
VARIANTS = {"paper": PAPER}


@dataclass(frozen=True)
class Config(TDSettings):
    """The paper's where it gives one for all its tasks; rates and sizes as for the methods that it is compared with."""

    eta: float = setting(1.0, "weight of the Q loss beside cloning; 1 as in DPPO's comparison, 0 is cloning alone")

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "eta")


class Learner(TDFineTuner):
    """Q, then cloning and ascent together."""

    config: Config

    def cloning_loss(self, rows: Tensor) -> Tensor:
        """L_d = E || eps - eps_theta(a_k, k, s) ||^2 over what was seen."""
        batch = self.replay.transitions.rows(rows)
        return self.actor.denoising_loss(self.replay.condition[batch.state], batch.chunk).mean()

    def q_loss(self, condition: Tensor) -> Tensor:
        """L_q = -E Q_i(s, a) / E Q_j(s, a), a through the chain, i and j two critics in random order; no gradient of the divisor.

        Q is in (0, 1) here, so it is its own absolute value. condition: (B, To * Do).
        """
        values = self.critic.chunk_values(condition, self.executed(self.actor.learner_sample(condition)))
        order = torch.randperm(len(values), generator=self.generator)
        return -values[order[0]].mean() / values[order[-1]].detach().mean()

    def policy_loss(self, rows: Tensor) -> Tensor:
        """L = L_d + eta L_q."""
        states = self.replay.transitions.state[rows]
        return self.cloning_loss(rows) + self.config.eta * self.q_loss(self.replay.condition[states])
