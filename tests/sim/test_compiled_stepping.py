# SPDX-License-Identifier: Apache-2.0
"""Laws of compiled stepping: stock robosuite's motion in every scene, the equations of its controller, and its refusals."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import mujoco
import numpy as np
import pytest

from otpr_policy.rotation import quaternion_to_matrix, rotation_vector_to_matrix
from otpr_sim import osc, registry, stepping
from otpr_sim.env import Stepping, episode_seed
from otpr_sim.experts import expert
from otpr_sim.robosuite_env import robosuite
from otpr_sim.stepping import PHYSICS, CompiledStepper, Stepper, make_stepper

SCENES = ("Lift", "PickPlaceCan", "NutAssemblySquare", "Door", "Stack", "ToolHang", "TwoArmLift")
ACTIONS = 200
FINGER_STEP = 0.2  # robosuite's, of the half range, per action
POSITION_RANGE, ROTATION_RANGE = 0.05, 0.5  # robosuite's, m and rad per action


def _make(scene: str) -> Any:
    return robosuite.make(
        scene,
        robots=["Panda", "Panda"] if scene.startswith("TwoArm") else "Panda",
        hard_reset=False,
        ignore_done=True,
        use_camera_obs=False,
        has_offscreen_renderer=False,
        renderer="mujoco",
        seed=0,
    )


def _physics(env: Any) -> np.ndarray:
    model, data = env.sim.model._model, env.sim.data._data
    state = np.empty(mujoco.mj_stateSize(model, PHYSICS))
    mujoco.mj_getState(model, data, state, PHYSICS)
    return state


def _put(env: Any, state: np.ndarray) -> None:
    model, data = env.sim.model._model, env.sim.data._data
    mujoco.mj_setState(model, data, state, PHYSICS)
    mujoco.mj_forward(model, data)
    mujoco.mj_setState(model, data, state, PHYSICS)  # mj_forward has left another warm start of the solver


def _constraints(env: Any) -> set[tuple[int, ...]]:
    """What holds the arms: contacts that an arm or a hand has a part in, as pairs of bodies, and joints at their limits."""
    model, data = env.sim.model._model, env.sim.data._data
    bodies = {tuple(sorted(model.geom_bodyid[pair])) for pair in data.contact.geom}
    contacts = {pair for pair in bodies if any(model.body(body).name.startswith(("robot", "gripper")) for body in pair)}
    return contacts | {(joint,) for joint in data.efc_id[data.efc_type == mujoco.mjtConstraint.mjCNSTR_LIMIT_JOINT]}


def _command(stepper: Stepper, fingers: np.ndarray, action: np.ndarray) -> None:
    """What robosuite makes of a normalised action; `fingers` (arms, 2) is the state of its gripper format, changed here."""
    for index, (arm, part) in enumerate(zip(stepper.arms, action.reshape(-1, 7), strict=True)):
        position, rotation = stepper.hand_pose(arm)
        arm.command.goal_position[:] = position + POSITION_RANGE * part[:3]
        arm.command.goal_rotation[:] = rotation_vector_to_matrix(ROTATION_RANGE * part[3:6]) @ rotation
        fingers[index] = np.clip(fingers[index] + np.array([-1.0, 1.0]) * FINGER_STEP * np.sign(part[6]), -1.0, 1.0)
        arm.command.finger_ctrl[:] = np.array([0.02, -0.02]) + 0.02 * fingers[index]


@pytest.mark.parametrize("scene", SCENES)
def test_200_random_actions_move_every_joint_as_stock_robosuite_does(scene: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # robosuite rounds the commanded rotation to single precision, and nothing else.
    monkeypatch.setattr(robosuite.utils.transform_utils, "quat2mat", quaternion_to_matrix)
    ours, stock = _make(scene), _make(scene)
    stepper = make_stepper(ours, Stepping.COMPILED)
    assert isinstance(stepper, CompiledStepper)
    _put(stock, _physics(ours))
    for robot, arm in zip(stock.robots, stepper.arms, strict=True):
        robot.part_controllers["right"].initial_joint = arm.command.posture.copy()
        for controller in robot.part_controllers.values():
            controller.new_update = True  # robosuite's first torque is made from what it read before the fingers were placed
    rng = np.random.default_rng(3)
    fingers = np.zeros((len(stepper.arms), 2))
    before, free = _constraints(ours), ACTIONS
    differences = []
    for step in range(ACTIONS):
        action = rng.uniform(*ours.action_spec)
        _command(stepper, fingers, action)
        for _ in range(25):
            stepper.advance(1)
            if _constraints(ours) != before:
                free = min(free, step)
        stock.step(action)
        differences.append(np.abs(ours.sim.data.qpos - stock.sim.data.qpos).max())
        # Torques that differ by 1e-12 may end MuJoCo's solver an iteration sooner or later, and contacts amplify that.
        # So once an arm touches something, or a joint its limit, each step is judged by itself.
        if free < ACTIONS:
            _put(stock, _physics(ours))
    ours.close()
    stock.close()
    assert free > 20
    assert max(differences[:free]) < 1e-9
    assert max(differences) < 1e-5
    assert np.mean(np.array(differences) < 1e-9) > 0.95


def _outcomes(task: str, episodes: int) -> list[tuple[bool, bool, int, int]]:
    """Success and length of expert episodes in a compiled environment, and of the same actions in a stock one."""
    outcomes = []
    with registry.make(task) as ours, registry.make(task, Stepping.STOCK) as stock:
        for episode in range(episodes):
            seed = episode_seed(3, episode)
            observation = ours.reset(seed)
            stock.reset(seed)
            player = expert(task, np.random.default_rng(seed), noise=0.3 if task == "lift" else 0.15)
            ends = [0, 0]
            successes = [False, False]
            for step in range(ours.spec.horizon):
                action = player.act(observation)
                results = [env.step(action) for env in (ours, stock)]
                observation = results[0].observation
                for index, result in enumerate(results):
                    if result.terminated and not successes[index]:
                        successes[index], ends[index] = True, step
                if all(successes) or (any(successes) and step >= max(ends) + 10):  # contacts may differ by a moment
                    break
            outcomes.append((*successes, *ends))
    return outcomes


@pytest.mark.parametrize("episodes", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_expert_episodes_of_lift_succeed_at_the_same_step_as_in_stock_robosuite(episodes: int) -> None:
    outcomes = _outcomes("lift", episodes)
    assert any(ours for ours, *_ in outcomes)
    assert all(ours == stock and our_end == stock_end for ours, stock, our_end, stock_end in outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["can", "door", "square"])
def test_expert_episodes_succeed_or_fail_as_in_stock_robosuite(task: str) -> None:
    outcomes = _outcomes(task, 50)
    assert sum(ours for ours, *_ in outcomes) >= 40
    assert [ours for ours, *_ in outcomes] == [stock for _, stock, *_ in outcomes]


def test_a_state_goes_on_alike_whichever_way_it_is_stepped() -> None:
    rng = np.random.default_rng(1)
    with registry.make("lift") as compiled, registry.make("lift", Stepping.STOCK) as stock:
        actions = rng.uniform(compiled.spec.action.low, compiled.spec.action.high, (10, 7))
        for first, second in ((compiled, stock), (stock, compiled)):
            first.reset(2)
            for action in actions[:5]:
                first.step(action)
            first.advance(7)
            second.reset(9)
            second.set_state(first.state())
            for action in actions[5:]:
                first.step(action)
                second.step(action)
            np.testing.assert_allclose(second.state(), first.state(), rtol=0, atol=1e-9)


# The equations


@pytest.fixture(scope="module")
def lift() -> Iterator[Any]:
    env = _make("Lift")
    yield env
    env.close()


@pytest.fixture
def compiled(lift: Any) -> CompiledStepper:
    lift.reset()
    stepper = make_stepper(lift, Stepping.COMPILED)
    assert isinstance(stepper, CompiledStepper)
    return stepper


def _dynamics(env: Any, stepper: Stepper) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mass matrix and Jacobian of the first arm, and its torques without h, in the present state."""
    model, data, arm = env.sim.model._model, env.sim.data._data, stepper.arms[0]
    mujoco.mj_step1(model, data)
    stepper.control()
    mass, jacobian = np.empty((model.nv, model.nv)), np.empty((6, model.nv))
    mujoco.mj_fullM(model, mass, data.qM)
    mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], arm.site)
    return mass[np.ix_(arm.dofs, arm.dofs)], jacobian[:, arm.dofs], data.ctrl[arm.motors] - data.qfrc_bias[arm.dofs]


def test_the_posture_moves_the_elbow_and_leaves_the_hand_alone(lift: Any, compiled: CompiledStepper) -> None:
    compiled.arms[0].command.posture[:] += np.linspace(-0.3, 0.3, 7)
    M, J, torque = _dynamics(lift, compiled)
    acceleration = np.linalg.solve(M, torque)
    assert np.abs(acceleration).max() > 0.1
    np.testing.assert_allclose(J @ acceleration, 0.0, atol=1e-9)


def test_at_rest_the_hand_accelerates_by_kp_times_its_way_and_the_load_of_the_arm_does_not_matter(
    lift: Any, compiled: CompiledStepper
) -> None:
    way = np.array([0.02, -0.01, 0.03])
    compiled.arms[0].command.goal_position[:] += way
    M, J, torque = _dynamics(lift, compiled)
    inverse = np.linalg.inv(M)
    translation = J[:3]
    force = np.linalg.inv(translation @ inverse @ translation.T) @ (150.0 * way)
    np.testing.assert_allclose(torque, translation.T @ force, rtol=1e-9)
    np.testing.assert_allclose(translation @ inverse @ torque, 150.0 * way, rtol=1e-9)


def test_a_torque_never_exceeds_what_the_motor_can_give(lift: Any, compiled: CompiledStepper) -> None:
    compiled.arms[0].command.goal_position[:] += 100.0
    _dynamics(lift, compiled)
    low, high = lift.sim.model._model.actuator_ctrlrange.T
    ctrl = lift.sim.data._data.ctrl
    assert ((ctrl >= low) & (ctrl <= high)).all()
    assert ((ctrl == low) | (ctrl == high))[compiled.arms[0].motors].any()


def test_equations_are_solved_as_by_lapack_and_singular_ones_by_the_pseudo_inverse() -> None:
    rng = np.random.default_rng(0)
    b = rng.normal(size=6)
    for rank in (6, 5, 3, 1):
        factor = rng.normal(size=(6, rank))
        A = factor @ factor.T
        expected = np.linalg.solve(A, b) if rank == 6 else np.linalg.pinv(A, rcond=1e-13) @ b
        solution = osc.solve(A[:, :], A @ b if rank < 6 else b)
        np.testing.assert_allclose(A @ solution, A @ (expected if rank == 6 else b), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(osc.solve(np.zeros((3, 3)), np.ones(3)), np.zeros(3))


# What it refuses


def _fallback_message(env: Any, caplog: pytest.LogCaptureFixture) -> str:
    """The one line that is said when compiled stepping is asked for and stock stepping is given."""
    with caplog.at_level(logging.WARNING):
        assert make_stepper(env, Stepping.COMPILED).stepping is Stepping.STOCK
    (record,) = caplog.records
    assert "\n" not in record.getMessage()
    return record.getMessage()


@pytest.mark.parametrize("package", ["mujoco", "robosuite"])
def test_another_version_of_the_simulator_is_stepped_by_robosuite_itself(
    package: str, lift: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys.modules[package], "__version__", "99.1")
    assert f"{package} is 99.1, tested is {stepping.TESTED_VERSIONS[package]}" in _fallback_message(lift, caplog)


def test_an_environment_of_a_task_says_which_way_it_is_stepped(monkeypatch: pytest.MonkeyPatch) -> None:
    for wanted in Stepping:
        with registry.make("lift", wanted) as env:
            assert env.stepping is wanted  # type: ignore[attr-defined]
    monkeypatch.setattr(mujoco, "__version__", "99.1")
    with registry.make("lift") as env:
        assert env.stepping is Stepping.STOCK  # type: ignore[attr-defined]
        assert env.step(np.zeros(7)).observation["ee_position"].shape == (3,)


@pytest.mark.parametrize(
    ("name", "value"), [("input_ref_frame", "world"), ("impedance_mode", "variable"), ("uncoupling", False), ("interpolator_pos", "linear")]
)
def test_controller_settings_that_are_not_implemented_are_left_to_robosuite(
    name: str, value: object, lift: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lift.reset()
    monkeypatch.setattr(lift.robots[0].part_controllers["right"], name, value)
    assert f"has {name} {value!r}" in _fallback_message(lift, caplog)


def test_a_simulation_that_every_reset_replaces_is_left_to_robosuite(
    lift: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lift, "hard_reset", True)
    assert "hard_reset" in _fallback_message(lift, caplog)


def test_torques_that_differ_from_robosuites_are_found_before_the_first_step(
    lift: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lift.reset()
    before = _physics(lift)
    changed = robosuite.controllers.parts.arm.osc.nullspace_torques
    monkeypatch.setattr(robosuite.controllers.parts.arm.osc, "nullspace_torques", lambda *inputs: 1.001 * changed(*inputs))
    assert "torques differ from robosuite's by" in _fallback_message(lift, caplog)
    np.testing.assert_array_equal(_physics(lift), before)


def test_a_machine_that_cannot_compile_is_stepped_by_robosuite_itself(
    lift: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr("otpr_sim.osc")
    monkeypatch.setitem(sys.modules, "otpr_sim.osc", None)
    assert "does not start" in _fallback_message(lift, caplog)


def test_compiled_code_is_kept_for_the_next_process() -> None:
    code = (
        "from otpr_sim import osc, registry\n"
        "with registry.make('lift'): pass\n"
        "print(sum(osc.advance.stats.cache_hits.values()), sum(osc.advance.stats.cache_misses.values()))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for expected in (None, "1 0"):
        process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert expected in (None, process.stdout.strip())
