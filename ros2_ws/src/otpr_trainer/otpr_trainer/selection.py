# SPDX-License-Identifier: Apache-2.0
"""Acting greedily by compatibility: run several chains for one observation and act with the chunk that the critic values most.

Under the plan of L2-regularised transport with cost -Q the compatibility of a state and a chunk is (Seguy et al. 2018, arXiv
1711.02283, for its dual)

    H(s, a) = max(u(s) + v(a) + Q(s, a), 0) / (2 epsilon).

Among candidates of one state u is one number. v enforces the marginal of actions over all states, which says nothing of draws that a
policy made for one state: that side is relaxed here, so v is a constant. H then grows with Q wherever it is positive, and the argmax
of Q is an argmax of H, so the critic alone decides and no potential travels with the policy. With a v that differs between candidates
the two choices can differ.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from otpr_policy.errors import RunError
from otpr_trainer.diffusion import Chain
from otpr_trainer.networks.critic import EnsembleCritic
from otpr_trainer.policy import ChainPolicy, PolicyConfig, TorchPolicy


@dataclass(frozen=True)
class CriticConfig:
    """What a critic must be built from before its weights can be loaded, and how its heads are read."""

    width: int
    depth: int
    heads: int
    pessimism: float  # in standard deviations over the heads, see pessimistic_value

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads) < 1 or not (math.isfinite(self.pessimism) and self.pessimism >= 0.0):
            raise RunError(f"a critic's width, depth and heads must be at least 1 and its pessimism at least 0, got {self}")

    def network(self, policy: PolicyConfig) -> EnsembleCritic:
        """The critic of a policy's conditions and chunks, with random weights."""
        spec = policy.spec
        return EnsembleCritic(policy.condition_size, spec.executed_length * spec.action.size, self.width, self.depth, self.heads)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a run's config.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> "CriticConfig":
        """Parses :meth:`to_json`'s form. Raises RunError naming what is wrong."""
        try:
            return cls(int(data["width"]), int(data["depth"]), int(data["heads"]), float(data["pessimism"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"the run's critic description is not readable: {error}") from error


def pessimistic_value(q: Tensor, pessimism: float) -> Tensor:
    """An ensemble's value: mean - ``pessimism`` * population standard deviation over its heads. q: (E, ...), to (...)."""
    mean = q.mean(dim=0)
    return mean - pessimism * q.std(dim=0, correction=0) if pessimism > 0.0 else mean


class SelectingPolicy(TorchPolicy):
    """A policy that runs S candidate chains for each observation and acts with the one that its critic values most; of equals, the first.

    With S = 1 it is :class:`TorchPolicy`. The first candidate's noise is the first of what one inference draws, so it is the noise that
    the plain policy would draw there.
    """

    def __init__(
        self,
        policy: ChainPolicy,
        critic: EnsembleCritic,
        reverse: Chain,
        candidates: int,
        pessimism: float = 0.0,
        committed_prefix: bool = False,
    ) -> None:
        """``candidates``: S. Raises RunError when it is below 1."""
        super().__init__(policy, reverse, committed_prefix)
        self.candidates = check_candidates(candidates)
        self.critic = critic.eval()
        self.pessimism = pessimism

    def values(self, observations: Tensor, chunks: Tensor) -> Tensor:
        """The critic's value of each candidate, (B, S). observations: (B, To, Do); chunks: (B * S, Ta, Da), normalised."""
        condition = self.policy.condition(observations).repeat_interleave(self.candidates, dim=0)
        executed = chunks[:, : self.spec.executed_length]  # what is not carried out has no value
        return pessimistic_value(self.critic(condition, executed).sigmoid(), self.pessimism).reshape(-1, self.candidates)

    def choose(self, observations: Tensor, chunks: Tensor) -> Tensor:
        """The most valued chunk of each observation, (B, Ta, Da). observations: (B, To, Do); chunks: (B * S, Ta, Da), normalised."""
        best = self.values(observations, chunks).argmax(dim=1)  # the first of equals, as torch promises
        return chunks.reshape(len(best), self.candidates, *chunks.shape[1:])[torch.arange(len(best)), best]


def check_candidates(candidates: int) -> int:
    """The number itself. Raises RunError when it is below 1."""
    if candidates < 1:
        raise RunError(f"{candidates} candidates are none to choose from; give 1 (one chain) or more")
    return candidates
