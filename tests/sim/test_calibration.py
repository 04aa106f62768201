# SPDX-License-Identifier: Apache-2.0
"""A camera that is not where it is thought to be: what it changes, by how much, and that it changes nothing else."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from otpr_policy.rotation import matrix_to_rotation_vector, quaternion_to_matrix
from otpr_sim import registry
from otpr_sim.shift import Shift
from otpr_sim.shifted_env import ShiftedEnv


@pytest.fixture
def make() -> Iterator[Callable[[Shift], ShiftedEnv]]:
    """Makes environments of Square, which observes an object's position and rotation; closed when the test ends."""
    with ExitStack() as stack:
        yield lambda shift: stack.enter_context(ShiftedEnv(registry.make("square"), shift))


def test_a_camera_that_is_off_moves_every_object_the_same_way_and_nothing_else(make: Callable[[Shift], ShiftedEnv]) -> None:
    env, plain = make(Shift(calibration_m=0.03)), make(Shift())
    offsets = []
    for seed in (4, 5):
        env.reset(seed)
        plain.reset(seed)
        seen, true = env.object_poses(), plain.object_poses()
        differences = [seen[name].position - true[name].position for name in true]
        np.testing.assert_allclose(differences, [differences[0]] * len(differences), atol=1e-12)
        assert np.linalg.norm(differences[0]) == pytest.approx(0.03)
        np.testing.assert_array_equal(env.ee_pose().position, plain.ee_pose().position)
        np.testing.assert_array_equal(env.joint_positions(), plain.joint_positions())
        observed, expected = env.observe(), plain.observe()
        for name in true:
            np.testing.assert_array_equal(observed[f"{name}_position"], seen[name].position)
        np.testing.assert_array_equal(observed["ee_position"], expected["ee_position"])
        env.step(np.zeros(7))
        plain.step(np.zeros(7))
        offsets.append(differences[0])
    assert np.linalg.norm(offsets[0] - offsets[1]) > 1e-3  # another episode, another error
    env.reset(4)
    np.testing.assert_allclose(env.object_poses()["nut"].position - env._env.object_poses()["nut"].position, offsets[0], atol=1e-12)


def test_a_camera_that_is_turned_turns_objects_about_the_base(make: Callable[[Shift], ShiftedEnv]) -> None:
    env = make(Shift(calibration_rad=0.1))
    env.reset(9)
    for name, true in env._env.object_poses().items():
        seen = env.object_poses()[name]
        assert np.linalg.norm(seen.position) == pytest.approx(np.linalg.norm(true.position))
        turn = quaternion_to_matrix(seen.quaternion) @ quaternion_to_matrix(true.quaternion).T
        assert np.linalg.norm(matrix_to_rotation_vector(turn)) == pytest.approx(0.1, abs=1e-9)
        np.testing.assert_allclose(turn @ true.position, seen.position, atol=1e-12)
