# SPDX-License-Identifier: Apache-2.0
"""DSRL: an actor chooses the noise from which the cloned diffusion policy starts; the policy itself stays as it is.

Wagenmaker et al. 2025, "Steering your diffusion policy with latent space reinforcement learning" (arXiv 2506.15799), its noise-aliased
form. The chain is deterministic (DDIM with eta 0), so a chunk is a function pi_dp(s, w) of the noise w:

    Q^A:   y = r + gamma^k min_i Q^A'_i(s', pi_dp(s', w')),  w' ~ pi^W(. | s')                      learns from actions, demonstrations too
    Q^W:   Q^W(s, w) -> min_i Q^A_i(s, pi_dp(s, w)),  w ~ N(0, I)                                   what is known of actions, told of noise
    actor: maximise E min_i Q^W_i(s, w) - alpha log pi^W(w | s),  w in (-bound, bound)

Many w lead to one chunk; Q^W learns them all from that chunk's value, and the actor needs no gradient through the chain. Cross entropy
takes the place of squared error in both, with the same minimiser.
"""

from dataclasses import dataclass

from torch import Tensor

from otpr_policy.errors import RunError
from otpr_trainer.checkpoint import Checkpoint, select
from otpr_trainer.config import positive, setting
from otpr_trainer.gaussian import GaussianConfig, Role
from otpr_trainer.gaussian_policy import SteeredPolicy
from otpr_trainer.learner import Setup
from otpr_trainer.policy import DiffusionPolicy
from otpr_trainer.sac import SacSettings, SoftActorCritic
from otpr_trainer.sampler import ChunkSampler

NAME = "dsrl"
NEEDS_INIT = True
OWN_CHAIN = True
PAPER = {
    **{"observed_returns": False, "demo_share": 0.0, "sampling_steps": 8, "start_steps": 24_000},
    **{"actor_width": 2048, "actor_depth": 3, "critic_width": 2048, "critic_depth": 3},
    **{"critic_updates": 5.0, "actor_updates": 5.0, "noise_critic_updates": 10},
}
VARIANTS = {"paper": PAPER}
"""``paper``: the released code for Can; it is made for a GPU."""


@dataclass(frozen=True)
class Config(SacSettings):
    """Bound and target entropy are the released code's; its networks are 3 x 2048, its updates 20 per chunk, with no demonstrations."""

    target_entropy: float = setting(0.0, "entropy per element of w / bound that the temperature is led to, in nats")
    bound: float = setting(1.5, "largest noise that can be chosen, in standard deviations; the released code's advice")
    sampling_steps: int = setting(5, "denoising steps of the deterministic chain, in training and in the exported policy")
    noise_critic_updates: int = setting(2, "gradient steps of Q^W for each of the actor")

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "sampling_steps", "noise_critic_updates")
        if not 0 < self.bound < float("inf"):
            raise RunError(f"bound must be a number above 0, got {self.bound}")


class Learner(SoftActorCritic):
    """Q of chunks, Q of noise, and who chooses the noise."""

    policy: SteeredPolicy
    metric_names = (*SoftActorCritic.metric_names, "noise_critic/loss", "noise_critic/gradient")

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.noise_critic = self.make_critic(self.actor.spec.chunk_length, setup.seed, target_rate=None)  # it bootstraps from none

    @property
    def config(self) -> Config:
        """The settings."""
        assert isinstance(self.settings, Config)
        return self.settings

    def make_actor(self, start: DiffusionPolicy) -> ChunkSampler:
        """The cloned policy with a deterministic chain."""
        return ChunkSampler(start, sampling_steps=self.config.sampling_steps, generator=self.generator, eta=0.0)

    def gaussian_config(self) -> GaussianConfig:
        """The choice of noise, for this chain and no other."""
        config = self.config
        return GaussianConfig(Role.NOISE, config.actor_width, config.actor_depth, config.bound, self.actor.reverse.steps)

    @property
    def entropy_length(self) -> int:
        """All of the noise: each element of it can change each of the chunk."""
        return self.actor.spec.chunk_length

    def denoised(self, condition: Tensor, w: Tensor) -> Tensor:
        """The cloned policy's chunk pi_dp(s, w), (B, Ta, Da), without a gradient. condition: (B, condition_size); w: (B, Ta, Da)."""
        return self.actor.sample(condition, w[:, None, None])[:, 0]

    def chosen(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Noise w ~ pi^W(. | s) and its log-probability, (B, Ta, Da), (B,). states: (B,)."""
        w, log_prob = self.policy.sample(self.replay.condition[states], self.normal(len(states), *self.policy.gaussian.chunk_shape))
        return w, log_prob.sum((1, 2))

    def propose(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """The chunk of chosen noise."""
        w, log_prob = self.chosen(states)
        return self.denoised(self.replay.condition[states], w), log_prob

    def noise_critic_loss(self, states: Tensor) -> Tensor:
        """Cross entropy of Q^W(s, w) with the smallest Q^A of the chunk that w leads to, w ~ N(0, I)."""
        condition, w = self.replay.condition[states], self.normal(len(states), *self.policy.gaussian.chunk_shape)
        values = self.critic.values(condition, self.executed(self.denoised(condition, w))[:, None])[:, :, 0]
        return self.noise_critic.loss(condition, w, self.actor_value(values))

    def actor_objective(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Q^W of chosen noise."""
        w, log_prob = self.chosen(states)
        return self.actor_value(self.noise_critic.chunk_values(self.replay.condition[states], w)), log_prob

    def actor_update(self) -> dict[str, Tensor | float]:
        """Q^W, then the actor."""
        for _ in range(self.config.noise_critic_updates):
            loss = self.noise_critic_loss(self.batch().state)
            found = {"noise_critic/loss": loss, "noise_critic/gradient": self.noise_critic.step(loss)}
        return {**super().actor_update(), **found}

    def begin(self, condition: Tensor, noise: Tensor) -> Tensor:
        """The cloned policy: w ~ N(0, I)."""
        return self.denoised(condition, noise[:, 0])

    def explore(self, condition: Tensor, noise: Tensor) -> Tensor:
        """Chunks of chosen noise."""
        return self.denoised(condition, self.policy.sample(condition, noise[:, 0])[0])

    def checkpoint(self) -> Checkpoint:
        """See Learner."""
        base = super().checkpoint()
        return Checkpoint(
            base.step, base.tensors | {f"noise_{name}": tensor for name, tensor in self.noise_critic.tensors().items()}, base.values
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """See Learner."""
        super().restore(checkpoint)
        try:
            self.noise_critic.restore(select(checkpoint.tensors, "noise_"))
        except (KeyError, RuntimeError) as error:
            raise RunError(f"the checkpoint is of another network: {error}") from error
