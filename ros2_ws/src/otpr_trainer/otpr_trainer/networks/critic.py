# SPDX-License-Identifier: Apache-2.0
"""An ensemble of critics Q(s, a) of action chunks, computed as one batched network.

LayerNorm after each layer bounds how far a critic extrapolates to actions it has not seen (RLPD, Ball et al. 2023, arXiv 2302.02948).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

Heads = Tensor | slice
"""Which members of the ensemble to compute: an index (H,), or all."""
ALL = slice(None)


class EnsembleCritic(nn.Module):
    """E independent MLPs with LayerNorm on (condition, chunk), each of which yields one logit.

    A logit stands for a value through a sigmoid: where the reward is 1 for success and nothing else, values lie in (0, 1) and the
    logistic loss is the proper one for them.

    Args:
        condition_size: length of the flat condition, To * Do.
        chunk_size: length of the flat chunk, Ta * Da.
        width: units of each hidden layer.
        depth: number of hidden layers, at least 1.
        heads: E.
    """

    def __init__(self, condition_size: int, chunk_size: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.width = width
        self.from_condition = _weight(heads, condition_size, width, condition_size + chunk_size)
        self.from_chunk = _weight(heads, chunk_size, width, condition_size + chunk_size)
        self.first_bias = nn.Parameter(torch.zeros(heads, 1, width))
        self.hidden = nn.ParameterList(_weight(heads, width, width, width) for _ in range(depth - 1))
        self.hidden_bias = nn.ParameterList(nn.Parameter(torch.zeros(heads, 1, width)) for _ in range(depth - 1))
        self.head = _weight(heads, width, 1, width)
        self.head_bias = nn.Parameter(torch.zeros(heads, 1, 1))

    def forward(self, condition: Tensor, chunk: Tensor) -> Tensor:
        """Logits (E, B) of pairs. condition: (B, To * Do); chunk: (B, Ta * Da) or (B, Ta, Da), both normalised."""
        return self.from_terms(self.condition_term(condition) + self.chunk_term(chunk))

    def cross(self, condition: Tensor, chunk: Tensor) -> Tensor:
        """Logits (E, n, m) of every state with every chunk. condition: (n, To * Do); chunk: (m, Ta * Da) or (m, Ta, Da)."""
        return self.from_terms(self.condition_term(condition)[:, :, None] + self.chunk_term(chunk)[:, None])

    def condition_term(self, condition: Tensor, heads: Heads = ALL) -> Tensor:
        """The condition's share of the first layer, (E, B, width)."""
        return condition @ self.from_condition[heads]

    def chunk_term(self, chunk: Tensor, heads: Heads = ALL) -> Tensor:
        """The chunk's share of the first layer, with its bias, (E, B, width)."""
        return chunk.flatten(1) @ self.from_chunk[heads] + self.first_bias[heads]

    def from_terms(self, sums: Tensor, heads: Heads = ALL) -> Tensor:
        """Logits (E, ...) from the first layer's sums (E, ..., width)."""
        x = _activate(sums.flatten(1, -2))
        for weight, bias in zip(self.hidden, self.hidden_bias, strict=True):
            x = _activate(torch.baddbmm(bias[heads], x, weight[heads]))
        return torch.baddbmm(self.head_bias[heads], x, self.head[heads]).reshape(sums.shape[:-1])


def _activate(x: Tensor) -> Tensor:
    return functional.relu(functional.layer_norm(x, x.shape[-1:]))


def _weight(heads: int, inputs: int, outputs: int, fan_in: int) -> nn.Parameter:
    """Torch's own initialisation of a linear layer, for each head: uniform within 1 / sqrt(fan_in)."""
    bound = 1.0 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(heads, inputs, outputs).uniform_(-bound, bound))
