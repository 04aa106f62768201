# SPDX-License-Identifier: Apache-2.0
"""Comparing two conditions that met the same scenes: only the scenes on which they differ say which is better."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from otpr_policy.paired import exact_p
from otpr_policy.success import SuccessRate


@dataclass(frozen=True)
class Paired:
    """Two conditions over the same n scenes.

    Args:
        both, first, second, neither: how many scenes were solved by both, only by one, by none.
    """

    both: int
    first: int
    second: int
    neither: int

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool]) -> "Paired":
        """Counts outcomes that are in the same order of scenes."""
        pairs = list(zip(first, second, strict=True))
        return cls(*(pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))))

    @property
    def scenes(self) -> int:
        """How many scenes."""
        return self.both + self.first + self.second + self.neither

    @property
    def difference(self) -> float:
        """Success of the first less that of the second."""
        return (self.first - self.second) / self.scenes

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference: Newcombe's hybrid of two Wilson intervals for paired proportions.

        Method 10 of Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired data",
        Statistics in Medicine 17 (1998).
        """
        n = self.scenes
        one, two = SuccessRate(self.both + self.first, n), SuccessRate(self.both + self.second, n)
        (low1, high1), (low2, high2) = one.interval, two.interval
        agreement = self.both * self.neither - self.first * self.second
        scale = sqrt(one.successes * (n - one.successes) * two.successes * (n - two.successes))
        phi = 0.0 if scale == 0 else (max(agreement - n / 2, 0.0) if agreement > 0 else agreement) / scale
        down1, up1, down2, up2 = one.rate - low1, high1 - one.rate, two.rate - low2, high2 - two.rate
        below = sqrt(down1**2 - 2 * phi * down1 * up2 + up2**2)
        above = sqrt(up1**2 - 2 * phi * up1 * down2 + down2**2)
        return self.difference - below, self.difference + above

    @property
    def p(self) -> float:
        """Two-sided p of McNemar's exact test, see :func:`otpr_policy.paired.exact_p`."""
        return exact_p(self.first, self.second)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for their number, in the same order: Holm, "A simple sequentially rejective multiple test procedure" (1979)."""
    corrected = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = running
    return corrected
