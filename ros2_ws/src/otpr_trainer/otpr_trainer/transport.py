# SPDX-License-Identifier: Apache-2.0
"""Optimal transport between a block of states and a block of action chunks, with quadratic regularisation.

OTPR (Sun et al. 2025, arXiv 2502.12631) takes -Q(s, a) for the cost of giving action a to state s and asks for the plan

    minimise  sum_ij pi_ij c_ij + epsilon sum_ij pi_ij^2 / (p_i q_j)    over plans pi >= 0 with marginals p and q.

Its answer is pi = h * (p q^T), where the compatibility is h_ij = (u_i + v_j - c_ij)_+ / (2 epsilon) and the potentials u, v maximise

    J(u, v) = p . u + q . v - 1/(4 epsilon) sum_ij p_i q_j (u_i + v_j - c_ij)_+^2    (Blondel et al. 2018, arXiv 1710.06276).

Unlike with entropy, the plan is sparse: most pairs have h = 0. Row and column means of h, weighted by q and p, are 1.

Masks mark keypoints: a keypoint state gives all of its mass to its own action and that action takes it from no other state (KPG,
Gu et al. 2022, arXiv 2209.06536). Such a plan splits into the keypoints and an ordinary plan of the rest, and is solved so.

Costs have shape (n, m) or (B, n, m) for B problems at once; what comes out has the same batch dimension, dtype and device. Inside, all
is float64. No gradient flows through anything here.
"""

import math
from dataclasses import dataclass
from enum import Enum

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from otpr_policy.errors import TransportError
from otpr_trainer import quadratic_dual
from otpr_trainer.keypoints import guiding_score as guiding_score
from otpr_trainer.keypoints import keypoint_mask as keypoint_mask
from otpr_trainer.keypoints import keypoint_masses as keypoint_masses
from otpr_trainer.keypoints import keypoint_pairs, others
from otpr_trainer.potentials import Potentials as Potentials

TOLERANCE = 1e-6
MAX_ITERATIONS = 1000  # a few are used; near the unregularised problem some tens
ROUNDING = 1e-13  # row error of a semi-relaxed plan
SUPPORT_STEPS = 60  # of the bisection; about 6 are used
SUPPORT_TOLERANCE = 1e-4  # marginal error of its plans
SMALLEST_EPSILON = 1e-6  # of a standardised cost, below which the search for a small support ends
BALANCE = 1e-6  # relative difference of two masses that counts as rounding
DEAD = 1e-3  # sum of a row of h below which its action is not drawn from h


class Kind(Enum):
    """Which marginals a plan must have."""

    BALANCED = "balanced"
    SEMI_RELAXED = "semi-relaxed"


@dataclass(frozen=True, eq=False)
class Plan:
    """A transport plan as its compatibility with the product of the marginals.

    Args:
        compatibility: h = d pi / d(p x q), (..., n, m).
        u: potential of each state, (..., n), in units of the cost; NaN where the plan has none (:func:`assignment`).
        v: potential of each action, (..., m).
        row_error: largest |mean of a row of h - 1|, weighted by q, (...).
        column_error: the same of columns, weighted by p, (...).
        iterations: Newton steps tried.
    """

    compatibility: Tensor
    u: Tensor
    v: Tensor
    row_error: Tensor
    column_error: Tensor
    iterations: int

    @property
    def support(self) -> Tensor:
        """Share of actions with h > 0, of each row, (..., n)."""
        return (self.compatibility > 0).to(self.compatibility.dtype).mean(-1)

    @property
    def effective_sample_size(self) -> Tensor:
        """(sum h)^2 / sum h^2 of each row, (..., n): from 1, all on one action, to m. 0 for a row without any."""
        squares = self.compatibility.square().sum(-1)
        return self.compatibility.sum(-1).square() / squares.clamp_min(torch.finfo(squares.dtype).tiny)

    def plan(self, p: Tensor | None = None, q: Tensor | None = None) -> Tensor:
        """The masses pi = h p q^T, (..., n, m). p: (..., n), q: (..., m), those that the plan was made with; None is uniform."""
        n, m = self.compatibility.shape[-2:]
        weighted = self.compatibility / n if p is None else self.compatibility * p[..., :, None].to(self.compatibility)
        return weighted / m if q is None else weighted * q[..., None, :].to(self.compatibility)


def balanced(
    cost: Tensor,
    epsilon: float | Tensor,
    *,
    mask: Tensor | None = None,
    p: Tensor | None = None,
    q: Tensor | None = None,
    start: Plan | None = None,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> Plan:
    """The plan with both marginals, exact: see the module's text, and :mod:`otpr_trainer.quadratic_dual` for the method.

    Args:
        cost: (n, m) or (B, n, m), finite.
        epsilon: > 0, in units of the cost; one for all or one per problem, (B,).
        mask: of :func:`keypoint_mask`, (n, m), the same for all problems.
        p: mass of each state, > 0, (n,) or (B, n); None is 1/n each.
        q: mass of each action, > 0, (m,) or (B, m), with the same total as p; None is 1/m each.
        start: an earlier plan of a similar problem, whose u and v are the starting point.
        tolerance: largest marginal error.
        max_iterations: Newton steps, after which the problem is given up.

    Raises:
        TransportError: something above does not hold, a keypoint's two masses differ, or the tolerance was not reached, which happens
            when epsilon is so small that float64 does not resolve h.
    """
    block = _Block(cost, epsilon)
    given = p is not None or q is not None
    p, q = block.masses(p, -2), block.masses(q, -1)
    keypoints = block.keypoints(mask)
    if given or keypoints is not None:
        _check_masses(p, q, keypoints)
    warm = None if start is None else (block.own(start.u), block.own(start.v))
    if keypoints is None:
        return block.plan(*_solve(block.cost, block.epsilon, p, q, warm, tolerance, max_iterations), p, q)
    h, u, v, steps = torch.zeros_like(block.cost), torch.zeros_like(p), torch.zeros_like(q), 0
    rows, columns = (others(count, taken) for count, taken in zip(cost.shape[-2:], keypoints, strict=True))
    if len(rows):
        rest = block.cost[:, rows[:, None], columns]
        warm = None if warm is None else (warm[0][:, rows], warm[1][:, columns])
        h_rest, u[:, rows], v[:, columns], steps = _solve(rest, block.epsilon, p[:, rows], q[:, columns], warm, tolerance, max_iterations)
        h[:, rows[:, None], columns] = h_rest
    tied_rows, tied_columns = keypoints
    h[:, tied_rows, tied_columns] = 1.0 / q[:, tied_columns]
    # Only the sum of the two potentials is determined.
    half = block.cost[:, tied_rows, tied_columns] / 2.0 + block.epsilon[:, None] / q[:, tied_columns]
    u[:, tied_rows] = v[:, tied_columns] = half
    return block.plan(h, u, v, steps, p, q)


def _solve(
    cost: Tensor,
    epsilon: Tensor,
    p: Tensor,
    q: Tensor,
    potentials: tuple[Tensor, Tensor] | None,
    tolerance: float,
    max_iterations: int,
) -> tuple[Tensor, Tensor, Tensor, int]:
    """h, u, v and the steps of a problem without mask. The Newton system is that of the smaller side."""
    n, m = cost.shape[1:]
    # Row and column effects change the potentials alone, and without them less of float64 is lost.
    f = cost.mean(2, keepdim=True)
    g = cost.mean(1, keepdim=True) - f.mean(1, keepdim=True)
    unit = 2.0 * epsilon[:, None, None]
    z = torch.sub(f, cost).add_(g).div_(unit)
    start = None if potentials is None else ((potentials[0][:, :, None] - f) / unit, (potentials[1][:, None, :] - g) / unit)
    if n <= m:
        dual = quadratic_dual.solve(z, p[:, None, :], q[:, :, None], start, tolerance, max_iterations)
        h, x, y = dual.h, dual.x, dual.y
    else:
        start = None if start is None else (start[1].mT, start[0].mT)
        dual = quadratic_dual.solve(z.mT.contiguous(), q[:, None, :], p[:, :, None], start, tolerance, max_iterations)
        h, x, y = dual.h.mT, dual.y.mT, dual.x.mT
    if not bool((dual.error <= tolerance).all()):
        raise TransportError(
            f"the transport plan has a marginal error of {float(dual.error.max()):.1e} after {dual.steps} iterations, not {tolerance:.1e};"
            " take a larger epsilon or tolerance"
        )
    return h, (f + unit * x)[:, :, 0], (g + unit * y)[:, 0], dual.steps


def semi_relaxed(cost: Tensor, epsilon: float | Tensor, mask: Tensor | None = None) -> Plan:
    """The plan with uniform p and free use of actions, so that a bad one may go unused: a row of h / m is sparsemax(-cost / (2 epsilon m)).

    Sparsemax is that of Martins and Astudillo 2016 (arXiv 1602.02068). ``v`` is 0; ``column_error`` says how unevenly actions are used.

    Args:
        cost: (n, m) or (B, n, m), finite.
        epsilon: > 0, in units of the cost; one for all or one per problem, (B,).
        mask: which pairs are allowed, (n, m) or (B, n, m); any with at least one action for each state.

    Raises:
        TransportError: something above does not hold.
    """
    block = _Block(cost, epsilon)
    p, q = block.masses(None, -2), block.masses(None, -1)
    unit = 2.0 * block.epsilon[:, None, None]
    z = -block.cost / unit
    if mask is not None:
        if not bool(mask.any(-1).all()):
            raise TransportError("a semi-relaxed plan needs at least one action that the mask allows for each state")
        z = z.masked_fill(~mask, -torch.inf)
    x, h = (a.mT for a in quadratic_dual.fit_columns(z.mT, q[:, None, :], ROUNDING))
    return block.plan(h, (unit * x)[:, :, 0], torch.zeros_like(q), 0, p, q)


def assignment(cost: Tensor) -> Plan:
    """The unregularised plan with uniform marginals, n = m: a best one-to-one matching, on which h = n.

    Raises:
        TransportError: n and m differ, or a cost is not finite.
    """
    block = _Block(cost, 1.0)
    n, m = cost.shape[-2:]
    if n != m:
        raise TransportError(f"an assignment needs as many states as actions, not {n} and {m}")
    h = torch.zeros_like(block.cost)
    for one, of_one in zip(h, block.cost.cpu().numpy(), strict=True):
        rows, columns = linear_sum_assignment(of_one)
        one[torch.from_numpy(rows).to(h.device), torch.from_numpy(columns).to(h.device)] = float(n)
    none = torch.full_like(h[:, 0], math.nan)
    return block.plan(h, none, none, 0, block.masses(None, -2), block.masses(None, -1))


def _check_masses(p: Tensor, q: Tensor, keypoints: tuple[Tensor, Tensor] | None) -> None:
    totals = p.sum(1), q.sum(1)
    if not torch.allclose(*totals, rtol=BALANCE, atol=0.0):
        raise TransportError(f"p and q need the same total mass, not {float(totals[0][0]):g} and {float(totals[1][0]):g}")
    if keypoints is None:
        return
    of_states, of_actions = p[:, keypoints[0]], q[:, keypoints[1]]
    wrong = ((of_states - of_actions).abs() > BALANCE * of_actions).nonzero()
    if len(wrong):
        problem, k = wrong[0].tolist()
        row, column = int(keypoints[0][k]), int(keypoints[1][k])
        masses = f"{float(of_states[problem, k]):g} and {float(of_actions[problem, k]):g}"
        raise TransportError(
            f"keypoint {k}, state {row} with action {column}, needs the same mass on both sides, not {masses}; see keypoint_masses"
        )


class _Block:
    """A checked cost as a batch of float64 problems, (B, n, m), and the way back."""

    def __init__(self, cost: Tensor, epsilon: float | Tensor) -> None:
        if cost.ndim not in (2, 3) or 0 in cost.shape:
            raise TransportError(f"a cost has shape (states, actions) or (problems, states, actions), not {tuple(cost.shape)}")
        self.shape, self.dtype = cost.shape, cost.dtype
        self.cost = self.own(cost)
        if not cost.is_floating_point():
            raise TransportError(f"a cost is a tensor of floating-point numbers, not of {cost.dtype}")
        if not bool(self.cost.sum((1, 2)).isfinite().all()):  # the sum is not if one entry is not
            raise TransportError("a cost has entries that are not finite")
        self.epsilon = torch.as_tensor(epsilon, dtype=torch.float64, device=cost.device).detach().expand(len(self.cost))
        if not bool(((self.epsilon > 0.0) & self.epsilon.isfinite()).all()):
            raise TransportError(f"epsilon must be finite and above 0, not {float(self.epsilon.min()):g}")

    def own(self, tensor: Tensor) -> Tensor:
        """Detached, in float64, with a batch dimension."""
        tensor = tensor.detach().to(torch.float64)
        return tensor if len(self.shape) == 3 else tensor[None]

    def back(self, tensor: Tensor) -> Tensor:
        """Without the batch dimension if the cost had none, in its dtype, and fit for autograd."""
        return (tensor if len(self.shape) == 3 else tensor[0]).to(self.dtype, copy=tensor.is_inference())

    def keypoints(self, mask: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Rows and columns, (K,) each, that a mask ties together."""
        return None if mask is None else keypoint_pairs(mask, *self.shape[-2:])

    def masses(self, masses: Tensor | None, dim: int) -> Tensor:
        """One marginal, (B, n) or (B, m); None is uniform."""
        count = self.shape[dim]
        if masses is None:
            return self.cost.new_full((len(self.cost), count), 1.0 / count)
        if masses.shape[-1] != count or not bool((masses > 0.0).all()):
            raise TransportError(f"a marginal of this block has {count} masses above 0")
        return masses.detach().to(self.cost).expand(len(self.cost), count)

    def plan(self, h: Tensor, u: Tensor, v: Tensor, iterations: int, p: Tensor, q: Tensor) -> Plan:
        """The answer in the shape and type of the question."""
        row_error = (h.bmm(q[:, :, None]) - 1.0).abs().amax((1, 2))
        column_error = (p[:, None, :].bmm(h) - 1.0).abs().amax((1, 2))
        return Plan(self.back(h), self.back(u), self.back(v), self.back(row_error), self.back(column_error), iterations)


def standardize(cost: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The cost without row and column effects, over its own spread, so that epsilon means the same whatever the scale of Q.

    Adding f(s) + g(a) to Q, or scaling it, changes nothing in what comes out.

    Args:
        cost: (n, m) or (B, n, m), finite.
        mask: of :func:`keypoint_mask`; keypoints are left out of the means and of the spread, and come out as 0.

    Returns:
        The standardised cost, of mean 0 in each row and column and of standard deviation 1; and that spread in the cost's own units,
        () or (B,). Where the spread is no more than rounding of the cost, both are 0.
    """
    block = _Block(cost, 1.0)
    none = torch.zeros(0, dtype=torch.int64, device=cost.device)
    keypoints = block.keypoints(mask) or (none, none)
    rows, columns = (others(count, taken) for count, taken in zip(cost.shape[-2:], keypoints, strict=True))
    part = block.cost[:, rows[:, None], columns]
    if 0 in part.shape:
        return torch.zeros_like(cost), block.back(torch.zeros_like(block.epsilon))
    centred = part - part.mean(2, keepdim=True) - part.mean(1, keepdim=True) + part.mean((1, 2), keepdim=True)
    scale = centred.square().mean((1, 2)).sqrt()
    rounding = 4.0 * torch.finfo(cost.dtype).eps * part.abs().amax((1, 2))
    scale = torch.where(scale > rounding, scale, 0.0)
    result = torch.zeros_like(block.cost)
    result[:, rows[:, None], columns] = torch.where(scale[:, None, None] > 0.0, centred / scale[:, None, None], 0.0)
    return block.back(result), block.back(scale)


def epsilon_for_support(cost: Tensor, support: float, kind: Kind) -> Tensor:
    """The epsilon with which the median row of the plan has h > 0 for this share of the actions, () or (B,).

    A share is a whole number of actions, so the nearest of those is met. Of an even number of rows the lower median is taken. Where
    every epsilon gives the same plan, as for a constant cost, the answer is 1.

    Args:
        cost: (n, m) or (B, n, m), finite.
        support: target in (0, 1].
        kind: of the plan. Semi-relaxed is exact, from one sort; balanced is a bisection that starts there, of about six plans.

    Raises:
        TransportError: the target is out of range, or so small that no balanced plan has it.
    """
    if not 0.0 < support <= 1.0:
        raise TransportError(f"the support is a share in (0, 1], not {support:g}")
    block = _Block(cost, 1.0)
    if kind is Kind.SEMI_RELAXED:
        return block.back(_semi_relaxed_epsilon(block.cost, support))
    standard, scale = standardize(cost)
    epsilon = _balanced_epsilon(block.own(standard), support)
    return torch.where(scale > 0.0, block.back(epsilon) * scale, 1.0)


def _semi_relaxed_epsilon(cost: Tensor, support: float) -> Tensor:
    """With costs of a row in ascending order, the k-th action is used when epsilon > sum_(i <= k) (c_k - c_i) / (2 m)."""
    n, m = cost.shape[1:]
    ordered = cost.sort(2).values
    count = torch.arange(1, m + 1, device=cost.device)
    bounds = (count * ordered - ordered.cumsum(2)) / (2.0 * m)
    median = bounds.sort(1, descending=True).values[:, (n - 1) // 2]
    k = max(1, round(support * m))
    upper = median[:, k] if k < m else 3.0 * median[:, k - 1]
    middle = (median[:, k - 1] + upper) / 2.0
    return torch.where(middle > 0.0, middle, 1.0)


def _balanced_epsilon(cost: Tensor, support: float) -> Tensor:
    """Bisection of log epsilon for standardised costs (B, n, m), each plan from the potentials of the last."""
    target = max(1, round(support * cost.shape[2])) / cost.shape[2]
    epsilon = _semi_relaxed_epsilon(cost, support)
    low, high = torch.zeros_like(epsilon), torch.full_like(epsilon, torch.inf)
    same = cost.abs().amax((1, 2)) == 0.0  # every epsilon gives the same plan
    start: Plan | None = None
    for _ in range(SUPPORT_STEPS):
        start = balanced(cost, epsilon, start=start, tolerance=SUPPORT_TOLERANCE)
        reached = start.support.median(1).values
        done = same | ((reached - target).abs() < 0.5 / cost.shape[2]) | (high < 1.001 * low)
        if bool(done.all()):
            return epsilon
        if float(epsilon[~done].min()) < SMALLEST_EPSILON:
            break
        high = torch.where(~done & (reached > target), epsilon, high)
        low = torch.where(~done & (reached < target), epsilon, low)
        between = torch.where(low == 0.0, high / 4.0, torch.where(high.isinf(), low * 4.0, (low * high).sqrt()))
        epsilon = torch.where(done, epsilon, between)
    raise TransportError(
        f"no balanced plan of this block has a median row support of {support:g}: the smallest found is {float(reached.min()):g}"
    )


def resample(compatibility: Tensor, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Compatibility-based resampling: draws actions of each row with probability h_ij / sum_j h_ij, with replacement.

    Args:
        compatibility: h >= 0, (..., n, m).
        count: draws of each row.
        generator: on h's device.

    Returns:
        Columns (..., n, count); and which rows are dead, (..., n): their h sums to less than ``DEAD``, and their draws are uniform.
    """
    dead = compatibility.sum(-1) < DEAD
    weight = torch.where(dead[..., None], 1.0, compatibility)
    drawn = torch.multinomial(weight.flatten(0, -2), count, replacement=True, generator=generator)
    return drawn.reshape(*dead.shape, count), dead
