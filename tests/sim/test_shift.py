# SPDX-License-Identifier: Apache-2.0
"""Laws of distribution shifts: nothing when nominal, what was asked for otherwise, and all of it from the episode's seed."""

import hashlib
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import mujoco
import numpy as np
import pytest

from otpr_policy.command import CartesianTarget, delta_to_target
from otpr_policy.errors import SpecError, TaskError
from otpr_policy.rotation import (
    columns_to_matrix,
    matrix_to_columns,
    matrix_to_rotation_vector,
    quaternion_to_matrix,
)
from otpr_sim import registry
from otpr_sim.env import Stepping, TaskEnv
from otpr_sim.robosuite_env import RobosuiteEnv
from otpr_sim.shift import NOMINAL, PRESETS, Shift, preset
from otpr_sim.shifted_env import ShiftedEnv
from otpr_sim.tasks import can

TASKS = ("can", "door", "lift", "square")
HARD = PRESETS["hard"]


@pytest.fixture
def make() -> Iterator[object]:
    """Makes environments of a task under a shift, closed when the test ends."""
    with ExitStack() as stack:
        yield lambda task, shift: stack.enter_context(ShiftedEnv(registry.make(task), shift))


def _actions(env: TaskEnv, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(env.spec.action.low, env.spec.action.high, (count, env.spec.action.size))


def _inner(env: ShiftedEnv) -> RobosuiteEnv:
    assert isinstance(env._env, RobosuiteEnv)
    return env._env


# Nominal


@pytest.mark.parametrize("task", TASKS)
def test_a_shift_that_changes_nothing_is_the_environment_itself_bit_for_bit(task: str, make) -> None:
    shifted = make(task, Shift())
    with registry.make(task) as plain:
        assert not isinstance(plain, ShiftedEnv)
        for seed in (5, 6):
            np.testing.assert_equal(shifted.reset(seed), plain.reset(seed))
            for action in _actions(plain, 12, seed):
                np.testing.assert_equal(vars(shifted.step(action)), vars(plain.step(action)))
            np.testing.assert_array_equal(shifted.state()[: plain.state().size], plain.state())


def test_the_nominal_preset_adds_no_wrapper_and_the_others_do() -> None:
    for name, shift in PRESETS.items():
        with registry.make("lift", shift=preset(name)) as env:
            assert isinstance(env, ShiftedEnv) is (shift != NOMINAL)


# The seed decides


def _digest_of_a_hard_episode(task: str) -> str:
    """Start and end of twenty steps under the hard preset, to the bit. Runs in another process too."""
    with registry.make(task, shift=PRESETS["hard"]) as env:
        digest = hashlib.sha256(env.spec.observation.flatten(env.reset(17)).tobytes())
        for action in np.random.default_rng(0).uniform(env.spec.action.low, env.spec.action.high, (20, 7)):
            digest.update(env.spec.observation.flatten(env.step(action).observation).tobytes())
        digest.update(env.state().tobytes())
    return digest.hexdigest()


def test_a_shifted_episode_is_the_same_in_any_process() -> None:
    imports = "import hashlib; import numpy as np; from otpr_sim import registry; from otpr_sim.shift import PRESETS\n"
    code = imports + inspect.getsource(_digest_of_a_hard_episode) + f"print([_digest_of_a_hard_episode(task) for task in {TASKS}])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == str([_digest_of_a_hard_episode(task) for task in TASKS])


@pytest.mark.parametrize("task", TASKS)
def test_a_shifted_state_put_back_continues_identically_whatever_came_before(task: str, make) -> None:
    env, other = make(task, HARD), make(task, HARD)
    actions = _actions(env, 14, seed=1)
    env.reset(31)
    for action in actions[:7]:
        env.step(action)
    env.advance(13)  # between two control steps, with commands that wait
    saved, seen = env.state(), env.observe()
    for seed in range(3):
        other.reset(seed)
    other.set_state(saved)
    np.testing.assert_array_equal(other.state(), saved)
    np.testing.assert_equal(other.observe(), seen)
    for one in (env, other):
        one.advance(12)
        for action in actions[7:]:
            one.step(action)
    np.testing.assert_array_equal(other.state(), env.state())
    env.reset(31)
    for action in actions[:7]:
        env.step(action)
    env.advance(13)
    np.testing.assert_array_equal(env.state(), saved)


def test_a_state_of_another_length_is_refused_and_changes_nothing(make) -> None:
    env = make("lift", HARD)
    before = env.state()
    for size in (0, 3, before.size - 1, before.size + 9):
        with pytest.raises(SpecError, match="state has shape"):
            env.set_state(np.zeros(size))
    np.testing.assert_array_equal(env.state(), before)


# Physics


@pytest.mark.parametrize(("task", "joint"), [("can", "Can_joint0"), ("lift", "cube_joint0"), ("square", "SquareNut_joint0")])
def test_the_mass_factor_is_the_factor_on_the_objects_inertia_in_the_equations_of_motion(task: str, joint: str, make) -> None:
    inertias = []
    for shift in (Shift(), Shift(mass=(2.5, 2.5))):
        env = _inner(make(task, shift)) if shift == Shift() else make(task, shift)
        env.reset(3)
        inner = env if isinstance(env, RobosuiteEnv) else _inner(env)
        mujoco.mj_forward(inner._model, inner._data)
        matrix = np.zeros((inner._model.nv, inner._model.nv))
        mujoco.mj_fullM(inner._model, matrix, inner._data.qM)
        dofs = inner._model.joint(joint).dofadr[0] + np.arange(6)
        inertias.append(matrix[np.ix_(dofs, dofs)])
    np.testing.assert_allclose(inertias[1], 2.5 * inertias[0], rtol=1e-9, atol=1e-15)


def test_the_mass_of_a_door_and_its_handle_are_scaled(make) -> None:
    nominal, heavy = (_inner(make("door", shift))._model for shift in (Shift(), Shift(mass=(3.0, 3.0))))
    for body in ("Door_door", "Door_latch"):
        np.testing.assert_allclose(heavy.body(body).mass, 3.0 * nominal.body(body).mass)
    np.testing.assert_array_equal(heavy.body("robot0_link5").mass, nominal.body("robot0_link5").mass)


def test_mass_and_friction_are_drawn_anew_per_episode_within_their_ranges_and_the_friction_is_every_contacts(make) -> None:
    env = make("can", Shift(mass=(0.5, 2.0), friction=(0.4, 1.2)))
    with registry.make("can") as plain:
        assert isinstance(plain, RobosuiteEnv)
        nominal_mass, nominal_friction = plain._model.body("Can_main").mass[0], plain._model.geom_friction.copy()
    masses, frictions = [], []
    for seed in range(60):
        env.reset(seed)
        masses.append(_inner(env)._model.body("Can_main").mass[0] / nominal_mass)
        factors = _inner(env)._model.geom_friction / nominal_friction
        assert np.ptp(factors) < 1e-12
        frictions.append(factors[0, 0])
    for drawn, low, high in ((masses, 0.5, 2.0), (frictions, 0.4, 1.2)):
        assert low < min(drawn) < low * 1.2 < high / 1.2 < max(drawn) < high
        # Half of the draws are below the geometric mean: a factor and its inverse are equally likely.
        assert 15 <= sum(value < np.sqrt(low * high) for value in drawn) <= 45


def test_a_wider_start_region_takes_the_same_draws_farther_from_its_middle(make) -> None:
    nominal, wide = (make("lift", Shift(start_region=factor)) for factor in (1.0, 2.0))
    middle = np.array([0.56, 0.0])  # of the table, base frame
    for seed in range(8):
        near, far = (env.reset(seed)["cube_position"][:2] - middle for env in (nominal, wide))
        np.testing.assert_allclose(far, 2.0 * near, atol=1e-9)


def test_the_start_region_ends_where_the_bin_does(make) -> None:
    env = make("can", Shift(start_region=10.0))
    bin_middle = np.array([0.6, -0.15])
    offsets = np.abs([env.reset(seed)["can_position"][:2] - bin_middle for seed in range(40)]).max(axis=0)
    assert (offsets < np.array([0.19, 0.24]) - 0.025).all()
    assert (offsets > can.SCENE.widest_start * np.array([0.12, 0.17]) * 0.9).all()


# Delay


def _play_by_hand(env: TaskEnv, actions: np.ndarray, delay_substeps: int) -> np.ndarray:
    """What a delay means: each target, made from what is seen when it is commanded, is applied that many substeps later."""
    commands: list[tuple[int, CartesianTarget]] = []
    for substep in range(len(actions) * env.substeps_per_step):
        if substep % env.substeps_per_step == 0:
            action = actions[substep // env.substeps_per_step]
            commands.append((substep + delay_substeps, delta_to_target(env.observe(), env.spec.action.split(action))))
        for due, target in commands:
            if due == substep:
                env.set_target(target)
        env.advance(1)
    return env.state()


@pytest.mark.parametrize(("delay", "substeps"), [(0.0, 0), (0.4, 10), (1.0, 25), (1.4, 35), (2.0, 50)])
def test_a_delay_applies_each_command_that_much_later_to_the_substep(delay: float, substeps: int, make) -> None:
    env = make("lift", Shift(action_delay=delay))
    actions = _actions(env, 8, seed=2)
    env.reset(9)
    for action in actions:
        env.step(action)
    with registry.make("lift") as plain:
        plain.reset(9)
        by_hand = _play_by_hand(plain, actions, substeps)
    # Counted are the steps, which nobody took by hand.
    physics = by_hand.size - 4
    np.testing.assert_array_equal(env.state()[:physics], by_hand[:physics])


def test_until_the_first_command_arrives_the_hand_stays(make) -> None:
    env = make("lift", Shift(action_delay=2.0))
    env.reset(0)
    start = env.ee_pose().position
    for _ in range(2):
        env.step(np.array([0.05, 0.05, -0.05, 0, 0, 0, 0.0]))
    assert np.abs(env.ee_pose().position - start).max() < 2e-3
    for _ in range(4):
        env.step(np.zeros(7))
    assert np.abs(env.ee_pose().position - start).max() > 2e-2


def test_holding_takes_effect_at_once_and_forgets_what_waits(make) -> None:
    env = make("lift", Shift(action_delay=1.0))
    env.reset(0)
    start = env.ee_pose()
    env.set_target(CartesianTarget(start.position + 0.05, start.quaternion, 0.0))
    env.hold()
    env.advance(100)
    np.testing.assert_allclose(env.ee_pose().position, start.position, atol=2e-3)


def test_a_delayed_target_that_is_not_finite_is_refused_when_it_is_given(make) -> None:
    env = make("lift", Shift(action_delay=1.0))
    with pytest.raises(SpecError, match="not finite"):
        env.set_target(CartesianTarget(np.array([0.5, np.nan, 0.0]), np.array([1.0, 0.0, 0.0, 0.0]), 0.04))


# Noise


def test_noise_has_the_asked_for_spread_no_bias_and_no_memory_and_leaves_the_physics_alone(make) -> None:
    env = make("square", Shift(noise_m=0.01, noise_rad=0.05))
    env.reset(2)
    moves, turns = [], []
    for _ in range(600):
        env.advance(1)
        true, seen = env._env.observe(), env.observe()
        moves.append(np.concatenate([seen[name] - true[name] for name in ("ee_position", "gripper_position", "nut_position")]))
        angles = []
        for name in ("ee_rotation", "nut_rotation"):
            turn = columns_to_matrix(seen[name]) @ columns_to_matrix(true[name]).T
            angles.append(matrix_to_rotation_vector(turn))
        turns.append(np.concatenate(angles))
    for drawn, std in ((np.array(moves), 0.01), (np.array(turns), 0.05)):
        np.testing.assert_allclose(drawn.std(axis=0), std, rtol=0.12)  # four standard errors of 600
        np.testing.assert_allclose(drawn.mean(axis=0), 0.0, atol=4.5 * std / np.sqrt(600))
        correlation = np.corrcoef(np.hstack([drawn[1:], drawn[:-1]]).T)
        assert np.abs(correlation - np.eye(len(correlation))).max() < 4.5 / np.sqrt(600)
    with registry.make("square") as plain:
        plain.reset(2)
        plain.advance(600)
        np.testing.assert_array_equal(env.state()[: plain.state().size], plain.state())


@pytest.mark.parametrize("task", TASKS)
def test_the_robots_side_tells_the_same_noisy_numbers_as_the_observation(task: str, make) -> None:
    env = make(task, HARD)
    env.reset(4)
    seen = env.step(_actions(env, 1, seed=3)[0]).observation
    assert tuple(seen) == env.spec.observation.names
    np.testing.assert_equal(env.observe(), seen)  # the same moment, the same noise
    np.testing.assert_array_equal(seen["gripper_position"], env.joint_positions()[7:])
    for name, pose in {"ee": env.ee_pose(), **env.object_poses()}.items():
        np.testing.assert_array_equal(seen[f"{name}_position"], pose.position)
        if f"{name}_rotation" in seen:
            np.testing.assert_array_equal(seen[f"{name}_rotation"], matrix_to_columns(quaternion_to_matrix(pose.quaternion)))


def test_time_may_be_advanced_in_any_pieces_under_a_shift(make) -> None:
    env = make("lift", HARD)
    ends = []
    for pieces in ((25,), (5,) * 5, (12, 13)):
        env.reset(3)
        for action in _actions(env, 10, seed=4):
            env.set_target(delta_to_target(env.observe(), env.spec.action.split(action)))
            for piece in pieces:
                env.advance(piece)
        ends.append(env.state())
    np.testing.assert_array_equal(ends[0], ends[1])
    np.testing.assert_array_equal(ends[0], ends[2])


# Pushes


def test_pushes_come_at_their_rate_with_their_force_for_their_time_in_all_directions(make) -> None:
    env = make("lift", Shift(push_rate_hz=0.4, push_n=12.0, push_steps=3))
    env.reset(0)
    forces = np.array([env._force(period) for period in range(8000)])
    pushed = np.linalg.norm(forces, axis=1)
    np.testing.assert_allclose(pushed[pushed > 0], 12.0)
    begun = 0.4 / 20.0  # per period
    assert (pushed > 0).mean() == pytest.approx(1 - (1 - begun) ** 3, rel=0.2)
    changes = np.flatnonzero(np.abs(np.diff(forces, axis=0)).max(axis=1) > 0)
    assert np.median(np.diff(changes)) >= 3
    directions = np.unique(forces[pushed > 0], axis=0) / 12.0
    assert np.abs(directions.mean(axis=0)).max() < 0.2


def test_a_push_moves_the_hand_its_way_and_ends(make) -> None:
    env = make("lift", Shift(push_rate_hz=0.6, push_n=60.0, push_steps=4))
    env.reset(1)
    period = next(i for i in range(400) if env._force(i).any())
    force = env._force(period)
    env.advance(25 * period)
    before = env.ee_pose().position
    env.advance(25 * 4)
    moved = env.ee_pose().position - before
    assert moved @ force / np.linalg.norm(force) > 0.006
    end = next(i for i in range(period, 400) if not env._force(i).any())
    assert end >= period + 4
    env.advance(25 * (end - period - 4) + 1)
    assert not _inner(env)._data.xfrc_applied.any()


# Bad input


@pytest.mark.parametrize(
    "wrong",
    [
        {"noise_m": -1.0},
        {"noise_rad": np.nan},
        {"action_delay": -0.5},
        {"push_rate_hz": np.inf},
        {"push_n": -1.0},
        {"start_region": 0.0},
        {"mass": (0.0, 1.0)},
        {"mass": (2.0, 1.0)},
        {"friction": (1.0, np.nan)},
        {"push_steps": 0},
    ],
    ids=str,
)
def test_a_shift_without_meaning_is_refused(wrong: dict) -> None:
    with pytest.raises(TaskError, match=next(iter(wrong))):
        Shift(**wrong)


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(TaskError, match="unknown preset 'harder'; known: hard, nominal, shifted"):
        preset("harder")


def test_a_task_whose_physics_cannot_be_shifted_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rigid:
        closed = False

        def close(self) -> None:
            self.closed = True

    made: list[Rigid] = []

    def make_rigid(stepping: Stepping) -> Rigid:
        made.append(Rigid())
        return made[-1]

    monkeypatch.setitem(registry._TASKS, "rigid", (registry.spec("lift"), make_rigid))
    assert registry.make("rigid") is made[0]
    with pytest.raises(TaskError, match="task 'rigid' has no distribution shifts"):
        registry.make("rigid", shift=HARD)
    assert made[1].closed
