# SPDX-License-Identifier: Apache-2.0
"""Learned transport potentials u(s), v(a), for buffers too large for one block (Seguy et al. 2018, arXiv 1711.02283).

:mod:`otpr_trainer.transport` has the problem and its symbols. A block is solved there exactly and faster; networks also answer for
states and actions that no block has held.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from otpr_policy.errors import TransportError

CHUNK = 1024  # states or actions whose compatibility is in memory at once, where marginals are measured

CostFunction = Callable[[Tensor, Tensor], Tensor]
"""``(states (n, Ds), actions (m, Da)) -> cost of every pair (n, m)``."""


class Potentials(nn.Module):
    """Two SiLU networks of equal layers.

    Args:
        state_size: Ds.
        action_size: Da, of a flat chunk.
        width: units of each hidden layer.
        depth: number of hidden layers, at least 1.
    """

    def __init__(self, state_size: int, action_size: int, width: int = 256, depth: int = 2) -> None:
        super().__init__()
        self.u = _mlp(state_size, width, depth)
        self.v = _mlp(action_size, width, depth)

    def loss(self, states: Tensor, actions: Tensor, cost: Tensor, epsilon: float, mask: Tensor | None = None) -> Tensor:
        """Minus the dual J(u, v) of a block with uniform marginals, a number. Its gradient reaches u and v alone.

        Args:
            states: (n, Ds).
            actions: (m, Da), drawn independently of the states.
            cost: (n, m).
            epsilon: > 0.
            mask: of :func:`otpr_trainer.transport.keypoint_mask`, (n, m).
        """
        u, v = self.u(states.detach()), self.v(actions.detach())
        overlap = torch.relu(u + v.T - cost.detach())
        if mask is not None:
            overlap = overlap * mask
        dual: Tensor = u.mean() + v.mean() - overlap.square().mean() / (4.0 * epsilon)
        return -dual

    @torch.no_grad()
    def compatibility(self, states: Tensor, actions: Tensor, cost: Tensor, epsilon: float, mask: Tensor | None = None) -> Tensor:
        """The h = (u + v - cost)_+ / (2 epsilon), (n, m), without gradient. Arguments as of :meth:`loss`."""
        h: Tensor = torch.relu(self.u(states) + self.v(actions).T - cost) / (2.0 * epsilon)
        return h if mask is None else h * mask

    def marginal_error(
        self, states: Tensor, actions: Tensor, cost: Tensor, epsilon: float, mask: Tensor | None = None
    ) -> tuple[float, float]:
        """Mean |row mean of h - 1| and mean |column mean of h - 1| of a block, both 0 for the exact potentials."""
        h = self.compatibility(states, actions, cost, epsilon, mask)
        return float((h.mean(1) - 1.0).abs().mean()), float((h.mean(0) - 1.0).abs().mean())

    def fit(
        self,
        states: Tensor,
        actions: Tensor,
        cost: CostFunction,
        epsilon: float,
        *,
        batch: int = 256,
        learning_rate: float = 1e-3,
        tolerance: float = 0.1,
        max_steps: int = 20_000,
        check_every: int = 200,
        probe: int = 256,
        generator: torch.Generator | None = None,
    ) -> int:
        """Adam ascent of the dual on blocks drawn from all states and actions, until their marginals are met.

        Args:
            states: all states, (N, Ds).
            actions: all actions, (M, Da).
            cost: of a block.
            epsilon: > 0, in units of the cost.
            batch: states and actions of a block.
            learning_rate: of Adam.
            tolerance: largest mean |row mean - 1| and mean |column mean - 1|, of ``probe`` rows against all actions and the reverse.
            max_steps: after which the fit has failed.
            check_every: steps between two looks at the marginals.
            probe: rows and columns that are looked at, drawn anew each time.
            generator: of the draws, on the CPU.

        Returns:
            Steps taken.

        Raises:
            TransportError: the tolerance was not reached, or ``max_steps`` is below 1.
        """
        if max_steps < 1:
            raise TransportError(f"potentials are fitted in at least 1 step, not {max_steps}")
        optimizer = torch.optim.Adam(self.parameters(), learning_rate)
        errors = (math.inf, math.inf)
        for step in range(1, max_steps + 1):
            s, a = _draw(states, batch, generator), _draw(actions, batch, generator)
            optimizer.zero_grad()
            self.loss(s, a, _block_cost(cost, s, a), epsilon).backward()
            optimizer.step()
            if step % check_every == 0 or step == max_steps:
                s, a = _draw(states, probe, generator), _draw(actions, probe, generator)
                errors = self._mean_error(s, actions, cost, epsilon, 1), self._mean_error(states, a, cost, epsilon, 0)
                if max(errors) <= tolerance:
                    return step
        raise TransportError(
            f"potentials reached marginal errors of {errors[0]:.2f} (rows) and {errors[1]:.2f} (columns) in {max_steps} steps,"
            f" not {tolerance:g}; standardise the cost, or take a larger epsilon, batch or number of steps"
        )

    def _mean_error(self, states: Tensor, actions: Tensor, cost: CostFunction, epsilon: float, dim: int) -> float:
        """Mean |mean of h along ``dim`` - 1|, in parts of ``CHUNK`` along ``dim``."""
        parts = [(states, a) for a in actions.split(CHUNK)] if dim == 1 else [(s, actions) for s in states.split(CHUNK)]
        sums = [self.compatibility(s, a, _block_cost(cost, s, a), epsilon).sum(dim) for s, a in parts]
        count = len(actions) if dim == 1 else len(states)
        return float((torch.stack(sums).sum(0) / count - 1.0).abs().mean())


def _draw(points: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Rows drawn with replacement, or all where there are no more."""
    if len(points) <= count:
        return points
    return points[torch.randint(len(points), (count,), generator=generator).to(points.device)]


@torch.no_grad()
def _block_cost(cost: CostFunction, states: Tensor, actions: Tensor) -> Tensor:
    return cost(states, actions)


def _mlp(size: int, width: int, depth: int) -> nn.Sequential:
    sizes = [size, *[width] * depth]
    hidden = [layer for inputs, outputs in pairwise(sizes) for layer in (nn.Linear(inputs, outputs), nn.SiLU())]
    return nn.Sequential(*hidden, nn.Linear(width, 1))
