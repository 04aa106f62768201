# SPDX-License-Identifier: Apache-2.0
"""Moving a robosuite environment on in time, under operational-space control of its arms, in one of two ways.

``stock`` calls robosuite's own controllers, in Python, 500 times per simulated second. ``compiled`` computes the same
torques in otpr_sim.osc. Stock is the oracle: compiled stepping is offered for the versions that it has been compared
with, for controllers with the settings that it implements, and after its torques have agreed with robosuite's own.
"""

import logging
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from otpr_policy.rotation import rotation_vector_to_matrix
from otpr_policy.spec import Array
from otpr_sim.env import Stepping

ARM = "right"  # robosuite's name for the arm of a robot that has one
GRIPPER = f"{ARM}_gripper"
TESTED_VERSIONS = {"robosuite": "1.5.2", "mujoco": "3.9.0"}
# What osc.py implements of robosuite's controllers.
ARM_SETTINGS = {
    "name": "OSC_POSE",
    "input_type": "delta",
    "input_ref_frame": "base",
    "impedance_mode": "fixed",
    "uncoupling": True,
    "use_ori": True,
    "lite_physics": True,
    "interpolator_pos": None,
    "interpolator_ori": None,
}
GRIPPER_SETTINGS = {"use_action_scaling": True, "interpolator": None}
PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION
TORQUE_TOLERANCE = 1e-6  # Nm; robosuite's pseudo-inverses and our Cholesky factors differ by about 1e-12

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArmCommand:
    """What one arm and its gripper are told. Held until changed; the arrays are changed in place.

    Args:
        goal_position: of the hand in the frame of the arm's base (3,) [m].
        goal_rotation: of the hand in that frame (3, 3).
        posture: joint positions that the arm is drawn to where the goal leaves it free (n,) [rad].
        finger_ctrl: positions of robosuite's finger actuators (m,) [m].
    """

    goal_position: Array
    goal_rotation: Array
    posture: Array
    finger_ctrl: Array


class BoundArm:
    """Where one robosuite arm lies in MuJoCo's arrays, looked up by name once.

    Attributes:
        site: the point that the controller moves.
        origin_position, origin_rotation: of the controller's frame in the world, (3,) and (3, 3); it never moves.
        joints, dofs, motors: indices in qpos, qvel and ctrl.
        finger_joints, finger_dofs, finger_motors: the same of the gripper.
        command: what the arm is told.
    """

    def __init__(self, robot: Any, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        self.robot = robot
        controller, gripper = self.controllers()
        self.site: int = model.site(controller.ref_name).id
        origin = _origin_site(robot, model)
        mujoco.mj_kinematics(model, data)
        self.origin_position = data.site_xpos[origin].copy()
        self.origin_rotation = data.site_xmat[origin].reshape(3, 3).copy()
        self.joints, self.dofs = _indices(controller.qpos_index), _indices(controller.qvel_index)
        self.finger_joints, self.finger_dofs = _indices(gripper.qpos_index), _indices(gripper.qvel_index)
        self.motors, self.finger_motors = (_indices(robot._ref_actuators_indexes_dict[part]) for part in (ARM, GRIPPER))
        self.command = ArmCommand(np.zeros(3), np.eye(3), np.zeros(self.joints.size), np.zeros(self.finger_motors.size))

    def controllers(self) -> tuple[Any, Any]:
        """The arm's and the gripper's controller. robosuite builds new ones at every reset."""
        parts = self.robot.composite_controller.part_controllers
        return parts[ARM], parts[GRIPPER]


class Stepper(ABC):
    """A robosuite environment's arms and the way its time moves on.

    The environment must keep its simulation (``hard_reset=False``). robosuite's own goals have no effect; call
    :meth:`start_episode` after each of its resets.

    Attributes:
        stepping: which way it is.
        arms: in the order of robosuite's robots.
    """

    stepping: Stepping

    def __init__(self, env: Any) -> None:
        self._model: mujoco.MjModel = env.sim.model._model
        self._data: mujoco.MjData = env.sim.data._data
        self.arms = tuple(BoundArm(robot, self._model, self._data) for robot in env.robots)
        self.start_episode()

    def start_episode(self) -> None:
        """Commands as robosuite's are after a reset: hands stay, arms are drawn to the present posture, fingers half open."""
        mujoco.mj_kinematics(self._model, self._data)
        for arm in self.arms:
            position, rotation = self.hand_pose(arm)
            arm.command.goal_position[:] = position
            arm.command.goal_rotation[:] = rotation
            arm.command.posture[:] = self._data.qpos[arm.joints]
            arm.command.finger_ctrl[:] = self._model.actuator_ctrlrange[arm.finger_motors].mean(axis=1)

    def hand_pose(self, arm: BoundArm) -> tuple[Array, Array]:
        """Position (3,) [m] and rotation (3, 3) of the controlled point in the frame of the arm's base."""
        position = self._data.site_xpos[arm.site] - arm.origin_position
        return arm.origin_rotation.T @ position, arm.origin_rotation.T @ self._data.site_xmat[arm.site].reshape(3, 3)

    @abstractmethod
    def advance(self, substeps: int) -> None:
        """Moves time on by physics steps under the arms' commands; leaves poses that belong to the final positions."""

    @abstractmethod
    def control(self) -> None:
        """Writes the actuators' inputs for the commands and a state on which mj_step1 has been called."""


class StockStepper(Stepper):
    """Torques from robosuite's controllers."""

    stepping = Stepping.STOCK

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self._passive_actions = [np.zeros(arm.robot.action_dim) for arm in self.arms]

    def advance(self, substeps: int) -> None:
        """See Stepper."""
        for _ in range(substeps):
            mujoco.mj_step1(self._model, self._data)
            self.control()
            mujoco.mj_step2(self._model, self._data)
        mujoco.mj_kinematics(self._model, self._data)

    def control(self) -> None:
        """See Stepper."""
        for arm, passive in zip(self.arms, self._passive_actions, strict=True):
            controller, gripper = arm.controllers()
            controller.goal_pos, controller.goal_ori = arm.command.goal_position, arm.command.goal_rotation
            controller.initial_joint = arm.command.posture
            low, high = gripper.actuator_min, gripper.actuator_max
            gripper.goal_qvel = (2 * arm.command.finger_ctrl - (high + low)) / (high - low)
            # Reads the simulation anew: the first torque of an episode would be made from what was read before the fingers were placed.
            controller.new_update = gripper.new_update = True
            arm.robot.control(passive, policy_step=False)


class CompiledStepper(Stepper):
    """Torques from otpr_sim.osc."""

    stepping = Stepping.COMPILED

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        from otpr_sim import osc  # not on top: numba, or a place for what it compiles, may be missing

        model, data = self._model, self._data
        self._advance, self._control = osc.advance, osc.control
        self._simulation = osc.Simulation(
            model=model._address,
            data=data._address,
            qpos=data.qpos,
            qvel=data.qvel,
            bias=data.qfrc_bias,
            inertia=data.qM,
            site_position=data.site_xpos,
            site_rotation=data.site_xmat,
            ctrl=data.ctrl,
            ctrl_range=model.actuator_ctrlrange,
        )
        self._osc_arms = tuple(osc.Arm(**_osc_arm(arm)) for arm in self.arms)
        self.advance(0)  # compiles, the first time ever for about ten seconds, or loads: not in the first control period

    def advance(self, substeps: int) -> None:
        """See Stepper."""
        self._advance(self._simulation, self._osc_arms, substeps)

    def control(self) -> None:
        """See Stepper."""
        self._control(self._simulation, self._osc_arms)


def make_stepper(env: Any, stepping: Stepping) -> Stepper:
    """A stepper of the wanted kind, or, with a warning that says why, a stock one where compiled stepping is not proved."""
    if stepping is Stepping.STOCK:
        return StockStepper(env)
    obstacle = _version_obstacle() or _settings_obstacle(env)
    if obstacle is None:
        try:
            compiled = CompiledStepper(env)
            obstacle = _torque_obstacle(compiled, StockStepper(env))
        except (ImportError, OSError, RuntimeError) as error:  # no compiler, no library, no place for compiled code
            obstacle = f"it does not start: {error}"
    if obstacle is None:
        return compiled
    _log.warning("compiled stepping is off, robosuite's own and slower one is used: %s", obstacle)
    return StockStepper(env)


def _version_obstacle() -> str | None:
    found = {name: str(sys.modules[name].__version__) for name in TESTED_VERSIONS}
    wrong = [f"{name} is {found[name]}, tested is {tested}" for name, tested in TESTED_VERSIONS.items() if found[name] != tested]
    return ", ".join(wrong) or None


def _settings_obstacle(env: Any) -> str | None:
    if env.hard_reset:
        return "hard_reset is on, which replaces the simulation"
    for robot in env.robots:
        parts = dict(robot.composite_controller.part_controllers)
        if robot.composite_controller.name != "BASIC" or set(parts) != {ARM, GRIPPER}:
            return f"robot {robot.name} has controllers {robot.composite_controller.name} of {', '.join(parts)}"
        for controller, settings in ((parts[ARM], ARM_SETTINGS), (parts[GRIPPER], GRIPPER_SETTINGS)):
            for name, value in settings.items():
                if getattr(controller, name, "missing") != value:
                    return f"controller {controller.part_name} has {name} {getattr(controller, name, 'missing')!r}, not {value!r}"
        model = env.sim.model._model
        if model.body_weldid[model.site_bodyid[_origin_site(robot, model)]] != 0:
            return f"robot {robot.name} has a base that moves"
    return None


def _torque_obstacle(compiled: Stepper, stock: Stepper) -> str | None:
    """Compares what both write to the actuators in a moving state away from the goal; the simulation's state is put back."""
    model, data = compiled._model, compiled._data
    before = np.empty(mujoco.mj_stateSize(model, PHYSICS))
    mujoco.mj_getState(model, data, before, PHYSICS)
    data.qvel[:] = np.linspace(-0.1, 0.1, model.nv)
    mujoco.mj_step1(model, data)
    torques = []
    for stepper in (compiled, stock):
        for arm in stepper.arms:
            arm.command.goal_position[:] += (0.01, -0.02, 0.03)
            arm.command.goal_rotation[:] = rotation_vector_to_matrix(np.array([0.1, -0.2, 0.05])) @ arm.command.goal_rotation
            arm.command.posture[:] += 0.05
        stepper.control()
        torques.append(data.ctrl.copy())
    mujoco.mj_setState(model, data, before, PHYSICS)
    mujoco.mj_forward(model, data)
    mujoco.mj_setState(model, data, before, PHYSICS)
    compiled.start_episode()
    difference = float(np.abs(torques[0] - torques[1]).max())
    return None if difference < TORQUE_TOLERANCE else f"its torques differ from robosuite's by {difference:.3g} Nm"


def _origin_site(robot: Any, model: mujoco.MjModel) -> int:
    """The site whose frame robosuite's controller has its goals in."""
    return int(model.site(f"{robot.robot_model.naming_prefix}{ARM}_center").id)


def _osc_arm(arm: BoundArm) -> dict[str, Any]:
    """Fields of osc.Arm. The command's arrays are shared, not copied."""
    controller, _ = arm.controllers()
    return {
        "site": arm.site,
        "origin_position": arm.origin_position,
        "origin_rotation": arm.origin_rotation,
        "joints": arm.joints,
        "dofs": arm.dofs,
        "motors": arm.motors,
        "stiffness": np.array(controller.kp, dtype=np.float64),
        "damping": np.array(controller.kd, dtype=np.float64),
        "finger_motors": arm.finger_motors,
        **vars(arm.command),
    }


def _indices(numbers: Any) -> NDArray[np.int64]:
    return np.array(numbers, dtype=np.int64)
