# SPDX-License-Identifier: Apache-2.0
"""A Gaussian over action chunks, squashed into (-1, 1) by tanh: the actor of soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from otpr_trainer.networks.mlp import ChunkNetwork

LOG_STD_RANGE = (-5.0, 2.0)  # what is narrower explores nothing, what is wider is all tanh's ends


class GaussianMLP(nn.Module):
    """Mean and log standard deviation of a chunk before tanh.

    Its last layers start at zero, so that before training the mean is 0 and the standard deviation 1 everywhere.

    Args:
        input_size: length of the flat input.
        chunk_shape: (Ta, Da) of the chunk.
        width: units of each hidden layer.
        depth: number of hidden layers, at least 1.
    """

    def __init__(self, input_size: int, chunk_shape: tuple[int, int], width: int, depth: int) -> None:
        super().__init__()
        self.chunk_shape = chunk_shape
        hidden = [layer for _ in range(depth - 1) for layer in (nn.Linear(width, width), nn.ReLU())]
        self.trunk = nn.Sequential(nn.Linear(input_size, width), nn.ReLU(), *hidden)
        size = chunk_shape[0] * chunk_shape[1]
        self.mean = nn.Linear(width, size)
        self.log_std = nn.Linear(width, size)
        for layer in (self.mean, self.log_std):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation, (B, Ta, Da) each. inputs: (B, input_size)."""
        features = self.trunk(inputs)
        mean, log_std = (layer(features).reshape(-1, *self.chunk_shape) for layer in (self.mean, self.log_std))
        return mean, log_std.clamp(*LOG_STD_RANGE)

    def mode(self, inputs: Tensor) -> Tensor:
        """Tanh of the mean, (B, Ta, Da): the chunk without exploration."""
        return torch.tanh(self(inputs)[0])

    def sample(self, inputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """A chunk in (-1, 1) and log pi of each of its elements, see :func:`squashed`. inputs: (B, input_size); noise: (B, Ta, Da)."""
        mean, log_std = self(inputs)
        return squashed(mean, log_std, noise)


class ModeNetwork(ChunkNetwork):
    """A Gaussian's mode, as a network that looks neither at the chunk nor at time."""

    def __init__(self, gaussian: GaussianMLP) -> None:
        super().__init__()
        self.gaussian = gaussian

    def condition_term(self, condition: Tensor) -> Tensor:
        """The mean before tanh, (B, Ta * Da)."""
        mean: Tensor = self.gaussian(condition)[0]
        return mean.flatten(1)

    def time_term(self, k: Tensor) -> Tensor:
        """Zeros, (B, 1)."""
        return torch.zeros(len(k), 1)

    def denoise(self, x_k: Tensor, context: Tensor) -> Tensor:
        """Tanh of the mean, (B, Ta, Da)."""
        return torch.tanh(context).reshape(-1, *self.gaussian.chunk_shape)


def squashed(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """A sample u = tanh(mean + std z), and log pi(u) of each of its elements (arXiv 1812.05905, app. C).

    log pi(u) = log N(z; 0, 1) - log std - log(1 - u^2), the last term in a form that does not overflow. All (B, Ta, Da).
    """
    x = mean + log_std.exp() * noise
    log_gaussian = -0.5 * noise**2 - log_std - 0.5 * math.log(2.0 * math.pi)
    log_slope = 2.0 * (math.log(2.0) - x - functional.softplus(-2.0 * x))
    return torch.tanh(x), log_gaussian - log_slope
