# SPDX-License-Identifier: Apache-2.0
"""DPPO: proximal policy optimisation through the denoising chain.

Ren et al. 2024, "Diffusion Policy Policy Optimization" (arXiv 2409.00588). Each denoising step is an action of its own, Gaussian and so
with a likelihood; the chunk that comes out of the last is carried out and alone earns anything. In the paper's symbols:

    policy of a step     pi_theta(a^{k-1} | a^k, s) = N(mu_theta(a^k, k, s), sigma_k^2),  k = K'..1, the last K' steps of the chain
    its advantage        gamma_den^{k-1} A(s), A by generalised advantage estimation from V(s), which sees no action
    policy loss          -E min(r A, clip(r, 1 - c_k, 1 + c_k) A),  r = pi_theta / pi_old of one step

Where this differs from the released code, and why, is in docs/methods.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from otpr_policy.errors import RunError, unknown
from otpr_policy.spec import Array
from otpr_trainer.acting import AsEvaluated
from otpr_trainer.chain_actor import ChainActor, RecordingActor
from otpr_trainer.chain_likelihood import clip_schedule, denoising_discount
from otpr_trainer.checkpoint import Checkpoint
from otpr_trainer.config import not_negative, positive, setting
from otpr_trainer.data.replay import Trajectory
from otpr_trainer.diffusion import SAMPLERS, reverse_chain
from otpr_trainer.finetune import Metrics, PlaySettings, Rounds
from otpr_trainer.interaction import Actor, Played
from otpr_trainer.learner import Setup
from otpr_trainer.policy import TorchPolicy
from otpr_trainer.ppo import approximate_kl, clipped_share, clipped_surrogate, generalized_advantages, normalized
from otpr_trainer.value import StateCritic

NAME = "dppo"
NEEDS_INIT = True
PAPER = {
    "steps": 4_300_000,
    "envs": 50,
    "episodes": 750,
    "sampler": "ddpm",
    "finetuned_steps": 10,
    "gamma": 0.999,
    "batch_size": 7500,
    "actor_learning_rate": 1e-4,
}
VARIANTS = {"paper": PAPER}
"""``paper``: Lift from state. 15 000 chunks a round are here 750 episodes of at most 20 chunks."""


@dataclass(frozen=True)
class Config(PlaySettings):
    """Where no reason is given a default is the paper's for Lift."""

    steps: int = setting(300_000, "budget of environment steps; the last round is played to its end; on-policy, so ten times others'")
    envs: int = setting(10, "environments")
    episodes: int = setting(50, "episodes per round of play and learning")
    evaluate_every: int = setting(20_000, "environment steps between evaluations during training; 0 for none")
    sampler: str = setting("ddim", "chain that acts and learns: ddim, or ddpm with all steps of the start policy")
    sampling_steps: int = setting(5, "denoising steps of ddim, as in the exported policy")
    eta: float = setting(1.0, "share of DDPM's noise in ddim, 0 to 1, as in the exported policy")
    finetuned_steps: int = setting(5, "last denoising steps that learn, K'; earlier ones stay those of the start policy")
    exploration_std: float = setting(0.1, "least standard deviation of a denoising step in training episodes, of a normalised action")
    likelihood_std: float = setting(0.1, "least standard deviation of a denoising step in likelihoods")
    gamma: float = setting(0.99, "discount per chunk; the paper's 0.999 does not let the value of a hopeless state sink within 100 rounds")
    gae_lambda: float = setting(0.95, "lambda of generalised advantage estimation, 0 to 1")
    gamma_denoising: float = setting(0.99, "discount of the advantage per denoising step")
    clip: float = setting(0.01, "farthest that the ratio of the last denoising step may be from 1")
    clip_first: float = setting(0.001, "farthest that the ratio of the first denoising step that learns may be from 1")
    normalize_advantages: bool = setting(True, "advantages of a batch with mean 0 and standard deviation 1")
    epochs: int = setting(10, "passes over a round")
    batch_size: int = setting(500, "denoising steps per gradient step, of all chunks of a round times K'")
    actor_learning_rate: float = setting(5e-5, "AdamW's, of the policy; the paper's for DDIM on Lift")
    critic_learning_rate: float = setting(1e-3, "AdamW's, of V")
    critic_width: int = setting(256, "units per hidden layer of V")
    critic_depth: int = setting(2, "hidden layers of V")
    warmup_rounds: int = setting(2, "first rounds in which V alone learns")
    target_kl: float = setting(1.0, "KL divergence of a batch beyond which the policy rests until the next round")
    bc_coefficient: float = setting(0.0, "weight of staying close to the start policy: -log-likelihood of its own chains")

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "episodes", "sampling_steps", "finetuned_steps", "epochs", "batch_size", "critic_width", "critic_depth")
        not_negative(self, "warmup_rounds", "exploration_std", "bc_coefficient")
        if self.sampler not in SAMPLERS:
            raise RunError(unknown("sampler", self.sampler, SAMPLERS))
        for name in ("eta", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise RunError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("gamma", "gamma_denoising"):
            if not 0 < getattr(self, name) <= 1:
                raise RunError(f"{name} must be in (0, 1], got {getattr(self, name)}")
        for name in ("likelihood_std", "clip", "clip_first", "actor_learning_rate", "critic_learning_rate", "target_kl"):
            if not 0 < getattr(self, name) < float("inf"):
                raise RunError(f"{name} must be a number above 0, got {getattr(self, name)}")
        if not self.clip_first <= self.clip < 1:
            raise RunError(f"clip must be at least clip_first, {self.clip_first}, and below 1, got {self.clip}")


@dataclass(frozen=True, eq=False)
class Decisions:
    """Chunks that were decided on, T of them, episodes one after the other.

    Args:
        condition: of the state, (T, condition_size).
        chain: what the last K' denoising steps went through, (T, K' + 1, Ta, Da).
        reward: sum over the executed actions, (T,).
        next_condition: of the state that the chunk led to, (T, condition_size); of the final one in an episode's last decision.
        terminated: the episode came to a true end, (T,).
        ended: last of its episode, whichever end it was, (T,).
    """

    condition: Tensor
    chain: Tensor
    reward: Tensor
    next_condition: Tensor
    terminated: Tensor
    ended: Tensor

    def __len__(self) -> int:
        return len(self.reward)

    @classmethod
    def joined(cls, parts: "list[Decisions]") -> "Decisions":
        """All of all parts."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def decisions(trajectory: Trajectory, chain: Tensor, actor: ChainActor) -> Decisions:
    """An episode of T chunks, of which the last may have been cut short by its end. chain: (T, K' + 1, Ta, Da)."""
    spec = actor.policy.config.spec
    begins = np.arange(0, len(trajectory), spec.executed_length)
    assert len(begins) == len(chain)
    states = actor.condition(trajectory.histories(spec.observation_horizon)[[*begins, len(trajectory)]])
    last = torch.arange(len(begins)) == len(begins) - 1
    return Decisions(
        condition=states[:-1],
        chain=chain,
        reward=torch.as_tensor(np.add.reduceat(trajectory.reward, begins)),
        next_condition=states[1:],
        terminated=last & trajectory.terminated,
        ended=last,
    )


class Learner(Rounds):
    """Rounds of play; then epochs over what was just played, and nothing older."""

    phases = ("update",)

    def __init__(self, config: Config, setup: Setup) -> None:
        """Raises RunError when the start policy cannot be denoised as the settings say."""
        super().__init__(config, setup)
        assert setup.start is not None
        self.config = config
        steps = config.sampling_steps if config.sampler == "ddim" else None
        self.actor = ChainActor(
            setup.start,
            reverse_chain(setup.start.schedule, config.sampler, steps, config.eta),
            learning_steps=config.finetuned_steps,
            exploration_std=config.exploration_std,
            likelihood_std=config.likelihood_std,
            learning_rate=config.actor_learning_rate,
        )
        self.policy_config, self.chain = self.actor.policy.config, self.actor.reverse
        self.critic = StateCritic.new(
            self.policy_config.condition_size,
            config.critic_width,
            config.critic_depth,
            learning_rate=config.critic_learning_rate,
            seed=setup.seed,
        )
        self.clip = _row(clip_schedule(config.clip_first, config.clip, config.finetuned_steps))
        self.discount = _row(denoising_discount(config.gamma_denoising, config.finetuned_steps))
        self._recording = RecordingActor(self.actor)
        self._kept: list[Decisions] = []

    # Play

    @property
    def episodes_per_round(self) -> int:
        """More than environments: each plays several, one after the other."""
        return self.config.episodes

    def acting(self) -> Actor:
        """With exploration noise, keeping chains."""
        self._recording = RecordingActor(self.actor)
        return self._recording

    def evaluated(self) -> dict[str, Actor]:
        """Without exploration noise, as ``otpr eval`` does with the same sampler."""
        return {"policy": AsEvaluated(TorchPolicy(self.actor.policy, self.chain))}

    def keep(self, episode: Played) -> None:
        """Until the end of the round."""
        self._kept.append(decisions(episode.trajectory, self._recording.chains(episode.episode), self.actor))

    # Learning

    def advantages(self, batch: Decisions) -> tuple[Tensor, Tensor]:
        """A and V + A of each decision, (T,); the latter is what V regresses to."""
        value, next_value = (self.critic.value(states).double().numpy() for states in (batch.condition, batch.next_condition))
        advantage = generalized_advantages(
            batch.reward.numpy(),
            value,
            next_value,
            batch.terminated.numpy(),
            batch.ended.numpy(),
            gamma=self.config.gamma,
            trace=self.config.gae_lambda,
        )
        return _row(advantage), _row(value + advantage)

    def policy_loss(self, log_ratio: Tensor, advantage: Tensor, index: Tensor) -> Tensor:
        """-E min(r A, clip(r, 1 - c_k, 1 + c_k) A) with A = gamma_den^{k-1} A(s). All (B,); ``index``: of the step, 0 the noisiest."""
        if self.config.normalize_advantages:
            advantage = normalized(advantage)
        return clipped_surrogate(log_ratio, self.discount[index] * advantage, self.clip[index])

    def bc_loss(self, condition: Tensor, index: Tensor) -> Tensor:
        """-log-likelihood of steps of the start policy's chains in the same states (released code). condition: (B, ...); index: (B,)."""
        noise = torch.randn((len(condition), *self.actor.noise_shape), generator=self.generator)
        chain = self.actor.sample_start(condition, noise)
        return -self.actor.log_prob(condition, chain, torch.arange(len(condition)), index).mean()

    def update_policy(self, batch: Decisions, row: Tensor, index: Tensor, old: Tensor, advantage: Tensor) -> dict[str, Tensor | float]:
        """One gradient step on denoising steps ``index`` (B,) of chains ``row`` (B,); none where the policy has already gone too far.

        old: their log-likelihoods when they were sampled, (B,); advantage: of their chunks, (B,). Returns metrics.
        """
        log_ratio = self.actor.log_prob(batch.condition, batch.chain, row, index) - old
        loss, kl = self.policy_loss(log_ratio, advantage, index), approximate_kl(log_ratio.detach())
        found = {"policy/loss": loss.detach(), "policy/kl": kl, "policy/clipped": clipped_share(log_ratio.detach(), self.clip[index])}
        if float(kl) > self.config.target_kl:
            return {**found}
        if self.config.bc_coefficient > 0:
            loss = loss + self.config.bc_coefficient * self.bc_loss(batch.condition[row], index)
        return {**found, "policy/gradient": self.actor.step(loss)}

    def learn(self, before: int, after: int) -> dict[str, Tensor | float]:
        """Epochs over the round. V learns in every batch, the policy after the warm-up and until it has gone far enough."""
        batch, self._kept = Decisions.joined(self._kept), []
        metrics = Metrics("policy/loss", "critic/loss", "policy/kl", "policy/clipped", "policy/gradient")
        learning, updates = self._round > self.config.warmup_rounds, 0
        with self.timed("update"):
            advantage, returns = self.advantages(batch)
            old = self.actor.log_probs(batch.condition, batch.chain)
            for rows in self._batches(old.numel()):
                row, index = rows // old.shape[1], rows % old.shape[1]
                loss = self.critic.loss(batch.condition[row], returns[row])
                self.critic.step(loss)
                metrics.add({"critic/loss": loss})
                if learning:
                    found = self.update_policy(batch, row, index, old[row, index], advantage[row])
                    metrics.add(found)
                    learning = "policy/gradient" in found
                    updates += learning
        return metrics.means() | {"policy/updates": updates}

    def checkpoint(self) -> Checkpoint:
        """See Learner."""
        base = super().checkpoint()
        return Checkpoint(base.step, base.tensors | self.actor.tensors() | self.critic.tensors(), base.values)

    def restore(self, checkpoint: Checkpoint) -> None:
        """See Learner."""
        super().restore(checkpoint)
        try:
            self.actor.restore(checkpoint.tensors)
            self.critic.restore(checkpoint.tensors)
        except (KeyError, RuntimeError) as error:
            raise RunError(f"the checkpoint is of another network or algorithm: {error}") from error

    def _batches(self, rows: int) -> Iterator[Tensor]:
        """All rows in a random order, once per epoch, in parts of nearly equal size: at least ``batch_size``, or all there are."""
        for _ in range(self.config.epochs):
            order = torch.randperm(rows, generator=self.generator)
            yield from order.tensor_split(max(1, rows // self.config.batch_size))


def _row(values: Array) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32)
