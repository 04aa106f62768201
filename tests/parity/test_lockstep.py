# SPDX-License-Identifier: Apache-2.0
"""The heart of the matter: the policy node, driving the twin over ROS 2 topics, does what the direct rollout does.

Three processes over Fast DDS on one side; on the other the same artifact in a loop in this process. Same seeds, same
noise, and joint positions must agree at every control step.
"""

from pathlib import Path

import contracts
import numpy as np
import pytest
import tiny_policy

from otpr_policy import artifact
from otpr_policy.chunk import episode_rng
from otpr_policy.inference import OnnxPolicy
from otpr_policy.receding_horizon import RecedingHorizon
from otpr_policy.spec import Array
from otpr_sim import registry
from otpr_sim.commands.demo import Demo, run_demo
from otpr_sim.env import episode_seed

SHIPPED_POLICY = Path(__file__).parents[2] / "policies" / "lift.onnx"
SEED = 31
TOLERANCE_RAD = 1e-6


def direct_rollout(policy_file: Path, task: str, seed: int, episode: int, steps: int) -> Array:
    """Joint positions (steps + 1, joints) of one episode, with the policy called directly and time running on after success."""
    policy = OnnxPolicy.from_artifact(artifact.load(policy_file))
    horizon = RecedingHorizon(policy)
    env = registry.make(task)
    try:
        observation = env.reset(episode_seed(seed, episode))
        horizon.reset(episode_rng(seed, episode))
        joints = [env.joint_positions()]
        for _ in range(steps):
            action = horizon.act(env.spec.observation.flatten(observation))
            observation = env.step(action).observation
            joints.append(env.joint_positions())
        return np.stack(joints)
    finally:
        env.close()


@pytest.mark.ros
@pytest.mark.parametrize("name", ["tiny", "lift"])
def test_node_in_the_loop_reproduces_the_direct_rollout_step_by_step(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pictures are not the matter here, and a process that has drawn with Mesa's EGL was seen to die of importing triton, as torch's
    # optimisers do. Both bring LLVM, which may be why; the other way round it works.
    monkeypatch.setenv("OTPR_RENDERER", "software")
    policy_file = SHIPPED_POLICY if name == "lift" else tiny_policy.write(tmp_path / "tiny.onnx")
    out = tmp_path / "demo"
    episodes = 2
    robot = "panda_twin" if name == "lift" else contracts.write(tmp_path / "robot.yaml")  # the shipped policy, on the shipped limits
    run_demo(Demo(policy_file, robot, episodes, SEED, out, lockstep=True, required=0.0))
    for episode in range(episodes):
        with np.load(out / "trace" / f"episode_{episode:04d}.npz", allow_pickle=False) as trace:
            over_ros = trace["joint_positions"]
        assert len(over_ros) > 10
        direct = direct_rollout(policy_file, "lift", SEED, episode, len(over_ros) - 1)
        assert np.abs(direct[-1] - direct[0]).max() > 0.01, "a robot that does not move proves nothing"
        np.testing.assert_allclose(over_ros, direct, rtol=0, atol=TOLERANCE_RAD)


def test_other_noise_gives_another_rollout(tmp_path: Path) -> None:
    """Guards the test above: it would pass for any two rollouts if seeds or noise did not matter."""
    policy_file = tiny_policy.write(tmp_path / "tiny.onnx")
    first, second = (direct_rollout(policy_file, "lift", SEED, episode, 10) for episode in (0, 1))
    assert np.abs(first - second).max() > 1e-3
