# SPDX-License-Identifier: Apache-2.0
"""QVPO: clone the policy's own best samples, as strongly as they are better than its average, and some uniform noise with them.

Ding et al. 2024, "Diffusion-based Reinforcement Learning via Q-weighted Variational Policy Optimization" (arXiv 2405.16173):

    L(theta) = E w(s, a) || eps - eps_theta(a_k, k, s) ||^2,     w = max(Q(s, a) - V(s), 0),     V(s) = mean of Q over the samples

for the best of several samples in each state, and the same with alpha w for uniform chunks, which keeps the policy's entropy up.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from otpr_policy.errors import RunError
from otpr_trainer.acting import Choosing, always, never
from otpr_trainer.actor import Targets
from otpr_trainer.config import not_negative, positive, setting
from otpr_trainer.finetune_td import TDFineTuner, TDSettings

NAME = "qvpo"
NEEDS_INIT = True
CHOOSES = True
VARIANTS: dict[str, dict[str, Any]] = {"paper": {"observed_returns": False, "selection_start": 0, "states": 256, "samples": 64}}
LEAST_ENTROPY = 0.1  # of the entropy weight, that is left at the end of the budget; the code's


@dataclass(frozen=True)
class Config(TDSettings):
    """The released code's, but for the number of samples: it is what the method costs."""

    acting_candidates: int = setting(4, "chunks of which the critic chooses in every episode from selection_start, as in the released code")
    target_candidates: int = setting(4, "chunks of the policy in the next state, of which the best is backed up, as in the released code")
    states: int = setting(64, "states of a gradient step; 256 in the released code, which has a GPU")
    samples: int = setting(16, "chunks of the policy in each of them; 64 in the released code")
    chosen: int = setting(1, "best chunks of each state that are cloned, as in the released code")
    uniform_samples: int = setting(10, "uniform chunks for each that is cloned, as in the released code")
    entropy_weight: float = setting(
        0.02, "alpha, share of its weight that each uniform chunk has; sinks to a tenth over the budget, as there"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "states", "samples")
        not_negative(self, "uniform_samples", "entropy_weight")
        if not 1 <= self.chosen <= self.samples:
            raise RunError(f"chosen must be in 1..{self.samples}, the samples, got {self.chosen}")


class Learner(TDFineTuner):
    """Q, then its weights on the policy's own samples."""

    config: Config

    @property
    def selecting(self) -> Choosing:
        """In every episode, once the critic has seen something: acting by choice is part of the method."""
        return always if self.step >= self.config.selection_start else never

    @property
    def entropy_weight(self) -> float:
        """Alpha at this step, which sinks along a line."""
        return self.config.entropy_weight * max(LEAST_ENTROPY, 1.0 - self.step / self.total)

    def weights(self, q: Tensor) -> Tensor:
        """max(Q - V, 0), the advantage over the mean of the state's samples where there is one ("qadv"). q: (B, N), to (B, N)."""
        return (q - q.mean(1, keepdim=True)).clamp(min=0.0)

    def samples(self, condition: Tensor) -> Targets:
        """The best of the policy's own chunks in each state, with their weights."""
        chunks = self.actor.draw(condition, self.config.samples)
        q = self.critic.lower_bound(self.critic.values(condition, self.executed(chunks)))
        weight, best = self.weights(q).topk(self.config.chosen, 1)
        x_0 = chunks[torch.arange(len(chunks))[:, None], best]
        return Targets(condition.repeat_interleave(self.config.chosen, 0), x_0.flatten(0, 1), weight.flatten())

    def uniform(self, targets: Targets) -> Targets:
        """Uniform chunks in the same states, with alpha of their weights."""
        count = self.config.uniform_samples
        x_0 = 2.0 * torch.rand((count * len(targets.x_0), *targets.x_0.shape[1:]), generator=self.generator) - 1.0
        return Targets(targets.condition.repeat(count, 1), x_0, self.entropy_weight * targets.weight.repeat(count))

    def policy_rows(self) -> Tensor:
        """Rows whose states are sampled in."""
        return self.rows(self.config.states)

    def policy_loss(self, rows: Tensor) -> Tensor:
        """E w || eps - eps_theta(a_k, k, s) ||^2 over the best samples and uniform chunks."""
        best = self.samples(self.replay.condition[self.replay.transitions.state[rows]])
        return self.actor.cloning_loss(Targets.joined([best, self.uniform(best)]))
