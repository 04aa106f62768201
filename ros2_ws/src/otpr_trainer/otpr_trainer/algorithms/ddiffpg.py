# SPDX-License-Identifier: Apache-2.0
"""DDiffPG: chunks climb the Q of the mode that they belong to, and the policy clones what they have become, all modes alike.

Li et al. 2024, "Learning Multimodal Behaviors from Scratch with Diffusion Policy Gradient" (arXiv 2406.00681). Episodes that solve the
task in the same way are a mode i, found by clustering (modes.py). One critic per mode, and Q_0 of exploration, which all episodes teach:

    Q_0:     y = c n(s, s') + gamma^k min Q_0'(s', a')                              novelty n alone (novelty.py)
    Q_i:     y = r + c n(s, s') + gamma^k min Q_i'(s', a'),                         (s, a, r, s') of mode i
    target:  a_i <- clip(a_i + step along dQ_i(s, a_i)/da, -1, 1), several times, and kept for each i
    policy:  L(theta) = mean over i of E || eps - eps_theta(a_i,k, k, s) ||^2,      as many rows of each mode

A policy gradient that followed one Q would give up all modes but one; cloning as much of each keeps them.
"""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otpr_policy.errors import RunError
from otpr_trainer.acting import Acting
from otpr_trainer.actor import Targets
from otpr_trainer.checkpoint import Checkpoint, select
from otpr_trainer.config import not_negative, positive, setting
from otpr_trainer.critic import ChunkCritic
from otpr_trainer.data.replay import Origin, Transitions, mixed_rows
from otpr_trainer.finetune import FineTuner, Metrics, due
from otpr_trainer.finetune_critic import ValueSettings
from otpr_trainer.interaction import Actor
from otpr_trainer.learner import Setup
from otpr_trainer.modes import modes_of, path
from otpr_trainer.novelty import Novelty
from otpr_trainer.selection import CriticConfig

NAME = "ddiffpg"
NEEDS_INIT = True
PAPER = {"observed_returns": False, "demo_share": 0.0, "action_steps": 20, "action_learning_rate": 0.03, "max_modes": 10, "memory": 2000}
VARIANTS: dict[str, dict[str, Any]] = {"paper": PAPER}
EXPLORATION = 0  # number of the group of all episodes; modes are counted from 1
HEADS, PESSIMISM = 2, 1.0  # two critics and one standard deviation are their minimum, as in the paper


@dataclass(frozen=True)
class Config(ValueSettings):
    """Ascent as for DIPO here; rates and sizes as for the methods that it is compared with."""

    target_rate: float = setting(0.005, "share by which target critics follow per gradient step")
    observed_returns: bool = setting(True, "a return that was seen bounds a mode's values from below, as for otpr; the paper goes without")
    actor_start: int = setting(4000, "environment steps from which the policy learns, as for otpr: a young critic points anywhere")
    action_steps: int = setting(10, "gradient steps that a chunk climbs each time that it is cloned; 0 is cloning")
    action_learning_rate: float = setting(1e-4, "Adam's, of chunks in units of half the action's range; as for dipo")
    novelty: float = setting(0.01, "weight of novelty in rewards, c; the released code's")
    cluster_every: int = setting(2000, "environment steps between searches for modes")
    max_modes: int = setting(
        4, "modes at most, each of which costs a critic; more are taken for one, as in the released code, which has 10"
    )
    memory: int = setting(100, "newest successes, demonstrations among them, that modes are made of; others join the nearest")

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "cluster_every", "max_modes", "memory")
        not_negative(self, "actor_start", "action_steps", "novelty")
        if not (0 < self.target_rate <= 1 and 0 < self.action_learning_rate < float("inf")):
            raise RunError(
                f"target_rate must be in (0, 1], action_learning_rate above 0; got {self.target_rate}, {self.action_learning_rate}"
            )


class Learner(FineTuner):
    """Modes, their critics and exploration's, then ascent and cloning in equal parts.

    Attributes:
        critics: of exploration, then of each mode.
        mode: of each row of replay, (N,); EXPLORATION of one whose episode is newer than the last search for modes.
        improved: a chunk for each group and row, (1 + modes, N, Ta, Da), the one that was done when it is new.
        demonstrations: rows of replay that are demonstrations; they are the first.
    """

    phases = ("modes", "critic", "policy")

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup, gamma=config.gamma)
        self.config = config
        self.demonstrations = len(self.replay)
        self.critics = [self._new_critic()]
        self.novelty = Novelty(self.policy_config.condition_size, config.critic_width, setup.seed)
        self.mode = torch.zeros(0, dtype=torch.int64)
        self.improved = self.replay.transitions.chunk[None, :0].clone()

    def acting(self) -> Actor:
        """One plain sample."""
        return Acting(self.actor)

    def evaluated(self) -> dict[str, Actor]:
        """One plain sample."""
        return {"policy": Acting(self.actor)}

    def sizes(self) -> dict[str, float]:
        """Of replay, and how many modes there are."""
        return {**super().sizes(), "modes/count": len(self.critics) - 1}

    # Modes

    def take_in(self) -> None:
        """Rows that are new in replay: of no mode yet, and each group begins with what was done."""
        new = self.replay.transitions.chunk[len(self.mode) :]
        self.mode = torch.cat([self.mode, torch.full((len(new),), EXPLORATION)])
        self.improved = torch.cat([self.improved, new.expand(len(self.improved), *new.shape)], 1)

    def find_modes(self) -> None:
        """Clusters all episodes anew. A mode inherits critic and chunks of the old one that most of its successes were in."""
        transitions = self.replay.transitions
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + (transitions.state.diff() != 1).nonzero()[:, 0]])
        parts = self.replay.condition[transitions.state].double().tensor_split(starts[1:])
        solved = transitions.origin[starts] != Origin.FAILURE
        paths = np.stack([path(part.numpy()) for part in parts])
        label = 1 + torch.as_tensor(modes_of(paths, solved.numpy(), most=self.config.max_modes, memory=self.config.memory))
        self._inherit(label[solved], self.mode[starts][solved])
        self.mode = label.repeat_interleave(torch.tensor([len(part) for part in parts]))

    def _inherit(self, label: Tensor, before: Tensor) -> None:
        """``label`` and ``before``: new and old mode of each success, (S,). What was in no mode yet has no say."""
        parents, critics = [EXPLORATION], [self.critics[EXPLORATION]]
        for mode in range(1, int(label.max()) + 1):
            known = before[(label == mode) & (before != EXPLORATION)]
            parent = int(known.mode().values) if len(known) else EXPLORATION
            critics.append(copy.deepcopy(self.critics[parent]) if parent in parents else self.critics[parent])
            parents.append(parent)
        self.critics, self.improved = critics, self.improved[parents]

    def rows(self, group: int) -> Tensor:
        """A group's share of a batch, equal for all: its demonstrations and its own play, (B // groups,)."""
        members = torch.arange(len(self.mode)) if group == EXPLORATION else (self.mode == group).nonzero()[:, 0]
        size, first = max(1, self.config.batch_size // len(self.critics)), int((members < self.demonstrations).sum())
        if first == 0:  # a mode of one's own
            return members[torch.randint(len(members), (size,), generator=self.generator)]
        return members[mixed_rows(first, torch.arange(first, len(members)), size, self.config.demo_share, self.generator)]

    # Critics

    def critic_target(self, group: int, batch: Transitions) -> Tensor:
        """What Q of the group is led to, (B,), at most 1, which is the most that a critic can say."""
        here, ahead = self.replay.condition[batch.state], self.replay.condition[batch.next_state]
        chunks = self.actor.draw(ahead, 1)[:, :, : self.executed_length]
        value = self.critics[group].target_values(ahead, chunks, self.generator)[:, 0]
        task = batch.discount * value if group == EXPLORATION else batch.backup(value, self.config.observed_returns)
        return (task + self.config.novelty * self.novelty.reward(here, ahead)).clamp(max=1.0)

    def critic_update(self) -> dict[str, Tensor | float]:
        """One gradient step of every critic and of novelty, means over the groups."""
        metrics, seen = Metrics("critic/loss", "critic/gradient"), []
        for group, critic in enumerate(self.critics):
            batch = self.replay.transitions.rows(self.rows(group))
            condition = self.replay.condition[batch.state]
            loss = critic.loss(condition, batch.chunk[:, : self.executed_length], self.critic_target(group, batch))
            metrics.add({"critic/loss": loss, "critic/gradient": critic.step(loss)})
            seen += [condition, self.replay.condition[batch.next_state]]
        return {**metrics.means(), "novelty/loss": self.novelty.step(torch.cat(seen))}

    # Policy

    def improve(self, group: int, rows: Tensor) -> None:
        """Lets the own chunks among the rows climb the group's Q. Demonstrations stay, as for dipo: few, they would climb away."""
        own = rows[rows >= self.demonstrations].unique()
        if not len(own):
            return
        condition, chunk = self.replay.condition[self.replay.transitions.state[own]], self.improved[group, own]
        action = chunk[:, : self.executed_length]
        climbed = self.critics[group].ascended(condition, action, self.config.action_steps, self.config.action_learning_rate)
        self.improved[group, own] = torch.cat([climbed, chunk[:, self.executed_length :]], 1)

    def targets(self) -> Targets:
        """A batch of all groups, improved once more."""
        parts = []
        for group in range(len(self.critics)):
            rows = self.rows(group)
            self.improve(group, rows)
            condition = self.replay.condition[self.replay.transitions.state[rows]]
            parts.append(Targets(condition, self.improved[group, rows], torch.ones(len(rows))))
        return Targets.joined(parts)

    def learn(self, before: int, after: int) -> dict[str, Tensor | float]:
        """Modes where they are due, then critics, then the policy; each as often as its rate says."""
        config, metrics = self.config, Metrics("critic/loss", "critic/gradient", "novelty/loss", "policy/loss", "policy/gradient")
        self.take_in()
        with self.timed("modes"):
            if before == 0 or after // config.cluster_every > before // config.cluster_every:
                self.find_modes()
        with self.timed("critic"):
            for _ in range(config.critic_updates_due(before, after)):
                metrics.add(self.critic_update())
        with self.timed("policy"):
            for _ in range(due(config.actor_updates, before, after) if after >= config.actor_start else 0):
                loss = self.actor.cloning_loss(self.targets())
                metrics.add({"policy/loss": loss, "policy/gradient": self.actor.step(loss)})
        return metrics.means()

    # State

    def checkpoint(self) -> Checkpoint:
        """See Learner."""
        base = super().checkpoint()
        critics = {f"group.{group}.{name}": one for group, critic in enumerate(self.critics) for name, one in critic.tensors().items()}
        tensors = {"mode": self.mode, "improved": self.improved}
        return Checkpoint(base.step, {**base.tensors, **critics, **self.novelty.tensors(), **tensors}, base.values)

    def restore(self, checkpoint: Checkpoint) -> None:
        """See Learner."""
        super().restore(checkpoint)
        try:
            self.mode, self.improved = (checkpoint.tensors[name].clone() for name in ("mode", "improved"))
            self.critics = [self._new_critic() for _ in self.improved]
            for group, critic in enumerate(self.critics):
                critic.restore(select(checkpoint.tensors, f"group.{group}."))
            self.novelty.restore(checkpoint.tensors)
        except (KeyError, RuntimeError) as error:
            raise RunError(f"the checkpoint is of another network or algorithm: {error}") from error

    def _new_critic(self) -> ChunkCritic:
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            ensemble = CriticConfig(config.critic_width, config.critic_depth, HEADS, PESSIMISM).network(self.policy_config)
        return ChunkCritic(ensemble, pessimism=PESSIMISM, learning_rate=config.critic_learning_rate, target_rate=config.target_rate)
