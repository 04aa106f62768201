# SPDX-License-Identifier: Apache-2.0
"""Means over training seeds and evaluation scenes, with the uncertainty that both bring."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
_SEED = 0  # of the resampling: a report that is written twice is the same


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """Plain data for reports."""
        return {"mean": self.mean, "interval": [self.low, self.high]}


def estimate(outcomes: Sequence[Sequence[float]]) -> Estimate:
    """Mean of a table of outcomes with a 95 % percentile bootstrap interval.

    Rows are training seeds, columns are scenes, which are the same in each row. Both are drawn with replacement, independently of
    each other (the pigeonhole bootstrap: Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007): a scene that is hard
    for one policy is hard for the next, so drawing episodes within each row by itself would take shared luck for evidence. It errs to
    the wide side. With one row the interval is over scenes alone.

    Args:
        outcomes: (seeds, scenes), at least one of each: 1 or 0 for success, or differences of these between two policies.
    """
    table: NDArray[np.float64] = np.asarray(outcomes, dtype=np.float64)
    means = resampled_means(table, RESAMPLES)
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(table.mean()), float(low), float(high))


def resampled_means(table: NDArray[np.float64], resamples: int) -> NDArray[np.float64]:
    """Means (resamples,) of a (seeds, scenes) table whose rows and columns are drawn with replacement."""
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"a table of seeds and scenes is needed, got shape {table.shape}")
    rng = np.random.default_rng(_SEED)
    seeds, scenes = table.shape
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), resamples)  # how often each seed is drawn
    columns = rng.multinomial(scenes, np.full(scenes, 1 / scenes), resamples)
    return np.asarray(((rows @ table) * columns).sum(1) / (seeds * scenes))
