# SPDX-License-Identifier: Apache-2.0
"""OTPR's laws: what the compatibility is invariant to, what it trains the policy towards, when it is trusted."""

from functools import partial

import numpy as np
import point_tuning
import pytest
import torch

from otpr_policy.spec import Field, PolicySpec, Semantics, VectorSpec
from otpr_sim import registry
from otpr_sim.env import TaskSpec
from otpr_trainer import finetune
from otpr_trainer.algorithms.otpr import VARIANTS, Config, Pool, Targets, Weights
from otpr_trainer.data.demonstrations import Demonstrations, Episode, Header
from otpr_trainer.data.replay import Origin
from otpr_trainer.interaction import play
from otpr_trainer.learner import Setup
from otpr_trainer.policy import DiffusionPolicy, PolicyConfig


@pytest.fixture(autouse=True)
def here(monkeypatch):
    point_tuning.play_here(monkeypatch)


@pytest.fixture
def make(make):
    """Makes learners of OTPR on the point task."""
    return partial(make, "otpr")


# What is imitated


def recorded(learner, h):
    """Lets h be the compatibility; returns where the shared chunks' executed parts, (m, L, Da), will be found."""
    found = {}
    values = learner.critic.cross_values

    def cross_values(condition, chunks):
        found["chunks"] = chunks
        return values(condition, chunks)

    learner.critic.cross_values, learner.compatibility = cross_values, lambda *block: h
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
    learner = make(pool="own", block_states=20, draws=3)
    rows, replay = learner.replay.transitions, learner.replay
    for column, known in ((0, rows.chunk), (1, replay.candidates[rows.state, 0]), (2, replay.candidates[rows.state, 1])):
        learner.compatibility = lambda cost, *_, column=column: torch.eye(cost.shape[1])[column].expand(cost.shape) * cost.shape[1]
        targets = learner.block()
        for condition, chunk in zip(targets.condition, targets.x_0, strict=True):
            here = (replay.condition[rows.state] == condition).all(1)
            assert (known[here] == chunk).flatten(1).all(1).any()


@pytest.mark.parametrize("pool", Pool)
def test_a_state_imitates_the_chunk_that_the_critics_value_most(make, pool):
    """By the part of it that is carried out, and among those of its pool alone."""
    learner = make(pool=pool.value, weights="argmax", block_states=20, draws=1)
    best = {}

    def values(condition, chunks):  # whose first move is largest
        found = chunks[..., 0, 0].expand(len(condition), -1)
        best["value"] = found.amax(1)
        return found[None]

    learner.critic.values = learner.critic.cross_values = values
    targets = learner.block()
    assert torch.equal(targets.x_0[:, 0, 0], best["value"])


def loss_and_gradients(learner, loss):
    return [loss.detach(), *torch.autograd.grad(loss, list(learner.actor.learner.parameters()))]


def assert_proportional(found, expected, factor):
    """Loss and every gradient, each to 1e-5 of its length."""
    for one, other in zip(found, expected, strict=True):
        assert (one - factor * other).norm() <= 1e-5 * factor * other.norm()


def test_weights_that_are_all_alike_are_a_factor_of_the_loss(make):
    """Of the loss and of every gradient: with H = c the policy is cloned from the pairs, c times as fast."""
    learner = make()
    pairs = learner.keypoints(32)
    learner.generator.manual_seed(7)
    cloning = loss_and_gradients(learner, learner.actor.denoising_loss(pairs.condition, pairs.x_0).mean())
    for weight in (1.0, 3.0):
        learner.generator.manual_seed(7)
        loss = learner.policy_loss(Targets(pairs.condition, pairs.x_0, torch.full((32,), weight)))
        assert_proportional(loss_and_gradients(learner, loss), cloning, weight)


@pytest.mark.parametrize("resampling", [True, False])
def test_weights_that_are_all_alike_are_no_factor_once_they_are_normalised(make, resampling):
    """Resampling normalises as it draws; a weighted loss is normalised by its mean weight. The same pairs are drawn."""
    learner = make(pool="all", train_resampling=resampling)
    found = []
    for constant in (1.0, 3.0):
        learner.compatibility = lambda cost, *_, constant=constant: torch.full_like(cost, constant)
        learner.generator.manual_seed(7)
        targets = learner.block()
        assert (targets.weight == (1.0 if resampling else constant)).all()
        found.append([targets.x_0, *loss_and_gradients(learner, learner.policy_loss(targets) / targets.weight.mean())])
    assert torch.equal(found[0][0], found[1][0])
    assert_proportional(*found, 1.0)


def test_the_loss_weighted_by_the_density_of_a_coupling_is_the_cloning_loss_of_its_pairs(make):
    """H = rho / (p q) over all pairs of states and chunks that p and q hold, and the same noise for the same pair (P12)."""
    learner = make()
    schedule, pairs = learner.actor.learner.schedule, learner.keypoints(20)
    generator = torch.Generator().manual_seed(0)
    state, chunk = torch.randint(5, (20,), generator=generator), torch.randint(6, (20,), generator=generator)
    rho = torch.zeros(5, 6).index_put((state, chunk), torch.tensor(1 / 20), accumulate=True)
    assert (rho == 0).any() and rho.max() > 1 / 20
    h = rho / torch.outer(rho.sum(1), rho.sum(0))
    k, eps = torch.randint(schedule.steps, (5, 6), generator=generator), torch.randn(5, 6, 3, 2, generator=generator)

    def loss(state, chunk, weight):
        x_0, step, noise = pairs.x_0[chunk], k[state, chunk], eps[state, chunk]
        learner.actor.noised = lambda clean: (schedule.add_noise(clean, step, noise), step, noise)
        return loss_and_gradients(learner, learner.policy_loss(Targets(pairs.condition[state], x_0, weight)))

    every_state, every_chunk = state.repeat_interleave(20), chunk.repeat(20)
    weighted = loss(every_state, every_chunk, h[every_state, every_chunk])
    cloned = loss(state, chunk, torch.ones(20))
    assert weighted[0].item() == pytest.approx(cloned[0].item(), rel=1e-6)
    assert_proportional(weighted, cloned, 1.0)
    assert loss(every_state, every_chunk, torch.ones(400))[0].item() != pytest.approx(cloned[0].item(), rel=1e-2)


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
    assert (drawn[:, None] == known).all(2).any(1).all()


@pytest.mark.parametrize(("own", "expected"), [(True, 50), (False, 0)])
def test_own_successes_are_half_of_the_keypoints_once_there_are_any(make, own, expected):
    learner = make(own_keypoints=own)
    while not (learner.replay.transitions.origin == Origin.SUCCESS).any():
        learner.update()
    origin = learner.replay.transitions.rows(learner._keypoint_rows(100)).origin
    found = {kind: int((origin == kind).sum()) for kind in Origin if (origin == kind).any()}
    assert found == {Origin.DEMONSTRATION: 100 - expected} | ({Origin.SUCCESS: expected} if expected else {})


def batches(learner, transporting=True):
    """Rows from keypoints and from transport in each of three batches."""
    marks = {"keypoints": 0.0, "block": 1.0}
    for name, mark in marks.items():
        original = getattr(learner, name)

        def marked(*arguments, original=original, mark=mark):
            targets = original(*arguments)
            return Targets(targets.condition, targets.x_0, torch.full_like(targets.weight, mark))

        setattr(learner, name, marked)
    found = learner._policy_batches(3, transporting)
    return [tuple(int((batch.weight == mark).sum()) for mark in marks.values()) for batch in found]


def test_keypoints_and_transport_share_a_batch(make):
    """Of 16 rows; a transport problem yields 24."""
    assert batches(make(keypoint_share=0.25)) == [(4, 12)] * 3
    assert batches(make(keypoint_share=1.0)) == [(16, 0)] * 3
    assert batches(make(keypoint_share=0.25), transporting=False) == [(16, 0)] * 3  # a closed gate leaves cloning
    assert sorted(set(batches(make(keypoint_share=0.25, mask=False)))) == [(0, 8), (0, 16)]  # keypoints are in the problem


# The critic's target


@pytest.mark.parametrize("observed", [True, False])
def test_the_target_is_what_the_policy_would_be_worth_next_and_at_least_what_was_seen(make, observed):
    learner = make(observed_returns=observed)
    learner.update()
    targets = []
    learner.critic.target_values = lambda condition, chunks, generator: chunks.mean((2, 3)).sigmoid()
    learner.critic.loss = lambda condition, chunk, target: targets.extend([target, chunk])
    batch = learner.replay.transitions
    learner.critic_loss(batch)
    ahead = learner.replay.candidates[batch.next_state][:, :, :2].mean((2, 3)).sigmoid().mean(1)  # both that are cached
    expected = batch.reward + batch.discount * ahead
    assert (batch.observed_return > expected).any() and (batch.observed_return < expected).any()
    assert torch.allclose(targets[0], torch.maximum(expected, batch.observed_return) if observed else expected)
    assert float(targets[0].max()) <= 1.0 and torch.equal(targets[1], batch.chunk[:, :2])


def test_critics_learn_from_demonstrations_and_own_experience_by_halves(make):
    learner = make(demo_share=0.5)
    assert (learner.critic_batch().origin == Origin.DEMONSTRATION).all()
    learner.update()
    origin = learner.critic_batch().origin
    assert len(origin) == 16 and int((origin == Origin.DEMONSTRATION).sum()) == 8


# The gate


@pytest.mark.parametrize(("gate", "is_open"), [(True, 0.0), (False, 1.0)])
def test_a_closed_gate_leaves_cloning_and_without_a_gate_it_is_open(make, gate, is_open):
    learner = make(gate=gate)
    for number in range(20):
        learner.arms.add(bool(number % 2), number % 2 == 0)  # plain samples succeed, the critic's choice does not
    assert learner.update()["transport/open"] == is_open


def test_half_the_episodes_are_played_by_compatibility_and_counted_as_such(make, monkeypatch):
    """Those in which Acting lets the critic choose."""
    found, selected = [], []

    def watched(vector, actor, *arguments):
        selected.append(actor._choosing)
        found.extend(play(vector, actor, *arguments))
        return iter(found[-8:])

    monkeypatch.setattr(finetune, "play", watched)
    learner = make(envs=8)
    learner.update()
    episodes = sorted(found, key=lambda one: one.episode)
    by_critic = selected[0](np.array([one.episode for one in episodes]))
    assert by_critic.sum() == 4
    for side, outcomes in enumerate(learner.arms.to_json()):
        assert outcomes == [one.success for one, chosen in zip(episodes, by_critic, strict=True) if chosen == side]
    assert learner.arms.to_json()[0] != learner.arms.to_json()[1]
    later = make(envs=8, selection_start=10_000)
    later.update()
    assert [len(arm) for arm in later.arms.to_json()] == [8, 0]


@pytest.mark.parametrize(("choice", "noises"), [("best", 3), ("drawn", 4), ("none", 1)])
def test_training_episodes_choose_as_they_are_told_and_evaluations_take_the_best(make, choice, noises):
    """Three candidates; drawn by H there is one more noise, and without a choice one plain chunk."""
    learner = make(choice=choice, gate=False)
    assert learner.acting().noise_shape[0] == noises
    assert learner.evaluated()["selected"].noise_shape[0] == 3
    learner.update()
    assert bool(learner.arms.to_json()[1]) == (choice != "none")


def test_the_papers_variant_draws_by_compatibility():
    assert Config(**VARIANTS["paper"]).choice == "drawn"


# The whole


def sign_setup(monkeypatch):
    """A toy: s and a in {-1, +1}, all four pairs equally often among 64 demonstrations of one step."""
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


KINDS = [(pool, weights) for pool in Pool for weights in Weights if not (pool is Pool.OWN and weights.shares_chunks)]


@pytest.mark.parametrize(("pool", "weights"), KINDS)
def test_every_pool_with_all_weights_trains_and_reports_the_same_finite_numbers(make, pool, weights):
    guidance = 0.0 if pool is Pool.OWN else 0.5
    other = {"mask": weights is not Weights.SOFTMAX, "train_resampling": weights is not Weights.UNIFORM, "guidance": guidance}
    learner = make(pool=pool.value, weights=weights.value, gate=False, **other)
    first = {name: float(value) for name, value in learner.update().items()}
    second = {name: float(value) for name, value in learner.update().items()}
    assert list(first) == list(second) and np.isfinite([*first.values(), *second.values()]).all()
    assert second["policy/gradient"] > 0 and second["critic/gradient"] > 0


def test_a_block_larger_than_all_that_was_seen_is_no_mistake(make):
    learner = make(pool="near", block_states=5000)
    assert len(learner.block().x_0) == 4 * len(learner.replay)
