# SPDX-License-Identifier: Apache-2.0
"""OTPR: what an offset or a scale of Q does not change, in training, in acting and beside the keypoints' guidance."""

from dataclasses import replace
from functools import partial

import numpy as np
import point_tuning
import pytest
import torch

from otpr_trainer.acting import every_other, never
from otpr_trainer.algorithms.otpr import Pool, Weights


@pytest.fixture(autouse=True)
def here(monkeypatch):
    point_tuning.play_here(monkeypatch)


@pytest.fixture
def make(make):
    """Makes learners of OTPR on the point task."""
    return partial(make, "otpr")


def spread(cost):
    """Of the numbers within rows."""
    return (cost - cost.mean(1, keepdim=True)).square().mean().sqrt()


def test_guidance_goes_from_the_cost_itself_to_the_keypoints_alone_with_both_in_units_of_their_spread(make):
    """(1 - alpha) c + alpha g: alpha = 0 is c; at 1 no Q is left; the term of Q has a spread of 1 - alpha, that of g of alpha."""
    learner = make(pool="all")
    pairs, q = learner.keypoints(24), torch.rand(12, 24, generator=torch.Generator().manual_seed(3))

    def guided(alpha, cost):
        learner.config = replace(learner.config, guidance=alpha)
        learner.generator.manual_seed(5)
        return learner.guided(cost, pairs.condition[:12], pairs.x_0.flatten(1))

    assert torch.equal(guided(0.0, -q), -q)
    keypoints = guided(1.0, -q)
    assert torch.equal(keypoints, guided(1.0, 1e3 * q.flip(1))) and spread(keypoints).item() == pytest.approx(1.0, rel=1e-5)
    for alpha in (0.25, 0.5, 0.9):
        for scale in (1e-2, 1.0, 50.0):
            of_q = guided(alpha, -scale * q) - alpha * keypoints
            assert spread(of_q).item() == pytest.approx(1 - alpha, rel=1e-4)
            torch.testing.assert_close(of_q, (1 - alpha) * (q.mean(1, keepdim=True) - q) / spread(q), rtol=1e-3, atol=1e-5)


def shifted(learner, by):
    """The learner, whose critics are rough as after long training, and all of whose values are higher by a number of the state."""
    critic, generator = learner.critic, torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in critic.ensemble.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))

    def wrapped(values):
        return lambda condition, chunks: values(condition, chunks).double() + by * condition.double().sum(1).sin()[:, None]

    critic.values, critic.cross_values = wrapped(critic.values), wrapped(critic.cross_values)
    return learner


KINDS = [(pool, weights) for pool in Pool for weights in Weights if not (pool is Pool.OWN and weights.shares_chunks)]


@pytest.mark.parametrize("resampling", [True, False])
@pytest.mark.parametrize(("pool", "weights"), KINDS)
def test_what_a_state_is_worth_decides_nothing(make, pool, weights, resampling):
    """Q + f(s) leads to the same states and chunks as Q, in training and in acting."""
    changes = {"pool": pool.value, "weights": weights.value, "train_resampling": resampling, "block_states": 12, "gain_sampling": 4}
    ours, theirs = (shifted(make(**changes, guidance=0.0 if pool is Pool.OWN else 0.3), by) for by in (0.0, 20.0))
    for _ in range(2):  # the second block begins with the epsilon that the first has led to
        one, other = ours.block(), theirs.block()
        assert torch.equal(one.condition, other.condition) and torch.equal(one.x_0, other.x_0)
        torch.testing.assert_close(one.weight, other.weight, rtol=1e-4, atol=1e-4)
    spec = ours.policy_config.spec
    observations = np.random.default_rng(0).uniform(spec.observation.low, spec.observation.high, (40, 2, spec.observation.size))
    acting = [learner._acting(every_other) for learner in (ours, theirs)]
    noise = np.random.default_rng(1).standard_normal((40, *acting[0].noise_shape))
    ours_by_choice, theirs_by_choice = (one.decide(observations, noise, np.arange(40)) for one in acting)
    np.testing.assert_array_equal(ours_by_choice, theirs_by_choice)
    assert not np.array_equal(ours_by_choice, ours._acting(never).decide(observations, noise[:, :1], np.arange(40)))
