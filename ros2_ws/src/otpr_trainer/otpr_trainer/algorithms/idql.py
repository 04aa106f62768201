# SPDX-License-Identifier: Apache-2.0
"""IDQL: an implicit critic and a cloned behaviour policy of which the critic chooses samples.

Hansen-Estruch et al. 2023, "IDQL: Implicit Q-Learning as an Actor-Critic Method with Diffusion Policies" (arXiv 2304.10573), fine-tuned
online as in DPPO's comparison (Ren et al. 2024, arXiv 2409.00588, app. D). The policy loss knows nothing of the critic: what is chosen
enters the replay, of which the policy is a clone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from otpr_policy.errors import RunError
from otpr_trainer.acting import Acting, always, every_other, never
from otpr_trainer.checkpoint import Checkpoint, optimizer_state, restore_optimizer, select
from otpr_trainer.config import not_negative, positive, setting
from otpr_trainer.critic import ChunkCritic
from otpr_trainer.data.replay import Transitions
from otpr_trainer.finetune import FineTuner, Metrics, Settings, due
from otpr_trainer.interaction import Actor
from otpr_trainer.learner import Setup
from otpr_trainer.networks.critic import EnsembleCritic
from otpr_trainer.selection import CriticConfig

NAME = "idql"
NEEDS_INIT = True
PESSIMISM = 1.0  # with two heads, mean - 1 standard deviation is their minimum, which is IQL's value of a chunk


@dataclass(frozen=True)
class Config(Settings):
    """The paper's settings where it gives them; sizes and rates as for the methods that it is compared with."""

    gamma: float = setting(0.99, "discount per environment step")
    expectile: float = setting(0.8, "of Q that V regresses to; 0.5 is the mean")
    critic_width: int = setting(256, "units per hidden layer of Q and V")
    critic_depth: int = setting(2, "hidden layers of Q and V")
    critic_learning_rate: float = setting(3e-4, "AdamW's, of Q and V")
    critic_updates: float = setting(0.25, "gradient steps of Q and V per environment step")
    target_rate: float = setting(0.005, "share by which the target of Q follows per gradient step")
    warmup_updates: int = setting(500, "gradient steps of Q and V after the first round, beyond those that its environment steps ask for")
    demo_share: float = setting(0.5, "share of demonstrations in a batch")
    acting_candidates: int = setting(8, "samples of which the critic chooses")
    selection_start: int = setting(2000, "environment steps from which the critic chooses in half the episodes")

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "critic_width", "critic_depth", "acting_candidates")
        not_negative(self, "critic_updates", "warmup_updates")
        if not (0 < self.gamma <= 1 and 0 < self.expectile < 1 and 0 <= self.demo_share < 1 and 0 < self.target_rate <= 1):
            raise RunError("gamma and target_rate must be in (0, 1], expectile in (0, 1), demo_share in [0, 1)")
        if not self.critic_learning_rate > 0:
            raise RunError(f"critic_learning_rate must be above 0, got {self.critic_learning_rate}")


class Learner(FineTuner):
    """V, then Q, then the behaviour policy."""

    phases = ("critic", "policy")

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup, gamma=config.gamma)
        self.config = config
        sizes = CriticConfig(config.critic_width, config.critic_depth, 2, PESSIMISM)
        self.critic_config = sizes.to_json()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setup.seed)
            q = sizes.network(self.policy_config)
            self.v = EnsembleCritic(self.replay.condition.shape[1], 0, config.critic_width, config.critic_depth, 1)
        self.q = ChunkCritic(q, learning_rate=config.critic_learning_rate, target_rate=config.target_rate, pessimism=PESSIMISM)
        self._v_optimizer = torch.optim.AdamW(self.v.parameters(), config.critic_learning_rate, weight_decay=1e-4, fused=True)
        self.demonstrations = len(self.replay)

    def value(self, condition: Tensor) -> Tensor:
        """V(s), (B,), in (0, 1)."""
        return torch.sigmoid(self.v(condition, condition.new_empty((len(condition), 0))))[0]

    def v_loss(self, batch: Transitions) -> Tensor:
        """E |tau - 1(u < 0)| u^2 with u = min_i Q'_i(s, a) - V(s) (IQL, Kostrikov et al. 2021, arXiv 2110.06169, eq. 5)."""
        condition, chunk = self.replay.condition[batch.state], batch.chunk[:, None, : self.executed_length]
        u = self.q.target_values(condition, chunk, self.generator)[:, 0] - self.value(condition)
        return ((self.config.expectile - (u < 0).float()).abs() * u**2).mean()

    def q_loss(self, batch: Transitions) -> Tensor:
        """E (r + gamma^k V(s') - Q_i(s, a))^2 (IQL, eq. 6), mean over the two critics."""
        with torch.no_grad():
            y = batch.reward + batch.discount * self.value(self.replay.condition[batch.next_state])
        logits = self.q.ensemble(self.replay.condition[batch.state], batch.chunk[:, : self.executed_length])
        return functional.mse_loss(torch.sigmoid(logits), y.expand_as(logits))

    def policy_loss(self, batch: Transitions) -> Tensor:
        """E || eps - eps_theta(a_k, k, s) ||^2 over all that was seen."""
        return self.actor.denoising_loss(self.replay.condition[batch.state], batch.chunk).mean()

    def acting(self) -> Actor:
        """Half the episodes by the critic's choice, once it has seen something."""
        choosing = every_other if self.step >= self.config.selection_start else never
        return Acting(self.actor, self.q, self.config.acting_candidates, choosing)

    def evaluated(self) -> dict[str, Actor]:
        """One plain sample, and the critic's favourite of several, which is the method's own way to act."""
        return {
            "policy": Acting(self.actor),
            "selected": Acting(self.actor, self.q, self.config.acting_candidates, always),
        }

    def learn(self, before: int, after: int) -> dict[str, Tensor | float]:
        """Critics, then policy; each as often as its rate says."""
        metrics = Metrics("q/loss", "v/loss", "policy/loss", "policy/gradient")
        with self.timed("critic"):
            for _ in range(due(self.config.critic_updates, before, after) + (self.config.warmup_updates if before == 0 else 0)):
                batch = self._batch()
                v_loss = self.v_loss(batch)
                self._v_optimizer.zero_grad()
                v_loss.backward()  # type: ignore[no-untyped-call]
                self._v_optimizer.step()
                q_loss = self.q_loss(batch)
                self.q.step(q_loss)
                metrics.add({"q/loss": q_loss, "v/loss": v_loss})
        with self.timed("policy"):
            for _ in range(due(self.config.actor_updates, before, after)):
                loss = self.policy_loss(self._batch())
                metrics.add({"policy/loss": loss, "policy/gradient": self.actor.step(loss)})
        return metrics.means()

    def checkpoint(self) -> Checkpoint:
        """See Learner."""
        base = super().checkpoint()
        v = {f"v.{name}": tensor for name, tensor in self.v.state_dict().items()} | optimizer_state(self._v_optimizer, "v_optimizer.")
        return Checkpoint(base.step, base.tensors | self.q.tensors() | v, base.values)

    def restore(self, checkpoint: Checkpoint) -> None:
        """See Learner."""
        super().restore(checkpoint)
        try:
            self.q.restore(checkpoint.tensors)
            self.v.load_state_dict(select(checkpoint.tensors, "v."))
        except (KeyError, RuntimeError) as error:
            raise RunError(f"the checkpoint is of another critic: {error}") from error
        restore_optimizer(self._v_optimizer, checkpoint.tensors, "v_optimizer.")

    def _batch(self) -> Transitions:
        """Demonstrations and own experience, with replacement."""
        size, played = self.config.batch_size, len(self.replay) - self.demonstrations
        own = 0 if played == 0 else size - int(size * self.config.demo_share)
        rows = [torch.randint(self.demonstrations, (size - own,), generator=self.generator)]
        if own:
            rows.append(self.demonstrations + torch.randint(played, (own,), generator=self.generator))
        return self.replay.transitions.rows(torch.cat(rows))
