# SPDX-License-Identifier: Apache-2.0
"""What a simulated task is: its description as data, and the interface of the environment that simulates it.

Every environment has the trainer's side, :class:`TaskEnv`: ``reset`` and ``step``. One with a robot that the twin node
can play has the robot's side too, :class:`RobotEnv`: joint positions, poses, a Cartesian target, and time that moves on
in physics substeps. Its ``step`` is written in terms of the other side, so a policy that runs through the robot's topics
meets the same physics as one that is evaluated directly.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from otpr_policy.command import CartesianTarget, delta_to_target
from otpr_policy.errors import EnvironmentSetupError, SpecError, TaskError
from otpr_policy.spec import Array, VectorSpec

if TYPE_CHECKING:
    from otpr_sim.live_view import LiveView

Env = TypeVar("Env", bound="TaskEnv")


class Stepping(Enum):
    """What computes the torques between two physics steps. The physics is the same."""

    COMPILED = "compiled"  # one compiled call
    STOCK = "stock"  # the simulator's own controllers: slower, and the oracle for the other


@dataclass(frozen=True)
class TaskSpec:
    """A task as plain data.

    Args:
        name: what the registry knows the task by.
        description: one sentence for a person.
        observation: fields of an observation; ranges are nominal (a policy's training range is measured).
        action: fields of an action; ranges are hard bounds.
        control_rate_hz: actions per second.
        horizon: control steps after which an episode is truncated.
        success_rule: one sentence that says when an episode counts as a success.
        source: where the scene comes from, such as ``robosuite Lift``.
    """

    name: str
    description: str
    observation: VectorSpec
    action: VectorSpec
    control_rate_hz: float
    horizon: int
    success_rule: str
    source: str = ""


@dataclass(frozen=True)
class StepResult:
    """What one control step led to.

    Args:
        observation: named fields after the step.
        reward: 1.0 when the task is solved after this step, else 0.0; a Gymnasium environment's own reward.
        terminated: the task is solved, or failed for good: no reward can follow.
        truncated: the horizon is reached and the episode has not terminated: reward could have followed.
        success: the task is solved after this step.
    """

    observation: dict[str, Array]
    reward: float
    terminated: bool
    truncated: bool
    success: bool


@dataclass(frozen=True)
class Pose:
    """Position [m] (3,) and unit quaternion (x, y, z, w) (4,) in the robot's base frame."""

    position: Array
    quaternion: Array


class TaskEnv(ABC):
    """One simulated task, as a trainer sees it.

    An environment belongs to one thread and one process.

    Attributes:
        spec: the task.
        steps: calls of step() since reset.
    """

    spec: TaskSpec
    steps: int

    @abstractmethod
    def reset(self, seed: int) -> dict[str, Array]:
        """Starts an episode whose initial state depends on ``seed`` alone; returns the first observation."""

    @abstractmethod
    def observe(self) -> dict[str, Array]:
        """Named observation fields of the present state."""

    @abstractmethod
    def state(self) -> Array:
        """Everything that the future depends on, as one vector of a private layout; (0,) where the simulation does not tell."""

    @abstractmethod
    def set_state(self, state: Array) -> None:
        """Goes back to what state() returned, in this environment or another of the same task.

        Raises:
            SpecError: a wrong length.
            TaskError: the simulation cannot be set to a state.
        """

    @abstractmethod
    def render(self, width: int, height: int) -> NDArray[np.uint8]:
        """Picture of the scene, (height, width, 3) RGB. Raises EnvironmentSetupError when this machine cannot draw it."""

    @abstractmethod
    def close(self) -> None:
        """Frees the simulation. The environment cannot be used afterwards; closing twice is harmless."""

    @property
    def ended(self) -> bool:
        """Whether the simulation itself is over, so that only reset() may follow. Where False, stepping on past the end is allowed."""
        return False

    def renderer(self) -> str:
        """What draws the pictures, for a person. Raises EnvironmentSetupError, see :func:`otpr_sim.render.backend`."""
        from otpr_sim.render import backend

        return backend()

    def step(self, action: NDArray[Any]) -> StepResult:
        """One control period.

        An action beyond the bounds is clipped to them, as robosuite does.

        Args:
            action: (Da,) in the order of ``spec.action``, physical units.

        Raises:
            SpecError: wrong shape or a number that is not finite.
        """
        fields = self.spec.action
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (fields.size,):
            raise SpecError(f"action has shape {action.shape}, expected ({fields.size},)")
        if not np.isfinite(action).all():
            raise SpecError(f"action is not finite at {fields.label(int(np.argmin(np.isfinite(action))))}")
        return self._step(np.clip(action, fields.low, fields.high))

    @abstractmethod
    def _step(self, action: Array) -> StepResult:
        """One control period under a checked action (Da,); counts ``steps``."""

    def __enter__(self: Env) -> Env:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class RobotEnv(TaskEnv):
    """One simulated robot with one task. Poses are relative to the robot's base, whose frame is named ``frame_id``.

    Attributes:
        frame_id: ROS name of the robot's base frame.
        joint_names: ROS names of the joints, arm first, then fingers.
        physics_dt_s: length of one substep.
        substeps_per_step: substeps in one control period.
    """

    frame_id: str
    joint_names: tuple[str, ...]
    physics_dt_s: float
    substeps_per_step: int

    @abstractmethod
    def set_target(self, target: CartesianTarget) -> None:
        """Gives the controller a new target, held until the next. Raises SpecError when it is not finite."""

    @abstractmethod
    def hold(self) -> None:
        """Makes the present end-effector pose the target; the gripper keeps its set-point."""

    @abstractmethod
    def advance(self, substeps: int) -> None:
        """Moves time on by ``substeps`` physics steps of ``physics_dt_s`` each, controlling towards the target."""

    @abstractmethod
    def joint_positions(self) -> Array:
        """Positions in the order of ``joint_names``: rad for the arm, m for the fingers."""

    @abstractmethod
    def joint_velocities(self) -> Array:
        """Velocities in the order of ``joint_names``: rad/s for the arm, m/s for the fingers."""

    @abstractmethod
    def ee_pose(self) -> Pose:
        """Pose of the point that the Cartesian controller moves."""

    @abstractmethod
    def object_poses(self) -> dict[str, Pose]:
        """Pose of every object that the task is about."""

    @abstractmethod
    def observe(self) -> dict[str, Array]:
        """Named observation fields, bit for bit computable from joint_positions(), ee_pose() and object_poses()."""

    @abstractmethod
    def success(self) -> bool:
        """Whether the task is solved right now."""

    @property
    @abstractmethod
    def time_s(self) -> float:
        """Simulated seconds since reset."""

    def view(self) -> "LiveView":
        """Opens a window that shows the simulation. Raises EnvironmentSetupError when this machine or simulation cannot."""
        raise EnvironmentSetupError(f"the simulation of task {self.spec.name!r} has no viewer")

    def _step(self, action: Array) -> StepResult:
        self.set_target(delta_to_target(self.observe(), self.spec.action.split(action)))
        self.advance(self.substeps_per_step)
        self.steps += 1
        success = self.success()
        truncated = not success and self.steps >= self.spec.horizon
        return StepResult(self.observe(), float(success), success, truncated, success)


def episode_seed(seed: int, episode: int) -> int:
    """Reset seed of episode number ``episode`` of a run with ``seed``: independent for every pair of the two.

    Raises:
        TaskError: a negative number.
    """
    if seed < 0 or episode < 0:
        raise TaskError(f"seed and episode must not be negative, got {seed} and {episode}")
    words = np.random.SeedSequence((seed, episode)).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))  # fits a signed 64-bit integer in any file format
