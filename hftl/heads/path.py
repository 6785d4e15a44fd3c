"""The path of L2 strengths: heads of all folds at each strength, judged on rows that they have not seen."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hftl.heads.calibration import BLOCK_ROWS, fit_temperature
from hftl.heads.fit import LinearOptions
from hftl.heads.judging import MetricSays, chosen_of, entry_of
from hftl.heads.lbfgs import MEMORY, Solution, minimize
from hftl.heads.objective import FoldRows, Objective
from hftl.heads.panel import HeldOut, Panel
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
class Candidate:
    """One strength, solved on every fold.

    Attributes:
        strength: L2 strength.
        heads: (folds, size) float32, the solutions of the heads that judge, in the panel's order.
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
    judged: MetricSays | None


@dataclass(frozen=True)
class HeadStack:
    """Linear heads that are solved side by side.

    Attributes:
        link: their loss.
        outputs: columns of the logits.
        hidden: (k, h) int64, the folds that each head does not train on.
        start: (k, size) float64, where they start.
        tilt: as of `Objective`.
    """

    link: Link
    outputs: int
    hidden: Tensor
    start: Tensor
    tilt: Tensor | None = None

    def at(self, rows: FoldRows, strength: float | Tensor) -> Objective:
        """What they minimise at a strength, or at one (k,) for each."""
        return Objective(rows, self.link, self.outputs, strength, self.hidden, self.tilt)


def walk(
    rows: FoldRows,
    panels: Sequence[Panel],
    stack: HeadStack,
    strengths: list[float],
) -> list[list[Candidate]]:
    """Solve every strength for every head of a stack, each from the solution of the stronger one before it.

    Not only the solution is handed on: the strengths' objectives differ by a multiple of ``|W|^2`` alone, so the
    value, the gradient and the curvature pairs of L-BFGS are corrected exactly and stay of use. The walk ends early
    once weaker penalties have clearly made it worse for every panel.

    Where a panel's options calibrate, each strength is judged after its best temperature: what matters is how good the
    exported, calibrated probabilities are (Berta et al., *Rethinking early stopping: refine, then calibrate*, 2025).

    Args:
        rows: rows in folds.
        panels: of rows that judge together.
        stack: the heads, and where the strongest strength starts.
        strengths: from strong to weak.

    Returns:
        For each panel the strengths that were walked.
    """
    theta = stack.start
    found: list[list[Candidate]] = [[] for _ in panels]
    objective: Objective | None = None
    solution: Solution | None = None
    curvature: Tensor | None = None
    for index, strength in enumerate(counted(f"path of {plural(len(theta), 'head')}", strengths, unit="strengths")):
        before, objective = objective, stack.at(rows, strength)
        # The Hessian's diagonal costs as much as a step, and only sets the scale of the first one.
        if before is not None and solution is not None and curvature is not None:
            solution = objective.reuse(solution, before)
            curvature = curvature + objective.added_penalty(before)
        if curvature is None or index % _CURVATURE_EVERY == 0:
            curvature = objective.curvature(theta)
        solution = solve(objective, theta, PATH_TOLERANCE, curvature, solution)
        theta = solution.x
        for panel, candidates, logits in zip(panels, found, held_out_logits(objective, theta, panels), strict=True):
            start = candidates[-1].temperature if candidates else 1.0
            near = start if panel.options.calibrate else None
            candidates.append(_candidate(strength, solution, logits, panel, near))
        # A metric may still rise where the loss no longer falls, so it sees the whole path.
        if all(panel.options.judge is None and _past_the_best(each) for panel, each in zip(panels, found, strict=True)):
            break
    return found


def chosen_from(path: list[Candidate], options: LinearOptions) -> tuple[Candidate, dict[str, Any]]:
    """The chosen strength of a path, and what the report tells of the choice."""
    found = [candidate.judged for candidate in path if candidate.judged]
    place, by = chosen_of([c.score for c in path], [c.error for c in path], options.rule, options.judge, found)
    entries = [candidate.entry | entry_of(candidate.judged) for candidate in path]
    return path[place], {"path": entries, "chosen": path[place].strength, **by}


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
    together = heads_together(start.shape[1])
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


def heads_together(size: int) -> int:
    """How many heads of so many parameters are solved side by side at most."""
    return max(1, _HISTORY_BYTES // max(2 * MEMORY * 8 * size, 1))


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


def held_out_logits(objective: Objective, theta: Tensor, panels: Sequence[Panel]) -> list[Tensor]:
    """For each panel, logits (m, outputs) of its rows, each by the head that judges it."""
    shape = (objective.rows.count, objective.outputs)
    logits = [torch.zeros(shape, device=theta.device) for _ in panels]
    columns = objective.columns(theta)
    for block in objective.rows:
        asked = [
            (each, panel.heads[block.fold])
            for each, panel in zip(logits, panels, strict=True)
            if block.fold in panel.heads
        ]
        if asked:
            flat = columns[:, [head for _, head in asked]].flatten(1)
            products = torch.split(matmul(block.features, flat), objective.outputs, dim=1)
            for (each, _), product in zip(asked, products, strict=True):
                each[block.rows] = product
    picked = [
        # Without a copy where all rows are held out by one head or another.
        each if len(panel.held_out.index) == len(each) else each[panel.held_out.index]
        for each, panel in zip(logits, panels, strict=True)
    ]
    return [
        each if panel.outputs is None else each[:, panel.outputs] for each, panel in zip(picked, panels, strict=True)
    ]


def judged_logits(candidate: Candidate, panel: Panel, stack: HeadStack, rows: FoldRows) -> Tensor:
    """What the heads of a candidate say of the rows that they judged, after the temperature: (m, outputs)."""
    places = list(panel.heads.values())
    tilt = None if stack.tilt is None else stack.tilt[places]
    objective = Objective(rows, stack.link, stack.outputs, candidate.strength, stack.hidden[places], tilt)
    own = replace(panel, heads={fold: place for place, fold in enumerate(panel.heads)})
    return held_out_logits(objective, candidate.heads, [own])[0].div_(candidate.temperature)


def _candidate(
    strength: float, solution: Solution, logits: Tensor, panel: Panel, temperature: float | None
) -> Candidate:
    """A strength as a panel judges it; ``temperature`` is where the search for the best one starts, None for none."""
    held_out, loss = panel.held_out, panel.link
    if temperature is None:
        temperature = 1.0
    else:
        # One temperature for all folds, as the exported head will have one.
        temperature = fit_temperature(logits, held_out.targets, held_out.weights, loss, start=temperature)
    losses = _weighted_losses(logits, temperature, held_out, loss)
    weights = held_out.weights.mean(1)
    score = float(losses.sum() / weights.sum())
    error = standard_error(losses, weights, held_out.folds)
    heads = list(panel.heads.values())
    entry = {
        "strength": strength,
        "validation": score,
        "se": error,
        "temperature": temperature,
        "iterations": solution.iterations[heads].tolist(),
        "converged": bool(solution.converged[heads].all()),
    }
    if loss == "softmax":
        entry["accuracy"] = float((logits.argmax(1) == held_out.targets).double().mean())
    else:
        entry["f1_macro"] = float(f1_scores(logits > 0, held_out.targets).mean())
    says = None if panel.options.judge is None else panel.says(logits / temperature)
    return Candidate(strength, solution.x[heads].float(), score, error, temperature, entry, says)


def _weighted_losses(logits: Tensor, temperature: float, rows: HeldOut, loss: Link) -> Tensor:
    """The weighted loss of each row (m,) float64 by logits over a temperature, summed over labels."""
    blocks = zip(*(torch.split(each, BLOCK_ROWS) for each in (logits, rows.targets, rows.weights)), strict=True)
    return torch.cat([_losses_of(x / temperature, y, w, loss) for x, y, w in blocks])


def _losses_of(logits: Tensor, targets: Tensor, weights: Tensor, loss: Link) -> Tensor:
    if loss == "softmax":
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")[:, None]
    else:
        losses = torch.nn.functional.softplus(logits) - targets * logits
    return (losses * weights).sum(1)
