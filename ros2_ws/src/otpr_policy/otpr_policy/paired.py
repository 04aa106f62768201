# SPDX-License-Identifier: Apache-2.0
"""The exact test for outcomes in pairs."""

from math import comb


def exact_p(first: int, second: int) -> float:
    """Two-sided p value of McNemar's exact test, which is a sign test on the pairs that differ.

    Were both equally good, each pair that differs would be a fair coin: p is the chance of a split at least as uneven as this one.

    Args:
        first: pairs in which only the first succeeded.
        second: pairs in which only the second did. Pairs that agree say nothing.
    """
    differ = first + second
    tail = sum(comb(differ, k) for k in range(min(first, second) + 1)) / 2**differ
    return min(1.0, 2 * tail)


def pairs_needed(level: float = 0.05) -> int:
    """The least number of differing pairs that can bring :func:`exact_p` below ``level``: all must go one way."""
    count = 1
    while exact_p(count, 0) >= level:
        count += 1
    return count
