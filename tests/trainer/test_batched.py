# SPDX-License-Identifier: Apache-2.0
"""Batched inference: each episode is the one that a single environment with a RecedingHorizon plays."""

import os
import signal

import numpy as np
import point_fleet
import point_task
import pytest
import safetensors.torch

from otpr_policy.chunk import episode_rng
from otpr_policy.errors import EnvironmentSetupError
from otpr_sim.env import episode_seed
from otpr_sim.rollout import run_episode
from otpr_sim.vector import NONE, VectorEnv
from otpr_trainer.algorithms.bc import Config, Learner
from otpr_trainer.batched import EpisodeBatch, collect_episodes
from otpr_trainer.sources import WeightsSource

SEED = point_fleet.SEED
CONFIG = Config(chunk_length=4, executed_length=3, train_steps=6, width=32, depth=2, time_size=8, iterations=150, batch_size=64)


@pytest.fixture(scope="module")
def policy():
    """Noise in every denoising step."""
    learner = Learner(CONFIG, point_task.setup(20))
    for _ in range(150):
        learner.update()
    return WeightsSource(learner.policy_config, safetensors.torch.save(learner.ema.state_dict()), "ddpm", None).open()


class Diary(point_task.PointEnv):
    """Notes the actions of each episode."""

    def __init__(self):
        self.actions = []

    def step(self, action):
        self.actions.append(action.copy())
        return super().step(action)


def fleet(make_env=point_task.PointEnv, envs=4, workers=2, executed_length=3, spare=False):
    return VectorEnv(make_env, point_task.SPEC, envs=envs, workers=workers, executed_length=executed_length, spare=spare)


@pytest.mark.parametrize(("envs", "workers"), [(1, 1), (5, 2)])
def test_results_are_those_of_episodes_that_are_run_one_by_one(policy, envs, workers):
    single = [run_episode(point_task.PointEnv(), policy, SEED, episode) for episode in range(12)]
    assert len({(result.success, result.steps) for result in single}) > 3  # the episodes do differ
    with fleet(envs=envs, workers=workers) as vector:
        results = list(collect_episodes(vector, policy, SEED, 12))
    assert sorted(results, key=lambda result: result.episode) == single


def test_actions_are_those_of_a_single_environment_to_float32_rounding(policy):
    batched = {episode: [] for episode in range(9)}
    with fleet(envs=4) as vector:
        batch = EpisodeBatch(SEED, policy.spec.observation_horizon, vector.reset(SEED, range(9)))
        actions = np.full((4, 4, 2), np.nan)
        while len(batch.running):
            assert batch.running.tolist() == np.flatnonzero(vector.episodes != NONE).tolist()
            actions[batch.running] = policy.infer_batch(batch.observations(), batch.draw(policy.noise_shape))
            result = vector.step(actions)
            batch.follow(result)
            for env in np.flatnonzero(result.moved):
                batched[result.episodes[env]].extend(actions[env, : result.executed[env]].copy())
    for episode, ours in batched.items():
        env = Diary()
        run_episode(env, policy, SEED, episode)
        assert np.shape(ours) == np.shape(env.actions)
        np.testing.assert_allclose(ours, env.actions, rtol=0, atol=1e-5)


def test_a_row_of_a_batch_does_not_depend_on_the_others(policy):
    rng = np.random.default_rng(0)
    observations = rng.uniform([-1, 20, 20], [1, 20, 20], (7, policy.spec.observation_horizon, 3))
    noise = rng.standard_normal((7, *policy.noise_shape))
    together = policy.infer_batch(observations, noise)
    assert together.shape == (7, 4, 2) and np.ptp(together[:, 0, 0]) > 0.1
    for row in range(7):
        np.testing.assert_allclose(together[row], policy.infer(observations[row], noise[row]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_each_environment_has_its_own_history_and_the_next_state_is_the_one_before_the_next_episode(horizon):
    length = 3
    logs: dict[int, list] = {}

    def expected(log):
        return ([log[0]] * horizon + log)[-horizon:]

    with fleet(envs=3, executed_length=length) as vector:
        begun = vector.reset(SEED, range(8))
        batch = EpisodeBatch(SEED, horizon, begun)
        for env in range(3):
            logs[env] = [begun.observations[env].tolist()]
        draws = {env: episode_rng(SEED, env) for env in range(3)}
        while len(batch.running):
            assert batch.observations().tolist() == [expected(logs[env]) for env in batch.running]
            noise = batch.draw((2, 2))
            assert np.array_equal(noise, np.stack([draws[env].standard_normal((2, 2)) for env in batch.running]))
            actions = np.full((3, length, 2), np.nan)
            actions[batch.running] = np.linspace(-0.2, 0.2, 3)[batch.running][:, None, None]
            result = vector.step(actions)
            after = batch.follow(result)
            for env in range(3):
                assert result.moved[env] == (not np.isnan(after[env]).any())
                logs[env] += result.observations[env, : result.executed[env]].tolist()
                if result.moved[env]:
                    assert after[env].tolist() == expected(logs[env])
                if result.begun.episodes[env] != NONE:
                    number = int(result.begun.episodes[env])
                    start = np.random.default_rng(episode_seed(SEED, number)).uniform(-1, 1)
                    assert result.begun.observations[env].tolist() == [start, 20, 20]
                    logs[env] = [result.begun.observations[env].tolist()]
                    draws[env] = episode_rng(SEED, number)


def test_episodes_that_are_lost_with_a_worker_are_played_again_from_their_beginning(policy):
    single = {run_episode(point_task.PointEnv(), policy, SEED, episode) for episode in range(12)}
    with fleet(point_fleet.Slow, envs=4) as vector:
        results = []
        for result in collect_episodes(vector, policy, SEED, 12):
            if not results:
                os.kill(vector.process_ids[0], signal.SIGKILL)
            results.append(result)
    assert len(results) == 12 and set(results) == single


def test_an_episode_that_kills_every_worker_is_an_error_that_names_it(policy):
    # The whole episodes before and after it keep the failures from being three in a row.
    expected = pytest.raises(EnvironmentSetupError, match=r"3 times.*episode 1 of seed 4")
    with fleet(point_fleet.Unstable, envs=1, workers=1) as vector, expected:
        list(collect_episodes(vector, policy, SEED, 3))
