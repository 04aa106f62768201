# SPDX-License-Identifier: Apache-2.0
"""DDiffPG: modes of episodes, who inherits what, one Q for each, equal parts of a batch, and novelty."""

from functools import cache, partial

import numpy as np
import point_tuning
import pytest
import torch
from scipy.spatial.distance import squareform

from otpr_trainer.algorithms import ddiffpg
from otpr_trainer.data.replay import Origin
from otpr_trainer.modes import POINTS, clustered, modes_of, path, warped_distances
from otpr_trainer.novelty import Novelty


@pytest.fixture(autouse=True)
def here(monkeypatch):
    point_tuning.play_here(monkeypatch)


@pytest.fixture
def make(make):
    """Makes learners of DDiffPG on the point task."""
    return partial(make, "ddiffpg")


def rough(critic, seed=5):
    """Lets a critic and its target differ, from each other and from state to state, as after long training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in [*critic.ensemble.parameters(), *critic._target.parameters()]:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return critic


def line(end, wobble=0.0, points=POINTS):
    """A path from the origin to ``end`` in the plane."""
    steps = np.linspace(0, 1, points)[:, None]
    return steps * np.asarray(end, dtype=float) + wobble * np.sin(7 * steps)


# Modes


def test_the_warped_distance_is_the_best_of_all_alignments():
    """By recursion over all of them."""
    rng = np.random.default_rng(0)
    ours, theirs = rng.standard_normal((2, POINTS, 3)), rng.standard_normal((3, POINTS, 3))
    found = warped_distances(ours, theirs)
    for i, j in np.ndindex(2, 3):

        @cache
        def least(p, q, a=ours[i], b=theirs[j]):
            here = float(((a[p] - b[q]) ** 2).sum())
            before = [(p - 1, q), (p, q - 1), (p - 1, q - 1)]
            known = [least(*one) for one in before if min(one) >= 0]
            return here + (min(known) if known else 0.0)

        assert found[i, j] == pytest.approx(np.sqrt(least(POINTS - 1, POINTS - 1)))


def test_who_goes_the_same_way_at_another_speed_is_no_distance_away():
    slow = np.repeat(line((1, 2), points=POINTS // 2), 2, axis=0)
    waits = np.concatenate([line((1, 2), points=POINTS // 2), np.tile([[1.0, 2.0]], (POINTS // 2, 1))])
    distance = warped_distances(np.stack([slow, waits, line((1, -2))]), np.stack([slow, waits, line((1, -2))]))
    assert distance[0, 1] == pytest.approx(0.0, abs=1e-6) and distance[0, 2] > 1.0
    np.testing.assert_allclose(distance, distance.T, atol=1e-9)
    np.testing.assert_allclose(np.diag(distance), 0.0, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 3, POINTS, 200])
def test_a_path_is_its_episode_from_end_to_end_at_any_length(steps):
    states = np.arange(float(steps))[:, None]
    found = path(states)
    assert found.shape == (POINTS, 1) and (found[0], found[-1]) == (0.0, steps - 1.0) and (np.diff(found[:, 0]) >= 0).all()


def test_two_ways_round_are_two_modes_and_a_failure_joins_the_nearer():
    """What has more modes than may be is one."""
    paths = np.stack([line(end, wobble) for end in ((1, 1), (1, -1)) for wobble in (0.0, 0.01, 0.02, 0.3)])
    solved = np.array([True, True, True, False] * 2)
    found = modes_of(paths, solved, most=4, memory=100)
    assert len(set(found[:4])) == 1 and len(set(found[4:])) == 1 and found[0] != found[4]
    assert not modes_of(paths, solved, most=1, memory=100).any()
    assert clustered(np.zeros((1, 1)), 4).tolist() == [0]


@pytest.mark.parametrize(
    ("pair", "near", "far", "expected"),
    [
        (6.9, 10.0, 10.0, [0, 0, 1, 2]),  # the tree is 10 high: what joins below 7 is one mode
        (7.1, 10.0, 10.0, [0, 1, 2, 3]),
        (3.0, 5.0, 8.0, [0, 0, 0, 1]),  # 6.5 on average; 8 by the farther of the two
        (3.0, 6.0, 9.0, [0, 0, 1, 2]),  # 7.5 on average; 6 by the nearer
    ],
)
def test_modes_are_cut_at_seven_tenths_of_a_tree_of_average_distances(pair, near, far, expected):
    """Two paths ``pair`` apart, a third one ``near`` the one and ``far`` from the other, and a fourth 10 from all."""
    found = clustered(squareform([pair, near, 10.0, far, 10.0, 10.0]), 4)
    assert np.array_equal(found[:, None] == found, np.equal.outer(expected, expected))


def test_only_the_newest_successes_make_modes_and_older_ones_join_them():
    paths = np.stack([line((5, 5)), *(line(end, wobble) for end in ((1, 1), (1, -1)) for wobble in (0.0, 0.01))])
    found = modes_of(paths, np.ones(5, dtype=bool), most=4, memory=4)
    assert found[0] == found[1] == found[2] != found[3] == found[4]


# Who inherits


def test_a_mode_keeps_the_critic_and_chunks_that_most_of_its_successes_had(make):
    """A second heir has a copy, a mode of new successes one of exploration's; exploration's own is never given away."""
    learner = make(rounds=1)
    explorer, old = learner.critics[0], [rough(learner._new_critic(), seed) for seed in (1, 2)]
    learner.critics = [explorer, *old]
    learner.improved = torch.stack([torch.full_like(learner.improved[0], float(group)) for group in range(3)])
    label = torch.tensor([1, 1, 1, 2, 2, 3, 3, 4])
    before = torch.tensor([2, 2, 1, 2, 0, 0, 0, 1])
    learner._inherit(label, before)
    assert learner.critics[0] is explorer and learner.critics[1] is old[1] and learner.critics[4] is old[0]
    assert [float(part.mean()) for part in learner.improved] == [0.0, 2.0, 2.0, 0.0, 1.0]
    for heir, of in ((2, old[1]), (3, explorer)):
        copied = learner.critics[heir]
        assert copied is not of and all(torch.equal(a, b) for a, b in zip(copied.tensors().values(), of.tensors().values(), strict=True))
        condition, chunk = learner.replay.condition[:4], learner.replay.transitions.chunk[:4, :2]
        value = of.values(condition, chunk[:, None])
        copied.step(copied.loss(condition, chunk, torch.ones(4)))
        assert torch.equal(of.values(condition, chunk[:, None]), value)  # what one learns the other does not
        assert not torch.equal(copied.values(condition, chunk[:, None]), value)


def test_every_episode_is_in_one_mode_and_all_its_rows_with_it(make):
    learner = make(rounds=3)
    learner.find_modes()
    state, mode = learner.replay.transitions.state, learner.mode
    assert len(mode) == len(learner.replay) and set(mode.tolist()) == set(range(1, len(learner.critics)))
    same_episode = state.diff() == 1
    assert (mode.diff()[same_episode] == 0).all() and (~same_episode).sum() == 4 * 3 + len(point_tuning.setup().demos.episodes) - 1


def test_an_episode_is_of_exploration_alone_until_the_next_search(make):
    learner = make(rounds=1, cluster_every=10**6)
    searched = len(learner.mode)
    learner.update()
    assert (learner.mode[:searched] > 0).all() and len(learner.mode) > searched and (learner.mode[searched:] == 0).all()


# Batches


def two_modes(learner):
    """Even rows in one mode, odd ones in another."""
    learner.critics = [rough(learner._new_critic(), seed) for seed in range(3)]
    learner.mode = 1 + torch.arange(len(learner.replay)) % 2
    learner.improved = learner.replay.transitions.chunk.expand(3, *learner.replay.transitions.chunk.shape).clone()
    return learner


def test_a_batch_has_as_much_of_each_mode_and_of_exploration(make):
    """However few the episodes of a mode are; half of each part are demonstrations, where the mode has any."""
    learner = two_modes(make(rounds=1, batch_size=30))
    learner.mode[:] = 2
    learner.mode[-3:] = 1
    parts = [learner.rows(group) for group in range(3)]
    assert [len(part) for part in parts] == [10, 10, 10]
    assert set(parts[1].tolist()) <= set(range(len(learner.mode) - 3, len(learner.mode)))
    assert (learner.mode[parts[2]] == 2).all() and int((parts[2] < learner.demonstrations).sum()) == 5
    targets = learner.targets()
    assert len(targets.x_0) == 30 and (targets.weight == 1).all()


def test_a_chunk_climbs_the_q_of_its_mode_and_no_other_groups_copy_of_it_moves(make):
    """Demonstrations stay, and so does what is not carried out and what was done."""
    learner = two_modes(make(rounds=1, action_steps=10, action_learning_rate=0.05))
    done = learner.replay.transitions.chunk.clone()
    rows = torch.arange(len(done))
    learner.improve(1, rows)
    assert torch.equal(learner.improved[0], done) and torch.equal(learner.improved[2], done)
    assert torch.equal(learner.improved[1, : learner.demonstrations], done[: learner.demonstrations])
    own = rows[learner.demonstrations :]
    condition = learner.replay.condition[learner.replay.transitions.state[own]]
    critic = learner.critics[1]
    before, after = (critic.lower_bound(critic.values(condition, one[own, None, :2]))[:, 0] for one in (done, learner.improved[1]))
    assert (after > before).float().mean() > 0.9
    assert torch.equal(learner.improved[1, :, 2:], done[:, 2:]) and torch.equal(learner.replay.transitions.chunk, done)


def test_two_modes_that_disagree_are_both_kept(make):
    """One Q says left, the other right, and exploration's nothing: the policy goes both ways."""
    rates = {"actor_ema": 0.9, "actor_learning_rate": 1e-2, "action_learning_rate": 0.5, "actor_updates": 1.0, "critic_updates": 0.0}
    learner = make(rounds=1, batch_size=144, sampling_steps=4, action_steps=4, cluster_every=10**6, **rates)
    two_modes(learner).demonstrations = 0  # all may climb
    for group, side in ((0, 0.0), (1, -1.0), (2, 1.0)):

        def gradient(condition, chunk, pessimism=0.0, side=side):
            return side * torch.ones_like(chunk)

        learner.critics[group].action_gradient = gradient
    learner.learn(1000, 1250)
    assert torch.equal(learner.improved[0], learner.replay.transitions.chunk)
    move = learner.actor.draw(learner.replay.condition[:200], 20)[..., 0, 0]
    assert (move > 0.5).float().mean() > 0.15 and (move < -0.5).float().mean() > 0.15


def test_without_steps_of_ascent_it_is_cloning(make):
    learner = make(rounds=2, action_steps=0)
    assert all(torch.equal(part, learner.replay.transitions.chunk) for part in learner.improved)


# Critics and novelty


@pytest.mark.parametrize("observed", [True, False])
def test_exploration_is_taught_by_novelty_and_a_mode_by_success_too(make, observed):
    learner = two_modes(make(rounds=1, novelty=0.02, observed_returns=observed))
    batch = learner.replay.transitions
    assert (batch.origin == Origin.SUCCESS).any() and float(batch.reward.max()) > 0.9
    ahead, here = learner.replay.condition[batch.next_state], learner.replay.condition[batch.state]
    curious = 0.02 * learner.novelty.reward(here, ahead)
    assert float(curious.max()) > 0
    for group in range(3):
        learner.generator.manual_seed(3)
        found = learner.critic_target(group, batch)
        learner.generator.manual_seed(3)
        chunk = learner.actor.draw(ahead, 1)[:, 0, :2]
        with torch.no_grad():
            value = learner.critics[group]._target(ahead, chunk).sigmoid().amin(0)
        task = batch.discount * value
        if group > 0:
            task = batch.reward + task
            task = torch.maximum(task, batch.observed_return) if observed else task
        assert torch.allclose(found, (task + curious).clamp(max=1.0), atol=1e-6)


def test_a_step_earns_what_it_leads_to_beyond_half_of_where_it_began():
    novelty = Novelty(3, 16, seed=0)
    novelty.novelty = lambda condition: condition[:, 0]
    here, ahead = torch.tensor([[1.0], [3.0], [2.0]]), torch.tensor([[2.0], [1.0], [1.0]])
    assert novelty.reward(here, ahead).tolist() == [1.5, 0.0, 0.0]


def test_what_was_seen_often_is_new_no_more():
    generator = torch.Generator().manual_seed(0)
    novelty, seen, other = Novelty(3, 32, seed=0), torch.randn(64, 3, generator=generator), 5 + torch.randn(64, 3, generator=generator)
    before = float(novelty.novelty(seen).mean())
    for _ in range(2000):
        novelty.step(seen)
    assert float(novelty.novelty(seen).mean()) < 0.35 * before < float(novelty.novelty(other).mean())


def test_the_papers_settings_are_valid():
    paper = ddiffpg.Config(**ddiffpg.VARIANTS["paper"])
    assert (paper.observed_returns, paper.demo_share, paper.action_steps, paper.action_learning_rate) == (False, 0.0, 20, 0.03)


def test_the_policy_waits_for_the_critics(make):
    learner = make(actor_start=10**6)
    before = {key: tensor.clone() for key, tensor in learner.actor.tensors().items()}
    metrics = learner.update()
    assert all(torch.equal(before[key], tensor) for key, tensor in learner.actor.tensors().items())
    assert metrics["policy/loss"] == 0.0 and metrics["critic/loss"] > 0.0 and metrics["modes/count"] >= 1
