# SPDX-License-Identifier: Apache-2.0
"""The quick way of :mod:`otpr_trainer.quadratic_dual`, compiled for one problem on a CPU.

Newton on both sides at once looks at the whole block a few times per step, and what it costs is to read the block. Written with
tensors, every sum, comparison and product reads it anew; here a look at z fills h and both marginals at once, and a look at h fills
the support and both of its masses. docs/adr/0009 has the measurement behind keeping this beside the tensors, which GPUs work with.

The names are those of quadratic_dual: z and h (n, m), x (n,), y (m,), p (n,), q (m,) in float64. The support and what is made from it
are in float32: only the steps depend on them, and are no better than they have to be.
"""

import math

import numba
import numpy as np
from numpy.typing import NDArray

from otpr_trainer.quadratic_dual import CG_STEPS, CG_TOLERANCE, FIRST_SLOPE, FIRST_STEP, HOPELESS, TINY

_ONE, _ZERO, _TINY = np.float32(1.0), np.float32(0.0), np.float32(TINY)
# Sums may be taken in any order, so that they are vectorised; not a number stays not a number.
_compiled = numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]


@_compiled
def quick(z: Floats, p: Floats, q: Floats, x: Floats, y: Floats, h: Floats, cold: bool, tolerance: float, limit: int) -> tuple[float, int]:
    """Newton steps from x and y, which it changes in place like ``h``. Returns the marginal error of h and the steps taken.

    Args:
        z: scores.
        p: masses of the rows.
        q: masses of the columns.
        x: potentials of the rows to start from.
        y: potentials of the columns to start from.
        h: memory for the compatibility of the x and y that it ends with.
        cold: whether they are no more than a guess, from which the first step is along the diagonal alone.
        tolerance: marginal error that ends it.
        limit: most steps.
    """
    n, m = z.shape
    row_mean, column_mean = np.empty(n), np.empty(m)
    support = np.empty((n, m), dtype=np.float32)
    row, column = np.empty(n, dtype=np.float32), np.empty(m, dtype=np.float32)
    p_single, q_single = p.astype(np.float32), q.astype(np.float32)
    least_row, least_column = q_single.min(), p_single.min()  # no support counts as one of a single entry
    rho, gamma = np.empty(n, dtype=np.float32), np.empty(m, dtype=np.float32)
    steps = 0
    while True:
        _look_at(z, x, y, p, q, h, row_mean, column_mean)
        error = max(_largest_error(row_mean), _largest_error(column_mean))
        if error <= tolerance or steps >= limit or not error < HOPELESS:
            return error, steps
        steps += 1
        _look_at_support(h, p_single, q_single, support, row, column)
        if cold and steps == 1:
            for i in range(n):
                x[i] += FIRST_STEP * (1.0 - row_mean[i]) / max(row[i], FIRST_SLOPE)
            for j in range(m):
                y[j] += FIRST_STEP * (1.0 - column_mean[j]) / max(column[j], FIRST_SLOPE)
            continue
        for i in range(n):  # from here on, row and column are the scales of N = row * support * column
            row[i] = math.sqrt(p_single[i] / max(row[i], least_row))
            rho[i] = row[i] * np.float32(1.0 - row_mean[i])
        for j in range(m):
            column[j] = math.sqrt(q_single[j] / max(column[j], least_column))
            gamma[j] = column[j] * np.float32(1.0 - column_mean[j])
        a, b = _newton_step(support, row, column, rho, gamma)
        for i in range(n):
            x[i] += a[i] * row[i] / p[i]
        for j in range(m):
            y[j] += b[j] * column[j] / q[j]


@_compiled
def _look_at(z: Floats, x: Floats, y: Floats, p: Floats, q: Floats, h: Floats, row_mean: Floats, column_mean: Floats) -> None:
    """Fills h = (z + x + y)_+, and its means over rows and columns."""
    n, m = z.shape
    column_mean[:] = 0.0
    for i in range(n):
        total = 0.0
        for j in range(m):
            entry = z[i, j] + x[i] + y[j]
            entry = 0.0 if entry <= 0.0 else entry
            h[i, j] = entry
            total += entry * q[j]
            column_mean[j] += entry * p[i]
        row_mean[i] = total


@_compiled
def _look_at_support(h: Floats, p: Singles, q: Singles, support: Singles, row: Singles, column: Singles) -> None:
    """Where h > 0, and the masses of that in rows and columns."""
    n, m = h.shape
    column[:] = _ZERO
    for i in range(n):
        total = _ZERO
        for j in range(m):
            entry = _ONE if h[i, j] > 0.0 else _ZERO
            support[i, j] = entry
            total += entry * q[j]
            column[j] += entry * p[i]
        row[i] = total


@_compiled
def _newton_step(support: Singles, row: Singles, column: Singles, rho: Singles, gamma: Singles) -> tuple[Singles, Singles]:
    """About the a and b with a + N b = rho and N^T a + b = gamma: (I - N N^T) a = rho - N gamma, by conjugate gradients."""
    b, residual = np.empty_like(gamma), np.empty_like(rho)
    _apply(support, row, column, gamma, residual)
    residual[:] = rho - residual
    a, direction, product = np.zeros_like(rho), residual.copy(), np.empty_like(rho)
    size = _dot(residual, residual)
    enough = np.float32(CG_TOLERANCE**2) * size
    for _ in range(CG_STEPS):
        _apply_transposed(support, row, column, direction, b)
        _apply(support, row, column, b, product)
        product[:] = direction - product
        length = size / max(_dot(direction, product), _TINY)
        a += length * direction
        residual -= length * product
        before, size = size, _dot(residual, residual)
        if not size > enough:
            break
        direction[:] = residual + size / max(before, _TINY) * direction
    _apply_transposed(support, row, column, a, b)
    b[:] = gamma - b
    return a, b


@_compiled
def _apply(support: Singles, row: Singles, column: Singles, vector: Singles, out: Singles) -> None:
    """Fills out = N vector."""
    n, m = support.shape
    scaled = column * vector
    for i in range(n):
        total = _ZERO
        for j in range(m):
            total += support[i, j] * scaled[j]
        out[i] = row[i] * total


@_compiled
def _apply_transposed(support: Singles, row: Singles, column: Singles, vector: Singles, out: Singles) -> None:
    """Fills out = N^T vector."""
    n, m = support.shape
    out[:] = _ZERO
    for i in range(n):
        scaled = row[i] * vector[i]
        for j in range(m):
            out[j] += support[i, j] * scaled
    out *= column


@_compiled
def _dot(a: Singles, b: Singles) -> np.float32:
    total = _ZERO
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@_compiled
def _largest_error(means: Floats) -> float:
    """Largest |mean - 1|, or infinity if one is not a number."""
    largest = 0.0
    for mean in means:
        error = abs(mean - 1.0)
        if not error <= math.inf:
            return math.inf
        largest = max(largest, error)
    return largest
