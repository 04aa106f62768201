# SPDX-License-Identifier: Apache-2.0
"""Augmented random search: its step, computed by hand, and that all perturbed policies meet the same scenes."""

from itertools import pairwise

import numpy as np
import point_tuning
import pytest
import torch

from otpr_policy.errors import RunError
from otpr_trainer import finetune
from otpr_trainer.algorithms import ars
from otpr_trainer.algorithms.ars import search_step
from otpr_trainer.interaction import play


@pytest.fixture
def make(monkeypatch):
    point_tuning.play_here(monkeypatch)
    learners = []

    def build(**changes):
        settings = {**point_tuning.SETTINGS["ars"], "envs": 4, "directions": 2, "best": 2, **changes}
        learners.append(ars.Learner(ars.Config(**settings), point_tuning.setup()))
        return learners[-1]

    yield build
    for learner in learners:
        learner.close()


def directions(count, size, seed=0):
    return torch.randn((count, size), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_two_directions_by_hand():
    """Returns 3, 1 and 0, 2: their standard deviation is sqrt(1.25); differences 2 and -2."""
    delta = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]])
    step = search_step(delta, torch.tensor([3.0, 0.0]), torch.tensor([1.0, 2.0]), step_size=0.5, best=2)
    torch.testing.assert_close(step, 0.5 / (2 * 1.25**0.5) * torch.tensor([2.0, -2.0, 2.0]))


def test_of_a_linear_reward_the_step_is_the_gradient_in_the_directions_that_were_tried():
    """R = g x: R+ - R- = 2 nu g delta, whatever the point, and the spread is that of these returns."""
    g, theta, delta, nu = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), directions(1, 3, 5)[0], directions(6, 3), 0.1
    plus, minus = ((theta + sign * nu * delta) @ g for sign in (1, -1))
    spread = np.std(np.concatenate([plus.numpy(), minus.numpy()]))
    expected = 0.3 / (6 * spread) * 2 * nu * (delta.T @ delta @ g)
    torch.testing.assert_close(search_step(delta, plus, minus, step_size=0.3, best=6), expected)


def test_it_climbs_a_quadratic():
    """And from many places; the step is the gradient of a smoothed reward, up to its size."""
    top = torch.tensor([1.0, -1.0, 2.0, 0.0], dtype=torch.float64)

    def height(x):
        return -((x - top) ** 2).sum(-1)

    theta, heights = torch.zeros(4, dtype=torch.float64), []
    for number in range(60):
        delta = directions(8, 4, number)
        theta = theta + search_step(delta, height(theta + 0.05 * delta), height(theta - 0.05 * delta), step_size=0.05, best=4)
        heights.append(float(height(theta)))
    assert heights[-1] > -0.05 and sum(later > earlier for earlier, later in pairwise(heights[:16])) >= 13


THREE = torch.tensor([9.0, 0.0, 4.0]), torch.tensor([8.0, 5.0, 2.0])
"""Returns of three directions' sides: the larger ones 9, 5, 4; of their differences, sums and plus sides each would choose others."""


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        (1, [1 / 0.5, 0.0, 0.0]),  # of 9 and 8
        (2, [1 / (2 * 3.5), -5 / (2 * 3.5), 0.0]),  # of 9, 8, 0 and 5: the mean of squared deviations is 49 / 4
        (3, [1 / (3 * 3.1446604), -5 / (3 * 3.1446604), 2 / (3 * 3.1446604)]),  # of all: 89 / 9
    ],
)
def test_only_the_directions_whose_better_side_is_best_count(best, expected):
    """Be it plus or minus; the standard deviation is that of their 2 b returns alone."""
    step = search_step(torch.eye(3), *THREE, step_size=0.3, best=best)
    torch.testing.assert_close(step, 0.3 * torch.tensor(expected))


@pytest.mark.parametrize("best", [1, 2])
def test_a_learner_goes_along_as_many_directions_as_its_setting_says(make, best):
    learner = make(directions=3, best=best, step_size=0.3)
    theta, delta = learner.theta, directions(3, len(learner.theta)).float()
    learner._pairs = list(zip(delta, *(side.tolist() for side in THREE), strict=True))
    learner.learn(0, 0)
    torch.testing.assert_close(learner.theta - theta, search_step(delta, *THREE, step_size=0.3, best=best), atol=1e-6, rtol=1e-4)


def test_the_step_does_not_depend_on_the_rewards_scale_or_offset_and_is_nothing_where_all_are_equal():
    delta, plus, minus = directions(5, 3), directions(1, 5, 1)[0], directions(1, 5, 2)[0]
    step = search_step(delta, plus, minus, step_size=0.1, best=3)
    torch.testing.assert_close(search_step(delta, 7 + 100 * plus, 7 + 100 * minus, step_size=0.1, best=3), step)
    equal = torch.ones(5, dtype=torch.float64)
    assert not search_step(delta, equal, equal, step_size=0.1, best=3).any()


def test_all_perturbed_policies_of_a_round_play_the_same_scenes_and_the_next_round_others(make, monkeypatch):
    """Pairs lie opposite each other about the policy, and the returns are of what was played."""
    rounds = []

    def watched(vector, actor, seed, episodes, account):
        found = list(play(vector, actor, seed, episodes, account))
        network = actor._policy.policy.network
        rounds.append((list(episodes), torch.cat([p.flatten().clone() for p in network.trunk[-1].parameters()]), found))
        return iter(found)

    monkeypatch.setattr(finetune, "play", watched)
    learner = make(noise=0.1, step_size=0.02, gamma=0.5)
    theta = learner.theta
    learner.update()
    first, parameters, found = zip(*rounds, strict=True)
    assert len(first) == 4 and all(episodes == first[0] for episodes in first)
    for plus, minus in ((0, 1), (2, 3)):
        torch.testing.assert_close(parameters[plus] + parameters[minus], 2 * theta)
        torch.testing.assert_close((parameters[plus] - theta).std(), torch.tensor(0.1), atol=0.03, rtol=0)
    assert all(np.array_equal(a.trajectory.observation[0], b.trajectory.observation[0]) for a, b in zip(found[0], found[3], strict=True))
    returns = [np.mean([0.5 ** (len(e.trajectory) - 1) * e.success for e in side]) for side in found]
    delta = torch.stack([(parameters[n] - theta) / 0.1 for n in (0, 2)])
    plus, minus = (torch.tensor(returns[n::2], dtype=torch.float32) for n in (0, 1))
    torch.testing.assert_close(learner.theta, theta + search_step(delta, plus, minus, step_size=0.02, best=2), atol=1e-5, rtol=1e-4)
    assert learner.step == sum(len(e.trajectory) for side in found for e in side)
    learner.update()
    assert min(rounds[4][0]) > max(first[0])


@pytest.mark.parametrize(("parameters", "searched"), [("last", "network.trunk."), ("all", "network.")])
def test_nothing_but_what_is_searched_changes(make, parameters, searched):
    learner = make(parameters=parameters, step_size=1.0)
    before = {name: tensor.clone() for name, tensor in learner.policy.state_dict().items()}
    while torch.equal(learner.theta, torch.nn.utils.parameters_to_vector(learner._searched(point_tuning.cloned()))):
        learner.update()
    changed = [name for name, tensor in learner.policy.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed and all(name.startswith(searched) for name in changed)
    assert len(changed) == (2 if parameters == "last" else len([name for name in before if name.startswith("network.")]))


def test_an_episode_that_one_of_a_pair_has_lost_counts_for_neither(make, monkeypatch):
    """A direction of which no scene is left is none."""
    learner = make(noise=1e-9)
    calls = []

    def losing(self, actor, numbers):
        calls.append(numbers)
        found = original(self, actor, numbers)
        return {1: [], 2: found[:2], 3: found[1:3]}.get(len(calls) - 1, found)

    original = ars.Learner.played_by
    monkeypatch.setattr(ars.Learner, "played_by", losing)
    played = learner.play_episodes(range(10, 14))
    assert len(played) == 4 + 0 + 2 + 2 and len(learner._pairs) == 1
    only = learner._return(played[5])
    assert learner._pairs[0][1:] == (only, only)


def test_after_a_roll_back_directions_are_others(make):
    learner = make()
    state, found = learner.checkpoint(), []
    for attempt in (0, 1, 1, 2):
        learner.restore(state)
        if attempt:
            learner.diverted(attempt)
        learner.update()
        found.append(torch.stack([direction for direction, *_ in learner._pairs]))
    assert torch.equal(found[1], found[2]) and not torch.equal(found[0], found[1]) and not torch.equal(found[2], found[3])


def test_more_best_directions_than_directions_and_unknown_parameters_are_refused():
    with pytest.raises(RunError, match=r"best must be in 1\.\.2, the directions, got 3"):
        ars.Config(directions=2, best=3)
    with pytest.raises(RunError, match="unknown parameters 'first'; known: all, last"):
        ars.Config(parameters="first")
