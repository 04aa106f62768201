# SPDX-License-Identifier: Apache-2.0
"""Filtered behaviour cloning: go on cloning, from the demonstrations and from one's own successes.

The control that every claim of fine-tuning needs: a method that does not beat it owes its gain to having seen more successes, not to
its critic (Emmons et al. 2022, arXiv 2112.10751, call it percent BC; here the percentile is success).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from otpr_policy.errors import RunError
from otpr_trainer.acting import Acting
from otpr_trainer.config import setting
from otpr_trainer.data.replay import Origin
from otpr_trainer.finetune import FineTuner, Metrics, Settings, due
from otpr_trainer.interaction import Actor
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


class Learner(FineTuner):
    """Plays, keeps what succeeded, and imitates it."""

    phases = ("policy",)

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.config = config
        self.demonstrations = len(self.replay)

    def acting(self) -> Actor:
        """One plain sample."""
        return Acting(self.actor)

    def evaluated(self) -> dict[str, Actor]:
        """One plain sample."""
        return {"policy": Acting(self.actor)}

    def policy_loss(self) -> Tensor:
        """E || eps - eps_theta(a_k, k, s) ||^2 over demonstrations and own successes."""
        rows = self.replay.transitions.rows(self._rows())
        return self.actor.denoising_loss(self.replay.condition[rows.state], rows.chunk).mean()

    def learn(self, before: int, after: int) -> dict[str, Tensor | float]:
        """Gradient steps at the rate of ``actor_updates``."""
        metrics = Metrics("policy/loss", "policy/gradient")
        with self.timed("policy"):
            for _ in range(due(self.config.actor_updates, before, after)):
                loss = self.policy_loss()
                metrics.add({"policy/loss": loss, "policy/gradient": self.actor.step(loss)})
        return metrics.means()

    def _rows(self) -> Tensor:
        """A batch: demonstrations alone until something succeeded."""
        solved = (self.replay.transitions.origin == Origin.SUCCESS).nonzero()[:, 0]
        size = self.config.batch_size
        own = size - int(size * self.config.demo_share) if len(solved) else 0
        rows = [torch.randint(self.demonstrations, (size - own,), generator=self.generator)]
        if own:
            rows.append(solved[torch.randint(len(solved), (own,), generator=self.generator)])
        return torch.cat(rows)
