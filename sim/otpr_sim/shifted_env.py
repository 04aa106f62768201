# SPDX-License-Identifier: Apache-2.0
"""An environment under a distribution shift, for the trainer and for the twin alike."""

from collections import deque
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from otpr_policy.command import CartesianTarget
from otpr_policy.errors import SpecError
from otpr_policy.rotation import matrix_to_columns, matrix_to_quaternion, quaternion_to_matrix, rotation_vector_to_matrix
from otpr_policy.spec import Array
from otpr_sim.env import Pose, RobotEnv
from otpr_sim.shift import Shift, ShiftableEnv

if TYPE_CHECKING:
    from otpr_sim.live_view import LiveView

WAITING_SIZE = 9  # of a command that waits: due substep, position, quaternion, finger position


class _Draw(IntEnum):
    """What random numbers are for. Each use has a stream of its own, so that one part of a shift does not change another."""

    DYNAMICS = 0
    NOISE = 1
    PUSH = 2
    CALIBRATION = 3


class ShiftedEnv(RobotEnv):
    """Wraps an environment; with a shift that changes nothing it is that environment, bit for bit.

    Noise is on what is measured, so the observation still follows from what the robot's side tells. Commands that come
    faster than the control rate are delayed too, but no more of them wait than fit the delay at that rate: the oldest
    then takes effect. hold() takes effect at once, as the robot's own watchdog would.

    Args:
        env: the environment; closed with this one.
        shift: what differs.
    """

    def __init__(self, env: ShiftableEnv, shift: Shift) -> None:
        self._env = env
        self._shift = shift
        self.spec = env.spec
        self.frame_id = env.frame_id
        self.joint_names = env.joint_names
        self.physics_dt_s = env.physics_dt_s
        self.substeps_per_step = env.substeps_per_step
        self._delay = round(shift.action_delay * self.substeps_per_step)  # substeps
        self._capacity = int(np.ceil(shift.action_delay))
        env.widen_start_region(shift.start_region)
        self.reset(0)

    def reset(self, seed: int) -> dict[str, Array]:
        """See TaskEnv. The wrapped environment draws what it draws without a shift."""
        self._seed = seed
        self._scale_dynamics()
        self._draw_calibration()
        self._env.reset(seed)
        self._substep = 0
        self._waiting: deque[tuple[int, CartesianTarget]] = deque()
        self.steps = 0
        return self.observe()

    def success(self) -> bool:
        """See TaskEnv; judged without noise."""
        return self._env.success()

    @property
    def time_s(self) -> float:
        """See TaskEnv."""
        return self._env.time_s

    # Commands and time

    def set_target(self, target: CartesianTarget) -> None:
        """See TaskEnv; takes effect after the delay."""
        if self._delay == 0:
            self._env.set_target(target)
            return
        if not np.isfinite(np.concatenate([target.position, target.quaternion, [target.gripper_position]])).all():
            raise SpecError(f"target is not finite: {target}")
        if len(self._waiting) == self._capacity:
            self._env.set_target(self._waiting.popleft()[1])
        self._waiting.append((self._substep + self._delay, target))

    def hold(self) -> None:
        """See TaskEnv; forgets commands that wait."""
        self._waiting.clear()
        self._env.hold()

    def advance(self, substeps: int) -> None:
        """See TaskEnv. Stops on the way for commands that become due and, at each control period, for pushes."""
        end = self._substep + substeps
        while self._substep < end:
            period, past = divmod(self._substep, self.substeps_per_step)
            if past == 0 and self._shift.push_rate_hz > 0.0:
                self._env.push(self._force(period))
            while self._waiting and self._waiting[0][0] <= self._substep:
                self._env.set_target(self._waiting.popleft()[1])
            stop = min(end, (period + 1) * self.substeps_per_step, *(due for due, _ in self._waiting))
            self._env.advance(stop - self._substep)
            self._substep = stop

    def _force(self, period: int) -> Array:
        """Force on the hand (3,) [N] in a control period: that of the newest push that has begun and not ended."""
        for begun in range(period, max(-1, period - self._shift.push_steps), -1):
            rng = self._rng(_Draw.PUSH, begun)
            if rng.random() < self._shift.push_rate_hz / self.spec.control_rate_hz:
                direction = rng.standard_normal(3)
                return self._shift.push_n * direction / np.sqrt(direction @ direction)
        return np.zeros(3)

    # Measurements

    def joint_positions(self) -> Array:
        """See TaskEnv; the fingers' with noise. The arm's own sensors are good."""
        positions = self._env.joint_positions()
        positions[-2:] += self._shift.noise_m * self._noise[:2]
        return positions

    def joint_velocities(self) -> Array:
        """See TaskEnv."""
        return self._env.joint_velocities()

    def ee_pose(self) -> Pose:
        """See TaskEnv; with noise."""
        return self._measured(self._env.ee_pose(), 0)

    def object_poses(self) -> dict[str, Pose]:
        """See TaskEnv; as a camera that is not quite where it is thought to be sees them, with noise."""
        poses = self._env.object_poses()
        return {name: self._measured(self._seen(pose), index + 1) for index, (name, pose) in enumerate(poses.items())}

    def observe(self) -> dict[str, Array]:
        """See TaskEnv; with noise, the same as on the robot's side."""
        observation = self._env.observe()
        if self._exact and self._calibrated:
            return observation
        observation["gripper_position"] = self.joint_positions()[-2:]
        for name, pose in {"ee": self.ee_pose(), **self.object_poses()}.items():
            observation[f"{name}_position"] = pose.position
            if f"{name}_rotation" in observation:
                observation[f"{name}_rotation"] = matrix_to_columns(quaternion_to_matrix(pose.quaternion))
        return observation

    @property
    def _exact(self) -> bool:
        """Whether measurements have no noise."""
        return self._shift.noise_m == self._shift.noise_rad == 0.0

    @property
    def _calibrated(self) -> bool:
        """Whether the camera is where it is thought to be."""
        return self._shift.calibration_m == self._shift.calibration_rad == 0.0

    @property
    def _noise(self) -> Array:
        """Standard normal numbers of this moment: 2 for the fingers, then 6 for each pose."""
        return self._rng(_Draw.NOISE, self._substep).standard_normal(2 + 6 * self._poses)

    @cached_property
    def _poses(self) -> int:
        return 1 + len(self._env.object_poses())

    def _measured(self, pose: Pose, index: int) -> Pose:
        if self._exact:
            return pose
        noise = self._noise[2 + 6 * index :][:6]
        turn = rotation_vector_to_matrix(self._shift.noise_rad * noise[3:])
        return Pose(
            pose.position + self._shift.noise_m * noise[:3],
            matrix_to_quaternion(turn @ quaternion_to_matrix(pose.quaternion)),
        )

    def _seen(self, pose: Pose) -> Pose:
        """An object's pose through the camera's wrong calibration: turned about the base, then moved."""
        if self._calibrated:
            return pose
        rotation = self._camera_turn @ quaternion_to_matrix(pose.quaternion)
        return Pose(self._camera_turn @ pose.position + self._camera_offset, matrix_to_quaternion(rotation))

    def _draw_calibration(self) -> None:
        directions = self._rng(_Draw.CALIBRATION).standard_normal((2, 3))
        offset, axis = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        self._camera_offset = self._shift.calibration_m * offset
        self._camera_turn = rotation_vector_to_matrix(self._shift.calibration_rad * axis)

    # The state

    def state(self) -> Array:
        """See TaskEnv. The wrapped state, the episode's seed in two words, the substep, and as many waiting commands as there may be."""
        waiting = np.zeros((self._capacity, WAITING_SIZE))
        waiting[:, 0] = -1.0  # nobody's turn
        for row, (due, target) in zip(waiting, self._waiting, strict=False):
            row[:] = (due, *target.position, *target.quaternion, target.gripper_position)
        self._env.steps = self.steps
        return np.concatenate([self._env.state(), [self._seed >> 32, self._seed % 2**32, self._substep], waiting.ravel()])

    def set_state(self, state: Array) -> None:
        """See TaskEnv."""
        if np.shape(state) != self.state().shape:
            raise SpecError(f"state has shape {np.shape(state)}, expected {self.state().shape}")
        split = np.size(state) - self._capacity * WAITING_SIZE - 3
        inner, (high, low, substep), waiting = np.split(np.asarray(state, dtype=np.float64), [split, split + 3])
        self._seed = (int(high) << 32) + int(low)
        self._scale_dynamics()
        self._draw_calibration()
        self._env.set_state(inner)
        self.steps = self._env.steps
        self._substep = int(substep)
        rows = waiting.reshape(-1, WAITING_SIZE)
        self._waiting = deque((int(row[0]), CartesianTarget(row[1:4], row[4:8], float(row[8]))) for row in rows if row[0] >= 0)

    def _scale_dynamics(self) -> None:
        rng = self._rng(_Draw.DYNAMICS)
        mass, friction = (float(np.exp(rng.uniform(*np.log(bounds)))) for bounds in (self._shift.mass, self._shift.friction))
        self._env.scale_dynamics(mass, friction)

    def _rng(self, draw: _Draw, index: int = 0) -> np.random.Generator:
        """Random numbers that depend on the episode's seed, their use and an index alone: there is no generator's state to keep."""
        return np.random.Generator(np.random.Philox(key=np.array([self._seed, draw], dtype=np.uint64), counter=[0, 0, 0, index]))

    # Pictures and the end

    def render(self, width: int, height: int) -> NDArray[np.uint8]:
        """See TaskEnv."""
        return self._env.render(width, height)

    def view(self) -> "LiveView":
        """See RobotEnv; shows what is, not what is measured."""
        return self._env.view()

    def close(self) -> None:
        """See TaskEnv."""
        self._env.close()
