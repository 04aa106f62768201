# SPDX-License-Identifier: Apache-2.0
"""Which worlds a rehearsal plays: one factor at a time, and all of them at random together."""

from dataclasses import dataclass

import numpy as np

from otpr_sim.rehearsal.factors import Factor, shifted
from otpr_sim.shift import Shift

NOMINAL_POINT = "nominal"
JOINT_GAP = 2.0  # the random sample draws each factor up to this many typical gaps away


@dataclass(frozen=True)
class Cell:
    """One episode to play.

    Args:
        point: name of the world: ``nominal``, ``FACTOR=VALUE``, or ``joint``.
        episode: number of the scene, the same in every world: outcomes are paired by it.
        values: factor name to value, of those that are not nominal.
    """

    point: str
    episode: int
    values: tuple[tuple[str, float], ...] = ()

    @property
    def key(self) -> tuple[str, int]:
        """What tells it from all others."""
        return self.point, self.episode


def point_name(factor: Factor, value: float) -> str:
    """Name of the world in which one factor has a value."""
    return f"{factor.name}={value:g}"


def cells(factors: tuple[Factor, ...], episodes: int, joint: int, seed: int) -> list[Cell]:
    """All episodes, those of one scene after each other, so that a rehearsal that is broken off has something of everything."""
    sweep = [Cell(NOMINAL_POINT, 0)]
    sweep += [Cell(point_name(factor, value), 0, ((factor.name, value),)) for factor in factors for value in factor.levels]
    found = []
    drawn = [Cell("joint", number, joint_values(factors, seed, number)) for number in range(joint)]
    for episode in range(max(episodes, 1)):
        found += [Cell(cell.point, episode, cell.values) for cell in sweep]
        found += drawn[episode::episodes]
    return found


def joint_values(factors: tuple[Factor, ...], seed: int, number: int) -> tuple[tuple[str, float], ...]:
    """All factors at random: uniform in typical gaps, to either side where there are two. Depends on the factor, seed and number alone."""
    values = []
    for factor in factors:
        stream = np.random.default_rng(np.random.SeedSequence((seed, number, *factor.name.encode())))
        gap = stream.uniform(-JOINT_GAP if factor.two_sided else 0.0, JOINT_GAP)
        value = factor.at_gap(gap)
        values.append((factor.name, min(value, max(factor.levels)) if not factor.two_sided else value))
    return tuple(values)


def shift_of(cell: Cell, factors: tuple[Factor, ...]) -> Shift:
    """The world of a cell."""
    by_name = {factor.name: factor for factor in factors}
    return shifted((by_name[name], value) for name, value in cell.values)
