# SPDX-License-Identifier: Apache-2.0
"""From a block of costs to compatibilities H, with the regularisation led to a wanted number of chunks per state."""

from enum import Enum
from math import exp, log
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from otpr_policy.errors import TransportError
from otpr_trainer import transport
from otpr_trainer.checkpoint import optimizer_state, restore_optimizer, select

FIRST_EPSILON = 0.1
EPSILON_RANGE = (1e-4, 1e2)  # of a standardised cost
LEAD = 0.2  # of the way to the wanted support per block, on a logarithmic scale: the next blocks differ, and noise must not steer
BLOCKS = "transport/blocks"  # solved so far: while it stands still, what is told of a block is an old one's
USED = 1e-3  # share of a row's largest H from which a chunk counts as used; dense weights are never 0
FIT_STEPS = 20  # of the potentials per block: they go on from the last, so they follow the critic rather than fit one block


class Weights(Enum):
    """How a row of costs becomes the weights H of its chunks."""

    BALANCED = "balanced"  # optimal transport: each chunk is used as much as any other
    SEMI_RELAXED = "semi_relaxed"  # without that constraint: a bad chunk may be used by no state
    POTENTIALS = "potentials"  # balanced, by learned potentials as in the paper's code
    SOFTMAX = "softmax"
    ARGMAX = "argmax"
    UNIFORM = "uniform"

    @property
    def shares_chunks(self) -> bool:
        """Whether it couples states through the chunks that they share, so that a pool of own chunks makes no sense."""
        return self in (Weights.BALANCED, Weights.POTENTIALS)


class Coupling:
    """Weights with what they remember from block to block: epsilon, and networks where they are learned.

    Attributes:
        epsilon: regularisation, of a standardised cost.
        health: of the newest block, as metrics, with the number of blocks so far; all 0 before the first.
    """

    def __init__(self, weights: Weights, support: float, state_size: int, chunk_size: int) -> None:
        """``support``: chunks that the median state is to use. The sizes are those of flat states and chunks."""
        self.weights = weights
        self.epsilon = FIRST_EPSILON
        self.health = dict.fromkeys(health(torch.ones(1, 1), self.epsilon), 0.0) | {BLOCKS: 0.0}
        self._spread = 0.0  # of the newest block's costs within rows
        self._support = support
        self._potentials = transport.Potentials(state_size, chunk_size) if weights is Weights.POTENTIALS else None
        self._optimizer = None if self._potentials is None else torch.optim.Adam(self._potentials.parameters(), 1e-3)

    def compatibility(self, cost: Tensor, states: Tensor | None = None, chunks: Tensor | None = None) -> Tensor:
        """H (n, m) of a cost (n, m). states: (n, Ds) and chunks: (m, Da), flat, for learned potentials. No gradient flows through.

        Raises TransportError when no epsilon near the present one has a plan.
        """
        cost = cost.detach()
        h = self._plan(cost, states, chunks).to(cost.dtype)
        self.health = health(h, self.epsilon) | {BLOCKS: self.health[BLOCKS] + 1.0}
        self._spread = float(_centred(cost).std(correction=0))
        if self.weights not in (Weights.ARGMAX, Weights.UNIFORM):
            self._lead_epsilon(self.health["transport/median_chunks"], cost.shape)
        return h

    def acting_weights(self, values: Tensor) -> Tensor:
        """H (B, S) of the candidates of each state, of their values (B, S). Epsilon and unit (spread within rows) are the newest block's.

        Candidates of one state compete with nobody else's, so H(s, .) = (u(s) - c)_+ / 2 epsilon with u(s) from its own row, and softmax
        where the weights are those. Before the first block all weights are equal.
        """
        if self._spread == 0.0 or self.weights is Weights.UNIFORM:
            return torch.ones_like(values)
        cost = -_centred(values) / self._spread
        if self.weights is Weights.ARGMAX:
            return functional.one_hot(cost.argmin(1), cost.shape[1]).to(cost)
        if self.weights is Weights.SOFTMAX:
            return torch.softmax(-cost / self.epsilon, 1)
        return transport.semi_relaxed(cost, self.epsilon).compatibility.to(values.dtype)

    def _plan(self, cost: Tensor, states: Tensor | None, chunks: Tensor | None) -> Tensor:
        columns = cost.shape[1]
        if self.weights is Weights.UNIFORM:
            return torch.ones_like(cost)
        if self.weights is Weights.ARGMAX:
            return functional.one_hot(cost.argmin(1), columns).to(cost) * columns
        if self.weights is Weights.SOFTMAX:
            return torch.softmax(-row_standardized(cost) / self.epsilon, 1) * columns
        if self.weights is Weights.SEMI_RELAXED:
            return transport.semi_relaxed(row_standardized(cost), self.epsilon).compatibility
        standard = transport.standardize(cost)[0]
        if self.weights is Weights.POTENTIALS:
            assert states is not None and chunks is not None
            return self._learned(standard, states, chunks)
        return self._balanced(standard)

    def _balanced(self, cost: Tensor) -> Tensor:
        """The exact plan. A critic that tells hardly anything apart can ask for an epsilon that float64 does not resolve: then a larger."""
        for _ in range(5):
            try:
                return transport.balanced(cost, self.epsilon).compatibility
            except TransportError:
                self.epsilon *= 4.0
        return transport.balanced(cost, self.epsilon).compatibility

    def _learned(self, cost: Tensor, states: Tensor, chunks: Tensor) -> Tensor:
        assert self._potentials is not None and self._optimizer is not None
        for _ in range(FIT_STEPS):
            self._optimizer.zero_grad()
            self._potentials.loss(states, chunks, cost, self.epsilon).backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
        return self._potentials.compatibility(states, chunks, cost, self.epsilon)

    def _lead_epsilon(self, used: float, shape: torch.Size) -> None:
        fewest = shape[1] / shape[0] if self.weights.shares_chunks else 1.0  # where every chunk has to be used by some state
        ratio = log(max(used, 1.0)) - log(max(self._support, fewest))
        low, high = EPSILON_RANGE
        self.epsilon = min(max(self.epsilon * exp(-LEAD * ratio), low), high)

    def tensors(self) -> dict[str, Tensor]:
        """State by name; empty without learned potentials."""
        if self._potentials is None or self._optimizer is None:
            return {}
        weights = {f"potentials.{name}": tensor for name, tensor in self._potentials.state_dict().items()}
        return weights | optimizer_state(self._optimizer, "potentials_optimizer.")

    def values(self) -> dict[str, Any]:
        """The rest of the state, plain data."""
        return {"epsilon": self.epsilon, "health": self.health, "spread": self._spread}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """The inverse of :meth:`tensors` and :meth:`values`. Raises KeyError or RuntimeError on another's."""
        self.epsilon = float(values["epsilon"])
        self.health = dict(values["health"])
        self._spread = float(values["spread"])
        if self._potentials is not None and self._optimizer is not None:
            self._potentials.load_state_dict(select(tensors, "potentials."))
            restore_optimizer(self._optimizer, tensors, "potentials_optimizer.")


def row_standardized(cost: Tensor) -> Tensor:
    """Cost in units of its spread within rows, so that epsilon means the same whatever the scale of Q and the value of the states.

    Unlike :func:`otpr_trainer.transport.standardize` it keeps what is good or bad of a chunk in every state: only the balanced plan,
    whose columns have to be used whatever they cost, cannot see that. A cost without spread is 0.
    """
    centred = _centred(cost)
    return centred / centred.std(correction=0).clamp(min=1e-6)


def _centred(cost: Tensor) -> Tensor:
    return cost - cost.mean(1, keepdim=True)


def health(h: Tensor, epsilon: float) -> dict[str, float]:
    """What tells whether a plan is any good: its marginals, how many chunks a row uses, and how spread its weights are. h: (n, m)."""
    share = h / h.sum(1, keepdim=True).clamp(min=1e-12)
    entropy = -(share * share.clamp(min=1e-12).log()).sum(1) / log(max(h.shape[1], 2))
    return {
        "transport/epsilon": epsilon,
        "transport/row_error": float((h.mean(1) - 1).abs().max()),
        "transport/column_error": float((h.mean(0) - 1).abs().max()),
        "transport/support": float((h > 0).double().mean()),
        "transport/median_chunks": float((h > USED * h.amax(1, keepdim=True)).sum(1).double().median()),
        "transport/effective_chunks": float((1 / (share**2).sum(1).clamp(min=1e-12)).mean()),
        "transport/entropy": float(entropy.mean()),
        "transport/dead_rows": float((h.sum(1) < transport.DEAD).double().mean()),
    }
