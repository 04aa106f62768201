# SPDX-License-Identifier: Apache-2.0
"""OTPR: a diffusion policy fine-tuned by optimal transport between states and action chunks, with -Q as the cost.

After Sun et al. 2025, "Score-Based Diffusion Policy Compatible with Reinforcement Learning via Optimal Transport" (arXiv 2502.12631).
Where this differs from the released code, and what was measured, is in docs/otpr.md. In the paper's symbols:

    cost            c(s, a) = -Q(s, a)
    compatibility   H(s, a) = (u(s) + v(a) - c(s, a))_+ / (2 epsilon),  the density of the plan against p(s) q(a)
    policy loss     E_{s ~ p, a ~ q} H(s, a) E_{k, eps} || eps - eps_theta(a_k, k, s) ||^2
    mask            an expert's keypoint (s_k, a_k) is transported to its own partner and to nothing else
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otpr_policy.errors import RunError, unknown
from otpr_trainer import transport
from otpr_trainer.acting import Acting, Choosing, never
from otpr_trainer.actor import Targets
from otpr_trainer.arms import Arms
from otpr_trainer.checkpoint import Checkpoint
from otpr_trainer.config import not_negative, positive, setting
from otpr_trainer.coupling import Coupling, Weights, row_standardized
from otpr_trainer.critic import ChunkCritic
from otpr_trainer.data.replay import Origin, Transitions
from otpr_trainer.finetune import Metrics, due
from otpr_trainer.finetune_critic import CriticFineTuner, CriticSettings
from otpr_trainer.implicit import ImplicitCritic, critic_config
from otpr_trainer.interaction import Actor, Played
from otpr_trainer.learner import Setup
from otpr_trainer.selection import CriticConfig

NAME = "otpr"
NEEDS_INIT = True
CHOOSES = True
CORRECTIONS = True
GUIDING_TEMPERATURE = 0.1  # the released code's
BACKUP_CANDIDATES = 2  # of those cached in the next state, over which a target averages; more cost time and hardly change the mean


class Pool(Enum):
    """Whose action chunks a state may be transported to."""

    OWN = "own"  # what was done there, and what the policy would do there
    NEAR = "near"  # of the states of a neighbourhood
    ALL = "all"  # of states from anywhere


class CriticKind(Enum):
    """How Q is learnt."""

    ENSEMBLE = "ensemble"  # targets from the policy's own chunks, and from returns that were seen
    IQL = "iql"  # as in the released code


class Choice(Enum):
    """How training episodes that are played by compatibility choose among the policy's own chunks."""

    BEST = "best"  # the chunk of largest value, and so of largest H
    DRAWN = "drawn"  # with probability proportional to H, as in the paper
    NONE = "none"  # no episode is: all are played by plain samples


@dataclass(frozen=True)
class Config(CriticSettings):
    """Defaults come from tuning runs and from the ablation in docs/results.md; :data:`VARIANTS` has the paper's setting."""

    critic: str = setting("ensemble", "how Q is learnt: ensemble, or iql as in the released code")
    critic_heads: int = setting(4, "critics in the ensemble")
    pessimism: float = setting(0.5, "standard deviations of the ensemble below its mean at which a chunk is valued")
    observed_returns: bool = setting(True, "ensemble: a return that was seen bounds a value from below; else values take long to spread")
    expectile: float = setting(0.8, "iql: of Q that V regresses to; 0.5 is the mean")
    cached_candidates: int = setting(4, "chunks of the policy that replay keeps for each state")
    refresh: float = setting(1.5, "states whose cached chunks are drawn anew, per environment step")
    actor_start: int = setting(4000, "environment steps from which the policy learns")
    pool: str = setting("own", "whose chunks a state may be transported to: own, near or all")
    weights: str = setting("semi_relaxed", "balanced, semi_relaxed, potentials, softmax, argmax or uniform")
    guidance: float = setting(
        0.0, "share alpha of the guiding score in the cost, 0 to 1: 0 is -Q alone, 1 is the keypoints' guidance alone"
    )
    support: float = setting(2.0, "chunks that the median state is transported to; the regularisation epsilon follows from it")
    mask: bool = setting(
        True, "keypoints go to their own chunk alone, apart from the transport problem; states of own successes may be in both"
    )
    keypoint_share: float = setting(0.5, "share of keypoints in a batch of the policy")
    own_keypoints: bool = setting(True, "own successes are keypoints too, beside the demonstrations")
    train_resampling: bool = setting(True, "draw chunks by H instead of weighting all of them")
    choice: str = setting("best", "of the chunks drawn for a state when acting in training: best, drawn by H as in the paper, or none")
    gate: bool = setting(True, "transport only while acting by compatibility is not measured to be worse than a plain sample")
    block_states: int = setting(48, "states of one transport problem")
    gain_sampling: int = setting(4, "states looked at for each that is transported, those with more to gain more often; 1 for any")
    block_chunks: int = setting(3, "chunks that each state brings into a pool of several states")
    draws: int = setting(16, "chunks drawn by H for each state of a transport problem")

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "critic_heads", "cached_candidates", "block_states", "gain_sampling", "draws")
        not_negative(self, "refresh", "pessimism")
        for name, kind in (("pool", Pool), ("weights", Weights), ("critic", CriticKind), ("choice", Choice)):
            if getattr(self, name) not in (valid := [member.value for member in kind]):
                raise RunError(unknown(name, getattr(self, name), valid))
        for name in ("keypoint_share", "guidance"):
            if not 0 <= getattr(self, name) <= 1:
                raise RunError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not 0 < self.expectile < 1:
            raise RunError(f"expectile must be in (0, 1), got {self.expectile}")
        if not self.support >= 1:
            raise RunError(f"support must be at least 1, got {self.support}")
        if self.pool == Pool.OWN.value and (Weights(self.weights).shares_chunks or self.guidance > 0):
            raise RunError(f"weights {self.weights!r} and guidance need chunks that states share: take pool near or all, not own")
        if self.pool != Pool.OWN.value and not 1 <= self.block_chunks <= 1 + self.cached_candidates:
            raise RunError(f"block_chunks must be in 1..{1 + self.cached_candidates}, one more than cached_candidates")
        if self.gate and self.choice == Choice.NONE.value:
            raise RunError("the gate compares plain episodes with those of a choice: without a choice take --no-gate")
        self._refuse_without_effect()

    def _refuse_without_effect(self) -> None:
        """A setting that was changed and would be ignored is a mistake."""
        ignored = {
            "critic iql": (self.critic == CriticKind.IQL.value, ("critic_heads", "pessimism", "observed_returns")),
            "critic ensemble": (self.critic == CriticKind.ENSEMBLE.value, ("expectile",)),
            "weights argmax and uniform": (self.weights in (Weights.ARGMAX.value, Weights.UNIFORM.value), ("support",)),
            "pool own": (self.pool == Pool.OWN.value, ("block_chunks",)),
        }
        for where, (holds, names) in ignored.items():
            changed = [name for name in names if holds and getattr(self, name) != getattr(Config, name)]
            if changed:
                raise RunError(f"{', '.join(changed)} would have no effect with {where}")


VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {
        "critic": "iql",
        "pool": "all",
        "weights": "potentials",
        "support": 14.0,
        "own_keypoints": False,
        "choice": "drawn",
        "gate": False,
        "gain_sampling": 1,
    }
}
"""Settings by name, for ``--variant``. ``paper`` is the method as the text describes it, see docs/otpr.md."""


class Learner(CriticFineTuner):
    """Rounds of play; then the critics, then the policy."""

    config: Config
    phases = ("critic", "refresh", "costs", "transport", "policy")

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup, candidates=config.cached_candidates)
        self.config = config
        self.pool = Pool(config.pool)
        sizes = CriticConfig(config.critic_width, config.critic_depth, config.critic_heads, config.pessimism)
        implicit = CriticKind(config.critic) is CriticKind.IQL
        self.critic_config = (critic_config(config) if implicit else sizes).to_json()
        self.implicit = ImplicitCritic(config, self.policy_config, config.expectile, setup.seed) if implicit else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setup.seed)
            ensemble = sizes.network(self.policy_config)
            chunk_size = self.policy_config.spec.chunk_length * self.policy_config.spec.action.size
            self.coupling = Coupling(Weights(config.weights), config.support, self.policy_config.condition_size, chunk_size)
        rates = {"learning_rate": config.critic_learning_rate, "target_rate": config.target_rate}
        self.critic = self.implicit.q if self.implicit else ChunkCritic(ensemble, pessimism=config.pessimism, **rates)
        self.learnt = self.implicit or self.critic
        if self.demonstrations < (wanted := config.batch_size if config.gate else self._keypoint_rows_per_batch()):
            print(
                f"otpr: only {self.demonstrations} keypoints in the demonstrations, not up to {wanted} for a batch: smaller batches",
                file=sys.stderr,
            )
        self.arms = Arms()

    # The critic

    def critic_loss(self, batch: Transitions) -> Tensor:
        """Cross entropy of Q(s, a) with y = max(r + gamma^k E_{a' ~ pi} min_i Q'_i(s', a'), G); G is the return seen after (s, a)."""
        drawn = torch.randperm(self.config.cached_candidates, generator=self.generator)[:BACKUP_CANDIDATES]
        candidates = self.executed(self.replay.candidates[batch.next_state[:, None], drawn])
        next_values = self.critic.target_values(self.replay.condition[batch.next_state], candidates, self.generator)
        y = batch.backup(next_values.mean(1), self.config.observed_returns)
        return self.critic.loss(self.replay.condition[batch.state], self.executed(batch.chunk), y)

    def critic_update(self, batch: Transitions) -> dict[str, Tensor | float]:
        """One gradient step. Returns metrics."""
        if self.implicit:
            metrics = self.implicit.update(batch, self.replay.condition, self.generator)
            return {"critic/loss": metrics["q/loss"] + metrics["v/loss"], "critic/gradient": metrics["q/gradient"]}
        loss = self.critic_loss(batch)
        return {"critic/loss": loss, "critic/gradient": self.critic.step(loss)}

    # The policy

    def cost(self, values: Tensor) -> Tensor:
        """C = -Q, at the ensemble's lower bound. values: (E, n, m)."""
        return -self.critic.lower_bound(values)

    def block(self) -> Targets:
        """One transport problem: some states, the chunks of the pool, and what each state is to imitate of them."""
        with self.timed("costs"):
            rows = self.replay.transitions.rows(self._block_rows())
            condition = self.replay.condition[rows.state]
            chunks, cost, shared = self._pool(rows, condition)
        draws = self.config.draws
        with self.timed("transport"):
            h = self.compatibility(cost, condition, shared)
            if self.config.train_resampling:
                columns, dead = transport.resample(h, draws, self.generator)
                weight = (~dead).float()[:, None].expand(-1, draws)
            else:
                columns = self.integers(h.shape[1], h.shape[0] * draws).reshape(-1, draws)
                weight = h.gather(1, columns)
        x_0 = chunks[torch.arange(len(chunks))[:, None], columns]
        return Targets(condition.repeat_interleave(draws, 0), x_0.flatten(0, 1), weight.flatten())

    def _pool(self, rows: Transitions, condition: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Chunks (n, m, Ta, Da) that each state may choose from, their cost (n, m), and, where all states share them, flat (m, Ta * Da)."""
        known = torch.cat([rows.chunk[:, None], self.replay.candidates[rows.state]], dim=1)  # (n, 1 + cached, Ta, Da)
        if self.pool is Pool.OWN:
            chunks = torch.cat([known, self.actor.draw(condition, self.config.acting_candidates)], dim=1)
            return chunks, self.cost(self.critic.values(condition, self.executed(chunks))), None
        shared = known[:, : self.config.block_chunks].flatten(0, 1)
        cost = self.cost(self.critic.cross_values(condition, self.executed(shared)))
        flat = shared.flatten(1)
        return shared.expand(len(condition), *shared.shape), self.guided(cost, condition, flat), flat

    def keypoints(self, count: int) -> Targets:
        """Keypoint states with their own chunks, what the mask leaves of their rows and columns; see :meth:`_keypoint_rows`."""
        rows = self.replay.transitions.rows(self._keypoint_rows(count))
        return Targets(self.replay.condition[rows.state], rows.chunk, torch.ones(count))

    def policy_loss(self, targets: Targets) -> Tensor:
        """E H(s, a) || eps - eps_theta(a_k, k, s) ||^2; H is in the draw or in the weight (docs/otpr.md)."""
        return self.actor.cloning_loss(targets)

    def compatibility(self, cost: Tensor, condition: Tensor | None = None, chunks: Tensor | None = None) -> Tensor:
        """H (n, m) of a cost (n, m) between conditions (n, To * Do) and flat chunks (m, Ta * Da), see :class:`Coupling`."""
        return self.coupling.compatibility(cost, condition, chunks)

    def guided(self, cost: Tensor, condition: Tensor, chunks: Tensor) -> Tensor:
        """(1 - alpha) c + alpha g, both in units of their spread; g is small where state and chunk stand alike to the keypoints."""
        alpha = self.config.guidance
        if alpha == 0.0:
            return cost
        keys = self.keypoints(self.config.block_states)
        g = transport.guiding_score(condition, chunks, keys.condition, keys.x_0.flatten(1), GUIDING_TEMPERATURE)
        return (1.0 - alpha) * row_standardized(cost) + alpha * row_standardized(g)

    # Rounds

    @property
    def selecting(self) -> Choosing:
        """In which training episodes a chunk is chosen."""
        return never if self.config.choice == Choice.NONE.value else super().selecting

    def acting(self) -> Actor:
        """Half the episodes by compatibility, in the way of ``choice``; evaluations always take the best."""
        weighing = self.coupling.acting_weights if self.config.choice == Choice.DRAWN.value else None
        return Acting(self.actor, self.critic, self.config.acting_candidates, self.selecting, weighing)

    def played(self, episode: Played) -> None:
        """Keeps which way of acting succeeds."""
        self.arms.add(bool(self.selecting(np.array([episode.episode]))[0]), episode.success)

    def learn(self, before: int, after: int) -> dict[str, Tensor | float]:
        """Critics, then policy; each as often as its rate says."""
        config = self.config
        metrics = Metrics("critic/loss", "critic/gradient", "policy/loss", "policy/gradient")
        with self.timed("critic"):
            for _ in range(config.critic_updates_due(before, after)):
                metrics.add(self.critic_update(self.critic_batch()))
        with self.timed("refresh"):
            states = self.integers(self.replay.states, due(config.refresh, before, after))
            self.replay.refresh(states, self.actor.draw(self.replay.condition[states], config.cached_candidates))
        updates = due(config.actor_updates, before, after) if after >= config.actor_start else 0
        transporting = not config.gate or self.arms.selecting_is_not_worse
        for targets in self._policy_batches(updates, transporting):
            with self.timed("policy"):
                loss = self.policy_loss(targets)
                metrics.add({"policy/loss": loss, "policy/gradient": self.actor.step(loss)})
        return metrics.means() | self.arms.metrics() | {"transport/open": float(transporting)} | self.coupling.health

    def _policy_batches(self, count: int, transporting: bool) -> Iterator[Targets]:
        """Keypoints, and the rest of each batch from transport problems, shuffled together."""
        size = self.config.batch_size
        keypoints = size if not transporting else self._keypoint_rows_per_batch()
        transported = size - keypoints
        keypoints = min(keypoints, self.demonstrations + len(self._rows_of(Origin.CORRECTION)))
        pending: list[Targets] = []
        for _ in range(count):
            batch = [self.keypoints(keypoints)] if keypoints else []
            if transported:
                if not pending:
                    block = self.block()
                    order = torch.randperm(len(block.x_0), generator=self.generator)
                    pending = [block.rows(part) for part in order.split(transported)]
                batch.append(pending.pop())
            yield Targets.joined(batch)

    def checkpoint(self) -> Checkpoint:
        """See Learner."""
        base = super().checkpoint()
        values = base.values | {"arms": self.arms.to_json(), "coupling": self.coupling.values()}
        return Checkpoint(base.step, base.tensors | self.coupling.tensors(), values)

    def restore(self, checkpoint: Checkpoint) -> None:
        """See Learner."""
        super().restore(checkpoint)
        try:
            self.coupling.restore(checkpoint.tensors, checkpoint.values["coupling"])
            self.arms = Arms(checkpoint.values["arms"])
        except (KeyError, RuntimeError) as error:
            raise RunError(f"the checkpoint is of another algorithm: {error}") from error

    # Drawing rows

    def _keypoint_rows_per_batch(self) -> int:
        """While transporting. Without the mask keypoints are rows of the transport problem instead."""
        return int(self.config.batch_size * self.config.keypoint_share) if self.config.mask else 0

    def _some_of(self, rows: Tensor, count: int) -> Tensor:
        """``count`` of the given rows, or of the demonstrations where there are none; with replacement."""
        return rows[self.integers(len(rows), count)] if len(rows) else self.integers(self.demonstrations, count)

    def _rows_of(self, origin: Origin) -> Tensor:
        return (self.replay.transitions.origin == origin).nonzero()[:, 0]

    def _keypoint_rows(self, count: int) -> Tensor:
        """Experts' and own successes, half and half; of the experts' half are an operator's corrections, if there are any.

        There are few corrections, and they are where the policy fails: drawn like others they would hardly be seen.
        """
        own = count // 2 if self.config.own_keypoints else 0
        corrections = self._rows_of(Origin.CORRECTION)
        corrected = (count - own) // 2 if len(corrections) else 0
        demonstrated = self.integers(self.demonstrations, count - own - corrected)
        return torch.cat([demonstrated, self._some_of(self._rows_of(Origin.SUCCESS), own), self._some_of(corrections, corrected)])

    def _block_rows(self) -> Tensor:
        """States with something to gain, from all that was played. For the pool NEAR, the neighbours of one of them.

        Without the mask keypoints are states like others: their share of the batch goes into the transport problem.
        """
        if self.config.mask:
            return self._rows_to_transport(self.config.block_states)
        keypoints = int(self.config.block_states * self.config.keypoint_share)
        return torch.cat([self._keypoint_rows(keypoints), self._rows_to_transport(self.config.block_states - keypoints)])

    def _rows_to_transport(self, count: int) -> Tensor:
        origin = self.replay.transitions.origin
        played = ((origin != Origin.DEMONSTRATION) & (origin != Origin.CORRECTION)).nonzero()[:, 0]
        if self.pool is not Pool.NEAR:
            return self._with_gain(self._some_of(played, self.config.gain_sampling * count), count)
        anchor = self._with_gain(self._some_of(played, self.config.gain_sampling), 1)
        state = self.replay.condition[self.replay.transitions.state]
        distance = (state - state[anchor]).square().sum(1)
        return distance.topk(min(count, len(distance)), largest=False).indices

    def _with_gain(self, rows: Tensor, count: int) -> Tensor:
        """``count`` of the rows, with probability proportional to what the critics agree can be gained there by choosing.

        Most states of a failed episode lie behind its mistake, where all chunks are alike; what is to be learnt is in the few before.
        """
        if len(rows) == count:
            return rows
        states = self.replay.transitions.state[rows]
        values = self.critic.values(self.replay.condition[states], self.executed(self.replay.candidates[states]))
        advantage = self.critic.lower_bound(values - values.mean(2, keepdim=True))
        gain = advantage.amax(1).clamp(min=0.0) + 1e-6
        return rows[torch.multinomial(gain, count, replacement=True, generator=self.generator)]
