# SPDX-License-Identifier: Apache-2.0
"""Diffusion advantage-weighted regression (DAWR): clone what was done, each chunk weighted by the exponential of its advantage.

Peng et al. 2019, "Advantage-Weighted Regression" (arXiv 1910.00177), with a diffusion policy as in DPPO's comparison (Ren et al. 2024,
arXiv 2409.00588, app. D). In each round V is led to its TD(lambda) returns R, and the policy clones all of replay with

    min(exp(beta A), w_max),    A = R(s) - V(s)  as standard scores
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from otpr_policy.errors import RunError
from otpr_trainer.actor import Targets
from otpr_trainer.checkpoint import Checkpoint
from otpr_trainer.config import setting
from otpr_trainer.data.replay import Origin, Transitions
from otpr_trainer.finetune import Metrics
from otpr_trainer.finetune_cloning import CloningFineTuner, check_regression, exponential_weights
from otpr_trainer.finetune_critic import ValueSettings
from otpr_trainer.learner import Setup
from otpr_trainer.value import StateCritic

NAME = "dawr"
NEEDS_INIT = True


@dataclass(frozen=True)
class Config(ValueSettings):
    """Weights as in DPPO's comparison; rates and sizes as for the methods that it is compared with."""

    trace: float = setting(0.95, "lambda of TD(lambda), per chunk: 0 looks one chunk ahead, 1 to the end; as in DPPO's comparison")
    inverse_temperature: float = setting(10.0, "beta, per standard deviation of a batch's advantages; as in DPPO's comparison")
    max_weight: float = setting(100.0, "largest weight of a chunk, as in DPPO's comparison")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_regression(self.inverse_temperature, self.max_weight)
        if not 0 <= self.trace <= 1:
            raise RunError(f"trace must be in [0, 1], got {self.trace}")


def lambda_returns(transitions: Transitions, values: Tensor, trace: float) -> Tensor:
    """TD(lambda) returns R of each row, (N,): R = r + gamma^k ((1 - lambda) V(s') + lambda R'), R' of the row that s' begins.

    An end has no s'. Where an episode was cut off, V(s') stands for R'. A demonstration ends with its last whole chunk, before its
    success where less of a chunk is carried out: there the return that was seen stands for R'.

    Args:
        transitions: all rows of replay.
        values: V of each state, (M,).
        trace: lambda.
    """
    row_of = torch.full((len(values),), -1).index_put((transitions.state,), torch.arange(len(transitions)))
    following = row_of[transitions.next_state]
    ahead = transitions.discount * values[transitions.next_state]
    seen = torch.where(transitions.origin == Origin.DEMONSTRATION, transitions.observed_return - transitions.reward, ahead)
    last = following < 0
    term = transitions.reward + (1.0 - trace) * ahead + trace * seen * last
    return discounted_sums(term, trace * transitions.discount * ~last, following)


def discounted_sums(term: Tensor, decay: Tensor, following: Tensor) -> Tensor:
    """x_i = term_i + decay_i x_j with j = following_i, (N,). Where decay is 0 nothing follows; rows may not follow in circles.

    Each pass doubles how far a row looks ahead.
    """
    following = torch.where(decay > 0, following, torch.arange(len(term)))
    while decay.any():
        term = term + decay * term[following]
        decay, following = decay * decay[following], following[following]
    return term


class Learner(CloningFineTuner):
    """V, then cloning by advantage.

    Attributes:
        advantage: of each row of replay in this round, (N,).
    """

    phases = ("critic", "policy")

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup, demo_share=config.demo_share, gamma=config.gamma)
        self.config = config
        size = self.policy_config.condition_size
        rate = config.critic_learning_rate
        self.value = StateCritic.new(size, config.critic_width, config.critic_depth, learning_rate=rate, seed=setup.seed)
        self.advantage = torch.zeros(0)

    def returns(self) -> tuple[Tensor, Tensor]:
        """TD(lambda) return of each row of replay, and V of its state, both (N,)."""
        values = self.value.value(self.replay.condition)
        return lambda_returns(self.replay.transitions, values, self.config.trace), values[self.replay.transitions.state]

    def targets(self, rows: Tensor) -> Targets:
        """What was done, weighted by its advantage among those of the batch."""
        batch = self.replay.transitions.rows(rows)
        weight = exponential_weights(self.advantage[rows], self.config.inverse_temperature, self.config.max_weight)
        return Targets(self.replay.condition[batch.state], batch.chunk, weight)

    def policy_loss(self, rows: Tensor) -> Tensor:
        """E min(exp(beta A), w_max) || eps - eps_theta(a_k, k, s) ||^2."""
        return self.actor.cloning_loss(self.targets(rows))

    def learn(self, before: int, after: int) -> dict[str, Tensor | float]:
        """V to the returns that it had itself when the round began, then the policy by the advantages that V gives now."""
        metrics = Metrics("value/loss")
        with self.timed("critic"):
            returns = self.returns()[0].clamp(0.0, 1.0)  # which they leave by rounding alone
            for _ in range(self.config.critic_updates_due(before, after)):
                rows = self.rows()
                loss = self.value.loss(self.replay.condition[self.replay.transitions.state[rows]], returns[rows])
                self.value.step(loss)
                metrics.add({"value/loss": loss})
            returns, values = self.returns()
            self.advantage = returns - values
        return super().learn(before, after) | metrics.means()

    def checkpoint(self) -> Checkpoint:
        """See Learner."""
        base = super().checkpoint()
        return Checkpoint(base.step, base.tensors | self.value.tensors(), base.values)

    def restore(self, checkpoint: Checkpoint) -> None:
        """See Learner."""
        super().restore(checkpoint)
        try:
            self.value.restore(checkpoint.tensors)
        except (KeyError, RuntimeError) as error:
            raise RunError(f"the checkpoint is of another critic: {error}") from error
