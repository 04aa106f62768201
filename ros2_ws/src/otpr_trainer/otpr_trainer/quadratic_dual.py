# SPDX-License-Identifier: Apache-2.0
"""Newton's method on the dual of quadratically regularised optimal transport; :mod:`otpr_trainer.transport` says what for.

In units of 2 epsilon, with scores z = -cost / (2 epsilon) and potentials x, y, the compatibility is h_ij = (z_ij + x_i + y_j)_+ and
the dual is

    maximise  J(x, y) = p . x + q . y - 1/2 sum_ij p_i q_j h_ij^2,    stationary where  sum_j q_j h_ij = 1 = sum_i p_i h_ij.

J is concave and piecewise quadratic, and semi-smooth Newton (Lorenz, Manns, Meyer 2021, arXiv 1903.01112) ends after few steps. There
are two ways, and a problem that the first does not solve goes the second:

- :func:`_quick` takes Newton steps on both sides at once and trusts them. From a good start that is enough where a row's support is some
  entries or more. On a CPU it is compiled, problem by problem (:mod:`otpr_trainer.quadratic_kernel`); elsewhere it is tensors, all
  problems at once.
- :func:`_careful` comes from anywhere. For given x the best y is found column by column, exactly; what is left is a concave function of x
  alone, whose second derivative is the Schur complement of J's. That is singular where the support falls apart, so steps are damped
  (Levenberg-Marquardt) and taken back. Where they fail all the same, or go back and forth over a kink, a sweep of exact alternating
  maximisation takes the place of a step. Sweeps always ascend, and alone they would converge too: J is differentiable, and
  each side has one best answer to the other.

Arrays have a batch dimension and are float64: z and h (B, n, m), x (B, n, 1), y (B, 1, m), p (B, 1, n), q (B, m, 1). Linear systems are
n x n, so n should be the smaller side. The large arrays are made once per problem: to make them anew costs more than to fill them.
"""

import logging
import math
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

TINY = 1e-30  # against 0 / 0
CACHED = 130_000  # entries that are worked on at a time on a CPU: with more, they come from memory again and again
PASSES = 60  # of one fit; about 5 are used, and each shrinks a support or ends

# The quick way.
QUICK_STEPS = 12
HOPELESS = 1e4  # marginal error that it does not come back from
FIRST_STEP, FIRST_SLOPE = 0.7, 0.01  # length of its first step, and the least support that this believes in
CG_STEPS, CG_TOLERANCE = 8, 1e-2

# The careful way.
FIT = 1e-3  # error of the side that is solved exactly, over the tolerance
START_TOLERANCE = 0.05
START_ERROR = 0.5  # marginal error of a cold start above which a smoother problem is solved first,
SMOOTHER = 5.0  # with so many times the epsilon,
SMOOTHER_TOLERANCE = 1e-2
LEAST_DAMPING, FIRST_DAMPING, MOST_DAMPING = 1e-10, 1e-8, 1e4  # shares of the curvature's diagonal
PATIENCE, PROGRESS = 5, 0.9  # so many steps without an error below this share of the best one, and a sweep is due
ASCENT = 1e-4  # least share of the promised ascent (Armijo)
ROUNDING = 1e-12  # of J, relative

_log = logging.getLogger(__name__)


@dataclass
class Dual:
    """A point of the dual: potentials, compatibility, the largest marginal error of each problem (B,), Newton steps tried."""

    x: Tensor
    y: Tensor
    h: Tensor
    error: Tensor
    steps: int


@torch.inference_mode()  # a fifth of the time of a small problem is what autograd's book-keeping costs
def solve(z: Tensor, p: Tensor, q: Tensor, start: tuple[Tensor, Tensor] | None, tolerance: float, limit: int) -> Dual:
    """Maximises J from ``start`` (x, y), or from a start of its own.

    Returns:
        A point whose marginal errors are at most ``tolerance``, or the one reached after ``limit`` steps. Its tensors are those of
        inference mode: copy what autograd is to work with.
    """
    if z.is_cpu and len(z) > 1 and z.numel() > CACHED:
        size = max(1, CACHED // z[0].numel())
        parts = [slice(i, i + size) for i in range(0, len(z), size)]
        duals = [_solve(z[i], p[i], q[i], None if start is None else (start[0][i], start[1][i]), tolerance, limit) for i in parts]
        x, y, h, error = (torch.cat(tensors) for tensors in zip(*((d.x, d.y, d.h, d.error) for d in duals), strict=True))
        return Dual(x, y, h, error, max(dual.steps for dual in duals))
    return _solve(z, p, q, start, tolerance, limit)


def _solve(z: Tensor, p: Tensor, q: Tensor, start: tuple[Tensor, Tensor] | None, tolerance: float, limit: int) -> Dual:
    kernel = _kernel() if z.is_cpu else None
    dual = _quick(z, p, q, start, tolerance, limit) if kernel is None else _quick_compiled(kernel, z, p, q, start, tolerance, limit)
    left = ~(dual.error <= tolerance)  # not a number is left, too
    if bool(left.any()):
        careful = _careful(z[left], p[left], q[left], None if start is None else start[0][left], tolerance, limit - dual.steps)
        for all_, some in ((dual.x, careful.x), (dual.y, careful.y), (dual.h, careful.h), (dual.error, careful.error)):
            all_[left] = some
        dual.steps += careful.steps
    return dual


@cache
def _kernel() -> ModuleType | None:
    """The compiled quick way, or None where it cannot be had; then tensors do, more slowly."""
    try:
        from otpr_trainer import quadratic_kernel  # not on top: numba takes a second to import, and few runs solve for balanced plans
    except (ImportError, RuntimeError) as error:  # numba is missing, or finds no folder to keep what it compiles
        _log.warning("transport plans take longer: their solver cannot be compiled (%s)", error)
        return None
    return quadratic_kernel


def _quick_compiled(
    kernel: ModuleType, z: Tensor, p: Tensor, q: Tensor, start: tuple[Tensor, Tensor] | None, tolerance: float, limit: int
) -> Dual:
    """What :func:`_quick` does, problem by problem."""
    with torch.inference_mode(False):
        h = torch.empty_like(z, memory_format=torch.contiguous_format)  # so that the answer need not be copied
    x, y = (a.clone(memory_format=torch.contiguous_format) for a in (_level_start(z, p, q, h) if start is None else start))
    z, p, q = z.contiguous(), p.contiguous(), q.contiguous()
    arguments = zip(z.numpy(), p[:, 0].numpy(), q[:, :, 0].numpy(), x[:, :, 0].numpy(), y[:, 0].numpy(), h.numpy(), strict=True)
    most = min(QUICK_STEPS, limit)
    results = [kernel.quick(*problem, start is None, tolerance, most) for problem in arguments]
    return Dual(x, y, h, z.new_tensor([error for error, _ in results]), max(steps for _, steps in results))


def _quick(z: Tensor, p: Tensor, q: Tensor, start: tuple[Tensor, Tensor] | None, tolerance: float, limit: int) -> Dual:
    """Newton on both sides at once, with nothing to guard it.

    With N_ij = [h_ij > 0] sqrt(p_i q_j / (row_i column_j)), where row and column are the supports' masses, the step (dx, dy) scaled by
    sqrt(p row) and sqrt(q column) solves a + N b = rho, N^T a + b = gamma. So (I - N N^T) a = rho - N gamma, by conjugate gradients: the
    spectrum lies in [0, 1] and most of it near 1.
    """
    with torch.inference_mode(False):
        h = torch.empty_like(z)  # so that the answer need not be copied
    support = torch.empty_like(z, dtype=torch.float32)  # only the steps depend on it, and are no better than they have to be
    x, y = _level_start(z, p, q, h) if start is None else start
    p_row, q_column = p.float(), q.float()
    p_column, q_row = p_row.mT, q_column.mT
    single_row, single_column = q_row.amin(2, keepdim=True), p_column.amin(1, keepdim=True)  # no support counts as one of a single entry
    steps = 0
    while True:
        torch.add(z, x, out=h).add_(y).relu_()
        row_residual, column_residual = 1.0 - h.bmm(q), 1.0 - p.bmm(h)
        error = torch.maximum(row_residual.abs().amax((1, 2)), column_residual.abs().amax((1, 2)))
        worst = error.max().item()
        if worst <= tolerance or steps >= min(QUICK_STEPS, limit):
            return Dual(x, y, h, error, steps)
        # One problem of a batch that is lost, or not a number any more, is no reason to leave the others.
        if not worst < HOPELESS and not bool(((error > tolerance) & (error < HOPELESS)).any()):
            return Dual(x, y, h, error, steps)
        steps += 1
        support.copy_(h).sign_()
        row, column = support.bmm(q_column), p_row.bmm(support)
        if start is None and steps == 1:
            x = x + FIRST_STEP * row_residual / row.clamp_min_(FIRST_SLOPE)
            y = y + FIRST_STEP * column_residual / column.clamp_min_(FIRST_SLOPE)
            continue
        row_scale = (p_column / torch.maximum(row, single_row)).sqrt_()
        column_scale = (q_row / torch.maximum(column, single_column)).sqrt_()
        support.mul_(row_scale).mul_(column_scale)
        rho, gamma = row_residual.float().mul_(row_scale), column_residual.float().mul_(column_scale)
        a = _conjugate_gradients(support, torch.baddbmm(rho, support, gamma.mT, alpha=-1.0))
        b = torch.baddbmm(gamma, a.mT, support, alpha=-1.0)
        x, y = x + a.mul_(row_scale).div_(p_column), y + b.mul_(column_scale).div_(q_row)


def _level_start(z: Tensor, p: Tensor, q: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """The x and y with which means would be about right if the scores of each row and column were normal around 0.

    ``squares`` is memory to work in.
    """
    mean = 1.0 / p.sum(2, keepdim=True)
    torch.mul(z, z, out=squares)
    of_rows = squares.mean(2, keepdim=True)
    x, y = _normal_level(of_rows, mean), _normal_level(squares.mean(1, keepdim=True), mean)
    return x, y - _normal_level(of_rows.mean(1, keepdim=True), mean)


def _normal_level(variance: Tensor, mean: Tensor) -> Tensor:
    """About the t with which (s N + t)_+ has this mean, N standard normal and s^2 the variance.

    The mean is s g(t / s) with g(t) = phi(t) + t Phi(t), which log(1 + exp(k t)) / k resembles, with the same value at 0.
    """
    k = math.log(2.0) * math.sqrt(2.0 * math.pi)
    deviation = variance.clamp_min(TINY).sqrt()
    level = k * mean / deviation
    return deviation / k * (level + torch.log1p(-torch.exp(-level)))


def _conjugate_gradients(n: Tensor, target: Tensor) -> Tensor:
    """About the a, (B, n, 1), with (I - N N^T) a = target."""
    a, residual, direction = torch.zeros_like(target), target, target
    size = residual.mT.bmm(residual)
    enough = CG_TOLERANCE**2 * size
    for _ in range(CG_STEPS):
        product = torch.baddbmm(direction, n, direction.mT.bmm(n).mT, alpha=-1.0)
        length = size / direction.mT.bmm(product).clamp_min(TINY)
        a = torch.addcmul(a, length, direction)
        residual = torch.addcmul(residual, length, product, value=-1.0)
        before, size = size, residual.mT.bmm(residual)
        if not size.gt(enough).any():
            break
        direction = torch.addcmul(residual, size / before.clamp_min(TINY), direction)
    return a


def _careful(z: Tensor, p: Tensor, q: Tensor, x: Tensor | None, tolerance: float, limit: int) -> Dual:
    """Newton on one side, the other solved exactly, with damping and steps that are taken back."""
    problem = _Problem(z, p, q)
    if x is not None:
        return _newton(problem, x, tolerance, limit)
    x, steps = _cold_start(problem, limit)
    dual = _newton(problem, x, tolerance, limit - steps)
    dual.steps += steps
    return dual


def _cold_start(problem: "_Problem", limit: int) -> tuple[Tensor, int]:
    """Two alternating sweeps; where they end far off, the answer to the same problem with a larger epsilon. And the steps taken."""
    x = problem.best_rows(torch.zeros_like(problem.z[:, :1]), START_TOLERANCE)
    y = problem.best_columns(x, START_TOLERANCE)
    x = problem.best_rows(y, START_TOLERANCE, x)
    problem.best_columns(x, START_TOLERANCE, y)
    if float((problem.h.bmm(problem.q) - 1.0).abs().max()) <= START_ERROR:
        return x, 0
    smoother = solve(problem.z / SMOOTHER, problem.p, problem.q, None, SMOOTHER_TOLERANCE, limit)
    return SMOOTHER * smoother.x, smoother.steps


@torch.inference_mode()
def fit_columns(z: Tensor, p: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """The y and h of the columns' condition alone, with x = 0; tensors of inference mode."""
    h = torch.empty_like(z)
    return _fit(z, p, tolerance, None, h, torch.empty_like(z)), h


def _fit(z: Tensor, p: Tensor, tolerance: float, y: Tensor | None, h: Tensor, support: Tensor) -> Tensor:
    """The y with sum_i p_i (z_ij + y_j)_+ = 1, from ``y``; leaves its compatibility in ``h``.

    Newton on a convex piecewise linear function of one variable: from the second pass on, y falls and the support shrinks.
    """
    # The largest entry of a column is at least its mean. A smaller y might leave a column without support, and so without a slope.
    least = 1.0 / p.sum(2, keepdim=True) - z.amax(1, keepdim=True)
    y = least if y is None else torch.maximum(y, least)
    for passed in range(PASSES + 1):
        torch.add(z, y, out=h).relu_()
        excess = p.bmm(h).sub_(1.0)
        if passed == PASSES or float(excess.abs().max()) <= tolerance:
            break
        y = y - excess.div_(p.bmm(torch.sign(h, out=support)))
    return y


class _Problem:
    """A batch of problems and the memory for solving it. ``h`` belongs to the point that was looked at last."""

    def __init__(self, z: Tensor, p: Tensor, q: Tensor) -> None:
        self.z, self.p, self.q = z, p, q
        self.h, self._shifted, self._support = (torch.empty_like(z) for _ in range(3))
        self._curvature, self._damped = (z.new_empty(len(z), z.shape[1], z.shape[1]) for _ in range(2))

    def best_columns(self, x: Tensor, tolerance: float, y: Tensor | None = None) -> Tensor:
        """The best y for x, searched from ``y``."""
        torch.add(self.z, x, out=self._shifted)
        return _fit(self._shifted, self.p, tolerance, y, self.h, self._support)

    def best_rows(self, y: Tensor, tolerance: float, x: Tensor | None = None) -> Tensor:
        """The best x for y, searched from ``x``."""
        torch.add(self.z, y, out=self._shifted)
        start = None if x is None else x.mT
        return _fit(self._shifted.mT, self.q.mT, tolerance, start, self.h.mT, self._support.mT).mT

    def look_at(self, x: Tensor, y: Tensor) -> None:
        """Sets ``h`` to that of x and y."""
        torch.add(self.z, x, out=self.h).add_(y).relu_()

    def value(self, x: Tensor, y: Tensor) -> Tensor:
        """J, (B, 1, 1), of the point that was looked at last."""
        squares = torch.mul(self.h, self.h, out=self._shifted)
        return self.p.bmm(x) + y.bmm(self.q) - 0.5 * self.p.bmm(squares.bmm(self.q))

    def differentiate(self) -> Tensor:
        """Keeps minus the second derivative of max_y J in x, the Schur complement. Returns the scale of its diagonal, (B, n, 1)."""
        p, q = self.p, self.q
        support = torch.sign(self.h, out=self._support)
        row = support.bmm(q)
        weighted = torch.mul(support, q.mT / p.bmm(support), out=self._shifted)
        torch.bmm(weighted, support.mT, out=self._curvature).mul_(-p).mul_(p.mT)
        row_scale = p.mT * row
        self._curvature.diagonal(dim1=1, dim2=2).add_(row_scale[:, :, 0])
        return torch.maximum(row_scale, p.mT * q.amin(1, keepdim=True))

    def newton_step(self, gradient: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
        """The step in x, (B, n, 1), damped by what is added to the diagonal, (B, n, 1), and for which problems there is one, (B, 1, 1)."""
        self._damped.copy_(self._curvature)
        self._damped.diagonal(dim1=1, dim2=2).add_(damping[:, :, 0])
        factor, failed = torch.linalg.cholesky_ex(self._damped)
        return torch.cholesky_solve(gradient, factor), (failed == 0)[:, None, None]


def _newton(problem: _Problem, x: Tensor, tolerance: float, limit: int) -> Dual:
    p, q = problem.p, problem.q
    fitted = FIT * tolerance
    y = problem.best_columns(x, fitted)
    value = problem.value(x, y)
    damping = torch.full_like(value, FIRST_DAMPING)
    best, idle = torch.full_like(value[:, 0, 0], torch.inf), torch.zeros_like(value[:, 0, 0])
    steps, moved = 0, True
    while True:
        if moved:
            residual = 1.0 - problem.h.bmm(q)
            error = torch.maximum(residual.abs().amax((1, 2)), (1.0 - p.bmm(problem.h)).abs().amax((1, 2)))
            unsolved = error > tolerance
            left = int(unsolved.sum())
            idle = torch.where(error < PROGRESS * best, 0.0, idle)
            best = torch.minimum(best, error)
        if left == 0 or steps >= limit:
            problem.look_at(x, y)
            return Dual(x, y, problem.h, error, steps)
        if left <= len(x) // 2:  # the few that are left need not drag the others along
            rest = _newton(_Problem(problem.z[unsolved], p[unsolved], q[unsolved]), x[unsolved], tolerance, limit - steps)
            for all_, some in ((x, rest.x), (y, rest.y), (problem.h, rest.h), (error, rest.error)):
                all_[unsolved] = some
            return Dual(x, y, problem.h, error, steps + rest.steps)
        if moved:
            scale, gradient = problem.differentiate(), p.mT * residual

        step, exists = problem.newton_step(gradient, damping * scale)
        promised = (gradient * step).sum(1, keepdim=True)
        x_new = torch.where(exists & unsolved[:, None, None], x + step, x)
        idle = idle + 1.0
        sweep = (idle >= PATIENCE)[:, None, None]
        if bool(sweep.any()):
            idle = torch.where(sweep[:, 0, 0], 0.0, idle)
            x_new = torch.where(sweep, problem.best_rows(y, fitted, x), x_new)
        y_new = problem.best_columns(x_new, fitted, y)
        value_new = problem.value(x_new, y_new)
        ascent = value_new - value
        good = ((ascent >= ASCENT * promised - ROUNDING * value.abs()) & exists) | sweep
        accepted = good & unsolved[:, None, None]
        share = 2.0 * ascent / promised  # 1 where J is as quadratic as it looked
        factor = torch.where(good, torch.where(share > 0.75, 0.1, torch.where(share < 0.25, 4.0, 1.0)), 10.0)
        damping = torch.where(sweep, damping, (damping * factor).clamp(LEAST_DAMPING, MOST_DAMPING))
        steps += 1
        moved = bool(accepted.any())
        if moved:
            x, y, value = (torch.where(accepted, new, old) for new, old in ((x_new, x), (y_new, y), (value_new, value)))
            if not bool(accepted.all()):
                problem.look_at(x, y)
