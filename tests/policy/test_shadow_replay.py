# SPDX-License-Identifier: Apache-2.0
"""Shadow mode on recordings: a policy agrees with itself, an offset is that offset, and where it could not act it is not compared."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import synthetic_messages as messages
import tiny_policy

from otpr_operator.bag import BagWriter
from otpr_policy.commands.shadow import COMMAND
from otpr_policy.contract import contract_text
from otpr_policy.errors import ContractError, RecordingError
from otpr_policy.recording import Ending, Recording, Verdict, read_recording
from otpr_policy.shadow import ShadowComparison
from otpr_policy.shadow_replay import replay_shadow
from otpr_policy.spec import Array, PolicySpec
from otpr_sim import registry

TASK = registry.spec("lift")
BEGIN_NS = 1_700_000_000 * 10**9
STATE_NS, STEP_NS = 10_000_000, 50_000_000
STEPS = 20
HAND, CUBE = np.array([0.5, 0.0, 0.1]), np.array([0.55, 0.02, -0.09])
FORWARD = np.array([0.01, 0.0, 0.0])  # m per step
DRIFT = np.array([0.0, 0.002, 0.0])  # of the hand, m per step: what is compared with another step's is off by this
TOPICS = {
    "/ee_pose": messages.POSE,
    "/joint_states": messages.JOINTS,
    "/objects/cube/pose": messages.POSE,
    "/target_pose": messages.POSE,
    "/gripper_controller/commands": messages.ARRAY,
}


class Forward:
    """A policy that always goes the same way, with open fingers."""

    spec = PolicySpec(TASK.observation, TASK.action, 1, 4, 4, 20.0)
    noise_shape = (1, 1)

    def infer(self, observation: Array, noise: Array) -> Array:
        assert observation.shape == (1, TASK.observation.size)
        return np.tile(np.concatenate([FORWARD, np.zeros(3), [0.04]]), (4, 1))


def recorded(folder: Path, offset: tuple[float, float, float] = (0.0, 0.0, 0.0), silent: range = range(0), without: str = "") -> Recording:
    """A hand that drifts, told to go FORWARD plus an offset [m]. ``silent``: steps in which the hand's pose did not come."""
    topics = {topic: kind for topic, kind in TOPICS.items() if topic != without}
    bag = BagWriter(folder, topics, {"robot": "panda_twin", "contract": contract_text("panda_twin")})

    def write(topic: str, now_ns: int, data: bytes) -> None:
        if topic != without:
            bag.write(topic, now_ns, data)

    for step in range(STEPS):
        for state in range(5):
            now_ns = BEGIN_NS + step * STEP_NS + state * STATE_NS
            if step not in silent:
                write("/ee_pose", now_ns, messages.pose(now_ns, HAND + step * DRIFT))
            write("/joint_states", now_ns, messages.joints(now_ns, {"panda_finger_joint1": 0.04, "panda_finger_joint2": 0.04}))
            write("/objects/cube/pose", now_ns, messages.pose(now_ns, CUBE))
        stamp_ns = BEGIN_NS + step * STEP_NS + 4 * STATE_NS
        write("/gripper_controller/commands", stamp_ns + 5_000_000, messages.array([0.03]))
        write("/target_pose", stamp_ns + 5_000_000, messages.pose(stamp_ns, HAND + step * DRIFT + FORWARD + offset))
    bag.close(Verdict.SUCCESS, Ending.SAVED)
    return read_recording(folder)


def test_a_policy_that_was_obeyed_has_no_error_and_an_offset_is_that_offset(tmp_path: Path) -> None:
    comparison = ShadowComparison(0.05)
    counters = replay_shadow(recorded(tmp_path / "one"), Forward(), comparison)
    errors = comparison.errors()
    assert counters.holds == 0
    assert errors["ee_position_delta"].pairs >= STEPS - 2
    assert errors["ee_position_delta"].max == pytest.approx(0.0, abs=1e-12)
    assert errors["gripper_position"].mean == pytest.approx((0.01,))
    shifted = ShadowComparison(0.05)
    replay_shadow(recorded(tmp_path / "two", (0.0, 0.003, -0.004)), Forward(), shifted)
    assert shifted.errors()["ee_position_delta"].mean == pytest.approx((0.0, -0.003, 0.004))
    assert shifted.errors()["ee_position_delta"].rms == pytest.approx(0.005)


def test_where_the_node_would_have_held_nothing_is_compared(tmp_path: Path) -> None:
    comparison = ShadowComparison(0.05)
    counters = replay_shadow(recorded(tmp_path / "gap", silent=range(8, 13)), Forward(), comparison)
    assert counters.holds >= 3
    assert comparison.commands == STEPS
    assert comparison.errors()["ee_position_delta"].pairs <= STEPS - 3
    assert comparison.errors()["ee_position_delta"].max <= 0.002 + 1e-12  # an old pose is as much as a step away, and afterwards it goes on


def test_a_recording_without_what_the_policy_reads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="topic /objects/cube/pose was not recorded, and the policy reads cube_position"):
        replay_shadow(recorded(tmp_path / "one", without="/objects/cube/pose"), Forward(), ShadowComparison(0.05))
    other = Forward()
    can = registry.spec("can")
    other.spec = PolicySpec(can.observation, can.action, 1, 4, 4, 20.0)
    with pytest.raises(ContractError):
        replay_shadow(recorded(tmp_path / "two"), other, ShadowComparison(0.05))


def test_the_command_writes_the_report_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tiny_policy.write(tmp_path / "tiny.onnx")
    for name in ("a", "b"):
        recorded(tmp_path / "all" / name)
    words = {"artifact": policy, "recordings": tmp_path / "all", "report": tmp_path / "out" / "shadow.json", "seed": 0, "json": True}
    assert COMMAND.run(argparse.Namespace(**words)) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "out" / "shadow.json").read_text())
    assert printed["commands"] == 2 * STEPS
    assert (tmp_path / "out" / "shadow.md").read_text().startswith("# Shadow report")
    with pytest.raises(RecordingError, match="holds no recording"):
        COMMAND.run(argparse.Namespace(**{**words, "recordings": tmp_path / "out"}))
