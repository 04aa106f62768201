# SPDX-License-Identifier: Apache-2.0
"""Operational-space control of robot arms in MuJoCo: many physics steps in one compiled call.

O. Khatib, "A unified approach for motion and force control of robot manipulators: the operational space formulation",
IEEE Journal of Robotics and Automation 3(1), 1987. With joints q, hand pose x, Jacobian J, mass matrix M(q) (there A):

    Λ⁻¹ = J M⁻¹ Jᵀ                  inverse of the hand's inertia
    F   = Λ (kp e - kd ẋ)           e: from the hand to its goal
    τ   = Jᵀ F + Nᵀ τ₀ + h          h: gravity, Coriolis and centrifugal torques
    Nᵀ  = I - Jᵀ Λ J M⁻¹            takes from τ₀ what would accelerate the hand
    τ₀  = M (kp₀ (q₀ - q) - kd₀ q̇)  draws the arm to a posture q₀

As in robosuite 1.5, F is decoupled: translation and rotation each have a Λ of their own, made from their three rows of
J alone. The null space has the whole Λ.
"""

from pathlib import Path
from typing import NamedTuple

import llvmlite.binding
import mujoco
import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from otpr_policy.spec import Array

Indices = NDArray[np.int64]

POSTURE_STIFFNESS = 10.0  # kp₀ [1/s²]
POSTURE_DAMPING = 2.0 * np.sqrt(POSTURE_STIFFNESS)  # kd₀ [1/s], critical
SINGULAR = 1e-14  # a pivot below this part of its diagonal element is rounding

# MuJoCo's functions by name, not by address, so that the compiled code can be kept on disk from one process to the next.
# A fatal error of MuJoCo in here ends the process (from Python it would be an exception).
_LIBRARY = next(Path(mujoco.__file__).parent.glob("libmujoco*"), None)
if _LIBRARY is None:
    raise ImportError("there is no libmujoco in the package mujoco")
llvmlite.binding.load_library_permanently(str(_LIBRARY))
_POINTER = types.intp
_mj_step1 = types.ExternalFunction("mj_step1", types.void(_POINTER, _POINTER))
_mj_step2 = types.ExternalFunction("mj_step2", types.void(_POINTER, _POINTER))
_mj_kinematics = types.ExternalFunction("mj_kinematics", types.void(_POINTER, _POINTER))
_mj_jacSite = types.ExternalFunction("mj_jacSite", types.void(_POINTER, _POINTER, _POINTER, _POINTER, types.intc))
_mj_fullM = types.ExternalFunction("mj_fullM", types.void(_POINTER, _POINTER, _POINTER))


class Simulation(NamedTuple):
    """Addresses of MuJoCo's model and data, and views of the fields that the controller reads and writes."""

    model: int
    data: int
    qpos: Array  # (nq,)
    qvel: Array  # (nv,)
    bias: Array  # (nv,) h [Nm]
    inertia: Array  # (nM,) the mass matrix, sparse
    site_position: Array  # (nsite, 3) [m], world
    site_rotation: Array  # (nsite, 9), world
    ctrl: Array  # (nu,)
    ctrl_range: Array  # (nu, 2)


class Arm(NamedTuple):
    """One arm of n joints on a base that does not move. The last four are the commands, which a user changes in place."""

    site: int  # the point that is moved
    origin_position: Array  # (3,) [m], world, of the frame that goals are in
    origin_rotation: Array  # (3, 3), world
    joints: Indices  # (n,) in qpos
    dofs: Indices  # (n,) in qvel
    motors: Indices  # (n,) in ctrl
    stiffness: Array  # (6,) kp [1/s²], translation then rotation
    damping: Array  # (6,) kd [1/s]
    finger_motors: Indices  # (m,) in ctrl
    goal_position: Array  # (3,) [m]
    goal_rotation: Array  # (3, 3)
    posture: Array  # (n,) q₀ [rad]
    finger_ctrl: Array  # (m,) [m]


@numba.njit(cache=True, nogil=True)
def advance(simulation: Simulation, arms: tuple[Arm, ...], substeps: int) -> None:
    """Moves time on by ``substeps`` physics steps, with new torques in each; leaves poses that belong to the final positions."""
    for _ in range(substeps):
        _mj_step1(simulation.model, simulation.data)
        control(simulation, arms)
        _mj_step2(simulation.model, simulation.data)
    # mj_step2 leaves the poses of the state before it.
    _mj_kinematics(simulation.model, simulation.data)


@numba.njit(cache=True, nogil=True)
def control(simulation: Simulation, arms: tuple[Arm, ...]) -> None:
    """Sets all arms' torques and finger commands for a state that mj_step1 has been called on."""
    nv = simulation.qvel.size
    mass, jacobian = np.empty((nv, nv)), np.empty((6, nv))
    _mj_fullM(simulation.model, mass.ctypes.data, simulation.inertia.ctypes.data)
    for arm in arms:
        _mj_jacSite(simulation.model, simulation.data, jacobian.ctypes.data, jacobian[3:].ctypes.data, arm.site)
        _set_ctrl(simulation, arm.motors, arm_torque(simulation, arm, mass, jacobian))
        _set_ctrl(simulation, arm.finger_motors, arm.finger_ctrl)


@numba.njit(cache=True, nogil=True)
def arm_torque(simulation: Simulation, arm: Arm, mass: Array, jacobian: Array) -> Array:
    """Torques τ (n,) [Nm] of one arm, from the whole model's mass matrix (nv, nv) and the hand's Jacobian (6, nv)."""
    n = arm.dofs.size
    M, J = np.empty((n, n)), np.empty((6, n))
    h, dq, ddq0 = np.empty(n), np.empty(n), np.empty(n)
    for i in range(n):
        dof = arm.dofs[i]
        for j in range(n):
            M[i, j] = mass[dof, arm.dofs[j]]
        for k in range(6):
            J[k, i] = jacobian[k, dof]
        h[i] = simulation.bias[dof]
        dq[i] = simulation.qvel[dof]
        ddq0[i] = POSTURE_STIFFNESS * (arm.posture[i] - simulation.qpos[arm.joints[i]]) - POSTURE_DAMPING * dq[i]

    Y = forward_substitution(cholesky(M)[0], J)  # M = L Lᵀ, Y = J L⁻ᵀ, so that J M⁻¹ Jᵀ = Y Yᵀ
    inverse_lambda = Y @ Y.T
    ddx = arm.stiffness * _pose_error(simulation, arm) - arm.damping * (J @ dq)
    force = -solve(inverse_lambda[:, :], J @ ddq0)  # -Λ J M⁻¹ τ₀, since M⁻¹ τ₀ = q̈₀
    force[:3] += solve(inverse_lambda[:3, :3], ddx[:3])
    force[3:] += solve(inverse_lambda[3:, 3:], ddx[3:])
    return J.T @ force + M @ ddq0 + h


@numba.njit(cache=True, nogil=True)
def _pose_error(simulation: Simulation, arm: Arm) -> Array:
    """From the hand to its goal, (6,): way [m], then half the sum of the axes' cross products, for small angles the rotation vector."""
    R, R0 = simulation.site_rotation[arm.site].copy().reshape(3, 3), arm.origin_rotation
    error = np.empty(6)
    error[:3] = arm.origin_position + R0 @ arm.goal_position - simulation.site_position[arm.site]
    goal = R0 @ arm.goal_rotation
    for k in range(3):
        error[3 + k] = 0.0
        for axis in range(3):
            a, b = (k + 1) % 3, (k + 2) % 3
            error[3 + k] += 0.5 * (R[a, axis] * goal[b, axis] - R[b, axis] * goal[a, axis])
    return error


@numba.njit(cache=True, nogil=True)
def cholesky(A: Array) -> tuple[Array, bool]:
    """L of A = L Lᵀ for a symmetric positive definite A (n, n), and whether A is that, beyond rounding."""
    n = A.shape[0]
    L = np.zeros((n, n))
    for j in range(n):
        pivot = A[j, j]
        for k in range(j):
            pivot -= L[j, k] * L[j, k]
        if not pivot > SINGULAR * A[j, j]:
            return L, False
        L[j, j] = np.sqrt(pivot)
        for i in range(j + 1, n):
            L[i, j] = A[i, j]
            for k in range(j):
                L[i, j] -= L[i, k] * L[j, k]
            L[i, j] /= L[j, j]
    return L, True


@numba.njit(cache=True, nogil=True)
def forward_substitution(L: Array, B: Array) -> Array:
    """B L⁻ᵀ (k, n) for a lower triangular L (n, n) and B (k, n): each row of B is a right-hand side."""
    X = B.copy()
    for row in range(B.shape[0]):
        for i in range(L.shape[0]):
            for k in range(i):
                X[row, i] -= L[i, k] * X[row, k]
            X[row, i] /= L[i, i]
    return X


@numba.njit(cache=True, nogil=True)
def solve(A: Array, b: Array) -> Array:
    """A⁻¹ b for a symmetric positive semidefinite A (n, n) and b (n,); where A is singular, A⁺ b."""
    L, regular = cholesky(A)
    if not regular:
        return np.linalg.pinv(A) @ b
    x = b.copy()
    for i in range(x.size):
        for k in range(i):
            x[i] -= L[i, k] * x[k]
        x[i] /= L[i, i]
    for i in range(x.size - 1, -1, -1):
        for k in range(i + 1, x.size):
            x[i] -= L[k, i] * x[k]
        x[i] /= L[i, i]
    return x


@numba.njit(cache=True, nogil=True)
def _set_ctrl(simulation: Simulation, motors: Indices, wanted: Array) -> None:
    for i in range(motors.size):
        low, high = simulation.ctrl_range[motors[i]]
        simulation.ctrl[motors[i]] = min(max(wanted[i], low), high)
