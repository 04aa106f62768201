# SPDX-License-Identifier: Apache-2.0
"""A method of another package in forty lines, made of shared parts: clones what was done closest to a success."""

from dataclasses import dataclass

from torch import Tensor

from otpr_trainer.commands.train import command
from otpr_trainer.config import setting
from otpr_trainer.data.replay import Origin
from otpr_trainer.finetune import Settings
from otpr_trainer.finetune_cloning import CloningFineTuner
from otpr_trainer.learner import Setup

NAME = "closest"
NEEDS_INIT = True


@dataclass(frozen=True)
class Config(Settings):
    share: float = setting(0.5, "share of the rows of own successes that are cloned, those closest to success first")


class Learner(CloningFineTuner):
    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup, demo_share=0.5, gamma=0.99)
        self.config = config

    def own_rows(self) -> Tensor:
        transitions = self.replay.transitions
        own = (transitions.origin == Origin.SUCCESS).nonzero()[:, 0]
        order = transitions.observed_return[own].argsort(descending=True, stable=True)
        return own[order[: int(self.config.share * len(own))]]

    def policy_loss(self, rows: Tensor) -> Tensor:
        batch = self.replay.transitions.rows(rows)
        return self.actor.denoising_loss(self.replay.condition[batch.state], batch.chunk).mean()


COMMAND = command(__name__, "Clone what was done closest to a success.")
