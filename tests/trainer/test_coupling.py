# SPDX-License-Identifier: Apache-2.0
"""From costs to compatibilities: what they do not depend on, how epsilon is led, and what is remembered."""

import pytest
import torch

from otpr_trainer.coupling import Coupling, Weights, health, row_standardized

STATES, CHUNKS = 12, 36


def cost(seed=0):
    return torch.randn(STATES, CHUNKS, generator=torch.Generator().manual_seed(seed))


def coupling(weights, support=4.0):
    torch.manual_seed(0)  # of the potentials' weights
    return Coupling(weights, support, state_size=3, chunk_size=2)


def points(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(STATES, 3, generator=generator), torch.randn(CHUNKS, 2, generator=generator)


@pytest.mark.parametrize("weights", Weights)
def test_neither_a_scale_of_q_nor_the_value_of_a_state_changes_h(weights):
    """H(a Q + f(s)) = H(Q): a critic's offset, such as of a longer horizon, must not change what is imitated."""
    value = torch.linspace(-50, 50, STATES)[:, None]
    torch.testing.assert_close(
        coupling(weights).compatibility(7.0 * cost() + value, *points()),
        coupling(weights).compatibility(cost(), *points()),
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_chunk_that_is_bad_everywhere_is_used_unless_the_columns_are_relaxed():
    """P21: balanced transport gives a bad chunk its full share, the semi-relaxed plan none."""
    bad = cost() + 100.0 * (torch.arange(CHUNKS) % 2)
    balanced = coupling(Weights.BALANCED).compatibility(bad)
    relaxed = coupling(Weights.SEMI_RELAXED).compatibility(bad)
    torch.testing.assert_close(balanced.mean(0), torch.ones(CHUNKS), rtol=0, atol=1e-5)
    assert (relaxed[:, 1::2] == 0).all()
    torch.testing.assert_close(relaxed.mean(1), torch.ones(STATES), rtol=0, atol=1e-5)


@pytest.mark.parametrize("weights", [Weights.BALANCED, Weights.SEMI_RELAXED, Weights.SOFTMAX])
@pytest.mark.parametrize("support", [2.0, 8.0])
def test_epsilon_is_led_to_the_wanted_number_of_chunks(weights, support):
    """After some blocks the median state uses about ``support`` chunks, whatever the way of weighting."""
    learner = coupling(weights, support)
    used = []
    for seed in range(120):
        learner.compatibility(cost(seed))
        used.append(learner.health["transport/median_chunks"])
    fewest = CHUNKS / STATES if weights is Weights.BALANCED else 1.0  # all chunks have to be used by some state
    assert abs(sum(used[-40:]) / 40 / max(support, fewest) - 1) < 0.35


@pytest.mark.parametrize("weights", Weights)
def test_a_critic_that_tells_nothing_apart_gives_no_nan(weights):
    """A constant cost: every weight is finite and no row is dead."""
    h = coupling(weights).compatibility(torch.full((STATES, CHUNKS), 0.25), *points())
    assert h.isfinite().all() and (h.sum(1) > 0).all()


def test_standardised_rows_have_no_mean_and_unit_spread():
    """By hand: [0, 2] and [10, 12] are both [-1, 1]."""
    torch.testing.assert_close(row_standardized(torch.tensor([[0.0, 2.0], [10.0, 12.0]])), torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]))


def test_health_by_hand():
    """Two rows over two chunks: one on a single chunk, one spread evenly."""
    values = health(torch.tensor([[2.0, 0.0], [1.0, 1.0]]), 0.5)
    assert values["transport/row_error"] == 0.0 and values["transport/column_error"] == 0.5
    assert values["transport/support"] == 0.75 and values["transport/effective_chunks"] == 1.5
    assert values["transport/entropy"] == pytest.approx(0.5) and values["transport/dead_rows"] == 0.0


def test_health_says_how_many_blocks_were_solved_and_nothing_before_the_first():
    """A plan that was never made must not look like a perfect one."""
    learner = coupling(Weights.SEMI_RELAXED)
    names = set(learner.health)
    assert not any(learner.health.values())
    for _ in range(3):
        learner.compatibility(cost())
    assert learner.health["transport/blocks"] == 3.0 and set(learner.health) == names and learner.health["transport/support"] > 0


def test_a_row_from_which_nothing_is_drawn_counts_as_dead():
    """By the bound of resampling, not only at 0."""
    assert health(torch.tensor([[5e-4, 0.0], [1.0, 1.0]]), 0.5)["transport/dead_rows"] == 0.5


@pytest.mark.parametrize("weights", Weights)
def test_candidates_are_weighed_as_a_block_of_one_state_each(weights):
    """H of 8 candidates at the epsilon and in the scale of the newest block: a value's offset and scale change nothing."""
    learner = coupling(weights)
    values = -cost(5)[:, :8]
    assert torch.equal(learner.acting_weights(values), torch.ones_like(values))  # nothing is known of their scale
    learner.compatibility(cost(), *points())
    other = coupling(weights)
    other.compatibility(7.0 * cost() + 3.0, *points())
    h = learner.acting_weights(values)
    torch.testing.assert_close(other.acting_weights(7.0 * values + torch.linspace(-9, 9, STATES)[:, None]), h, rtol=1e-3, atol=1e-3)
    assert (h >= 0).all() and (h.sum(1) > 0).all()
    if weights is not Weights.UNIFORM:
        best = values.argmax(1)
        assert (h.gather(1, best[:, None]) == h.amax(1, keepdim=True)).all() and not torch.equal(h, torch.ones_like(h))


def test_the_weights_of_candidates_are_those_of_the_objective_by_hand():
    """H = (u - c)_+ / 2 epsilon with c = 1/2 and -1/2 and epsilon 1 has a mean of 1 where u = 2."""
    learner = coupling(Weights.SEMI_RELAXED)
    learner.compatibility(torch.tensor([[0.0, 2.0], [2.0, 0.0]]))  # spread 1
    learner.epsilon = 1.0
    assert learner.acting_weights(torch.tensor([[0.5, 1.5]])).tolist() == [[pytest.approx(0.75), pytest.approx(1.25)]]


@pytest.mark.parametrize("weights", [Weights.SEMI_RELAXED, Weights.POTENTIALS])
def test_a_restored_coupling_goes_on_bit_equal(weights):
    """Epsilon, and networks with their optimiser, are all that is remembered."""
    one = coupling(weights)
    for seed in range(3):
        one.compatibility(cost(seed), *points(seed))
    other = Coupling(weights, 4.0, state_size=3, chunk_size=2)
    other.restore({name: tensor.clone() for name, tensor in one.tensors().items()}, one.values())
    for seed in range(3, 6):
        assert torch.equal(one.acting_weights(cost(seed)), other.acting_weights(cost(seed)))
        assert torch.equal(one.compatibility(cost(seed), *points(seed)), other.compatibility(cost(seed), *points(seed)))


def test_learned_potentials_approach_the_exact_marginals():
    """On one block again and again, row means come within 10 % of 1 on average (P20)."""
    learned = coupling(Weights.POTENTIALS, support=12.0)
    states, chunks = points()
    block = torch.cdist(states[:, :2], chunks).float()
    for _ in range(80):
        h = learned.compatibility(block, states, chunks)
    assert (h.mean(1) - 1).abs().mean() < 0.1


@pytest.mark.parametrize("weights", Weights)
def test_no_gradient_passes_through_h(weights):
    """P18: neither critic nor policy learn through the plan."""
    values, error = cost().requires_grad_(True), cost(1).requires_grad_(True)
    states, chunks = (point.requires_grad_(True) for point in points())
    h = coupling(weights).compatibility(values, states, chunks)
    (h * error).sum().backward()
    assert torch.equal(error.grad, h) and not h.requires_grad
    assert values.grad is None and states.grad is None and chunks.grad is None


@pytest.mark.parametrize("weights", [Weights.SEMI_RELAXED, Weights.SOFTMAX, Weights.ARGMAX])
def test_a_chunk_that_is_best_in_every_state_is_seen(weights):
    """Centring columns too would hide it."""
    better = cost() - 10.0 * (torch.arange(CHUNKS) == 3)
    assert (coupling(weights).compatibility(better).argmax(1) == 3).all()
