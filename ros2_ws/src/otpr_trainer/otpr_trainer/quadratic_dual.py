# SPDX-License-Identifier: Apache-2.0
"""Newton's method on the dual of quadratically regularised optimal transport; :mod:`otpr_trainer.transport` says what for.

In units of 2 epsilon, with scores z = -cost / (2 epsilon) and potentials x, y, the compatibility is h_ij = (z_ij + x_i + y_j)_+ and
the dual is

    maximise  J(x, y) = p . x + q . y - 1/2 sum_ij p_i q_j h_ij^2,    stationary where  sum_j q_j h_ij = 1 = sum_i p_i h_ij.

J is concave and piecewise quadratic. For given x the best y is found column by column, exactly (:func:`fit_columns`). What is left is
a concave function of x alone, whose second derivative is the Schur complement of J's. Semi-smooth Newton on it (Lorenz, Manns, Meyer
2021, arXiv 1903.01112, who do so on both sides at once) ends after finitely many steps, most often two to five.

Where the support falls apart, the Schur complement is singular. Levenberg-Marquardt damping bounds the step there. If even a heavily
damped step fails, a sweep of exact alternating maximisation takes its place. That always ascends, and alone it would converge too:
J is differentiable and each side has one best answer.

All arrays have a batch dimension: z and h (B, n, m), x (B, n, 1), y (B, 1, m), p (B, 1, n), q (B, m, 1), in float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PASSES = 60  # of one fit; about 5 are used, and each removes an entry from a support or ends
LEAST_DAMPING, FIRST_DAMPING, MOST_DAMPING = 1e-10, 1e-8, 1e4  # shares of the diagonal
ASCENT = 1e-4  # least share of the promised ascent (Armijo)
ROUNDING = 1e-12  # of J, relative
CONTINUE_ABOVE = 2.0  # marginal error of a cold start from which on a smoother problem is solved first
CONTINUATION = 5.0  # times epsilon


@dataclass
class Dual:
    """A point of the dual: potentials, compatibility, the largest marginal error of each problem (B,), Newton steps tried."""

    x: Tensor
    y: Tensor
    h: Tensor
    error: Tensor
    steps: int


def fit_columns(z: Tensor, p: Tensor, y: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """The y with sum_i p_i (z_ij + y_j)_+ = 1, and the h that belongs to it. ``z`` includes x.

    Newton on a convex piecewise linear function of one variable: from the second pass on, y falls and the support shrinks.
    """
    for _ in range(PASSES):
        h = torch.relu(z + y)
        excess = p @ h - 1.0
        if not bool((excess.abs() > tolerance).any()):
            break
        slope = p @ torch.sign(h)
        fallen = y - excess / slope
        # A column without support starts where its best entry alone would be met by a mean of 1, which is below the answer.
        y = fallen if bool((slope > 0.0).all()) else torch.where(slope > 0.0, fallen, _below(z, p))
    return y, h


def _below(z: Tensor, p: Tensor) -> Tensor:
    return 1.0 / p.sum(-1, keepdim=True) - z.amax(-2, keepdim=True)


def best_columns(z: Tensor, p: Tensor, x: Tensor, tolerance: float) -> Tensor:
    """The best y for given x."""
    return fit_columns(z + x, p, _below(z + x, p), 1e-3 * tolerance)[0]


def fit_free_rows(z: Tensor, q: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """The x and h where only rows have a mean to meet."""
    x, h = fit_columns(z.mT, q.mT, _below(z.mT, q.mT), tolerance)
    return x.mT, h.mT


def fit_rows(z: Tensor, q: Tensor, x: Tensor, tolerance: float) -> Tensor:
    """The x with sum_j q_j (z_ij + x_i)_+ = 1. ``z`` includes y."""
    return fit_columns(z.mT, q.mT, x.mT, tolerance)[0].mT


def solve(z: Tensor, p: Tensor, q: Tensor, x: Tensor | None, tolerance: float, limit: int) -> Dual:
    """Maximises J from ``x``, or from a start of its own.

    Returns:
        A point whose marginal errors are at most ``tolerance``, or the one reached after ``limit`` steps.
    """
    if x is None:
        x = _cold_start(z, p, q, limit)
    return _newton(z, p, q, x, tolerance, limit)


def _cold_start(z: Tensor, p: Tensor, q: Tensor, limit: int) -> Tensor:
    """Two alternating sweeps; where they end far off, the answer of the same problem with more regularisation."""
    loose = 1e-3
    x = fit_rows(z, q, _below(z.mT, q.mT).mT, loose)
    y, _ = fit_columns(z + x, p, _below(z + x, p), loose)
    x = fit_rows(z + y, q, x, loose)
    y, h = fit_columns(z + x, p, y, loose)
    if float((h @ q - 1.0).abs().max()) <= CONTINUE_ABOVE:
        return x
    return CONTINUATION * solve(z / CONTINUATION, p, q, None, 1e-2, limit).x


def _newton(z: Tensor, p: Tensor, q: Tensor, x: Tensor, tolerance: float, limit: int) -> Dual:
    fitted = 1e-3 * tolerance
    y, h = fit_columns(z + x, p, _below(z + x, p), fitted)
    value = _dual_value(p, q, x, y, h)
    damping = torch.full_like(value, FIRST_DAMPING)
    curvature: Tensor | None = None
    steps = 0
    while True:
        residual = 1.0 - h @ q
        error = torch.maximum(residual.abs().amax((1, 2)), (1.0 - p @ h).abs().amax((1, 2)))
        unsolved = error > tolerance
        left = int(unsolved.sum())
        if left == 0 or steps >= limit:
            return Dual(x, y, h, error, steps)
        if left <= len(z) // 2:
            rest = _newton(z[unsolved], p[unsolved], q[unsolved], x[unsolved], tolerance, limit - steps)
            x, y, h, error = (a.index_put((unsolved,), b) for a, b in ((x, rest.x), (y, rest.y), (h, rest.h), (error, rest.error)))
            return Dual(x, y, h, error, steps + rest.steps)

        if curvature is None:
            curvature, diagonal = _schur_complement(h, p, q)
        damped = curvature + torch.diag_embed((damping * diagonal)[..., 0])
        factor, failed = torch.linalg.cholesky_ex(damped)
        gradient = p.mT * residual
        step = torch.cholesky_solve(gradient, factor)
        promised = (gradient * step).sum((1, 2), keepdim=True)
        x_new = x + step
        stuck = damping > MOST_DAMPING
        if bool(stuck.any()):
            x_new = torch.where(stuck, fit_rows(z + y, q, x, fitted), x_new)
        usable = ((failed == 0)[:, None, None] & step.isfinite().all(1, keepdim=True)) | stuck
        x_new = torch.where(usable, x_new, x)
        y_new, h_new = fit_columns(z + x_new, p, y, fitted)
        value_new = _dual_value(p, q, x_new, y_new, h_new)
        ascent = value_new - value
        accepted = unsolved[:, None, None] & usable & (stuck | (ascent >= ASCENT * promised - ROUNDING * value.abs()))
        share = torch.where(usable & ~stuck, 2.0 * ascent / promised, 0.5)
        damping = torch.where(accepted, damping * torch.where(share > 0.75, 0.1, torch.where(share < 0.25, 4.0, 1.0)), damping * 10.0)
        damping = torch.where(stuck, 1.0, damping.clamp_min(LEAST_DAMPING))
        steps += 1
        if bool(accepted.any()):
            x, y, h, value = (torch.where(accepted, new, old) for new, old in ((x_new, x), (y_new, y), (h_new, h), (value_new, value)))
            curvature = None


def _dual_value(p: Tensor, q: Tensor, x: Tensor, y: Tensor, h: Tensor) -> Tensor:
    """J, (B, 1, 1)."""
    return p @ x + y @ q - 0.5 * (p @ ((h * h) @ q))


def _schur_complement(h: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Minus the second derivative of max_y J in x, (B, n, n), and the scale of its diagonal, (B, n, 1)."""
    support = torch.sign(h)
    row = support @ q
    column = p @ support
    curvature = ((support * (-q.mT / column)) @ support.mT) * (p.mT * p)
    curvature.diagonal(dim1=1, dim2=2).add_((p.mT * row)[..., 0])
    return curvature, p.mT * torch.maximum(row, q.amin(1, keepdim=True))
