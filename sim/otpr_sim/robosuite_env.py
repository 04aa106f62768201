# SPDX-License-Identifier: Apache-2.0
"""Tasks on robosuite: a Panda arm under operational-space control. The only file that imports robosuite.

The physics is robosuite's own, whichever way it is stepped. What differs is the border: seeded episodes, named fields
in the robot's base frame, an absolute Cartesian target instead of a normalised delta, and time that advances in single
physics steps.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otpr_policy.command import CartesianTarget
from otpr_policy.errors import SpecError
from otpr_policy.rotation import matrix_to_columns, matrix_to_quaternion, quaternion_to_matrix
from otpr_policy.spec import Array
from otpr_sim.env import Pose, Stepping, TaskSpec
from otpr_sim.live_view import LiveView
from otpr_sim.scene import Scene
from otpr_sim.shift import ShiftableEnv
from otpr_sim.stepping import PHYSICS, make_stepper
from otpr_sim.tasks.panda import FINGER_RANGE, FINGER_SLEW, FINGER_START

_EXPECTED_MESSAGES = (
    "No private macro file found",
    "It is recommended to use a private macro file",
    "To setup, run:",
    "Could not import robosuite_models",
    "Could not load the mink-based whole-body IK",
    "Loading controller configuration from",
)


def _is_unexpected(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_EXPECTED_MESSAGES)


@contextmanager
def _mujoco_gl_kept() -> Iterator[None]:
    """Undoes robosuite's change of MUJOCO_GL, which makes `import mujoco` fail in child processes where there is no EGL."""
    before = os.environ.get("MUJOCO_GL")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("MUJOCO_GL", None)
        else:
            os.environ["MUJOCO_GL"] = before


# robosuite speaks to the terminal while it is imported, about add-ons that we do not use.
logging.getLogger("robosuite_logs").addFilter(_is_unexpected)
with _mujoco_gl_kept():
    import mujoco
    import robosuite

FINGER_SIGNS = np.array([1.0, -1.0])  # robosuite's second finger joint runs from -0.04 to 0 m; the real hand's from 0 to 0.04 m
BOX_DENSITY = 1000.0  # kg/m^3, of robosuite's boxes


class RobosuiteEnv(ShiftableEnv):
    """A robosuite scene with one Panda arm and its default OSC_POSE controller.

    Args:
        spec: the task; its object fields are named ``<object>_position`` and, where it has them, ``<object>_rotation``.
        scene: the robosuite environment and what the task is about in it.
        stepping: what computes the torques; stock, with a warning, where compiled is not possible.

    Attributes:
        stepping: what does compute the torques.
    """

    frame_id = "panda_link0"
    joint_names = (*(f"panda_joint{i}" for i in range(1, 8)), "panda_finger_joint1", "panda_finger_joint2")

    def __init__(self, spec: TaskSpec, scene: Scene, stepping: Stepping = Stepping.COMPILED) -> None:
        self.spec = spec
        self._scene = scene
        self._env: Any = robosuite.make(
            scene.name,
            robots="Panda",
            control_freq=spec.control_rate_hz,
            ignore_done=True,
            hard_reset=False,
            use_camera_obs=False,
            has_renderer=False,
            has_offscreen_renderer=False,
            renderer="mujoco",
            seed=0,
        )
        self._model: mujoco.MjModel = self._env.sim.model._model
        self._data: mujoco.MjData = self._env.sim.data._data
        self.physics_dt_s = float(self._model.opt.timestep)
        self.substeps_per_step = round(1.0 / (spec.control_rate_hz * self.physics_dt_s))
        model, data = self._model, self._data
        # Views of MuJoCo's own arrays: position (3,) and rotation (3, 3) in the world.
        self._objects = {name: (data.body(body).xpos, data.body(body).xmat.reshape(3, 3)) for name, body in scene.bodies.items()}
        self._objects |= {name: (data.site(site).xpos, data.site(site).xmat.reshape(3, 3)) for name, site in scene.sites.items()}
        self._turned = tuple(name for name in self._objects if f"{name}_rotation" in spec.observation.names)
        self._placed, self._loads = (np.array([model.body(body).id for body in names], np.int64) for names in (scene.placed, scene.loads))
        self._nominal = Nominal(model, self._loads, self._placed)
        self._regions = [StartRegion(sampler) for sampler in _samplers(self._env.placement_initializer) if hasattr(sampler, "x_range")]
        self._mass_scale = self._friction_scale = 1.0
        self._stepper = make_stepper(self._env, stepping)
        self.stepping = self._stepper.stepping
        (self._arm,) = self._stepper.arms
        self._command = self._arm.command
        self._qpos = np.concatenate([self._arm.joints, self._arm.finger_joints])
        self._qvel = np.concatenate([self._arm.dofs, self._arm.finger_dofs])
        self._signs = np.concatenate([np.ones(self._arm.joints.size), FINGER_SIGNS])
        self._renderer: Any = None
        self.reset(0)

    # The episode

    def reset(self, seed: int) -> dict[str, Array]:
        """See TaskEnv. Draws box sizes, robosuite's noise on the arm's joints, and object placement, in this order."""
        rng = np.random.default_rng(seed)
        self._set_box_sizes(np.array([rng.uniform(box.smallest, box.largest, 3) for box in self._scene.boxes]))
        self._env.rng = rng
        for sampler in _samplers(self._env.placement_initializer):
            sampler.rng = rng
        self._env.reset()
        self._data.qacc_warmstart[:] = 0.0
        self._stepper.start_episode()
        self.steps = 0
        self._finger_setpoint = FINGER_START
        self._set_finger_goal()
        self.hold()
        return self.observe()

    def success(self) -> bool:
        """See TaskEnv; robosuite's own rule."""
        return bool(self._env._check_success())

    @property
    def time_s(self) -> float:
        """See TaskEnv."""
        return float(self._data.time)

    @property
    def scene(self) -> Scene:
        """MuJoCo's names of what the task is about."""
        return self._scene

    @property
    def robosuite(self) -> Any:
        """Robosuite's own environment, for what only it knows: its observation layout, its model file, its controller's settings."""
        return self._env

    # The robot

    def set_target(self, target: CartesianTarget) -> None:
        """See TaskEnv. The finger set-point moves towards the target by at most 4 mm per call, as robosuite's does."""
        command = np.concatenate([target.position, target.quaternion, [target.gripper_position]])
        if not np.isfinite(command).all():
            raise SpecError(f"target is not finite: {target}")
        self._command.goal_position[:] = target.position
        self._command.goal_rotation[:] = quaternion_to_matrix(target.quaternion)
        wanted = min(max(float(target.gripper_position), 0.0), FINGER_RANGE)
        self._finger_setpoint += min(max(wanted - self._finger_setpoint, -FINGER_SLEW), FINGER_SLEW)
        self._set_finger_goal()

    def hold(self) -> None:
        """See TaskEnv."""
        pose = self.ee_pose()
        self._command.goal_position[:] = pose.position
        self._command.goal_rotation[:] = quaternion_to_matrix(pose.quaternion)

    def advance(self, substeps: int) -> None:
        """See TaskEnv."""
        self._stepper.advance(substeps)

    def joint_positions(self) -> Array:
        """See TaskEnv."""
        return self._signs * self._data.qpos[self._qpos]

    def joint_velocities(self) -> Array:
        """See TaskEnv."""
        return self._signs * self._data.qvel[self._qvel]

    def ee_pose(self) -> Pose:
        """See TaskEnv; the grip site, between the finger tips."""
        return self._in_base(self._data.site_xpos[self._arm.site], self._data.site_xmat[self._arm.site].reshape(3, 3))

    def object_poses(self) -> dict[str, Pose]:
        """See TaskEnv."""
        return {name: self._in_base(*pose) for name, pose in self._objects.items()}

    def observe(self) -> dict[str, Array]:
        """See TaskEnv."""
        ee = self.ee_pose()
        fields = {
            "ee_position": ee.position,
            "ee_rotation": matrix_to_columns(quaternion_to_matrix(ee.quaternion)),
            "gripper_position": self.joint_positions()[-2:],
        }
        for name, (position, rotation) in self._objects.items():
            fields[f"{name}_position"] = self._position_in_base(position)
            if name in self._turned:
                quaternion = self._in_base(position, rotation).quaternion
                fields[f"{name}_rotation"] = matrix_to_columns(quaternion_to_matrix(quaternion))
        return fields

    def _in_base(self, position: Array, rotation: Array) -> Pose:
        return Pose(self._position_in_base(position), matrix_to_quaternion(self._arm.origin_rotation.T @ rotation))

    def _position_in_base(self, position: Array) -> Array:
        # The controller's origin is where the robot's base (link0) is.
        return np.asarray(self._arm.origin_rotation.T @ (position - self._arm.origin_position))

    def _set_finger_goal(self) -> None:
        self._command.finger_ctrl[:] = FINGER_SIGNS * self._finger_setpoint

    # The state

    def state(self) -> Array:
        """See TaskEnv. Physics, arm goal (3 + 9), rest posture (7), what is placed (7 each), set-point, steps, box half-sizes (3 each)."""
        physics = np.empty(mujoco.mj_stateSize(self._model, PHYSICS))
        mujoco.mj_getState(self._model, self._data, physics, PHYSICS)
        command = self._command
        counters = [self._finger_setpoint, self.steps]
        goal = (command.goal_position, command.goal_rotation.ravel(), command.posture)
        placed = (self._model.body_pos[self._placed].ravel(), self._model.body_quat[self._placed].ravel())
        return np.concatenate([physics, *goal, *placed, counters, self._box_sizes.ravel()])

    def set_state(self, state: Array) -> None:
        """See TaskEnv."""
        arm, placed = self._command.posture.size, self._placed.size
        lengths = (mujoco.mj_stateSize(self._model, PHYSICS), 3, 9, arm, 3 * placed, 4 * placed, 1, 1, self._box_sizes.size)
        if np.shape(state) != (sum(lengths),):
            raise SpecError(f"state has shape {np.shape(state)}, expected ({sum(lengths)},)")
        parts = np.split(np.asarray(state, dtype=np.float64), np.cumsum(lengths)[:-1])
        physics, goal_position, goal_rotation, posture, positions, quaternions, (setpoint,), (steps,), sizes = parts
        self._set_box_sizes(sizes.reshape(-1, 3))
        self._model.body_pos[self._placed] = positions.reshape(-1, 3)
        self._model.body_quat[self._placed] = quaternions.reshape(-1, 4)
        mujoco.mj_setState(self._model, self._data, physics, PHYSICS)
        mujoco.mj_kinematics(self._model, self._data)
        self._command.goal_position[:] = goal_position
        self._command.goal_rotation[:] = goal_rotation.reshape(3, 3)
        self._command.posture[:] = posture
        self._finger_setpoint, self.steps = float(setpoint), int(steps)
        self._set_finger_goal()

    def _set_box_sizes(self, sizes: Array) -> None:
        """Half-sizes [m] (boxes, 3); leaves the simulation's data to be set by the caller."""
        for box, size in zip(self._scene.boxes, sizes, strict=True):
            body = self._model.body(self._scene.bodies[box.name]).id
            resize_box(self._model, body, size)
            self._model.body_mass[body] *= self._mass_scale
            self._model.body_inertia[body] *= self._mass_scale
            next(o for o in self._env.model.mujoco_objects if o.name == box.name).size = size.tolist()
        if self._scene.boxes:
            mujoco.mj_setConst(self._model, mujoco.MjData(self._model))
        self._box_sizes = sizes.copy()

    # Distribution shift

    def widen_start_region(self, factor: float) -> None:
        """See ShiftableEnv."""
        for region in self._regions:
            region.widen(min(factor, self._scene.widest_start))

    def scale_dynamics(self, mass: float, friction: float) -> None:
        """See ShiftableEnv."""
        if (mass, friction) == (self._mass_scale, self._friction_scale):
            return
        self._mass_scale, self._friction_scale = mass, friction
        self._nominal.restore(self._model, mass, friction)
        self._set_box_sizes(self._box_sizes)

    def push(self, force: Array) -> None:
        """See ShiftableEnv."""
        self._data.xfrc_applied[self._model.site_bodyid[self._arm.site], :3] = self._arm.origin_rotation @ force

    # Pictures and the end

    def render(self, width: int, height: int) -> NDArray[np.uint8]:
        """See TaskEnv."""
        from otpr_sim.render import SceneRenderer

        if self._renderer is None:
            self._renderer = SceneRenderer(self._model)
        return self._renderer.render(self._data, width, height)

    def view(self) -> LiveView:
        """See RobotEnv."""
        return LiveView(self._model, self._data)

    def close(self) -> None:
        """See TaskEnv."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        if self._env is not None:
            self._env.close()
            self._env = None


class StartRegion:
    """The region that a robosuite sampler places objects in, and how to widen it around its middle."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        ranges = {name: getattr(sampler, name) for name in ("x_range", "y_range", "rotation")}
        self._nominal = {name: np.array(value, dtype=np.float64) for name, value in ranges.items() if np.size(value) == 2}

    def widen(self, factor: float) -> None:
        """Sets the factor. An object that may be turned in any way, or in one, still is."""
        for name, nominal in self._nominal.items():
            middle = nominal.mean()
            setattr(self._sampler, name, tuple(nominal if factor == 1.0 else middle + factor * (nominal - middle)))


class Nominal:
    """What a model was compiled with of all that a distribution shift changes."""

    def __init__(self, model: mujoco.MjModel, loads: NDArray[np.int64], placed: NDArray[np.int64]) -> None:
        self._loads, self._placed = loads, placed
        self._mass, self._inertia = model.body_mass[loads].copy(), model.body_inertia[loads].copy()
        self._friction = model.geom_friction.copy()
        self._position, self._quaternion = model.body_pos[placed].copy(), model.body_quat[placed].copy()

    def restore(self, model: mujoco.MjModel, mass: float, friction: float) -> None:
        """Sets the nominal values times two factors, and the constants that depend on them."""
        model.body_mass[self._loads] = mass * self._mass
        model.body_inertia[self._loads] = mass * self._inertia
        model.geom_friction[:] = friction * self._friction
        # Where the last episode placed things must not reach the constants, be it by rounding alone.
        model.body_pos[self._placed], model.body_quat[self._placed] = self._position, self._quaternion
        mujoco.mj_setConst(model, mujoco.MjData(model))


def _samplers(sampler: Any) -> Iterator[Any]:
    """A robosuite placement sampler and those that it is made of. Each draws from a generator of its own."""
    yield sampler
    for part in getattr(sampler, "samplers", {}).values():
        yield from _samplers(part)


def resize_box(model: mujoco.MjModel, body: int, size: NDArray[np.float64]) -> None:
    """Gives a body made of boxes of one size other half-sizes [m] (3,), as if compiled that way.

    Call ``mujoco.mj_setConst`` afterwards, which brings the constants that depend on mass up to date.
    """
    geoms = np.flatnonzero(model.geom_bodyid == body)
    model.geom_size[geoms] = size
    model.geom_aabb[geoms, 3:] = size
    model.geom_rbound[geoms] = np.sqrt(size @ size)
    bounds = slice(model.body_bvhadr[body], model.body_bvhadr[body] + model.body_bvhnum[body])
    model.bvh_aabb[bounds, 3:] = size
    mass = BOX_DENSITY * 8.0 * size.prod()
    model.body_mass[body] = mass
    model.body_inertia[body] = mass / 3.0 * (size @ size - size**2)
