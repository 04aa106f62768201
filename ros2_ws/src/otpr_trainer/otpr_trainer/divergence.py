# SPDX-License-Identifier: Apache-2.0
"""Telling a training run that went wrong from one that has a bad moment."""

from collections.abc import Mapping
from math import isfinite

import torch
from torch import Tensor

from otpr_trainer.learner import Diverged

FACTOR = 1e4
"""How far the mean of a watched loss over one row of metrics may be above its level.

Behaviour cloning on a point mass, rows of 50 gradient steps: with healthy learning rates (1e-3, 0.03) no row was above 1.0 times the
level; with 0.3, 1, 10, 100 and 1e4, after which the network is dead, one of the first three rows was above 6e4. For a squared loss the
factor is a residual 100 times as large as ever before."""
FLOOR = 1.0
"""Least level. What networks see and predict is normalised, so a loss of 1 is nothing to worry about, however small it was before: with
a reward for success alone, a critic's loss is next to 0 until the first success."""


class Watch:
    """Checks metrics and tensors. The level of a loss is the largest mean of a row up to the newest checkpoint, at least ``FLOOR``.

    It moves at checkpoints alone, so growth that is slow from row to row still shows, and it never sinks, so a loss may rise again
    after a quiet time. It starts from the first update, whose loss is that of networks that have learnt nothing yet.
    """

    def __init__(self, levels: Mapping[str, float]) -> None:
        self._levels = dict(levels)
        self._peaks: dict[str, float] = {}

    @property
    def levels(self) -> dict[str, float]:
        """Plain data of which another Watch goes on."""
        return dict(self._levels)

    def check_update(self, metrics: Mapping[str, float]) -> None:
        """Raises Diverged when a number of one update is not finite."""
        for name, value in metrics.items():
            if not isfinite(value):
                raise Diverged(f"{name} is {value}")
            if name.endswith("loss"):
                self._levels.setdefault(name, max(abs(value), FLOOR))

    def check_row(self, means: Mapping[str, float]) -> None:
        """Raises Diverged when a loss that was averaged over several updates is far above its level."""
        for name in self._levels.keys() & means.keys():
            mean, level = abs(means[name]), self._levels[name]
            if mean > FACTOR * level:
                raise Diverged(f"{name} is {mean:.3g}, more than {FACTOR:.0e} times its level of {level:.3g}")
            self._peaks[name] = max(mean, self._peaks.get(name, 0.0))

    def check_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises Diverged when there is a number that is not finite: a loss shows a broken weight one update late."""
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise Diverged(f"{name} holds a number that is not finite")

    def accept(self) -> None:
        """At a checkpoint: what was seen since the last becomes the level."""
        for name, peak in self._peaks.items():
            self._levels[name] = max(peak, self._levels[name])
        self._peaks = {}
