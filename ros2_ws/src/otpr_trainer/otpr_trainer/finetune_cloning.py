# SPDX-License-Identifier: Apache-2.0
"""What fine-tuning algorithms share that imitate what was seen, chosen or weighted, and act by one plain sample."""

from abc import abstractmethod

import torch
from torch import Tensor

from otpr_policy.errors import RunError
from otpr_trainer.acting import Acting
from otpr_trainer.data.replay import mixed_rows
from otpr_trainer.finetune import FineTuner, Metrics, Settings, due
from otpr_trainer.interaction import Actor
from otpr_trainer.learner import Setup

STD_FLOOR = 1e-3  # added to a batch's spread: values that hardly differ weigh alike


def exponential_weights(value: Tensor, inverse_temperature: float, largest: float) -> Tensor:
    """w_i = min(exp(beta z_i), largest), z the standard scores of the values in their batch, (B,).

    Reward-weighted regression with returns as values (Peters and Schaal 2007), advantage-weighted with advantages (Peng et al. 2019,
    arXiv 1910.00177). As standard scores, beta means the same whatever the scale of the reward; values all alike weigh 1.
    """
    exact = value.double()  # or the rounding of a mean would tell equals apart
    z = (exact - exact.mean()) / (exact.std(correction=0) + STD_FLOOR)
    return (inverse_temperature * z).exp().clamp(max=largest).to(value.dtype)


def check_regression(inverse_temperature: float, max_weight: float) -> None:
    """Raises RunError on settings of :func:`exponential_weights` that make no sense."""
    if not (0 <= inverse_temperature < float("inf") and 1 <= max_weight < float("inf")):
        raise RunError(f"inverse_temperature must be 0 or more, max_weight 1 or more; got {inverse_temperature}, {max_weight}")


class CloningFineTuner(FineTuner):
    """A fine-tuner that imitates. Subclasses say which rows (:meth:`own_rows`) and with which loss (:meth:`policy_loss`).

    Attributes:
        demonstrations: rows of replay that are demonstrations; they are the first.
    """

    phases: tuple[str, ...] = ("policy",)

    def __init__(self, config: Settings, setup: Setup, *, demo_share: float, gamma: float = 1.0) -> None:
        """``demo_share``: share of demonstrations in a batch. ``gamma``: discount of one control step, for replay."""
        super().__init__(config, setup, gamma=gamma)
        self._demo_share = demo_share

    def acting(self) -> Actor:
        """One plain sample."""
        return Acting(self.actor)

    def evaluated(self) -> dict[str, Actor]:
        """One plain sample."""
        return {"policy": Acting(self.actor)}

    def own_rows(self) -> Tensor:
        """Rows of own play that are imitated, (n,); all, unless a subclass chooses."""
        return torch.arange(self.demonstrations, len(self.replay))

    @abstractmethod
    def policy_loss(self, rows: Tensor) -> Tensor:
        """Of rows of replay, (B,)."""

    def rows(self) -> Tensor:
        """A batch, (B,): demonstrations alone while nothing of one's own is imitated."""
        return mixed_rows(self.demonstrations, self.own_rows(), self.settings.batch_size, self._demo_share, self.generator)

    def learn(self, before: int, after: int) -> dict[str, Tensor | float]:
        """Gradient steps at the rate of ``actor_updates``."""
        metrics = Metrics("policy/loss", "policy/gradient")
        with self.timed("policy"):
            for _ in range(due(self.settings.actor_updates, before, after)):
                loss = self.policy_loss(self.rows())
                metrics.add({"policy/loss": loss, "policy/gradient": self.actor.step(loss)})
        return metrics.means()
