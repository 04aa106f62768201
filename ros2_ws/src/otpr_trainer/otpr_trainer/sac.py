# SPDX-License-Identifier: Apache-2.0
"""Soft actor-critic on action chunks, from replay with demonstrations: what RLPD, residual RL and noise steering share.

Haarnoja et al. 2018, "Soft actor-critic algorithms and applications" (arXiv 1812.05905). Methods say what their Gaussian actor's chunk
is and how it becomes an action. The critic is ours, so that a comparison is of policies: Q is a sigmoid that starts near 0, and a
return that was seen bounds it from below (docs/otpr.md; ``observed_returns`` off is the papers'). Its target has no entropy term, as in
RLPD's experiments with sparse reward: values stay probabilities of success.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from otpr_policy.errors import RunError
from otpr_policy.spec import Array
from otpr_sim.vector import Integers
from otpr_trainer.acting import AsEvaluated
from otpr_trainer.checkpoint import Checkpoint, optimizer_state, restore_optimizer, select
from otpr_trainer.config import not_negative, positive, setting
from otpr_trainer.critic import ChunkCritic
from otpr_trainer.data.replay import Transitions, mixed_rows
from otpr_trainer.finetune import Metrics, PlaySettings, ReplayRounds, due
from otpr_trainer.gaussian import GaussianConfig
from otpr_trainer.gaussian_policy import ActorPolicy, build_gaussian_policy
from otpr_trainer.interaction import Actor
from otpr_trainer.learner import Setup
from otpr_trainer.networks.critic import EnsembleCritic
from otpr_trainer.policy import TorchPolicy
from otpr_trainer.sampler import ChunkSampler


@dataclass(frozen=True)
class SacSettings(PlaySettings):
    """Settings that they share. Those of the critic are those of the methods that they are compared with, but for its update rate."""

    batch_size: int = setting(256, "rows per gradient step of actor and critic")
    gamma: float = setting(0.99, "discount per environment step")
    actor_width: int = setting(256, "units per hidden layer of the actor")
    actor_depth: int = setting(2, "hidden layers of the actor")
    actor_learning_rate: float = setting(3e-4, "Adam's, of the actor")
    actor_updates: float = setting(0.25, "gradient steps of the actor per environment step; 0.25 is one per chunk of 4")
    temperature: float = setting(
        0.001, "weight of the entropy to begin with; chunks differ by hundredths in value, so the usual 1 would drown them"
    )
    temperature_learning_rate: float = setting(3e-3, "Adam's, of the temperature's logarithm; ten times the actor's, for it has far to go")
    target_entropy: float = setting(-0.5, "entropy per element of an action that the temperature is led to, in nats, of tanh's (-1, 1)")
    critic_heads: int = setting(2, "critics in the ensemble")
    critic_width: int = setting(256, "units per hidden layer of a critic")
    critic_depth: int = setting(2, "hidden layers of a critic")
    critic_learning_rate: float = setting(3e-4, "AdamW's, of the critics")
    critic_updates: float = setting(0.5, "gradient steps of the critics per environment step; 0.5 is two per chunk of 4")
    target_rate: float = setting(0.005, "share by which target critics follow per gradient step")
    warmup_updates: int = setting(
        500, "gradient steps of the critics after the first round, beyond those that its environment steps ask for"
    )
    demo_share: float = setting(0.5, "share of demonstrations in a batch")
    observed_returns: bool = setting(True, "a return that was seen bounds a value from below, as for otpr; the papers go without")
    start_steps: int = setting(1000, "environment steps that are played before the actor acts")

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "batch_size", "actor_width", "actor_depth", "critic_heads", "critic_width", "critic_depth")
        not_negative(self, "actor_updates", "critic_updates", "warmup_updates", "start_steps")
        if not (0 < self.gamma <= 1 and 0 <= self.demo_share < 1 and 0 < self.target_rate <= 1):
            raise RunError("gamma and target_rate must be in (0, 1], demo_share in [0, 1)")
        for name in ("actor_learning_rate", "critic_learning_rate", "temperature", "temperature_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise RunError(f"{name} must be a number above 0, got {getattr(self, name)}")
        if not math.isfinite(self.target_entropy):
            raise RunError(f"target_entropy must be a number, got {self.target_entropy}")


class EntropyActor:
    """A Gaussian actor while it learns, with the temperature that leads its entropy to a target.

    Attributes:
        target_entropy: of all elements that count, in nats.
    """

    def __init__(
        self, network: nn.Module, *, learning_rate: float, temperature: float, temperature_learning_rate: float, target_entropy: float
    ) -> None:
        self.target_entropy = target_entropy
        self._log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self._optimizer = torch.optim.Adam(network.parameters(), learning_rate, fused=True)
        self._temperature_optimizer = torch.optim.Adam([self._log_temperature], temperature_learning_rate)
        self._parameters = list(network.parameters())

    @property
    def temperature(self) -> Tensor:
        """alpha, ()."""
        return self._log_temperature.detach().exp()

    def loss(self, value: Tensor, log_prob: Tensor) -> Tensor:
        """E alpha log pi(a | s) - Q(s, a) (arXiv 1812.05905, eq. 7), a drawn with a gradient. All (B,)."""
        return (self.temperature * log_prob - value).mean()

    def temperature_loss(self, log_prob: Tensor) -> Tensor:
        """J = alpha (H(pi) - target), H = -E log pi (eq. 18): down with alpha where entropy is above its target. log_prob: (B,)."""
        return self._log_temperature.exp() * (-log_prob.detach().mean() - self.target_entropy)

    def step(self, loss: Tensor, log_prob: Tensor) -> Tensor:
        """One gradient step of the actor on ``loss``, and one of the temperature; returns the actor's gradient's norm."""
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        self._optimizer.step()
        self._temperature_optimizer.zero_grad()
        self.temperature_loss(log_prob).backward()  # type: ignore[no-untyped-call]
        self._temperature_optimizer.step()
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """State by name, without the network's weights."""
        tensors = {"log_temperature": self._log_temperature.detach()}
        tensors |= optimizer_state(self._temperature_optimizer, "temperature_optimizer.")
        return tensors | optimizer_state(self._optimizer, "actor_optimizer.")

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of :meth:`tensors`."""
        with torch.no_grad():
            self._log_temperature.copy_(tensors["log_temperature"])
        restore_optimizer(self._temperature_optimizer, tensors, "temperature_optimizer.")
        restore_optimizer(self._optimizer, tensors, "actor_optimizer.")


class Exploring:
    """An ``otpr_trainer.interaction.Actor`` that makes chunks (B, Ta, Da) of conditions (B, condition_size) and noise (B, *noise_shape)."""

    def __init__(self, sampler: ChunkSampler, noise_shape: tuple[int, ...], chunks: Callable[[Tensor, Tensor], Tensor]) -> None:
        """``chunks``: normalised ones."""
        self._sampler = sampler
        self._chunks = chunks
        self.spec = sampler.spec
        self.noise_shape = noise_shape

    @torch.no_grad()
    def decide(self, observations: NDArray[Any], noise: NDArray[Any], episodes: Integers) -> Array:
        """See Actor."""
        condition = self._sampler.condition(observations)
        return self._sampler.physical(self._chunks(condition, torch.as_tensor(noise, dtype=torch.float32)))


class SoftActorCritic(ReplayRounds):
    """Plays with its Gaussian's samples, and learns critics and actor from replay, by turns.

    Attributes:
        config: the algorithm's settings.
        actor: samples of the policy that it started from, which never changes.
        policy: what is evaluated and exported; its Gaussian learns and nothing else of it.
        critic: Q of executed chunks.
        entropy: what learns the Gaussian.
        demonstrations: rows of replay that are demonstrations; they are the first.
    """

    actor: ChunkSampler
    policy: ActorPolicy
    phases = ("critic", "actor")
    metric_names: tuple[str, ...] = (
        *("policy/loss", "policy/entropy", "policy/temperature", "policy/gradient"),
        *("critic/loss", "critic/gradient"),
    )

    def __init__(self, config: SacSettings, setup: Setup, *, candidates: int = 0) -> None:
        """``candidates``: chunks of the start policy that replay caches in each state."""
        super().__init__(config, setup, gamma=config.gamma, candidates=candidates)
        assert setup.start is not None
        self.demonstrations = len(self.replay)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setup.seed)
            self.policy = build_gaussian_policy(replace(setup.start.config, gaussian=self.gaussian_config()))
        self.policy.load_state_dict(setup.start.state_dict(), strict=False)  # all that both have
        self.policy.eval().requires_grad_(False).gaussian.requires_grad_(True)
        self.policy_config = self.policy.config
        self.chain = self.policy_config.own_chain or self.actor.reverse
        self.critic = self.make_critic(self.executed_length, setup.seed, config.target_rate)
        self.entropy = EntropyActor(
            self.policy.gaussian,
            learning_rate=config.actor_learning_rate,
            temperature=config.temperature,
            temperature_learning_rate=config.temperature_learning_rate,
            target_entropy=config.target_entropy * self.entropy_length * self.actor.spec.action.size,
        )

    @property
    def config(self) -> SacSettings:
        """The settings."""
        assert isinstance(self.settings, SacSettings)
        return self.settings

    # What a method says

    @abstractmethod
    def gaussian_config(self) -> GaussianConfig:
        """What the policy's Gaussian is built from."""

    @abstractmethod
    def propose(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """A fresh chunk in each state and log pi of what the Gaussian drew for it: (B, Ta, Da), (B,). states: rows of replay's, (B,)."""

    @abstractmethod
    def begin(self, condition: Tensor, noise: Tensor) -> Tensor:
        """Chunks (B, Ta, Da) to play before the actor acts. condition: (B, condition_size); noise: (B, draws, Ta, Da)."""

    @abstractmethod
    def explore(self, condition: Tensor, noise: Tensor) -> Tensor:
        """Chunks of the Gaussian's samples; shapes as in :meth:`begin`."""

    @property
    def draws(self) -> int:
        """Normal draws (Ta, Da) of one decision in training."""
        return 1

    @property
    def entropy_length(self) -> int:
        """Actions of a chunk whose entropy counts: those that are carried out, unless a subclass says otherwise."""
        return self.executed_length

    def actor_value(self, values: Tensor) -> Tensor:
        """What the actor climbs of an ensemble's values (E, B), (B,): the smallest (arXiv 1812.05905, sec. 5)."""
        return values.min(0).values

    # Acting

    def acting(self) -> Actor:
        """Exploring, once enough was played otherwise."""
        shape = (self.draws, *self.policy.gaussian.chunk_shape)
        return Exploring(self.actor, shape, self.explore if self.step >= self.config.start_steps else self.begin)

    def evaluated(self) -> dict[str, Actor]:
        """The Gaussian's mode, as ``otpr eval`` does."""
        return {"policy": AsEvaluated(TorchPolicy(self.policy, self.chain))}

    # Learning

    def batch(self) -> Transitions:
        """Demonstrations and own experience."""
        own = torch.arange(self.demonstrations, len(self.replay))
        rows = mixed_rows(self.demonstrations, own, self.config.batch_size, self.config.demo_share, self.generator)
        return self.replay.transitions.rows(rows)

    def critic_target(self, batch: Transitions) -> Tensor:
        """The target y = max(r + gamma^k min_i Q'_i(s', a'), G), (B,): a' fresh, i over two target critics, G the return that was seen."""
        with torch.no_grad():
            chunk, _ = self.propose(batch.next_state)
        condition = self.replay.condition[batch.next_state]
        values = self.critic.target_values(condition, self.executed(chunk)[:, None], self.generator)[:, 0]
        return batch.backup(values, self.config.observed_returns)

    def critic_update(self) -> dict[str, Tensor | float]:
        """One gradient step of the critics."""
        batch = self.batch()
        loss = self.critic.loss(self.replay.condition[batch.state], self.executed(batch.chunk), self.critic_target(batch))
        return {"critic/loss": loss, "critic/gradient": self.critic.step(loss)}

    def actor_objective(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Q of a fresh chunk in each state with its gradient, and log pi, (B,) each."""
        chunk, log_prob = self.propose(states)
        return self.actor_value(self.critic.chunk_values(self.replay.condition[states], self.executed(chunk))), log_prob

    def actor_update(self) -> dict[str, Tensor | float]:
        """One gradient step of the actor and of the temperature."""
        value, log_prob = self.actor_objective(self.batch().state)
        loss = self.entropy.loss(value, log_prob)
        found = {"policy/loss": loss, "policy/entropy": -log_prob.mean(), "policy/temperature": self.entropy.temperature}
        return {**found, "policy/gradient": self.entropy.step(loss, log_prob)}

    def learn(self, before: int, after: int) -> dict[str, Tensor | float]:
        """Critics and actor by turns, evenly, each as often as its rate says."""
        config, metrics = self.config, Metrics(*self.metric_names)
        critic_updates = due(config.critic_updates, before, after) + (config.warmup_updates if before == 0 else 0)
        for critics_turn in by_turns(critic_updates, due(config.actor_updates, before, after)):
            with self.timed("critic" if critics_turn else "actor"):
                metrics.add(self.critic_update() if critics_turn else self.actor_update())
        return metrics.means()

    # State

    def checkpoint(self) -> Checkpoint:
        """See Learner. Subclasses may add to it."""
        base = super().checkpoint()
        policy = {f"policy.{name}": tensor for name, tensor in self.policy.state_dict().items()}
        return Checkpoint(base.step, base.tensors | policy | self.entropy.tensors() | self.critic.tensors(), base.values)

    def restore(self, checkpoint: Checkpoint) -> None:
        """See Learner. Subclasses may add to it."""
        super().restore(checkpoint)
        try:
            self.policy.load_state_dict(select(checkpoint.tensors, "policy."))
            self.entropy.restore(checkpoint.tensors)
            self.critic.restore(checkpoint.tensors)
        except (KeyError, RuntimeError) as error:
            raise RunError(f"the checkpoint is of another network: {error}") from error

    # Parts

    def executed(self, chunk: Tensor) -> Tensor:
        """The part of chunks (..., Ta, Da) that is carried out, (..., L, Da)."""
        return chunk[..., : self.executed_length, :]

    def normal(self, *shape: int) -> Tensor:
        """Standard normal draws."""
        return torch.randn(shape, generator=self.generator)

    def make_critic(self, length: int, seed: int, target_rate: float | None) -> ChunkCritic:
        """Critics of chunks of this length. ``target_rate``: None for critics without targets."""
        config, policy = self.config, self.actor.policy.config
        size = length * policy.spec.action.size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            ensemble = EnsembleCritic(policy.condition_size, size, config.critic_width, config.critic_depth, config.critic_heads)
        return ChunkCritic(ensemble, pessimism=0.0, learning_rate=config.critic_learning_rate, target_rate=target_rate)


def by_turns(first: int, second: int) -> Iterator[bool]:
    """``first`` times True and ``second`` times False, as evenly among each other as can be."""
    total = first + second
    for turn in range(total):
        yield (turn + 1) * first // total > turn * first // total
