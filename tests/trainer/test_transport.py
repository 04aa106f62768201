# SPDX-License-Identifier: Apache-2.0
"""Transport plans against POT, linear programming, sparsemax and the identities of the quadratically regularised problem.

Problems of 12 states and 12 actions with uniform marginals, unless a test says otherwise; tolerances are absolute.
"""

import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from otpr_policy.errors import TransportError
from otpr_trainer import transport
from otpr_trainer.transport import Kind, balanced, semi_relaxed

pytestmark = pytest.mark.filterwarnings("ignore:scipy.optimize:DeprecationWarning")  # of the options that POT passes to it

N = 12
EPSILONS = [1.0, 0.1, 0.01, 0.001]
EXACT = 1e-10  # tolerance where the answer is compared with another, and not its marginals with 1
KEYPOINTS = [(0, 3), (4, 1), (7, 7)]


def uniform_cost(n=N, m=N, seed=0):
    return torch.rand(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def masses(n, seed):
    weights = 0.5 + torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return weights / weights.sum()


def largest(tensor):
    return float(tensor.abs().max())


def by_pot(cost, epsilon):
    """The same plan from another solver: with uniform marginals its regulariser reg/2 |pi|^2 is ours for reg = 2 epsilon n m."""
    n, m = cost.shape
    a, b = np.full(n, 1 / n), np.full(m, 1 / m)
    return torch.from_numpy(
        ot.smooth.smooth_ot_dual(a, b, cost.numpy(), reg=2 * epsilon * n * m, reg_type="l2", stopThr=1e-14, numItermax=20_000)
    )


def primal(plan, cost, epsilon, p, q):
    pi = plan.plan(p, q)
    return float((pi * cost).sum() + epsilon * (pi**2 / torch.outer(p, q)).sum())


def dual(plan, cost, epsilon, p, q, mask=1.0):
    overlap = torch.relu(plan.u[:, None] + plan.v - cost) * mask
    return float(p @ plan.u + q @ plan.v - p @ overlap**2 @ q / (4 * epsilon))


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_the_plan_is_that_of_pot(epsilon):
    cost = uniform_cost()
    assert largest(balanced(cost, epsilon, tolerance=EXACT).plan() - by_pot(cost, epsilon)) < 1e-6


@pytest.mark.parametrize(("n", "m"), [(N, N), (5, 17), (17, 5), (1, 4), (4, 1), (1, 1)])
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_marginals_are_met_and_primal_and_dual_agree(n, m, epsilon):
    """Strong duality holds at the answer and nowhere else. Marginals are not uniform here."""
    cost, p, q = uniform_cost(n, m), masses(n, 1), masses(m, 2)
    plan = balanced(cost, epsilon, p=p, q=q, tolerance=EXACT)
    pi = plan.plan(p, q)
    assert largest(pi.sum(1) - p) < 1e-7 and largest(pi.sum(0) - q) < 1e-7
    assert max(plan.row_error, plan.column_error) <= EXACT
    assert primal(plan, cost, epsilon, p, q) == pytest.approx(dual(plan, cost, epsilon, p, q), abs=1e-6)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_compatibility_is_the_positive_part_of_the_potentials_less_the_cost(epsilon):
    cost = uniform_cost()
    plan = balanced(cost, epsilon)
    surplus = plan.u[:, None] + plan.v - cost
    assert (plan.compatibility >= 0).all() and ((plan.compatibility == 0) == (surplus <= 0)).all()
    assert largest(plan.compatibility - torch.relu(surplus) / (2 * epsilon)) < 1e-9


def test_less_regularisation_gives_a_sparser_plan_and_a_cost_that_falls_to_that_of_the_linear_program():
    cost = uniform_cost()
    plans = [balanced(cost, epsilon) for epsilon in EPSILONS]
    costs = [float((plan.plan() * cost).sum()) for plan in plans]
    entries = [int((plan.compatibility > 0).sum()) for plan in plans]
    least = float(ot.emd2(np.full(N, 1 / N), np.full(N, 1 / N), cost.numpy()))
    assert entries == sorted(entries, reverse=True) and entries[0] > 130 and entries[-1] < 24
    assert costs == sorted(costs, reverse=True)
    assert -1e-9 < costs[-1] - least < 1e-3


def test_much_regularisation_gives_the_independent_plan():
    assert largest(balanced(uniform_cost(), 1e3).compatibility - 1.0) < 1e-3


@pytest.mark.parametrize("epsilon", [1.0, 0.01])
def test_a_separable_cost_gives_the_independent_plan(epsilon):
    cost = normal(N, 1, seed=3) + normal(1, N, seed=4)
    assert largest(balanced(cost, epsilon).compatibility - 1.0) < 1e-6


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), shift=st.floats(-1e3, 1e3), epsilon=st.sampled_from([1.0, 0.1, 0.02]), scale=st.floats(1e-3, 1e3))
def test_what_depends_on_state_or_action_alone_and_the_scale_of_cost_and_epsilon_change_nothing(seed, shift, epsilon, scale):
    cost = uniform_cost(6, 9, seed)
    effects = shift + 5.0 * normal(6, 1, seed=seed + 1) + 5.0 * normal(1, 9, seed=seed + 2)
    moved, plain = (balanced(c, e, tolerance=EXACT) for c, e in ((scale * (cost + effects), scale * epsilon), (cost, epsilon)))
    assert largest(moved.compatibility - plain.compatibility) < 1e-6


def test_on_a_line_the_plan_becomes_the_sorted_matching():
    rng = np.random.default_rng(3)
    states, actions = (torch.from_numpy(np.sort(rng.normal(size=20))) for _ in range(2))
    plans = [balanced((states[:, None] - actions) ** 2, epsilon) for epsilon in (1e-2, 1e-3, 1e-4)]
    errors = [largest(plan.compatibility @ actions / 20 - actions) for plan in plans]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.05


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_a_mask_ties_keypoints_and_leaves_an_ordinary_plan_of_the_rest(epsilon):
    cost, mask = uniform_cost(), transport.keypoint_mask(N, N, KEYPOINTS)
    plan = balanced(cost, epsilon, mask=mask, tolerance=EXACT)
    assert (plan.compatibility[~mask] == 0).all()
    for row, column in KEYPOINTS:
        assert float(plan.compatibility[row, column]) == pytest.approx(N, abs=1e-6)
        assert float(plan.plan()[row, column]) == pytest.approx(1 / N, abs=1e-9)
    assert largest(plan.plan().sum(0) - 1 / N) < 1e-7 and largest(plan.plan().sum(1) - 1 / N) < 1e-7
    rows, columns = (torch.tensor([i for i in range(N) if i not in taken]) for taken in zip(*KEYPOINTS, strict=True))
    share = torch.full((N - 3,), 1 / N, dtype=torch.float64)
    rest = balanced(cost[rows][:, columns], epsilon, p=share, q=share, tolerance=EXACT)
    assert largest(plan.compatibility[rows][:, columns] - rest.compatibility) < 1e-7 * N
    uniform = torch.full((N,), 1 / N, dtype=torch.float64)
    assert primal(plan, cost, epsilon, uniform, uniform) == pytest.approx(dual(plan, cost, epsilon, uniform, uniform, mask), abs=1e-6)


@pytest.mark.parametrize("epsilon", [0.1, 0.01])
def test_a_mask_is_what_a_very_large_cost_would_do(epsilon):
    cost, mask = uniform_cost(), transport.keypoint_mask(N, N, KEYPOINTS)
    forbidding = torch.where(mask, cost, 1e3)
    assert largest(balanced(cost, epsilon, mask=mask, tolerance=EXACT).plan() - by_pot(forbidding, epsilon)) < 1e-6


def test_the_mask_of_keypoints_has_one_entry_in_their_rows_and_columns_and_all_others_elsewhere():
    mask = transport.keypoint_mask(8, 11, KEYPOINTS)
    rows, columns = [row for row, _ in KEYPOINTS], [column for _, column in KEYPOINTS]
    assert mask.sum(1).tolist() == [1 if i in rows else 8 for i in range(8)]
    assert mask.sum(0).tolist() == [1 if j in columns else 5 for j in range(11)]
    assert all(mask[row, column] for row, column in KEYPOINTS)


def test_everything_may_be_a_keypoint():
    pairs = [(0, 1), (1, 0)]
    plan = balanced(uniform_cost(2, 2), 0.1, mask=transport.keypoint_mask(2, 2, pairs))
    assert plan.compatibility.tolist() == [[0.0, 2.0], [2.0, 0.0]]


def test_a_keypoint_whose_masses_differ_is_refused_by_number_and_masses_that_agree_serve():
    cost, mask = uniform_cost(8, 11), transport.keypoint_mask(8, 11, KEYPOINTS)
    with pytest.raises(TransportError, match=r"keypoint 0, state 0 with action 3, .* not 0.125 and 0.0909091"):
        balanced(cost, 0.1, mask=mask)
    p, q = transport.keypoint_masses(8, 11, KEYPOINTS, 0.5)
    assert float(p[[0, 4, 7]].sum()) == pytest.approx(0.5) and float(p.sum()) == float(q.sum()) == pytest.approx(1.0)
    plan = balanced(cost, 0.1, mask=mask, p=p, q=q)
    assert float(plan.compatibility[4, 1]) == pytest.approx(6.0) and max(plan.row_error, plan.column_error) < 1e-6
    p[4] += 0.01
    p[1] -= 0.01
    with pytest.raises(TransportError, match="keypoint 1, state 4 with action 1"):
        balanced(cost, 0.1, mask=mask, p=p, q=q)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_the_plan_turns_an_expectation_over_the_product_into_one_over_the_coupling(epsilon):
    """E_(p x q)[h F] = E_pi[F]: what makes the weighted denoising loss the loss on the plan's pairs."""
    cost, p, q, values = uniform_cost(), masses(N, 1), masses(N, 2), normal(N, N, seed=7)
    plan = balanced(cost, epsilon, p=p, q=q)
    assert float(p @ (plan.compatibility * values) @ q) == pytest.approx(float((plan.plan(p, q) * values).sum()), abs=1e-12)
    joint = masses(N * N, 3).reshape(N, N)
    p, q = joint.sum(1), joint.sum(0)
    of_joint = transport.Plan(joint / torch.outer(p, q), p, q, p[0], q[0], 0)
    assert largest(of_joint.plan(p, q) - joint) < 1e-12


def sparsemax(z):
    """Rows of Martins and Astudillo 2016, algorithm 1, by a sort."""
    ordered = z.sort(1, descending=True).values
    count = torch.arange(1, z.shape[1] + 1)
    k = (1 + count * ordered > ordered.cumsum(1)).sum(1, keepdim=True)
    threshold = (ordered.cumsum(1).gather(1, k - 1) - 1) / k
    return torch.relu(z - threshold)


@pytest.mark.parametrize("epsilon", [*EPSILONS, 1e-6])
def test_a_semi_relaxed_row_is_sparsemax(epsilon):
    cost = normal(7, 33)
    plan = semi_relaxed(cost, epsilon)
    assert largest(plan.compatibility / 33 - sparsemax(-cost / (2 * epsilon * 33))) < 1e-12
    assert plan.row_error < 1e-12
    assert float(plan.column_error) == pytest.approx(largest(plan.compatibility.mean(0) - 1))


def test_a_semi_relaxed_plan_stays_within_any_mask_that_leaves_each_state_an_action():
    cost, mask = normal(7, 9), normal(7, 9, seed=1) > 0.5
    mask[:, 4] = True
    plan = semi_relaxed(cost, 0.1, mask)
    assert (plan.compatibility[~mask] == 0).all() and plan.row_error < 1e-12
    alone = semi_relaxed(cost[2:3, mask[2]], 0.1 * 9 / int(mask[2].sum()))
    assert largest(plan.compatibility[2, mask[2]] / 9 - alone.compatibility / int(mask[2].sum())) < 1e-12
    mask[3] = False
    with pytest.raises(TransportError, match="at least one action"):
        semi_relaxed(cost, 0.1, mask)


def test_bad_actions_must_be_used_by_a_balanced_plan_and_go_unused_in_a_semi_relaxed_one():
    """Half of the actions are the worst in every state; Q = s a - 10 [bad]."""
    states = torch.tensor([1.0, -1.0] * 6, dtype=torch.float64)
    bad = torch.tensor([0.0, 0.0, 1.0, 1.0] * 3, dtype=torch.float64)
    cost = -(states[:, None] * states - 10.0 * bad)
    assert largest(balanced(cost, 0.05).compatibility.mean(0) - 1.0) < 1e-6
    assert largest(semi_relaxed(cost, 0.05).compatibility.mean(0) - 2.0 * (1.0 - bad)) < 1e-9


def test_an_assignment_is_the_best_matching_and_the_limit_of_regularised_plans():
    cost = uniform_cost()
    plan = transport.assignment(cost)
    assert sorted(plan.compatibility.flatten().tolist())[-13:] == [0.0] + [float(N)] * N
    assert plan.row_error == plan.column_error == 0.0
    assert float((plan.plan() * cost).sum()) == pytest.approx(ot.emd2([], [], cost.numpy()))
    assert largest(balanced(cost, 1e-7).compatibility - plan.compatibility) < 1e-6
    with pytest.raises(TransportError, match="not 3 and 4"):
        transport.assignment(cost[:3, :4])


def test_support_and_effective_sample_size_of_hand_made_rows():
    h = torch.tensor([[0.0, 2.0, 2.0, 0.0], [4.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    plan = transport.Plan(h, h[0], h[0], h[0], h[0], 0)
    assert plan.support.tolist() == [0.5, 0.25, 0.0, 1.0]
    assert plan.effective_sample_size.tolist() == [2.0, 1.0, 0.0, 4.0]


def test_answers_have_the_questions_type():
    plan = balanced(normal(5, 6).float(), 0.1)
    assert plan.compatibility.dtype == plan.u.dtype == plan.row_error.dtype == torch.float32
    assert plan.compatibility.shape == (5, 6) and plan.row_error.shape == ()


def test_no_gradient_flows_through_a_plan():
    critic = torch.nn.Linear(3, 1).double()
    q_values = critic(normal(4, 4, 3))[..., 0]
    mask = transport.keypoint_mask(4, 4, [(0, 0)])
    for plan in (
        balanced(-q_values, 0.1),
        balanced(-q_values, 0.1, mask=mask),
        semi_relaxed(-q_values, 0.1),
        transport.assignment(-q_values),
    ):
        assert not plan.compatibility.requires_grad and not plan.u.requires_grad
        (critic(normal(4, 3)) * plan.compatibility * plan.u).sum().backward()  # as a weight it is welcome
    assert not transport.standardize(-q_values)[0].requires_grad
    assert not transport.epsilon_for_support(-q_values, 0.5, Kind.BALANCED).requires_grad


@pytest.mark.parametrize("problem", [
    lambda cost: balanced(cost, 0.1),
    lambda cost: semi_relaxed(cost, 0.1),
    transport.assignment,
    transport.standardize,
    lambda cost: transport.epsilon_for_support(cost, 0.5, Kind.BALANCED),
])  # fmt: skip
def test_a_cost_that_is_not_finite_or_not_of_numbers_is_refused(problem):
    cost = uniform_cost(4, 4)
    cost[1, 2] = math.nan
    with pytest.raises(TransportError, match="not finite"):
        problem(cost)
    with pytest.raises(TransportError, match="floating-point"):
        problem(torch.ones(4, 4, dtype=torch.int64))
    with pytest.raises(TransportError, match="shape"):
        problem(torch.ones(0, 4))


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf])
def test_epsilon_must_be_above_0(epsilon):
    for solve in (balanced, semi_relaxed):
        with pytest.raises(TransportError, match="epsilon"):
            solve(uniform_cost(), epsilon)


def test_masses_and_masks_that_do_not_fit_are_refused():
    cost, uniform = uniform_cost(), torch.full((N,), 1 / N, dtype=torch.float64)
    with pytest.raises(TransportError, match="same total mass"):
        balanced(cost, 0.1, p=2 * uniform)
    with pytest.raises(TransportError, match="12 masses above 0"):
        balanced(cost, 0.1, q=uniform[:5])
    with pytest.raises(TransportError, match="12 masses above 0"):
        balanced(cost, 0.1, p=uniform - 1 / N)
    with pytest.raises(TransportError, match="keypoint_mask only"):
        balanced(cost, 0.1, mask=torch.eye(N).bool().roll(1, 1) | torch.eye(N).bool())
    with pytest.raises(TransportError, match=r"shape of one block, \(12, 12\)"):
        balanced(cost, 0.1, mask=torch.ones(2, 2, dtype=torch.bool))
    for pairs, message in ([(0, 0), (1, 12)], "keypoint 1 is"), ([(0, 0), (1, 0)], "keypoint 1"), ([(-1, 0)], "keypoint 0"):
        with pytest.raises(TransportError, match=message):
            transport.keypoint_mask(N, N, pairs)
    with pytest.raises(TransportError, match="share"):
        transport.keypoint_masses(2, 3, [(0, 0)], 1.0)
