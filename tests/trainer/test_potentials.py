# SPDX-License-Identifier: Apache-2.0
"""Learned potentials against exact ones."""

import pytest
import torch

from otpr_policy.errors import TransportError
from otpr_trainer import transport
from otpr_trainer.transport import Potentials


def two_by_two(count=400, seed=0):
    """States and actions of 1 and -1, drawn apart from each other; the cost is -s a."""
    torch.manual_seed(seed)
    states, actions = (2.0 * torch.randint(2, (count, 1)) - 1.0 for _ in range(2))
    return states, actions, lambda s, a: -s * a.T


def test_fitted_potentials_meet_the_marginals_and_pair_states_with_their_actions():
    """With a small epsilon h is 2 on matching pairs and 0 elsewhere."""
    states, actions, cost = two_by_two()
    potentials = Potentials(1, 1, width=32)
    steps = potentials.fit(states, actions, cost, 0.05, batch=128, tolerance=0.05, generator=torch.Generator().manual_seed(1))
    assert steps < 20_000
    h = potentials.compatibility(states, actions, cost(states, actions), 0.05)
    rows, columns = potentials.marginal_error(states, actions, cost(states, actions), 0.05)
    assert float(h.mean()) == pytest.approx(1.0, abs=0.05)
    assert max(rows, columns) < 0.1
    sides = torch.tensor([[1.0], [-1.0]])
    pairs = potentials.compatibility(sides, sides, cost(sides, sides), 0.05)
    assert pairs.diagonal().tolist() == pytest.approx([2.0, 2.0], abs=0.3)
    assert float(pairs[0, 1]) == float(pairs[1, 0]) == 0.0


def test_a_fit_that_does_not_reach_its_marginals_is_an_error():
    states, actions, cost = two_by_two()
    potentials = Potentials(1, 1, width=8)
    with pytest.raises(TransportError, match=r"marginal errors of .* in 10 steps, not 0.05"):
        potentials.fit(states, actions, cost, 0.05, tolerance=0.05, max_steps=10)
    with pytest.raises(TransportError, match="at least 1 step"):
        potentials.fit(states, actions, cost, 0.05, max_steps=0)


class Table(torch.nn.Module):
    """Potentials that are given, one number for each point."""

    def __init__(self, values):
        super().__init__()
        self.values = torch.nn.Parameter(values[:, None].clone())

    def forward(self, index):
        return self.values[index[:, 0].long()]


@pytest.mark.parametrize("masked", [False, True])
def test_the_loss_is_minus_the_dual_and_least_at_the_exact_potentials(masked):
    cost = torch.randn(9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = transport.keypoint_mask(9, 9, [(0, 4), (3, 3)]) if masked else None
    plan = transport.balanced(cost, 0.1, mask=mask, tolerance=1e-10)
    pi = plan.plan()
    potentials, points = Potentials(1, 1, width=4), torch.arange(9.0)[:, None]
    potentials.u, potentials.v = Table(plan.u), Table(plan.v)
    loss = potentials.loss(points, points, cost, 0.1, mask)
    loss.backward()
    assert loss.item() == pytest.approx(-float((pi * cost).sum() + 0.1 * (pi**2).sum() * 81), abs=1e-9)
    assert float(potentials.u.values.grad.abs().max()) < 1e-7 and float(potentials.v.values.grad.abs().max()) < 1e-7
    assert torch.allclose(potentials.compatibility(points, points, cost, 0.1, mask), plan.compatibility, atol=1e-9)
    assert max(potentials.marginal_error(points, points, cost, 0.1, mask)) < 1e-6


def test_no_gradient_reaches_the_critic_and_none_comes_from_compatibility():
    critic, potentials = torch.nn.Linear(2, 3), Potentials(2, 3, width=4)
    states, actions = torch.randn(5, 2), torch.randn(6, 3)

    def cost(s, a):
        return -critic(s) @ a.T

    potentials.loss(states, actions, cost(states, actions), 0.1).backward()
    assert critic.weight.grad is None
    assert all(parameter.grad is not None for parameter in potentials.parameters())
    assert not potentials.compatibility(states, actions, cost(states, actions), 0.1).requires_grad
    with pytest.raises(TransportError):
        potentials.fit(states, actions, cost, 1e-4, max_steps=2)
    assert critic.weight.grad is None
