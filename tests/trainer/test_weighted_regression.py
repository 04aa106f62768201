# SPDX-License-Identifier: Apache-2.0
"""DRWR and DAWR: what a chunk weighs, by hand, and that cloning is what is left where all weigh the same."""

import math

import point_tuning
import pytest
import torch

from otpr_trainer.algorithms.dawr import discounted_sums, lambda_returns
from otpr_trainer.data.replay import Origin, Transitions, mixed_rows
from otpr_trainer.finetune_cloning import exponential_weights

both = pytest.mark.parametrize("name", ["drwr", "dawr"])


@pytest.fixture(autouse=True)
def here(monkeypatch):
    point_tuning.play_here(monkeypatch)


# Weights


def test_weights_are_the_exponentials_of_standard_scores_up_to_the_largest():
    """Of 0, 0, 0, 4: mean 1, deviation sqrt(3), so scores -1/sqrt(3) and sqrt(3)."""
    z = 1 / (3**0.5 + 1e-3)
    one = exponential_weights(torch.tensor([0.0, 0.0, 0.0, 4.0]), 1.0, 100.0)
    assert one.tolist() == pytest.approx([math.exp(-z)] * 3 + [math.exp(3 * z)], rel=1e-5)
    ten = exponential_weights(torch.tensor([0.0, 0.0, 0.0, 4.0]), 10.0, 100.0)
    assert ten.tolist() == pytest.approx([math.exp(-10 * z)] * 3 + [100.0], rel=1e-5)
    assert exponential_weights(torch.rand(9), 0.0, 100.0).tolist() == [1.0] * 9


def test_weights_do_not_depend_on_the_scale_or_offset_of_what_is_weighed():
    value = torch.rand(50, generator=torch.Generator().manual_seed(0))
    expected = exponential_weights(value, 3.0, 1e3)
    assert torch.allclose(exponential_weights(1000 * value + 7, 3.0, 1e3), expected, rtol=0.05)
    assert (expected.argsort() == value.argsort()).all() and (expected > 0).all()


@pytest.mark.parametrize("value", [0.0, 0.3, -7.0])
def test_values_all_alike_weigh_1(value):
    assert exponential_weights(torch.full((7,), value), 10.0, 100.0).tolist() == [1.0] * 7


def gradients(learner, loss):
    return torch.autograd.grad(loss, list(learner.actor.learner.parameters()))


@both
def test_where_all_chunks_are_as_good_it_is_plain_cloning(make, name):
    """The loss and every gradient."""
    learner = make(name)
    learner.update()
    learner.replay.transitions.observed_return.fill_(0.4)
    learner.advantage = torch.full((len(learner.replay),), -0.2)
    rows = learner.rows()
    batch = learner.replay.transitions.rows(rows)
    learner.generator.manual_seed(1)
    loss = learner.policy_loss(rows)
    learner.generator.manual_seed(1)
    cloning = learner.actor.denoising_loss(learner.replay.condition[batch.state], batch.chunk).mean()
    assert loss.item() == cloning.item()
    for ours, theirs in zip(gradients(learner, loss), gradients(learner, cloning), strict=True):
        assert torch.equal(ours, theirs)


@both
def test_a_chunk_weighs_by_what_was_seen_after_it(make, name):
    """Returns, or advantages; every row with its own state and chunk, and two different weights scale two losses."""
    learner = make(name, inverse_temperature=2.0)
    learner.update()
    rows = torch.tensor([0, len(learner.replay) - 1])
    batch = learner.replay.transitions.rows(rows)
    learner.replay.transitions.observed_return[rows] = torch.tensor([1.0, 0.0])
    learner.advantage = torch.zeros(len(learner.replay))
    learner.advantage[rows] = torch.tensor([0.7, -0.3])
    targets = learner.targets(rows)
    assert targets.weight.tolist() == pytest.approx([math.exp(2.0), math.exp(-2.0)], rel=0.01)
    assert torch.equal(targets.x_0, batch.chunk) and torch.equal(targets.condition, learner.replay.condition[batch.state])
    learner.actor.denoising_loss = lambda condition, x_0: torch.tensor([1.0, 10.0])
    assert float(learner.policy_loss(rows)) == pytest.approx((math.exp(2.0) + 10 * math.exp(-2.0)) / 2, rel=0.01)


def test_drwr_clones_the_newest_of_its_own_play_and_dawr_all(make):
    learner, other = make("drwr", recent_steps=7), make("dawr")
    assert len(learner.own_rows()) == 0 and (learner.rows() < learner.demonstrations).all()
    for one in (learner, other):
        one.update()
    assert learner.own_rows().tolist() == list(range(len(learner.replay) - 7, len(learner.replay)))
    assert other.own_rows().tolist() == list(range(other.demonstrations, len(other.replay)))
    assert make("drwr", recent_steps=10**6).own_rows().tolist() == []


def test_a_mixed_batch_has_its_share_of_demonstrations_and_the_rest_of_own_rows():
    generator = torch.Generator().manual_seed(0)
    own = torch.tensor([10, 20, 30])
    rows = mixed_rows(5, own, 100, 0.25, generator)
    assert (rows < 5).sum() == 25 and set(rows[rows >= 5].tolist()) == {10, 20, 30} and set(rows[rows < 5].tolist()) == set(range(5))
    assert (mixed_rows(5, own[:0], 100, 0.25, generator) < 5).all()
    assert set(mixed_rows(5, own, 100, 0.0, generator).tolist()) == {10, 20, 30}
    assert (mixed_rows(5, own, 100, 1.0, generator) < 5).all()


# Returns


def chain():
    """Five states; row 0 from 0 to 2, row 1 from 2 to 3, where an episode ends; row 2 from 4 to 5, where one was cut off."""
    numbers = {"reward": [0.0, 0.5, 0.1], "observed_return": [0.4, 0.5, 0.1], "discount": [0.8, 0.0, 0.9]}
    state, next_state, origin = torch.tensor([0, 2, 4]), torch.tensor([2, 3, 5]), torch.full((3,), int(Origin.SUCCESS))
    tensors = {name: torch.tensor(values) for name, values in numbers.items()}
    return Transitions(state=state, chunk=torch.zeros(3, 2, 2), next_state=next_state, origin=origin, **tensors)


@pytest.mark.parametrize(
    ("trace", "first"),
    [(0.0, 0.8 * 0.3), (1.0, 0.8 * 0.5), (0.25, 0.8 * (0.75 * 0.3 + 0.25 * 0.5))],
)
def test_lambda_returns_by_hand(trace, first):
    """V(s_2) = 0.3 and R_1 = 0.5: what row 0 looks ahead to. Rows 1 and 2 have no next one: 0.5, and 0.1 + 0.9 V(s_5)."""
    values = torch.tensor([0.9, 0.9, 0.3, 0.9, 0.9, 0.6])
    rows = chain()
    assert lambda_returns(rows, values, trace).tolist() == pytest.approx([first, 0.5, 0.1 + 0.9 * 0.6])
    rows.origin[2], rows.observed_return[2] = Origin.DEMONSTRATION, 0.7  # which ended later, in success
    last = (1 - trace) * (0.1 + 0.9 * 0.6) + trace * 0.7
    assert lambda_returns(rows, values, trace).tolist() == pytest.approx([first, 0.5, last])


def test_lambda_returns_of_replay_are_those_of_the_recursion(make):
    learner = make("dawr")
    learner.update()
    learner.update()
    rows, trace = learner.replay.transitions, 0.7
    values = torch.rand(learner.replay.states, generator=torch.Generator().manual_seed(3))
    row_of = {int(state): row for row, state in enumerate(rows.state)}
    expected = [0.0] * len(rows)
    for row in range(len(rows) - 1, -1, -1):
        ahead = int(rows.next_state[row])
        following = expected[row_of[ahead]] if ahead in row_of else float(values[ahead])
        if ahead not in row_of and rows.origin[row] == Origin.DEMONSTRATION:
            following = float((rows.observed_return[row] - rows.reward[row]) / rows.discount[row])
        expected[row] = float(rows.reward[row] + rows.discount[row] * ((1 - trace) * values[ahead] + trace * following))
    assert lambda_returns(rows, values, trace).tolist() == pytest.approx(expected, abs=1e-5)


def test_with_lambda_1_the_return_of_an_episode_that_ended_is_the_one_that_was_seen(make):
    """Whatever V says."""
    learner = make("dawr")
    while not (learner.replay.transitions.origin == Origin.SUCCESS).any():
        learner.update()
    rows = learner.replay.transitions
    found = lambda_returns(rows, torch.rand(learner.replay.states), 1.0)
    solved = rows.origin != Origin.FAILURE
    assert torch.allclose(found[solved], rows.observed_return[solved], atol=1e-6)


def test_discounted_sums_look_any_number_of_rows_ahead():
    """A chain of 1000: x_i = 1 + 0.9 x_{i+1} is the geometric series."""
    following = torch.arange(1, 1001)
    decay = torch.full((1000,), 0.9, dtype=torch.float64)
    decay[-1], following[-1] = 0.0, -1
    found = discounted_sums(torch.ones(1000, dtype=torch.float64), decay, following)
    expected = (1 - 0.9 ** torch.arange(1000, 0, -1, dtype=torch.float64)) / 0.1
    assert torch.allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("trace", [0.3, 0.95])
def test_the_advantage_is_the_return_minus_the_value_of_the_newest_v(make, trace):
    learner = make("dawr", trace=trace)
    learner.update()
    values = learner.value.value(learner.replay.condition)
    rows = learner.replay.transitions
    expected = lambda_returns(rows, values, trace) - values[rows.state]
    assert torch.equal(learner.advantage, expected) and float(expected.std()) > 0


def test_v_learns_from_its_returns_and_not_from_the_policys_loss(make):
    learner = make("dawr", critic_updates=0.0, warmup_updates=0)
    learner.update()
    learner.policy_loss(learner.rows()).backward()
    assert all(parameter.grad is None for parameter in learner.value.network.parameters())
    errors = []
    for updates in (0, 200):
        patient = make("dawr", critic_updates=0.0, warmup_updates=updates, critic_learning_rate=1e-2, trace=1.0)
        patient.update()
        returns, values = patient.returns()
        errors.append(float((returns - values).square().mean()))
    assert errors[1] < 0.25 * errors[0]
