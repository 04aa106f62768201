# SPDX-License-Identifier: Apache-2.0
"""Recording sessions without ROS: what each action does in each phase, what the checks name, and what is kept when things go wrong."""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic_messages as messages

from otpr_operator.bag import BagWriter
from otpr_operator.commands import recordings
from otpr_operator.session import Action, Phase, RecordedTopic, Session
from otpr_policy.contract import contract_text
from otpr_policy.errors import OutputError, RecordingError
from otpr_policy.recording import Ending, Verdict, read_recording
from otpr_policy.recording_checks import check_recording

TOPICS = {
    "/ee_pose": RecordedTopic(messages.POSE, 0.1),
    "/joint_states": RecordedTopic(messages.JOINTS, 0.1),
    "/objects/cube/pose": RecordedTopic(messages.POSE, 0.1),
    "/target_pose": RecordedTopic(messages.POSE),
    "/gripper_controller/commands": RecordedTopic(messages.ARRAY),
    "/policy_node/artifact": RecordedTopic(messages.TEXT, latched=True),
    "/policy_node/state": RecordedTopic(messages.TEXT, latched=True),
}
FINGERS = {"panda_finger_joint1": 0.01, "panda_finger_joint2": 0.02}
PERIOD_S = 0.01
START_NS = 1_700_000_000 * 10**9


class Robot:
    """A session with a clock that the test holds, and a robot whose every topic a test can spoil."""

    def __init__(self, directory: Path) -> None:
        self.now_s = 0.0
        self.told: list[str] = []
        facts = {"robot": "panda_twin", "contract": contract_text("panda_twin")}
        self.session = Session(directory, TOPICS, lambda: facts, lambda: self.now_s, self.told.append)
        self.sent = dict.fromkeys(TOPICS, 0)

    def now_ns(self) -> int:
        return START_NS + round(self.now_s * 1e9)

    def act(self, action: Action) -> Any:
        return self.session.act(action, self.now_ns())

    def send(self, topic: str, data: bytes, skipped: int = 0) -> None:
        self.sent[topic] += 1 + skipped
        self.session.message(topic, self.now_ns(), data, None, self.sent[topic])

    def hand(self) -> np.ndarray[Any, Any]:
        return np.array([0.5, 0.1 * np.sin(self.now_s), 0.1])

    def step(self, without: tuple[str, ...] = ()) -> None:
        """A hundredth of a second of every topic."""
        self.now_s = round(self.now_s + PERIOD_S, 6)
        made = {
            "/ee_pose": messages.pose(self.now_ns(), self.hand()),
            "/joint_states": messages.joints(self.now_ns(), FINGERS),
            "/objects/cube/pose": messages.pose(self.now_ns(), (0.45, 0.0, 0.0), (0, 0, 0, 1)),
            "/target_pose": messages.pose(self.now_ns(), self.hand() + 0.01),
            "/gripper_controller/commands": messages.array([0.02]),
        }
        for topic, data in made.items():
            if topic not in without:
                self.send(topic, data)
        self.session.keep_up()

    def run(self, seconds: float, without: tuple[str, ...] = ()) -> None:
        for _ in range(round(seconds / PERIOD_S)):
            self.step(without)


@pytest.fixture
def robot(tmp_path: Path) -> Robot:
    return Robot(tmp_path / "episodes")


def episodes(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "episodes").iterdir())


def to_phase(robot: Robot, phase: Phase) -> None:
    if phase is not Phase.IDLE:
        assert robot.act(Action.START).done
        robot.run(1.0)
    if phase is Phase.REVIEW:
        assert robot.act(Action.SUCCESS).done


@pytest.mark.parametrize(
    ("phase", "action", "done", "after", "left"),
    [
        (Phase.IDLE, Action.START, True, Phase.RECORDING, 1),
        *((Phase.IDLE, action, False, Phase.IDLE, 0) for action in Action if action is not Action.START),
        (Phase.RECORDING, Action.START, False, Phase.RECORDING, 1),
        (Phase.RECORDING, Action.SUCCESS, True, Phase.REVIEW, 1),
        (Phase.RECORDING, Action.FAILURE, True, Phase.REVIEW, 1),
        (Phase.RECORDING, Action.SAVE, True, Phase.IDLE, 1),
        (Phase.RECORDING, Action.DISCARD, True, Phase.IDLE, 0),
        (Phase.RECORDING, Action.REDO, True, Phase.RECORDING, 1),
        (Phase.REVIEW, Action.START, False, Phase.REVIEW, 1),
        (Phase.REVIEW, Action.SUCCESS, True, Phase.REVIEW, 1),
        (Phase.REVIEW, Action.FAILURE, True, Phase.REVIEW, 1),
        (Phase.REVIEW, Action.SAVE, True, Phase.IDLE, 1),
        (Phase.REVIEW, Action.DISCARD, True, Phase.IDLE, 0),
        (Phase.REVIEW, Action.REDO, True, Phase.RECORDING, 1),
    ],
)
def test_every_action_in_every_phase(
    robot: Robot, tmp_path: Path, phase: Phase, action: Action, done: bool, after: Phase, left: int
) -> None:
    to_phase(robot, phase)
    reply = robot.act(action)
    assert (reply.done, robot.session.phase) == (done, after)
    assert reply.text
    assert len(episodes(tmp_path)) == left


def test_a_clean_episode_passes_every_check_and_is_saved_with_its_verdict(robot: Robot, tmp_path: Path) -> None:
    robot.session.identify('{"sha256": "abc"}')
    to_phase(robot, Phase.REVIEW)
    assert robot.session.problems == ()
    assert robot.act(Action.FAILURE).done  # the operator changes their mind
    assert "failure; every check passed" in robot.act(Action.SAVE).text
    recording = read_recording(tmp_path / "episodes/episode_0000")
    assert (recording.verdict, recording.ending, recording.damage) == (Verdict.FAILURE, Ending.SAVED, "")
    assert recording.artifacts == ({"sha256": "abc"},)
    assert {report["topic"]: report["received"] for report in recording.report["topics"]}["/ee_pose"] == 100
    hand = recording.field("ee_position")
    np.testing.assert_array_equal(np.diff(hand.stamps_ns), round(PERIOD_S * 1e9))
    np.testing.assert_allclose(hand.values[:, 1], 0.1 * np.sin((hand.stamps_ns - START_NS) / 1e9), atol=1e-15)
    np.testing.assert_array_equal(recording.field("gripper_position").values[0], [0.01, 0.02])
    np.testing.assert_allclose(recording.targets().positions, hand.values + 0.01, atol=1e-15)
    assert (recording.gripper_targets().values == 0.02).all()
    with pytest.raises(RecordingError, match="no field 'elbow'"):
        recording.field("elbow")


def lose_every_fifth(robot: Robot) -> None:
    for n in range(100):
        robot.sent["/ee_pose"] += n % 5 == 0
        robot.step()


def jump(robot: Robot) -> None:
    robot.run(0.5)
    robot.send("/objects/cube/pose", messages.pose(robot.now_ns() + 5_000_000, (0.45, 0.2, 0.0), (0, 0, 0, 1)))
    robot.run(0.5)


def go_back(robot: Robot) -> None:
    robot.run(0.5)
    robot.send("/ee_pose", messages.pose(robot.now_ns() - 10**9, robot.hand()))
    robot.run(0.5)


def spoil(topic: str, data: bytes) -> Callable[[Robot], None]:
    def run(robot: Robot) -> None:
        robot.run(0.6)
        robot.send(topic, data)

    return run


@pytest.mark.parametrize(
    ("fault", "finding"),
    [
        (lambda robot: robot.run(1.0, without=("/joint_states",)), "/joint_states never came"),
        (lambda robot: (robot.run(1.0), robot.run(0.7, ("/ee_pose",))), "/ee_pose vanished 0.70 s before the end"),
        (lambda robot: (robot.run(0.5), robot.run(0.2, ("/ee_pose",)), robot.run(0.5)), "/ee_pose has a gap of 0.210 s after 0.49 s"),
        (lose_every_fifth, "/ee_pose lost 19 of 119 messages"),
        (jump, "/objects/cube/pose jumps 2 times in cube_position"),
        (go_back, "/ee_pose has stamps that go back, first at sample 50"),
        (lambda robot: robot.run(0.2), "lasts 0.19 s"),
        (lambda robot: robot.run(1.0, ("/target_pose", "/gripper_controller/commands")), "no command was given"),
        (spoil("/ee_pose", messages.pose(START_NS, (0, 0, 0), frame="world")), "/ee_pose cannot be read"),
        (spoil("/ee_pose", b"\0\1\0\0\7"), "/ee_pose cannot be read"),
        (spoil("/joint_states", messages.joints(START_NS + 10**9, {"panda_finger_joint1": 0.0})), "lacks joint 'panda_finger_joint2'"),
        (spoil("/ee_pose", messages.pose(START_NS + 10**9, (np.nan, 0, 0))), "not finite in ee_position, sample 60"),
    ],
)
def test_a_fault_is_named_before_saving_and_saving_again_keeps_it_marked(
    robot: Robot, tmp_path: Path, fault: Callable[[Robot], None], finding: str
) -> None:
    assert robot.act(Action.START).done
    fault(robot)
    reply = robot.act(Action.SAVE)
    assert robot.session.phase is Phase.REVIEW
    assert finding in reply.text
    assert robot.act(Action.SAVE).done
    assert any(finding in problem for problem in read_recording(tmp_path / "episodes/episode_0000").report["all_problems"])


def test_holds_and_stops_are_named_with_time_and_first_reason_and_nothing_else_is(robot: Robot, tmp_path: Path) -> None:
    """Each hold lasts to the next state, whatever its reason changes to. Waiting for the first chunk of an engagement is none."""
    told = ("READY: not engaged", "HOLD: waiting for the first chunk", "ENGAGED", "HOLD: the device is gone: unplugged")
    robot.act(Action.START)
    for state in (*told, "HOLD: the device is gone: still", "ENGAGED", "HOLD: ee_position is old", "STOPPED: ee_position is old"):
        robot.send("/policy_node/state", messages.text(state))
        robot.run(0.2)
    robot.send("/policy_node/state", messages.text("READY: not engaged"))
    robot.run(0.1)
    reply = robot.act(Action.SUCCESS)
    expected = [
        "HOLD after 0.60 s for 0.40 s: the device is gone: unplugged",
        "HOLD after 1.20 s for 0.20 s: ee_position is old",
        "STOPPED after 1.40 s for 0.20 s: ee_position is old",
    ]
    assert list(robot.session.problems) == expected
    assert f"success; {expected[0]}; " in reply.text
    assert robot.act(Action.SAVE).done
    recording = read_recording(tmp_path / "episodes/episode_0000")
    assert recording.report["all_problems"] == expected
    assert recording.verdict is Verdict.SUCCESS


def test_a_robot_that_was_stopped_before_and_holds_again_and_again_fills_no_page(robot: Robot) -> None:
    robot.send("/policy_node/state", messages.text("STOPPED: watchdog"))
    robot.act(Action.START)
    robot.run(0.1)
    for _ in range(9):
        robot.send("/policy_node/state", messages.text("HOLD: late"))
        robot.run(0.05)
        robot.send("/policy_node/state", messages.text("ENGAGED"))
        robot.run(0.05)
    robot.send("/policy_node/state", messages.text("HOLD: late"))
    robot.run(0.1)
    robot.act(Action.SUCCESS)
    first, *rest, last = robot.session.problems
    assert (first, last) == ("STOPPED after 0.00 s for 0.10 s: watchdog", "and 6 more of HOLD and STOPPED")
    assert len(rest) == 4


def test_a_topic_that_falls_silent_is_told_once_and_again_after_it_came_back(robot: Robot) -> None:
    robot.act(Action.START)
    robot.run(1.0)
    robot.run(2.0, ("/ee_pose",))
    assert [text.split()[0] for text in robot.told] == ["/ee_pose"]
    robot.run(1.0)
    robot.run(2.0, ("/ee_pose",))
    assert len(robot.told) == 2


def test_a_latched_message_from_before_is_part_of_the_episode(robot: Robot, tmp_path: Path) -> None:
    for word in ("nobody", "somebody", "who"):
        robot.send("/policy_node/artifact", messages.text(word))
    robot.act(Action.START)
    robot.run(1.0)
    robot.send("/policy_node/artifact", messages.text("another"))
    robot.run(0.1)
    assert robot.act(Action.SAVE).text.endswith("every check passed")  # none counts as lost
    found = read_recording(tmp_path / "episodes/episode_0000").topics["/policy_node/artifact"].decoded()
    assert [message.data for message in found] == ["who", "another"]


@pytest.mark.parametrize("phase", [Phase.RECORDING, Phase.REVIEW])
def test_closing_keeps_the_episode_at_hand(robot: Robot, tmp_path: Path, phase: Phase) -> None:
    to_phase(robot, phase)
    robot.session.close()
    recording = read_recording(tmp_path / "episodes/episode_0000")
    assert (recording.ending, recording.damage) == (Ending.INTERRUPTED, "")
    assert recording.verdict is (Verdict.SUCCESS if phase is Phase.REVIEW else Verdict.UNJUDGED)


def test_numbers_of_discarded_episodes_are_used_again_and_saved_ones_never(robot: Robot, tmp_path: Path) -> None:
    for action in (Action.SAVE, Action.DISCARD, Action.SAVE):
        robot.act(Action.START)
        robot.run(1.0)
        robot.act(action)
    assert episodes(tmp_path) == ["episode_0000", "episode_0001"]
    shutil.rmtree(tmp_path / "episodes/episode_0000")
    assert Robot(tmp_path / "episodes").act(Action.START).text.startswith("episode_0002")


@pytest.mark.parametrize("room_comes", [True, False])
def test_a_full_disk_keeps_the_episode_readable_and_the_operator_is_told(
    robot: Robot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room_comes: bool
) -> None:
    robot.act(Action.START)
    robot.run(1.0)
    real_close = BagWriter.close

    def full(*_arguments: object) -> None:
        raise OutputError("cannot write: No space left on device")

    monkeypatch.setattr("otpr_policy.mcap_writer.McapWriter.flush", full)

    def close(bag: BagWriter, *arguments: Any) -> None:
        if not room_comes:
            full()
        monkeypatch.undo()
        real_close(bag, *arguments)

    monkeypatch.setattr(BagWriter, "close", close)
    robot.run(1.0)
    monkeypatch.undo()
    assert robot.session.phase is Phase.IDLE
    assert "No space left" in str(robot.session.failure)
    (text,) = robot.told
    assert "episode_0000" in text
    assert ("recover" in text) is not room_comes
    recording = read_recording(tmp_path / "episodes/episode_0000")
    assert recording.ending is (Ending.DISK_FULL if room_comes else Ending.KILLED)
    assert len(recording.topics["/ee_pose"].messages) >= 50
    assert robot.act(Action.START).done  # the session goes on


def test_the_check_of_a_saved_episode_says_what_it_said_before_saving(robot: Robot, tmp_path: Path) -> None:
    robot.act(Action.START)
    lose_every_fifth(robot)
    robot.act(Action.SAVE)
    before = robot.session.report
    robot.act(Action.SAVE)
    assert check_recording(read_recording(tmp_path / "episodes/episode_0000")) == before


def call(command: Any, *words: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return int(command.run(parser.parse_args(words)))


def test_info_lists_and_recover_completes(robot: Robot, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        robot.act(Action.START)
        robot.run(1.0)
        robot.act(Action.SAVE)
    robot.act(Action.START)
    robot.run(1.0)  # this one's recorder dies
    folder = str(tmp_path / "episodes")
    assert call(recordings.INFO, folder, "--json") == 0
    listed = json.loads(capsys.readouterr().out)["episodes"]
    assert [listed[name]["ending"] for name in sorted(listed)] == ["saved", "saved", "killed"]
    assert call(recordings.RECOVER, folder) == 0
    assert "episode_0002" in capsys.readouterr().out
    assert call(recordings.RECOVER, folder) == 0
    assert "every recording is complete" in capsys.readouterr().out
    (tmp_path / "episodes/episode_0001/episode_0001.mcap").write_bytes(b"\x89MCAP0\r\n")
    assert call(recordings.INFO, folder) == 1
    streams = capsys.readouterr()
    assert "killed" in streams.out
    assert "episode_0001: " in streams.err
