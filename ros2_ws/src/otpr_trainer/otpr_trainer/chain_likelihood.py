# SPDX-License-Identifier: Apache-2.0
"""Denoising steps as actions: their likelihood, and what is weighed by how noisy a step is.

Ren et al. 2024, "Diffusion Policy Policy Optimization" (arXiv 2409.00588), and the code that its authors released. K' denoising steps
learn; in tables over them index 0 is the noisiest and K' - 1 the one that yields the chunk.
"""

import numpy as np
from torch import Tensor

from otpr_policy.spec import Array
from otpr_trainer.diffusion import ReverseChain

LOG_PROB_RANGE = (-5.0, 2.0)
"""Of one element. An element far out in its Gaussian, 3.6 standard deviations at a standard deviation of 0.1, would else decide alone."""
CLIP_GROWTH = 3.0  # r of the clip schedule


def step_log_prob(
    reverse: ReverseChain, step: Tensor, x_prev: Tensor, x_k: Tensor, eps: Tensor, std_floor: float, executed_length: int
) -> Tensor:
    """Mean over the executed elements of log N(x_prev; mu_theta(x_k), max(sigma, std_floor)), each within LOG_PROB_RANGE, (B,).

    The mean and not the sum: a ratio of two is then the geometric mean of the elements' ratios, whose size does not depend on that of
    the chunk. That is why clips of 0.01 serve (released code; the paper writes the sum).

    Args:
        reverse: the chain.
        step: position in the chain, (B,).
        x_prev: what the step yielded, (B, Ta, Da).
        x_k: what it was given, (B, Ta, Da).
        eps: the noise that the network predicts there, (B, Ta, Da).
        std_floor: least standard deviation, above 0.
        executed_length: leading actions of the chunk that are carried out; the rest earns nothing.
    """
    elements = reverse.step_log_prob(step, x_prev, x_k, eps, std_floor)[:, :executed_length]
    return elements.clamp(*LOG_PROB_RANGE).flatten(1).mean(1)


def clip_schedule(first: float, last: float, count: int) -> Array:
    """How far a ratio may be from 1 in each of K' steps, (K',): c_i = first + (last - first) (e^(r i / (K' - 1)) - 1) / (e^r - 1), r = 3.

    Noisy steps are held tighter: what they change goes through all that follow. With one step it is ``last``; the released code
    divides 0 by 0 there.
    """
    if count == 1:
        return np.array([last])
    growth = np.expm1(CLIP_GROWTH * np.arange(count) / (count - 1)) / np.expm1(CLIP_GROWTH)
    return first + (last - first) * growth


def denoising_discount(gamma: float, count: int) -> Array:
    """gamma^(K' - 1 - i), (K',): the advantage of a chunk is discounted back to the step that it is credited to."""
    return gamma ** np.arange(count - 1, -1, -1, dtype=np.float64)


def chain_pairs(chain: Tensor, row: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """x_k and x_prev of step ``index`` (B,) in the chains ``row`` (B,); both (B, Ta, Da). chain: (N, K' + 1, Ta, Da)."""
    return chain[row, index], chain[row, index + 1]
