# SPDX-License-Identifier: Apache-2.0
"""IDQL: an implicit critic and a cloned behaviour policy of which the critic chooses samples.

Hansen-Estruch et al. 2023, "IDQL: Implicit Q-Learning as an Actor-Critic Method with Diffusion Policies" (arXiv 2304.10573), fine-tuned
online as in DPPO's comparison (Ren et al. 2024, arXiv 2409.00588, app. D). The policy loss knows nothing of the critic: what is chosen
enters the replay, of which the policy is a clone.
"""

from dataclasses import dataclass

from torch import Tensor

from otpr_policy.errors import RunError
from otpr_trainer.config import setting
from otpr_trainer.data.replay import Transitions
from otpr_trainer.finetune_critic import AlternatingFineTuner, CriticSettings
from otpr_trainer.implicit import ImplicitCritic, critic_config
from otpr_trainer.learner import Setup

NAME = "idql"
NEEDS_INIT = True
CHOOSES = True


@dataclass(frozen=True)
class Config(CriticSettings):
    """The paper's settings where it gives them; sizes and rates as for the methods that it is compared with."""

    expectile: float = setting(0.8, "of Q that V regresses to; 0.5 is the mean")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.expectile < 1:
            raise RunError(f"expectile must be in (0, 1), got {self.expectile}")


class Learner(AlternatingFineTuner):
    """V, then Q, then the behaviour policy."""

    config: Config
    critic_metrics = ("q/loss", "v/loss", "q/gradient")

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.config = config
        self.critic_config = critic_config(config).to_json()
        self.implicit = self.learnt = ImplicitCritic(config, self.policy_config, config.expectile, setup.seed)
        self.critic = self.implicit.q

    def critic_update(self, batch: Transitions) -> dict[str, Tensor | float]:
        """One gradient step of V, then of Q."""
        return self.implicit.update(batch, self.replay.condition, self.generator)

    def policy_loss(self, rows: Tensor) -> Tensor:
        """E || eps - eps_theta(a_k, k, s) ||^2 over all that was seen."""
        batch = self.replay.transitions.rows(rows)
        return self.actor.denoising_loss(self.replay.condition[batch.state], batch.chunk).mean()
