# SPDX-License-Identifier: Apache-2.0
"""One number per method over all tasks, as Agarwal et al. 2021 ("Deep RL at the edge of the statistical precipice", arXiv 2108.13264) ask.

A score is the success rate of one run, that is of one seed on one task. Seeds are drawn anew within each task (stratified bootstrap).
"""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import trim_mean

from otpr_trainer.compare.statistics import Estimate

RESAMPLES = 2000
_SEED = 0  # of the resampling: a report that is written twice is the same
Scores = NDArray[np.float64]
"""Success rates (seeds, tasks)."""


def interquartile_mean(scores: Scores) -> Estimate:
    """Mean of the middle half of all runs, with a 95 % interval: less moved by one lucky or broken run than the mean."""
    drawn = _drawn(scores, np.random.default_rng(_SEED))
    return _estimate(float(trim_mean(scores.ravel(), 0.25)), trim_mean(drawn.reshape(RESAMPLES, -1), 0.25, axis=1))


def probability_of_improvement(ours: Scores, theirs: Scores) -> Estimate:
    """How likely a run of ours is better than one of theirs on a task drawn at random, ties half; with a 95 % interval.

    Args:
        ours: (seeds, tasks).
        theirs: (seeds, tasks), the same tasks; the number of seeds may differ.
    """
    rng = np.random.default_rng(_SEED)
    return _estimate(float(_better(ours[None], theirs[None])[0]), _better(_drawn(ours, rng), _drawn(theirs, rng)))


def _better(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B, seeds, tasks) of both, to (B,)."""
    difference = np.sign(ours[:, :, None] - theirs[:, None])
    return np.asarray(0.5 + 0.5 * difference.mean((1, 2, 3)))


def _drawn(scores: Scores, rng: np.random.Generator) -> NDArray[np.float64]:
    """(RESAMPLES, seeds, tasks), the seeds of each task drawn with replacement."""
    seeds, tasks = scores.shape
    rows = rng.integers(seeds, size=(RESAMPLES, seeds, tasks))
    return np.asarray(scores[rows, np.arange(tasks)])


def _estimate(value: float, resampled: NDArray[np.float64]) -> Estimate:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Estimate(value, float(low), float(high))
