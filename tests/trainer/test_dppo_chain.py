# SPDX-License-Identifier: Apache-2.0
"""Denoising steps as actions: schedules, likelihoods, and a policy of which only the last steps learn."""

import numpy as np
import point_tuning
import pytest
import torch

from otpr_policy.errors import RunError
from otpr_trainer.chain_actor import ChainActor, RecordingActor
from otpr_trainer.chain_likelihood import clip_schedule, denoising_discount, step_log_prob
from otpr_trainer.diffusion import NOISE_CLIP, cosine_schedule, ddim, ddpm
from otpr_trainer.normalization import AffineMap
from otpr_trainer.policy import TorchPolicy
from otpr_trainer.ppo import approximate_kl, clipped_share, clipped_surrogate

SPEC = point_tuning.spec(observation_horizon=2, chunk_length=3, executed_length=2)
K20 = cosine_schedule(20)


def start():
    """4 diffusion steps, random weights."""
    return point_tuning.random_policy(SPEC)


def actor(reverse=None, learning_steps=2, policy=None, **changes):
    options = {"learning_steps": learning_steps, "exploration_std": 0.1, "likelihood_std": 0.1, "learning_rate": 1e-2, **changes}
    policy = policy or start()
    return ChainActor(policy, reverse or ddpm(policy.schedule), **options)


def states(actor, count=6, seed=1):
    """Conditions, and noise of as many chains."""
    rng = np.random.default_rng(seed)
    seen = rng.uniform([-1, 0, 0], [1, 100, 100], (count, 2, 3))
    return actor.condition(seen), torch.as_tensor(rng.standard_normal((count, *actor.noise_shape)), dtype=torch.float32)


def taught(actor):
    """The network that learns, moved away from the start's."""
    with torch.no_grad():
        for parameter in actor.policy.network.parameters():
            parameter += 0.05
    return actor


def every_step(count, learning_steps):
    """``row`` and ``index`` of all steps of ``count`` chains."""
    rows = torch.arange(count * learning_steps)
    return rows // learning_steps, rows % learning_steps


# Tables


@pytest.mark.parametrize(("steps", "beta", "alpha_bar", "last"), [(20, 0.0079927, 0.992007, 6.06e-6), (100, 6.3128e-4, None, 2.43e-7)])
def test_the_schedule_that_chains_run_on_has_its_published_numbers(steps, beta, alpha_bar, last):
    schedule = cosine_schedule(steps)
    assert schedule.beta[0] == pytest.approx(beta, rel=1e-4) and schedule.beta[-1] == pytest.approx(0.999)
    assert schedule.alpha_bar[-1] == pytest.approx(last, rel=2e-3)
    if alpha_bar is not None:
        assert schedule.alpha_bar[0] == pytest.approx(alpha_bar, abs=1e-6)


def test_the_last_step_is_its_x0_hat_and_the_ten_that_learn_have_their_published_standard_deviations():
    chain = ddpm(K20)
    assert (chain.x_0_weight[-1], chain.x_k_weight[-1], chain.std[-1]) == (1.0, 0.0, 0.0)
    assert chain.std[::-1][1:10] == pytest.approx([0.0758, 0.1232, 0.1617, 0.1952, 0.2257, 0.2546, 0.2827, 0.3107, 0.3392], abs=5e-5)


def test_ddim_of_every_step_with_eta_1_is_ddpm_and_with_eta_0_has_no_noise():
    ours, reference = ddim(K20, 20, eta=1.0), ddpm(K20)
    x_k, eps = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    assert ours.std == pytest.approx(reference.std, abs=1e-12)
    for step in range(20):
        assert torch.allclose(ours.mean(step, x_k, eps), reference.mean(step, x_k, eps), rtol=0.0, atol=1e-12)
    assert (ddim(K20, 5, eta=0.0).std == 0.0).all()
    policy = TorchPolicy(start(), ddim(start().schedule, 3, eta=0.0))
    first, second = (policy.chains(torch.zeros(2, 2, 3), torch.ones(2, 1, 3, 2)) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_the_clip_grows_from_the_noisiest_step_to_the_last_by_its_published_numbers():
    expected = [0.001, 0.00119, 0.00145, 0.00181, 0.00232, 0.00303, 0.00401, 0.00539, 0.00732, 0.01]
    assert clip_schedule(0.001, 0.01, 10) == pytest.approx(expected, abs=5e-6)
    assert clip_schedule(0.001, 0.01, 2) == pytest.approx([0.001, 0.01])
    assert clip_schedule(0.02, 0.02, 5) == pytest.approx([0.02] * 5)
    assert clip_schedule(0.001, 0.01, 1) == pytest.approx([0.01])


def test_the_denoising_discount_has_its_published_numbers():
    expected = [0.9135, 0.9227, 0.9321, 0.9415, 0.951, 0.9606, 0.9703, 0.9801, 0.99, 1.0]
    assert denoising_discount(0.99, 10) == pytest.approx(expected, abs=5e-5)
    assert denoising_discount(0.5, 1) == pytest.approx([1.0])


# Likelihood of one step


def one_step(deviation, step, std_floor=0.1, executed_length=1, size=1):
    """Of a step that ends ``deviation`` away from its mean in each element."""
    chain, generator = ddpm(K20), torch.Generator().manual_seed(0)
    x_k, eps = (0.3 * torch.randn(1, 2, size, generator=generator, dtype=torch.float64) for _ in range(2))
    row = torch.tensor([step])
    x_prev = chain.mean(row, x_k, eps) + torch.as_tensor(deviation, dtype=torch.float64)
    return step_log_prob(chain, row, x_prev, x_k, eps, std_floor, executed_length).item()


def test_the_log_likelihood_of_a_step_is_the_gaussians_with_a_floor():
    """At the mean 1.38365 where the floor of 0.1 binds; elsewhere by the step's own standard deviation."""
    assert one_step(0.0, 19) == pytest.approx(1.38365, abs=5e-6)
    assert one_step(0.0, 18) == pytest.approx(1.38365, abs=5e-6)  # its own is 0.0758
    sigma = ddpm(K20).std[10]
    assert sigma == pytest.approx(0.3392, abs=5e-5)
    assert one_step(0.2, 10) == pytest.approx(-0.5 * (0.2 / sigma) ** 2 - np.log(sigma) - 0.5 * np.log(2 * np.pi), abs=1e-9)


def test_log_likelihoods_are_cut_at_minus_5_and_2():
    """-5 is reached at 3.573 sigma for sigma 0.1 and at 2.86 sigma for sigma 1; 2 is above the peak for 0.1, not for 0.05."""
    assert one_step(0.1 * 3.573, 19) == pytest.approx(-5.0, abs=1e-3)
    assert one_step(0.1 * 3.56, 19) > -5.0 == one_step(0.1 * 3.59, 19) == one_step(9.0, 19)
    assert one_step(2.86, 19, std_floor=1.0) == pytest.approx(-5.0, abs=0.02)
    assert one_step(0.0, 19, std_floor=0.05) == 2.0 and one_step(0.0, 19) < 2.0


def test_only_what_is_carried_out_has_a_likelihood():
    apart = [[[0.0], [0.2]]]
    assert one_step(apart, 19) == pytest.approx(1.38365, abs=5e-6)
    assert one_step(apart, 19, executed_length=2) == pytest.approx(1.38365 - 0.5 * 2.0**2 / 2, abs=5e-6)


def test_a_chunk_that_says_everything_twice_is_as_likely_per_element():
    """So ratios do not grow with the number of joints."""
    assert one_step([[[0.1, 0.1], [0.0, 0.0]]], 19, size=2) == pytest.approx(one_step([[[0.1], [0.0]]], 19), abs=1e-12)


def test_the_likelihood_does_not_depend_on_the_order_of_rows():
    ours = taught(actor())
    chain = ours.sample(*states(ours))
    condition, _ = states(ours)
    row, index = every_step(6, 2)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    straight = ours.log_prob(condition, chain, row, index)
    assert torch.allclose(ours.log_prob(condition, chain, row[order], index[order]), straight[order], atol=1e-6)
    assert torch.allclose(ours.log_probs(condition, chain).flatten(), straight, atol=1e-6)
    assert len(set(straight.tolist())) == 12


@pytest.mark.parametrize("learning_steps", [1, 2, 4])
def test_the_likelihood_of_what_was_sampled_is_that_of_the_noise_it_came_from(learning_steps):
    """With draws z it is the mean of -z^2 / 2 - log sigma - log(2 pi) / 2 over what is carried out, sigma floored, whatever was learnt."""
    ours = taught(actor(learning_steps=learning_steps))
    condition, noise = states(ours, count=50)
    noise = noise.clamp(-2.5, 2.5)  # where no likelihood is cut
    sigma = torch.tensor(np.maximum(ours.reverse.std, 0.1)[-learning_steps:], dtype=torch.float32)[None, :, None]
    drawn = noise[:, -learning_steps:, :2].flatten(2)
    expected = (-0.5 * drawn**2 - sigma.log() - 0.5 * np.log(2 * np.pi)).mean(2)
    assert torch.allclose(ours.log_probs(condition, ours.sample(condition, noise)), expected, atol=1e-4)


# Chains


@pytest.mark.parametrize("reverse", [ddpm(cosine_schedule(4)), ddim(cosine_schedule(4), 3, eta=1.0), ddim(cosine_schedule(4), 3, eta=0.0)])
@pytest.mark.parametrize("learning_steps", [1, 2, 3])
def test_before_it_learns_an_actor_is_its_start_bit_for_bit(reverse, learning_steps):
    """With the steps' own noise alone it samples what the start policy samples; and both networks yield the same likelihoods."""
    ours = actor(reverse, learning_steps, exploration_std=0.0)
    condition, noise = states(ours)
    chain = ours.sample(condition, noise)
    expected = start().denoise(condition, noise, reverse)
    assert chain.shape == (6, learning_steps + 1, 3, 2)
    for step in range(learning_steps + 1):
        assert torch.equal(chain[:, step], expected[reverse.steps - learning_steps + step])
    assert torch.equal(ours.sample_start(condition, noise), chain)
    whole = actor(reverse, reverse.steps)
    tail = torch.stack(expected, 1)
    assert torch.allclose(ours.log_probs(condition, chain), whole.log_probs(condition, tail)[:, -learning_steps:], atol=1e-6)


def test_a_small_floor_changes_the_last_step_alone():
    """Of 20 steps of DDPM all but the last have more noise than 0.001 by themselves."""
    chain = ddpm(K20)
    assert (np.maximum(chain.std, 1e-3)[:-1] == chain.std[:-1]).all() and chain.std[-1] == 0.0
    noise = torch.randn(3, 21, 2, generator=torch.Generator().manual_seed(0))
    plain, floored = chain.sample(lambda x, k: 0.1 * x, noise[:, :20]), chain.sample(lambda x, k: 0.1 * x, noise, 1e-3)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(plain[:-1], floored[:-1], strict=True))
    assert 0.0 < (plain[-1] - floored[-1]).abs().max() <= 3e-3 + 1e-6


def test_early_steps_are_the_starts_whatever_is_learnt_and_get_no_gradient():
    untaught, ours = actor(), taught(actor())
    condition, noise = states(ours)
    before, after = untaught.sample(condition, noise), ours.sample(condition, noise)
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.allclose(before[:, 1], after[:, 1]) and not torch.allclose(before[:, -1], after[:, -1])
    ours.step(-ours.log_prob(condition, after, *every_step(6, 2)).mean())
    assert ours.policy.frozen is not None
    for network in (ours.policy.frozen, ours.start.network):
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in network.parameters())
        assert all(torch.equal(tensor, start().network.state_dict()[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is not None for parameter in ours.policy.network.parameters())


@pytest.mark.parametrize("learning_steps", [1, 3])
def test_the_chain_ends_in_the_chunk_that_is_carried_out(learning_steps):
    ours = actor(ddim(cosine_schedule(4), 3, eta=1.0), learning_steps)
    recording = RecordingActor(ours)
    rng = np.random.default_rng(0)
    seen, noise = rng.uniform([-1, 0, 0], [1, 100, 100], (3, 2, 3)), rng.standard_normal((3, *recording.noise_shape))
    actions = recording.decide(seen, noise, np.array([7, 2, 5]))
    recording.decide(seen[:1], noise[:1], np.array([2]))
    for row, (episode, decided) in enumerate({7: 1, 2: 2, 5: 1}.items()):
        chains = recording.chains(episode)
        assert chains.shape == (decided, learning_steps + 1, 3, 2)
        assert np.allclose(ours.policy.physical_action(chains[:1, -1]).numpy(), actions[row])


def test_step_noise_is_at_least_the_floor_and_within_three_sigma_and_x0_hat_within_one():
    ours = actor(learning_steps=4)
    condition, noise = states(ours, count=200)
    noise[:100] *= 100.0
    chain = ours.sample(condition, noise)
    assert ours.noise_shape[0] == 5  # the last step, too, has noise
    for step in range(4):
        k = ours.reverse.timesteps[step]
        with torch.no_grad():
            eps = ours.policy.network(chain[:, step], torch.full((200,), k), condition)
        moved = (chain[:, step + 1] - ours.reverse.mean(step, chain[:, step], eps)) / max(ours.reverse.std[step], 0.1)
        assert moved.abs().max() <= NOISE_CLIP + 1e-3 and moved[100:].std() == pytest.approx(1.0, abs=0.1)
        assert ours.reverse.predict_x_0(step, 1e5 * chain[:, step], eps).abs().max() <= 1.0


@pytest.mark.parametrize("learning_steps", [0, 5, -1])
def test_a_number_of_steps_that_the_chain_does_not_have_is_refused(learning_steps):
    with pytest.raises(RunError, match=r"not in 1\.\.4"):
        actor(learning_steps=learning_steps)


def test_restoring_is_the_inverse_of_saving_frozen_steps_included():
    ours, other = taught(actor()), actor()
    ours.step(ours.policy.network.from_chunk.weight.sum())
    other.restore({name: tensor.clone() for name, tensor in ours.tensors().items()})
    for one in (ours, other):
        one.step(one.policy.network.from_chunk.weight.square().sum())
    for name, tensor in ours.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name
    assert any(name.startswith("policy.frozen.") for name in ours.tensors())


# Learning from likelihoods


def test_before_an_update_ratios_are_1_bit_for_bit_and_the_gradient_is_that_of_reinforce():
    ours = taught(actor())
    condition, noise = states(ours)
    chain, (row, index) = ours.sample(condition, noise), every_step(6, 2)
    advantage = torch.linspace(-1.0, 2.0, 12)
    with torch.no_grad():
        old = ours.log_prob(condition, chain, row, index)
    log_ratio = ours.log_prob(condition, chain, row, index) - old
    clip, same = torch.full((12,), 0.01), log_ratio.detach()
    assert torch.equal(same, torch.zeros(12)) and torch.equal(same.exp(), torch.ones(12))
    assert float(approximate_kl(same)) == 0.0 == float(clipped_share(same, clip))
    loss = clipped_surrogate(log_ratio, advantage, clip)
    assert loss.item() == pytest.approx(-advantage.mean().item(), abs=1e-6)
    parameters = list(ours.policy.network.parameters())
    gradient = torch.autograd.grad(loss, parameters)
    reinforce = torch.autograd.grad(-(advantage * ours.log_prob(condition, chain, row, index)).mean(), parameters)
    for one, other in zip(gradient, reinforce, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-7) and one.abs().max() > 0


@pytest.mark.parametrize("learning_steps", [1, 3])
def test_a_bandit_whose_best_chunk_is_off_the_start_policys_gets_better_within_50_updates(learning_steps):
    """Reward -(a - target)^2 of the first action, target 0.4 from its mean; the mean over 500 chunks of the same noise never falls."""
    ours = actor(ddim(cosine_schedule(4), 3, eta=1.0), learning_steps, learning_rate=3e-3)
    condition, _ = states(ours, count=1)
    generator = torch.Generator().manual_seed(0)

    def chains(count, generator):
        noise = torch.randn((count, *ours.noise_shape), generator=generator)
        return condition.expand(count, -1), ours.sample(condition.expand(count, -1), noise)

    def mean_reward():
        return float(reward(chains(500, torch.Generator().manual_seed(1))[1]).mean())

    target = chains(500, generator)[1][:, -1, 0, 0].mean() + 0.4

    def reward(chain):
        return -((chain[:, -1, 0, 0] - target) ** 2)

    means = [mean_reward()]
    clip = torch.tensor(clip_schedule(0.1, 0.3, learning_steps), dtype=torch.float32)
    for update in range(40):
        if update % 4 == 0:
            repeated, chain = chains(256, generator)
            row, index = every_step(256, learning_steps)
            old = ours.log_probs(repeated, chain)[row, index]
            advantage = (reward(chain) - reward(chain).mean()) / reward(chain).std()
        ours.step(clipped_surrogate(ours.log_prob(repeated, chain, row, index) - old, advantage[row], clip[index]))
        if update % 10 == 9:
            means.append(mean_reward())
    assert means == sorted(means) and means[-1] > means[0] + 0.4**2


# What belongs to any policy


def test_normalising_and_back_is_the_same_and_what_never_moves_stays_finite():
    low, high = np.array([-0.3, 5.0, 0.2]), np.array([0.4, 5.0, 0.9])
    affine = AffineMap.from_range(low, high, np.array([-1.0, 0.0, 0.0]), np.array([1.0, 100.0, 1.0]))
    x = np.random.default_rng(0).uniform(low, high, (100, 3))
    assert np.abs(affine.denormalize(affine.normalize(x)) - x).max() < 1e-5
    assert np.isfinite(affine.normalize(x)).all() and np.isfinite(affine.normalize(x + 1.0)).all()


@pytest.mark.parametrize(
    ("chain", "expected"),
    [(ddim(K20, 5, 1.0), [2.19, 1.67, 5.03, 0.90]), (ddpm(K20), [0.61, 0.61, 0.63, 0.66, 0.71, 0.78, 0.89, 1.09, 1.21, 0.90])],
)
def test_the_fewer_the_steps_the_more_a_change_of_the_predicted_noise_moves_each(chain, expected):
    """Slope of a step's mean in standard deviations, of which a log-ratio is a multiple; the numbers of docs/methods.md."""
    found = []
    for step in range(chain.steps - len(expected), chain.steps):
        eps = torch.zeros(1, 1, 1, dtype=torch.float64, requires_grad=True)
        slope = torch.autograd.grad(chain.mean(step, torch.full_like(eps, 0.1), eps).sum(), eps)[0]
        found.append(abs(float(slope)) / max(float(chain.std[step]), 0.1))
    assert found == pytest.approx(expected, abs=0.005)
