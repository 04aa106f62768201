# SPDX-License-Identifier: Apache-2.0
"""Laws of rotations, with an independent implementation (scipy) as judge."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from otpr_policy.rotation import (
    columns_to_matrix,
    matrix_to_columns,
    matrix_to_quaternion,
    matrix_to_rotation_vector,
    quaternion_to_matrix,
    rotation_vector_to_matrix,
)

# Where formulas for rotations break: at no rotation, around where a series takes over, and at half a turn.
ANGLES = [0.0, 1e-300, 1e-12, 0.99e-6, 1.01e-6, 1e-4, 0.5, np.pi / 2, 2.0, np.pi - 1e-4, np.pi - 1e-8, np.pi]
AXES = [
    np.array(axis) / np.linalg.norm(axis)
    for axis in ([1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0], [1, 1, 1], [1, -2, 3], [0.6, 0.8, 0], [-1, 1e-9, 1e-9])
]
VECTORS = [angle * axis for angle in ANGLES for axis in AXES]

vectors = st.builds(
    lambda axis, angle: angle * np.array(axis) / np.linalg.norm(axis),
    st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda axis: np.linalg.norm(axis) > 1e-3),
    st.floats(0, np.pi),
)


def _same_rotation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Distance of two unit quaternions, which mean the same up to their sign."""
    return float(min(np.abs(first - second).max(), np.abs(first + second).max()))


@pytest.mark.parametrize("vector", VECTORS, ids=str)
def test_rotation_vectors_agree_with_scipy_at_the_hard_angles(vector: NDArray[np.float64]) -> None:
    np.testing.assert_allclose(rotation_vector_to_matrix(vector), Rotation.from_rotvec(vector).as_matrix(), atol=1e-15, rtol=0)


@pytest.mark.parametrize("vector", VECTORS, ids=str)
def test_a_rotation_vector_comes_back_from_its_matrix(vector: NDArray[np.float64]) -> None:
    back = matrix_to_rotation_vector(rotation_vector_to_matrix(vector))
    half_turn = np.linalg.norm(vector) > np.pi - 1e-7  # there an axis and its opposite mean the same to rounding
    # A matrix of doubles holds an angle to 1e-16, and its axis to 1e-16 over the angle.
    assert min(np.abs(back - vector).max(), np.abs(back + vector).max() if half_turn else np.inf) < 1e-14


@pytest.mark.parametrize("vector", VECTORS, ids=str)
def test_quaternions_agree_with_scipy_at_the_hard_angles(vector: NDArray[np.float64]) -> None:
    rotation = Rotation.from_rotvec(vector)
    np.testing.assert_allclose(quaternion_to_matrix(rotation.as_quat()), rotation.as_matrix(), atol=1e-15, rtol=0)
    assert _same_rotation(matrix_to_quaternion(rotation.as_matrix()), rotation.as_quat()) < 1e-15


@settings(max_examples=60, deadline=None)
@given(vectors)
def test_every_conversion_agrees_with_scipy_on_random_rotations(vector: NDArray[np.float64]) -> None:
    rotation = Rotation.from_rotvec(vector)
    matrix = rotation.as_matrix()
    np.testing.assert_allclose(rotation_vector_to_matrix(vector), matrix, atol=1e-15, rtol=0)
    np.testing.assert_allclose(quaternion_to_matrix(rotation.as_quat()), matrix, atol=1e-15, rtol=0)
    assert _same_rotation(matrix_to_quaternion(matrix), rotation.as_quat()) < 1e-15
    np.testing.assert_allclose(matrix_to_columns(matrix), [*matrix[:, 0], *matrix[:, 1]], atol=0, rtol=0)
    np.testing.assert_allclose(columns_to_matrix(np.concatenate([matrix[:, 0], matrix[:, 1]])), matrix, atol=1e-15, rtol=0)


@settings(max_examples=60, deadline=None)
@given(vectors, vectors)
def test_rotations_form_a_group(first: NDArray[np.float64], second: NDArray[np.float64]) -> None:
    a, b = rotation_vector_to_matrix(first), rotation_vector_to_matrix(second)
    for matrix in (a, a @ b):
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-14)
        assert np.linalg.det(matrix) == pytest.approx(1.0, abs=1e-14)
    np.testing.assert_allclose(rotation_vector_to_matrix(-first) @ a, np.eye(3), atol=1e-14)
    np.testing.assert_allclose(quaternion_to_matrix(matrix_to_quaternion(a @ b)), a @ b, atol=1e-14)


@settings(max_examples=60, deadline=None)
@given(vectors)
def test_matrix_quaternion_columns_and_back_changes_nothing(vector: NDArray[np.float64]) -> None:
    matrix = rotation_vector_to_matrix(vector)
    through_quaternion = quaternion_to_matrix(matrix_to_quaternion(matrix))
    through_columns = columns_to_matrix(matrix_to_columns(through_quaternion))
    np.testing.assert_allclose(through_columns, matrix, atol=1e-12, rtol=0)


def test_a_quarter_turn_about_z_takes_x_to_y() -> None:
    quarter = rotation_vector_to_matrix(np.array([0.0, 0.0, np.pi / 2]))
    np.testing.assert_allclose(quarter, [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-15)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(matrix_to_quaternion(quarter), [0, 0, half, half], atol=1e-15)
    np.testing.assert_allclose(matrix_to_columns(quarter), [0, 1, 0, -1, 0, 0], atol=1e-15)


@pytest.mark.parametrize(
    "quaternion",
    # The largest component is x, y, z, w in turn; the others have every sign, so that a wrong sign in one formula shows.
    [
        [0.8, 0.4, -0.4, 0.2],
        [0.8, -0.4, 0.2, -0.4],
        [0.4, 0.8, -0.4, -0.2],
        [-0.4, 0.8, 0.2, 0.4],
        [0.4, -0.4, 0.8, 0.2],
        [-0.2, 0.4, 0.8, -0.4],
        [0.4, -0.4, 0.2, 0.8],
        [-0.2, 0.4, -0.4, 0.8],
    ],
)
def test_each_of_the_four_pivots_gives_the_quaternion_back(quaternion: list[float]) -> None:
    assert np.linalg.norm(quaternion) == pytest.approx(1.0, abs=1e-15)
    back = matrix_to_quaternion(quaternion_to_matrix(np.array(quaternion)))
    assert _same_rotation(back, np.array(quaternion)) < 1e-15
    assert back[int(np.argmax(np.abs(quaternion)))] > 0


@settings(max_examples=60, deadline=None)
@given(vectors)
def test_a_quaternion_and_its_negative_have_the_same_columns(vector: NDArray[np.float64]) -> None:
    quaternion = Rotation.from_rotvec(vector).as_quat()
    columns = matrix_to_columns(quaternion_to_matrix(quaternion))
    assert matrix_to_columns(quaternion_to_matrix(-quaternion)).tobytes() == columns.tobytes()


def test_a_quaternion_is_normalised_before_it_is_used() -> None:
    quaternion = np.array([0.4, -0.4, 0.2, 0.8])
    np.testing.assert_allclose(quaternion_to_matrix(quaternion * 7.0), quaternion_to_matrix(quaternion), atol=1e-15)


@pytest.mark.parametrize("quaternion", [[0.0] * 4, [1e-7, 0, 0, 0], [np.nan, 0, 0, 1], [np.inf, 0, 0, 1], [1e200, 0, 0, 1]])
@pytest.mark.filterwarnings("ignore:overflow")
def test_what_is_no_rotation_is_refused(quaternion: list[float]) -> None:
    with pytest.raises(ValueError, match="not a rotation"):
        quaternion_to_matrix(np.array(quaternion))


def test_noisy_columns_are_made_orthonormal_and_the_first_keeps_its_direction() -> None:
    matrix = columns_to_matrix(np.array([2.0, 0.0, 0.0, 0.3, 4.0, 0.0]))
    np.testing.assert_allclose(matrix, np.eye(3), atol=1e-15)
    noisy = columns_to_matrix(np.array([0.9, 0.1, -0.2, 0.1, 1.1, 0.3]))
    np.testing.assert_allclose(noisy.T @ noisy, np.eye(3), atol=1e-15)
    assert np.linalg.det(noisy) == pytest.approx(1.0)


def test_columns_are_a_copy_and_not_a_window_onto_the_matrix() -> None:
    matrix = np.eye(3)
    columns = matrix_to_columns(matrix)
    matrix[0, 0] = 7.0
    assert columns.tolist() == [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
