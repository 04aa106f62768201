# SPDX-License-Identifier: Apache-2.0
"""OTPR's laws: what the compatibility is invariant to, what it trains the policy towards, when it is trusted."""

import numpy as np
import point_tuning
import pytest
import torch

from otpr_policy.spec import Field, PolicySpec, Semantics, VectorSpec
from otpr_sim import registry
from otpr_sim.env import TaskSpec
from otpr_trainer.algorithms import otpr
from otpr_trainer.algorithms.otpr import Arms, Targets
from otpr_trainer.data.demonstrations import Demonstrations, Episode, Header
from otpr_trainer.data.replay import Origin
from otpr_trainer.learner import Setup
from otpr_trainer.policy import DiffusionPolicy, PolicyConfig

PLANS = ["balanced", "semi_relaxed"]
ALL_WEIGHTS = [*PLANS, "softmax", "argmax", "uniform"]


@pytest.fixture(autouse=True)
def here(monkeypatch):
    point_tuning.play_here(monkeypatch)


@pytest.fixture
def make():
    """Makes learners of the point task, and closes them."""
    learners = []

    def build(setup=None, **changes):
        learners.append(otpr.Learner(otpr.Config(**{**point_tuning.SETTINGS["otpr"], **changes}), setup or point_tuning.setup()))
        return learners[-1]

    yield build
    for learner in learners:
        learner.close()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Compatibility


@pytest.mark.parametrize("weights", ALL_WEIGHTS)
def test_neither_an_offset_of_all_values_nor_their_scale_nor_what_a_state_is_worth_changes_compatibility(make, weights):
    cost = normal(12, 9)
    expected = make(weights=weights).compatibility(cost)
    for other in (cost + 50.0, 1e-3 * cost, 20.0 * cost + normal(12, 1, seed=1)):
        assert torch.allclose(make(weights=weights).compatibility(other), expected, atol=1e-4)
    assert torch.allclose(expected.mean(1), torch.ones(12, dtype=torch.float64), atol=1e-5)


def test_values_with_an_offset_give_the_same_chunks_to_imitate(make):
    """End to end: critics that are 0.25 more sure of everything."""
    targets = []
    for offset in (0.0, 0.25):
        learner = make(pool="all")
        values = learner.critic.cross_values
        learner.critic.cross_values = lambda *pair, values=values, offset=offset: 8.0 * values(*pair).double() + offset
        targets.append(learner.block())
    assert torch.equal(targets[0].x_0, targets[1].x_0) and torch.equal(targets[0].weight, targets[1].weight)


@pytest.mark.parametrize("weights", PLANS)
@pytest.mark.parametrize("support", [2.0, 6.0])
def test_epsilon_follows_until_the_median_state_uses_as_many_chunks_as_wanted(make, weights, support):
    learner, used = make(weights=weights, support=support), []
    for seed in range(60):
        h = learner.compatibility(normal(24, 30, seed=seed))
        used.append(float((h > 0).sum(1).double().median()))
    assert np.mean(used[30:]) == pytest.approx(support, abs=1.0)


def test_what_is_bad_in_every_state_is_used_by_the_balanced_plan_alone(make):
    """Half of the chunks are worst everywhere: Q = s a - 10 [bad]. A plan that must use every chunk cannot see that."""
    s, a = torch.tensor([-1.0, 1.0]).repeat(10), torch.tensor([-1.0, 1.0]).repeat(20)
    bad = torch.arange(40) >= 20
    cost = -(s[:, None] * a - 10.0 * bad).double()
    matching = s[:, None] == a
    learner = {weights: make(weights=weights, support=10) for weights in PLANS}
    for one in learner.values():
        one.epsilon = 0.01
    h = learner["balanced"].compatibility(cost)
    assert torch.allclose(h.mean(0), torch.ones(40, dtype=torch.float64), atol=1e-5) and h[:, bad].sum() > 0
    h = learner["semi_relaxed"].compatibility(cost)
    assert not h[:, bad].any() and not h[~matching].any()
    assert torch.allclose(h[matching & ~bad], torch.tensor(4.0, dtype=torch.float64), atol=1e-5)


def test_argmax_and_softmax_see_a_chunk_that_is_best_in_every_state(make):
    cost = normal(12, 9)
    cost[:, 3] -= 10.0
    for weights in ("argmax", "softmax", "semi_relaxed"):
        assert (make(weights=weights).compatibility(cost).argmax(1) == 3).all()


# What is imitated


def recorded(learner, h):
    """Lets h be the compatibility; returns where the shared chunks' executed parts, (m, L, Da), will be found."""
    found = {}
    values = learner.critic.cross_values

    def cross_values(condition, chunks):
        found["chunks"] = chunks
        return values(condition, chunks)

    learner.critic.cross_values, learner.compatibility = cross_values, lambda cost: h
    return found


def test_chunks_are_drawn_as_often_as_they_are_compatible(make):
    """H = (0, 1, 3) are the shares 0, 1/4, 3/4, whatever their scale."""
    learner = make(pool="all", block_states=1, block_chunks=3, draws=20_000)
    found = recorded(learner, torch.tensor([[0.0, 1.0, 3.0]]) * 1e3)
    targets = learner.block()
    share = (targets.x_0[:, None, :2] == found["chunks"]).flatten(2).all(2).float().mean(0)
    assert share[0] == 0.0 and share.tolist() == pytest.approx([0.0, 0.25, 0.75], abs=0.01)
    assert targets.weight.tolist() == [1.0] * 20_000


@pytest.mark.parametrize("resampling", [True, False])
def test_resampling_and_weighting_estimate_the_same_loss(make, resampling):
    """For any function F of a chunk both have the mean sum_j h_ij F_j / m in state i, within 4 standard errors; a dead row has none."""
    learner = make(pool="all", block_states=6, block_chunks=2, draws=4000, train_resampling=resampling)
    h = torch.rand(6, 12, generator=torch.Generator().manual_seed(1)).sub(0.6).clamp(min=0.0)
    h = h / h.mean(1, keepdim=True)
    h[4] = 0.0
    found = recorded(learner, h)
    targets = learner.block()
    expected = (h * found["chunks"].mean((1, 2))).mean(1)
    drawn = (targets.weight * targets.x_0[:, :2].mean((1, 2))).reshape(6, 4000)
    error = drawn.std(1) / 4000**0.5
    assert ((drawn.mean(1) - expected).abs() <= 4 * error).all() and (error[:4] > 0).all()
    assert not targets.weight.reshape(6, 4000)[4].any()
    assert targets.weight.reshape(6, 4000).mean(1)[:4].tolist() == pytest.approx([1.0] * 4, abs=0.1)


def test_in_the_own_pool_a_state_imitates_what_was_done_or_drawn_there_and_never_a_neighbours_chunk(make):
    learner = make(pool="own", block_states=50, draws=1)
    rows, replay = learner.replay.transitions, learner.replay
    for column, known in ((0, rows.chunk), (1, replay.candidates[rows.state, 0]), (2, replay.candidates[rows.state, 1])):
        learner.compatibility = lambda cost, column=column: torch.eye(cost.shape[1])[column].expand(cost.shape) * cost.shape[1]
        targets = learner.block()
        for condition, chunk in zip(targets.condition, targets.x_0, strict=True):
            here = (replay.condition[rows.state] == condition).all(1)
            assert (known[here] == chunk).flatten(1).all(1).any()


def test_weights_that_are_all_alike_are_a_factor_of_the_loss(make):
    """Of the loss and of every gradient: with H = c the policy is cloned from the pairs, c times as fast."""
    learner = make()
    pairs = learner.keypoints(32)
    gradients = []
    for weight in (1.0, 3.0):
        learner.generator.manual_seed(7)
        targets = Targets(pairs.condition, pairs.x_0, torch.full((32,), weight))
        loss = learner.policy_loss(targets)
        gradients.append([loss, *torch.autograd.grad(loss, list(learner.actor.learner.parameters()))])
        learner.generator.manual_seed(7)
        cloning = learner.actor.denoising_loss(pairs.condition, pairs.x_0).mean()
        assert loss.item() == pytest.approx(weight * cloning.item(), rel=1e-5)
    for one, three in zip(*gradients, strict=True):
        assert torch.allclose(3.0 * one, three, rtol=1e-4, atol=1e-7)


def test_no_gradient_passes_between_policy_and_critics(make):
    learner = make(pool="all")
    targets = learner.block()
    assert not (targets.weight.requires_grad or targets.x_0.requires_grad or targets.condition.requires_grad)
    learner.policy_loss(targets).backward()
    assert all(parameter.grad is None for parameter in learner.critic.ensemble.parameters())
    assert all(parameter.grad is not None for parameter in learner.actor.learner.parameters())
    learner.actor._optimizer.zero_grad()
    learner.critic_loss(learner.critic_batch()).backward()
    assert all(parameter.grad is not None for parameter in learner.critic.ensemble.parameters())
    frozen = [*learner.actor.learner.parameters(), *learner.actor.average.parameters(), *learner.critic._target.parameters()]
    assert all(parameter.grad is None for parameter in frozen)


def test_a_batch_of_keypoints_may_be_larger_than_the_expert_set(make):
    """Without own successes, keypoints are demonstrations."""
    learner = make()
    rows = learner.replay.transitions
    assert (rows.origin == Origin.DEMONSTRATION).all() and len(rows) < 500
    targets = learner.keypoints(500)
    assert len(targets.x_0) == 500 and (targets.weight == 1).all()
    known = torch.cat([learner.replay.condition[rows.state], rows.chunk.flatten(1)], dim=1)
    drawn = torch.cat([targets.condition, targets.x_0.flatten(1)], dim=1)
    assert torch.cdist(drawn, known).amin(1).max() == 0.0


def batches(learner, transporting=True, count=3):
    """Rows of each batch by where they come from: keypoints, transport."""
    sources = []
    for name in ("keypoints", "block"):
        original = getattr(learner, name)

        def marked(*arguments, original=original, mark=float(len(sources))):
            targets = original(*arguments)
            return Targets(targets.condition, targets.x_0, torch.full_like(targets.weight, mark))

        sources.append(name)
        setattr(learner, name, marked)
    return [[int((batch.weight == mark).sum()) for mark in (0, 1)] for batch in learner._policy_batches(count, transporting)]


def test_keypoints_and_transport_share_a_batch(make):
    assert batches(make(keypoint_share=0.25)) == [[4, 12]] * 2 + [[4, 12]] or batches(make(keypoint_share=0.25))[0][0] == 4
    assert batches(make(keypoint_share=1.0)) == [[16, 0]] * 3
    assert batches(make(keypoint_share=0.0))[0][0] == 0
    assert batches(make(keypoint_share=0.25), transporting=False) == [[16, 0]] * 3  # a closed gate leaves cloning
    assert all(keypoints == 0 for keypoints, _ in batches(make(keypoint_share=0.25, mask=False)))


# The critic's target


@pytest.mark.parametrize("observed", [True, False])
def test_the_target_is_what_the_policy_would_be_worth_next_and_at_least_what_was_seen(make, observed):
    learner = make(observed_returns=observed)
    learner.update()
    targets = []
    learner.critic.target_values = lambda condition, chunks, generator: chunks.mean((2, 3)).sigmoid()
    learner.critic.loss = lambda condition, chunk, target: targets.append(target)
    batch = learner.replay.transitions
    learner.critic_loss(batch)
    ahead = learner.replay.candidates[batch.next_state][:, :, :2].mean((2, 3)).sigmoid().mean(1)
    expected = batch.reward + batch.discount * ahead
    assert (batch.observed_return > expected).any() and (batch.observed_return < expected).any()
    assert torch.allclose(targets[0], torch.maximum(expected, batch.observed_return) if observed else expected)
    assert float(targets[0].max()) <= 1.0


def test_critics_learn_from_demonstrations_and_own_experience_by_halves(make):
    learner = make(demo_share=0.5)
    assert (learner.critic_batch().origin == Origin.DEMONSTRATION).all()
    learner.update()
    origin = learner.critic_batch().origin
    assert len(origin) == 16 and int((origin == Origin.DEMONSTRATION).sum()) == 8


# The gate


def arms(plain, selected):
    """(successes, episodes) of each."""
    found = Arms()
    for side, (successes, episodes) in enumerate((plain, selected)):
        for number in range(episodes):
            found.add(bool(side), number < successes)
    return found


@pytest.mark.parametrize(
    ("plain", "selected", "expected"),
    [
        ((0, 0), (5, 5), False),  # nothing to compare with
        ((5, 5), (0, 0), False),
        ((30, 50), (30, 50), True),
        ((30, 50), (26, 50), True),  # -0.080 > -sqrt((31 * 21 + 27 * 25) / 52^3) = -0.0971
        ((30, 50), (25, 50), False),  # -0.100
        ((1, 2), (0, 2), True),  # -0.5 > -sqrt((2 * 2 + 1 * 3) / 4^3) = -0.331 does not hold
        ((0, 2), (1, 2), True),
    ],
)
def test_acting_by_compatibility_counts_as_worse_beyond_a_standard_error(plain, selected, expected):
    if (plain, selected) == ((1, 2), (0, 2)):
        expected = False
    assert arms(plain, selected).selecting_is_not_worse is expected


def test_only_the_latest_episodes_count_and_outcomes_survive_as_plain_data():
    found = arms((Arms.WINDOW, Arms.WINDOW), (0, Arms.WINDOW))
    assert not found.selecting_is_not_worse
    for _ in range(Arms.WINDOW):
        found.add(False, False)
    assert found.selecting_is_not_worse and found.metrics() == {"arms/plain": 0.0, "arms/selected": 0.0}
    again = Arms(found.to_json())
    again.add(True, True)
    assert again.metrics() == {"arms/plain": 0.0, "arms/selected": 1 / Arms.WINDOW}


@pytest.mark.parametrize(("gate", "is_open"), [(True, 0.0), (False, 1.0)])
def test_a_closed_gate_leaves_cloning_and_without_a_gate_it_is_open(make, gate, is_open):
    learner = make(gate=gate)
    learner.arms = arms((50, 50), (0, 50))
    assert learner.update()["transport/open"] == is_open


def test_half_the_episodes_are_played_by_compatibility_and_counted_as_such(make):
    learner = make(envs=4)
    learner.update()
    assert [len(arm) for arm in learner.arms.to_json()] == [2, 2]
    later = make(envs=4, selection_start=10_000)
    later.update()
    assert [len(arm) for arm in later.arms.to_json()] == [4, 0]


# The whole


def sign_setup(monkeypatch):
    """A toy: s and a in {-1, +1}, all four pairs equally often among 64 demonstrations of one step."""

    def field(name, semantics=Semantics.STATE if hasattr(Semantics, "STATE") else None):
        return Field(name, "1", (-1.0,), (1.0,)) if semantics is None else Field(name, "1", (-1.0,), (1.0,), semantics)

    observation = VectorSpec((Field("s", "1", (-1.0,), (1.0,)),))
    action = VectorSpec((Field("a", "1", (-1.0,), (1.0,), Semantics.DELTA),))
    task = TaskSpec("sign", "The sign of s.", observation, action, 20.0, 1, "a has the sign of s")
    monkeypatch.setitem(registry._TASKS, "sign", (task, lambda _stepping: None))
    pairs = [(s, a) for s in (-1.0, 1.0) for a in (-1.0, 1.0)] * 16
    episodes = tuple(
        Episode(number, np.full((2, 1), s), np.full((1, 1), a), np.zeros((2, 0)), np.ones(1)) for number, (s, a) in enumerate(pairs)
    )
    header = Header("sign", observation, action, 20.0, {"kind": "by hand"}, 0, 64, 64, 64)
    spec = PolicySpec(observation, action, observation_horizon=1, chunk_length=1, executed_length=1, control_rate_hz=20.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = DiffusionPolicy(PolicyConfig(spec, train_steps=10, width=32, depth=2, time_size=8))
    return Setup("sign", Demonstrations(header, episodes), 0, start=policy.eval())


@pytest.mark.parametrize(("weights", "low", "high"), [("balanced", 0.95, 1.0), ("semi_relaxed", 0.95, 1.0), ("cloning", 0.4, 0.6)])
def test_a_policy_learns_the_better_of_two_chunks_by_transport_and_not_by_cloning(make, monkeypatch, weights, low, high):
    """Q = s a over a buffer in which s and a know nothing of each other: H is 2 where the signs agree, 0 elsewhere."""
    transporting = weights != "cloning"
    learner = make(
        sign_setup(monkeypatch),
        batch_size=128,
        sampling_steps=10,
        actor_learning_rate=3e-3,
        actor_ema=0.95,
        pool="all",
        block_chunks=1,
        keypoint_share=0.0,
        own_keypoints=False,
        weights=weights if transporting else "uniform",
    )
    learner._block_rows = lambda: torch.arange(64)  # the whole buffer is one problem
    learner.critic.cross_values = lambda condition, chunks: (condition @ chunks.flatten(1).T)[None]
    if transporting:
        s, a = learner.replay.condition[learner.replay.transitions.state], learner.replay.transitions.chunk.flatten(1)
        h = learner.compatibility(-(s @ a.T))
        assert torch.allclose(h, (s * a.T > 0) * 2.0, atol=1e-4)
    for targets in learner._policy_batches(250, transporting):
        learner.actor.step(learner.policy_loss(targets))
    for sign in (-1.0, 1.0):
        drawn = learner.actor.draw(torch.full((1, 1), sign), 1000)
        assert low <= float((drawn * sign > 0).float().mean()) <= high


@pytest.mark.parametrize("pool", ["own", "near", "all"])
@pytest.mark.parametrize("weights", ALL_WEIGHTS)
def test_every_pool_with_all_weights_trains_and_reports_the_same_finite_numbers(make, pool, weights):
    learner = make(pool=pool, weights=weights, gate=False, mask=weights != "softmax", train_resampling=weights != "uniform")
    first = {name: float(value) for name, value in learner.update().items()}
    second = {name: float(value) for name, value in learner.update().items()}
    assert list(first) == list(second) and np.isfinite([*first.values(), *second.values()]).all()
    assert second["policy/gradient"] > 0 and second["critic/gradient"] > 0


def test_a_block_larger_than_all_that_was_seen_is_no_mistake(make):
    learner = make(pool="near", block_states=5000)
    assert len(learner.block().x_0) == 4 * len(learner.replay)
