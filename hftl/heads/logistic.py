"""Logistic heads: softmax over classes, or a sigmoid for each label.

A path of strengths is solved on folds (``path.py``), one strength is chosen, and it is solved once more on
all training rows from the mean of the folds' heads, to a far tighter tolerance. A validation split is one
more fold: held out from the path and from the last solution alike.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hftl.errors import ConvergenceError, DataError
from hftl.heads.abstention import abstention_report
from hftl.heads.basis import Basis, default_strengths, fit_basis
from hftl.heads.calibration import calibration_report, fit_temperature
from hftl.heads.fit import HeadFit, HeldOutLogits, LinearOptions
from hftl.heads.folds import folds_for, task_folds
from hftl.heads.judging import Judge, MetricSays, chosen_of, entry_of, judged
from hftl.heads.objective import EVERY_ROW, NO_FOLD, FoldRows, Objective, Stacked
from hftl.heads.path import PATH_TOLERANCE, Candidate, HeldOut, held_out_logits, solve, walk
from hftl.heads.thresholds import threshold_report
from hftl.tasks import Link

# The bias of a class that has no training row: its probability is zero, and the number fits into float16.
_NEVER = -1e4


@dataclass(frozen=True)
class _Learnable:
    """The classes or labels that the training rows say something about.

    Attributes:
        index: (outputs,) int64, which of the ``num_labels`` they are.
        bias: (num_labels,) float64, the constant logits of the others.
    """

    index: Tensor
    bias: Tensor


def fit_logistic(
    features: Tensor, labels: Tensor, weights: Tensor, options: LinearOptions, validation: tuple[Tensor, Tensor] | None
) -> HeadFit:
    """Solve, choose, refit and calibrate a logistic head.

    Args:
        features: (n, dim), on the device where to compute, as all the rest.
        labels: (n,) classes or (n, num_labels) zeros and ones.
        weights: (n, 1) or (n, num_labels) float64, no row of zeros.
        options: what to solve, and how to choose.
        validation: features and labels to choose on, in place of folds.

    Raises:
        DataError: the labels say nothing that could be learnt, or the validation split has a class without training
            rows.
        ConvergenceError: the objective is not finite.
    """
    problem = _pose(features, labels, weights, options, validation)
    chosen, report = _choose_strength(problem, options)
    report = {"kind": "linear", "rule": options.rule, **report}
    if validation is not None and chosen is not None:
        report["chosen_on"] = "validation split"
    start = problem.start if chosen is None else chosen.heads.double().mean(0).view(problem.start.shape)
    strength, temperature = report["chosen"], chosen.temperature if chosen else 1.0
    everything = torch.tensor([0 if validation is not None else EVERY_ROW], device=labels.device)
    objective = Objective(problem.rows, problem.link, problem.outputs, strength, everything)
    solution = solve(objective, start.flatten()[None], options.tolerance)
    if not bool(torch.isfinite(solution.value).all()):
        raise ConvergenceError("the head's objective is not finite: the features' scale is too extreme for float32")
    # The path's heads, solved loosely on parts of the rows, chose the strength; this one is exported.
    theta = solution.x[0].view(start.shape).clone()
    if problem.link == "softmax":
        theta[-1] -= theta[-1].mean()  # softmax does not see a common shift
    weight, bias = problem.basis.unfold(theta / temperature)
    learnable = problem.learnable
    report |= {
        "objective": float(solution.value),
        "iterations": int(solution.iterations),
        "gradient_norm": float(solution.gradient.abs().max()),
        "converged": bool(solution.converged),
        "labels_not_learnt": sorted(set(range(options.num_labels)) - set(learnable.index.tolist())),
    }
    if problem.link == "softmax" and validation is None:
        plain = slice(options.rows)
        alone = problem.labels[plain][problem.folds[plain] == NO_FOLD]
        report["classes_of_one_row"] = learnable.index[alone].sort().values.tolist()
    held_out = None
    if chosen is not None:
        judged = _held_out(problem, chosen)
        report |= _held_out_report(problem, chosen, judged.logits, options)
        held_out = judged if validation is None else None
    elif options.aim.metric == "coverage":
        raise DataError(
            "coverage: no class has two rows, so no row can be held out to choose a threshold on: leave it out"
        )
    full_weight = torch.zeros(options.num_labels, weight.shape[1], dtype=torch.float64, device=labels.device)
    full_weight[learnable.index] = weight
    full_bias = learnable.bias.clone()
    full_bias[learnable.index] = bias
    return HeadFit(full_weight.float(), full_bias.float(), report, held_out)


def held_out_logistic(
    features: Tensor, labels: Tensor, weights: Tensor, options: LinearOptions, parts: int
) -> HeldOutLogits:
    """Logits of training rows by heads that have not seen them, at the strength that the folds choose.

    Args:
        features: (n, dim), on the device where to compute, as all the rest.
        labels: (n,) classes or (n, num_labels) zeros and ones.
        weights: (n, 1) or (n, num_labels) float64, no row of zeros.
        options: what to solve, and how to choose.
        parts: of each fold; a head that judges one of them has seen the others.

    Raises:
        DataError: the labels say nothing that could be learnt, or no class has two rows.
    """
    problem = _pose(features, labels, weights, options, None)
    chosen, _ = _choose_strength(problem, options)
    if chosen is None:
        raise DataError("labels: no class has two rows, so no row can be held out")
    if parts == 1:
        return _held_out(problem, chosen)
    learnable, index = problem.learnable, problem.held_out.index
    labels, weights = _restrict(labels, weights, learnable, problem.link)
    link, basis, folds = problem.link, problem.basis, problem.folds
    del problem  # its rows, transformed, are as large as the features, and are now dealt anew
    learnt = _judged_in_parts((features, labels, weights), (link, basis, folds), chosen, options, parts)
    return HeldOutLogits(index, _with_constants(learnt, learnable), chosen.strength)


def _judged_in_parts(
    training: tuple[Tensor, Tensor, Tensor],
    problem: tuple[Link, Basis, Tensor],
    chosen: Candidate,
    options: LinearOptions,
    parts: int,
) -> Tensor:
    """Logits (m, outputs) of rows in a fold, each by a head that has seen all but its part of the fold."""
    (features, labels, weights), (link, basis, folds) = training, problem
    outputs = chosen.heads.shape[1] // (basis.rank + 1)
    fine = task_folds(labels, options.task, parts * options.folds, options.seed, options.groups)
    fine[folds == NO_FOLD] = NO_FOLD
    rows = FoldRows(features, labels, weights, fine, basis, columns=outputs * options.folds)
    index = torch.nonzero(fine != NO_FOLD).flatten()
    held_out = HeldOut(index, labels[index], weights[index], fine[index])
    logits = torch.zeros(len(index), outputs, device=labels.device)
    place = {fold: head for head, fold in enumerate(torch.unique(folds[index]).tolist())}
    # As many heads at once as before, which bounds the solver's memory.
    for some in torch.split(torch.unique(held_out.folds), options.folds):
        # From a head that has not seen these rows either: none must reach the solution by where it began.
        start = chosen.heads[[place[fold % options.folds] for fold in some.tolist()]].double()
        objective = Objective(rows, link, outputs, chosen.strength, some)
        logits += held_out_logits(objective, solve(objective, start, PATH_TOLERANCE).x, held_out)
    return logits / fit_temperature(logits, held_out.targets, held_out.weights, link)


@dataclass(frozen=True)
class _Problem:
    """What is to be solved, in the solver's coordinates and in terms of the labels that can be learnt.

    Attributes:
        link: the loss.
        learnable: which labels the outputs are.
        basis: the coordinates.
        rows: all rows, in blocks; those of a validation split are fold 0.
        labels: (n,) or (n, outputs), of all rows.
        every: (n,) or (n, num_labels), their labels as they were given.
        folds: (n,) int64, the fold of each row or ``NO_FOLD``.
        held_out: the rows that are in a fold.
        start: (rank + 1, outputs) float64, where to start: the best constant.
    """

    link: Link
    learnable: _Learnable
    basis: Basis
    rows: FoldRows
    labels: Tensor
    every: Tensor
    folds: Tensor
    held_out: HeldOut
    start: Tensor

    @property
    def outputs(self) -> int:
        return len(self.learnable.index)


def _pose(
    features: Tensor, labels: Tensor, weights: Tensor, options: LinearOptions, validation: tuple[Tensor, Tensor] | None
) -> _Problem:
    link = options.task.link
    # Further views say nothing new of a label.
    learnable = _learnable(labels[: options.rows], options)
    outputs = len(learnable.index)
    every = labels if validation is None else torch.cat([labels, validation[1]])
    labels, weights = _restrict(labels, weights, learnable, link)
    if validation is None:
        folds = folds_for(labels, options)
    else:
        folds = torch.full((len(labels),), NO_FOLD, device=labels.device)
    # From training rows alone: a validation split must not have a say in what it judges.
    basis = fit_basis(
        features, weights.mean(1), standardize=options.standardize, bias=options.bias, least=options.least
    )
    start = torch.zeros(basis.rank + 1, outputs, dtype=torch.float64, device=labels.device)
    if options.bias:
        start[-1] = _best_constant(labels, weights, link, outputs)
    seen: Tensor | Stacked = features
    if validation is not None:
        seen = Stacked(features, validation[0])
        labels, weights, folds = _with_validation((labels, weights, folds), validation[1], learnable, link)
    columns = outputs * max(1, int(folds.max()) + 1)
    rows = FoldRows(seen, labels, weights, folds, basis, columns=columns)
    judging = folds != NO_FOLD
    if validation is None:
        judging[options.rows or len(judging) :] = False
    index = torch.nonzero(judging).flatten()
    held_out = HeldOut(index, labels[index], weights[index], folds[index])
    return _Problem(link, learnable, basis, rows, labels, every, folds, held_out, start)


def _choose_strength(problem: _Problem, options: LinearOptions) -> tuple[Candidate | None, dict[str, Any]]:
    """The chosen strength solved on every fold, and what the report tells of the choice; None where there is none."""
    strengths = options.strengths or default_strengths(problem.basis)
    if not len(problem.held_out.index):
        middle = strengths[len(strengths) // 2]
        return None, {"path": [], "chosen_on": "nothing: no two rows of one class", "chosen": middle}
    # Thresholds and temperature need held-out logits even where there is nothing to choose between.
    needless = problem.link == "softmax" and options.aim.metric != "coverage"
    if len(strengths) == 1 and not options.calibrate and needless:
        return None, {"path": [], "chosen_on": "nothing: one strength", "chosen": strengths[0]}
    judge = None if options.judge is None else partial(_judged_at_thresholds, problem, options, options.judge)
    path = walk(
        problem.rows, problem.held_out, problem.link, problem.start, strengths, calibrate=options.calibrate, judge=judge
    )
    found = [candidate.judged for candidate in path if candidate.judged]
    place, by = chosen_of([c.score for c in path], [c.error for c in path], options.rule, options.judge, found)
    chosen = path[place]
    folds = int(problem.folds.max()) + 1
    entries = [candidate.entry | entry_of(candidate.judged) for candidate in path]
    return chosen, {"path": entries, "chosen_on": f"{folds} folds", "chosen": chosen.strength, **by}


def _judged_at_thresholds(problem: _Problem, options: LinearOptions, judge: Judge, logits: Tensor) -> MetricSays:
    """What the metric that chooses says of held-out logits (m, outputs), at the thresholds that they would give."""
    full = _with_constants(logits, problem.learnable)
    thresholds = None
    if problem.link == "sigmoid":
        index, targets = problem.learnable.index, problem.held_out.targets
        report = threshold_report(logits, targets, options.aim, index=index, num_labels=options.num_labels)
        thresholds = report["thresholds"]
    truth = problem.every[problem.held_out.index]
    return judged(judge, full, truth, thresholds, rule=options.rule)


def _learnable(labels: Tensor, options: LinearOptions) -> _Learnable:
    """What can be learnt. Without a free bias to run off to infinity, every class has a finite optimum."""
    num_labels, bias = options.num_labels, options.bias
    if options.task.link == "softmax":
        index = torch.unique(labels)
        if len(index) < 2:
            raise DataError("labels: all training rows are of one class; a head needs at least two")
        if not bias:
            index = torch.arange(num_labels, device=labels.device)
        return _Learnable(index, torch.full((num_labels,), _NEVER, dtype=torch.float64, device=labels.device))
    positive = (labels > 0).double().sum(0)
    varies = (positive > 0) & (positive < len(labels))
    if not bool(varies.any()):
        raise DataError("labels: every label is the same in all training rows; there is nothing to learn")
    index = torch.nonzero(varies if bias else torch.ones_like(varies)).flatten()
    return _Learnable(index, ((positive + 0.5) / (len(labels) + 1)).logit())


def _restrict(labels: Tensor, weights: Tensor, learnable: _Learnable, loss: Link) -> tuple[Tensor, Tensor]:
    """Labels and weights in terms of what can be learnt."""
    if loss == "softmax":
        return torch.searchsorted(learnable.index, labels), weights
    return labels[:, learnable.index], weights if weights.shape[1] == 1 else weights[:, learnable.index]


def _with_validation(
    training: tuple[Tensor, Tensor, Tensor], new_labels: Tensor, learnable: _Learnable, loss: Link
) -> tuple[Tensor, Tensor, Tensor]:
    """Append the validation rows, of weight one, as fold 0 to the training rows, which are in no fold."""
    labels, weights, folds = training
    if loss == "softmax":
        unseen = ~torch.isin(new_labels, learnable.index)
        if bool(unseen.any()):
            label = int(new_labels[unseen][0])
            raise DataError(f"validation labels: class {label} has no training row; leave its rows out")
    ones = torch.ones(len(new_labels), weights.shape[1], dtype=torch.float64, device=weights.device)
    new_labels, ones = _restrict(new_labels, ones, learnable, loss)
    return (
        torch.cat([labels, new_labels]),
        torch.cat([weights, ones]),
        torch.cat([folds, torch.zeros(len(new_labels), dtype=torch.int64, device=folds.device)]),
    )


def _best_constant(labels: Tensor, weights: Tensor, loss: Link, outputs: int) -> Tensor:
    """The bias (outputs,) float64 that is optimal where all weights are zero."""
    if loss == "softmax":
        truth = torch.nn.functional.one_hot(labels, outputs).double()
        return (weights.T @ truth / weights.sum())[0].log()
    return ((weights * labels).sum(0) / weights.expand(-1, outputs).sum(0)).logit()


def _held_out(problem: _Problem, chosen: Candidate) -> HeldOutLogits:
    """Logits of the rows in folds, after the temperature; what has no training row stands at its constant."""
    folds = torch.unique(problem.held_out.folds)
    objective = Objective(problem.rows, problem.link, problem.outputs, chosen.strength, folds)
    learnt = held_out_logits(objective, chosen.heads, problem.held_out) / chosen.temperature
    return HeldOutLogits(problem.held_out.index, _with_constants(learnt, problem.learnable), chosen.strength)


def _with_constants(learnt: Tensor, learnable: _Learnable) -> Tensor:
    """Logits (m, num_labels) of what can be learnt, and the constants of what cannot."""
    logits = learnable.bias.float().repeat(len(learnt), 1)
    logits[:, learnable.index] = learnt
    return logits


def _held_out_report(problem: _Problem, chosen: Candidate, judged: Tensor, options: LinearOptions) -> dict[str, Any]:
    """What rows that were not seen say of the chosen strength: calibration and, where they are due, thresholds."""
    logits, targets = judged[:, problem.learnable.index], problem.held_out.targets
    report: dict[str, Any] = {}
    if options.calibrate:
        measured = calibration_report(logits * chosen.temperature, targets, chosen.temperature, problem.link)
        report["calibration"] = {**measured, "folded": True}
    if problem.link == "sigmoid":
        report |= threshold_report(
            logits, targets, options.aim, index=problem.learnable.index, num_labels=options.num_labels
        )
    elif options.aim.metric == "coverage":
        report |= abstention_report(logits, targets, options.aim.least)
    return report
