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
from typing import Any, NamedTuple

import llvmlite.binding
import mujoco
import numba
import numpy as np
from numba import types
from numba.core.typing import signature
from numpy.typing import NDArray

from otpr_policy.spec import Array

Indices = NDArray[np.int64]

POSTURE_STIFFNESS = 10.0  # kp₀ [1/s²]
POSTURE_DAMPING = 2.0 * np.sqrt(POSTURE_STIFFNESS)  # kd₀ [1/s], critical
SINGULAR = 1e-14  # a pivot below this part of its diagonal element is rounding

# The library that the package mujoco has loaded. By the names of its functions, not by their addresses, compiled code can be
# kept on disk from one process to the next. A fatal error of MuJoCo in here ends the process; from Python it is an exception.
_LIBRARY = next(Path(mujoco.__file__).parent.glob("libmujoco*"), None)
if _LIBRARY is None:
    raise ImportError("there is no libmujoco in the package mujoco")
llvmlite.binding.load_library_permanently(str(_LIBRARY))


compiled = numba.njit(cache=True, nogil=True)


def _mujoco_function(name: str, *arguments: types.Type) -> Any:
    return types.ExternalFunction(name, signature(types.void, *arguments))


_mj_step1 = _mujoco_function("mj_step1", types.intp, types.intp)
_mj_step2 = _mujoco_function("mj_step2", types.intp, types.intp)
_mj_kinematics = _mujoco_function("mj_kinematics", types.intp, types.intp)
_mj_jacSite = _mujoco_function("mj_jacSite", types.intp, types.intp, types.intp, types.intp, types.intc)
_mj_fullM = _mujoco_function("mj_fullM", types.intp, types.intp, types.intp)


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


@compiled
def advance(simulation: Simulation, arms: tuple[Arm, ...], substeps: int) -> None:
    """Moves time on by ``substeps`` physics steps, with new torques in each; leaves poses that belong to the final positions."""
    for _ in range(substeps):
        _mj_step1(simulation.model, simulation.data)
        control(simulation, arms)
        _mj_step2(simulation.model, simulation.data)
    # mj_step2 leaves the poses of the state before it.
    _mj_kinematics(simulation.model, simulation.data)


@compiled
def control(simulation: Simulation, arms: tuple[Arm, ...]) -> None:
    """Sets all arms' torques and finger commands for a state that mj_step1 has been called on."""
    nv = simulation.qvel.size
    mass, jacobian = np.empty((nv, nv)), np.empty((6, nv))
    _mj_fullM(simulation.model, mass.ctypes.data, simulation.inertia.ctypes.data)
    for arm in arms:
        _mj_jacSite(simulation.model, simulation.data, jacobian.ctypes.data, jacobian[3:].ctypes.data, arm.site)
        _set(simulation.ctrl, simulation.ctrl_range, arm.motors, arm_torque(simulation, arm, mass, jacobian))
        _set(simulation.ctrl, simulation.ctrl_range, arm.finger_motors, arm.finger_ctrl)


@compiled
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

    L, definite = cholesky(M)
    if not definite:
        raise ValueError("the arm's mass matrix is not positive definite")
    inverse_lambda = gram(forward_substitution(L, J))  # M = L Lᵀ, so J M⁻¹ Jᵀ = (J L⁻ᵀ)(J L⁻ᵀ)ᵀ
    position, R = simulation.site_position[arm.site], simulation.site_rotation[arm.site].reshape(3, 3)
    goal_position = arm.origin_position + times(arm.origin_rotation, arm.goal_position)
    ddx = pose_error(position, R, goal_position, product(arm.origin_rotation, arm.goal_rotation))
    dx = times(J, dq)
    for k in range(6):
        ddx[k] = arm.stiffness[k] * ddx[k] - arm.damping[k] * dx[k]
    force = solve(inverse_lambda[:3, :3], ddx[:3])
    moment = solve(inverse_lambda[3:, 3:], ddx[3:])
    posture = solve(inverse_lambda[:, :], times(J, ddq0))  # Λ J M⁻¹ τ₀, where M⁻¹ τ₀ = q̈₀
    F = np.empty(6)
    for k in range(3):
        F[k], F[3 + k] = force[k] - posture[k], moment[k] - posture[3 + k]
    torque, posture_torque = times(J.T, F), times(M, ddq0)
    for i in range(n):
        torque[i] += posture_torque[i] + h[i]
    return torque


@compiled
def pose_error(position: Array, R: Array, goal_position: Array, goal: Array) -> Array:
    """From one pose to another (6,): way [m], then ½ Σ rᵢ × gᵢ over the axes of both, which is the turn [rad] when that is small."""
    error = np.zeros(6)
    for k in range(3):
        error[k] = goal_position[k] - position[k]
    for i in range(3):
        error[3] += 0.5 * (R[1, i] * goal[2, i] - R[2, i] * goal[1, i])
        error[4] += 0.5 * (R[2, i] * goal[0, i] - R[0, i] * goal[2, i])
        error[5] += 0.5 * (R[0, i] * goal[1, i] - R[1, i] * goal[0, i])
    return error


# For matrices this small plain loops are faster than numpy's calls of BLAS and LAPACK, and sooner compiled.


@compiled
def times(A: Array, x: Array) -> Array:
    """A x (m,) for A (m, n) and x (n,)."""
    y = np.empty(A.shape[0])
    for i in range(A.shape[0]):
        total = 0.0
        for k in range(A.shape[1]):
            total += A[i, k] * x[k]
        y[i] = total
    return y


@compiled
def product(A: Array, B: Array) -> Array:
    """A B (m, n) for A (m, k) and B (k, n)."""
    C = np.zeros((A.shape[0], B.shape[1]))
    for i in range(A.shape[0]):
        for k in range(A.shape[1]):
            for j in range(B.shape[1]):
                C[i, j] += A[i, k] * B[k, j]
    return C


@compiled
def gram(Y: Array) -> Array:
    """Y Yᵀ (m, m) for Y (m, n)."""
    G = np.empty((Y.shape[0], Y.shape[0]))
    for i in range(Y.shape[0]):
        for j in range(i + 1):
            total = 0.0
            for k in range(Y.shape[1]):
                total += Y[i, k] * Y[j, k]
            G[i, j] = G[j, i] = total
    return G


@compiled
def cholesky(A: Array) -> tuple[Array, bool]:
    """Lower triangular L of A = L Lᵀ for a symmetric positive definite A (n, n), and whether A is that, beyond rounding."""
    n = A.shape[0]
    L = np.empty((n, n))  # of which the upper triangle is never read
    for j in range(n):
        pivot = A[j, j]
        for k in range(j):
            pivot -= L[j, k] * L[j, k]
        if not pivot > SINGULAR * A[j, j]:
            return L, False
        L[j, j] = np.sqrt(pivot)
        for i in range(j + 1, n):
            rest = A[i, j]
            for k in range(j):
                rest -= L[i, k] * L[j, k]
            L[i, j] = rest / L[j, j]
    return L, True


@compiled
def forward_substitution(L: Array, B: Array) -> Array:
    """B L⁻ᵀ (m, n) for a lower triangular L (n, n) and B (m, n): each row y of it solves L y = b."""
    Y = np.empty(B.shape)
    for row in range(B.shape[0]):
        for i in range(L.shape[0]):
            rest = B[row, i]
            for k in range(i):
                rest -= L[i, k] * Y[row, k]
            Y[row, i] = rest / L[i, i]
    return Y


@compiled
def solve(A: Array, b: Array) -> Array:
    """A⁻¹ b for a symmetric positive semidefinite A (n, n) and b (n,); A⁺ b where A is singular."""
    L, regular = cholesky(A)
    if not regular:
        return np.linalg.pinv(A) @ b
    n = b.size
    x = np.empty(n)
    for i in range(n):
        rest = b[i]
        for k in range(i):
            rest -= L[i, k] * x[k]
        x[i] = rest / L[i, i]
    for i in range(n - 1, -1, -1):
        rest = x[i]
        for k in range(i + 1, n):
            rest -= L[k, i] * x[k]
        x[i] = rest / L[i, i]
    return x


@compiled
def _set(ctrl: Array, ctrl_range: Array, motors: Indices, wanted: Array) -> None:
    for i in range(motors.size):
        motor = motors[i]
        ctrl[motor] = min(max(wanted[i], ctrl_range[motor, 0]), ctrl_range[motor, 1])
