# SPDX-License-Identifier: Apache-2.0
"""The twin's command side, with a stand-in for the simulation: what is applied when, and when the robot is held."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otpr_policy.command import CartesianTarget
from otpr_policy.errors import TaskError
from otpr_sim import registry
from otpr_sim.env import episode_seed
from otpr_sim.twin import PoseCommand, TwinCore, make_robot


class RecordingEnv:
    """Notes what is asked of it, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.solved = False

    def reset(self, seed: int) -> None:
        self.calls.append(("reset", seed))

    def hold(self) -> None:
        self.calls.append(("hold", None))

    def set_target(self, target: CartesianTarget) -> None:
        self.calls.append(("target", (target.position.tolist(), target.gripper_position)))

    def advance(self, substeps: int) -> None:
        self.calls.append(("advance", substeps))

    def success(self) -> bool:
        return self.solved

    def state(self) -> np.ndarray:
        return np.array([float(len(self.calls))])

    def joint_positions(self) -> np.ndarray:
        return np.zeros(9)


def pose(stamp_ns: int, x: float) -> PoseCommand:
    return PoseCommand(stamp_ns, np.array([x, 0.0, 0.0]), np.array([0.0, 0.0, 0.0, 1.0]))


def make(trace: Path | None = None) -> tuple[TwinCore, RecordingEnv]:
    env = RecordingEnv()
    core = TwinCore(env, 5, command_timeout_s=0.2, max_command_age_s=0.25, trace_directory=trace)  # type: ignore[arg-type]
    env.calls.clear()
    return core, env


def test_episodes_start_from_the_states_that_evaluation_uses() -> None:
    core, env = make()
    assert (core.episode, core.next_episode(), core.next_episode()) == (0, 1, 2)
    assert [value for name, value in env.calls if name == "reset"] == [episode_seed(5, 1), episode_seed(5, 2)]


def test_in_real_time_a_pose_is_applied_once_with_the_newest_finger_target() -> None:
    core, env = make()
    core.take_pose(pose(1, 0.1))
    core.advance_in_real_time(5, 10.0)
    assert env.calls == [("advance", 5)], "without any finger target there is no complete command yet"
    core.take_gripper([0.01])
    core.take_gripper([0.03])
    core.take_pose(pose(2, 0.2))
    core.advance_in_real_time(5, 10.01)
    core.advance_in_real_time(5, 10.02)
    assert env.calls[1:] == [("target", ([0.2, 0.0, 0.0], 0.03)), ("advance", 5), ("advance", 5)]


def test_in_real_time_the_robot_is_held_once_when_commands_have_stopped_for_longer_than_the_timeout() -> None:
    core, env = make()
    core.take_gripper([0.0])
    core.take_pose(pose(1, 0.1))
    core.advance_in_real_time(5, 10.0)
    core.advance_in_real_time(5, 10.2)
    assert ("hold", None) not in env.calls
    core.advance_in_real_time(5, 10.21)
    core.advance_in_real_time(5, 10.5)
    assert env.calls.count(("hold", None)) == 1
    core.take_pose(pose(2, 0.3))
    core.advance_in_real_time(5, 10.6)
    assert env.calls[-2][0] == "target"


def test_a_robot_that_is_told_to_hold_stays_where_it_is_drops_what_waits_and_follows_the_next_command() -> None:
    core, env = make()
    assert core.holding
    assert not core.hold(), "nobody commanded it"
    core.take_gripper([0.0])
    core.take_pose(pose(1, 0.1))
    core.advance_in_real_time(5, 10.0)
    assert not core.holding
    core.take_pose(pose(2, 0.2))
    env.calls.clear()
    assert core.hold()
    assert core.holding
    core.advance_in_real_time(5, 10.01)
    assert env.calls == [("hold", None), ("advance", 5)]
    core.take_pose(pose(3, 0.3))
    core.advance_in_real_time(5, 10.02)
    assert env.calls[-2] == ("target", ([0.3, 0.0, 0.0], 0.0))


@pytest.mark.parametrize(
    ("stamp_s", "now_s", "reason"),
    [
        (10.0, 10.0, None),
        (10.0, 10.25, None),
        (10.0, 10.26, "it answers an observation 0.260 s old, allowed are 0.250 s"),
        (10.05, 10.0, None),
        (10.06, 10.0, "it answers an observation -0.060 s old, allowed are 0.250 s"),
        (9.0, 9.0, None),  # the clock started over
        (9.99, 10.0, "it is 0.005 s older than the last"),
        (9.995, 10.0, None),
    ],
)
def test_in_real_time_a_command_that_is_too_old_or_older_than_the_last_is_not_taken(
    stamp_s: float, now_s: float, reason: str | None
) -> None:
    core, env = make()
    core.take_gripper([0.0])
    assert core.take_pose(pose(9_995_000_000, 0.1), 9_995_000_000) is None
    core.advance_in_real_time(5, 1.0)
    env.calls.clear()
    assert core.take_pose(pose(round(stamp_s * 1e9), 0.2), round(now_s * 1e9)) == reason
    core.advance_in_real_time(5, 1.01)
    assert (env.calls[0][0] == "target") is (reason is None)


def test_in_lockstep_only_a_pair_that_answers_the_newest_state_counts() -> None:
    core, env = make()
    assert not core.answered(100)
    core.take_pose(pose(100, 0.1))
    assert not core.answered(100), "the finger target is missing"
    core.take_gripper([0.02])
    assert core.answered(100)
    core.apply_answer()
    assert env.calls == [("target", ([0.1, 0.0, 0.0], 0.02))]
    assert not core.answered(100), "a pair is used once"
    core.take_gripper([0.02])
    core.take_pose(pose(100, 0.1))
    assert not core.answered(150), "the pose answers an older state"
    core.take_pose(pose(150, 0.2))
    assert core.answered(150)


def test_commands_from_before_a_reset_are_forgotten() -> None:
    core, env = make()
    core.take_gripper([0.02])
    core.take_pose(pose(100, 0.1))
    core.next_episode()
    env.calls.clear()
    assert not core.answered(100)
    core.advance_in_real_time(5, 1.0)
    assert env.calls == [("advance", 5)]


@pytest.mark.parametrize("value", [[np.nan], [np.inf], [], [0.1, 0.2]])
def test_a_finger_target_that_is_none_is_refused(value: list[float]) -> None:
    core, _ = make()
    assert core.take_gripper(value) is not None
    core.take_pose(pose(1, 0.1))
    assert not core.answered(1)


@pytest.mark.parametrize(
    ("position", "quaternion"),
    [([np.nan, 0, 0], [0, 0, 0, 1]), ([0, np.inf, 0], [0, 0, 0, 1]), ([0, 0, 0], [0, 0, 0, 0]), ([0, 0, 0], [np.nan, 0, 0, 1])],
)
def test_a_pose_that_is_none_is_refused(position: list[float], quaternion: list[float]) -> None:
    core, _ = make()
    assert core.take_pose(PoseCommand(1, np.array(position), np.array(quaternion))) is not None
    core.take_gripper([0.0])
    assert not core.answered(1)


def test_success_is_remembered_until_the_next_episode() -> None:
    core, env = make()
    env.solved = True
    core.advance(5)
    env.solved = False
    core.advance(5)
    assert core.succeeded
    core.next_episode()
    assert not core.succeeded


def test_the_trace_of_an_episode_is_written_when_it_ends(tmp_path: Path) -> None:
    core, _ = make(tmp_path)
    core.record()
    core.record()
    core.next_episode()
    with np.load(tmp_path / "episode_0000.npz", allow_pickle=False) as trace:
        assert trace["state"].shape == (3, 1)  # the start and two records
        assert trace["joint_positions"].shape == (3, 9)
        assert not trace["success"]
    core.finish_episode()  # one state is no trace
    assert not (tmp_path / "episode_0001.npz").exists()


def test_a_task_without_a_robot_is_refused_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoRobot:
        closed = False

        def close(self) -> None:
            self.closed = True

    env = NoRobot()
    monkeypatch.setattr(registry, "make", lambda task, shift: env)
    with pytest.raises(TaskError, match="task 'gym:X-v0' has no robot that a twin can play"):
        make_robot("gym:X-v0")
    assert env.closed
