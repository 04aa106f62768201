# SPDX-License-Identifier: Apache-2.0
"""Identities of DDPM and DDIM, and the chain against closed forms on a Gaussian."""

import numpy as np
import pytest
import torch

from otpr_policy.errors import RunError
from otpr_trainer.diffusion import NOISE_CLIP, ReverseChain, cosine_schedule, ddim, ddpm, reverse_chain

MU, S = 0.2, 0.1  # a Gaussian target well inside [-1, 1], where the clip of x0_hat never binds


def optimal_noise_predictor(schedule):
    """E[eps | x_k] for x_0 ~ N(MU, S^2): eps is jointly Gaussian with x_k."""

    def predict(x_k, k):
        ab = schedule.alpha_bar[k]
        return np.sqrt(1 - ab) / (ab * S**2 + 1 - ab) * (x_k - np.sqrt(ab) * MU)

    return predict


def posterior_mean(ab, x):
    """E[x_0 | x_k = x] for the same target."""
    return MU + np.sqrt(ab) * S**2 / (ab * S**2 + 1 - ab) * (x - np.sqrt(ab) * MU)


def affine_response(chain, predict):
    """Weights of (1, noise_0, noise_1, ...) in the chain's result, from the chain itself: it is affine where nothing clips."""
    count = chain.noise_count()
    probes = 0.5 * torch.eye(count + 1, count, dtype=torch.float64).roll(1, 0)  # row 0 is zero noise, row i draws i - 1
    result = chain.sample(predict, probes[:, :, None])[-1][:, 0].numpy()
    return result[0], (result[1:] - result[0]) / 0.5


@pytest.mark.parametrize(
    ("steps", "beta_0", "alpha_bar_last", "beta_last"), [(20, 0.0079927, 6.06e-6, 0.999), (100, 6.3128e-4, 2.43e-7, 0.999)]
)
def test_the_cosine_schedule_has_its_published_numbers(steps, beta_0, alpha_bar_last, beta_last):
    schedule = cosine_schedule(steps)
    assert schedule.beta[0] == pytest.approx(beta_0, rel=1e-4)
    assert schedule.beta[-1] == pytest.approx(beta_last)
    assert schedule.alpha_bar[0] == pytest.approx(1 - beta_0, rel=1e-6)
    assert schedule.alpha_bar[-1] == pytest.approx(alpha_bar_last, rel=2e-3)


def test_ddpm_with_20_steps_has_its_published_standard_deviations():
    std = ddpm(cosine_schedule(20)).std[::-1]
    assert std[0] == 0.0
    assert std[1:10] == pytest.approx([0.0758, 0.1232, 0.1617, 0.1952, 0.2257, 0.2546, 0.2827, 0.3107, 0.3392], abs=5e-5)


@pytest.mark.parametrize("chain", [ddpm(cosine_schedule(20)), ddim(cosine_schedule(20), 5), ddim(cosine_schedule(20), 7, 0.5)])
def test_the_last_step_returns_x0_hat_without_noise(chain):
    assert (chain.x_0_weight[-1], chain.x_k_weight[-1], chain.std[-1]) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("steps", [1, 2, 20, 100])
def test_ddim_with_every_step_and_eta_1_is_ddpm(steps):
    ours, reference = ddim(cosine_schedule(steps), steps, eta=1.0), ddpm(cosine_schedule(steps))
    assert ours.timesteps == reference.timesteps
    for table in ("alpha_bar", "x_0_weight", "x_k_weight", "std"):
        assert getattr(ours, table) == pytest.approx(getattr(reference, table), abs=1e-12)


def test_ddim_without_eta_uses_one_draw_and_repeats_itself():
    schedule = cosine_schedule(20)
    chain = ddim(schedule, 5)
    assert chain.noise_count() == 1 and (chain.std == 0.0).all()
    noise = torch.randn(3, 1, 2, dtype=torch.float64)
    first, second = (chain.sample(optimal_noise_predictor(schedule), noise)[-1] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("train_steps", [1, 2, 3, 20, 100])
def test_every_number_of_ddim_steps_is_distinct_descending_and_near_the_noisiest(train_steps):
    schedule = cosine_schedule(train_steps)
    for steps in range(1, train_steps + 1):
        timesteps = ddim(schedule, steps).timesteps
        assert len(set(timesteps)) == steps and list(timesteps) == sorted(timesteps, reverse=True)
        assert timesteps[0] >= train_steps - 2
        assert timesteps[-1] == 0 or steps == 1


def test_adding_noise_keeps_unit_variance_and_the_signal_share_of_its_step():
    schedule = cosine_schedule(20)
    x_0, eps, k = torch.tensor([[1.0], [1.0]]), torch.tensor([[0.0], [2.0]]), torch.tensor([0, 19])
    x_k = schedule.add_noise(x_0, k, eps)
    assert x_k[0].item() == pytest.approx(np.sqrt(0.992007), rel=1e-6)
    assert x_k[1].item() == pytest.approx(np.sqrt(6.06e-6) + 2 * np.sqrt(1 - 6.06e-6), rel=1e-5)


@pytest.mark.parametrize("steps", [1, 5, 20, 1000])
def test_the_ddpm_chain_on_a_gaussian_is_the_closed_form(steps):
    """x_prev given x_k is q(x_prev | x_k, x0_hat): mean and variance follow a linear recursion, written here from DDPM eq. 7."""
    schedule = cosine_schedule(steps)
    mean, variance = 0.0, 1.0
    for k in range(steps - 1, -1, -1):
        ab, beta = schedule.alpha_bar[k], schedule.beta[k]
        ab_prev = schedule.alpha_bar[k - 1] if k else 1.0
        to_x_0, to_x_k = np.sqrt(ab_prev) * beta / (1 - ab), np.sqrt(1 - beta) * (1 - ab_prev) / (1 - ab)
        gain = to_x_k + to_x_0 * np.sqrt(ab) * S**2 / (ab * S**2 + 1 - ab)
        mean = to_x_0 * posterior_mean(ab, mean) + to_x_k * mean
        variance = gain**2 * variance + beta * (1 - ab_prev) / (1 - ab)
    centre, weights = affine_response(ddpm(schedule), optimal_noise_predictor(schedule))
    assert centre == pytest.approx(mean, abs=1e-10)
    assert (weights**2).sum() == pytest.approx(variance, rel=1e-8)
    if steps == 1000:  # and with many steps it is the target itself
        assert mean == pytest.approx(MU, abs=1e-3) and np.sqrt(variance) == pytest.approx(S, rel=0.03)


@pytest.mark.parametrize("steps", [1, 3, 5, 20])
def test_the_deterministic_chain_on_a_gaussian_is_the_exact_map(steps):
    """DDIM eta = 0: x_prev = sqrt(ab') x0_hat + sqrt(1 - ab') (x_k - sqrt(ab) x0_hat) / sqrt(1 - ab), x0_hat = E[x_0 | x_k]."""
    schedule = cosine_schedule(20)
    chain = ddim(schedule, steps)
    start = np.array([-1.5, 0.3, 2.0])
    x = start
    for k, following in zip(chain.timesteps, (*chain.timesteps[1:], None), strict=True):
        ab, ab_prev = schedule.alpha_bar[k], 1.0 if following is None else schedule.alpha_bar[following]
        x_0 = posterior_mean(ab, x)
        x = np.sqrt(ab_prev) * x_0 + np.sqrt(1 - ab_prev) * (x - np.sqrt(ab) * x_0) / np.sqrt(1 - ab)
    result = chain.sample(optimal_noise_predictor(schedule), torch.tensor(start)[:, None, None])[-1][:, 0]
    assert result.numpy() == pytest.approx(x, abs=1e-10)


def test_the_deterministic_chain_with_many_steps_solves_the_ode():
    """The probability-flow map of a Gaussian moves x_K by quantiles: x_0 = MU + S * x_K."""
    schedule = cosine_schedule(1000)
    start = torch.tensor([-1.5, 0.3, 2.0], dtype=torch.float64)
    result = ddim(schedule, 1000).sample(optimal_noise_predictor(schedule), start[:, None, None])[-1][:, 0]
    assert result.numpy() == pytest.approx(MU + S * start.numpy(), abs=5e-3)


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_a_chain_holds_every_state_and_ends_in_its_result(floor):
    schedule = cosine_schedule(10)
    chain = ddpm(schedule)
    noise = torch.randn(4, chain.noise_count(floor), 3, 2)
    states = chain.sample(lambda x, k: 0.1 * x, noise, floor)
    assert chain.noise_count(floor) == (10 if floor == 0.0 else 11)
    assert len(states) == 10 + 1 and torch.equal(states[0], noise[:, 0])
    last = chain.mean(9, states[-2], 0.1 * states[-2])
    expected = last if floor == 0.0 else last + floor * noise[:, -1].clamp(-NOISE_CLIP, NOISE_CLIP)
    assert torch.equal(states[-1], expected)


def test_step_noise_stays_within_three_sigma_and_x0_hat_within_one():
    chain = ddpm(cosine_schedule(20))
    noise = torch.full((1, 20, 1), 1e6)
    noise[:, 0] = 0.5
    state = chain.sample(lambda x, k: -torch.ones_like(x) * 1e4, noise)
    moved = (state[1] - chain.mean(0, state[0], torch.tensor([[-1e4]]))).item()
    assert moved == pytest.approx(3.0 * chain.std[0], rel=1e-5)
    for step in range(20):
        extreme = chain.predict_x_0(step, torch.tensor([[1e5], [-1e5], [0.3]]), torch.zeros(3, 1))
        assert extreme.min() >= -1.0 and extreme.max() <= 1.0
    assert chain.predict_x_0(19, torch.tensor([[0.3]]), torch.zeros(1, 1)).item() == pytest.approx(0.3 / np.sqrt(0.992007), rel=1e-6)


def one_step_log_prob(deviation):
    """Log-probability at ``deviation`` from the mean of the last step, whose own std is 0, with a floor of 0.1."""
    chain = ddpm(cosine_schedule(20))
    x_k, eps = torch.tensor([[0.3]], dtype=torch.float64), torch.tensor([[0.2]], dtype=torch.float64)
    return chain.step_log_prob(19, chain.mean(19, x_k, eps) + deviation, x_k, eps, std_floor=0.1).item()


def test_the_log_probability_of_one_step_has_its_published_values():
    assert one_step_log_prob(0.0) == pytest.approx(1.38365, abs=5e-6)  # -log 0.1 - log(2 pi) / 2
    assert one_step_log_prob(0.1 * 3.573) == pytest.approx(-5.0, abs=1e-3)
    assert one_step_log_prob(0.05) == pytest.approx(1.38365 - 0.5 * 0.5**2, abs=5e-6)


def test_the_log_probability_of_a_stored_chain_is_that_of_its_noise():
    """With the chain's own noise z the log-probability of a step is -z^2 / 2 - log sigma - log(2 pi) / 2, by definition."""
    schedule = cosine_schedule(6)
    chain, floor = ddpm(schedule), 0.1
    noise = torch.randn(5, chain.noise_count(floor), 2, dtype=torch.float64).clamp(-2, 2)
    states = chain.sample(optimal_noise_predictor(schedule), noise, floor)
    log_prob = chain.log_prob(optimal_noise_predictor(schedule), states, floor)
    sigma = torch.tensor(np.maximum(chain.std, floor))[None, :, None]
    expected = -0.5 * noise[:, 1:] ** 2 - sigma.log() - 0.5 * np.log(2 * np.pi)
    assert log_prob.shape == (5, 6, 2)
    assert torch.allclose(log_prob, expected, atol=1e-9)


def test_one_step_index_per_row_equals_one_for_all():
    chain: ReverseChain = ddim(cosine_schedule(20), 5, eta=1.0)
    x_k, eps, x_prev = (torch.randn(5, 4, 2) for _ in range(3))
    rows = chain.step_log_prob(torch.arange(5), x_prev, x_k, eps, 0.1)
    for step in range(5):
        assert torch.allclose(rows[step], chain.step_log_prob(step, x_prev, x_k, eps, 0.1)[step], rtol=1e-5)


@pytest.mark.parametrize(
    ("sampler", "steps", "message"),
    [("euler", 5, "ddim, ddpm"), ("ddim", 0, r"1\.\.20"), ("ddim", 21, r"1\.\.20"), ("ddpm", 5, "all 20 training steps")],
)
def test_a_chain_that_does_not_exist_is_refused_with_what_does(sampler, steps, message):
    with pytest.raises(RunError, match=message):
        reverse_chain(cosine_schedule(20), sampler, steps)
