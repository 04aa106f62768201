# SPDX-License-Identifier: Apache-2.0
"""Behaviour cloning: the network's folded form, the loss, the schedule, the averaged weights."""

import numpy as np
import point_task
import pytest
import torch

from otpr_policy.chunk import episode_rng
from otpr_policy.errors import OtprError, RunError
from otpr_policy.receding_horizon import RecedingHorizon
from otpr_trainer.algorithms.bc import Config, Learner
from otpr_trainer.config import from_json
from otpr_trainer.networks.mlp import DiffusionMLP, sinusoid
from otpr_trainer.policy import TorchPolicy

SMALL = Config(
    observation_horizon=1,
    chunk_length=2,
    executed_length=2,
    train_steps=5,
    width=32,
    depth=2,
    time_size=8,
    iterations=60,
    batch_size=32,
    warmup=5,
)


@pytest.fixture
def learner():
    return Learner(SMALL, point_task.setup())


def test_the_first_layer_is_one_linear_map_of_the_concatenation():
    network = DiffusionMLP((2, 3), 4, width=16, depth=3, time_size=8)
    x_k, k, condition = torch.randn(5, 2, 3), torch.tensor([0, 1, 2, 3, 4]), torch.randn(5, 4)
    weight = torch.cat([network.from_chunk.weight, network.from_time.weight, network.from_condition.weight], dim=1)
    inputs = torch.cat([x_k.flatten(1), network.time(sinusoid(k, 8)), condition], dim=1)
    expected = network.trunk(inputs @ weight.T + network.from_chunk.bias).reshape(5, 2, 3)
    assert torch.allclose(network(x_k, k, condition), expected, atol=1e-5)


def test_the_time_embedding_tells_every_step_apart():
    embedding = sinusoid(torch.arange(100), 32)
    assert embedding.shape == (100, 32)
    distances = torch.cdist(embedding, embedding) + torch.eye(100) * 9
    assert distances.min() > 0.1
    assert embedding[3, 0].item() == pytest.approx(np.sin(3.0)) and embedding[3, 16].item() == pytest.approx(np.cos(3.0))


def test_the_loss_is_the_mean_square_of_the_noise_error(learner, monkeypatch):
    observation, x_0, k, eps = torch.randn(4, 1, 3), torch.randn(4, 2, 2), torch.tensor([0, 1, 2, 4]), torch.randn(4, 2, 2)
    monkeypatch.setattr(learner.policy.network, "forward", lambda x_k, k, condition: eps + 0.5)
    assert learner.loss(observation, x_0, k, eps).item() == pytest.approx(0.25)


def test_the_loss_is_least_at_the_conditional_mean_of_the_noise(learner, monkeypatch):
    """For x_0 ~ N(mu, s^2) the best predictor is known, E[eps | x_k]; its loss is Var[eps | x_k] = ab s^2 / (ab s^2 + 1 - ab)."""
    mu, s, k = 0.2, 0.3, 2
    ab = learner.policy.schedule.alpha_bar[k]
    gain = np.sqrt(1 - ab) / (ab * s**2 + 1 - ab)
    generator = torch.Generator().manual_seed(0)
    x_0, eps = mu + s * torch.randn(40_000, 2, 2, generator=generator), torch.randn(40_000, 2, 2, generator=generator)
    steps, observation = torch.full((40_000,), k), torch.zeros(40_000, 1, 3)

    def loss_with(factor, shift):
        monkeypatch.setattr(learner.policy.network, "forward", lambda x, k, c: factor * gain * (x - np.sqrt(ab) * mu) + shift)
        return learner.loss(observation, x_0, steps, eps).item()

    best = loss_with(1.0, 0.0)
    assert best == pytest.approx(ab * s**2 / (ab * s**2 + 1 - ab), rel=0.02)
    assert best < min(loss_with(0.95, 0.0), loss_with(1.05, 0.0), loss_with(1.0, 0.03), loss_with(1.0, -0.03))


def test_the_learning_rate_rises_to_its_value_and_ends_at_a_tenth(learner):
    rates = [learner.update()["bc/learning_rate"] for _ in range(60)]
    assert rates[:5] == pytest.approx([0.2e-3, 0.4e-3, 0.6e-3, 0.8e-3, 1e-3])
    assert max(rates) == pytest.approx(1e-3) and rates[-1] == pytest.approx(1e-4, rel=0.05)
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_the_averaged_weights_follow_the_recursion(learner):
    before = learner.ema.network.from_chunk.weight.clone()
    learner.update()
    expected = 0.995 * before + 0.005 * learner.policy.network.from_chunk.weight
    assert torch.allclose(learner.ema.network.from_chunk.weight, expected, atol=1e-7)


def test_equal_seeds_learn_equal_weights_and_others_do_not():
    def weights(seed):
        learner = Learner(SMALL, point_task.setup(seed=seed))
        for _ in range(5):
            learner.update()
        return learner.policy.network.from_chunk.weight

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_the_first_losses_are_those_of_the_published_results(learner):
    """A change of them is a change of every cloned policy, and belongs in the changelog as **results**."""
    losses = [float(learner.update()["bc/loss"]) for _ in range(3)]
    assert losses == pytest.approx([0.9037275314331055, 0.9915981888771057, 1.1745331287384033], rel=1e-6)  # processors round otherwise


def test_a_diverted_learner_draws_other_batches_each_time():
    def loss_after(*attempts):
        learner = Learner(SMALL, point_task.setup())
        for attempt in attempts:
            learner.diverted(attempt)
        return float(learner.update()["bc/loss"])

    assert len({loss_after(), loss_after(1), loss_after(2), loss_after(3)}) == 4
    assert loss_after(1) == loss_after(2, 1)


def test_learning_leaves_the_global_random_state_alone(learner):
    state = torch.get_rng_state()
    Learner(SMALL, point_task.setup(seed=1)).update()
    assert torch.equal(torch.get_rng_state(), state)


def test_actions_stay_within_what_was_demonstrated(learner):
    rng = np.random.default_rng(0)
    policy = TorchPolicy.with_sampler(learner.ema, "ddpm", None)
    actions = np.stack([policy.infer(rng.uniform(-9, 9, (1, 3)), 5 * rng.standard_normal(policy.noise_shape)) for _ in range(50)])
    seen = point_task.demonstrations().action
    assert (actions >= seen.low - 1e-6).all() and (actions <= seen.high + 1e-6).all()
    assert np.ptp(actions[..., 0]) > 0.1


def test_a_cloned_point_reaches_the_origin():
    config = Config(chunk_length=2, executed_length=2, train_steps=10, width=64, depth=2, time_size=16, iterations=600, batch_size=64)
    learner = Learner(config, point_task.setup(30))
    losses = [float(learner.update()["bc/loss"]) for _ in range(600)]
    assert np.mean(losses[-100:]) < 0.5 * np.mean(losses[:20])
    env, solved = point_task.PointEnv(), 0
    controller = RecedingHorizon(TorchPolicy.with_sampler(learner.ema, "ddim", 3))
    for episode in range(20):
        controller.reset(episode_rng(0, episode))
        observation, ended = env.reset(1000 + episode), False
        while not ended:
            result = env.step(controller.act(env.spec.observation.flatten(observation)))
            observation, ended = result.observation, result.terminated or result.truncated
        solved += result.success
    assert solved >= 18


@pytest.mark.parametrize(
    "change",
    [{"chunk_length": 0}, {"time_size": 7}, {"learning_rate": 0.0}, {"ema_decay": 1.0}, {"executed_length": 5}, {"batch_size": -1}],
)
def test_a_setting_out_of_range_is_refused(change):
    with pytest.raises(OtprError):
        Learner(Config(**change), point_task.setup())


def test_stored_settings_are_read_back_and_unknown_or_mistyped_ones_refused():
    data = {field: getattr(SMALL, field) for field in SMALL.__dataclass_fields__}
    assert from_json(Config, data) == SMALL
    with pytest.raises(RunError, match="widht"):
        from_json(Config, {**data, "widht": 3})
    with pytest.raises(RunError, match="width must be a whole number"):
        from_json(Config, {**data, "width": "wide"})
    del data["width"]
    with pytest.raises(RunError, match=r"setting width is missing: .*another version"):
        from_json(Config, data)
