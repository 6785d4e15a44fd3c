"""Limited-memory BFGS for a stack of smooth convex problems that are solved side by side.

Liu & Nocedal, *On the limited memory BFGS method for large scale optimization*, Math. Programming 45 (1989),
Algorithm 2.1, with three additions that matter here:

* the initial inverse Hessian is a given diagonal, rescaled at each step (their ``M3`` scaling in its metric);
* every problem has its own line search, and leaves the stack as soon as it has converged;
* close to the optimum, where differences of the objective drown in rounding, a step is judged by its slope
  instead (the approximate Wolfe condition of Hager & Zhang, *A new conjugate gradient method with guaranteed
  descent and an efficient line search*, SIAM J. Optim. 16 (2005), eq. 4.1).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# (x of shape (k, size), indices of those k problems) -> (values (k,), gradients (k, size)), all float64.
Evaluate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

MEMORY = 10
"""Curvature pairs kept for each problem."""
MAX_ITERATIONS = 2000
_SUFFICIENT_DECREASE = 1e-4
_MAX_BACKTRACKS = 25
_PATIENCE = 300  # steps without a smaller decrement after which rounding is all that is left


@dataclass(frozen=True)
class Solution:
    """Where a stack of ``k`` problems ended.

    Attributes:
        x: (k, size) float64, the minimisers.
        value: (k,) float64, the objective there.
        gradient: (k, size) float64, its gradient there.
        iterations: (k,) int64, steps taken.
        converged: (k,) bool, whether the tolerance was reached.
        steps: (MEMORY, k, size) float64, the last differences of ``x``, newest last; zeros where there were fewer.
        changes: (MEMORY, k, size) float64, the differences of the gradient that belong to them.
    """

    x: Tensor
    value: Tensor
    gradient: Tensor
    iterations: Tensor
    converged: Tensor
    steps: Tensor
    changes: Tensor


@dataclass
class _Stack:
    """The problems still running: ``index`` says which they are in the caller's numbering."""

    index: Tensor
    x: Tensor
    value: Tensor
    lowest: Tensor  # value so far
    gradient: Tensor
    inverse_hessian: Tensor
    steps: list[Tensor]  # s_k = x_{k+1} - x_k, newest last
    changes: list[Tensor]  # y_k = g_{k+1} - g_k
    rho: list[Tensor]  # 1 / <s_k, y_k>, zero where the pair is not used

    def keep(self, rows: Tensor) -> None:
        """Drop every problem that is not in ``rows``."""
        self.index, self.x = self.index[rows], self.x[rows]
        self.value, self.lowest = self.value[rows], self.lowest[rows]
        self.gradient, self.inverse_hessian = self.gradient[rows], self.inverse_hessian[rows]
        self.steps = [s[rows] for s in self.steps]
        self.changes = [y[rows] for y in self.changes]
        self.rho = [r[rows] for r in self.rho]

    def remember(self, step: Tensor, change: Tensor) -> None:
        """Add a curvature pair, forgetting the oldest; pairs without positive curvature count for nothing."""
        curvature = _dot(step, change)
        # Rounding can turn the curvature of a convex function negative; such a pair would make a direction that climbs.
        usable = curvature > 1e-14 * (_dot(step, step) * _dot(change, change)).sqrt()
        self.steps.append(step)
        self.changes.append(change)
        self.rho.append(torch.where(usable, 1 / curvature.clamp_min(1e-300), 0.0))
        if len(self.steps) > MEMORY:
            del self.steps[0], self.changes[0], self.rho[0]

    def direction(self) -> Tensor:
        """The two-loop recursion: minus the inverse Hessian approximation times the gradient."""
        q = self.gradient.clone()
        weights = []
        for s, y, rho in zip(reversed(self.steps), reversed(self.changes), reversed(self.rho), strict=True):
            weight = rho * _dot(s, q)
            q -= weight[:, None] * y
            weights.append(weight)
        q *= self.inverse_hessian
        if self.steps:
            s, y, rho = self.steps[-1], self.changes[-1], self.rho[-1]
            scale = 1 / (rho * _dot(y, self.inverse_hessian * y))
            q *= torch.where(rho > 0, scale, 1.0)[:, None]
        for s, y, rho, weight in zip(self.steps, self.changes, self.rho, reversed(weights), strict=True):
            q += (weight - rho * _dot(y, q))[:, None] * s
        return -q


def minimize(
    evaluate: Evaluate,
    start: Tensor,
    inverse_hessian: Tensor,
    *,
    tolerance: float,
    rounding: float = 1e-15,
    known: Solution | None = None,
) -> Solution:
    """Minimise ``k`` convex functions at once.

    A problem has converged when its Newton decrement, ``<g, D g> / 2`` with ``D`` the given diagonal, which
    estimates how far its value lies above the minimum, is at most ``tolerance`` times that value.

    Args:
        evaluate: values and gradients of some of the problems.
        start: (k, size) float64.
        inverse_hessian: (k, size) float64, a positive diagonal near the inverse Hessian.
        tolerance: relative suboptimality at which a problem stops.
        rounding: relative error of the values, below which a step is judged by its slope.
        known: value, gradient and curvature pairs at ``start``, where they are known from a similar problem.
    """
    index = torch.arange(len(start), device=start.device)
    value, gradient = evaluate(start, index) if known is None else (known.value, known.gradient)
    stack = _Stack(index, start.clone(), value, value.clone(), gradient, inverse_hessian, [], [], [])
    if known is not None:
        for step, change in zip(known.steps, known.changes, strict=True):
            stack.remember(step, change)
    result = Solution(
        x=start.clone(),
        value=value.clone(),
        gradient=gradient.clone(),
        iterations=torch.zeros_like(index),
        converged=torch.zeros_like(index, dtype=torch.bool),
        steps=start.new_zeros(MEMORY, *start.shape),
        changes=start.new_zeros(MEMORY, *start.shape),
    )
    stuck = torch.zeros_like(index, dtype=torch.bool)
    smallest = torch.full_like(value, torch.inf)  # decrement of each problem so far, and when it was reached
    reached = torch.zeros_like(index)
    for iteration in range(MAX_ITERATIONS + 1):
        decrement = _dot(stack.gradient, stack.inverse_hessian * stack.gradient) / 2
        converged = decrement <= tolerance * stack.value.abs()
        progress = stack.index[decrement < 0.9 * smallest[stack.index]]
        reached[progress] = iteration
        smallest[stack.index] = torch.minimum(smallest[stack.index], decrement)
        stuck |= iteration - reached[stack.index] > _PATIENCE
        stop = converged | stuck | ~torch.isfinite(stack.value) | (iteration == MAX_ITERATIONS)
        if bool(stop.any()):
            ended = stack.index[stop]
            result.x[ended], result.value[ended] = stack.x[stop], stack.value[stop]
            result.gradient[ended], result.iterations[ended] = stack.gradient[stop], iteration
            result.converged[ended] = converged[stop]
            for age in range(1, len(stack.steps) + 1):
                result.steps[-age, ended], result.changes[-age, ended] = (
                    stack.steps[-age][stop],
                    stack.changes[-age][stop],
                )
            if bool(stop.all()):
                break
            # Those that are done leave, so that the last problem of a stack does not pay for all of them.
            stack.keep(torch.nonzero(~stop).flatten())
        stuck = _advance(evaluate, stack, rounding)
    return result


def _advance(evaluate: Evaluate, stack: _Stack, rounding: float) -> Tensor:
    """Take one step in every running problem; return (k,) bool: in which of them no step helps."""
    direction = stack.direction()
    slope = _dot(stack.gradient, direction)
    uphill = slope >= 0  # only by rounding: fall back on the preconditioned gradient
    if bool(uphill.any()):
        direction = torch.where(uphill[:, None], -stack.inverse_hessian * stack.gradient, direction)
        slope = _dot(stack.gradient, direction)

    x, value, gradient = stack.x.clone(), stack.value.clone(), stack.gradient.clone()
    length = torch.ones_like(slope)
    rows = torch.arange(len(slope), device=slope.device)
    for _ in range(_MAX_BACKTRACKS):
        trial = stack.x[rows] + length[rows, None] * direction[rows]
        trial_value, trial_gradient = evaluate(trial, stack.index[rows])
        trial_slope = _dot(trial_gradient, direction[rows])
        decreased = trial_value <= stack.value[rows] + _SUFFICIENT_DECREASE * length[rows] * slope[rows]
        near = trial_value <= stack.lowest[rows] + rounding * (1 + stack.lowest[rows].abs())
        flatter = trial_slope <= (2 * _SUFFICIENT_DECREASE - 1) * slope[rows]
        accepted = decreased | (near & flatter)
        good = rows[accepted]
        x[good], value[good], gradient[good] = (
            trial[accepted],
            trial_value[accepted],
            trial_gradient[accepted],
        )
        rows, trial_value = rows[~accepted], trial_value[~accepted]
        if len(rows) == 0:
            break
        length[rows] *= _shrink(stack.value[rows], trial_value, length[rows], slope[rows])
    stuck = torch.zeros_like(slope, dtype=torch.bool)
    stuck[rows] = True
    stack.remember(x - stack.x, gradient - stack.gradient)
    stack.x, stack.value, stack.gradient = x, value, gradient
    stack.lowest = torch.minimum(stack.lowest, value)
    return stuck


def _shrink(value: Tensor, trial: Tensor, length: Tensor, slope: Tensor) -> Tensor:
    """The factor that leads to the minimum of the parabola through both values, kept within [0.1, 0.5]."""
    factor = -slope * length / (2 * (trial - value - slope * length))
    return torch.nan_to_num(factor, nan=0.1).clamp(0.1, 0.5)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("kn,kn->k", a, b)
