# SPDX-License-Identifier: Apache-2.0
"""A plain terminal as a teleop device.

A terminal tells of key presses and of their repetition, never of a release. So a press moves for a bounded time, one step, and the
key's repetition goes on with it: a held key moves on, a released one stops within that time, and a dead line moves nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from otpr_operator.teleop.device import Event, Reading
from otpr_policy.spec import Array

PULSE_S = 0.2  # longer than the pause between two repetitions of a held key (about 0.03 s), shorter than an operator's reaction

MOTIONS: dict[str, tuple[int, float]] = {  # key: axis (0-2 linear x, y, z; 3-5 about x, y, z) and direction
    "w": (0, 1.0),
    "s": (0, -1.0),
    "a": (1, 1.0),
    "d": (1, -1.0),
    "r": (2, 1.0),
    "f": (2, -1.0),
    "u": (3, 1.0),
    "j": (3, -1.0),
    "i": (4, 1.0),
    "k": (4, -1.0),
    "o": (5, 1.0),
    "l": (5, -1.0),
}
EVENTS: dict[str, Event] = {
    "\r": Event.ENGAGE,
    "\n": Event.ENGAGE,
    " ": Event.STOP,
    "b": Event.RESET,
    "t": Event.SWITCH,
    "n": Event.NEXT_SCENE,
    "c": Event.CLOSE,
    "v": Event.OPEN,
    "+": Event.FASTER,
    "=": Event.FASTER,  # + without Shift on many layouts
    "-": Event.SLOWER,
    "q": Event.QUIT,
    "\x04": Event.QUIT,  # Ctrl-D
}


@dataclass(frozen=True)
class _Press:
    direction: float
    until_s: float


class HeldKeys:
    """Motion of the keys that were pressed a moment ago. One press per axis counts: the last."""

    def __init__(self, pulse_s: float = PULSE_S) -> None:
        self._pulse_s = pulse_s
        self._pressed: dict[int, _Press] = {}

    def press(self, key: str, now_s: float) -> bool:
        """Notes a key at ``now_s``. Returns whether it is one that moves."""
        motion = MOTIONS.get(key.lower())
        if motion is not None:
            axis, direction = motion
            self._pressed[axis] = _Press(direction, now_s + self._pulse_s)
        return motion is not None

    def release_all(self) -> None:
        """Nothing moves any more."""
        self._pressed.clear()

    def motion(self, now_s: float) -> Array:
        """(6,) in -1..1: linear, then angular."""
        result = np.zeros(6)
        for axis, press in self._pressed.items():
            if now_s < press.until_s:
                result[axis] = press.direction
        return result


class Keyboard:
    """Keys of a terminal as readings. Any key that means nothing stops the motion, as does the space bar."""

    name = "keyboard"

    def __init__(self, read: Callable[[], str | None], moves: bool = True) -> None:
        """Makes the device.

        Args:
            read: the characters typed since the last call, without waiting; None when the terminal is gone.
            moves: False where another device moves, and the keys only ask for events.
        """
        self._read = read
        self._held = HeldKeys()
        self._moves = moves
        self._lost = ""

    def poll(self, now_s: float) -> Reading:
        """See Device."""
        if self._lost:
            return Reading(lost=self._lost)
        typed = self._read()
        if typed is None:
            self._lost = "the terminal is gone"
            return Reading(lost=self._lost)
        events: list[Event] = []
        for key in typed:
            if self._held.press(key, now_s):
                continue
            self._held.release_all()
            event = EVENTS.get(key.lower())
            if event is not None:
                events.append(event)
        motion = self._held.motion(now_s) if self._moves else np.zeros(6)
        return Reading(motion[:3], motion[3:], tuple(events))

    def close(self) -> None:
        """The terminal is restored by who opened it."""
