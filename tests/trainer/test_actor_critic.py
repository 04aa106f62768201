# SPDX-License-Identifier: Apache-2.0
"""The policy and the critics while they are fine-tuned: what they compute, how their averages follow, what a target is."""

import copy

import numpy as np
import point_tuning
import pytest
import torch

from otpr_trainer.acting import Acting, always, drawn, every_other
from otpr_trainer.critic import ChunkCritic
from otpr_trainer.networks.critic import EnsembleCritic
from otpr_trainer.policy import TorchPolicy
from otpr_trainer.selection import SelectingPolicy, pessimistic_value

SPEC = point_tuning.spec(observation_horizon=2, chunk_length=3, executed_length=2)
CONDITION, EXECUTED = 6, 4  # To * Do, L * Da


def actor(**changes):
    return point_tuning.actor(SPEC, **changes)


def ensemble(heads=4, width=16, depth=2, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = EnsembleCritic(CONDITION, EXECUTED, width, depth, heads)
        for name, parameter in network.named_parameters():
            if "bias" in name:  # which start at zero, where they could be mixed up or left out unseen
                torch.nn.init.uniform_(parameter, -0.5, 0.5)
    return network


def critic(heads=4, width=16, learning_rate=1e-3, target_rate=0.1, pessimism=0.5, **more):
    options = {"learning_rate": learning_rate, "target_rate": target_rate, "pessimism": pessimism, **more}
    return ChunkCritic(ensemble(heads, width), **options)


def pairs(count, chunks=None, seed=1):
    """Conditions (B, 6) and executed parts of chunks (B, 2, 2), or (B, S, 2, 2)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 2, 2) if chunks is None else (count, chunks, 2, 2)
    return torch.randn(count, CONDITION, generator=generator), torch.randn(shape, generator=generator)


def observations(count, seed=2):
    rng = np.random.default_rng(seed)
    return rng.uniform([-1, 0, 0], [1, 100, 100], (count, 2, 3)), rng


# The policy


@pytest.mark.parametrize("steps", [1, 3, 4, 9])
def test_samples_are_those_of_the_policy_that_is_evaluated_and_exported(steps):
    """Several chunks of one state, each from its own noise; 9 steps are all 4 that there are."""
    policy = actor(sampling_steps=steps)
    assert policy.reverse.steps == min(steps, 4) and policy.reverse.eta == 1.0
    seen, rng = observations(5)
    noise = rng.standard_normal((5, 3, *policy.noise_shape))
    chunks = policy.sample(policy.condition(seen), torch.tensor(noise, dtype=torch.float32))
    plain = TorchPolicy(policy.average, policy.reverse)
    assert chunks.shape == (5, 3, 3, 2) and policy.noise_shape == plain.noise_shape
    for candidate in range(3):
        expected = plain.infer_batch(seen, noise[:, candidate])
        assert policy.physical(chunks[:, candidate]) == pytest.approx(expected, abs=1e-5)
    assert (np.abs(policy.physical(10 * chunks[:, 0])) <= SPEC.action.high + 1e-7).all()


def test_drawing_is_sampling_with_noise_of_the_generator():
    policy, other = actor(seed=3), actor(seed=3)
    condition = pairs(5)[0]
    noise = torch.randn((5, 2, *policy.noise_shape), generator=other._generator)
    assert torch.equal(policy.draw(condition, 2), policy.sample(condition, noise))
    assert policy.draw(condition, 0).shape == (5, 0, 3, 2) and policy.draw(condition[:0], 2).shape == (0, 2, 3, 2)


def constant(network, value):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(value)


def test_the_average_follows_as_1_minus_the_decay_to_the_k():
    policy = actor(ema_decay=0.9, learning_rate=1e-30)
    constant(policy.learner, 1.0)
    constant(policy.average, 0.0)
    for k in range(1, 8):
        policy.step(policy.learner.network.from_chunk.weight.sum())
        for parameter in policy.average.parameters():
            assert torch.allclose(parameter, torch.tensor(1 - 0.9**k), rtol=1e-5)
            assert parameter.grad_fn is None and not parameter.requires_grad  # or autograd would remember every step
    assert torch.equal(policy.average.observation.center, policy.learner.observation.center)


def test_a_gradient_step_changes_the_learner_and_returns_the_norm_of_its_gradient():
    start = point_tuning.random_policy(SPEC)
    policy = actor()
    condition, chunk = pairs(8)[0], torch.rand(8, 3, 2)
    loss = policy.denoising_loss(condition, chunk).mean()
    norm = policy.step(loss)
    squares = sum(parameter.grad.square().sum() for parameter in policy.learner.parameters())
    assert float(norm) == pytest.approx(float(squares.sqrt()), rel=1e-5)
    for name, parameter in policy.learner.named_parameters():
        assert not torch.equal(parameter, start.state_dict()[name]), name


def test_the_denoising_loss_is_that_of_ddpm_row_by_row():
    policy, other = actor(), actor()
    condition, x_0 = pairs(6)[0], torch.rand(6, 3, 2)
    k = torch.randint(4, (6,), generator=other._generator)
    eps = torch.randn(x_0.shape, generator=other._generator)
    with torch.no_grad():
        predicted = other.learner.network(other.learner.schedule.add_noise(x_0, k, eps), k, condition)
        assert torch.allclose(policy.denoising_loss(condition, x_0), (eps - predicted).square().mean((1, 2)))


def test_normalising_and_its_inverse():
    policy = actor()
    action = np.random.default_rng(0).uniform(SPEC.action.low, SPEC.action.high, (7, 3, 2))
    assert policy.physical(policy.normalized(action)) == pytest.approx(action, abs=1e-6)


# The critics


def test_one_state_with_one_chunk_is_worth_the_same_however_it_is_asked():
    network = ensemble()
    condition, chunk = pairs(5)
    many = chunk.expand(5, 5, 2, 2)  # every chunk in every state
    with torch.no_grad():
        forward = torch.stack([network(condition, one.expand(5, 2, 2)) for one in chunk], dim=2)
        assert torch.allclose(network.cross(condition, chunk), forward, atol=1e-5)
        for head in range(4):  # a head alone is that of the ensemble
            alone = network.from_terms(network.condition_term(condition, [head]) + network.chunk_term(chunk, [head]), [head])
            assert torch.allclose(alone[0], network(condition, chunk)[head], atol=1e-5)
    learner = critic()
    learner.ensemble.load_state_dict(network.state_dict())
    assert torch.allclose(learner.cross_values(condition, chunk), forward.sigmoid(), atol=1e-6)
    assert torch.allclose(learner.values(condition, many), forward.sigmoid(), atol=1e-6)


def test_heads_are_independent():
    """A loss of one head moves that head alone."""
    network = ensemble()
    network(*pairs(5))[2].sum().backward()
    for parameter in network.parameters():
        moved = parameter.grad.flatten(1).abs().sum(1) > 0
        assert not moved[[0, 1, 3]].any()
    assert network.from_chunk.grad[2].abs().sum() > 0


def test_a_new_critic_expects_next_to_nothing():
    """sigmoid(-4) = 0.018, for its targets as well."""
    learner = critic(width=64)
    condition, chunks = pairs(200, 3)
    target = learner.target_values(condition, chunks, torch.Generator().manual_seed(0))
    for values in (learner.values(condition, chunks), target):
        assert float(values.median()) == pytest.approx(0.018, abs=0.006) and float(values.max()) < 0.1


def test_targets_follow_as_1_minus_1_minus_the_rate_to_the_k():
    learner = critic(target_rate=0.1, learning_rate=1e-30)
    constant(learner.ensemble, 1.0)
    constant(learner._target, 0.0)
    for k in range(1, 8):
        learner.step(learner.ensemble.from_chunk.sum())
        for parameter in learner._target.parameters():
            assert torch.allclose(parameter, torch.tensor(1 - 0.9**k), rtol=1e-5)
            assert parameter.grad_fn is None and not parameter.requires_grad


def test_a_target_is_the_smaller_of_two_different_target_critics():
    """Each pair of four comes up; never the newest critics, never one critic twice."""
    learner, generator = critic(), torch.Generator().manual_seed(0)
    learner._target.load_state_dict(ensemble(seed=5).state_dict())
    with torch.no_grad():
        learner._target.head.mul_(10.0)  # so that none is the smallest everywhere
    condition, chunks = pairs(20, 3)
    with torch.no_grad():
        flat = learner._target(condition.repeat_interleave(3, 0), chunks.flatten(0, 1)).sigmoid().reshape(4, 20, 3)
    seen = set()
    for _ in range(60):
        target = learner.target_values(condition, chunks, generator)
        fits = [(i, j) for i in range(4) for j in range(i) if torch.allclose(target, torch.minimum(flat[i], flat[j]), atol=1e-6)]
        assert len(fits) == 1
        seen.update(fits)
    assert len(seen) == 6


def test_one_critic_is_its_own_target():
    learner = critic(heads=1)
    condition, chunks = pairs(4, 2)
    expected = learner.values(condition, chunks)[0]
    assert torch.allclose(learner.target_values(condition, chunks, torch.Generator()), expected)


def test_the_loss_is_the_cross_entropy_of_every_head_with_the_target():
    learner = critic()
    condition, chunk = pairs(5)
    target = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0])
    q = torch.sigmoid(learner.ensemble(condition, chunk)).detach()
    by_hand = -(target * q.log() + (1 - target) * (1 - q).log())
    assert learner.loss(condition, chunk, target).item() == pytest.approx(float(by_hand.mean()), rel=1e-5)
    assert torch.allclose(learner.lower_bound(q), q.mean(0) - 0.5 * q.std(0, correction=0))


def test_two_states_that_lead_to_each_other_have_the_value_of_the_geometric_series():
    """V1 = r1 + g V2 and V2 = r2 + g V1, so V1 = (r1 + g r2) / (1 - g^2): cross entropy and slow targets end there within 1 %."""
    learner = critic(heads=2, target_rate=0.1)
    condition = torch.tensor([[1.0] * CONDITION, [-1.0] * CONDITION])
    chunk, generator = torch.zeros(2, 2, 2), torch.Generator().manual_seed(0)
    reward, gamma = torch.tensor([0.2, 0.05]), 0.6
    for step in range(600):
        learner._optimizer.param_groups[0]["lr"] = 1e-2 * 0.01 ** (step / 600)
        y = reward + gamma * learner.target_values(condition, chunk[:, None], generator)[:, 0].flip(0)
        learner.step(learner.loss(condition, chunk, y))
    expected = [(0.2 + gamma * 0.05) / (1 - gamma**2), (0.05 + gamma * 0.2) / (1 - gamma**2)]
    for head in learner.values(condition, chunk[:, None])[:, :, 0]:
        assert head.tolist() == pytest.approx(expected, rel=0.01)


# Restoring


def test_a_restored_policy_and_critic_go_on_as_if_nothing_had_happened():
    condition, chunk = pairs(8)
    x_0 = torch.rand(8, 3, 2, generator=torch.Generator().manual_seed(1))

    def advance(policy, learner, steps):
        for _ in range(steps):
            policy.step(policy.denoising_loss(condition, x_0).mean())
            learner.step(learner.loss(condition, chunk, torch.full((8,), 0.3)))

    policy, learner = actor(), critic()
    advance(policy, learner, 3)
    saved = {name: tensor.detach().clone() for name, tensor in (policy.tensors() | learner.tensors()).items()}
    state = policy._generator.get_state()
    advance(policy, learner, 2)
    again, critics = actor(seed=9), critic()
    again.restore(saved)
    critics.restore(saved)
    again._generator.set_state(state)
    advance(again, critics, 2)
    for ours, theirs in ((again, policy), (critics, learner)):
        for name, tensor in ours.tensors().items():
            assert torch.equal(tensor, theirs.tensors()[name]), name


# Acting


def chosen(policy, learner, seen, noise, choosing, episodes):
    return Acting(policy, learner, 4, choosing).decide(seen, noise, np.array(episodes))


def test_acting_by_the_critic_is_what_the_exported_policy_does():
    """Same noise, same choice as evaluation's policy; a chunk of 3 is valued by the 2 actions that are carried out."""
    policy, learner = actor(), critic(pessimism=0.7)
    selecting = SelectingPolicy(copy.deepcopy(policy.average), learner.ensemble, policy.reverse, 4, 0.7)
    seen, rng = observations(40)
    noise = rng.standard_normal((40, 4, *policy.noise_shape))
    ours = chosen(policy, learner, seen, noise, always, range(40))
    assert ours == pytest.approx(selecting.infer_batch(seen, noise.reshape(40, *selecting.noise_shape)), abs=1e-5)
    plain = TorchPolicy(policy.average, policy.reverse)
    first = plain.infer_batch(seen, noise[:, 0])
    assert 5 < (np.abs(ours - first).max((1, 2)) > 1e-3).sum() < 40  # the critic did choose

    values = learner.values(policy.condition(seen), policy.sample(policy.condition(seen), torch.tensor(noise).float())[:, :, :2])
    assert not torch.allclose(pessimistic_value(values, 0.7), pessimistic_value(values, 0.0))


def test_every_other_episode_is_played_by_the_first_sample_alone():
    policy, learner = actor(), critic()
    seen, rng = observations(40)
    noise = rng.standard_normal((40, 4, *policy.noise_shape))
    by_critic = chosen(policy, learner, seen, noise, always, range(40))
    first = TorchPolicy(policy.average, policy.reverse).infer_batch(seen, noise[:, 0])
    both = chosen(policy, learner, seen, noise, every_other, range(40))
    assert both[1::2] == pytest.approx(by_critic[1::2]) and both[::2] == pytest.approx(first[::2], abs=1e-5)


def test_without_a_critic_or_where_it_never_chooses_one_chain_is_drawn():
    policy, learner = actor(), critic()
    for acting in (Acting(policy), Acting(policy, learner, 4)):
        assert acting.noise_shape == (1, *policy.noise_shape)
        seen, rng = observations(3)
        noise = rng.standard_normal((3, *acting.noise_shape))
        expected = TorchPolicy(policy.average, policy.reverse).infer_batch(seen, noise[:, 0])
        assert acting.decide(seen, noise, np.arange(3)) == pytest.approx(expected, abs=1e-5)


def test_a_chunk_is_drawn_as_often_as_its_weight_says():
    """Weights (0, 1, 3) are the shares 0, 1/4, 3/4 of a uniform number, ends included, and one that is alone is always taken."""
    uniform = torch.linspace(0.0, 1.0, 4001)
    share = torch.bincount(drawn(torch.tensor([[0.0, 1.0, 3.0]]).expand(4001, 3), uniform), minlength=3) / 4001
    assert share.tolist() == pytest.approx([0.0, 0.25, 0.75], abs=1e-3)
    assert drawn(torch.tensor([[0.0, 2.0, 0.0]]).expand(3, 3), torch.tensor([0.0, 0.5, 1.0])).tolist() == [1, 1, 1]


def test_acting_by_weights_draws_among_the_same_chunks_and_leaves_plain_episodes_alone():
    """One more noise is what the draw is made from: chunks are those of the others. All weight on the best chunk is the best chunk."""
    policy, learner = actor(), critic()
    seen, rng = observations(400)

    def weigh(values):
        return torch.nn.functional.one_hot(values.argmax(1), values.shape[1]).float()

    acting = Acting(policy, learner, 4, every_other, weigh)
    assert acting.noise_shape == (5, *policy.noise_shape)
    noise = rng.standard_normal((400, *acting.noise_shape))
    best = chosen(policy, learner, seen, noise[:, :4], every_other, range(400))
    assert acting.decide(seen, noise, np.arange(400)) == pytest.approx(best)

    uniform = Acting(policy, learner, 4, always, torch.ones_like)
    same = np.repeat(seen[:1], 400, axis=0)
    noise[:, :4] = noise[:1, :4]
    found = uniform.decide(same, noise, np.arange(400))
    counts = np.unique(found, axis=0, return_counts=True)[1]
    assert len(counts) == 4 and (np.abs(counts / 400 - 0.25) < 3 * (0.25 * 0.75 / 400) ** 0.5).all()
    assert Acting(policy, learner, 1, always, torch.ones_like).noise_shape == Acting(policy, None, 4, always).noise_shape
