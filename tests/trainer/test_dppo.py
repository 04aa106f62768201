# SPDX-License-Identifier: Apache-2.0
"""DPPO on the point task: what a round keeps, what it learns from that, what it leaves alone, and that it gets better."""

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import point_task
import point_tuning
import pytest
import torch

from otpr_policy.errors import RunError
from otpr_sim import vector
from otpr_sim.env import StepResult
from otpr_trainer import checkpoint, finetune
from otpr_trainer.algorithms.dppo import Decisions, decisions
from otpr_trainer.chain_likelihood import clip_schedule, denoising_discount
from otpr_trainer.data.replay import Origin, Trajectory
from otpr_trainer.interaction import play
from otpr_trainer.ppo import clipped_surrogate, normalized

SMALL = {
    "steps": 200,
    "envs": 4,
    "episodes": 6,
    "sampling_steps": 3,
    "finetuned_steps": 2,
    "epochs": 2,
    "batch_size": 16,
    "critic_width": 16,
    "warmup_rounds": 0,
    "evaluate_every": 0,
    "evaluate_episodes": 3,
}
LEARNING = {  # chunks of 4 numbers and not of 28, so ratios of their mean may be farther from 1
    "envs": 10,
    "episodes": 50,
    "epochs": 10,
    "batch_size": 250,
    "clip": 0.3,
    "actor_learning_rate": 3e-3,
    "warmup_rounds": 1,
    "critic_width": 32,
}


@pytest.fixture(autouse=True)
def here(monkeypatch):
    point_tuning.play_here(monkeypatch)


@pytest.fixture
def make(make):
    """Makes learners of DPPO on the point task."""
    return partial(make, "dppo", **SMALL)


def assert_same(ours, theirs):
    (tensors, values), (others, other_values) = ours, theirs
    assert set(tensors) == set(others) and values == other_values
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name


def watched(monkeypatch):
    """What is played: (seed, episode numbers, episodes), round by round."""
    rounds = []

    def playing(vector, actor, seed, episodes, account):
        found = list(play(vector, actor, seed, episodes, account))
        rounds.append((seed, list(episodes), found))
        return iter(found)

    monkeypatch.setattr(finetune, "play", playing)
    return rounds


# Rounds


def test_a_round_is_whole_episodes_and_each_of_their_steps_counts_once(make, monkeypatch):
    """Evaluations do not count. Episodes are numbered on from round to round, from seeds that nothing else uses."""
    rounds = watched(monkeypatch)
    learner, steps = make(point_tuning.setup(seed=5), evaluate_every=1), 0
    assert len(learner.evaluations()) == 1 and learner.step == 0
    rounds.clear()
    for number in range(3):
        metrics = learner.update()
        seed, episodes, found = rounds[-1]
        first = finetune.FIRST_EPISODE + 6 * number
        assert seed == finetune.SEED_OFFSET + 5 and episodes == list(range(first, first + 6)) and len(found) == 6
        steps += sum(len(one.trajectory) for one in found)
        assert learner.step == steps and metrics["rollout/success"] == np.mean([one.success for one in found])
        assert len(learner.evaluations()) == 1 and learner.step == steps
    assert learner.checkpoint().step == steps and learner.progress()["success"].endswith("/18")


def test_evaluations_are_beside_training_and_not_in_it(make):
    plain, judged = make(), make(evaluate_every=1)
    rows = judged.evaluations()
    assert plain.evaluations() == [] and len(rows) == 1 and rows[0]["policy/episodes"] == 3
    assert make(evaluate_every=1).evaluations() == rows
    for _ in range(2):
        plain.update()
        judged.update()
        assert len(judged.evaluations()) == 1
    assert_same(point_tuning.snapshot(judged), point_tuning.snapshot(plain))


def test_evaluation_is_without_exploration_and_training_with(make):
    learner = make()
    evaluated, acting = learner.evaluated()["policy"], learner.acting()
    assert evaluated.noise_shape == (3, 3, 2) and acting.noise_shape == (4, 3, 2)  # DDIM's last step has none
    reverse, start = learner.actor.reverse, point_tuning.cloned()
    rng = np.random.default_rng(0)
    seen, noise = rng.uniform([-1, 20, 20], [1, 20, 20], (2, 2, 3)), rng.standard_normal((2, 3, 3, 2))
    chunk = start.chain(*(torch.as_tensor(values, dtype=torch.float32) for values in (seen, noise)), reverse)[-1]
    assert np.array_equal(evaluated.decide(seen, noise, np.zeros(2)), start.physical_action(chunk).numpy().astype(np.float64))


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_and_the_order_in_which_episodes_end_do_not_matter(make, monkeypatch, workers):
    straight, other = make(), make(point_tuning.setup(workers=workers))
    straight.update()
    if workers == 1:
        monkeypatch.setattr(finetune, "play", lambda *arguments: reversed(list(play(*arguments))))
    other.update()
    assert_same(point_tuning.snapshot(other), point_tuning.snapshot(straight))


def test_the_start_policy_is_left_alone_and_all_randomness_is_the_learners_own(make):
    setup = point_tuning.setup()
    before = copy.deepcopy(setup.start.state_dict())
    state = torch.get_rng_state()
    make(setup, bc_coefficient=0.1).update()
    assert all(torch.equal(tensor, before[key]) for key, tensor in setup.start.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


# What is kept of an episode


def trajectory(steps, terminated, horizon_reward=0.0):
    observation = np.stack([np.arange(steps + 1.0), np.full(steps + 1, 20.0), np.full(steps + 1, 20.0)], axis=1)
    reward = np.arange(1.0, steps + 1)
    return Trajectory(observation, np.zeros((steps, 2)), reward, terminated, Origin.FAILURE)


@pytest.mark.parametrize(("steps", "rewards"), [(5, [3.0, 7.0, 5.0]), (4, [3.0, 7.0]), (1, [1.0])])
@pytest.mark.parametrize("terminated", [True, False])
def test_a_chunks_reward_is_the_sum_of_what_was_carried_out_until_the_end(make, steps, rewards, terminated):
    """Chunks of 2. The last may be cut short; what comes next is its final observation, which has a value unless all is over."""
    learner = make()
    chain = torch.zeros(len(rewards), 3, 3, 2)
    found = decisions(trajectory(steps, terminated), chain, learner.actor)
    assert found.reward.tolist() == rewards and len(found) == len(rewards)
    assert found.ended.tolist() == [False] * (len(rewards) - 1) + [True]
    assert found.terminated.tolist() == [False] * (len(rewards) - 1) + [terminated]
    assert torch.equal(found.condition[1:], found.next_condition[:-1])
    shown = [[0.0, 0.0], *([float(t - 1), float(t)] for t in (2, 4) if t < steps), [float(steps - 1), float(steps)]]
    for row, positions in zip([*found.condition, found.next_condition[-1]], shown, strict=True):  # the first is shown twice
        seen = np.array([[position, 20.0, 20.0] for position in positions])
        assert torch.allclose(row, learner.actor.condition(seen[None])[0])


class NeverOver(point_task.PointEnv):
    """Cut off at the horizon wherever it is."""

    def step(self, action):
        result = super().step(action)
        return StepResult(result.observation, 0.0, False, self._steps >= point_task.SPEC.horizon, False)


def test_what_is_kept_is_what_was_played(make, monkeypatch):
    """Chunks in the order of episodes and decisions: the last tensor of each chain is the action that was carried out."""
    rounds = watched(monkeypatch)
    learner = make()
    learner._play_round()
    kept, episodes = learner._kept, sorted(rounds[0][2], key=lambda one: one.episode)
    assert len(kept) == 6 and {one.success for one in episodes} == {True, False}
    for found, one in zip(kept, episodes, strict=True):
        assert float(found.reward.sum()) == float(one.success) == float(found.terminated.any())
        actions = learner.actor.policy.physical_action(found.chain[:, -1]).numpy()
        for row, action in enumerate(actions):
            carried_out = one.trajectory.action[2 * row : 2 * row + 2]
            assert np.allclose(action[: len(carried_out)], carried_out, atol=1e-6)
    assert len(Decisions.joined(kept)) == sum(len(found) for found in kept)


def test_an_episode_that_is_cut_off_goes_on_with_the_value_of_its_final_observation(make, monkeypatch):
    monkeypatch.setattr(vector, "WorkerPool", _pool_of(NeverOver))
    learner = make(gae_lambda=0.0, gamma=0.9)
    learner._play_round()
    batch = Decisions.joined(learner._kept)
    advantage, returns = learner.advantages(batch)
    value, following = learner.critic.value(batch.condition), learner.critic.value(batch.next_condition)
    assert not batch.terminated.any() and int(batch.ended.sum()) == 6
    assert torch.allclose(returns, 0.9 * following, atol=1e-6) and torch.allclose(advantage, 0.9 * following - value, atol=1e-6)
    over = replace(batch, terminated=batch.ended)
    assert torch.equal(learner.advantages(over)[1][batch.ended], torch.zeros(6))


def _pool_of(env):
    class Pool(point_tuning.LocalPool):
        def start(self, workers):
            self._envs = [[env() for _ in range(self._setup.envs)] for _ in range(workers)]

    return Pool


# Learning


def test_the_policy_loss_is_the_clipped_surrogate_of_discounted_normalised_advantages(make):
    generator = torch.Generator().manual_seed(0)
    log_ratio, advantage = 0.01 * torch.randn(20, generator=generator), torch.randn(20, generator=generator)
    index = torch.arange(20) % 2
    clip = torch.tensor(clip_schedule(0.001, 0.01, 2), dtype=torch.float32)[index]
    discount = torch.tensor(denoising_discount(0.5, 2), dtype=torch.float32)[index]
    assert discount[:2].tolist() == [0.5, 1.0]
    expected = clipped_surrogate(log_ratio, discount * normalized(advantage), clip)
    assert float(make(gamma_denoising=0.5).policy_loss(log_ratio, advantage, index)) == pytest.approx(float(expected), abs=1e-7)
    plain = make(gamma_denoising=0.5, normalize_advantages=False).policy_loss(log_ratio, advantage, index)
    assert float(plain) == pytest.approx(float(clipped_surrogate(log_ratio, discount * advantage, clip)), abs=1e-7)


def test_every_denoising_step_of_a_round_is_in_one_batch_of_each_epoch(make):
    learner = make(epochs=3, batch_size=16)
    for rows in (5, 16, 31, 32, 100):
        batches = list(learner._batches(rows))
        parts = max(1, rows // 16)
        assert len(batches) == 3 * parts and min(len(batch) for batch in batches) >= min(rows, 16)
        for epoch in range(3):
            assert sorted(torch.cat(batches[epoch * parts : (epoch + 1) * parts]).tolist()) == list(range(rows))


def test_ratios_of_the_first_batch_are_1(make):
    learner = make(epochs=1, batch_size=100_000)
    metrics = learner.update()
    assert metrics["policy/updates"] == 1 and float(metrics["policy/clipped"]) == 0.0
    assert 0.0 <= float(metrics["policy/kl"]) < 1e-10 and abs(float(metrics["policy/loss"])) < 0.1
    assert metrics["policy/gradient"] > 0


def weights(learner, prefix):
    return {name: tensor for name, tensor in point_tuning.snapshot(learner)[0].items() if name.startswith(prefix)}


def test_in_the_warm_up_the_value_alone_learns(make):
    learner = make(warmup_rounds=2)
    for number in range(3):
        before, value = weights(learner, "policy."), weights(learner, "value.")
        metrics = learner.update()
        changed = [name for name, tensor in weights(learner, "policy.").items() if not torch.equal(tensor, before[name])]
        assert any(not torch.equal(tensor, value[name]) for name, tensor in weights(learner, "value.").items())
        assert bool(changed) == (metrics["policy/updates"] > 0) == (number == 2)
    assert all(name.startswith("policy.network.") for name in changed)  # frozen steps and normalisers stay


def test_a_policy_that_has_gone_too_far_rests_until_the_next_round(make):
    learner = make(target_kl=1e-9, epochs=5)
    for _ in range(2):
        assert learner.update()["policy/updates"] == 1  # whose ratios are 1; the next batch's are not
    assert make(target_kl=1.0, epochs=5).update()["policy/updates"] > 5


@pytest.mark.parametrize(
    "changes", [{"finetuned_steps": 1}, {"finetuned_steps": 3}, {"sampler": "ddpm", "finetuned_steps": 4}, {"eta": 0.0}]
)
def test_any_number_of_steps_may_learn_in_any_chain(make, changes):
    learner = make(**changes)
    for _ in range(2):
        assert np.isfinite(list(point_tuning.numbers(learner.update()).values())).all()
    whole = learner.actor.learning_steps == learner.actor.reverse.steps
    assert (learner.policy_config.frozen_from is None) == whole
    assert any(name.startswith("policy.frozen.") for name in learner.checkpoint().tensors) != whole


def test_the_bc_term_holds_the_policy_to_its_start(make):
    """It is the likelihood that the policy gives to the start's own chains, and with much weight it wins."""
    free, held = make(actor_learning_rate=1e-2), make(actor_learning_rate=1e-2, bc_coefficient=100.0)

    def likelihood(learner):
        condition = learner.actor.condition(np.random.default_rng(0).uniform([-1, 20, 20], [1, 20, 20], (200, 2, 3)))
        learner.generator.manual_seed(0)
        with torch.no_grad():
            return -float(learner.bc_loss(condition, torch.arange(200) % 2))

    assert likelihood(free) == likelihood(held)
    before = likelihood(free)
    for learner in (free, held):
        for _ in range(3):
            learner.update()
    assert likelihood(free) < likelihood(held) - 0.02 and likelihood(held) > before - 0.05


@pytest.mark.parametrize(("finetuned_steps", "clip_first", "gain"), [(3, 0.1, 0.4), (2, 0.3, 0.2)])
def test_success_rises_from_a_weak_start(make, finetuned_steps, clip_first, gain):
    """From a third of 50 episodes; in about 10 000 environment steps, more slowly with a frozen first step."""
    learner = make(finetuned_steps=finetuned_steps, clip_first=clip_first, **LEARNING)
    successes = [float(learner.update()["rollout/success"]) for _ in range(28)]
    assert np.mean(successes[:4]) < 0.5 and np.mean(successes[-4:]) > np.mean(successes[:4]) + gain


# Resuming


def test_a_restored_learner_goes_on_bit_equal(make, tmp_path):
    straight = make(evaluate_every=30)
    straight.evaluations()
    for _ in range(2):
        straight.update()
        straight.evaluations()
    checkpoint.write(tmp_path / "00000001.safetensors", straight.checkpoint())
    expected = [(point_tuning.numbers(straight.update()), straight.evaluations()) for _ in range(2)]
    resumed = make(evaluate_every=30)
    resumed.restore(checkpoint.load(tmp_path / "00000001.safetensors"))
    assert resumed.evaluations() == []
    assert [(point_tuning.numbers(resumed.update()), resumed.evaluations()) for _ in range(2)] == expected
    assert_same(point_tuning.snapshot(resumed), point_tuning.snapshot(straight))


def test_after_a_roll_back_batches_are_others_and_episodes_the_same(make, tmp_path):
    learner = make()
    learner.update()
    checkpoint.write(tmp_path / "00000001.safetensors", learner.checkpoint())
    outcomes = []
    for attempt in (0, 1, 1, 2):
        learner.restore(checkpoint.load(tmp_path / "00000001.safetensors"))
        if attempt:
            learner.diverted(attempt)
        metrics = learner.update()
        outcomes.append((float(metrics["policy/loss"]), learner.step))
    losses, steps = zip(*outcomes, strict=True)
    assert len(set(steps)) == 1 and losses[1] == losses[2] and len(set(losses)) == 3


def test_a_checkpoint_of_another_chain_or_algorithm_is_refused(make):
    whole = make(finetuned_steps=3)
    with pytest.raises(RunError, match="the checkpoint is of another network or algorithm"):
        make(finetuned_steps=2).restore(whole.checkpoint())
    stripped = whole.checkpoint()
    tensors = {name: tensor for name, tensor in stripped.tensors.items() if not name.startswith("value.")}
    with pytest.raises(RunError, match="the checkpoint is of another network or algorithm"):
        make(finetuned_steps=3).restore(replace(stripped, tensors=tensors))
