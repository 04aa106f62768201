# SPDX-License-Identifier: Apache-2.0
"""The gaps between simulation and robot that a rehearsal tries, each with a yardstick that makes them comparable."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import exp, log
from typing import Any

from otpr_policy.errors import TaskError, unknown
from otpr_sim.shift import NOMINAL, Shift

_PUSH_RATE_HZ = 0.5  # about one push in an episode that goes well


@dataclass(frozen=True)
class Factor:
    """One gap.

    Args:
        name: field of :class:`otpr_sim.shift.Shift`.
        label: for a person.
        unit: of values as they are shown.
        nominal: value without a gap.
        typical: value of a gap that a careful team still has; the yardstick. A value is as many gaps away as it takes steps like this.
        levels: values to try one at a time, at both sides of the nominal one for factors that have two sides.
        scale: shown value per value.
        ratio: whether steps multiply (mass, friction) instead of adding up.
    """

    name: str
    label: str
    unit: str
    nominal: float
    typical: float
    levels: tuple[float, ...]
    scale: float = 1.0
    ratio: bool = False

    def gap(self, value: float) -> float:
        """How many typical gaps away from nominal a value is; negative on the other side."""
        if self.ratio:
            return log(value / self.nominal) / log(self.typical / self.nominal)
        return (value - self.nominal) / (self.typical - self.nominal)

    def at_gap(self, gap: float) -> float:
        """The value that is so many typical gaps away from nominal."""
        if self.ratio:
            return self.nominal * exp(gap * log(self.typical / self.nominal))
        return self.nominal + gap * (self.typical - self.nominal)

    @property
    def two_sided(self) -> bool:
        """Whether it can be off to either side."""
        return self.ratio

    def apply(self, shift: Shift, value: float) -> Shift:
        """The shift with this factor at a value."""
        changes: dict[str, Any] = {self.name: (value, value) if self.ratio else value}
        if self.name == "push_n":
            changes["push_rate_hz"] = _PUSH_RATE_HZ if value else 0.0
        return replace(shift, **changes)

    def show(self, value: float) -> str:
        """A value with its unit."""
        return f"{value * self.scale:.3g} {self.unit}"


FACTORS = (
    Factor("calibration_m", "camera calibration, offset", "mm", 0.0, 0.005, (0.0025, 0.005, 0.01, 0.015, 0.025), 1e3),
    Factor("calibration_rad", "camera calibration, turn", "mrad", 0.0, 0.01, (0.005, 0.01, 0.02, 0.04, 0.08), 1e3),
    Factor("noise_m", "noise on positions", "mm", 0.0, 0.002, (0.001, 0.002, 0.004, 0.008, 0.016), 1e3),
    Factor("noise_rad", "noise on rotations", "mrad", 0.0, 0.01, (0.01, 0.02, 0.05, 0.1, 0.2), 1e3),
    Factor("action_delay", "delay of commands", "control steps", 0.0, 0.5, (0.5, 1.0, 1.5, 2.0, 3.0)),
    Factor("mass", "mass of objects", "x", 1.0, 1.5, (0.25, 0.5, 2.0, 4.0, 8.0), ratio=True),
    Factor("friction", "friction", "x", 1.0, 0.75, (0.1, 0.25, 0.5, 0.75, 1.5), ratio=True),
    Factor("start_region", "start region, width", "x", 1.0, 1.5, (1.25, 1.5, 1.75, 2.0)),
    Factor("push_n", f"pushes at {_PUSH_RATE_HZ:g} Hz, force", "N", 0.0, 30.0, (15.0, 30.0, 60.0, 120.0, 240.0)),
)


def choose(names: Iterable[str]) -> tuple[Factor, ...]:
    """Factors by name, in the order of :data:`FACTORS`; all for no names. Raises TaskError listing the known ones."""
    wanted = list(names)
    known = {factor.name: factor for factor in FACTORS}
    for name in wanted:
        if name not in known:
            raise TaskError(unknown("factor", name, known))
    return tuple(factor for factor in FACTORS if not wanted or factor.name in wanted)


def shifted(values: Iterable[tuple[Factor, float]]) -> Shift:
    """The shift with some factors at values and the others nominal."""
    shift = NOMINAL
    for factor, value in values:
        shift = factor.apply(shift, value)
    return shift
