# SPDX-License-Identifier: Apache-2.0
"""DPPO's settings: which number each one changes, and which values are refused."""

import math
from dataclasses import replace

import numpy as np
import point_tuning
import pytest
import torch

from otpr_policy.errors import OtprError, RunError, TaskError
from otpr_trainer.algorithms import dppo
from otpr_trainer.algorithms.dppo import Config, Decisions

SMALL = {"sampling_steps": 3, "finetuned_steps": 2, "critic_width": 16, "evaluate_every": 0}


@pytest.fixture(autouse=True)
def here(monkeypatch):
    point_tuning.play_here(monkeypatch)


def conditions(learner, count):
    """Of states anywhere on the line, (count, condition_size)."""
    seen = np.random.default_rng(0).uniform([-1, 20, 20], [1, 20, 20], (count, 2, 3))
    return learner.actor.condition(seen)


def sampled(learner, count):
    """Conditions, and a chain that the policy sampled in each."""
    condition = conditions(learner, count)
    noise = torch.randn(count, *learner.actor.noise_shape, generator=torch.Generator().manual_seed(1))
    return condition, learner.actor.sample(condition, noise)


# What V learns


def two_episodes(learner):
    """Of three decisions each: one that ends in success, and one that is cut off. No two of their eight states are alike."""
    axes = 3.0 * torch.eye(learner.policy_config.condition_size)
    states = torch.cat([axes, -axes])[:8]
    ended = torch.tensor([False, False, True] * 2)
    return Decisions(
        condition=states[[0, 1, 2, 4, 5, 6]],
        chain=torch.zeros(6, 3, 3, 2),
        reward=torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64),
        next_condition=states[[1, 2, 3, 5, 6, 7]],
        terminated=ended & (torch.arange(6) == 2),
        ended=ended,
    )


@pytest.mark.parametrize(("gamma", "trace"), [(0.9, 0.0), (0.9, 0.6), (0.7, 1.0)])
def test_v_learns_the_return_of_lambda_of_what_was_played(make, gamma, trace):
    """R_t = r_t + gamma ((1 - lambda) V(s_{t+1}) + lambda R_{t+1}), with the V of before the round; at an end it is r, or r + gamma V."""
    settings = {**SMALL, "gamma": gamma, "gae_lambda": trace, "epochs": 150, "batch_size": 1000, "critic_learning_rate": 0.01}
    learner = make("dppo", **settings)
    learner.critic.network.head_bias.data.zero_()  # a V of about one half, so that no part of a return is small
    batch = two_episodes(learner)
    following = learner.critic.value(batch.next_condition).tolist()
    expected = [0.0, 0.0, 1.0, 0.0, 0.0, gamma * following[5]]
    for t in (1, 0, 4, 3):
        expected[t] = gamma * ((1 - trace) * following[t] + trace * expected[t + 1])
    learner._kept = [batch]
    learner.learn(0, 0)
    assert learner.critic.value(batch.condition).tolist() == pytest.approx(expected, abs=0.02)


# Noise


@pytest.mark.parametrize(("exploration", "likelihood"), [(0.05, 0.2), (0.3, 0.15), (0.1, 0.4)])
def test_one_floor_is_of_the_noise_that_acts_and_the_other_of_likelihoods(make, exploration, likelihood):
    """DDIM's last step has no noise of its own. One draw moves its result by the one; that is worth 0.5 (one / other)^2 of likelihood."""
    learner = make("dppo", **SMALL, exploration_std=exploration, likelihood_std=likelihood)
    condition = conditions(learner, 4)
    noise = torch.zeros(4, *learner.actor.noise_shape)
    plain = learner.actor.sample(condition, noise)
    noise[:, -1] = 1.0
    moved = learner.actor.sample(condition, noise)
    assert torch.allclose(moved[:, -1] - plain[:, -1], torch.tensor(exploration), atol=1e-6)
    peak = -math.log(likelihood) - 0.5 * math.log(2 * math.pi)
    assert learner.actor.log_probs(condition, plain)[:, -1].tolist() == pytest.approx([peak] * 4, abs=1e-5)
    away = peak - 0.5 * (exploration / likelihood) ** 2
    assert learner.actor.log_probs(condition, moved)[:, -1].tolist() == pytest.approx([away] * 4, abs=1e-5)


# Staying close to the start policy


def test_the_bc_term_weighs_what_its_coefficient_says(make, monkeypatch):
    """The gradient of a step is the surrogate's plus the coefficient times that of the start's chains' -log-likelihood."""

    def gradient(coefficient, of_bc_loss=False):
        learner = make("dppo", **SMALL, bc_coefficient=coefficient)
        (condition, chain), found = sampled(learner, 6), []
        row, index = torch.arange(6), torch.arange(6) % 2

        def keep(loss):
            found.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(learner.actor.policy.network.parameters()))]))
            return found[-1].norm()

        if of_bc_loss:
            keep(learner.bc_loss(condition, index))
            return found[0]
        batch = replace(two_episodes(learner), condition=condition, chain=chain)
        monkeypatch.setattr(learner.actor, "step", keep)
        old = learner.actor.log_probs(condition, chain)[row, index]
        learner.update_policy(batch, row, index, old, torch.linspace(-1.0, 2.0, 6))
        return found[0]

    surrogate, term = gradient(0.0), gradient(0.0, of_bc_loss=True)
    assert surrogate.norm() > 0.01 and term.norm() > 0.01
    for coefficient in (0.3, 2.0, 40.0):
        assert torch.allclose(gradient(coefficient), surrogate + coefficient * term, rtol=1e-4, atol=1e-5), coefficient


# What makes no sense

WRONG = {
    "envs": (0,),
    "episodes": (0,),
    "evaluate_episodes": (0,),
    "evaluate_every": (-1,),
    "sampling_steps": (0,),
    "finetuned_steps": (0, -1),
    "epochs": (0,),
    "batch_size": (0,),
    "critic_width": (0,),
    "critic_depth": (0,),
    "warmup_rounds": (-1,),
    "eta": (-0.1, 1.1, np.nan),
    "gae_lambda": (-0.1, 1.1, np.nan),
    "gamma": (0.0, 1.1, np.nan),
    "gamma_denoising": (0.0, 1.1, np.nan),
    "exploration_std": (-0.1, np.nan, np.inf),
    "likelihood_std": (0.0, -0.1, np.nan),
    "clip": (0.0, 1.0, 0.0001, np.nan),
    "clip_first": (0.0, 0.5, np.nan),
    "actor_learning_rate": (0.0, -1.0, np.nan),
    "critic_learning_rate": (0.0, np.nan),
    "target_kl": (0.0, np.nan),
    "bc_coefficient": (-1.0, np.nan),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_number_without_meaning_is_refused_by_its_name(name, value):
    with pytest.raises(RunError, match=name) as error:
        Config(**{name: value})
    assert "\n" not in str(error.value)


def test_what_the_start_policy_cannot_do_is_refused(make):
    with pytest.raises(RunError, match=r"unknown sampler 'euler'.*ddim, ddpm"):
        Config(sampler="euler")
    with pytest.raises(RunError, match=r"5 denoising steps are not in 1\.\.4"):
        make("dppo", **{**SMALL, "sampling_steps": 5})
    with pytest.raises(RunError, match=r"4 fine-tuned steps are not in 1\.\.3"):
        make("dppo", **{**SMALL, "finetuned_steps": 4})
    with pytest.raises(TaskError, match="unknown preset 'windy'"):
        Config(preset="windy")
    with pytest.raises(OtprError, match="the policy's observation is"):
        make("dppo", replace(point_tuning.setup(), task="lift"), **SMALL)


def test_the_papers_settings_are_settings():
    paper = Config(**dppo.VARIANTS["paper"])
    assert (paper.sampler, paper.finetuned_steps, paper.gamma) == ("ddpm", 10, 0.999)
