# SPDX-License-Identifier: Apache-2.0
"""Laws that hold for every task on robosuite, and what each task calls a success."""

import hashlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import mujoco
import numpy as np
import pytest

from otpr_policy.rotation import columns_to_matrix, matrix_to_columns, quaternion_to_matrix, rotation_vector_to_matrix
from otpr_sim import registry
from otpr_sim.env import TaskEnv, episode_seed
from otpr_sim.experts import expert
from otpr_sim.robosuite_env import RobosuiteEnv
from otpr_sim.tasks import can, square

TASKS = ("can", "door", "lift", "square")
LEAST_SUCCESS = {"can": 0.95, "door": 0.9, "lift": 0.95, "square": 0.9}  # of the experts, at their default noise


@pytest.fixture(scope="module", params=TASKS)
def env(request: pytest.FixtureRequest) -> Iterator[RobosuiteEnv]:
    with registry.make(request.param) as made:
        assert isinstance(made, RobosuiteEnv)
        yield made


def _random_actions(env: TaskEnv, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(env.spec.action.low, env.spec.action.high, (count, env.spec.action.size))


def _digest_of_an_episode(env: TaskEnv) -> str:
    """Start and end of three steps, to the bit. Runs in another process too."""
    env.reset(123)
    start = env.state()
    for _ in range(3):
        env.step(np.array([0.05, -0.05, -0.05, 0.1, 0.2, -0.3, 0.0]))
    return hashlib.sha256(start.tobytes() + env.state().tobytes()).hexdigest()


@pytest.fixture(scope="module")
def digests_of_another_process() -> dict[str, str]:
    imports = "import hashlib, json; import numpy as np; from otpr_sim import registry; from otpr_sim.env import TaskEnv\n"
    body = f"print(json.dumps({{task: _digest_of_an_episode(registry.make(task)) for task in {TASKS}}}))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    code = imports + inspect.getsource(_digest_of_an_episode) + body
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert process.stderr == "", "robosuite's messages reached the terminal"
    return json.loads(process.stdout)


def test_the_same_seed_gives_the_same_bits_whatever_came_before_and_in_any_process(
    env: RobosuiteEnv, digests_of_another_process: dict[str, str]
) -> None:
    first = _digest_of_an_episode(env)
    for seed in range(10):
        env.reset(seed)
    for action in _random_actions(env, 5, seed=0):
        env.step(action)
    assert _digest_of_an_episode(env) == first == digests_of_another_process[env.spec.name]


def test_different_seeds_put_arm_and_objects_elsewhere(env: RobosuiteEnv) -> None:
    seen = []
    for seed in range(6):
        env.reset(seed)
        places = [pose.position[:2] for pose in env.object_poses().values()]
        seen.append(np.concatenate([env.joint_positions()[:7], *places]))
    assert np.std(seen, axis=0).min() > 0


def test_a_state_put_back_continues_identically_in_another_environment(env: RobosuiteEnv) -> None:
    actions = _random_actions(env, 8, seed=6)
    env.reset(31)
    for action in actions[:4]:
        env.step(action)
    env.advance(13)  # between two control steps
    saved, seen = env.state(), env.observe()
    with registry.make(env.spec.name) as other:
        other.reset(1)
        other.set_state(saved)
        np.testing.assert_array_equal(other.state(), saved)
        np.testing.assert_equal(other.observe(), seen)
        for one in (env, other):
            one.advance(12)
            for action in actions[4:]:
                one.step(action)
        np.testing.assert_array_equal(other.state(), env.state())


def test_observation_has_the_fields_of_the_spec_and_the_numbers_of_the_robot_side(env: RobosuiteEnv) -> None:
    env.reset(4)
    seen = env.step(_random_actions(env, 1, seed=3)[0]).observation
    assert tuple(seen) == env.spec.observation.names
    assert env.spec.observation.flatten(seen).shape == (env.spec.observation.size,)
    np.testing.assert_array_equal(seen["ee_position"], env.ee_pose().position)
    np.testing.assert_array_equal(seen["gripper_position"], env.joint_positions()[7:])
    for name, pose in env.object_poses().items():
        np.testing.assert_array_equal(seen[f"{name}_position"], pose.position)
        if f"{name}_rotation" in seen:
            np.testing.assert_array_equal(seen[f"{name}_rotation"], matrix_to_columns(quaternion_to_matrix(pose.quaternion)))


def test_all_that_is_seen_in_an_experts_episodes_is_within_the_nominal_ranges(env: RobosuiteEnv) -> None:
    observation = env.spec.observation
    low, high = observation.low - 2e-3, observation.high + 2e-3  # MuJoCo's joint limits are soft
    for episode in range(2):
        seen = np.array([observation.flatten(fields) for fields in _observations(env, episode)])
        assert [observation.label(i) for i in np.flatnonzero(((seen < low) | (seen > high)).any(axis=0))] == []


# Experts


def _observations(env: TaskEnv, episode: int) -> Iterator[dict[str, np.ndarray]]:
    """What an expert sees in an episode; ends with the episode."""
    observation = env.reset(episode_seed(77, episode))
    player = expert(env.spec.name, np.random.default_rng((77, episode)))
    result = None
    while result is None or not (result.terminated or result.truncated):
        yield observation
        action = player.act(observation)
        assert (action >= env.spec.action.low).all() and (action <= env.spec.action.high).all()
        result = env.step(action)
        observation = result.observation


def _successes(env: TaskEnv, episodes: range) -> int:
    count = 0
    for episode in episodes:
        for _ in _observations(env, episode):
            pass
        count += env.success()
    return count


def test_the_expert_solves_nearly_all_of_ten_episodes(env: RobosuiteEnv) -> None:
    assert _successes(env, range(10)) >= 10 * LEAST_SUCCESS[env.spec.name] - 1


@pytest.mark.slow
def test_the_expert_solves_as_many_of_a_hundred_episodes_as_promised(env: RobosuiteEnv) -> None:
    assert _successes(env, range(100, 200)) >= 100 * LEAST_SUCCESS[env.spec.name]


def test_experts_with_equal_generators_act_equally_and_a_slower_one_needs_longer(env: RobosuiteEnv) -> None:
    lengths, actions = [], []
    for speed in (1.0, 1.0, 0.6):
        observation = env.reset(episode_seed(3, 3))
        player = expert(env.spec.name, np.random.default_rng(3), 0.0, speed)
        actions.append([])
        while not env.success() and len(actions[-1]) < 2 * env.spec.horizon:
            actions[-1].append(player.act(observation))
            observation = env.step(actions[-1][-1]).observation
        lengths.append(len(actions[-1]))
    np.testing.assert_array_equal(actions[0], actions[1])
    assert lengths[2] > lengths[0]


# Success


def _success_with(task: str, joint: str, position: tuple[float, float, float]) -> bool:
    """Whether an environment calls it a success when its state is put to one with a free object at a place, base frame [m]."""
    with registry.make(task) as one, registry.make(task) as other:
        assert isinstance(one, RobosuiteEnv)
        one.reset(0)
        one._data.joint(joint).qpos[:3] = one._arm.origin_position + one._arm.origin_rotation @ np.array(position)
        mujoco.mj_kinematics(one._model, one._data)
        other.set_state(one.state())
        assert one.success() is other.success()
        return other.success()


MIDDLE = np.array(can.COMPARTMENT)
HALF_X, HALF_Y = np.array(can.COMPARTMENT_SIZE) / 2


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        ((0, 0, 0.06), True),
        ((0, 0, 0.099), True),
        ((0, 0, 0.101), False),
        ((HALF_X - 0.001, HALF_Y - 0.001, 0.06), True),
        ((HALF_X + 0.001, 0, 0.06), False),
        ((-HALF_X - 0.001, 0, 0.06), False),
        ((0, -HALF_Y - 0.001, 0.06), False),
    ],
)
def test_success_of_can_means_that_the_can_is_in_its_compartment(offset: tuple[float, float, float], expected: bool) -> None:
    assert _success_with("can", "Can_joint0", tuple(MIDDLE + offset)) is expected


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        ((0, 0, 0.01), True),
        ((0, 0, 0.049), True),
        ((0, 0, 0.051), False),
        ((0.029, -0.029, 0.01), True),
        ((0.031, 0, 0.01), False),
        ((0, -0.031, 0.01), False),
    ],
)
def test_success_of_square_means_that_the_nut_is_around_the_peg(offset: tuple[float, float, float], expected: bool) -> None:
    assert _success_with("square", "SquareNut_joint0", tuple(np.array([*square.PEG, square.TABLE_TOP]) + offset)) is expected


@pytest.mark.parametrize(("angle", "expected"), [(0.0, False), (0.299, False), (0.301, True), (0.4, True)])
def test_success_of_door_means_that_the_door_is_open_by_more_than_0_3_rad(angle: float, expected: bool) -> None:
    with registry.make("door") as one, registry.make("door") as other:
        assert isinstance(one, RobosuiteEnv)
        one.reset(0)
        one._data.joint("Door_hinge").qpos[0] = angle
        other.set_state(one.state())
        assert other.success() is expected


def test_a_door_and_its_handle_are_seen_where_the_state_puts_them() -> None:
    with registry.make("door") as env:
        assert isinstance(env, RobosuiteEnv)
        env.reset(0)
        shut = env.observe()
        env._data.joint("Door_latch_joint").qpos[0] = 1.0
        env.set_state(env.state())
        pressed = columns_to_matrix(shut["handle_rotation"]) @ rotation_vector_to_matrix(np.array([0.0, 1.0, 0.0]))
        np.testing.assert_allclose(env.observe()["handle_rotation"], matrix_to_columns(pressed), atol=1e-9)
        assert env.observe()["handle_position"][2] == pytest.approx(shut["handle_position"][2] - 0.125 * np.sin(1.0), abs=1e-9)
