# SPDX-License-Identifier: Apache-2.0
"""Rotations as the robot's messages, the policy and the controller need them.

Quaternions are (x, y, z, w) as in ROS messages. A policy reads orientation as the first two columns of the rotation
matrix (Zhou et al. 2019, "On the Continuity of Rotation Representations in Neural Networks"): unlike a quaternion it
has no sign that can flip between two messages of the same pose.

Single numbers are Python's floats here, which compute the same as numpy's and faster.
"""

from math import isfinite, sqrt

import numpy as np
from numpy.typing import NDArray

from otpr_policy.spec import Array

_IDENTITY = np.eye(3)


def quaternion_to_matrix(quaternion: NDArray[np.float64]) -> Array:
    """Quaternion (4,), normalised here, to rotation matrix (3, 3). Raises ValueError on a zero or non-finite quaternion."""
    quaternion = np.asarray(quaternion, dtype=np.float64)
    norm = sqrt(quaternion @ quaternion)
    if not isfinite(norm) or norm < 1e-6:
        raise ValueError(f"not a rotation: quaternion {quaternion.tolist()}")
    x, y, z, w = (quaternion / norm).tolist()
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def matrix_to_quaternion(matrix: NDArray[np.float64]) -> Array:
    """Rotation matrix (3, 3) to unit quaternion (4,). Takes the largest of the four components as pivot, so it is stable everywhere."""
    m = np.asarray(matrix, dtype=np.float64).tolist()
    trace = m[0][0] + m[1][1] + m[2][2]
    squares = [2 * m[0][0] - trace, 2 * m[1][1] - trace, 2 * m[2][2] - trace, trace]  # 4q_i^2 - 1
    pivot = squares.index(max(squares))
    if pivot == 3:
        q = np.array([m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1], 1 + trace])
    else:
        i, j, k = pivot, (pivot + 1) % 3, (pivot + 2) % 3
        q = np.empty(4)
        q[i] = 1 + squares[i]
        q[j] = m[j][i] + m[i][j]
        q[k] = m[k][i] + m[i][k]
        q[3] = m[k][j] - m[j][k]
    return q / sqrt(q @ q)


def rotation_vector_to_matrix(vector: NDArray[np.float64]) -> Array:
    """Axis times angle [rad] (3,) to rotation matrix (3, 3), by Rodrigues' formula."""
    vector = np.asarray(vector, dtype=np.float64)
    angle = sqrt(vector @ vector)
    x, y, z = vector.tolist()
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    if angle < 1e-6:  # second-order series; the closed form divides by the angle
        return _IDENTITY + cross + 0.5 * cross @ cross
    return _IDENTITY + np.sin(angle) / angle * cross + (1 - np.cos(angle)) / angle**2 * cross @ cross


def matrix_to_rotation_vector(matrix: NDArray[np.float64]) -> Array:
    """Rotation matrix (3, 3) to axis times angle [rad] (3,), angle at most π; the inverse of :func:`rotation_vector_to_matrix`."""
    x, y, z, w = matrix_to_quaternion(matrix).tolist()
    sine = sqrt(x * x + y * y + z * z)  # of half the angle
    if sine < 1e-9:  # there the half angle and its sine are the same number
        return 2.0 * np.copysign(1.0, w) * np.array([x, y, z])
    angle = 2.0 * np.arctan2(np.copysign(sine, w), abs(w))  # from -π to π: q and -q are the same rotation
    return angle / sine * np.array([x, y, z])


def matrix_to_columns(matrix: NDArray[np.float64]) -> Array:
    """Rotation matrix (3, 3) to its first two columns, one after the other (6,)."""
    return np.asarray(matrix, dtype=np.float64)[:, :2].T.reshape(6).copy()


def columns_to_matrix(columns: NDArray[np.float64]) -> Array:
    """First two columns (6,), orthonormalised here by Gram-Schmidt, to rotation matrix (3, 3)."""
    first, second = np.asarray(columns, dtype=np.float64).reshape(2, 3)
    first = first / sqrt(first @ first)
    second = second - (first @ second) * first
    second = second / sqrt(second @ second)
    (x1, y1, z1), (x2, y2, z2) = first.tolist(), second.tolist()
    return np.array([[x1, x2, y1 * z2 - z1 * y2], [y1, y2, z1 * x2 - x1 * z2], [z1, z2, x1 * y2 - y1 * x2]])
