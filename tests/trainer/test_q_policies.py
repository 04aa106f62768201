# SPDX-License-Identifier: Apache-2.0
"""DQL, QSM, DIPO and QVPO: what Q does to the policy in each, by hand, by finite differences, and on a Q that is known."""

import importlib

import numpy as np
import point_tuning
import pytest
import torch

from otpr_trainer.actor import Targets
from otpr_trainer.data.replay import Origin

TD = ["dql", "qsm", "dipo", "qvpo"]
every_algorithm = pytest.mark.parametrize("name", TD)
EPISODES = np.arange(6)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    point_tuning.play_here(monkeypatch)


def rough(learner):
    """Lets the critics differ, from each other and from state to state, as after long training."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in [*learner.critic.ensemble.parameters(), *learner.critic._target.parameters()]:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return learner


def states(learner, count=12):
    return learner.replay.condition[learner.integers(learner.replay.states, count)]


def gradients(learner, loss):
    return torch.autograd.grad(loss, list(learner.actor.learner.parameters()))


# What they share


@pytest.mark.parametrize("observed", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_the_target_is_what_the_policys_best_chunk_is_worth_next(make, observed, count):
    """Of ``count`` chunks of the averaged policy, by the smaller critic; at least what was seen, where that is asked for."""
    learner = rough(make("dql", rounds=1, observed_returns=observed, target_candidates=count))
    batch, given = learner.replay.transitions, []
    learner.critic.loss = lambda condition, chunk, target: given.extend([condition, chunk, target])
    learner.generator.manual_seed(2)
    learner.critic_loss(batch)
    learner.generator.manual_seed(2)
    ahead = learner.replay.condition[batch.next_state]
    chunks = learner.actor.draw(ahead, count)[:, :, :2]
    with torch.no_grad():
        values = [learner.critic._target(ahead, chunks[:, number]).sigmoid().amin(0) for number in range(count)]
    expected = batch.reward + batch.discount * torch.stack(values).amax(0)
    assert (batch.observed_return > expected).any() and (batch.observed_return < expected).any()
    expected = torch.maximum(expected, batch.observed_return) if observed else expected
    assert torch.equal(given[0], learner.replay.condition[batch.state]) and torch.equal(given[1], batch.chunk[:, :2])
    assert torch.allclose(given[2], expected, atol=1e-6)


@every_algorithm
def test_no_gradient_of_the_policys_loss_reaches_the_critics(make, name):
    """And none of the critics' loss the policy."""
    learner = make(name, rounds=1)
    learner.critic._optimizer.zero_grad()
    learner.policy_loss(learner.policy_rows()).backward()
    assert all(parameter.grad is None for parameter in learner.critic.ensemble.parameters())
    assert all(parameter.grad is not None for parameter in learner.actor.learner.network.parameters())
    learner.actor._optimizer.zero_grad()
    learner.critic_loss(learner.critic_batch()).backward()
    assert all(parameter.grad is not None for parameter in learner.critic.ensemble.parameters())
    frozen = [*learner.actor.learner.parameters(), *learner.actor.average.parameters(), *learner.critic._target.parameters()]
    assert all(parameter.grad is None for parameter in frozen)


@every_algorithm
def test_the_policy_waits_for_the_critic(make, name):
    learner = make(name, actor_start=10**6)
    before = {key: tensor.clone() for key, tensor in learner.actor.tensors().items()}
    metrics = learner.update()
    assert all(torch.equal(before[key], tensor) for key, tensor in learner.actor.tensors().items())
    assert metrics["policy/loss"] == 0.0 and metrics["critic/loss"] > 0.0


@every_algorithm
def test_the_policy_climbs_a_q_that_is_known(make, name):
    """Q is larger the larger the first move: 30 steps make that of the policy larger."""
    learner = make(name, actor_ema=0.9, actor_learning_rate=1e-2, batch_size=64, **KNOWN[name])

    def q(chunk):
        return torch.sigmoid(3.0 * chunk[..., 0, 0]).expand(2, *chunk.shape[:-2])

    learner.critic.values = lambda condition, chunks: q(chunks).detach()
    learner.critic.chunk_values = lambda condition, chunk: q(chunk)
    condition = states(learner, 200)
    before = learner.actor.draw(condition, 1)[..., 0, 0].mean()
    if name == "dipo":
        learner.demonstrations = 0  # all may climb
    for _ in range(30):
        learner.actor.step(learner.policy_loss(torch.randint(len(learner.replay), (64,), generator=learner.generator)))
    assert float(learner.actor.draw(condition, 1)[..., 0, 0].mean() - before) > 0.25


KNOWN = {"dql": {}, "qsm": {}, "dipo": {"action_learning_rate": 0.03}, "qvpo": {"samples": 8}}


@every_algorithm
def test_the_papers_settings_are_valid(make, name):
    module = importlib.import_module(f"otpr_trainer.algorithms.{name}")
    paper = module.Config(**module.VARIANTS["paper"])
    assert not paper.observed_returns and (paper.critic_heads, paper.pessimism) == (2, 1.0)
    assert (paper.selection_start > paper.steps) == (name != "qvpo")


# Gradients by the chunk


def test_values_of_a_chunk_are_the_critics_and_pass_their_gradient_to_the_chunk_alone(make):
    learner = rough(make("qsm"))
    condition, chunk = states(learner), torch.rand(12, 2, 2).requires_grad_()
    values = learner.critic.chunk_values(condition, chunk)
    assert torch.allclose(values, learner.critic.values(condition, chunk.detach()[:, None])[:, :, 0], atol=1e-6)
    values.sum().backward()
    assert chunk.grad.abs().sum() > 0 and all(parameter.grad is None for parameter in learner.critic.ensemble.parameters())


@pytest.mark.parametrize("pessimism", [0.0, 1.0])
def test_the_action_gradient_is_that_of_finite_differences(make, pessimism):
    """With two critics and pessimism 1, of the smaller one."""
    learner = rough(make("qsm"))
    learner.critic.ensemble.double()
    condition, chunk, step = states(learner).double(), torch.rand(12, 2, 2, dtype=torch.float64), 1e-6

    def read(values):
        return values.mean(0) if pessimism == 0 else values.amin(0)

    found = learner.critic.action_gradient(condition, chunk, pessimism)
    for index in np.ndindex(2, 2):
        shift = torch.zeros(2, 2, dtype=torch.float64)
        shift[index] = step
        ahead, behind = (read(learner.critic.values(condition, (chunk + sign * shift)[:, None])[..., 0]) for sign in (1, -1))
        expected = (ahead - behind) / (2 * step)
        assert torch.allclose(found[:, index[0], index[1]], expected, atol=1e-7) and expected.abs().max() > 1e-3


# DQL


def test_the_learners_sample_is_the_chain_of_its_own_weights(make):
    learner = make("dql")
    condition = states(learner)
    learner.generator.manual_seed(4)
    ours = learner.actor.learner_sample(condition)
    learner.generator.manual_seed(4)
    assert torch.allclose(learner.actor.draw(condition, 1)[:, 0], ours, atol=1e-6)  # the average is the learner still
    assert ours.requires_grad


def test_dql_with_eta_0_is_cloning(make):
    """The loss and every gradient."""
    learner = make("dql", rounds=1, eta=0.0)
    rows = learner.policy_rows()
    batch = learner.replay.transitions.rows(rows)
    learner.generator.manual_seed(1)
    loss = learner.policy_loss(rows)
    learner.generator.manual_seed(1)
    cloning = learner.actor.denoising_loss(learner.replay.condition[batch.state], batch.chunk).mean()
    assert loss.item() == cloning.item()
    for ours, theirs in zip(gradients(learner, loss), gradients(learner, cloning), strict=True):
        assert torch.equal(ours, theirs)


def test_dqls_gradient_through_the_chain_is_that_of_finite_differences(make):
    """Along random directions of all weights, the divisor held fixed as it is in the loss."""
    learner = rough(make("dql", sampling_steps=3))
    condition = states(learner).double()
    torch.set_default_dtype(torch.float64)
    try:
        for module in (learner.actor.learner, learner.critic.ensemble):
            module.double()

        def value():
            learner.generator.manual_seed(3)
            return learner.q_loss(condition)

        found = gradients(learner, value())
        divisor = learner.critic.chunk_values(condition, learner.executed(sample(learner, condition))).mean(1).detach()
        parameters = list(learner.actor.learner.parameters())
        for number in range(3):
            generator, step = torch.Generator().manual_seed(number), 1e-6
            direction = [torch.randn(parameter.shape, generator=generator) for parameter in parameters]
            ends = []
            for sign in (1.0, -1.0):
                with torch.no_grad():
                    for parameter, part in zip(parameters, direction, strict=True):
                        parameter.add_(sign * step * part)
                    numerators = learner.critic.chunk_values(condition, learner.executed(sample(learner, condition))).mean(1)
                    for parameter, part in zip(parameters, direction, strict=True):
                        parameter.sub_(sign * step * part)
                ends.append(numerators)
            slopes = -(ends[0] - ends[1]) / (2 * step)
            expected = [float(slopes[i] / divisor[j]) for i, j in ((0, 1), (1, 0))]
            ours = float(sum((one * part).sum() for one, part in zip(found, direction, strict=True)))
            assert min(abs(ours - one) for one in expected) < 1e-6 * max(1.0, abs(ours)) and abs(ours) > 1e-3
    finally:
        torch.set_default_dtype(torch.float32)


def sample(learner, condition):
    learner.generator.manual_seed(3)
    return learner.actor.learner_sample(condition)


def test_dqls_q_loss_does_not_depend_on_the_scale_of_q(make):
    learner = rough(make("dql"))
    condition, values = states(learner), learner.critic.chunk_values
    found = []
    for scale in (1.0, 7.0):
        learner.critic.chunk_values = lambda c, a, scale=scale: scale * values(c, a)
        learner.generator.manual_seed(0)
        loss = learner.q_loss(condition)
        found.append([loss, *gradients(learner, loss)])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-7)
    assert abs(found[0][0].item()) > 0.1


def test_dqls_critics_take_turns(make):
    """One is climbed, the other divides: -q_i / q_j with i and j either way round."""
    learner = make("dql")
    learner.critic.chunk_values = lambda condition, chunk: torch.tensor([[0.2, 0.4], [0.1, 0.1]]) + 0.0 * chunk.sum()
    seen = {round(learner.q_loss(states(learner, 2)).item(), 4) for _ in range(20)}
    assert seen == {-3.0, round(-1 / 3, 4)}


# QSM


def test_qsms_score_is_alpha_times_the_action_gradient_of_the_mean_critic(make):
    """Taken at the noisy chunk, of the part that is carried out."""
    learner = rough(make("qsm", alpha=2.5))
    condition, x_k = states(learner), 3 * torch.randn(12, 3, 2, generator=torch.Generator().manual_seed(1))
    chunk = x_k[:, :2].clone().requires_grad_()
    mean = torch.sigmoid(learner.critic.ensemble(condition, chunk)).mean(0)
    expected = 2.5 * torch.autograd.grad(mean.sum(), chunk)[0]
    found = learner.score(condition, x_k)
    assert torch.allclose(found, expected, atol=1e-6) and not found.requires_grad and expected.abs().max() > 1e-2


def test_qsms_loss_is_the_distance_of_the_predicted_noise_from_minus_the_score(make):
    """0 where they agree, 9 where each element is 3 off; what is not carried out has no say."""
    learner = rough(make("qsm", rounds=1))
    rows = learner.policy_rows()

    def predicted(x_k, k, condition):
        wanted = -learner.score(condition, x_k)
        return torch.cat([wanted + offsets[0], torch.full((len(x_k), 1, 2), 99.0)], 1)

    learner.actor.predicted_noise = predicted
    for offset, expected in ((0.0, 0.0), (3.0, 9.0), (-3.0, 9.0)):
        offsets = [offset]
        assert float(learner.policy_loss(rows)) == pytest.approx(expected, abs=1e-5)


def test_qsm_sees_chunks_as_noisy_as_cloning_does(make):
    learner = make("qsm", rounds=1)
    seen, original = {}, learner.actor.predicted_noise

    def predicted(x_k, k, condition):
        seen.update(x_k=x_k, k=k)
        return original(x_k, k, condition)

    learner.actor.predicted_noise = predicted
    rows = learner.policy_rows()
    learner.generator.manual_seed(6)
    learner.policy_loss(rows)
    learner.generator.manual_seed(6)
    x_k, k, _ = learner.actor.noised(learner.replay.transitions.chunk[rows])
    assert torch.equal(seen["x_k"], x_k) and torch.equal(seen["k"], k) and len(set(k.tolist())) > 1


# DIPO


@pytest.mark.parametrize("rate", [1e-3, 0.3])
def test_dipos_chunks_climb_q_and_stay_in_bounds(make, rate):
    """What is not carried out stays as it was."""
    learner = rough(make("dipo", action_learning_rate=rate, action_steps=10))
    condition, chunk = states(learner, 200), 2 * torch.rand(200, 3, 2, generator=torch.Generator().manual_seed(0)) - 1
    found = learner.ascended(condition, chunk)
    before, after = (learner.critic.lower_bound(learner.critic.values(condition, one[:, None, :2]))[:, 0] for one in (chunk, found))
    assert ((after > before).float().mean() > 0.95) and float((after - before).mean()) > 0
    assert float(found.abs().max()) <= 1.0 and torch.equal(found[:, 2:], chunk[:, 2:])
    assert float((found - chunk).abs().max()) <= 10 * rate * 1.1 + 1e-6


def test_dipo_without_steps_is_cloning(make):
    learner = make("dipo", rounds=2, action_steps=0)
    assert torch.equal(learner.improved, learner.replay.transitions.chunk)
    rows = learner.policy_rows()
    batch = learner.replay.transitions.rows(rows)
    learner.generator.manual_seed(1)
    loss = learner.policy_loss(rows)
    learner.generator.manual_seed(1)
    assert loss.item() == learner.actor.denoising_loss(learner.replay.condition[batch.state], batch.chunk).mean().item()


def test_dipo_keeps_what_climbed_beside_what_was_done_and_leaves_demonstrations(make):
    """Q learns from what was done: only there is the outcome known."""
    learner = rough(make("dipo", rounds=1))
    rows = torch.tensor([0, learner.demonstrations, learner.demonstrations, len(learner.replay) - 1])
    done, improved = learner.replay.transitions.chunk.clone(), learner.improved.clone()
    targets = learner.targets(rows)
    learner.improve(rows)
    assert torch.equal(learner.replay.transitions.chunk, done)
    changed = (learner.improved != improved).flatten(1).any(1).nonzero()[:, 0].tolist()
    assert changed == [learner.demonstrations, len(learner.replay) - 1]
    later = learner.targets(rows)
    assert torch.equal(later.x_0, learner.improved[rows]) and not torch.equal(later.x_0, targets.x_0)
    assert torch.equal(later.condition, learner.replay.condition[learner.replay.transitions.state[rows]])
    assert later.weight.tolist() == [1.0] * 4
    learner.improve(torch.tensor([0, 1]))  # nothing of one's own among them
    assert torch.equal(learner.improved[:2], done[:2])


def test_dipos_new_rows_begin_as_they_were_done(make):
    learner = make("dipo", actor_start=10**6)
    for _ in range(3):
        learner.update()
        assert torch.equal(learner.improved, learner.replay.transitions.chunk)


# QVPO


def test_qvpos_weights_are_the_positive_advantages_over_the_samples_mean(make):
    learner = make("qvpo")
    q = torch.tensor([[0.1, 0.2, 0.6], [0.5, 0.5, 0.5], [0.0, 0.9, 0.9]])
    expected = [[0.0, 0.0, 0.3], [0.0, 0.0, 0.0], [0.0, 0.3, 0.3]]
    for found, row in zip(learner.weights(q).tolist(), expected, strict=True):
        assert found == pytest.approx(row, abs=1e-6)
    q = torch.rand(50, 9, generator=torch.Generator().manual_seed(0))
    weight = learner.weights(q)
    assert (weight >= 0).all() and torch.equal(weight > 0, q > q.mean(1, keepdim=True))


@pytest.mark.parametrize("chosen", [1, 2, 3])
def test_qvpo_clones_its_best_samples_with_their_weights(make, chosen):
    """The pessimistic Q of three samples of the averaged policy decides."""
    learner = rough(make("qvpo", chosen=chosen))
    condition = states(learner, 20)
    learner.generator.manual_seed(2)
    targets = learner.samples(condition)
    learner.generator.manual_seed(2)
    chunks = learner.actor.draw(condition, 3)
    q = learner.critic.values(condition, chunks[:, :, :2]).amin(0)
    weight = (q - q.mean(1, keepdim=True)).clamp(min=0)
    order = q.argsort(1, descending=True)[:, :chosen]
    assert torch.allclose(targets.weight.reshape(20, chosen), weight.gather(1, order), atol=1e-6)
    positive = targets.weight > 0  # of the others any may stand there
    expected = chunks[torch.arange(20)[:, None], order].flatten(0, 1)
    assert torch.equal(targets.x_0[positive], expected[positive]) and positive.any()
    assert torch.equal(targets.condition, condition.repeat_interleave(chosen, 0))


def test_qvpos_uniform_chunks_stand_in_the_same_states_with_alpha_of_the_weights(make):
    learner = make("qvpo", uniform_samples=500, entropy_weight=0.1)
    best = Targets(torch.tensor([[1.0] * 6, [2.0] * 6]), torch.zeros(2, 3, 2), torch.tensor([0.3, 0.0]))
    uniform = learner.uniform(best)
    assert len(uniform.x_0) == 1000
    for state, weight in ((1.0, 0.03), (2.0, 0.0)):
        there = (uniform.condition == state).all(1)
        assert int(there.sum()) == 500 and torch.allclose(uniform.weight[there], torch.tensor(weight))
    assert float(uniform.x_0.abs().max()) <= 1.0
    assert float(uniform.x_0.mean()) == pytest.approx(0.0, abs=0.03) and float(uniform.x_0.var()) == pytest.approx(1 / 3, abs=0.02)


def test_qvpos_loss_is_the_weighted_one_of_both(make):
    """One state, advantage 0.3; a uniform chunk costs 10 and the best 1: (0.3 + 2 * 0.02 * 0.3 * 10) / 3."""
    learner = make("qvpo", states=1, uniform_samples=2, entropy_weight=0.02)
    learner.critic.values = lambda condition, chunks: torch.tensor([[[0.1, 0.2, 0.6]]]).expand(2, 1, 3)
    learner.actor.denoising_loss = lambda condition, x_0: torch.tensor([1.0, 10.0, 10.0])
    assert float(learner.policy_loss(torch.tensor([0]))) == pytest.approx((0.3 + 2 * 0.02 * 0.3 * 10) / 3, rel=1e-5)
    learner.critic.values = lambda condition, chunks: torch.full((2, 1, 3), 0.4)  # all alike: nothing to learn
    assert float(learner.policy_loss(torch.tensor([0]))) == pytest.approx(0.0, abs=1e-6)


def test_qvpos_entropy_weight_sinks_along_a_line_to_a_tenth(make):
    learner = make("qvpo", entropy_weight=0.02, steps=1000)
    found = []
    for learner.step in (0, 500, 900, 1000, 5000):
        found.append(learner.entropy_weight)
    assert found == pytest.approx([0.02, 0.01, 0.002, 0.002, 0.002])


def test_qvpo_acts_by_choice_in_every_episode_and_the_others_in_every_other(make):
    for name in TD:
        learner = make(name, selection_start=5)
        assert not learner.selecting(EPISODES).any()
        learner.step = 5
        assert learner.selecting(EPISODES).tolist() == [name == "qvpo" or number % 2 == 1 for number in EPISODES]


def test_policy_batches_are_of_demonstrations_and_own_play(make):
    for name in TD:
        learner = make(name, rounds=1, demo_share=0.25)
        origin = learner.replay.transitions.origin[learner.policy_rows()]
        assert int((origin == Origin.DEMONSTRATION).sum()) == len(origin) // 4 and len(origin) == (4 if name == "qvpo" else 16)
