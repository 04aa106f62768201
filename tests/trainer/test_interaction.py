# SPDX-License-Identifier: Apache-2.0
"""Play in training: the episodes of one environment by itself, whatever plays them; each step counted; what is lost is left out."""

import os
import signal

import numpy as np
import point_fleet
import point_task
import point_tuning
import pytest
from point_fleet import SEED

from otpr_policy.chunk import episode_rng
from otpr_policy.errors import EnvironmentSetupError
from otpr_policy.receding_horizon import RecedingHorizon
from otpr_sim import vector
from otpr_sim.env import episode_seed
from otpr_sim.vector import VectorEnv
from otpr_trainer import finetune
from otpr_trainer.algorithms import filtered_bc
from otpr_trainer.data.replay import Origin
from otpr_trainer.interaction import Account, play


class Walker:
    """Walks towards the origin, with noise; the same for any batch to the last bit. Keeps what it planned."""

    pull = 0.1

    def __init__(self, executed_length=3):
        self.spec = point_tuning.spec(2, 4, executed_length)
        self.noise_shape = (1, 4, 2)
        self.planned = []

    def infer(self, observation, noise):
        position = 2 * observation[1, 0] - observation[0, 0]  # both observations matter
        chunk = np.clip([-self.pull * position, 0.0] + 0.08 * noise[0], self.spec.action.low, self.spec.action.high)
        self.planned.append(chunk)
        return chunk

    def decide(self, observations, noise, episodes):
        assert len(observations) == len(noise) == len(episodes)
        return np.stack([self.infer(*pair) for pair in zip(observations, noise, strict=True)])


def alone(episode, executed_length=3, env=None):
    """One environment, one controller: observations, actions with the planned rest of the last chunk, and the last result."""
    env, walker = env or point_task.PointEnv(), Walker(executed_length)
    controller = RecedingHorizon(walker)
    controller.reset(episode_rng(SEED, episode))
    flatten = env.spec.observation.flatten
    observed, acted = [flatten(env.reset(episode_seed(SEED, episode)))], []
    while True:
        acted.append(controller.act(observed[-1]))
        result = env.step(acted[-1])
        observed.append(flatten(result.observation))
        if result.terminated or result.truncated:
            rest = walker.planned[-1][(len(acted) - 1) % executed_length + 1 :]
            return np.stack(observed), np.concatenate([np.stack(acted), rest]), result


def fleet(make_env=point_task.PointEnv, envs=2, workers=1, executed_length=3):
    return VectorEnv(make_env, point_task.SPEC, envs=envs, workers=workers, executed_length=executed_length, spare=False)


def played(vector, episodes, walker=None, account=None):
    return {one.episode: one for one in play(vector, walker or Walker(vector.executed_length), SEED, episodes, account or Account())}


def assert_is(one, reference):
    observed, acted, result = reference
    assert np.array_equal(one.trajectory.observation, observed) and np.array_equal(one.trajectory.action, acted)
    assert one.success == result.success and one.trajectory.terminated == result.terminated
    assert one.trajectory.reward.tolist() == [0.0] * (len(observed) - 2) + [float(result.success)]
    assert one.trajectory.origin is (Origin.SUCCESS if result.success else Origin.FAILURE)


@pytest.fixture
def here(monkeypatch):
    """Environments in this process, for tests that are not about processes."""
    monkeypatch.setattr(vector, "WorkerPool", point_tuning.LocalPool)


@pytest.mark.parametrize(("envs", "workers"), [(1, 1), (3, 2)])
def test_episodes_are_those_of_one_environment_for_any_number_of_them_and_of_workers(envs, workers):
    account = Account()
    with fleet(envs=envs, workers=workers) as many:
        found = played(many, range(10), account=account)
    assert sorted(found) == list(range(10))
    for number, one in found.items():
        assert_is(one, alone(number))
    assert {one.success for one in found.values()} == {True, False}  # both ends occur
    assert account == Account(sum(len(one.trajectory) for one in found.values()), 0)


@pytest.mark.parametrize("executed_length", [1, 4])
def test_the_planned_rest_of_the_last_chunk_is_kept_whatever_part_is_executed(here, executed_length):
    with fleet(envs=3, executed_length=executed_length) as many:
        found = played(many, range(6))
    for number, one in found.items():
        assert_is(one, alone(number, executed_length))
        assert len(one.trajectory) <= len(one.trajectory.action) < len(one.trajectory) + 4


def test_episodes_that_are_not_asked_for_are_not_played_and_playing_again_is_the_same(here):
    with fleet(envs=4) as many:
        first, again = played(many, [7, 2]), played(many, [2, 7])
    assert sorted(first) == sorted(again) == [2, 7]
    for number in first:
        assert_is(again[number], alone(number))


class LateSuccess(point_task.PointEnv):
    """Solved at the horizon, which it reports as being cut off, as Gymnasium tasks do."""

    def step(self, action):
        result = super().step(action)
        late = self._steps >= point_task.SPEC.horizon
        return point_task.StepResult(result.observation, 0.0, False, late, late)


def test_a_success_that_comes_with_the_horizon_is_an_end(here):
    """Or a value above 1 would be bootstrapped from the state after it."""
    with fleet(LateSuccess) as many:
        (one,) = played(many, [0]).values()
    assert one.success and one.trajectory.terminated and one.trajectory.reward.sum() == 1 == one.trajectory.reward[-1]


# What is lost


def test_an_episode_whose_environment_raises_is_dropped_and_counted_with_the_steps_it_took(monkeypatch):
    """Episode 1 breaks in its second chunk of 2."""
    monkeypatch.setattr(Walker, "pull", -5.0)  # or it would be solved before
    account = Account()
    with fleet(point_fleet.Unstable, envs=2, workers=2, executed_length=2) as many:
        found = played(many, range(5), account=account)
    assert sorted(found) == [0, 2, 3, 4]
    for number, one in found.items():
        assert_is(one, alone(number, 2))
    assert account == Account(sum(len(one.trajectory) for one in found.values()) + 2, 1)


def test_play_goes_on_when_a_worker_is_killed():
    account, walker = Account(), Walker()
    with fleet(envs=4, workers=2) as many:
        stream = play(many, walker, SEED, range(12), account)
        found = [next(stream)]
        os.kill(many.process_ids[0], signal.SIGKILL)
        found += stream
    assert 1 <= account.lost_episodes <= 2 and len(found) == 12 - account.lost_episodes
    for one in found:
        assert_is(one, alone(one.episode))
    assert account.steps >= sum(len(one.trajectory) for one in found)


@pytest.fixture
def learner(monkeypatch, request):
    """The cheapest algorithm, on worker processes; the fleet is its registry."""
    monkeypatch.setattr(finetune, "registry", point_fleet)
    task = getattr(request, "param", "healthy")
    learner = filtered_bc.Learner(filtered_bc.Config(**point_tuning.SMALL), point_tuning.setup(task=task, workers=1))
    yield learner
    learner.close()


def test_training_goes_on_when_its_worker_is_killed_between_rounds(learner):
    learner.update()
    before = learner.step
    os.kill(learner._vector.process_ids[0], signal.SIGKILL)
    metrics = learner.update()
    assert learner.step > before and metrics["rollout/lost_episodes"] == learner.checkpoint().values["lost_episodes"] <= 4
    assert learner.update()["rollout/lost_episodes"] == metrics["rollout/lost_episodes"]


@pytest.mark.parametrize("learner", ["dying"], indirect=True)
def test_training_that_cannot_play_at_all_is_an_error(learner):
    with pytest.raises(EnvironmentSetupError, match=r"failed 3 times in a row; .* exit status 9"):
        learner.update()
