# SPDX-License-Identifier: Apache-2.0
"""IDQL and filtered cloning, which OTPR is compared with: their policies are clones of given rows, whatever a critic says."""

import importlib

import point_tuning
import pytest
import torch


@pytest.fixture(autouse=True)
def here(monkeypatch):
    point_tuning.play_here(monkeypatch)


@pytest.fixture(params=["idql", "filtered_bc"])
def learner(request):
    """After a round of play."""
    module = importlib.import_module(f"otpr_trainer.algorithms.{request.param}")
    learner = module.Learner(module.Config(**point_tuning.SETTINGS[request.param]), point_tuning.setup())
    learner.update()
    yield learner
    learner.close()


def test_the_policys_loss_is_the_denoising_loss_of_exactly_the_given_rows(learner):
    """The same noise, rows out of order and one of them twice; no other row has a say."""
    rows = torch.tensor([len(learner.replay) - 1, 3, 0, 3, learner.demonstrations])
    batch = learner.replay.transitions
    condition, chunk = learner.replay.condition[batch.state[rows]].clone(), batch.chunk[rows].clone()

    def loss(function):
        learner.generator.manual_seed(5)
        return float(function().detach())

    expected = loss(lambda: learner.actor.denoising_loss(condition, chunk).mean())
    assert loss(lambda: learner.policy_loss(rows)) == expected
    others = torch.ones(len(batch), dtype=torch.bool).index_fill(0, rows, False)
    batch.chunk[others] = batch.chunk[others].flip(0)
    batch.reward.neg_()
    batch.observed_return.neg_()
    assert loss(lambda: learner.policy_loss(rows)) == expected
    batch.chunk[3] += 0.1
    assert loss(lambda: learner.policy_loss(rows)) != expected


def test_no_gradient_of_the_policys_loss_reaches_a_critic(learner):
    implicit = getattr(learner, "implicit", None)
    assert (implicit is None) == (learner.critic_config is None)
    networks = [] if implicit is None else [implicit.q.ensemble, implicit.v.network]
    for network in networks:
        network.zero_grad()
    learner.policy_loss(torch.arange(8)).backward()
    assert all(parameter.grad is None for network in networks for parameter in network.parameters())
    assert all(parameter.grad is None for parameter in learner.actor.average.parameters())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in learner.actor.learner.network.parameters())
