# SPDX-License-Identifier: Apache-2.0
"""What every teleop device yields: where the hand shall go, in shares of the present speed, and what else was asked for."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import numpy as np

from otpr_policy.spec import Array


class Event(Enum):
    """What an operator asks for beside motion."""

    ENGAGE = "engage"
    STOP = "stop"  # take the permission to move away
    RESET = "reset"  # clear a stop
    TAKE_OVER = "take over"
    GIVE_BACK = "give back"
    SWITCH = "take over or give back"
    OPEN = "open the gripper"
    CLOSE = "close the gripper"
    FASTER = "faster"
    SLOWER = "slower"
    NEXT_SCENE = "next scene"  # of a twin; at a robot a person sets the scene up
    QUIT = "quit"


@dataclass(frozen=True, eq=False)
class Reading:
    """One look at a device.

    Args:
        linear: (3,) in -1..1 along the base frame's axes; times the present speed it is a velocity.
        angular: (3,) in -1..1 about the base frame's axes.
        events: what was asked for since the last look, in order.
        lost: why the device says nothing any more; empty while it does.
    """

    linear: Array = field(default_factory=lambda: np.zeros(3))
    angular: Array = field(default_factory=lambda: np.zeros(3))
    events: tuple[Event, ...] = ()
    lost: str = ""


class Device(Protocol):
    """A keyboard, a gamepad, a SpaceMouse."""

    @property
    def name(self) -> str:
        """For a person."""

    def poll(self, now_s: float) -> Reading:
        """A look at it at ``now_s`` on the monotonic clock. Never blocks."""

    def close(self) -> None:
        """Lets go of it."""


def dead_band(value: float, width: float) -> float:
    """0 within ``width`` of 0, and from there linearly up to -1 or 1, so that nothing jumps at the edge. NaN is 0."""
    size = abs(value)
    if not size > width:
        return 0.0
    return float(np.copysign(min((size - width) / (1 - width), 1.0), value))
