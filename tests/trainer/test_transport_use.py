# SPDX-License-Identifier: Apache-2.0
"""What prepares a cost for transport and what is done with a plan: scale, epsilon, resampling, the guiding score of keypoints."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from otpr_policy.errors import TransportError
from otpr_trainer import transport
from otpr_trainer.transport import Kind

PLANS = {Kind.BALANCED: transport.balanced, Kind.SEMI_RELAXED: transport.semi_relaxed}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), shift=st.floats(-100, 100), factor=st.floats(1e-3, 1e3))
def test_a_standardised_cost_knows_neither_offsets_nor_scale(seed, shift, factor):
    cost = normal(5, 8, seed=seed)
    standard, scale = transport.standardize(cost)
    moved, moved_scale = transport.standardize(factor * (cost + shift + 10.0 * normal(5, 1, seed=seed + 1) + normal(1, 8, seed=seed + 2)))
    assert float((moved - standard).abs().max()) < 1e-9
    assert float(moved_scale) == pytest.approx(factor * float(scale), rel=1e-9)
    assert float(standard.mean(0).abs().max()) < 1e-12 and float(standard.mean(1).abs().max()) < 1e-12
    assert float(standard.square().mean()) == pytest.approx(1.0)


def test_the_scale_is_the_spread_that_is_left_without_row_and_column_effects():
    standard, scale = transport.standardize(torch.tensor([[3.0, 1.0], [-1.0, 1.0]], dtype=torch.float64) + 7.0)
    assert float(scale) == 1.0 and standard.tolist() == [[1.0, -1.0], [-1.0, 1.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cost_without_spread_becomes_zeros_and_rounding_is_no_spread(dtype):
    effects = (50.0 + normal(6, 1) + normal(1, 7, seed=1)).to(dtype)
    for cost in (effects, torch.full((6, 7), 0.1, dtype=dtype), torch.zeros(6, 7, dtype=dtype), effects[:1], effects[:, :1]):
        standard, scale = transport.standardize(cost)
        assert (standard == 0).all() and scale == 0 and standard.shape == cost.shape


def test_each_problem_of_a_batch_has_its_own_scale():
    cost = torch.stack([normal(5, 8), torch.ones(5, 8, dtype=torch.float64), 3.0 * normal(5, 8)])
    standard, scale = transport.standardize(cost)
    assert scale.shape == (3,) and float(scale[1]) == 0.0 and float(scale[2]) == pytest.approx(3.0 * float(scale[0]))
    assert torch.allclose(standard[2], standard[0])


def test_keypoints_are_left_out_of_the_scale():
    cost, pairs = normal(6, 8), [(1, 2), (4, 0)]
    standard, scale = transport.standardize(cost, transport.keypoint_mask(6, 8, pairs))
    rows, columns = [0, 2, 3, 5], [1, 3, 4, 5, 6, 7]
    rest, rest_scale = transport.standardize(cost[rows][:, columns])
    assert torch.allclose(standard[rows][:, columns], rest) and float(scale) == pytest.approx(float(rest_scale))
    assert (standard[[1, 4]] == 0).all() and (standard[:, [2, 0]] == 0).all()
    assert transport.standardize(cost[:2, :2], transport.keypoint_mask(2, 2, [(0, 1), (1, 0)]))[0].tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("support", [0.05, 0.125, 0.2, 0.61, 1.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("n", "m"), [(40, 64), (33, 20)])
def test_the_median_row_of_the_plan_has_the_support_that_was_asked_for(kind, support, scale, n, m):
    cost = scale * (normal(n, m) + 20.0)
    plan = PLANS[kind](cost, transport.epsilon_for_support(cost, support, kind))
    if kind is Kind.SEMI_RELAXED or support > 2 / m:
        assert float(plan.support.median()) == pytest.approx(max(1, round(support * m)) / m, abs=1e-9)


def test_one_action_per_state_is_a_support_that_a_semi_relaxed_plan_can_have():
    cost = normal(9, 30)
    assert transport.semi_relaxed(cost, transport.epsilon_for_support(cost, 1e-6, Kind.SEMI_RELAXED)).support.median() == pytest.approx(
        1 / 30
    )


@pytest.mark.parametrize("kind", Kind)
def test_where_every_epsilon_gives_the_same_plan_one_is_as_good_as_another(kind):
    assert float(transport.epsilon_for_support(torch.full((5, 7), 3.0), 0.2, kind)) == 1.0


def test_a_support_that_no_plan_has_is_refused():
    for support in (0.0, -0.1, 1.1, math.nan):
        with pytest.raises(TransportError, match=r"share in \(0, 1\]"):
            transport.epsilon_for_support(normal(5, 7), support, Kind.BALANCED)
    # Each of 4 states must take 10 of 40 actions.
    with pytest.raises(TransportError, match=r"support of 0\.1: the smallest found is 0\.25"):
        transport.epsilon_for_support(normal(4, 40), 0.1, Kind.BALANCED)


def test_resampling_draws_each_action_as_often_as_its_share_of_the_row():
    h = torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]) + 1e-7
    drawn, dead = transport.resample(h, 200_000, torch.Generator().manual_seed(0))
    frequency = torch.stack([torch.bincount(row, minlength=3) for row in drawn]) / 200_000
    assert frequency[0].tolist() == pytest.approx([0.0, 0.25, 0.75], abs=5e-3)
    assert frequency[1].tolist() == pytest.approx([1.0, 0.0, 0.0], abs=1e-4)
    assert frequency[2].tolist() == pytest.approx([1 / 3] * 3, abs=5e-3)
    assert dead.tolist() == [False, False, True]


def test_resampling_of_one_candidate_is_that_candidate_and_its_scale_does_not_matter():
    assert transport.resample(torch.tensor([[0.7]]), 3)[0].tolist() == [[0, 0, 0]]
    h = torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(0))
    draws = [transport.resample(scale * h, 7, torch.Generator().manual_seed(1)) for scale in (1.0, 256.0)]
    assert torch.equal(draws[0][0], draws[1][0])
    assert draws[0][0].shape == (4, 5, 7) and draws[0][1].shape == (4, 5)


@pytest.mark.parametrize("constant", [-0.6, 0.0, 1.5, 10.0])
@pytest.mark.parametrize("epsilon", [0.05, 5.0])
def test_a_constant_in_the_potential_of_states_moves_the_threshold_and_nothing_else(constant, epsilon):
    """Drawn are actions whose cost lies below u + v, each as often as by how much, whatever epsilon (P15)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        potentials = transport.Potentials(3, 2, width=8).double()
    states, actions, cost = normal(4, 3), normal(6, 2, seed=1), normal(4, 6, seed=2)
    below = (potentials.u(states) + potentials.v(actions).T - cost).detach()
    with torch.no_grad():
        potentials.u[-1].bias += constant
    h = potentials.compatibility(states, actions, cost, epsilon)
    drawn, dead = transport.resample(h, 200_000, torch.Generator().manual_seed(3))
    frequency = torch.stack([torch.bincount(row, minlength=6) for row in drawn]) / 200_000
    margin = (below + constant).clamp(min=0.0)
    expected = torch.where(dead[:, None], 1 / 6, margin / margin.sum(1, keepdim=True))
    assert (expected == 0).any() == (constant < 10.0) and (frequency[expected == 0] == 0).all()
    assert float((frequency - expected).abs().max()) < 5e-3
    assert dead.tolist() == (margin.sum(1) == 0).tolist()


def test_the_mean_over_resampled_actions_is_the_weighted_mean():
    """Training on one drawn action per state is unbiased for the loss weighted by h, within 3 standard errors."""
    plan = transport.semi_relaxed(normal(8, 40), 0.02)
    loss = normal(8, 40, seed=1)
    drawn, _ = transport.resample(plan.compatibility, 20_000, torch.Generator().manual_seed(2))
    values = loss.gather(1, drawn)
    weight = plan.compatibility / plan.compatibility.sum(1, keepdim=True)
    deviation = values.mean(1) - (weight * loss).sum(1)
    assert (deviation.abs() <= 3 * values.std(1) / math.sqrt(20_000) + 1e-12).all()


def guide(points=(5, 7), keys=6, seed=0, temperature=0.1):
    states, actions = normal(points[0], 3, seed=seed), normal(points[1], 4, seed=seed + 1)
    key_states, key_actions = normal(keys, 3, seed=seed + 2), normal(keys, 4, seed=seed + 3)
    return states, actions, key_states, key_actions, temperature


@pytest.mark.parametrize("temperature", [1e-3, 0.1, 10.0])
def test_the_guiding_score_lies_between_0_and_ln_2_and_is_the_divergence_by_its_definition(temperature):
    states, actions, key_states, key_actions, _ = guide()
    score = transport.guiding_score(states, actions, key_states, key_actions, temperature)
    assert score.shape == (5, 7) and (score >= 0).all() and (score <= math.log(2) + 1e-6).all()
    cosine = torch.nn.functional.cosine_similarity

    def relative(p, middle):
        return torch.where(p > 0, p * (p / middle).log(), 0.0).sum()

    r_s = torch.softmax(-(1 - cosine(states[2], key_states, dim=1)) / temperature, 0)
    r_a = torch.softmax(-(1 - cosine(actions[3], key_actions, dim=1)) / temperature, 0)
    middle = (r_s + r_a) / 2
    divergence = (relative(r_s, middle) + relative(r_a, middle)) / 2
    assert float(score[2, 3]) == pytest.approx(float(divergence), abs=1e-9)


def test_the_guiding_score_is_0_where_relations_agree_and_grows_where_they_do_not():
    axes = torch.eye(3, dtype=torch.float64)
    score = transport.guiding_score(axes, axes, axes, axes, 0.1)
    assert float(score.diagonal().max()) < 1e-12
    assert float(score[0, 1]) > 0.6


def test_the_guiding_score_knows_no_sides_and_no_order_of_keypoints():
    states, actions, key_states, key_actions, temperature = guide()
    score = transport.guiding_score(states, actions, key_states, key_actions, temperature)
    assert torch.allclose(transport.guiding_score(actions, states, key_actions, key_states, temperature), score.T, atol=1e-12)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    assert torch.allclose(transport.guiding_score(states, actions, key_states[order], key_actions[order], temperature), score, atol=1e-12)
    with pytest.raises(TransportError, match="temperature"):
        transport.guiding_score(states, actions, key_states, key_actions, 0.0)


# On a GPU


on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")


def assert_same_on_cuda(function, *tensors):
    """What the function makes of tensors on the GPU stays there and is what it makes of them on the CPU, to 1e-9."""
    for ours, theirs in zip(function(*tensors), function(*(tensor.to("cuda") for tensor in tensors)), strict=True):
        assert theirs.device.type == "cuda"
        torch.testing.assert_close(theirs.cpu(), ours, rtol=0, atol=1e-9)


@on_cuda
@pytest.mark.parametrize("shape", [(12, 12), (9, 30), (30, 9), (4, 12, 20)], ids=str)
def test_plans_on_a_gpu_are_those_of_the_cpu(shape):
    """Single and batched; masked; with an epsilon for each problem; and the epsilons of a wanted support."""
    cost, share = normal(*shape), 1.0 / 5.0
    mask = transport.keypoint_mask(12, 12, [(0, 3), (4, 1)])

    def exact(cost, epsilon=0.3, **more):
        plan = transport.balanced(cost, epsilon, tolerance=1e-11, **more)
        return plan.compatibility, plan.u[..., :, None] + plan.v[..., None, :]

    def relaxed(cost):
        plan = transport.semi_relaxed(cost, 0.02)
        return plan.compatibility, plan.u, plan.row_error, plan.column_error

    assert_same_on_cuda(exact, cost)
    assert_same_on_cuda(relaxed, cost)
    for kind in Kind:
        assert_same_on_cuda(lambda cost, kind=kind: (transport.epsilon_for_support(cost, share, kind),), cost)
    if shape == (12, 12):
        assert_same_on_cuda(lambda cost, mask: exact(cost, mask=mask), cost, mask)
    if len(shape) == 3:
        assert_same_on_cuda(exact, cost, torch.linspace(0.1, 1.0, len(cost), dtype=torch.float64))


@on_cuda
@pytest.mark.parametrize("temperature", [0.1, 10.0])
def test_the_guiding_score_on_a_gpu_is_that_of_the_cpu(temperature):
    assert_same_on_cuda(lambda *points: (transport.guiding_score(*points, temperature),), *guide()[:4])


@on_cuda
@pytest.mark.parametrize("batch", [(), (3,)], ids=["single", "batched"])
def test_resampling_on_a_gpu_draws_by_the_same_shares(batch):
    """Its random numbers are others; rows that leave no choice and dead rows are the same."""
    h = torch.tensor([[0.0, 1.0, 3.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64).expand(*batch, 3, 3)
    drawn, dead = transport.resample(h.to("cuda"), 100_000, torch.Generator("cuda").manual_seed(0))
    assert drawn.device.type == dead.device.type == "cuda" and drawn.shape == (*batch, 3, 100_000)
    assert torch.equal(dead.cpu(), transport.resample(h, 1)[1])
    assert (drawn[..., 1, :] == 1).all()
    expected = torch.tensor([[0.0, 0.25, 0.75], [0.0, 1.0, 0.0], [1 / 3] * 3], dtype=torch.float64)
    shares = torch.stack([(drawn == column).double().mean(-1).cpu() for column in range(3)], dim=-1)
    assert float((shares - expected).abs().max()) < 0.01 and (shares[..., 0, 0] == 0).all()
