# SPDX-License-Identifier: Apache-2.0
"""From outcomes to what a team wants to know: which gap takes success away first, and at what value."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from otpr_policy.paired import exact_p
from otpr_policy.success import SuccessRate
from otpr_sim.rehearsal.design import JOINT_GAP, NOMINAL_POINT, point_name
from otpr_sim.rehearsal.factors import Factor
from otpr_sim.rehearsal.play import Played

LEVEL = 0.05  # of the exact paired test that says that success is lower at a value
BINS = 4


@dataclass(frozen=True)
class Level:
    """One factor at one value.

    Args:
        value: of the factor.
        gap: the same in typical gaps.
        success: over the scenes that were played.
        lost: scenes that succeed at nominal and fail here.
        won: the other way round.
    """

    value: float
    gap: float
    success: SuccessRate
    lost: int
    won: int

    @property
    def p(self) -> float:
        """Two-sided p of McNemar's exact test against nominal."""
        return exact_p(self.lost, self.won)

    @property
    def hurts(self) -> bool:
        """Whether success is lower than at nominal beyond chance."""
        return self.lost > self.won and self.p < LEVEL


@dataclass(frozen=True)
class Bin:
    """The random sample where one factor is in a range of values. ``success`` is None where nothing was played."""

    low: float
    high: float
    success: SuccessRate | None


@dataclass(frozen=True)
class Sweep:
    """One factor: its levels in order of their values, and the random sample in order of it."""

    factor: Factor
    levels: tuple[Level, ...]
    bins: tuple[Bin, ...]

    @property
    def breaks_at(self) -> Level | None:
        """The level nearest to nominal that hurts; None when none does."""
        hurting = [level for level in self.levels if level.hurts]
        return min(hurting, key=lambda level: abs(level.gap)) if hurting else None

    @property
    def farthest(self) -> float:
        """How many typical gaps away from nominal was tried."""
        return max((abs(level.gap) for level in self.levels), default=0.0)

    @property
    def worst(self) -> Level | None:
        """The level with the least success."""
        return min(self.levels, key=lambda level: level.success.rate) if self.levels else None


@dataclass(frozen=True)
class Findings:
    """All that a rehearsal found. ``sweeps`` are ranked: what hurts at the least multiple of its typical gap is first."""

    nominal: SuccessRate
    joint: SuccessRate | None
    sweeps: tuple[Sweep, ...]


def analyse(played: Iterable[Played], factors: tuple[Factor, ...]) -> Findings:
    """Compares every world with the nominal one, scene by scene. At least one nominal episode must have been played."""
    by_point: dict[str, dict[int, Played]] = {}
    for one in played:
        by_point.setdefault(one.point, {})[one.episode] = one
    nominal = by_point[NOMINAL_POINT]
    joint = list(by_point.get("joint", {}).values())
    sweeps = []
    for factor in factors:
        levels = [
            _level(factor, value, ours, nominal)
            for value in sorted(factor.levels)
            if (ours := by_point.get(point_name(factor, value))) is not None
        ]
        sweeps.append(Sweep(factor, tuple(levels), _bins(factor, joint)))
    ranked = tuple(sorted(sweeps, key=_rank))
    return Findings(_rate(nominal.values()), _rate(joint) if joint else None, ranked)


def in_words(findings: Findings) -> tuple[str, ...]:
    """The ranking as sentences, one per factor."""
    lines = []
    for sweep in findings.sweeps:
        factor, at = sweep.factor, sweep.breaks_at
        if at is None:
            lines.append(f"{factor.label}: no loss of success found up to {sweep.farthest:.1f} typical gaps{_worst(sweep)}")
            continue
        low, high = at.success.interval
        lines.append(
            f"{factor.label}: from {findings.nominal.rate:.2f} to {at.success.rate:.2f} [{low:.2f}, {high:.2f}] "
            f"at {factor.show(at.value)}, {abs(at.gap):.1f} times a typical gap (p = {at.p:.2g})"
        )
    return tuple(lines)


def _worst(sweep: Sweep) -> str:
    worst = sweep.worst
    return "" if worst is None else f"; least success {worst.success.rate:.2f} at {sweep.factor.show(worst.value)} (p = {worst.p:.2g})"


def _rank(sweep: Sweep) -> tuple[float, float]:
    at, worst = sweep.breaks_at, sweep.worst
    if at is not None:
        return abs(at.gap), at.success.rate
    return float("inf"), 1.0 if worst is None else worst.success.rate


def _level(factor: Factor, value: float, ours: dict[int, Played], nominal: dict[int, Played]) -> Level:
    common = ours.keys() & nominal.keys()
    lost = sum(nominal[n].success and not ours[n].success for n in common)
    won = sum(ours[n].success and not nominal[n].success for n in common)
    return Level(value, factor.gap(value), _rate(ours.values()), lost, won)


def _bins(factor: Factor, joint: list[Played]) -> tuple[Bin, ...]:
    """The random sample in bins that are equally wide in typical gaps."""
    if not joint:
        return ()
    edges = np.linspace(-JOINT_GAP if factor.two_sided else 0.0, JOINT_GAP, BINS + 1)
    found = []
    for low, high in pairwise(edges):
        last = high == edges[-1]
        inside = [one for one in joint if low <= (gap := factor.gap(one.values[factor.name])) and (gap < high or last)]
        found.append(Bin(factor.at_gap(float(low)), factor.at_gap(float(high)), _rate(inside) if inside else None))
    return tuple(found)


def _rate(played: Iterable[Played]) -> SuccessRate:
    outcomes = [one.success for one in played]
    return SuccessRate(sum(outcomes), len(outcomes))
