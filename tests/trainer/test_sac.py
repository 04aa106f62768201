# SPDX-License-Identifier: Apache-2.0
"""Soft actor-critic on chunks, and what RLPD, residual RL and noise steering (DSRL) make of it."""

import importlib
import math
from dataclasses import replace

import numpy as np
import point_tuning
import pytest
import torch
from torch import nn

from otpr_policy.errors import RunError
from otpr_trainer.policy import TorchPolicy
from otpr_trainer.sac import EntropyActor, by_turns

NAMES = ("rlpd", "residual", "dsrl")


@pytest.fixture(scope="module")
def learners():
    """One learner of each, after a round. Nobody may change it."""
    with pytest.MonkeyPatch.context() as patch:
        point_tuning.play_here(patch)
        found = {}
        for name in NAMES:
            module = importlib.import_module(f"otpr_trainer.algorithms.{name}")
            found[name] = module.Learner(module.Config(**point_tuning.SETTINGS[name]), point_tuning.setup())
            with torch.no_grad():  # as if it had learnt: an untrained one is 0 everywhere
                generator = torch.Generator().manual_seed(2)
                for parameter in found[name].policy.gaussian.parameters():
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            found[name].update()
        yield found
        for learner in found.values():
            learner.close()


@pytest.fixture(params=NAMES)
def learner(learners, request):
    return learners[request.param]


def repeatable(learner, function):
    """What the function makes of the learner's present draws, and a generator that draws the same."""
    state = learner.generator.get_state()
    result = function()
    return result, torch.Generator().set_state(state)


def shape(learner, count):
    return (count, *learner.policy.gaussian.chunk_shape)


# The actor


def test_the_actors_loss_by_hand():
    actor = EntropyActor(nn.Linear(1, 1), learning_rate=0.1, temperature=0.5, temperature_learning_rate=0.1, target_entropy=-1.0)
    loss = actor.loss(torch.tensor([0.2, 0.4]), torch.tensor([1.0, 3.0]))
    assert float(loss) == pytest.approx((0.5 * 1 - 0.2 + 0.5 * 3 - 0.4) / 2)


@pytest.mark.parametrize(("entropy", "moves"), [(-0.5, -1), (-1.5, 1), (-1.0, 0)])
def test_the_temperature_falls_where_entropy_is_above_its_target_and_rises_where_it_is_below(entropy, moves):
    network = nn.Linear(1, 1)
    actor = EntropyActor(network, learning_rate=0.1, temperature=0.5, temperature_learning_rate=0.1, target_entropy=-1.0)
    log_prob = torch.tensor([-entropy - 0.3, -entropy + 0.3])
    assert float(actor.temperature_loss(log_prob).detach()) == pytest.approx(0.5 * (entropy + 1.0), abs=1e-6)
    actor.step(network(torch.ones(1, 1)).sum(), log_prob)
    change = float(actor.temperature) - 0.5
    assert abs(change) < 1e-6 if moves == 0 else math.copysign(1, change) == moves


def test_the_target_entropy_counts_the_elements_that_have_one(learners):
    """Chunks of 3 x 2 of which 2 x 2 are carried out; of noise all elements count."""
    assert learners["rlpd"].entropy.target_entropy == learners["residual"].entropy.target_entropy == -0.5 * 4
    module = importlib.import_module("otpr_trainer.algorithms.dsrl")
    steered = module.Learner(module.Config(**point_tuning.SETTINGS["dsrl"], target_entropy=-1.0), point_tuning.setup())
    assert steered.entropy.target_entropy == -6.0


def test_log_probabilities_are_those_of_what_was_drawn(learners):
    """Over executed elements, and for noise over all."""
    states = torch.arange(5)
    for name, learner in learners.items():
        (chunk, log_prob), generator = repeatable(learner, lambda learner=learner: learner.propose(states))
        condition = learner.replay.condition[states]
        if name == "residual":
            column = torch.randint(2, (5,), generator=generator)
            base = learner.replay.candidates[states, column]
            expected, elements = learner.policy.sample(condition, base, torch.randn(shape(learner, 5), generator=generator))
        else:
            expected, elements = learner.policy.sample(condition, torch.randn(shape(learner, 5), generator=generator))
        counted = elements if name == "dsrl" else elements[:, :2]
        torch.testing.assert_close(log_prob, counted.sum((1, 2)))
        torch.testing.assert_close(chunk, learner.denoised(condition, expected) if name == "dsrl" else expected)


def test_the_actors_gradient_reaches_nothing_but_its_gaussian(learner):
    states = torch.arange(6)
    value, log_prob = learner.actor_objective(states)
    for critic in (learner.critic, getattr(learner, "noise_critic", learner.critic)):
        critic.ensemble.zero_grad()
    learner.entropy.loss(value, log_prob).backward()
    assert all(parameter.grad is None for parameter in learner.critic.ensemble.parameters())
    assert all(
        (parameter.grad is not None) == name.startswith(("gaussian.", "network.gaussian."))
        for name, parameter in learner.policy.named_parameters()
    )
    assert any(parameter.grad.any() for parameter in learner.policy.gaussian.parameters())


def test_only_the_gaussian_learns(learner):
    start = point_tuning.cloned().state_dict()
    ours = learner.policy.state_dict()
    kept = [name for name in ours if "gaussian." not in name]
    assert len(kept) == (4 if learner.policy_config.gaussian.role.value == "policy" else len(start))
    assert all(torch.equal(ours[name], start[name]) for name in kept)
    tensors = learner.checkpoint().tensors
    assert {name.removeprefix("policy.") for name in tensors if name.startswith("policy.")} == set(ours)


def test_critics_and_actor_take_turns_evenly():
    assert list(by_turns(4, 2)) == [False, True, True, False, True, True]
    for first, second in ((0, 3), (3, 0), (0, 0), (7, 3), (3, 7), (500, 17)):
        turns = list(by_turns(first, second))
        assert (sum(turns), len(turns)) == (first, first + second)
        for n in range(len(turns)):  # never more than one behind its share
            assert abs(sum(turns[: n + 1]) - (n + 1) * first / (first + second)) <= 1


# The critic


def test_rlpds_target_by_hand(learners, monkeypatch):
    """That is r + gamma^k min of two target critics at a fresh action, at least the return seen; r alone at an end; and no entropy."""
    learner = learners["rlpd"]
    batch = learner.replay.transitions
    state = learner.generator.get_state()
    target, generator = repeatable(learner, lambda: learner.critic_target(batch))
    condition = learner.replay.condition[batch.next_state]
    chunk, _ = learner.policy.sample(condition, torch.randn(shape(learner, len(batch)), generator=generator))
    pair = torch.randperm(3, generator=generator)[:2]
    values = torch.sigmoid(learner.critic._target(condition, chunk[:, :2]))
    differences = batch.reward + batch.discount * values[pair].min(0).values
    torch.testing.assert_close(target, torch.maximum(differences, batch.observed_return))
    monkeypatch.setattr(learner, "settings", replace(learner.settings, observed_returns=False))
    learner.generator.set_state(state)
    torch.testing.assert_close(learner.critic_target(batch), differences)
    assert not torch.equal(target, differences)
    over = batch.discount == 0
    assert over.any() and torch.equal(target[over], batch.reward[over])
    assert not torch.allclose(values[pair].min(0).values, values.min(0).values)  # the third would have made a difference
    monkeypatch.setattr(learner.entropy, "_log_temperature", nn.Parameter(torch.tensor(5.0)))
    learner.generator.set_state(state)
    assert torch.equal(learner.critic_target(batch), differences)


def test_what_an_actor_climbs_is_the_mean_for_rlpd_and_the_smallest_for_the_others(learners):
    values = torch.tensor([[0.1, 0.9], [0.5, 0.2]])
    torch.testing.assert_close(learners["rlpd"].actor_value(values), torch.tensor([0.3, 0.55]))
    for name in ("residual", "dsrl"):
        torch.testing.assert_close(learners[name].actor_value(values), torch.tensor([0.1, 0.2]))


def test_half_of_a_batch_are_demonstrations_and_before_anything_was_played_all(learner):
    origin = learner.batch().origin
    assert int((origin == 0).sum()) == 8 == len(origin) - 8
    module = importlib.import_module("otpr_trainer.algorithms.rlpd")
    fresh = module.Learner(module.Config(**point_tuning.SETTINGS["rlpd"]), point_tuning.setup())
    assert (fresh.batch().origin == 0).all() and len(fresh.batch()) == 16


# Playing


def test_before_the_actor_acts_others_do(learners):
    """RLPD: uniform; residual: the cloned policy; DSRL: the cloned policy's chain from plain noise."""
    noise = torch.randn(4000, 1, 3, 2, generator=torch.Generator().manual_seed(0))
    uniform = learners["rlpd"].begin(torch.zeros(4000, 6), noise).flatten().sort().values
    assert float((uniform - torch.linspace(-1, 1, len(uniform))).abs().max()) < 0.02  # Kolmogorov and Smirnov's distance, doubled
    condition = learners["residual"].replay.condition[:5]
    residual, steered = learners["residual"], learners["dsrl"]
    draws = torch.randn(5, residual.draws, 3, 2)
    start = TorchPolicy(point_tuning.cloned(), residual.actor.reverse)
    expected = start.policy.chain(torch.zeros(5, 2, 3), draws[:, :-1], residual.actor.reverse)[-1]
    same = residual.actor.policy.condition(torch.zeros(5, 2, 3))
    torch.testing.assert_close(residual.begin(same, draws), expected)
    assert residual.actor.reverse.eta == 1.0 and steered.actor.reverse.eta == 0.0
    w = torch.randn(5, 1, 3, 2)
    torch.testing.assert_close(steered.begin(condition, w), steered.denoised(condition, w[:, 0]))
    for learner in learners.values():
        assert learner.acting()._chunks == learner.explore  # start_steps is 0 in these settings


def test_it_acts_from_start_steps_on():
    module = importlib.import_module("otpr_trainer.algorithms.rlpd")
    learner = module.Learner(module.Config(**{**point_tuning.SETTINGS["rlpd"], "start_steps": 40}), point_tuning.setup())
    for step, chunks in ((0, learner.begin), (39, learner.begin), (40, learner.explore)):
        learner.step = step
        assert learner.acting()._chunks == chunks


def test_without_its_exploration_a_training_episodes_chunk_is_that_of_an_evaluation(learner):
    observations = np.tile([0.4, 20.0, 20.0], (3, 2, 1)) + np.linspace(0, 0.3, 3)[:, None, None]
    rng = np.random.default_rng(0)
    judged = learner.evaluated()["policy"]
    noise = rng.standard_normal((3, *judged.noise_shape))
    draws = np.zeros((3, learner.draws, 3, 2))
    if learner.draws > 1:
        draws[:, :-1] = noise  # the cloned policy's own
    episodes = np.arange(3)
    expected = judged.decide(observations, noise, episodes)
    np.testing.assert_allclose(learner.acting().decide(observations, draws, episodes), expected, atol=1e-6)
    draws[:, -1] = 1.0
    assert not np.allclose(learner.acting().decide(observations, draws, episodes), expected, atol=1e-3)


# Noise steering


def test_the_critic_of_noise_learns_the_value_of_the_chunk_that_noise_leads_to(learners):
    """Of the smallest of its critics, at w ~ N(0, I); and the actor climbs that critic."""
    learner, states = learners["dsrl"], torch.arange(7)
    loss, generator = repeatable(learner, lambda: learner.noise_critic_loss(states))
    condition, w = learner.replay.condition[states], torch.randn(shape(learner, 7), generator=generator)
    chunk = learner.denoised(condition, w)
    q = torch.sigmoid(learner.critic.ensemble(condition, chunk[:, :2])).min(0).values.detach()
    logits = learner.noise_critic.ensemble(condition, w)
    expected = nn.functional.binary_cross_entropy_with_logits(logits, q.expand_as(logits))
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    (value, _), generator = repeatable(learner, lambda: learner.actor_objective(states))
    w, _ = learner.policy.sample(condition, torch.randn(shape(learner, 7), generator=generator))
    torch.testing.assert_close(value, torch.sigmoid(learner.noise_critic.ensemble(condition, w)).min(0).values)


# What makes no sense


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        *[
            ("rlpd", setting, value)
            for setting in ("temperature", "temperature_learning_rate", "actor_learning_rate", "critic_learning_rate")
            for value in (0.0, np.nan)
        ],
        *[("rlpd", setting, 0) for setting in ("batch_size", "actor_width", "actor_depth", "critic_heads", "critic_width", "critic_depth")],
        *[("rlpd", setting, -1) for setting in ("actor_updates", "critic_updates", "warmup_updates", "start_steps")],
        *[("rlpd", "gamma", 0.0), ("rlpd", "demo_share", 1.0), ("rlpd", "target_rate", 0.0), ("rlpd", "target_entropy", np.inf)],
        *[("residual", "scale", value) for value in (-0.1, 2.5, np.nan)],
        *[("residual", "sampling_steps", 0), ("residual", "cached_candidates", 0)],
        *[("dsrl", "bound", value) for value in (0.0, np.inf)],
        *[("dsrl", "sampling_steps", 0), ("dsrl", "noise_critic_updates", 0)],
    ],
)
def test_a_number_without_meaning_is_refused_by_its_name(name, setting, value):
    module = importlib.import_module(f"otpr_trainer.algorithms.{name}")
    with pytest.raises(RunError, match=setting):
        module.Config(**{setting: value})


@pytest.mark.parametrize("name", NAMES)
def test_the_papers_settings_are_settings(name):
    module = importlib.import_module(f"otpr_trainer.algorithms.{name}")
    assert not module.Config(**module.VARIANTS["paper"]).observed_returns
