# SPDX-License-Identifier: Apache-2.0
"""A policy that starts from its previous chunk, in the real policy node: BRIDGER with the source ``previous``."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_policy
import torch
from rclpy.lifecycle import TransitionCallbackReturn
from std_srvs.srv import SetBool

from otpr_policy.artifact import Denoising, Parity, embed
from otpr_policy.chunk import episode_rng
from otpr_policy.command import delta_to_target
from otpr_policy.ros.messages import pose_position, pose_quaternion
from otpr_policy.spec import Array
from otpr_trainer.bridge import BridgePolicy
from otpr_trainer.bridge_sources import PreviousSource, SourceConfig
from otpr_trainer.graph import to_onnx
from otpr_trainer.interpolant import Interpolant
from otpr_trainer.normalization import AffineMap
from otpr_trainer.policy import BridgeConfig, PolicyConfig, TorchPolicy

pytestmark = pytest.mark.ros
SUCCESS = TransitionCallbackReturn.SUCCESS
PERIOD_NS = 50_000_000
SPEC = replace(tiny_policy.SPEC, executed_length=2, reads_previous=True)


def bridge() -> TorchPolicy:
    """Random weights; where there is no previous chunk it starts from the middle of the ranges."""
    maps = [AffineMap((side.low + side.high) / 2, (side.high - side.low) / 2) for side in (SPEC.observation, SPEC.action)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = PolicyConfig(SPEC, 6, 16, 2, 8, bridge=BridgeConfig(Interpolant(), SourceConfig("previous")))
        policy = BridgePolicy(config, *maps)
    assert isinstance(policy.source, PreviousSource)
    policy.source.fallback.copy_(torch.as_tensor((SPEC.action.low + SPEC.action.high) / 2))
    return TorchPolicy.with_sampler(policy, "bridge", 2, 1.0)


def write(path: Path, policy: TorchPolicy) -> str:
    chain = {"denoising": Denoising("bridge", 2, 6, 1.0, "previous"), "parity": Parity(10, 1e-4, (1e-6, 1e-6), 2e-6)}
    manifest = replace(tiny_policy.manifest(), policy=policy.spec, noise_shape=policy.noise_shape, **chain)
    path.write_bytes(embed(to_onnx(policy), manifest))
    return str(path)


def test_the_second_inference_is_given_the_first_chunk_and_its_commands_come_out(make_bench: Callable[..., Any], tmp_path: Path) -> None:
    """Three chunks in lockstep, two actions of each: every pose is that of torch with the chunk before, the first with none."""
    policy = bridge()
    bench = make_bench(policy=write(tmp_path / "bridge.onnx", policy), pacing="observation")
    assert bench.policy.trigger_configure() is SUCCESS, bench.policy.failure
    assert bench.policy.trigger_activate() is SUCCESS
    bench.wait_until_connected()
    worker, given = bench.policy._slot.running.worker.policies[0], []
    infer = worker.infer

    def watched(observation: Array, noise: Array, previous: Array | None = None) -> Array:
        given.append(previous)
        return infer(observation, noise, previous)

    worker.infer = watched
    robot, rng = bench.robot, episode_rng(7, 0)
    stamp = robot.publish(1_000_000_000)
    bench.wait_for(lambda: bench.policy._buffer.complete_until_ns == stamp, "the first observation")
    assert bench.call(SetBool, "/policy_node/engage", SetBool.Request(data=True)).success
    chunks: list[Array] = []
    for tick in range(6):
        bench.wait_for(lambda n=tick: len(robot.poses) > n, f"command {tick}")
        if tick % 2 == 0:
            observation, noise = tiny_policy.OBSERVATION.flatten(robot.observation())[None], rng.standard_normal(policy.noise_shape)
            chunks.append(policy.infer(observation, noise, chunks[-1] if chunks else None))
            assert np.abs(policy.infer(observation, noise) - chunks[-1]).max() > 1e-3 or tick == 0
        target = delta_to_target(robot.observation(), tiny_policy.ACTION.split(chunks[-1][tick % 2]))
        np.testing.assert_allclose(pose_position(robot.poses[tick].pose), target.position, atol=1e-5)
        np.testing.assert_allclose(pose_quaternion(robot.poses[tick].pose), target.quaternion, atol=1e-5)
        robot.state.ee_position = robot.state.ee_position + np.array([0.01, -0.005, 0.002])
        stamp = robot.publish(stamp + PERIOD_NS)
    assert given[0] is None
    np.testing.assert_allclose(given[1], chunks[0], atol=1e-5)
    np.testing.assert_allclose(given[2], chunks[1], atol=1e-5)
