# SPDX-License-Identifier: Apache-2.0
"""The simulated robot's side of a command interface, without ROS, threads or clocks.

Commands arrive when they like; time advances when the caller says. A pose takes effect together with the newest
gripper command, at the moment the simulation next advances.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from otpr_policy.command import CartesianTarget
from otpr_policy.errors import TaskError
from otpr_policy.files import write_bytes
from otpr_policy.observation import FUTURE_TOLERANCE_NS
from otpr_policy.spec import Array
from otpr_sim import registry
from otpr_sim.env import RobotEnv, episode_seed
from otpr_sim.shift import NOMINAL, Shift


@dataclass(frozen=True)
class PoseCommand:
    """A target pose of the hand, and the stamp of the observation that it answers."""

    stamp_ns: int
    position: Array
    quaternion: Array


class TwinCore:
    """One environment, driven by commands instead of actions."""

    def __init__(
        self,
        env: RobotEnv,
        seed: int,
        *,
        command_timeout_s: float,
        max_command_age_s: float = math.inf,
        trace_directory: Path | None = None,
    ) -> None:
        """Args:
        env: the simulation.
        seed: episode i starts from ``episode_seed(seed, i)``.
        command_timeout_s: in real time, how long after the last command the robot is held where it is.
        max_command_age_s: a target whose stamp is older than this when it arrives is not taken.
        trace_directory: where each episode's states are written, or None.
        """
        self._env = env
        self._seed = seed
        self._command_timeout_s = command_timeout_s
        self._max_command_age_ns = max_command_age_s * 1e9
        self._trace_directory = trace_directory
        self._trace: list[tuple[Array, Array]] = []
        self._pose: PoseCommand | None = None
        self._newest_ns: int | None = None  # stamp of the newest target taken
        self._gripper: float | None = None
        self._gripper_is_new = False
        self._last_command_s: float | None = None  # None while the robot is held
        self.episode = -1
        self.succeeded = False
        self.next_episode()

    def next_episode(self) -> int:
        """Starts the next episode and returns its number."""
        self.finish_episode()
        self.episode += 1
        self._env.reset(episode_seed(self._seed, self.episode))
        self.hold()
        self._newest_ns = None
        self._gripper = None
        self._gripper_is_new = False
        self.succeeded = False
        self.record()
        return self.episode

    def finish_episode(self) -> None:
        """Writes the trace of the episode so far, if traces are wanted. Raises OutputError when that fails."""
        if self._trace_directory is not None and len(self._trace) > 1:
            states, joints = (np.stack(column) for column in zip(*self._trace, strict=True))
            archive = (
                io.BytesIO()
            )  # written to disk in one piece: a zip file that meets a full disk complains once more when it is collected
            np.savez(archive, state=states, joint_positions=joints, success=np.array(self.succeeded))
            write_bytes(self._trace_directory / f"episode_{self.episode:04d}.npz", archive.getvalue())
        self._trace = []

    @property
    def holding(self) -> bool:
        """Whether, in real time, the robot is held where it is because nobody commands it."""
        return self._last_command_s is None

    def hold(self) -> bool:
        """Holds the robot where it is; a target that waits is dropped. Returns whether it was under command."""
        was_commanded = not self.holding
        self._env.hold()
        self._pose = None
        self._last_command_s = None
        return was_commanded

    def take_pose(self, command: PoseCommand, now_ns: int | None = None) -> str | None:
        """A target pose has arrived, in real time at ``now_ns`` on its stamp's clock. Returns None, or why the robot does not take it."""
        if not np.isfinite(command.position).all() or not 0.5 < np.linalg.norm(command.quaternion) < 2:
            return f"not a pose: position {command.position.tolist()}, quaternion {command.quaternion.tolist()}"
        if now_ns is not None:
            late = self._lateness(command.stamp_ns, now_ns)
            if late is not None:
                return late
            self._newest_ns = command.stamp_ns
        self._pose = command
        return None

    def take_gripper(self, values: Sequence[float]) -> str | None:
        """A finger target [m] has arrived. Returns None, or why the robot does not take it."""
        if len(values) != 1 or not np.isfinite(values[0]):
            return f"not one finite finger position: {list(values)}"
        self._gripper = float(values[0])
        self._gripper_is_new = True
        return None

    def advance_in_real_time(self, substeps: int, now_s: float) -> None:
        """Applies what has arrived and advances; holds the robot where it is once commands have stopped for too long."""
        if self._pose is not None and self._gripper is not None:
            self._apply(self._pose, self._gripper)
            self._last_command_s = now_s
        elif self._last_command_s is not None and now_s - self._last_command_s > self._command_timeout_s:
            self.hold()
        self.advance(substeps)

    def answered(self, stamp_ns: int) -> bool:
        """Whether, in lockstep, both commands for the state with this stamp have arrived. An older pose is dropped."""
        if self._pose is not None and self._pose.stamp_ns != stamp_ns:
            self._pose = None
        return self._pose is not None and self._gripper_is_new

    def apply_answer(self) -> None:
        """Applies the pair of commands that :meth:`answered` found."""
        assert self._pose is not None and self._gripper is not None
        self._apply(self._pose, self._gripper)

    def advance(self, substeps: int) -> None:
        """Advances the physics under the newest target."""
        self._env.advance(substeps)
        self.succeeded = self.succeeded or self._env.success()

    def record(self) -> None:
        """Adds the present state to the episode's trace."""
        if self._trace_directory is not None:
            self._trace.append((self._env.state(), self._env.joint_positions()))

    def _lateness(self, stamp_ns: int, now_ns: int) -> str | None:
        if not -FUTURE_TOLERANCE_NS <= now_ns - stamp_ns <= self._max_command_age_ns:
            return f"it answers an observation {(now_ns - stamp_ns) / 1e9:.3f} s old, allowed are {self._max_command_age_ns / 1e9:.3f} s"
        if self._newest_ns is not None and stamp_ns < self._newest_ns <= now_ns + FUTURE_TOLERANCE_NS:
            return f"it is {(self._newest_ns - stamp_ns) / 1e9:.3f} s older than the last"
        return None

    def _apply(self, pose: PoseCommand, gripper: float) -> None:
        self._env.set_target(CartesianTarget(pose.position, pose.quaternion, gripper))
        self._pose = None
        self._gripper_is_new = False


def make_robot(task: str, shift: Shift = NOMINAL) -> RobotEnv:
    """A new environment whose robot a twin can play, under a distribution shift.

    Raises TaskError when there is no such task, no robot in it, or no shift of it.
    """
    env = registry.make(task, shift=shift)
    if not isinstance(env, RobotEnv):
        env.close()
        raise TaskError(f"task {task!r} has no robot that a twin can play; it can be trained on and evaluated, not driven through topics")
    return env
