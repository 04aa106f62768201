# SPDX-License-Identifier: Apache-2.0
"""Modes of behaviour: which episodes solve a task in the same way, by where they went.

As in DDiffPG (Li et al. 2024, arXiv 2406.00681): dynamic time warping tells episodes apart, hierarchical clustering with average linkage
joins them, and the tree is cut at a share of its height.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from otpr_policy.spec import Array
from otpr_sim.vector import Integers

POINTS = 16
"""Of a path. Episodes of any length then fill one table; where in time they are is what the warping is indifferent to anyway."""
CUT = 0.7  # of the tree's height; the released code's
BLOCK = 64  # paths at a time: more only costs memory


def path(states: Array) -> Array:
    """An episode's states (T, d), at POINTS moments evenly spread, (POINTS, d)."""
    return states[np.linspace(0, len(states) - 1, POINTS).round().astype(int)]


def warped_distances(ours: Array, theirs: Array) -> Array:
    """Dynamic time warping of every two paths, (n, m): the least root of summed squared distances over all monotone alignments.

    ours: (n, P, d); theirs: (m, P, d).
    """
    parts = [_warped(ours[begin : begin + BLOCK], theirs) for begin in range(0, len(ours), BLOCK)]
    return np.concatenate(parts) if parts else np.zeros((0, len(theirs)))


def _warped(ours: Array, theirs: Array) -> Array:
    squares = (ours**2).sum(-1)[:, None, :, None] + (theirs**2).sum(-1)[None, :, None]
    cost = np.maximum(squares - 2.0 * np.einsum("apd,bqd->abpq", ours, theirs, optimize=True), 0.0)
    total = np.full((POINTS + 1, POINTS + 1, len(ours), len(theirs)), np.inf)
    total[0, 0] = 0.0
    for p, q in np.ndindex(POINTS, POINTS):
        total[p + 1, q + 1] = cost[:, :, p, q] + np.minimum(np.minimum(total[p, q], total[p, q + 1]), total[p + 1, q])
    distance: Array = np.sqrt(total[-1, -1])
    return distance


def clustered(distance: Array, most: int) -> Integers:
    """Number of each path's cluster, from 0, (n,). More than ``most`` clusters are taken for one. distance: (n, n), symmetric."""
    if len(distance) < 2:
        return np.zeros(len(distance), dtype=np.int64)
    tree = linkage(squareform(distance, checks=False), method="average")
    found: Integers = fcluster(tree, CUT * tree[-1, 2], criterion="distance").astype(np.int64) - 1
    return found if found.max() < most else np.zeros_like(found)


def modes_of(paths: Array, solved: NDArray[np.bool_], *, most: int, memory: int) -> Integers:
    """The mode of each episode, from 0, (E,).

    The newest ``memory`` episodes that solved the task make the modes; every other joins the mode whose members are nearest on average.

    paths: (E, P, d); solved: (E,), at least one; most: modes, at least 1.
    """
    members = np.flatnonzero(solved)[-memory:]
    label = clustered(warped_distances(paths[members], paths[members]), most)
    others = np.setdiff1d(np.arange(len(paths)), members)
    distance = warped_distances(paths[others], paths[members])
    average = np.stack([distance[:, label == mode].mean(1) for mode in range(label.max() + 1)], 1)
    found = np.empty(len(paths), dtype=np.int64)
    found[members], found[others] = label, average.argmin(1)
    return found
