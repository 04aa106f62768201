# SPDX-License-Identifier: Apache-2.0
"""A conditional variational autoencoder of action chunks (Sohn et al. 2015), the learnt source of BRIDGER (arXiv 2402.16075)."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

LEAST_STD, GREATEST_STD = 0.01, 10.0  # of the encoder, as in the authors' code


class ChunkVae(nn.Module):
    """q(u | x_1, s) = N(mean, std^2), p(x_1 | u, s) = N(decode(u, s), const), prior u ~ N(0, I).

    Args:
        condition_size: length of the flat condition s.
        chunk_shape: (Ta, Da).
        width: units of each hidden layer.
        depth: hidden layers of encoder and decoder.
        latent_size: length of u.
    """

    def __init__(self, condition_size: int, chunk_shape: tuple[int, int], width: int, depth: int, latent_size: int) -> None:
        super().__init__()
        size = chunk_shape[0] * chunk_shape[1]
        self.chunk_shape = chunk_shape
        self.latent_size = latent_size
        self.encoder = _mlp(condition_size + size, width, depth, 2 * latent_size)
        self.decoder = _mlp(condition_size + latent_size, width, depth, size)

    def encode(self, chunk: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of u, (B, latent_size) each. chunk: (B, Ta, Da); condition: (B, condition_size)."""
        mean, raw = self.encoder(torch.cat([chunk.flatten(1), condition], dim=1)).chunk(2, dim=1)
        return mean, functional.softplus(raw).clamp(LEAST_STD, GREATEST_STD)

    def decode(self, latent: Tensor, condition: Tensor) -> Tensor:
        """A chunk (B, Ta, Da). latent: (B, latent_size)."""
        chunk: Tensor = self.decoder(torch.cat([latent, condition], dim=1))
        return chunk.reshape(-1, *self.chunk_shape)

    def losses(self, chunk: Tensor, condition: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Squared error of the reconstruction, mean over elements, and KL(q || prior), sum over u; both mean over the batch.

        eps: standard normal draws, (B, latent_size).
        """
        mean, std = self.encode(chunk, condition)
        error = (self.decode(mean + std * eps, condition) - chunk).square().mean()
        divergence = 0.5 * (mean**2 + std**2 - 1.0 - 2.0 * std.log()).sum(1).mean()
        return error, divergence


def _mlp(inputs: int, width: int, depth: int, outputs: int) -> nn.Sequential:
    sizes = [inputs, *[width] * depth]
    hidden = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ELU())]
    return nn.Sequential(*hidden, nn.Linear(sizes[-1], outputs))
