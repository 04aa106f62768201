# SPDX-License-Identifier: Apache-2.0
"""The solver behind balanced plans: that it arrives from everywhere, alone and in batches, cold and warm, and that it is quick."""

import math
import sys

import pytest
import torch

from otpr_policy.errors import TransportError
from otpr_trainer import quadratic_dual, transport
from otpr_trainer.transport import Kind, balanced, semi_relaxed

EXACT = 1e-10  # tolerance where the answer is compared with another, and not its marginals with 1


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def largest(tensor):
    return float(tensor.abs().max())


def duality_gap(plan, cost, epsilon):
    """Of uniform marginals: 0 at the answer and nowhere else."""
    n, m = cost.shape
    pi = plan.plan()
    primal = (pi * cost).sum() + epsilon * n * m * pi.square().sum()
    dual = plan.u.mean() + plan.v.mean() - torch.relu(plan.u[:, None] + plan.v - cost).square().mean() / (4 * epsilon)
    return float(primal - dual)


@pytest.mark.parametrize("family", ["noise", "line", "matching"])
@pytest.mark.parametrize("epsilon", [1.0, 0.03, 0.001, 1e-6])
@pytest.mark.parametrize(("n", "m"), [(64, 192), (40, 25), (40, 60)])
@pytest.mark.parametrize("quick", ["compiled", "tensors", "none"])
def test_the_solution_is_found_for_costs_of_every_structure(monkeypatch, family, epsilon, n, m, quick):
    """Down to plans with hardly more entries than rows and columns, where Newton's system is singular; with each quick way and without."""
    if quick == "none":
        monkeypatch.setattr(quadratic_dual, "QUICK_STEPS", 0)
    if quick == "tensors":
        monkeypatch.setattr(quadratic_dual, "_kernel", lambda: None)
    states, actions = normal(n, 1, seed=1).sort(0).values, normal(m, 1, seed=2)
    far = normal(n, 8, seed=3)
    near = far[torch.arange(m) % n] + 0.1 * normal(m, 8, seed=4)
    cost = {"noise": normal(n, m), "line": (states - actions.T) ** 2, "matching": torch.cdist(far, near) ** 2}[family]
    cost, _ = transport.standardize(cost)
    plan = balanced(cost, epsilon)
    assert max(plan.row_error, plan.column_error) < 1e-6
    assert duality_gap(plan, cost, epsilon) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("support", [0.1, 0.2, 0.5])
@pytest.mark.parametrize(("n", "m"), [(64, 192), (192, 64), (128, 128)])
@pytest.mark.parametrize("quick", ["compiled", "tensors"])
def test_an_ordinary_block_is_solved_in_a_few_unguarded_steps(monkeypatch, n, m, support, quick):
    """Time depends on it; no other law does."""
    if quick == "tensors":
        monkeypatch.setattr(quadratic_dual, "_kernel", lambda: None)
    monkeypatch.setattr(quadratic_dual, "_careful", None)
    states, actions = normal(n, 8, seed=1), normal(m, 8, seed=2)
    for cost in (normal(n, m), torch.cdist(states, actions) ** 2):
        assert balanced(cost, transport.epsilon_for_support(cost, support, Kind.BALANCED)).iterations <= 9


@pytest.mark.parametrize("limit", [0, 1, 2, 4])
def test_the_compiled_steps_are_those_of_tensors(limit):
    """From a guess and from a start, with masses that differ; steps are in single precision, so that is what they agree to."""
    z = torch.stack([2.0 * normal(30, 50, seed=seed) for seed in range(3)])
    p, q = (torch.rand(3, *shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64) + 0.5 for shape in ((1, 30), (50, 1)))
    p, q = p / p.sum((1, 2), keepdim=True), q / q.sum((1, 2), keepdim=True)
    kernel = quadratic_dual._kernel()
    assert kernel is not None
    for start in (None, (0.3 * normal(3, 30, 1), 0.3 * normal(3, 1, 50))):
        given = None if start is None else tuple(a.clone() for a in start)
        compiled = quadratic_dual._quick_compiled(kernel, z, p, q, start, 1e-6, limit)
        assert compiled.steps == limit
        for i in range(3):  # one by one: tensors go on with conjugate gradients until the last of a batch has enough of them
            one = slice(i, i + 1)
            alone = quadratic_dual._quick(z[one], p[one], q[one], None if start is None else tuple(a[one] for a in start), 1e-6, limit)
            assert largest(compiled.h[one] - alone.h) < 1e-4 * largest(alone.h)
            assert float(compiled.error[i]) == pytest.approx(float(alone.error), rel=1e-2, abs=1e-6)
        assert given is None or all(torch.equal(a, b) for a, b in zip(start, given, strict=True))


def test_a_lost_problem_ends_the_compiled_way_and_leaves_the_others(caplog):
    """Scores that are not a number give an error that is above every tolerance."""
    z = torch.stack([normal(8, 9), torch.full((8, 9), math.nan, dtype=torch.float64)])
    p, q = torch.full((2, 1, 8), 1 / 8, dtype=torch.float64), torch.full((2, 9, 1), 1 / 9, dtype=torch.float64)
    dual = quadratic_dual._quick_compiled(quadratic_dual._kernel(), z, p, q, None, 1e-6, 20)
    assert dual.error[0] <= 1e-6 and dual.error[1] == math.inf


def test_where_nothing_can_be_compiled_tensors_do_and_a_warning_says_so(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "otpr_trainer.quadratic_kernel", None)
    monkeypatch.delattr("otpr_trainer.quadratic_kernel", raising=False)
    quadratic_dual._kernel.cache_clear()
    try:
        plan = balanced(normal(12, 12), 0.1)
        assert max(plan.row_error, plan.column_error) < 1e-6 and "cannot be compiled" in caplog.text
    finally:
        quadratic_dual._kernel.cache_clear()


def test_without_a_usable_newton_step_alternating_sweeps_still_arrive(monkeypatch):
    def fails(matrix):
        return torch.full_like(matrix, math.nan), torch.ones(len(matrix), dtype=torch.int32)

    cost = normal(12, 12)
    expected = balanced(cost, 0.1)
    monkeypatch.setattr(quadratic_dual, "QUICK_STEPS", 0)
    monkeypatch.setattr(torch.linalg, "cholesky_ex", fails)
    plan = balanced(cost, 0.1)
    assert plan.iterations > 20 and largest(plan.compatibility - expected.compatibility) < 1e-4


@pytest.mark.parametrize("cached", [quadratic_dual.CACHED, 1300])
def test_a_batch_is_the_problems_one_by_one(monkeypatch, cached):
    """Easy ones are done long before the last; and in parts of two, for a small cache."""
    monkeypatch.setattr(quadratic_dual, "CACHED", cached)
    cost = torch.stack([normal(20, 30, seed=seed) for seed in range(6)])
    epsilon = torch.tensor([1.0, 0.1, 0.05, 0.02, 0.002, 0.0005], dtype=torch.float64)
    together, alone = balanced(cost, epsilon), [balanced(c, e) for c, e in zip(cost, epsilon, strict=True)]
    assert together.row_error.shape == (6,) and together.u.shape == (6, 20) and together.v.shape == (6, 30)
    for i, plan in enumerate(alone):
        assert largest(together.compatibility[i] - plan.compatibility) < 2e-4
        assert max(together.row_error[i], together.column_error[i]) < 1e-6
    free = semi_relaxed(cost, epsilon)
    assert largest(free.compatibility[3] - semi_relaxed(cost[3], float(epsilon[3])).compatibility) < 1e-12
    kinds = [transport.epsilon_for_support(cost, 0.2, kind) for kind in Kind]
    assert [float(e[2]) for e in kinds] == pytest.approx(
        [float(transport.epsilon_for_support(cost[2], 0.2, kind)) for kind in Kind], rel=1e-6
    )


def test_a_step_that_one_problem_of_a_batch_takes_back_does_not_disturb_the_others():
    """Seen in the middle of the way: at its end all ways meet."""
    z = torch.stack([normal(20, 30, seed=seed) for seed in range(6)]) / 6e-4
    p, q = torch.full((6, 1, 20), 1 / 20, dtype=torch.float64), torch.full((6, 30, 1), 1 / 30, dtype=torch.float64)

    def half_way(of):
        return quadratic_dual._careful(z[of], p[of], q[of], torch.zeros(len(z[of]), 20, 1, dtype=torch.float64), 1e-6, limit=12)

    together, alone = half_way(slice(None)), [half_way(slice(i, i + 1)) for i in range(6)]
    assert (together.error > 1e-3).all()
    assert largest(together.x - torch.cat([dual.x for dual in alone])) < 1e-6 * largest(together.x)


@pytest.mark.parametrize(("n", "m"), [(30, 50), (50, 30)])
def test_a_warm_start_gives_the_same_plan_in_fewer_steps(n, m):
    cost = normal(n, m)
    cold = balanced(cost, 0.002, tolerance=EXACT)
    warm = balanced(cost, 0.002, tolerance=EXACT, start=balanced(cost + 1e-4 * normal(n, m, seed=1), 0.002))
    assert largest(warm.compatibility - cold.compatibility) < 1e-6
    assert warm.iterations < cold.iterations
    assert balanced(cost, 0.002, start=cold).iterations == 0
    mask = transport.keypoint_mask(n, n, [(0, 3), (4, 1), (7, 7)])
    square = normal(n, n)
    assert balanced(square, 0.1, mask=mask, start=balanced(square, 0.1, mask=mask, tolerance=EXACT)).iterations == 0


def test_a_plan_that_is_not_reached_is_an_error_that_says_how_far_it_came():
    with pytest.raises(TransportError, match=r"marginal error of \d.*after 1 iterations, not 1.0e-06; take a larger epsilon"):
        balanced(normal(40, 40), 1e-3, max_iterations=1)
