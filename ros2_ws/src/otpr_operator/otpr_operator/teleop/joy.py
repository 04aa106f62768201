# SPDX-License-Identifier: Apache-2.0
"""A gamepad through ``sensor_msgs/Joy``: which axis and button does what is a small YAML file.

The dead-man button has to be held for anything to move; where a policy runs, holding it takes over and letting go gives back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from otpr_operator.teleop.device import Event, Reading, dead_band
from otpr_policy.errors import ContractError, unknown
from otpr_policy.spec import Array
from otpr_policy.strict_yaml import build, read_yaml

AXES = ("x", "y", "z", "roll", "pitch", "yaw")


@dataclass(frozen=True)
class Axis:
    """One direction of motion: the index in ``Joy.axes``, and -1.0 where it points the other way."""

    index: int
    sign: float = 1.0


@dataclass(frozen=True)
class JoyMap:
    """What a gamepad's axes and buttons do.

    Args:
        dead_man: index in ``Joy.buttons`` of the button that has to be held.
        axes: ``x``, ``y``, ``z``, ``roll``, ``pitch``, ``yaw``; what is left out does not move.
        buttons: index of the button by event, such as ``engage`` or ``close the gripper``.
        dead_band: share of an axis around its middle that counts as 0.
        max_age_s: silence of the topic after which the gamepad counts as gone. joy_node repeats its state 20 times a second.
    """

    dead_man: int
    axes: Mapping[str, Axis]
    buttons: Mapping[str, int] = field(default_factory=dict)
    dead_band: float = 0.1
    max_age_s: float = 0.3

    def __post_init__(self) -> None:
        for name in self.axes:
            if name not in AXES:
                raise ContractError(f"gamepad: {unknown('axis', name, AXES)}")
        events = [event.value for event in Event]
        for name in self.buttons:
            if name not in events:
                raise ContractError(f"gamepad: {unknown('button', name, events)}")
        indices = [self.dead_man, *(axis.index for axis in self.axes.values()), *self.buttons.values()]
        if min(indices) < 0 or any(axis.sign not in (-1.0, 1.0) for axis in self.axes.values()):
            raise ContractError("gamepad: an index must be 0 or more, a sign 1.0 or -1.0")
        if not (0 <= self.dead_band < 1 and 0 < self.max_age_s < float("inf")):
            raise ContractError("gamepad: dead_band must be in [0, 1), max_age_s above 0 [s]")


DEFAULT = JoyMap(  # joy_node's numbers of an Xbox gamepad
    dead_man=4,
    axes={"x": Axis(1), "y": Axis(0), "z": Axis(4), "yaw": Axis(3)},
    buttons={"close the gripper": 0, "open the gripper": 1, "engage": 7, "stop": 6, "reset": 3},
)


def load_map(path: Path) -> JoyMap:
    """Reads a map. Raises ContractError when it is not YAML, or a key is missing, unknown or of the wrong kind."""
    return build(JoyMap, read_yaml(path, "gamepad map"), "gamepad")


class Gamepad:
    """The newest Joy message as readings."""

    name = "gamepad"

    def __init__(self, joy_map: JoyMap, topic: str) -> None:
        """``topic``: where its messages come from, for who connects it."""
        self._map = joy_map
        self.topic = topic
        self._axes: Sequence[float] = ()
        self._buttons: Sequence[int] = ()
        self._pressed: set[Event] = set()
        self._holding = False
        self._arrived_s: float | None = None
        self._pending: list[Event] = []
        self._problem = ""

    def take(self, axes: Sequence[float], buttons: Sequence[int], now_s: float) -> None:
        """A message arrived. Events are noted here: a button may be pressed and released between two looks."""
        self._problem = self._lacking(axes, buttons)
        self._arrived_s = now_s
        if self._problem:
            return
        self._axes, self._buttons = tuple(axes), tuple(buttons)
        pressed = {Event(name) for name, index in self._map.buttons.items() if buttons[index]}
        self._pending += sorted(pressed - self._pressed, key=lambda event: event.value)
        self._pressed = pressed
        holding = bool(buttons[self._map.dead_man])
        if holding is not self._holding:
            self._pending.append(Event.TAKE_OVER if holding else Event.GIVE_BACK)
        self._holding = holding

    def poll(self, now_s: float) -> Reading:
        """See Device. Silence for too long, or a message without an axis that is needed, is a lost device."""
        if self._arrived_s is None:
            return Reading(lost=f"no message on {self.topic} yet; is joy_node running?")
        if self._problem:
            return Reading(lost=self._problem)
        age_s = now_s - self._arrived_s
        if age_s > self._map.max_age_s:
            # The button may have been let go meanwhile. Only a message that says so gives the robot back.
            return Reading(lost=f"{self.topic} has been silent for {age_s:.1f} s")
        events, self._pending = tuple(self._pending), []
        motion = self._motion() if self._holding else np.zeros(6)
        return Reading(motion[:3], motion[3:], events)

    def close(self) -> None:
        """The subscription is the node's."""

    def _motion(self) -> Array:
        motion = np.zeros(6)
        for name, axis in self._map.axes.items():
            motion[AXES.index(name)] = axis.sign * dead_band(self._axes[axis.index], self._map.dead_band)
        return motion

    def _lacking(self, axes: Sequence[float], buttons: Sequence[int]) -> str:
        most_axis = max((axis.index for axis in self._map.axes.values()), default=-1)
        most_button = max(self._map.dead_man, *self._map.buttons.values(), -1)
        if len(axes) <= most_axis or len(buttons) <= most_button:
            return f"{self.topic} has {len(axes)} axes and {len(buttons)} buttons, the map needs axis {most_axis} and button {most_button}"
        return "" if np.isfinite(np.asarray(axes, dtype=float)).all() else f"{self.topic} has an axis that is not finite"
