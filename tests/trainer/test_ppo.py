# SPDX-License-Identifier: Apache-2.0
"""Advantages against sums written out, and the clipped surrogate quadrant by quadrant."""

import numpy as np
import pytest
import torch

from otpr_trainer.ppo import TINY, approximate_kl, clipped_share, clipped_surrogate, generalized_advantages, normalized

GAMMA = 0.9


def rollout(seed=0):
    """Three episodes of 4, 3 and 5 decisions: a true end, one that is cut off, a true end."""
    rng = np.random.default_rng(seed)
    reward, value, final = rng.normal(size=12), rng.normal(size=12), rng.normal(size=3)
    last = np.array([3, 6, 11])
    ended = np.isin(np.arange(12), last)
    terminated = ended & (np.arange(12) != 6)
    next_value = np.append(value[1:], 0.0)
    next_value[last] = final
    return reward, value, next_value, terminated, ended


def advantages(trace, *arrays):
    return generalized_advantages(*arrays, gamma=GAMMA, trace=trace)


def test_without_a_trace_it_is_the_error_of_one_step():
    reward, value, next_value, terminated, ended = rollout()
    expected = reward + GAMMA * np.where(terminated, 0.0, next_value) - value
    assert advantages(0.0, reward, value, next_value, terminated, ended) == pytest.approx(expected, abs=1e-12)


def test_with_a_whole_trace_it_is_the_return_of_the_episode_minus_the_value():
    """Where it was cut off the return goes on with the value of the final state, where it is over with nothing."""
    reward, value, next_value, terminated, ended = rollout()
    found = advantages(1.0, reward, value, next_value, terminated, ended)
    for first, last, rest in ((0, 3, 0.0), (4, 6, next_value[6]), (7, 11, 0.0)):
        for t in range(first, last + 1):
            discounts = GAMMA ** np.arange(last - t + 2)
            assert found[t] == pytest.approx(discounts @ [*reward[t : last + 1], rest] - value[t], abs=1e-12)


def test_between_the_two_it_is_the_sum_of_discounted_errors():
    reward, value, next_value, terminated, ended = rollout()
    delta = advantages(0.0, reward, value, next_value, terminated, ended)
    found = advantages(0.6, reward, value, next_value, terminated, ended)
    assert found[0] == pytest.approx(sum((GAMMA * 0.6) ** i * delta[i] for i in range(4)), abs=1e-12)
    assert found[5] == pytest.approx(delta[5] + GAMMA * 0.6 * delta[6], abs=1e-12)


def test_a_constant_reward_of_1_minus_gamma_that_is_expected_is_no_advantage():
    """V = 1 then is the value of going on for ever, which an episode that is cut off has."""
    ended = np.isin(np.arange(10), [4, 9])
    found = advantages(0.95, np.full(10, 1 - GAMMA), np.ones(10), np.ones(10), np.zeros(10, bool), ended)
    assert np.abs(found).max() < 1e-12


def test_what_comes_after_an_end_does_not_matter_to_what_came_before():
    """And an episode that was cut off depends on its final state's value, one that is over does not."""
    arrays = rollout()
    found = advantages(0.95, *arrays)
    later = [array.copy() for array in arrays]
    later[0][7:], later[1][7:] = 99.0, -99.0
    assert np.array_equal(advantages(0.95, *later)[:7], found[:7])
    for last, matters in ((3, False), (6, True), (11, False)):
        final = [array.copy() for array in arrays]
        final[2][last] += 1.0
        moved = advantages(0.95, *final) - found
        assert moved[last] == pytest.approx(GAMMA if matters else 0.0)


def test_returns_of_a_success_or_a_failure_stay_in_the_unit_interval():
    """So a value that is a probability can regress to them."""
    rng = np.random.default_rng(3)
    for success in (True, False):
        value, final = rng.uniform(size=20), rng.uniform()
        ended = np.arange(20) == 19
        reward = (ended & success).astype(float)
        found = advantages(0.95, reward, value, np.append(value[1:], final), ended & success, ended)
        assert (found + value).min() >= 0.0 and (found + value).max() <= 1.0


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [(1.02, 1.0, False), (0.98, -1.0, False), (0.98, 1.0, True), (1.02, -1.0, True), (1.005, 1.0, True), (0.995, -1.0, True)],
)
def test_a_row_beyond_its_clip_has_no_gradient_unless_it_leads_back(ratio, advantage, moves):
    log_ratio = torch.tensor([np.log(ratio)], requires_grad=True)
    loss = clipped_surrogate(log_ratio, torch.tensor([advantage]), torch.tensor([0.01]))
    loss.backward()
    assert log_ratio.grad is not None
    assert float(log_ratio.grad) == pytest.approx(-advantage * ratio if moves else 0.0, abs=1e-6)
    bounded = min(ratio * advantage, float(np.clip(ratio, 0.99, 1.01)) * advantage)
    assert loss.item() == pytest.approx(-bounded, abs=1e-6)


def test_each_row_has_its_own_clip():
    log_ratio = torch.tensor([np.log(1.005), np.log(1.005), np.log(0.995)])
    clip = torch.tensor([0.001, 0.01, 0.001])
    assert float(clipped_share(log_ratio, clip)) == pytest.approx(2 / 3)
    assert float(clipped_surrogate(log_ratio[:2], torch.ones(2), clip[:2])) == pytest.approx(-(1.001 + 1.005) / 2, abs=1e-6)


def test_the_divergence_is_never_negative_and_that_of_two_gaussians():
    """KL(N(0, 1) || N(0.3, 1)) = 0.045."""
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_ratio = 0.5 * x**2 - 0.5 * (x - 0.3) ** 2
    assert float(approximate_kl(log_ratio)) == pytest.approx(0.045, rel=0.02)
    assert all(float(approximate_kl(torch.tensor([value]))) >= 0.0 for value in (-3.0, -1e-4, 0.0, 1e-4, 3.0))


def test_normalised_advantages_have_mean_0_and_standard_deviation_1():
    found = normalized(torch.tensor([0.1, 0.5, 0.2, 0.9]))
    assert float(found.mean()) == pytest.approx(0.0, abs=1e-6) and float(found.square().mean()) == pytest.approx(1.0, abs=1e-5)
    assert normalized(torch.tensor([3.0])).tolist() == [0.0] and TINY > 0
