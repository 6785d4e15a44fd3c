"""The path of L2 strengths: heads of all folds at each strength, judged on rows that they have not seen."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hftl.heads.calibration import fit_temperature
from hftl.heads.judging import MetricSays
from hftl.heads.lbfgs import MEMORY, Solution, minimize
from hftl.heads.objective import FoldRows, Objective
from hftl.heads.selection import standard_error
from hftl.heads.thresholds import f1_scores
from hftl.onednn import matmul
from hftl.progress import counted
from hftl.tasks import Link
from hftl.wording import plural

# Relative suboptimality at which a head of the path stops: small beside the standard error of its validation loss.
PATH_TOLERANCE = 1e-3
# The Hessian's diagonal is recomputed at every so many strengths, and corrected for the penalty between.
_CURVATURE_EVERY = 4
_HISTORY_BYTES = 2 << 30
# Hessian diagonals are floored at this share of their largest entry: where probabilities have saturated, a
# coordinate's curvature is no guide to the length of a step.
_CURVATURE_FLOOR = 1e-6


@dataclass(frozen=True)
class HeldOut:
    """The m rows that judge: index (m,), targets (m,) or (m, outputs), weights (m, 1 or outputs), folds (m,)."""

    index: Tensor
    targets: Tensor
    weights: Tensor
    folds: Tensor


@dataclass(frozen=True)
class Candidate:
    """One strength, solved on every fold.

    Attributes:
        strength: L2 strength.
        heads: (folds, size) float32, the solutions.
        score: mean loss on held-out rows, after the temperature.
        error: its standard error.
        temperature: fitted on held-out rows, or 1.
        entry: what the report tells of this strength.
        judged: what the metric that chooses says of it; None where the loss chooses.
    """

    strength: float
    heads: Tensor
    score: float
    error: float
    temperature: float
    entry: dict[str, Any]
    judged: MetricSays | None = None


def walk(
    rows: FoldRows,
    held_out: HeldOut,
    loss: Link,
    start: Tensor,
    strengths: list[float],
    *,
    calibrate: bool,
    judge: Callable[[Tensor], MetricSays] | None = None,
) -> list[Candidate]:
    """Solve every strength on every fold, each from the solution of the stronger one before it.

    Not only the solution is handed on: the strengths' objectives differ by a multiple of ``|W|^2`` alone, so the
    value, the gradient and the curvature pairs of L-BFGS are corrected exactly and stay of use. The walk ends early
    once weaker penalties have clearly made it worse.

    Args:
        rows: rows in folds.
        held_out: those that are in a fold.
        loss: the kind of head.
        start: (rank + 1, outputs) float64, where the strongest starts.
        strengths: from strong to weak.
        calibrate: judge each strength after its best temperature. What matters is how good the exported,
            calibrated probabilities are (Berta et al., *Rethinking early stopping: refine, then calibrate*,
            2025).
        judge: what the metric that chooses says of held-out logits (m, outputs); None where the loss chooses.
    """
    folds = torch.unique(held_out.folds)
    outputs = start.shape[1]
    theta = start.flatten().repeat(len(folds), 1)
    candidates: list[Candidate] = []
    objective: Objective | None = None
    solution: Solution | None = None
    curvature: Tensor | None = None
    for index, strength in enumerate(counted(f"path on {plural(len(folds), 'fold')}", strengths, unit="strengths")):
        before, objective = objective, Objective(rows, loss, outputs, strength, folds)
        # The Hessian's diagonal costs as much as a step, and only sets the scale of the first one.
        if before is not None and solution is not None and curvature is not None:
            solution = objective.reuse(solution, before)
            curvature = curvature + objective.added_penalty(before)
        if curvature is None or index % _CURVATURE_EVERY == 0:
            curvature = objective.curvature(theta)
        solution = solve(objective, theta, PATH_TOLERANCE, curvature, solution)
        theta = solution.x
        logits = held_out_logits(objective, theta, held_out)
        candidate = _candidate(strength, solution, logits, held_out, loss, calibrate)
        if judge is not None:
            candidate = replace(candidate, judged=judge(logits / candidate.temperature))
        candidates.append(candidate)
        # A metric may still rise where the loss no longer falls, so it sees the whole path.
        if judge is None and _past_the_best(candidates):
            break
    return candidates


def _past_the_best(candidates: list[Candidate]) -> bool:
    """Whether weaker penalties have made it worse three times in a row, and by more than a standard error."""
    scores = [candidate.score for candidate in candidates[-4:]]
    best = min(candidates, key=lambda candidate: candidate.score)
    rising = len(scores) == 4 and scores == sorted(scores)
    return rising and scores[-1] > best.score + best.error


def solve(
    objective: Objective,
    start: Tensor,
    tolerance: float,
    curvature: Tensor | None = None,
    known: Solution | None = None,
) -> Solution:
    """Minimise ``objective`` from ``start`` (k, size), in groups where the history would be large.

    Args:
        objective: the problems.
        start: (k, size) float64.
        tolerance: relative suboptimality.
        curvature: (k, size), the diagonal of the Hessian near ``start``; computed where None.
        known: value, gradient and curvature pairs at ``start``, used where there is one group.
    """
    curvature = objective.curvature(start) if curvature is None else curvature
    inverse = 1 / torch.maximum(curvature, _CURVATURE_FLOOR * curvature.amax(1, keepdim=True))
    # Each problem keeps its last steps and gradients; with thousands of classes all folds at once would not fit.
    together = max(1, _HISTORY_BYTES // (2 * MEMORY * start[0].nbytes))
    parts = [
        minimize(
            partial(_evaluate, objective, problems),
            start[problems],
            inverse[problems],
            tolerance=tolerance,
            rounding=objective.rounding,
            known=known if together >= len(start) else None,
        )
        for problems in torch.split(torch.arange(len(start), device=start.device), together)
    ]
    return parts[0] if len(parts) == 1 else _concatenate(parts)


def _concatenate(parts: list[Solution]) -> Solution:
    """The solutions of groups as one; their curvature pairs, too large to keep together, are dropped."""
    return Solution(
        x=torch.cat([part.x for part in parts]),
        value=torch.cat([part.value for part in parts]),
        gradient=torch.cat([part.gradient for part in parts]),
        iterations=torch.cat([part.iterations for part in parts]),
        converged=torch.cat([part.converged for part in parts]),
        steps=parts[0].steps[:0],
        changes=parts[0].changes[:0],
    )


def _evaluate(objective: Objective, group: Tensor, theta: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    return objective.evaluate(theta, group[members])


def held_out_logits(objective: Objective, theta: Tensor, held_out: HeldOut) -> Tensor:
    """Logits (m, outputs) of the held-out rows, each by the head that has not seen it; zeros where there is none."""
    columns = objective.columns(theta.view(len(theta), -1, objective.outputs))
    problem_of = {fold: problem for problem, fold in enumerate(objective.held_out.tolist())}
    logits = torch.zeros(objective.rows.count, objective.outputs, device=theta.device)
    for block in objective.rows:
        if block.fold in problem_of:
            logits[block.rows] = matmul(block.features, columns[:, problem_of[block.fold]].contiguous())
    return logits[held_out.index]


def _candidate(
    strength: float, solution: Solution, logits: Tensor, held_out: HeldOut, loss: Link, calibrate: bool
) -> Candidate:
    temperature = 1.0
    if calibrate:
        # One temperature for all folds, as the exported head will have one.
        temperature = fit_temperature(logits, held_out.targets, held_out.weights, loss)
    losses = _weighted_losses(logits / temperature, held_out.targets, held_out.weights, loss)
    weights = held_out.weights.mean(1)
    score = float(losses.sum() / weights.sum())
    error = standard_error(losses, weights, held_out.folds)
    entry = {
        "strength": strength,
        "validation": score,
        "se": error,
        "temperature": temperature,
        "iterations": solution.iterations.tolist(),
        "converged": bool(solution.converged.all()),
    }
    if loss == "softmax":
        entry["accuracy"] = float((logits.argmax(1) == held_out.targets).double().mean())
    else:
        entry["f1_macro"] = float(f1_scores(logits > 0, held_out.targets).mean())
    return Candidate(strength, solution.x.float(), score, error, temperature, entry)


def _weighted_losses(logits: Tensor, targets: Tensor, weights: Tensor, loss: Link) -> Tensor:
    """The weighted loss of each row (m,) float64, summed over labels."""
    if loss == "softmax":
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")[:, None]
    else:
        losses = torch.nn.functional.softplus(logits) - targets * logits
    return (losses * weights).sum(1)
