# SPDX-License-Identifier: Apache-2.0
"""A SpaceMouse through pyspacemouse, which is optional. Nothing is imported before the device is asked for."""

import importlib
import importlib.util
from typing import Any

import numpy as np

from otpr_operator.teleop.device import Event, Reading, dead_band
from otpr_policy.errors import EnvironmentSetupError

MODULE = "pyspacemouse"
INSTALL = "pip install pyspacemouse hidapi"
UDEV_RULE = 'KERNEL=="hidraw*", ATTRS{idVendor}=="256f", MODE="0660", GROUP="plugdev"'
PERMISSION = (
    f"put {UDEV_RULE} into /etc/udev/rules.d/99-spacemouse.rules (an older device: 046d), join the group plugdev, and plug it in again"
)
_DEAD_BAND = 0.1
_REPORTS = 50  # read at most per look; a look that never ended would stall the operator's stream


class SpaceMouse:
    """The six axes of a SpaceMouse; its two buttons close and open the gripper.

    It reports only while it is touched, so that silence is its rest; that it is gone shows in a read that fails.
    """

    name = "SpaceMouse"

    def __init__(self, device: Any) -> None:
        """``device``: what ``pyspacemouse.open()`` gave."""
        self._device = device
        self._pressed = (False, False)
        self._lost = ""

    def poll(self, now_s: float) -> Reading:
        """See Device."""
        if self._lost:
            return Reading(lost=self._lost)
        try:
            state = self._newest()
        except (OSError, ValueError) as error:  # hidapi's two ways to say that it is unplugged
            state, reason = None, f" ({error})"
        else:
            reason = ""
        if state is None:
            self._lost = f"the SpaceMouse is unplugged{reason}"
            return Reading(lost=self._lost)
        # Pushed away from the operator, who stands behind the robot, is x; to the left is y.
        linear = np.array([dead_band(value, _DEAD_BAND) for value in (state.y, -state.x, state.z)])
        angular = np.array([dead_band(value, _DEAD_BAND) for value in (state.roll, state.pitch, state.yaw)])
        pressed = (bool(state.buttons[0]), bool(state.buttons[-1])) if len(state.buttons) >= 2 else (False, False)
        events = [event for event, new, old in zip((Event.CLOSE, Event.OPEN), pressed, self._pressed, strict=True) if new and not old]
        self._pressed = pressed
        return Reading(linear, angular, tuple(events))

    def close(self) -> None:
        """Closes the device."""
        self._device.close()

    def _newest(self) -> Any:
        """Each read takes one report out of the queue; what is acted on is the last."""
        state = self._device.read()
        for _ in range(_REPORTS):
            stamp = None if state is None else state.t
            state = self._device.read()
            if state is None or state.t == stamp:
                break
        return state


def open_spacemouse() -> SpaceMouse:
    """Opens the first SpaceMouse. Raises EnvironmentSetupError saying what to install, to allow, or to plug in."""
    if importlib.util.find_spec(MODULE) is None:
        raise EnvironmentSetupError(f"a SpaceMouse needs {MODULE}: {INSTALL}; and for its permission {PERMISSION}")
    try:
        device = importlib.import_module(MODULE).open()
    except Exception as error:  # the library's and hidapi's errors have no common class
        raise EnvironmentSetupError(f"no SpaceMouse can be opened ({error}); is it plugged in? Then {PERMISSION}") from error
    if not device:
        raise EnvironmentSetupError(f"no SpaceMouse can be opened; is it plugged in? Then {PERMISSION}")
    return SpaceMouse(device)
