# SPDX-License-Identifier: Apache-2.0
"""The noise-predicting MLP for low-dimensional observations (after DPPO's DiffusionMLP, arXiv 2409.00588 app. D)."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class ChunkNetwork(nn.Module, ABC):
    """What a chain asks at each step: a network of a chunk, a time and a condition, whose first layer is a sum of their terms."""

    def forward(self, x_k: Tensor, k: Tensor, condition: Tensor) -> Tensor:
        """The prediction, of a chunk's shape. x_k: (B, Ta, Da); k: (B,) numbers; condition: (B, condition_size)."""
        return self.denoise(x_k, self.condition_term(condition) + self.time_term(k))

    @abstractmethod
    def condition_term(self, condition: Tensor) -> Tensor:
        """The condition's share of the first layer, (B, width)."""

    @abstractmethod
    def time_term(self, k: Tensor) -> Tensor:
        """The denoising step's share of the first layer, (B, width)."""

    @abstractmethod
    def denoise(self, x_k: Tensor, context: Tensor) -> Tensor:
        """What :meth:`forward` yields, from the sum of the other two terms, ``context`` (B, width)."""


class DiffusionMLP(ChunkNetwork):
    """eps(x_k, k, condition): noisy chunk, time embedding and condition into one stack of equal Mish layers.

    The first layer is a sum of three linear maps, which equals one map of the concatenation. Kept apart, the condition's term is
    computed once per chain and the time's term is a constant per step, so that an exported chain folds both.

    Args:
        chunk_shape: (Ta, Da) of the chunk.
        condition_size: length of the flat condition.
        width: units of each hidden layer.
        depth: number of hidden layers, at least 1.
        time_size: length of the sinusoidal embedding of k, even.
        heads: H, how many chunks are predicted; None for one, without a dimension of its own.
    """

    def __init__(
        self, chunk_shape: tuple[int, int], condition_size: int, width: int, depth: int, time_size: int, heads: int | None = None
    ) -> None:
        super().__init__()
        size = chunk_shape[0] * chunk_shape[1]
        self.output_shape = chunk_shape if heads is None else (heads, *chunk_shape)
        self.time_size = time_size
        self.time = nn.Sequential(nn.Linear(time_size, 2 * time_size), nn.Mish(), nn.Linear(2 * time_size, time_size))
        self.from_chunk = nn.Linear(size, width)
        self.from_time = nn.Linear(time_size, width, bias=False)
        self.from_condition = nn.Linear(condition_size, width, bias=False)
        hidden = [layer for _ in range(depth - 1) for layer in (nn.Linear(width, width), nn.Mish())]
        self.trunk = nn.Sequential(nn.Mish(), *hidden, nn.Linear(width, math.prod(self.output_shape)))

    def condition_term(self, condition: Tensor) -> Tensor:
        """The condition's share of the first layer, (B, width)."""
        term: Tensor = self.from_condition(condition)
        return term

    def time_term(self, k: Tensor) -> Tensor:
        """The denoising step's share of the first layer, (B, width)."""
        term: Tensor = self.from_time(self.time(sinusoid(k, self.time_size)))
        return term

    def denoise(self, x_k: Tensor, context: Tensor) -> Tensor:
        """What :meth:`forward` yields, from the sum of the other two terms, ``context`` (B, width)."""
        eps: Tensor = self.trunk(self.from_chunk(x_k.flatten(1)) + context)
        return eps.reshape(-1, *self.output_shape)


def sinusoid(k: Tensor, size: int) -> Tensor:
    """Sin and cos of k at ``size`` / 2 geometric frequencies from 1 to 1/10000 (Vaswani et al. 2017), (B, size)."""
    frequency = torch.exp(-math.log(10_000.0) * torch.arange(size // 2, device=k.device) / max(size // 2 - 1, 1))
    angle = k[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)
