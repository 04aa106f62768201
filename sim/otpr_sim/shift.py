# SPDX-License-Identifier: Apache-2.0
"""Distribution shift: how the world in which a policy is judged may differ from the one in which it was demonstrated."""

from abc import abstractmethod
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otpr_policy.errors import TaskError, unknown
from otpr_sim.env import RobotEnv

Range = tuple[float, float]


@dataclass(frozen=True)
class Shift:
    """Every number is drawn, or its noise is, from the episode's seed. The defaults change nothing.

    Args:
        start_region: factor on the region that objects start in, around its middle, as far as the scene has room.
        mass: range of the factor on the masses of the task's objects, drawn per episode.
        friction: range of the factor on the friction of every contact, drawn per episode.
        noise_m: standard deviation of the noise on measured positions: hand, fingers, objects [m].
        noise_rad: standard deviation of the noise on measured rotations, about each axis [rad].
        calibration_m: how far off the measured positions of all objects are, the same way for an episode, in a random direction [m].
        calibration_rad: how far the camera's frame is turned against the robot's base about a random axis; turns measured objects about
            the base, so that those half a metre away are off by half of this in metres [rad].
        action_delay: from a command to its effect, in control steps; may be a fraction.
        push_rate_hz: mean number of pushes against the hand per second.
        push_n: force of a push, in a random direction [N].
        push_steps: length of a push, in control steps.

    Raises:
        TaskError: a number without meaning.
    """

    start_region: float = 1.0
    mass: Range = (1.0, 1.0)
    friction: Range = (1.0, 1.0)
    noise_m: float = 0.0
    noise_rad: float = 0.0
    calibration_m: float = 0.0
    calibration_rad: float = 0.0
    action_delay: float = 0.0
    push_rate_hz: float = 0.0
    push_n: float = 0.0
    push_steps: int = 4

    def __post_init__(self) -> None:
        for name in ("noise_m", "noise_rad", "calibration_m", "calibration_rad", "action_delay", "push_rate_hz", "push_n"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) >= 0.0):
                raise TaskError(f"{name} of a shift must be a number of at least 0, got {getattr(self, name)}")
        if not (np.isfinite(self.start_region) and self.start_region > 0.0):
            raise TaskError(f"start_region of a shift must be a positive number, got {self.start_region}")
        for name in ("mass", "friction"):
            low, high = getattr(self, name)
            if not (np.isfinite(high) and 0.0 < low <= high):
                raise TaskError(f"{name} of a shift must be a range of positive numbers, got {(low, high)}")
        if self.push_steps < 1:
            raise TaskError(f"push_steps of a shift must be at least 1, got {self.push_steps}")

    def to_json(self) -> dict[str, Any]:
        """Plain data for reports."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


NOMINAL = Shift()
PRESETS = {
    "nominal": NOMINAL,
    "wide": Shift(start_region=2.0),
    "shifted": Shift(
        start_region=1.5,
        mass=(0.7, 1.5),
        friction=(0.7, 1.2),
        noise_m=0.002,
        noise_rad=0.01,
        action_delay=0.5,
        push_rate_hz=0.2,
        push_n=30.0,
    ),
    "hard": Shift(
        start_region=2.0,
        mass=(0.5, 2.5),
        friction=(0.5, 1.3),
        noise_m=0.004,
        noise_rad=0.02,
        action_delay=1.5,
        push_rate_hz=0.5,
        push_n=60.0,
    ),
}


def preset(name: str) -> Shift:
    """A shift by name. Raises TaskError listing the known ones."""
    if name not in PRESETS:
        raise TaskError(unknown("preset", name, PRESETS))
    return PRESETS[name]


class ShiftableEnv(RobotEnv):
    """An environment whose physics can be shifted from outside. What is set is kept until it is set anew, through resets too."""

    @abstractmethod
    def widen_start_region(self, factor: float) -> None:
        """Sets the factor on the region that reset() puts objects in."""

    @abstractmethod
    def scale_dynamics(self, mass: float, friction: float) -> None:
        """Sets the factors on the masses of the task's objects and on the friction of all contacts; the next reset() is with them."""

    @abstractmethod
    def push(self, force: NDArray[np.float64]) -> None:
        """Pushes the hand with a force (3,) [N] in the base frame until the next call or reset; it is part of the state."""
