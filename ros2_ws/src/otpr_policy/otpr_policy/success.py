# SPDX-License-Identifier: Apache-2.0
"""Success rates with their uncertainty: a rate without an interval is not a result."""

from dataclasses import dataclass
from math import sqrt
from typing import Any

_Z_95 = 1.959963984540054  # two-sided 95 % quantile of the standard normal


@dataclass(frozen=True)
class SuccessRate:
    """``successes`` out of ``episodes`` independent episodes."""

    successes: int
    episodes: int

    def __post_init__(self) -> None:
        if self.episodes < 1 or not 0 <= self.successes <= self.episodes:
            raise ValueError(f"{self.successes} successes out of {self.episodes} episodes is not a rate")

    @property
    def rate(self) -> float:
        """Fraction of successes."""
        return self.successes / self.episodes

    @property
    def interval(self) -> tuple[float, float]:
        """95 % score interval (Wilson 1927); unlike the normal interval it is right at 0 and at 1."""
        n, p, z = self.episodes, self.rate, _Z_95
        centre = p + z * z / (2 * n)
        half_width = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        scale = 1 + z * z / n
        return max(0.0, (centre - half_width) / scale), min(1.0, (centre + half_width) / scale)

    def to_json(self) -> dict[str, Any]:
        """The keys that scripts rely on."""
        return {
            "episodes": self.episodes,
            "successes": self.successes,
            "success_rate": self.rate,
            "interval": list(self.interval),
        }

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.successes}/{self.episodes} = {self.rate:.2f} [{low:.2f}, {high:.2f}]"
