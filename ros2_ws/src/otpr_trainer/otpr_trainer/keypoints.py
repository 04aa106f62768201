# SPDX-License-Identifier: Apache-2.0
"""Keypoints: pairs of a state and an action that belong together, such as an expert's (KPG, Gu et al. 2022, arXiv 2209.06536)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from otpr_policy.errors import TransportError


def keypoint_mask(n: int, m: int, pairs: Sequence[tuple[int, int]], device: torch.device | None = None) -> Tensor:
    """Which pairs may carry mass, (n, m) booleans: a keypoint (row, column) only with its partner, all others freely.

    Raises:
        TransportError: a row or column is outside the block, or is in two keypoints.
    """
    rows: dict[int, int] = {}
    columns: dict[int, int] = {}
    for k, (row, column) in enumerate(pairs):
        if not (0 <= row < n and 0 <= column < m):
            raise TransportError(f"keypoint {k} is ({row}, {column}), outside a block of {n} states and {m} actions")
        if k != rows.setdefault(row, k) or k != columns.setdefault(column, k):
            raise TransportError(f"keypoint {k}, ({row}, {column}), has a state or an action of an earlier keypoint")
    mask = torch.ones(n, m, dtype=torch.bool, device=device)
    mask[list(rows)] = False
    mask[:, list(columns)] = False
    mask[list(rows), list(columns)] = True
    return mask


def keypoint_masses(n: int, m: int, pairs: Sequence[tuple[int, int]], share: float) -> tuple[Tensor, Tensor]:
    """Marginals p (n,) and q (m,) in which keypoints have ``share`` of both, each the same, and all others share the rest equally.

    Uniform marginals of a block that is not square leave a keypoint's state and action with different masses, which no plan can have.

    Raises:
        TransportError: ``share`` is not in (0, 1), or nothing but keypoints is there to take a side's rest.
    """
    count = len(pairs)
    if not (0.0 < share < 1.0 and 0 < count < min(n, m)):
        raise TransportError(
            f"{count} keypoints of {n} states and {m} actions cannot have a share of {share:g}; give others, and one in (0, 1)"
        )
    p, q = (torch.full((size,), (1.0 - share) / (size - count), dtype=torch.float64) for size in (n, m))
    p[[row for row, _ in pairs]] = q[[column for _, column in pairs]] = share / count
    return p, q


def keypoint_pairs(mask: Tensor, n: int, m: int) -> tuple[Tensor, Tensor]:
    """Rows and columns, (K,) each and rows ascending, of the pairs that :func:`keypoint_mask` made a mask of.

    Raises:
        TransportError: it did not make this one.
    """
    if mask.shape != (n, m):
        raise TransportError(f"the mask of a balanced plan has the shape of one block, {(n, m)}, not {tuple(mask.shape)}")
    alone = mask & (mask.sum(1, keepdim=True) == 1) & (mask.sum(0, keepdim=True) == 1)
    if not torch.equal(mask, alone | ~(alone.any(1, keepdim=True) | alone.any(0, keepdim=True))):
        raise TransportError("a balanced plan takes the masks of keypoint_mask only: with others there may be no plan")
    rows, columns = alone.nonzero(as_tuple=True)
    return rows, columns


def others(count: int, taken: Tensor) -> Tensor:
    """Indices 0..count-1 without those taken, in order."""
    free = torch.ones(count, dtype=torch.bool, device=taken.device)
    free[taken] = False
    return free.nonzero()[:, 0]


def guiding_score(states: Tensor, actions: Tensor, key_states: Tensor, key_actions: Tensor, temperature: float) -> Tensor:
    """How differently a state and an action relate to K keypoints, (n, m), in [0, ln 2] (KPG; OTPR's guiding cost).

    The relation of a state is softmax_k(-d(s, s_k) / temperature) with d = 1 - cosine, an action's likewise, and the score is their
    Jensen-Shannon divergence. Memory is n m K numbers.

    Args:
        states: (n, Ds).
        actions: (m, Da).
        key_states: (K, Ds).
        key_actions: (K, Da).
        temperature: > 0; OTPR's code has 0.1.

    Raises:
        TransportError: the temperature is not above 0.
    """
    if not temperature > 0.0:
        raise TransportError(f"the temperature of a guiding score must be above 0, not {temperature:g}")
    of_state = _relation(states, key_states, temperature)[:, None]
    of_action = _relation(actions, key_actions, temperature)[None]
    middle = (of_state + of_action) / 2.0
    divergence = _entropy(middle) - (_entropy(of_state) + _entropy(of_action)) / 2.0
    return divergence.clamp_min(0.0).to(states.dtype)


def _relation(points: Tensor, keys: Tensor, temperature: float) -> Tensor:
    cosine = functional.normalize(points.detach().double(), dim=1) @ functional.normalize(keys.detach().double(), dim=1).T
    return torch.softmax((cosine - 1.0) / temperature, dim=1)


def _entropy(probability: Tensor) -> Tensor:
    return -torch.xlogy(probability, probability).sum(-1)
