# SPDX-License-Identifier: Apache-2.0
"""Augmented random search: perturb the policy's parameters, play, and go where returns were higher. No gradient, no critic, no replay.

Mania et al. 2018, "Simple random search provides a competitive approach to reinforcement learning" (arXiv 1803.07055, algorithm 2);
from a trained policy, as in "Direct random search for fine tuning of deep reinforcement learning policies" (arXiv 2109.05604):

    theta <- theta + alpha / (b sigma_R) sum_{k=1..b} (R(theta + nu delta_k) - R(theta - nu delta_k)) delta_k

over the b of N directions whose better side returned most; sigma_R is the standard deviation of these 2 b returns. States are already
normalised by the policy (the paper's V2). Every perturbed policy of a round plays the same scenes with the same noise, so that what is
compared is parameters and not luck.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from otpr_policy.errors import RunError, unknown
from otpr_trainer.acting import AsEvaluated
from otpr_trainer.checkpoint import Checkpoint, select
from otpr_trainer.config import positive, setting
from otpr_trainer.diffusion import reverse_chain
from otpr_trainer.finetune import PlaySettings, Rounds
from otpr_trainer.interaction import Actor, Played
from otpr_trainer.learner import Setup
from otpr_trainer.networks.mlp import DiffusionMLP
from otpr_trainer.policy import DiffusionPolicy, TorchPolicy

NAME = "ars"
NEEDS_INIT = True

SEARCHED = ("all", "last")
"""Parameters to search: all of the denoising network, or its last layer, a linear map as in the paper."""


@dataclass(frozen=True)
class Config(PlaySettings):
    """Not tuned: the budget that others need allows about ten steps."""

    envs: int = setting(5, "environments, which is scenes that each perturbed policy plays")
    directions: int = setting(4, "random directions per step, N; a step plays 2 N envs episodes")
    best: int = setting(4, "directions that a step goes along, b: those whose better side returned most")
    noise: float = setting(0.02, "how far policies are perturbed, nu: standard deviation of each parameter, which are about 0.1")
    step_size: float = setting(0.02, "alpha; as large as the perturbation, since steps are few")
    parameters: str = setting("last", "what is searched: last (layer of the denoising network) or all")
    gamma: float = setting(0.99, "discount of success per environment step, so that faster is better; 1 counts successes alone")
    sampling_steps: int = setting(5, "denoising steps of DDIM with eta 1 when acting, as in the exported policy")

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "directions", "best", "sampling_steps")
        if self.best > self.directions:
            raise RunError(f"best must be in 1..{self.directions}, the directions, got {self.best}")
        for name in ("noise", "step_size"):
            if not 0 < getattr(self, name) < float("inf"):
                raise RunError(f"{name} must be a number above 0, got {getattr(self, name)}")
        if not 0 < self.gamma <= 1:
            raise RunError(f"gamma must be in (0, 1], got {self.gamma}")
        if self.parameters not in SEARCHED:
            raise RunError(unknown("parameters", self.parameters, SEARCHED))


def search_step(directions: Tensor, plus: Tensor, minus: Tensor, *, step_size: float, best: int) -> Tensor:
    """What is added to the parameters, (P,); nothing where all returns are equal.

    directions: (N, P); plus, minus: mean returns of the two policies of each, (N,).
    """
    order = torch.maximum(plus, minus).argsort(descending=True, stable=True)[:best]
    spread = torch.cat([plus[order], minus[order]]).std(correction=0)
    if not spread > 0:
        return torch.zeros_like(directions[0])
    return step_size / (len(order) * spread) * ((plus - minus)[order] @ directions[order])


class Learner(Rounds):
    """A round is one step: N directions, two policies each, all on the same scenes."""

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        assert setup.start is not None
        self.config = config
        self.policy = copy.deepcopy(setup.start).eval().requires_grad_(False)
        self._perturbed = copy.deepcopy(self.policy)
        self.chain = reverse_chain(self.policy.schedule, "ddim", min(config.sampling_steps, self.policy.schedule.steps), eta=1.0)
        self._pairs: list[tuple[Tensor, float, float]] = []  # of this round: direction, return of its plus side, of its minus side

    def acting(self) -> Actor:
        """As ``otpr eval`` does with the same sampler."""
        return AsEvaluated(TorchPolicy(self.policy, self.chain))

    def evaluated(self) -> dict[str, Actor]:
        """The unperturbed policy."""
        return {"policy": self.acting()}

    @property
    def theta(self) -> Tensor:
        """The parameters that are searched, (P,)."""
        return parameters_to_vector(self._searched(self.policy))

    def play_episodes(self, numbers: range) -> list[Played]:
        """Every perturbed policy on every scene. An episode that one of a pair has lost with its worker counts for neither."""
        theta, self._pairs, found = self.theta, [], []
        for direction in torch.randn((self.config.directions, len(theta)), generator=self.generator):
            sides = []
            for sign in (1.0, -1.0):
                vector_to_parameters(theta + sign * self.config.noise * direction, self._searched(self._perturbed))
                sides.append(self.played_by(AsEvaluated(TorchPolicy(self._perturbed, self.chain)), numbers))
            found += [episode for side in sides for episode in side]
            plus, minus = ({episode.episode: self._return(episode) for episode in side} for side in sides)
            if both := plus.keys() & minus.keys():
                self._pairs.append((direction, _mean(plus, both), _mean(minus, both)))
        return found

    def learn(self, before: int, after: int) -> dict[str, Tensor | float]:
        """One step along what this round has found."""
        if not self._pairs:
            return {"search/return": 0.0, "search/spread": 0.0, "search/step": 0.0}
        directions, plus, minus = (torch.stack([torch.as_tensor(value) for value in values]) for values in zip(*self._pairs, strict=True))
        step = search_step(directions, plus, minus, step_size=self.config.step_size, best=self.config.best)
        vector_to_parameters(self.theta + step, self._searched(self.policy))
        returns = torch.cat([plus, minus])
        return {"search/return": returns.mean(), "search/spread": returns.std(correction=0), "search/step": step.norm()}

    def keep(self, episode: Played) -> None:
        """Nothing: returns are all that is learnt from."""

    def checkpoint(self) -> Checkpoint:
        """See Learner."""
        base = super().checkpoint()
        policy = {f"policy.{name}": tensor for name, tensor in self.policy.state_dict().items()}
        return Checkpoint(base.step, base.tensors | policy, base.values)

    def restore(self, checkpoint: Checkpoint) -> None:
        """See Learner."""
        super().restore(checkpoint)
        try:
            self.policy.load_state_dict(select(checkpoint.tensors, "policy."))
        except RuntimeError as error:
            raise RunError(f"the checkpoint is of another network: {error}") from error

    def _searched(self, policy: DiffusionPolicy) -> list[nn.Parameter]:
        network: DiffusionMLP = policy.network
        return list((network if self.config.parameters == "all" else network.trunk[-1]).parameters())

    def _return(self, episode: Played) -> float:
        reward = episode.trajectory.reward
        return float(np.sum(self.config.gamma ** np.arange(len(reward)) * reward))


def _mean(returns: Mapping[int, float], episodes: set[int]) -> float:
    return sum(returns[episode] for episode in sorted(episodes)) / len(episodes)
