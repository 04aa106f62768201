# SPDX-License-Identifier: Apache-2.0
"""The affine map between physical units and [-1, 1], component by component."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from otpr_policy.spec import Array

FLOOR_FRACTION = 0.01
"""Least half width as a share of the field's nominal half width. A component that hardly moved in the demonstrations would
otherwise turn sensor noise of a micrometre into an input of 1; with it, such a component stays near 0."""
ABSOLUTE_FLOOR = 1e-6  # for a field whose nominal range is itself a point


@dataclass(frozen=True, eq=False)
class AffineMap:
    """x -> (x - center) / half_width. Both (D,), half_width > 0. The numpy reference of :class:`AffineLayer`."""

    center: Array
    half_width: Array

    @classmethod
    def from_range(cls, low: Array, high: Array, nominal_low: Array, nominal_high: Array) -> "AffineMap":
        """Maps [low, high] (D,) to [-1, 1], except that no half width is below FLOOR_FRACTION of the nominal one."""
        nominal = np.maximum((nominal_high - nominal_low) / 2, 0.0)
        floor = np.maximum(FLOOR_FRACTION * nominal, ABSOLUTE_FLOOR)
        return cls((low + high) / 2, np.maximum((high - low) / 2, floor))

    def normalize(self, x: Array) -> Array:
        """Physical units to [-1, 1], (..., D). Values outside the range map outside [-1, 1]; nothing is clipped."""
        return (x - self.center) / self.half_width

    def denormalize(self, x: Array) -> Array:
        """The inverse of :meth:`normalize`."""
        return x * self.half_width + self.center


class AffineLayer(nn.Module):
    """An :class:`AffineMap` inside a network, stored with its weights."""

    center: Tensor
    half_width: Tensor

    def __init__(self, affine: AffineMap) -> None:
        super().__init__()
        self.register_buffer("center", torch.as_tensor(affine.center, dtype=torch.float32))
        self.register_buffer("half_width", torch.as_tensor(affine.half_width, dtype=torch.float32))

    def normalize(self, x: Tensor) -> Tensor:
        """Physical units to [-1, 1], (..., D)."""
        return (x - self.center) / self.half_width

    def denormalize(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`normalize`."""
        return x * self.half_width + self.center
