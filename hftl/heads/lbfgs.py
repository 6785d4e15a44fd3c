"""Limited-memory BFGS for a stack of smooth convex problems that are solved side by side.

Liu & Nocedal, *On the limited memory BFGS method for large scale optimization*, Math. Programming 45 (1989),
Algorithm 2.1, with three additions that matter here:

* the initial inverse Hessian is a given diagonal, rescaled at each step (their ``M3`` scaling in its metric);
* every problem has its own line search, and leaves the stack as soon as it has converged;
* close to the optimum, where differences of the objective drown in rounding, a step is judged by its slope
  instead (the approximate Wolfe condition of Hager & Zhang, *A new conjugate gradient method with guaranteed
  descent and an efficient line search*, SIAM J. Optim. 16 (2005), eq. 4.1).
"""

from collections.abc import Callable, Iterable, Iterator
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
        steps: (MEMORY, k, size) float32, the last differences of ``x``, newest last; zeros where there were fewer.
        changes: (MEMORY, k, size) float32, the differences of the gradient that belong to them.
    """

    x: Tensor
    value: Tensor
    gradient: Tensor
    iterations: Tensor
    converged: Tensor
    steps: Tensor
    changes: Tensor


@dataclass
class _History:
    """The curvature pairs of all problems of a stack, in place, because they outweigh everything else in the solver.

    In float32: they only shape directions, and are judged by steps and gradients in float64.

    Attributes:
        steps: (MEMORY, k, size) float32, ``s = x' - x``.
        changes: (MEMORY, k, size) float32, ``y = g' - g``.
        rho: (MEMORY, k) float64, ``1 / <s, y>``, zero where the pair is not used.
        newest: which of the MEMORY was written last; the one after it is the oldest.
    """

    steps: Tensor
    changes: Tensor
    rho: Tensor
    newest: int = MEMORY - 1

    @classmethod
    def of(cls, start: Tensor, known: Solution | None) -> "_History":
        """Empty, or what is known of a similar problem, whose tensors are taken over."""
        if known is None:
            empty = torch.zeros(2, MEMORY, *start.shape, device=start.device)
            return cls(empty[0], empty[1], torch.zeros(MEMORY, len(start), dtype=torch.float64, device=start.device))
        pairs = zip(known.steps, known.changes, strict=True)
        return cls(known.steps, known.changes, torch.stack([_weight(s.double(), y.double()) for s, y in pairs]))

    def remember(self, problems: Tensor, step: Tensor, change: Tensor) -> None:
        """Write a pair of some problems over the oldest; all running problems are given each time."""
        self.newest = (self.newest + 1) % MEMORY
        self.steps[self.newest, problems] = step.float()
        self.changes[self.newest, problems] = change.float()
        self.rho[self.newest, problems] = _weight(step, change)

    def pairs(self, problems: Tensor, ages: Iterable[int] = range(MEMORY)) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The steps, changes and rho of some problems, newest first, or in the order of their ages."""
        everyone = len(problems) == self.rho.shape[1]
        for age in ages:
            place = (self.newest - age) % MEMORY
            s, y, rho = self.steps[place], self.changes[place], self.rho[place]
            yield (s, y, rho) if everyone else (s[problems], y[problems], rho[problems])

    def settle(self, problem: int) -> None:
        """Put the pairs of a problem that has ended into order, newest last."""
        for kept in (self.steps, self.changes):
            kept[:, problem] = kept[:, problem].roll(-(self.newest + 1), 0)


def _weight(step: Tensor, change: Tensor) -> Tensor:
    """``1 / <s, y>`` of float64 pairs (k, size): zero for those without positive curvature, which count for nothing."""
    curvature = _dot(step, change)
    # Rounding can turn the curvature of a convex function negative; such a pair would make a direction that climbs.
    usable = curvature > 1e-14 * (_dot(step, step) * _dot(change, change)).sqrt()
    return torch.where(usable, 1 / curvature.clamp_min(1e-300), 0.0)


@dataclass
class _Stack:
    """The problems still running: ``index`` says which they are in the caller's numbering."""

    index: Tensor
    x: Tensor
    value: Tensor
    lowest: Tensor  # value so far
    gradient: Tensor
    inverse_hessian: Tensor
    history: _History

    def keep(self, rows: Tensor) -> None:
        """Drop every problem that is not in ``rows``."""
        self.index, self.x = self.index[rows], self.x[rows]
        self.value, self.lowest = self.value[rows], self.lowest[rows]
        self.gradient, self.inverse_hessian = self.gradient[rows], self.inverse_hessian[rows]

    def direction(self) -> Tensor:
        """The two-loop recursion: minus the inverse Hessian approximation times the gradient."""
        inverse_hessian = self.inverse_hessian.float()
        # Gradients are tiny near the minimum, and their squares would vanish in float32.
        size = self.gradient.abs().amax(1, keepdim=True).clamp_min(1e-300)
        q = (self.gradient / size).float()
        weights = []
        for s, y, rho in self.history.pairs(self.index):
            weight = (rho * _dot(s, q)).float()
            q -= weight[:, None] * y
            weights.append(weight)
        q *= inverse_hessian
        _, y, rho = next(self.history.pairs(self.index))
        scale = 1 / (rho * _dot(y, inverse_hessian * y))
        q *= torch.where(rho > 0, scale, 1.0).float()[:, None]
        oldest_first = self.history.pairs(self.index, reversed(range(MEMORY)))
        for (s, y, rho), weight in zip(oldest_first, reversed(weights), strict=True):
            q += (weight - (rho * _dot(y, q)).float())[:, None] * s
        return -(q.double() * size)


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
        known: value, gradient and curvature pairs at ``start``, where they are known from a similar problem; the pairs
            are written over.
    """
    index = torch.arange(len(start), device=start.device)
    value, gradient = evaluate(start, index) if known is None else (known.value, known.gradient)
    history = _History.of(start, known)
    stack = _Stack(index, start.clone(), value, value.clone(), gradient, inverse_hessian, history)
    result = Solution(
        x=start.clone(),
        value=value.clone(),
        gradient=gradient.clone(),
        iterations=torch.zeros_like(index),
        converged=torch.zeros_like(index, dtype=torch.bool),
        steps=history.steps,
        changes=history.changes,
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
            for problem in ended.tolist():
                history.settle(problem)
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
    stack.history.remember(stack.index, x - stack.x, gradient - stack.gradient)
    stack.x, stack.value, stack.gradient = x, value, gradient
    stack.lowest = torch.minimum(stack.lowest, value)
    return stuck


def _shrink(value: Tensor, trial: Tensor, length: Tensor, slope: Tensor) -> Tensor:
    """The factor that leads to the minimum of the parabola through both values, kept within [0.1, 0.5]."""
    factor = -slope * length / (2 * (trial - value - slope * length))
    return torch.nan_to_num(factor, nan=0.1).clamp(0.1, 0.5)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("kn,kn->k", a, b)
