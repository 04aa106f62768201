# SPDX-License-Identifier: Apache-2.0
"""Teleop devices: keys of a pseudo-terminal, gamepad messages, a SpaceMouse stand-in, and what is said of each."""

import os
import pty
import termios
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from otpr_operator.teleop import spacemouse
from otpr_operator.teleop.device import Event, Reading, dead_band
from otpr_operator.teleop.joy import DEFAULT, Axis, Gamepad, JoyMap, load_map
from otpr_operator.teleop.keyboard import EVENTS, MOTIONS, PULSE_S, HeldKeys, Keyboard
from otpr_operator.teleop.listing import devices
from otpr_operator.teleop.session import HELP, Session
from otpr_operator.teleop.terminal import Terminal
from otpr_policy.contract import load_contract
from otpr_policy.errors import ContractError, EnvironmentSetupError

TELEOP = load_contract("panda_twin").teleop


# Keyboard


def test_a_press_moves_for_a_bounded_time_and_no_longer() -> None:
    keys = HeldKeys()
    assert keys.press("w", 10.0)
    assert keys.motion(10.0 + PULSE_S - 1e-6).tolist() == [1, 0, 0, 0, 0, 0]
    assert keys.motion(10.0 + PULSE_S + 1e-6).tolist() == [0] * 6


def test_repetition_of_a_held_key_moves_on_and_letting_go_stops_within_one_pulse() -> None:
    keys = HeldKeys()
    for repetition in range(30):  # a terminal's 30 per second
        keys.press("d", repetition / 30)
        assert keys.motion(repetition / 30)[1] == -1
    assert keys.motion(29 / 30 + PULSE_S + 1e-6)[1] == 0


def test_the_last_key_of_an_axis_wins_and_axes_add_up() -> None:
    keys = HeldKeys()
    for key in "wsAo":
        keys.press(key, 0.0)
    assert keys.motion(0.1).tolist() == [-1, 1, 0, 0, 0, 1]


def test_any_other_key_stops_the_motion() -> None:
    typed = iter(["w", "x", "w", " "])
    keyboard = Keyboard(lambda: next(typed))
    readings = [keyboard.poll(0.0) for _ in range(4)]
    assert [reading.linear[0] for reading in readings] == [1, 0, 1, 0]
    assert readings[3].events == (Event.STOP,)


def test_every_key_is_on_the_screen_and_means_one_thing() -> None:
    assert not set(MOTIONS) & set(EVENTS)
    for key in MOTIONS:
        assert f" {key} " in HELP
    for key in set(EVENTS) & set("bcnvtq+-"):
        assert f" {key} " in HELP


def test_a_terminal_that_is_gone_is_a_lost_device_for_good() -> None:
    answers: list[str | None] = ["w", None, "w"]
    keyboard = Keyboard(lambda: answers.pop(0))
    assert keyboard.poll(0.0).lost == ""
    assert keyboard.poll(0.0).lost == keyboard.poll(0.0).lost == "the terminal is gone"
    assert keyboard.poll(0.1).linear.tolist() == [0, 0, 0]


@pytest.fixture
def terminals() -> Any:
    master, slave = pty.openpty()
    yield master, slave
    for descriptor in (master, slave):
        try:
            os.close(descriptor)
        except OSError:
            continue


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
def test_the_terminal_is_as_it_was_whatever_happened(terminals: tuple[int, int], error: type[BaseException] | None) -> None:
    _, slave = terminals
    before = termios.tcgetattr(slave)
    try:
        with Terminal(slave, slave):
            assert not termios.tcgetattr(slave)[3] & (termios.ICANON | termios.ECHO)
            assert termios.tcgetattr(slave)[3] & termios.ISIG  # Ctrl-C stays Ctrl-C
            if error is not None:
                raise error
    except (KeyboardInterrupt, RuntimeError):
        pass
    assert termios.tcgetattr(slave) == before


def test_keys_come_at_once_and_a_closed_line_is_noticed(terminals: tuple[int, int]) -> None:
    master, slave = terminals
    with Terminal(slave, slave) as terminal:
        assert terminal.read() == ""
        os.write(master, b"wa\r")
        assert terminal.read() == "wa\n"  # a terminal makes a new line of Enter
        os.close(master)
        assert terminal.read() is None


def test_a_pipe_is_no_keyboard() -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(EnvironmentSetupError, match="ssh -t"):
            Terminal(reading, writing)
    finally:
        os.close(reading)
        os.close(writing)


# Speeds


def test_speed_keys_go_through_the_levels_and_the_step_is_shown_with_its_unit() -> None:
    assert TELEOP is not None
    session = Session(TELEOP)
    forward = np.array([1.0, 0, 0])
    assert session.step([Reading(linear=forward, angular=forward)]).linear.tolist() == pytest.approx([0.05, 0, 0])
    assert session.describe() == "50 mm/s 11 deg/s (key: 10.0 mm, 2.3 deg)"
    for _ in range(9):
        out = session.step([Reading(linear=forward, angular=forward, events=(Event.FASTER,))])
    assert (out.linear[0], out.angular[0]) == (TELEOP.linear_speed, TELEOP.angular_speed)  # and never beyond the contract's
    for _ in range(9):
        out = session.step([Reading(events=(Event.SLOWER,))])
    assert session.describe().startswith("12 mm/s")


def test_the_gripper_is_sent_when_asked_for_and_requests_keep_their_order() -> None:
    assert TELEOP is not None
    session = Session(TELEOP)
    out = session.step([Reading(events=(Event.CLOSE, Event.SWITCH)), Reading(events=(Event.ENGAGE,))])
    assert (out.gripper, out.requests, out.quit) == (0.0, (Event.SWITCH, Event.ENGAGE), False)
    assert session.step([Reading()]).gripper is None
    assert session.step([Reading(events=(Event.OPEN, Event.QUIT))]).gripper == 0.04


def test_a_lost_device_beside_the_one_that_moves_loses_no_motion() -> None:
    assert TELEOP is not None
    out = Session(TELEOP).step([Reading(linear=np.array([0, 0, 1.0])), Reading(lost="the terminal is gone")])
    assert out.lost == ""
    assert out.linear[2] > 0


# Gamepad


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0, 0.0), (0.1, 0.0), (-0.1, 0.0), (1.0, 1.0), (-1.0, -1.0), (0.55, 0.5), (7.0, 1.0), (np.nan, 0.0)]
)
def test_the_dead_band_is_still_continuous_and_bounded(value: float, expected: float) -> None:
    assert dead_band(value, 0.1) == pytest.approx(expected)


def joy(gamepad: Gamepad, now_s: float, *pressed: int, **axes: float) -> None:
    values = [0.0] * 6
    for name, value in axes.items():
        values[int(name[1:])] = value
    gamepad.take(values, [int(n in pressed) for n in range(8)], now_s)


def test_nothing_moves_without_the_dead_man_button_and_holding_it_takes_over() -> None:
    gamepad = Gamepad(DEFAULT, "/joy")
    joy(gamepad, 0.0, a1=1.0)
    assert gamepad.poll(0.0).linear.tolist() == [0, 0, 0]
    joy(gamepad, 0.1, 4, a1=1.0, a0=-1.0, a3=0.55)
    reading = gamepad.poll(0.1)
    assert reading.linear.tolist() == [1, -1, 0]
    assert reading.angular.tolist() == pytest.approx([0, 0, 0.5])
    assert reading.events == (Event.TAKE_OVER,)
    joy(gamepad, 0.2, a1=1.0)
    reading = gamepad.poll(0.2)
    assert (reading.linear.tolist(), reading.events) == ([0, 0, 0], (Event.GIVE_BACK,))


def test_a_silent_gamepad_is_lost_and_does_not_give_the_robot_back() -> None:
    gamepad = Gamepad(DEFAULT, "/joy")
    assert "no message on /joy yet" in gamepad.poll(0.0).lost
    joy(gamepad, 0.0, 4, a1=1.0)
    assert gamepad.poll(DEFAULT.max_age_s).linear[0] == 1
    lost = gamepad.poll(DEFAULT.max_age_s + 0.21)
    assert (lost.lost, lost.linear.tolist(), lost.events) == ("/joy has been silent for 0.5 s", [0, 0, 0], ())
    joy(gamepad, 1.0, 4)
    assert gamepad.poll(1.0).lost == ""


def test_a_button_counts_once_however_long_it_is_held_and_however_short_it_was_pressed() -> None:
    gamepad = Gamepad(DEFAULT, "/joy")
    for now_s in (0.0, 0.05, 0.1):
        joy(gamepad, now_s, 0)
    assert gamepad.poll(0.1).events == (Event.CLOSE,)
    joy(gamepad, 0.15, 1)
    joy(gamepad, 0.2)
    assert gamepad.poll(0.2).events == (Event.OPEN,)
    assert gamepad.poll(0.2).events == ()


@pytest.mark.parametrize(
    ("axes", "buttons", "says"),
    [([0.0] * 2, [0] * 8, "has 2 axes"), ([0.0] * 6, [0] * 3, "3 buttons"), ([np.nan] * 6, [0] * 8, "not finite")],
)
def test_a_message_of_another_gamepad_is_a_lost_device(axes: list[float], buttons: list[int], says: str) -> None:
    gamepad = Gamepad(DEFAULT, "/joy")
    gamepad.take(axes, buttons, 0.0)
    assert says in gamepad.poll(0.0).lost


def test_a_map_is_read_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "pad.yaml"
    path.write_text("dead_man: 5\naxes:\n  z: {index: 2, sign: -1.0}\nbuttons: {reset: 1}\n")
    assert load_map(path) == JoyMap(5, {"z": Axis(2, -1.0)}, {"reset": 1})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dead_man: 5\naxes:\n  zz: {index: 2}\n", "unknown axis 'zz'; known: pitch, roll, x, y, yaw, z"),
        ("dead_man: 5\naxes: {}\nbuttons: {fire: 1}\n", "unknown button 'fire'"),
        ("dead_man: -1\naxes: {}\n", "0 or more"),
        ("dead_man: 5\naxes:\n  z: {index: 2, sign: 0.5}\n", "a sign 1.0 or -1.0"),
        ("dead_man: 5\naxes: {}\ndead_band: 1.0\n", "dead_band"),
        ("axes: {}\n", "'dead_man' is missing"),
    ],
)
def test_a_wrong_map_is_refused_with_what_is_valid(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "pad.yaml"
    path.write_text(text)
    with pytest.raises(ContractError) as caught:
        load_map(path)
    assert says in str(caught.value)


# SpaceMouse


class Puck:
    """Answers as pyspacemouse does: one report per read, and the same state again when there is none."""

    def __init__(self, *reports: Any) -> None:
        self.reports = list(reports)
        self.state: Any = SimpleNamespace(t=-1.0, x=0.0, y=0.0, z=0.0, roll=0.0, pitch=0.0, yaw=0.0, buttons=[0, 0])

    def read(self) -> Any:
        if self.reports:
            report = self.reports.pop(0)
            if isinstance(report, Exception):
                raise report
            self.state = SimpleNamespace(**{**vars(self.state), "t": self.state.t + 1.0, **report})
        return self.state

    def close(self) -> None:
        self.state = None


def test_a_spacemouse_gives_its_newest_report_and_its_buttons_once() -> None:
    mouse = spacemouse.SpaceMouse(Puck({"y": 0.2}, {"y": 0.55, "x": -1.0}, {"z": 1.0, "buttons": [1, 0]}))
    reading = mouse.poll(0.0)
    assert reading.linear.tolist() == pytest.approx([0.5, 1.0, 1.0])
    assert reading.events == (Event.CLOSE,)
    assert mouse.poll(0.1).events == ()


def test_an_unplugged_spacemouse_is_lost() -> None:
    mouse = spacemouse.SpaceMouse(Puck({"y": 1.0}, OSError("read error")))
    assert mouse.poll(0.0).lost == "the SpaceMouse is unplugged (read error)"
    assert mouse.poll(0.1).linear.tolist() == [0, 0, 0]


def test_without_the_library_it_says_what_to_install_and_what_to_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spacemouse, "MODULE", "pyspacemouse_that_nobody_has")
    with pytest.raises(EnvironmentSetupError, match=r"pip install pyspacemouse hidapi.*udev"):
        spacemouse.open_spacemouse()


# The list


def listed(root: Path, publishers: int | None = 0) -> dict[str, tuple[bool, str]]:
    reading, writing = os.pipe()
    try:
        return {device.name: (device.usable, device.why) for device in devices(reading, "/joy", publishers, root)}
    finally:
        os.close(reading)
        os.close(writing)


def test_a_bare_machine_has_no_device_and_says_why_not(tmp_path: Path) -> None:
    found = listed(tmp_path)
    assert not any(usable for usable, _ in found.values())
    assert "not a terminal" in found["keyboard"][1]
    assert "--device /dev/input" in found["gamepad"][1]


def test_a_gamepad_without_its_node_and_one_without_permission_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dev/input").mkdir(parents=True)
    (tmp_path / "dev/input/js0").touch()
    assert "start 'ros2 run joy joy_node'" in listed(tmp_path)["gamepad"][1]
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "join the group input" in listed(tmp_path)["gamepad"][1]
    assert listed(tmp_path, 1)["gamepad"] == (True, "one node publishes on /joy")
    assert not listed(tmp_path, 2)["gamepad"][0]
    assert "rclpy" in listed(tmp_path, None)["gamepad"][1]


@pytest.mark.parametrize(
    ("uevent", "found"),
    [
        ("HID_ID=0003:0000256F:0000C635\nHID_NAME=3Dconnexion SpaceMouse Compact\n", True),
        ("HID_ID=0003:0000046D:0000C626\nHID_NAME=3Dconnexion SpaceNavigator\n", True),
        ("HID_ID=0003:0000046D:0000C31C\nHID_NAME=Logitech USB Keyboard\n", False),
    ],
)
def test_a_spacemouse_is_told_from_other_devices_of_its_makers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uevent: str, found: bool
) -> None:
    monkeypatch.setattr(spacemouse, "MODULE", "json")  # as if it were installed
    (tmp_path / "sys/class/hidraw/hidraw3/device").mkdir(parents=True)
    (tmp_path / "sys/class/hidraw/hidraw3/device/uevent").write_text(uevent)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/hidraw3").touch()
    usable, why = listed(tmp_path)["spacemouse"]
    assert usable is found
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert ("udev" in listed(tmp_path)["spacemouse"][1]) is found, why
