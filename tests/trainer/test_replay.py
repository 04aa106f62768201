# SPDX-License-Identifier: Apache-2.0
"""Replay: what a transition of a chunk is, by hand, and that nothing of an episode is lost or invented."""

from dataclasses import fields, replace

import numpy as np
import point_task
import point_tuning
import pytest
import torch

from otpr_policy.errors import DemonstrationError
from otpr_policy.history import ObservationHistory
from otpr_trainer import checkpoint
from otpr_trainer.checkpoint import Checkpoint
from otpr_trainer.data.replay import Origin, Replay, Trajectory, Transitions, of_demonstrations, transitions


def trajectory(steps, tail=0, terminated=True, reward=None, origin=Origin.SUCCESS, seed=0):
    """Random observations and actions; by default a reward of 1 for the last step."""
    rng = np.random.default_rng(seed)
    reward = np.append(np.zeros(steps - 1), 1.0) if reward is None else np.array(reward)
    observation = rng.uniform([-1, 19, 19], [1, 21, 21], (steps + 1, 3))
    return Trajectory(observation, rng.uniform([-0.2, -1], [0.2, 1], (steps + tail, 2)), reward, terminated, origin)


def windows(episode, chunk_length):
    """Each chunk's actions as they are, (W, Ta, Da)."""
    return torch.tensor(episode.action).unfold(0, chunk_length, 1).transpose(1, 2)


def cut(episode, chunk_length, executed_length, gamma, first_state=0):
    return transitions(episode, windows(episode, chunk_length), executed_length, gamma, first_state)


def numbers(tensor):
    return pytest.approx(tensor, abs=1e-6)


def test_an_episode_that_ends_by_success_by_hand():
    """5 steps; the last chunk of 3 began at step 4 and left 2 planned actions undone."""
    rows = cut(trajectory(5, tail=2), chunk_length=3, executed_length=2, gamma=0.9, first_state=10)
    assert rows.state.tolist() == [10, 11, 12, 13, 14]
    assert rows.next_state.tolist() == [12, 13, 14, 15, 15]
    assert rows.reward.tolist() == numbers([0, 0, 0, 0.9, 1])  # sum of gamma^i r over the executed part
    assert rows.discount.tolist() == numbers([0.81, 0.81, 0.81, 0, 0])  # nothing follows a true end
    assert rows.observed_return.tolist() == numbers([0.6561, 0.729, 0.81, 0.9, 1])
    assert rows.origin.tolist() == [Origin.SUCCESS] * 5


def test_an_episode_that_is_cut_off_bootstraps_from_its_final_observation():
    episode = trajectory(3, tail=1, terminated=False, reward=[0.1, 0.2, 0.3], origin=Origin.FAILURE)
    rows = cut(episode, chunk_length=2, executed_length=2, gamma=0.5)
    assert rows.reward.tolist() == numbers([0.1 + 0.1, 0.2 + 0.15, 0.3])
    assert rows.next_state.tolist() == [2, 3, 3]
    assert rows.discount.tolist() == numbers([0.25, 0.25, 0.5])  # gamma per step that was carried out: the last chunk did one
    assert rows.observed_return.tolist() == numbers([0.1 + 0.1 + 0.075, 0.2 + 0.15, 0.3])


def test_a_failure_for_good_is_an_end_without_reward():
    rows = cut(trajectory(3, tail=1, reward=[0.0] * 3, origin=Origin.FAILURE), chunk_length=2, executed_length=1, gamma=0.9)
    assert rows.discount.tolist() == numbers([0.9, 0.9, 0]) and not rows.reward.any() and not rows.observed_return.any()


@pytest.mark.parametrize(("chunk_length", "executed_length"), [(1, 1), (4, 1), (4, 3), (4, 4)])
def test_only_the_executed_part_of_a_chunk_earns_and_is_discounted(chunk_length, executed_length):
    episode = trajectory(9, tail=chunk_length - 1, reward=np.arange(9.0))
    rows = cut(episode, chunk_length, executed_length, gamma=0.8)
    assert len(rows) == 9
    for t in range(9):
        end = min(t + executed_length, 9)
        assert rows.reward[t] == numbers(sum(0.8 ** (i - t) * i for i in range(t, end)))
        assert rows.discount[t] == numbers(0.0 if end == 9 else 0.8 ** (end - t))
        assert torch.equal(rows.chunk[t], torch.tensor(episode.action[t : t + chunk_length]))


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_the_observed_return_is_the_reward_of_the_chunk_and_the_discounted_return_from_the_next_state(gamma):
    episode = trajectory(7, tail=3, terminated=False, reward=np.random.default_rng(1).uniform(size=7))
    rows = cut(episode, chunk_length=4, executed_length=3, gamma=gamma)
    later = torch.cat([rows.observed_return, torch.zeros(1)])  # of the final state: nothing more was seen
    assert torch.allclose(rows.observed_return, rows.reward + rows.discount * later[rows.next_state], atol=1e-6)


@pytest.mark.parametrize(("steps", "actions", "expected"), [(5, 5, 3), (4, 8, 4), (3, 3, 1), (1, 3, 1)])
def test_a_state_starts_a_transition_where_its_whole_chunk_is_known(steps, actions, expected):
    """With actions beyond the end only states before the end do."""
    rows = cut(trajectory(steps, tail=actions - steps), chunk_length=3, executed_length=2, gamma=0.9)
    assert rows.state.tolist() == list(range(expected)) == list(range(len(rows.chunk)))


# Demonstrations


def demonstrations(*rewards):
    """Episodes with these rewards, recorded as the point task's."""
    episodes = tuple(replace(point_task.demonstrate(number), reward=np.array(reward, float)) for number, reward in enumerate(rewards))
    return replace(point_task.demonstrations(len(rewards)), episodes=episodes)


def test_a_demonstration_ends_with_its_first_reward_and_what_came_after_serves_the_last_chunks():
    demos = demonstrations([0, 0, 0, 1, 0, 1, 1, 1, 1, 1])
    (found,) = of_demonstrations(demos)
    recorded = demos.episodes[0]
    assert len(found) == 4 and found.terminated and found.origin is Origin.DEMONSTRATION
    assert found.reward.tolist() == [0, 0, 0, 1]
    assert np.array_equal(found.observation, recorded.observation[:5]) and np.array_equal(found.action, recorded.action)
    rows = cut(found, chunk_length=4, executed_length=4, gamma=0.9)
    assert len(rows) == 4 and rows.next_state.tolist() == [4] * 4 and not rows.discount.any()
    assert torch.equal(rows.chunk[3], torch.tensor(recorded.action[3:7]))


@pytest.mark.parametrize("reward", [0.5, -1.0, 2.0, np.nan])
def test_rewards_other_than_of_success_are_refused(reward):
    with pytest.raises(DemonstrationError, match=r"episode 1: .* reward 1 where the task is solved and 0 elsewhere"):
        of_demonstrations(demonstrations([0] * 9 + [1], [0] * 8 + [reward, 1]))


def test_a_demonstration_that_never_succeeds_is_refused():
    with pytest.raises(DemonstrationError, match="episode 0: "):
        of_demonstrations(demonstrations([0] * 10))


# The tables


def replay_of(*episodes, spec=None, candidates=2, seed=0):
    spec = spec or point_tuning.spec()
    replay = Replay(spec.observation_horizon, spec.chunk_length, spec.executed_length, 0.9)
    actor = point_tuning.actor(spec, seed)
    for episode in episodes:
        replay.add(episode, actor, candidates)
    return replay, actor


@pytest.mark.parametrize("horizon", [1, 2, 4])
def test_a_state_is_what_the_policy_is_shown_there(horizon):
    """To observations, the first repeated where there is no past yet: the history of evaluation and of the robot."""
    episode = trajectory(6)
    replay, actor = replay_of(episode, spec=point_tuning.spec(observation_horizon=horizon))
    history = ObservationHistory(horizon)
    shown = []
    for observation in episode.observation:
        history.append(observation)
        shown.append(history.stack())
    assert replay.states == 7
    assert torch.equal(replay.condition, actor.condition(np.stack(shown)))


def test_chunks_are_what_the_policy_is_to_imitate():
    episode = trajectory(5, tail=2)
    replay, actor = replay_of(episode)
    for t, chunk in enumerate(replay.transitions.chunk):
        assert torch.equal(chunk, actor.normalized(episode.action[t : t + 3]))
        assert actor.physical(chunk[None])[0] == pytest.approx(episode.action[t : t + 3], abs=1e-6)


def test_growth_changes_nothing_that_was_there():
    """60 episodes of different lengths are the rows of each by itself, with states counted on."""
    episodes = [trajectory(1 + number % 7, tail=2, seed=number) for number in range(60)]
    replay, actor = replay_of(*episodes)
    first = row = 0
    for episode in episodes:
        chunk = actor.normalized(episode.action).unfold(0, 3, 1).transpose(1, 2)
        expected = transitions(episode, chunk, 2, 0.9, first)
        ours = replay.transitions.rows(torch.arange(row, row + len(expected)))
        for field in fields(Transitions):
            assert torch.equal(getattr(ours, field.name), getattr(expected, field.name)), field.name
        first, row = first + len(episode) + 1, row + len(expected)
    assert (replay.states, len(replay)) == (first, row) and replay.candidates.shape == (first, 2, 3, 2)


def test_every_state_has_chunks_that_the_policy_would_draw_there():
    """Drawn with the policy's own generator, one episode after the other."""
    episodes = [trajectory(4, tail=2, seed=number) for number in range(2)]
    replay, _ = replay_of(*episodes, seed=5)
    actor = point_tuning.actor(point_tuning.spec(), seed=5)
    assert torch.equal(replay.candidates, torch.cat([actor.draw(replay.condition[:5], 2), actor.draw(replay.condition[5:], 2)]))
    fresh, before = torch.zeros(2, 2, 3, 2), replay.candidates.clone()
    replay.refresh(torch.tensor([7, 1]), fresh)
    changed = (replay.candidates != before).flatten(1).any(1)
    assert changed.nonzero()[:, 0].tolist() == [1, 7] and not replay.candidates[[1, 7]].any()


@pytest.mark.parametrize("candidates", [0, 2])
def test_what_was_saved_is_what_is_restored_and_goes_on_growing(tmp_path, candidates):
    episodes = [trajectory(4, tail=2, seed=number) for number in range(3)]
    replay, actor = replay_of(*episodes[:2], candidates=candidates)
    checkpoint.write(tmp_path / "00000001.safetensors", Checkpoint(1, replay.state_dict(), {}))
    restored, _ = replay_of(trajectory(6), candidates=candidates)  # what was in it before is gone
    restored.load_state_dict(checkpoint.load(tmp_path / "00000001.safetensors").tensors)
    state = actor._generator.get_state()
    for one in (replay, restored):
        actor._generator.set_state(state)
        one.add(episodes[2], actor, candidates)
    ours, theirs = restored.state_dict(), replay.state_dict()
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name


def test_an_episode_shorter_than_a_chunk_is_states_without_a_transition():
    replay, _ = replay_of(trajectory(2), trajectory(4, tail=2))
    assert replay.states == 3 + 5 and replay.transitions.state.tolist() == [3, 4, 5, 6]
