# SPDX-License-Identifier: Apache-2.0
"""From readings of a device to what is sent: speeds, the gripper, and requests to the policy node."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from otpr_operator.teleop.device import Event, Reading
from otpr_operator.teleop.keyboard import PULSE_S
from otpr_policy.contract import Teleop
from otpr_policy.spec import Array

SPEEDS = (0.05, 0.1, 0.2, 0.5, 1.0)  # of the contract's fastest
START = 2


@dataclass(frozen=True, eq=False)
class Outgoing:
    """What one cycle sends.

    Args:
        linear: (3,) [m/s].
        angular: (3,) [rad/s].
        gripper: finger target [m] if one was asked for now.
        requests: for the policy node, in order.
        lost: why nothing may be sent; empty otherwise.
        quit: whether the operator is done.
    """

    linear: Array
    angular: Array
    gripper: float | None = None
    requests: tuple[Event, ...] = ()
    lost: str = ""
    quit: bool = False


class Session:
    """Keeps what outlasts a reading: the speed, and where the gripper was sent."""

    def __init__(self, teleop: Teleop) -> None:
        """``teleop``: of the robot's contract."""
        self._teleop = teleop
        self._level = START
        self.gripper: float | None = None

    def step(self, readings: Sequence[Reading]) -> Outgoing:
        """One cycle. ``readings``: of the device that moves, first; others only ask for events, and losing them loses no motion."""
        moving = readings[0]
        gripper, requests, done = None, [], False
        for event in (event for reading in readings for event in reading.events):
            if event in (Event.OPEN, Event.CLOSE):
                gripper = self._teleop.gripper_open if event is Event.OPEN else self._teleop.gripper_closed
            elif event in (Event.FASTER, Event.SLOWER):
                self._level = int(np.clip(self._level + (1 if event is Event.FASTER else -1), 0, len(SPEEDS) - 1))
            elif event is Event.QUIT:
                done = True
            else:
                requests.append(event)
        if gripper is not None:
            self.gripper = gripper
        linear, angular = self.linear_speed * moving.linear, self.angular_speed * moving.angular
        return Outgoing(linear, angular, gripper, tuple(requests), moving.lost, done)

    @property
    def linear_speed(self) -> float:
        """Of a device at its end [m/s]."""
        return SPEEDS[self._level] * self._teleop.linear_speed

    @property
    def angular_speed(self) -> float:
        """Of a device at its end [rad/s]."""
        return SPEEDS[self._level] * self._teleop.angular_speed

    def describe(self) -> str:
        """Speed and step with their units."""
        step_mm, step_deg = 1e3 * self.linear_speed * PULSE_S, np.degrees(self.angular_speed * PULSE_S)
        return f"{1e3 * self.linear_speed:.0f} mm/s {np.degrees(self.angular_speed):.0f} deg/s (key: {step_mm:.1f} mm, {step_deg:.1f} deg)"


HELP = f"""\
  w s   forward, back    (x of the base)      u j   turn about x       Enter   engage: the robot may move
  a d   left, right      (y)                  i k   turn about y       Space   stop
  r f   up, down         (z)                  o l   turn about z       b       reset after a STOPPED
  c v   close, open the gripper               + -   faster, slower     t       take over from the policy, give back
  n     stop, and the next scene (twin)                                q       quit
One press moves for {PULSE_S:.1f} s. A held key moves on through the terminal's key repeat, and stops {PULSE_S:.1f} s after it is let go."""
