# SPDX-License-Identifier: Apache-2.0
"""Which teleop devices can be used on this machine, and why not: what ``otpr teleop --list`` shows."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from otpr_operator.teleop import spacemouse

_VENDORS = ("256F", "046D")  # 3Dconnexion; Logitech, who sold its first ones
_NAMES = ("SPACEMOUSE", "SPACENAVIGATOR", "SPACEPILOT", "SPACEEXPLORER", "3DCONNEXION")


@dataclass(frozen=True)
class DeviceReport:
    """One kind of device. ``why``: what speaks for it, or what to do."""

    name: str
    usable: bool
    why: str


def devices(keys: int, joy_topic: str, joy_publishers: int | None, root: Path = Path("/")) -> list[DeviceReport]:
    """All of them.

    Args:
        keys: file descriptor of the keyboard's terminal.
        joy_topic: topic of the gamepad.
        joy_publishers: how many nodes publish on it; None without ROS.
        root: where ``dev`` and ``sys`` are.
    """
    return [_keyboard(keys), _gamepad(joy_topic, joy_publishers, root), _spacemouse(root)]


def _keyboard(keys: int) -> DeviceReport:
    if os.isatty(keys):
        return DeviceReport("keyboard", True, f"terminal {_terminal_name(keys)}")
    why = "standard input is not a terminal; over SSH use 'ssh -t', in a container 'docker run -it'"
    return DeviceReport("keyboard", False, why)


def _gamepad(topic: str, publishers: int | None, root: Path) -> DeviceReport:
    if publishers is None:
        return DeviceReport("gamepad", False, "rclpy is not installed; 'otpr doctor' says how to get ROS 2")
    if publishers > 1:
        return DeviceReport(
            "gamepad", False, f"{publishers} nodes publish on {topic}; one must be left, or the buttons contradict each other"
        )
    if publishers == 1:
        return DeviceReport("gamepad", True, f"one node publishes on {topic}")
    found = sorted((root / "dev" / "input").glob("js*"))
    start = f"nobody publishes on {topic}"
    if not found:
        where = "no gamepad is plugged in (no /dev/input/js*); a container needs '--device /dev/input'"
        return DeviceReport("gamepad", False, f"{start}, and {where}")
    if not any(os.access(path, os.R_OK) for path in found):
        return DeviceReport(
            "gamepad", False, f"{start}, and {found[0].name} may not be read: join the group input (sudo usermod -aG input $USER)"
        )
    return DeviceReport("gamepad", False, f"{start}, {found[0].name} is there: start 'ros2 run joy joy_node'")


def _spacemouse(root: Path) -> DeviceReport:
    found = [path for path in sorted((root / "sys" / "class" / "hidraw").glob("*")) if _is_spacemouse(path)]
    nodes = [root / "dev" / path.name for path in found]
    if importlib.util.find_spec(spacemouse.MODULE) is None:
        plugged = "is plugged in" if found else "none is plugged in"
        return DeviceReport("spacemouse", False, f"{spacemouse.MODULE} is not installed: {spacemouse.INSTALL} ({plugged})")
    if not found:
        return DeviceReport("spacemouse", False, "none is plugged in (no 3Dconnexion device under /sys/class/hidraw)")
    if not any(os.access(path, os.R_OK | os.W_OK) for path in nodes):
        return DeviceReport("spacemouse", False, f"{nodes[0].name} may not be opened: {spacemouse.PERMISSION}")
    return DeviceReport("spacemouse", True, nodes[0].name)


def _is_spacemouse(hidraw: Path) -> bool:
    try:
        about = (hidraw / "device" / "uevent").read_text(encoding="utf-8", errors="replace").upper()
    except OSError:
        return False
    vendor = next((vendor for vendor in _VENDORS if f":0000{vendor}:" in about), None)
    # Logitech makes mice and keyboards too.
    return vendor == _VENDORS[0] or (vendor is not None and any(name in about.replace(" ", "") for name in _NAMES))


def _terminal_name(keys: int) -> str:
    try:
        return os.ttyname(keys)
    except OSError:
        return "without a name"
