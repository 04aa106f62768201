# SPDX-License-Identifier: Apache-2.0
"""Proximal policy optimisation, what it computes of numbers alone.

Schulman et al. 2017 (arXiv 1707.06347); advantages as in Schulman et al. 2016 (arXiv 1506.02438).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from otpr_policy.spec import Array

TINY = 1e-8  # of a standard deviation that is divided by


def generalized_advantages(
    reward: Array,
    value: Array,
    next_value: Array,
    terminated: NDArray[np.bool_],
    ended: NDArray[np.bool_],
    *,
    gamma: float,
    trace: float,
) -> Array:
    """A_t = delta_t + gamma lambda A_{t+1}, delta_t = r_t + gamma V(s_{t+1}) - V(s_t) (arXiv 1506.02438, eq. 16), (T,).

    An end cuts the sum, whichever it is. A true end has no next value; an episode that was cut off has that of its final observation.

    Args:
        reward: of each decision, (T,), episodes one after the other.
        value: V of the state that was decided in, (T,).
        next_value: V of the state that it led to, (T,); in the last decision of an episode, of the episode's final state.
        terminated: nothing follows, (T,).
        ended: last decision of its episode, (T,); everywhere that ``terminated`` is, and where it was cut off.
        gamma: discount per decision.
        trace: lambda. 0: the error of one step; 1: the whole return minus V.
    """
    delta = reward + gamma * np.where(terminated, 0.0, next_value) - value
    carried = gamma * trace * ~(terminated | ended)
    advantage, following = np.zeros(len(delta)), 0.0
    for t in range(len(delta) - 1, -1, -1):
        advantage[t] = following = delta[t] + carried[t] * following
    return advantage


def normalized(advantage: Tensor) -> Tensor:
    """With mean 0 and standard deviation 1, (B,)."""
    centered = advantage - advantage.mean()
    return centered / (centered.square().mean().sqrt() + TINY)


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """KL(old || new) from rows of old, the mean of (r - 1) - log r: never negative, and exact in expectation (Schulman's "k3")."""
    return (torch.expm1(log_ratio) - log_ratio).mean()


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, clip: Tensor) -> Tensor:
    """-E min(r A, clamp(r, 1 - c, 1 + c) A), to be minimised (arXiv 1707.06347, eq. 7).

    A row has no gradient where A > 0 and r > 1 + c, or A < 0 and r < 1 - c.

    Args:
        log_ratio: log r, of the new to the old likelihood, (B,).
        advantage: A, (B,).
        clip: c, (B,).
    """
    ratio = log_ratio.exp()
    bounded = ratio.clamp(1.0 - clip, 1.0 + clip)
    return -torch.minimum(ratio * advantage, bounded * advantage).mean()


def clipped_share(log_ratio: Tensor, clip: Tensor) -> Tensor:
    """Share of rows whose ratio is farther from 1 than its clip."""
    return (torch.expm1(log_ratio).abs() > clip).float().mean()
