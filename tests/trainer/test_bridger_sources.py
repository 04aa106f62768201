# SPDX-License-Identifier: Apache-2.0
"""Where bridges start: each source's own law, and what it goes by at run time and in training."""

import copy
from dataclasses import replace

import numpy as np
import point_bridges
import point_task
import pytest
import torch
from point_bridges import SOURCES

from otpr_policy import artifact
from otpr_policy.chunk import episode_rng
from otpr_policy.errors import RunError
from otpr_policy.inference import OnnxPolicy
from otpr_policy.receding_horizon import RecedingHorizon
from otpr_policy.spec import PolicySpec
from otpr_sim import registry
from otpr_sim.tasks import can, lift
from otpr_trainer import heuristics
from otpr_trainer.bridge_sources import Seen, check_artifact
from otpr_trainer.data.windows import cut, previous_chunks
from otpr_trainer.heuristics import AIM_ERROR, OPEN
from otpr_trainer.networks.cvae import ChunkVae
from otpr_trainer.policy import TorchPolicy

crude_chunk = heuristics.crude_chunk  # the real one; the point task has its own


@pytest.fixture(autouse=True)
def point_is_a_task(monkeypatch):
    monkeypatch.setattr(registry, "_TASKS", dict(registry._TASKS))
    point_bridges.register(monkeypatch)


def opened(source, folder, steps=0, eta=0.0, **changes):
    learner = point_bridges.learner(source, folder, **changes)
    return TorchPolicy.with_sampler(learner.ema, None, steps, eta)


def inputs(policy, count=6):
    rng = np.random.default_rng(0)
    return rng.uniform([-1, 19, 19], [1, 21, 21], (count, 2, 3)), rng.standard_normal((count, *policy.noise_shape))


@pytest.mark.parametrize("source", SOURCES)
def test_with_no_steps_the_policy_is_its_source_alone(tmp_path, source):
    policy = opened(source, tmp_path)
    observations, noise = inputs(policy)
    seen = torch.as_tensor(observations, dtype=torch.float32)
    condition, draws = policy.policy.condition(seen), torch.as_tensor(noise, dtype=torch.float32)
    with torch.no_grad():
        chunk = policy.policy.source.sample(Seen(seen, condition), draws[:, : policy.policy.source.draws])
        chunk = chunk if policy.policy.source.physical else policy.policy.action.denormalize(chunk)
    low, high = policy.spec.action.low, policy.spec.action.high
    assert policy.infer_batch(observations, noise) == pytest.approx(np.clip(chunk.numpy(), low, high), abs=1e-6)


@pytest.mark.parametrize("source", SOURCES)
def test_one_row_is_what_it_is_in_a_batch(tmp_path, source):
    policy = opened(source, tmp_path, steps=2, eta=1.0)
    observations, noise = inputs(policy)
    together = policy.infer_batch(observations, noise)
    assert np.ptp(together[:, 0, 0]) > 0.0
    for row in range(6):
        assert policy.infer(observations[row], noise[row]) == pytest.approx(together[row], abs=1e-6)


DRAWS = {"gaussian": (1, 3), "cvae": (1, 3), "heuristic": (1, 2), "previous": (1, 2), "artifact": (2, 4)}


@pytest.mark.parametrize("source", SOURCES)
def test_the_noise_is_the_sources_then_the_steps_and_at_least_one_draw(tmp_path, source):
    """Of three steps with eta 1 the last adds none; the source artifact takes two draws."""
    assert tuple(opened(source, tmp_path, 3, eta).noise_shape[0] for eta in (0.0, 1.0)) == DRAWS[source]


def test_a_gaussian_source_is_its_first_draw(tmp_path):
    policy = opened("gaussian", tmp_path).policy
    noise = torch.randn(2, 1, 3, 2)
    assert torch.equal(policy.start(torch.zeros(2, 2, 3), torch.zeros(2, 6), noise, None), noise[:, 0])


def test_an_autoencoders_losses_are_those_of_its_distributions():
    vae, chunk, condition = ChunkVae(4, (3, 2), 8, 2, 2), torch.randn(500, 3, 2), torch.randn(500, 4)
    mean, std = vae.encode(chunk, condition)
    posterior, prior = torch.distributions.Normal(mean, std), torch.distributions.Normal(0.0, 1.0)
    eps = torch.randn(500, 2)
    error, divergence = vae.losses(chunk, condition, eps)
    assert divergence.item() == pytest.approx(torch.distributions.kl_divergence(posterior, prior).sum(1).mean().item(), rel=1e-5)
    assert error.item() == pytest.approx((vae.decode(mean + std * eps, condition) - chunk).square().mean().item(), rel=1e-5)
    assert (std >= 0.01).all() and (std <= 10.0).all()


def test_an_autoencoder_reads_the_head_of_its_draw_alone(tmp_path):
    policy = opened("cvae", tmp_path)
    observations, noise = inputs(policy, 1)
    other, latent = noise.copy(), noise.copy()
    other.reshape(-1)[3:] += 1.0
    latent.reshape(-1)[2] += 1.0
    assert np.array_equal(policy.infer_batch(observations, other), policy.infer_batch(observations, noise))
    assert not np.array_equal(policy.infer_batch(observations, latent), policy.infer_batch(observations, noise))


def test_the_previous_chunk_is_shifted_by_what_was_carried_out_and_its_last_action_held(tmp_path):
    policy = opened("previous", tmp_path)  # chunks of 3, of which 2 are carried out
    observations, noise = inputs(policy, 2)
    previous = np.array([[[0.1, 1.0], [0.15, 0.5], [-0.1, 0.2]], [[np.nan] * 2] * 3])
    actions = policy.infer_batch(observations, noise, previous)
    assert actions[0] == pytest.approx(np.array([[-0.1, 0.2]] * 3), abs=1e-6)
    mean = cut(point_task.demonstrations(), 2, 3).action.mean(0)
    assert actions[1] == pytest.approx(mean, abs=1e-6)
    assert policy.infer_batch(observations, noise) == pytest.approx(np.stack([mean] * 2), abs=1e-6)


def test_the_previous_chunk_of_a_longer_plan_keeps_what_was_planned(tmp_path):
    policy = opened("previous", tmp_path, chunk_length=4, executed_length=1)
    observations, noise = inputs(policy, 1)
    previous = 0.01 * np.arange(8.0).reshape(1, 4, 2)
    assert policy.infer_batch(observations, noise, previous)[0] == pytest.approx(previous[0, [1, 2, 3, 3]], abs=1e-6)


def test_demonstrated_previous_chunks_lie_as_far_back_as_is_carried_out():
    demos = point_task.demonstrations(3)
    windows, previous = cut(demos, 2, 3).action, previous_chunks(demos, 3, 2)
    assert previous.shape == windows.shape
    per_episode = len(windows) // 3
    for row in range(len(windows)):
        if row % per_episode < 2:
            assert np.isnan(previous[row]).all()
        else:
            assert np.array_equal(previous[row], windows[row - 2])


def test_in_training_previous_chunks_are_noisy_and_some_are_forgotten(tmp_path):
    learner = point_bridges.learner("previous", tmp_path, previous_noise=0.5)
    rows = torch.arange(len(learner._chunk)).repeat(50)
    known = ~learner._previous[rows].isnan().flatten(1).any(1)
    start = learner._start(rows)
    fallback = learner.policy.action.normalize(learner.policy.source.fallback)
    forgotten = (start == fallback).flatten(1).all(1)
    assert forgotten[~known].all() and forgotten[known].float().mean().item() == pytest.approx(0.1, abs=0.02)
    clean = learner.policy.action.normalize(learner._previous[rows][:, -1])
    error = (start[:, 0] - clean)[known & ~forgotten]
    assert error.mean().item() == pytest.approx(0.0, abs=0.02) and error.std().item() == pytest.approx(0.5, rel=0.05)


def test_in_an_episode_the_chain_starts_from_its_own_last_chunk(tmp_path):
    """With no steps the policy goes on with the last action of its first chunk, the mean demonstrated one, for ever."""
    policy = opened("previous", tmp_path)
    horizon = RecedingHorizon(policy)
    horizon.reset(episode_rng(0, 0))
    actions = np.stack([horizon.act(np.array([0.3, 20.0, 20.0])) for _ in range(8)])
    mean = cut(point_task.demonstrations(), 2, 3).action.mean(0)
    assert actions[:2] == pytest.approx(mean[:2], abs=1e-6)
    assert actions[2:] == pytest.approx(np.stack([mean[2]] * 6), abs=1e-6)


def test_a_policy_file_as_source_infers_as_it_does_alone_from_its_share_of_history_and_noise(tmp_path):
    policy = opened("artifact", tmp_path)
    file = OnnxPolicy.from_artifact(artifact.parse(point_bridges.cloned_file()), ("CPUExecutionProvider",))
    observations, noise = inputs(policy)
    assert policy.noise_shape[0] == file.noise_shape[0] == 2 and file.spec.observation_horizon == 1
    for observation, draws in zip(observations, noise, strict=True):
        assert policy.infer(observation, draws) == pytest.approx(file.infer(observation[-1:], draws), abs=1e-6)
    assert policy.policy.source_label == f"artifact {artifact.parse(point_bridges.cloned_file()).sha256}"


def test_a_policy_with_an_open_file_can_be_copied(tmp_path):
    policy = opened("artifact", tmp_path)
    observations, noise = inputs(policy)
    expected = policy.infer_batch(observations, noise)
    copied = copy.deepcopy(policy.policy)
    assert np.array_equal(TorchPolicy(copied, policy.reverse).infer_batch(observations, noise), expected)


SPEC = PolicySpec(point_task.OBSERVATION, point_task.ACTION, 2, 3, 2, 20.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk_length": 4}, "give --chunk-length 4"),
        ({"observation_horizon": 3}, "reads 3 observations; give --observation-horizon 3 or more"),
        ({"control_rate_hz": 10.0}, "runs at 10 Hz, the demonstrations at 20 Hz"),
        ({"action": point_task.OBSERVATION}, "has the action"),
        ({"observation": point_task.ACTION}, "has the observation"),
        ({"reads_previous": True}, "itself starts from its previous chunk"),
    ],
)
def test_a_policy_file_of_another_make_is_no_source(change, message):
    check_artifact(SPEC, replace(SPEC, observation_horizon=1, executed_length=1), "a.onnx")
    with pytest.raises(RunError, match=message):
        check_artifact(SPEC, replace(SPEC, **change), "a.onnx")


def seen_of(task, **fields):
    """A newest observation (1, Do) of a hand at rest, in the middle of nowhere unless said otherwise."""
    spec = PolicySpec(task.SPEC.observation, task.SPEC.action, 1, 4, 4, 20.0)
    values = {name: np.zeros(field.stop - field.start) for name, field in spec.observation.slices.items()}
    return spec, torch.tensor(spec.observation.flatten({**values, **fields}), dtype=torch.float32)[None]


HAND = np.array([0.5, 0.0, 0.1])
BESIDE = np.array([AIM_ERROR, AIM_ERROR, 0.0])


def off(*way):
    """So far from the hand [m]."""
    return HAND + np.array(way)


AJAR, SHUT = np.full(2, OPEN), np.full(2, 0.02)


@pytest.mark.parametrize(
    ("cube", "fingers", "direction", "finger"),
    [
        (off(0.2, 0.0, -0.08), AJAR, [1, 0, 0], OPEN),  # far: above it first
        (off(0.0, -0.2, -0.08), AJAR, [0, -1, 0], OPEN),
        (off(0.0, 0.0, -0.1) - BESIDE, AJAR, [0, 0, -1], OPEN),  # above: down
        (HAND - BESIDE, AJAR, [0, 0, 0], 0.0),  # there: close
        (HAND - BESIDE, SHUT, [0, 0, 1], 0.0),  # held: up
    ],
)
def test_the_script_for_lift_goes_over_the_cube_down_closes_and_rises(cube, fingers, direction, finger):
    spec, seen = seen_of(lift, ee_position=HAND, cube_position=cube, gripper_position=fingers)
    chunk = crude_chunk("lift", spec, seen)[0].numpy()
    move = chunk[0, :3]
    assert chunk.shape == (4, 7) and chunk[:, 6] == pytest.approx(finger) and (chunk[:, 3:6] == 0.0).all()
    if any(direction):
        assert move @ direction == pytest.approx(np.linalg.norm(move), rel=0.3) and np.linalg.norm(move) > 0.03
    else:
        assert np.abs(chunk[:, :3]).max() < 1e-6
    assert (chunk >= spec.action.low - 1e-6).all() and (chunk <= spec.action.high + 1e-6).all()


def test_the_script_for_can_lets_go_over_the_compartment_and_then_rises():
    place = np.append(heuristics.CAN_PLACE, can.COMPARTMENT[2] + 0.07)
    for fingers, rises in ((np.full(2, 0.03), False), (AJAR, True)):
        spec, seen = seen_of(can, ee_position=place, can_position=place - BESIDE, gripper_position=fingers)
        chunk = crude_chunk("can", spec, seen)[0].numpy()
        assert chunk[:, 6] == pytest.approx(OPEN) and (chunk[0, 2] > 0.03) == rises
    spec, seen = seen_of(can, ee_position=HAND, can_position=off(0.0, 0.0, -0.01) - BESIDE, gripper_position=np.full(2, 0.03))
    assert crude_chunk("can", spec, seen)[0, :, 6].max() == 0.0 and crude_chunk("can", spec, seen)[0, 0, 2] > 0.03


def test_a_script_slows_down_as_it_comes_near():
    """Each step covers half of what it commands, so the commands of a chunk shrink."""
    spec, seen = seen_of(lift, ee_position=HAND, cube_position=off(0.0, 0.0, -0.02) - BESIDE, gripper_position=AJAR)
    down = -crude_chunk("lift", spec, seen)[0, :, 2]
    assert down[0].item() == pytest.approx(0.035, abs=1e-6) and down[1].item() == pytest.approx(0.005, abs=1e-6)
