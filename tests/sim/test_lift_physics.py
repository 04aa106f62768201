# SPDX-License-Identifier: Apache-2.0
"""Laws of the Lift environment: robosuite's physics, seeded episodes, a state that holds everything."""

import hashlib
import inspect
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator

import mujoco
import numpy as np
import pytest

from otpr_policy.command import CartesianTarget
from otpr_policy.errors import SpecError
from otpr_policy.rotation import matrix_to_columns, quaternion_to_matrix
from otpr_sim import registry
from otpr_sim.env import TaskEnv, episode_seed
from otpr_sim.experts import expert
from otpr_sim.robosuite_env import PHYSICS, RobosuiteEnv, resize_box, robosuite


@pytest.fixture(scope="module")
def env() -> Iterator[RobosuiteEnv]:
    with registry.make("lift") as made:
        assert isinstance(made, RobosuiteEnv)
        yield made


def _random_actions(env: TaskEnv, count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    actions = rng.uniform(env.spec.action.low, env.spec.action.high, (count, env.spec.action.size))
    actions[:, 6] = rng.choice([0.0, 0.04], count)
    return actions


def _stock_in_the_state_of(env: RobosuiteEnv):
    """A robosuite environment of its own with everything at defaults, put into the state that `env` is in."""
    stock = robosuite.make(
        "Lift", robots="Panda", use_camera_obs=False, has_offscreen_renderer=False, renderer="mujoco", ignore_done=True, seed=11
    )
    stock.reset()
    model, data = stock.sim.model._model, stock.sim.data._data
    resize_box(model, model.body("cube_main").id, env._box_sizes[0])
    mujoco.mj_setConst(model, mujoco.MjData(model))
    physics = np.empty(mujoco.mj_stateSize(model, PHYSICS))
    mujoco.mj_getState(env._model, env._data, physics, PHYSICS)
    mujoco.mj_setState(model, data, physics, PHYSICS)
    mujoco.mj_forward(model, data)
    data.qacc_warmstart[:] = 0.0
    for controller in stock.robots[0].composite_controller.part_controllers.values():
        controller.new_update = True  # robosuite computes its first torque from quantities cached before the fingers were placed
    stock.robots[0].part_controllers["right"].initial_joint = env.joint_positions()[:7]
    return stock


def _largest_difference_to_stock(env: RobosuiteEnv, actions: Iterable[np.ndarray]) -> float:
    """Plays the actions in both, from the state that `env` is in; largest difference over all steps and joints [rad or m]."""
    stock = _stock_in_the_state_of(env)
    differences = []
    for action in actions:
        env.step(action)
        stock.step(np.append(action[:6] / env.spec.action.high[:6], 1.0 - 2.0 * action[6] / 0.04))
        differences.append(np.abs(env._data.qpos - stock.sim.data.qpos).max())
    stock.close()
    return max(differences)


def test_a_step_moves_everything_as_stock_robosuite_does(env: RobosuiteEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    # robosuite rounds the commanded rotation to single precision, and nothing else.
    monkeypatch.setattr(robosuite.utils.transform_utils, "quat2mat", quaternion_to_matrix)
    env.reset(5)
    assert _largest_difference_to_stock(env, _random_actions(env, 40, seed=1)) < 1e-9


def test_single_precision_in_stock_robosuite_is_all_that_rotations_differ_by(env: RobosuiteEnv) -> None:
    env.reset(6)
    assert _largest_difference_to_stock(env, _random_actions(env, 40, seed=2)) < 1e-5


def test_a_whole_grasp_is_as_in_stock_robosuite(env: RobosuiteEnv) -> None:
    observation = env.reset(7)
    player = expert("lift", np.random.default_rng(7), noise=0.0)
    actions = []
    while not env.success():
        actions.append(player.act(observation))
        observation = env.step(actions[-1]).observation
    env.reset(7)
    assert _largest_difference_to_stock(env, actions) < 1e-9


def test_an_action_beyond_its_bounds_acts_as_the_bound(env: RobosuiteEnv) -> None:
    action = np.array([0.03, -1.0, 0.2, 0.1, 0.0, 9.0, 1.0])
    results = []
    for tried in (action, np.clip(action, env.spec.action.low, env.spec.action.high)):
        env.reset(2)
        env.step(tried)
        results.append(env.state())
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("bad", [np.zeros(6), np.zeros((1, 7)), np.full(7, np.nan), np.array([0, 0, 0, 0, 0, 0, np.inf])])
def test_a_malformed_action_is_refused_and_leaves_the_state_alone(env: RobosuiteEnv, bad: np.ndarray) -> None:
    env.reset(0)
    before = env.state()
    with pytest.raises(SpecError):
        env.step(bad)
    np.testing.assert_array_equal(env.state(), before)


def test_a_target_that_is_not_finite_is_refused(env: RobosuiteEnv) -> None:
    env.reset(0)
    with pytest.raises(SpecError, match="not finite"):
        env.set_target(CartesianTarget(np.array([0.5, np.nan, 0.0]), np.array([1.0, 0.0, 0.0, 0.0]), 0.04))


def test_observation_has_the_fields_of_the_spec_and_the_numbers_of_the_robot_side(env: RobosuiteEnv) -> None:
    env.reset(4)
    observation = env.step(_random_actions(env, 1, seed=3)[0]).observation
    assert tuple(observation) == env.spec.observation.names
    assert env.spec.observation.flatten(observation).shape == (14,)
    ee = env.ee_pose()
    np.testing.assert_array_equal(observation["ee_position"], ee.position)
    np.testing.assert_array_equal(observation["ee_rotation"], matrix_to_columns(quaternion_to_matrix(ee.quaternion)))
    np.testing.assert_array_equal(observation["gripper_position"], env.joint_positions()[7:])
    np.testing.assert_array_equal(observation["cube_position"], env.object_poses()["cube"].position)


def test_poses_are_relative_to_the_robot_base_and_a_function_of_the_joint_positions(env: RobosuiteEnv) -> None:
    env.reset(4)
    env.advance(7)
    fresh = mujoco.MjData(env._model)
    fresh.qpos[:] = env._data.qpos
    mujoco.mj_kinematics(env._model, fresh)
    base = fresh.body("robot0_link0").xpos
    np.testing.assert_array_equal(env.object_poses()["cube"].position, fresh.body("cube_main").xpos - base)
    np.testing.assert_array_equal(env.ee_pose().position, fresh.site("gripper0_right_grip_site").xpos - base)


def test_fingers_open_and_close_within_the_range_of_the_real_hand(env: RobosuiteEnv) -> None:
    env.reset(0)
    still = np.zeros(6)
    for width in (0.04, 0.0):
        for _ in range(20):
            env.step(np.append(still, width))
            if width == 0.0:
                assert env.joint_velocities()[7:].max() < 1e-3
        np.testing.assert_allclose(env.joint_positions()[7:], width, atol=2e-3)


def _digest_of_an_episode(env: TaskEnv) -> str:
    """Start and end of three steps, to the bit. Runs in another process too."""
    env.reset(123)
    start = env.state()
    for _ in range(3):
        env.step(np.array([0.05, -0.05, -0.05, 0.1, 0.2, -0.3, 0.0]))
    return hashlib.sha256(start.tobytes() + env.state().tobytes()).hexdigest()


def test_the_same_seed_gives_the_same_bits_whatever_came_before_and_in_any_process(env: RobosuiteEnv) -> None:
    first = _digest_of_an_episode(env)
    for seed in range(30):
        env.reset(seed)
    for action in _random_actions(env, 5, seed=0):
        env.step(action)
    assert _digest_of_an_episode(env) == first
    imports = "import hashlib; import numpy as np; from otpr_sim import registry; from otpr_sim.env import TaskEnv\n"
    code = imports + inspect.getsource(_digest_of_an_episode) + "print(_digest_of_an_episode(registry.make('lift')))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == first
    assert process.stderr == "", "robosuite's messages reached the terminal"


def test_different_seeds_differ_in_arm_cube_place_and_cube_size(env: RobosuiteEnv) -> None:
    seen = []
    for seed in range(8):
        env.reset(seed)
        seen.append((*env.joint_positions()[:7], *env.object_poses()["cube"].position[:2], *env._box_sizes.ravel()))
    assert np.std(seen, axis=0).min() > 0


def test_cube_half_sizes_stay_in_robosuites_range_and_the_cube_starts_above_the_table(env: RobosuiteEnv) -> None:
    for seed in range(20):
        env.reset(seed)
        size = env._box_sizes[0]
        assert (size >= 0.020).all() and (size <= 0.022).all()
        assert env._data.body("cube_main").xpos[2] == pytest.approx(0.8 + 0.01 + size[2], abs=1e-12)


def test_a_resized_cube_equals_one_compiled_with_that_size(env: RobosuiteEnv) -> None:
    stock = robosuite.make("Lift", robots="Panda", use_camera_obs=False, has_offscreen_renderer=False, renderer="mujoco", seed=77)
    compiled = stock.sim.model._model
    size = np.array(stock.cube.size)
    env.reset(0)
    env._set_box_sizes(size[None])
    assert not np.allclose(size, env._scene.boxes[0].smallest)
    for name in ("geom_size", "geom_aabb", "geom_rbound", "bvh_aabb", "body_mass", "body_subtreemass", "body_inertia"):
        np.testing.assert_allclose(getattr(env._model, name), getattr(compiled, name), rtol=1e-6, err_msg=name)
    for name in ("body_invweight0", "dof_invweight0", "body_iquat", "body_ipos"):
        np.testing.assert_allclose(getattr(env._model, name), getattr(compiled, name), rtol=1e-6, atol=1e-12, err_msg=name)
    assert env._model.stat.meaninertia == pytest.approx(compiled.stat.meaninertia)
    stock.close()


def test_a_state_put_back_continues_identically_here_and_in_another_environment(env: RobosuiteEnv) -> None:
    actions = _random_actions(env, 8, seed=6)
    env.reset(31)
    for action in actions[:4]:
        env.step(action)
    env.advance(13)  # between two control steps
    saved = env.state()
    with registry.make("lift") as other:
        other.reset(1)
        other.set_state(saved)
        np.testing.assert_array_equal(other.state(), saved)
        for one in (env, other):
            one.advance(12)
            for action in actions[4:]:
                one.step(action)
        np.testing.assert_array_equal(other.state(), env.state())
        end = env.state()
    env.set_state(saved)
    env.advance(12)
    for action in actions[4:]:
        env.step(action)
    np.testing.assert_array_equal(env.state(), end)


def test_a_state_of_the_wrong_length_is_refused(env: RobosuiteEnv) -> None:
    with pytest.raises(SpecError, match="state has shape"):
        env.set_state(np.zeros(5))


def test_substeps_add_up_no_matter_how_they_are_split(env: RobosuiteEnv) -> None:
    ends = []
    for split in ((25,), (1,) * 25, (10, 15)):
        env.reset(3)
        env.set_target(CartesianTarget(env.ee_pose().position + np.array([0.03, 0.0, -0.02]), env.ee_pose().quaternion, 0.0))
        for substeps in split:
            env.advance(substeps)
        assert env.time_s == pytest.approx(0.05)
        ends.append(env.state())
    np.testing.assert_array_equal(ends[0], ends[1])
    np.testing.assert_array_equal(ends[0], ends[2])


def test_holding_keeps_the_hand_where_it_is(env: RobosuiteEnv) -> None:
    env.reset(8)
    env.step(np.array([0.05, 0.05, -0.05, 0, 0, 0, 0.04]))
    for _ in range(3):  # the hand still swings; each new hold catches it closer to rest
        env.hold()
        env.advance(100)
    before = env.ee_pose()
    env.hold()
    env.advance(250)
    np.testing.assert_allclose(env.ee_pose().position, before.position, atol=1e-3)
    np.testing.assert_allclose(np.abs(env.ee_pose().quaternion @ before.quaternion), 1.0, atol=1e-5)


def _cube_at(env: RobosuiteEnv, height: float) -> None:
    """Puts the cube's centre `height` metres above the table top."""
    env.reset(0)
    env._data.joint("cube_joint0").qpos[2] = 0.8 + height
    mujoco.mj_kinematics(env._model, env._data)


@pytest.mark.parametrize(("height", "expected"), [(0.02, False), (0.0399, False), (0.0401, True), (0.2, True)])
def test_success_means_that_the_cube_is_more_than_4_cm_above_the_table(env: RobosuiteEnv, height: float, expected: bool) -> None:
    _cube_at(env, height)
    assert env.success() is expected


def test_success_ends_the_episode_with_a_reward_of_one(env: RobosuiteEnv) -> None:
    _cube_at(env, 0.3)
    result = env.step(np.zeros(7))
    assert (result.reward, result.terminated, result.truncated, result.success) == (1.0, True, False, True)


def test_the_horizon_truncates_an_episode_without_success(env: RobosuiteEnv) -> None:
    env.reset(0)
    env.set_state(np.where(np.arange(env.state().size) == env.state().size - 4, env.spec.horizon - 2, env.state()))
    results = [env.step(np.zeros(7)) for _ in range(2)]
    assert [r.truncated for r in results] == [False, True]
    assert [r.reward for r in results] == [0.0, 0.0]


def test_episode_seeds_are_repeatable_distinct_and_fit_64_bits() -> None:
    seeds = {episode_seed(seed, episode) for seed in range(20) for episode in range(50)}
    assert len(seeds) == 1000
    assert episode_seed(7, 3) == episode_seed(7, 3) != episode_seed(3, 7)
    assert max(seeds) < 2**63


def test_closing_frees_file_descriptors_and_twice_is_harmless() -> None:
    registry.make("lift").close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        made = registry.make("lift")
        made.close()
        made.close()
    assert len(os.listdir("/proc/self/fd")) <= before
