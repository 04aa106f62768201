# SPDX-License-Identifier: Apache-2.0
"""otpr teleop against the live twin: keys on a pseudo-terminal and synthetic gamepad messages lift the cube."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rosbags.rosbag2 import Reader
from sensor_msgs.msg import Joy
from teleop_pilot import NEAR, Teleop, Watcher, watching, way_to_grasp

from otpr_policy.spec import Array

pytestmark = pytest.mark.ros

SHIPPED_POLICY = Path(__file__).parents[2] / "policies" / "lift.onnx"
STILL = np.zeros(3)
KEYS = ("ws", "ad", "rf")  # + and - along x, y, z


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    with watching() as found:
        yield found


@pytest.fixture
def teleop(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Teleop]:
    running = Teleop(*getattr(request, "param", ()), folder=tmp_path)
    yield running
    running.close()


def engage(teleop: Teleop, watcher: Watcher) -> None:
    watcher.wait_for(lambda: watcher.state and watcher.hand is not None, teleop.text, 60)
    end = time.monotonic() + 40
    while not watcher.state.startswith("ENGAGED"):  # the first observation may still be on its way
        assert time.monotonic() < end, teleop.text()[-3000:]
        recover(teleop, watcher)
        teleop.press("\r")
        watcher.spin(0.5)


def recover(teleop: Teleop, watcher: Watcher) -> None:
    """What a person does when the watchdog has stopped the robot because this machine was busy with other tests."""
    if watcher.state.startswith("STOPPED"):
        teleop.press("b\r")
        watcher.spin(0.5)


def test_a_key_sequence_lifts_the_cube(teleop: Teleop, watcher: Watcher) -> None:
    engage(teleop, watcher)
    assert "One press moves for 0.2 s" in teleop.text()
    assert "50 mm/s 11 deg/s (key: 10.0 mm, 2.3 deg)" in teleop.text()
    teleop.press("v")
    fine = False
    end = time.monotonic() + 90
    while np.abs(way := way_to_grasp(watcher.hand, watcher.cube)).max() > NEAR:
        assert time.monotonic() < end, (way, watcher.state, teleop.text()[-2000:])
        recover(teleop, watcher)
        axis = int(np.argmax(np.abs(way)))
        if (abs(way[axis]) < 0.015) is not fine:
            fine = not fine
            teleop.press("-" if fine else "+")
        teleop.press(KEYS[axis][0 if way[axis] > 0 else 1])
        watcher.spin(0.35 if fine else 0.05)  # a step that ends, or a held key's repetition
    teleop.press("c")
    watcher.spin(1.2)
    end = time.monotonic() + 20
    while not watcher.lifted:
        assert time.monotonic() < end, (watcher.hand, watcher.cube, watcher.state)
        recover(teleop, watcher)
        teleop.press("r")
        watcher.spin(0.05)
    teleop.press("q")
    assert teleop.wait() == 0


class Pad:
    """A synthetic gamepad: Joy messages as joy_node sends them."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._publisher = watcher.node.create_publisher(Joy, "/joy", 10)

    def hold(self, seconds: float, *buttons: int, way: Array = STILL) -> None:
        """The dead-man button and others for a while, the sticks pushed along ``way`` [m]: 5 cm is all the way."""
        if self._watcher.state.startswith("STOPPED") and 3 not in buttons:
            self.engage()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            push = np.clip(way / 0.05, -1, 1)
            push = np.where(np.abs(push) > 0, np.sign(push) * (0.1 + 0.9 * np.abs(push)), 0.0)  # beyond the dead band
            axes = [float(push[1]), float(push[0]), 0.0, 0.0, float(push[2]), 0.0]
            self._publisher.publish(Joy(axes=axes, buttons=[int(n in (4, *buttons)) for n in range(8)]))
            self._watcher.spin(0.03)

    def engage(self) -> None:
        """Resets, engages, and lets go of the two buttons."""
        for buttons in ((3,), (3, 7), (3,)):
            self.hold(0.3, *buttons)


@pytest.mark.parametrize("teleop", [("--device", "gamepad")], indirect=True)
def test_gamepad_messages_lift_the_cube_and_silence_holds(teleop: Teleop, watcher: Watcher) -> None:
    pad = Pad(watcher)
    watcher.wait_for(lambda: watcher.state and watcher.hand is not None, teleop.text, 60)
    watcher.wait_for(lambda: watcher.node.count_subscribers("/joy") == 1, "the teleop node to listen")
    end = time.monotonic() + 30
    while not watcher.state.startswith("ENGAGED"):
        assert time.monotonic() < end, teleop.text()
        pad.engage()
    pad.hold(0.2, 1)
    end = time.monotonic() + 60
    while np.abs(way := way_to_grasp(watcher.hand, watcher.cube)).max() > NEAR:
        assert time.monotonic() < end, (way, watcher.state)
        pad.hold(0.05, way=way)
    pad.hold(1.2, 0)
    end = time.monotonic() + 20
    while not watcher.lifted:
        assert time.monotonic() < end, (watcher.hand, watcher.cube, watcher.state)
        pad.hold(0.05, way=np.array([0, 0, 0.05]))
    # The gamepad is switched off.
    watcher.wait_for(lambda: any(state.startswith("HOLD: the operator's device is gone") for state in watcher.states), teleop.text, 5)
    assert "gamepad: /joy has been silent for 0.3 s" in " ".join(watcher.states)
    watcher.wait_for(lambda: watcher.state.startswith("STOPPED: the operator's device is gone"), "the stop", 5)
    sent = len(watcher.commands)
    watcher.spin(0.5)
    assert len(watcher.commands) == sent


@pytest.mark.parametrize("teleop", [("--policy", str(SHIPPED_POLICY))], indirect=True)
def test_a_person_at_the_keys_takes_over_from_the_shipped_policy_and_gives_back(teleop: Teleop, watcher: Watcher) -> None:
    engage(teleop, watcher)
    watcher.spin(0.4)
    teleop.press("t")
    watcher.wait_for(lambda: watcher.labels and "operator" in watcher.labels[-1], teleop.text, 5)
    start = watcher.hand.copy()
    for _ in range(20):
        teleop.press("r")
        watcher.spin(0.05)
    watcher.spin(0.3)
    assert watcher.hand[2] - start[2] > 0.02, "the operator leads the hand up, whatever the policy wants"
    assert "you have the robot" in teleop.text()
    teleop.press("t")
    watcher.wait_for(lambda: "policy" in watcher.labels[-1], teleop.text, 5)
    watcher.wait_for(lambda: watcher.lifted, "the policy to finish", 30)
    who = [json.loads(label)["commander"] for label in watcher.labels]
    assert [name for index, name in enumerate(who) if index == 0 or who[index - 1] != name] == ["policy", "operator", "policy"]


@pytest.mark.parametrize("teleop", [("--record", "raw")], indirect=True)
def test_a_terminal_that_vanishes_holds_the_robot_and_the_recording_says_why(teleop: Teleop, watcher: Watcher, tmp_path: Path) -> None:
    engage(teleop, watcher)
    for _ in range(10):
        teleop.press("r")
        watcher.spin(0.1)
    engage(teleop, watcher)
    os.close(teleop.slave)
    os.close(teleop.master)  # the SSH connection breaks
    why = "HOLD: the operator's device is gone: keyboard: the terminal is gone"
    watcher.wait_for(lambda: why in watcher.states, lambda: str(watcher.states), 10)
    assert teleop.process.wait(20) == 1
    (recording,) = (tmp_path / "raw").iterdir()
    with Reader(recording) as reader:
        connections = [connection for connection in reader.connections if connection.topic == "/policy_node/state"]
        states = [bytes(message) for _, _, message in reader.messages(connections)]
    assert any(why.encode() in state for state in states)


@pytest.mark.parametrize("teleop", [("--shadow", str(SHIPPED_POLICY), "--report", "shadow.json")], indirect=True)
def test_a_policy_in_the_shadow_of_an_operator_is_compared_and_reported(teleop: Teleop, watcher: Watcher, tmp_path: Path) -> None:
    engage(teleop, watcher)
    watcher.wait_for(lambda: watcher.node.count_publishers("/shadow_node/proposal/pose") == 1, teleop.text)
    for _ in range(40):
        teleop.press("f")
        watcher.spin(0.05)
    assert {info.node_name for info in watcher.node.get_publishers_info_by_topic("/target_pose")} == {"policy_node"}
    teleop.press("q")
    assert teleop.wait() == 0
    report = json.loads((tmp_path / "shadow.json").read_text())
    assert report["algorithm"] != "teleop"
    position = report["fields"]["ee_position_delta"]
    assert position["pairs"] >= 15
    assert 0 < position["p50"] < 0.1
    assert (tmp_path / "shadow.md").read_text().startswith("# Shadow report")
