"""Logistic heads: softmax over classes, or a sigmoid for each label.

A path of strengths is solved on folds (``path.py``), one strength is chosen, and it is solved once more on
all training rows from the mean of the folds' heads, to a far tighter tolerance. A validation split is one
more fold: held out from the path and from the last solution alike.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hftl.errors import ConvergenceError, DataError
from hftl.heads.basis import Basis, default_strengths, fit_basis
from hftl.heads.calibration import fit_temperature
from hftl.heads.fit import HeadFit, HeldOutLogits, LinearOptions
from hftl.heads.folds import folds_for, task_folds
from hftl.heads.learnable import Learnable, best_constant
from hftl.heads.matrix import Matrix
from hftl.heads.objective import EVERY_ROW, NO_FOLD, FoldRows, Objective
from hftl.heads.panel import HeldOut, Panel
from hftl.heads.path import (
    PATH_TOLERANCE,
    Candidate,
    HeadStack,
    chosen_from,
    held_out_logits,
    judged_logits,
    solve,
    walk,
)
from hftl.tasks import Link


def fit_logistic(
    features: Matrix, labels: Tensor, weights: Tensor, options: LinearOptions, validation: tuple[Matrix, Tensor] | None
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
    everything = torch.tensor([[0 if validation is not None else EVERY_ROW]], device=labels.device)
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
        labels, folds = problem.labels[plain], problem.folds[plain]
        stay, held = labels[folds == NO_FOLD], labels[folds != NO_FOLD]
        report["classes_of_one_row"] = learnable.index[torch.unique(stay[~torch.isin(stay, held)])].tolist()
    held_out = None
    if chosen is not None:
        judged = judged_logits(chosen, problem.panel, problem.stack, problem.rows)
        report |= problem.panel.report(judged, chosen.temperature)
        if validation is None:
            held_out = HeldOutLogits(problem.held_out.index, learnable.with_constants(judged), chosen.strength)
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
    features: Matrix, labels: Tensor, weights: Tensor, options: LinearOptions, parts: int
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
        judged = judged_logits(chosen, problem.panel, problem.stack, problem.rows)
        return HeldOutLogits(problem.held_out.index, problem.learnable.with_constants(judged), chosen.strength)
    learnable, index = problem.learnable, problem.held_out.index
    labels, weights = learnable.restrict(labels, weights)
    basis, folds = problem.basis, problem.folds
    del problem  # its rows, transformed, are as large as the features, and are now dealt anew
    learnt = _judged_in_parts((features, labels, weights), (learnable, basis, folds), chosen, options, parts)
    return HeldOutLogits(index, learnable.with_constants(learnt), chosen.strength)


def _judged_in_parts(
    training: tuple[Matrix, Tensor, Tensor],
    problem: tuple[Learnable, Basis, Tensor],
    chosen: Candidate,
    options: LinearOptions,
    parts: int,
) -> Tensor:
    """Logits (m, outputs) of rows in a fold, each by a head that has seen all but its part of the fold."""
    (features, labels, weights), (learnable, basis, folds) = training, problem
    link, outputs = learnable.link, len(learnable.index)
    fine = task_folds(labels, options.task, parts * options.folds, options.seed, options.groups)
    fine[folds == NO_FOLD] = NO_FOLD
    rows = FoldRows(features, labels, weights, fine, basis, columns=outputs * options.folds)
    index = torch.nonzero(fine != NO_FOLD).flatten()
    held_out = HeldOut(index, labels[index], weights[index], fine[index])
    logits = torch.zeros(len(index), outputs, device=labels.device)
    place = _place_of_each(folds[index])
    # As many heads at once as before, which bounds the solver's memory.
    for some in torch.split(torch.unique(held_out.folds), options.folds):
        # From a head that has not seen these rows either: none must reach the solution by where it began.
        start = chosen.heads[[place[fold % options.folds] for fold in some.tolist()]].double()
        objective = Objective(rows, link, outputs, chosen.strength, some[:, None])
        panel = Panel(held_out, _place_of_each(some), learnable, labels[index], options)
        logits += held_out_logits(objective, solve(objective, start, PATH_TOLERANCE).x, [panel])[0]
    return logits / fit_temperature(logits, held_out.targets, held_out.weights, link)


@dataclass(frozen=True)
class _Problem:
    """What is to be solved, in the solver's coordinates and in terms of the labels that can be learnt.

    Attributes:
        learnable: which labels the outputs are.
        basis: the coordinates.
        rows: all rows, in blocks; those of a validation split are fold 0.
        labels: (n,) or (n, outputs), of all rows.
        folds: (n,) int64, the fold of each row or ``NO_FOLD``.
        panel: the rows that are in a fold.
        start: (rank + 1, outputs) float64, where to start: the best constant.
    """

    learnable: Learnable
    basis: Basis
    rows: FoldRows
    labels: Tensor
    folds: Tensor
    panel: Panel
    start: Tensor

    @property
    def link(self) -> Link:
        return self.learnable.link

    @property
    def outputs(self) -> int:
        return len(self.learnable.index)

    @property
    def held_out(self) -> HeldOut:
        return self.panel.held_out

    @property
    def stack(self) -> HeadStack:
        """One head for each fold, which does not train on it."""
        hidden = torch.tensor([[fold] for fold in self.panel.heads], device=self.labels.device)
        return HeadStack(self.link, self.outputs, hidden, self.start.flatten().repeat(len(hidden), 1))


def _pose(
    features: Matrix, labels: Tensor, weights: Tensor, options: LinearOptions, validation: tuple[Matrix, Tensor] | None
) -> _Problem:
    # Further views say nothing new of a label.
    learnable = Learnable.of(labels[: options.rows], options)
    outputs = len(learnable.index)
    every = labels if validation is None else torch.cat([labels, validation[1]])
    labels, weights = learnable.restrict(labels, weights)
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
        start[-1] = best_constant(labels, weights, learnable.link, outputs)
    seen = features
    if validation is not None:
        seen = Matrix.stacked(features, validation[0])
        labels, weights, folds = learnable.with_validation((labels, weights, folds), validation[1], fold=0)
    columns = outputs * max(1, int(folds.max()) + 1)
    rows = FoldRows(seen, labels, weights, folds, basis, columns=columns)
    judging = folds != NO_FOLD
    if validation is None:
        judging[options.rows or len(judging) :] = False
    index = torch.nonzero(judging).flatten()
    held_out = HeldOut(index, labels[index], weights[index], folds[index])
    panel = Panel(held_out, _place_of_each(folds[index]), learnable, every[index], options)
    return _Problem(learnable, basis, rows, labels, folds, panel, start)


def _place_of_each(folds: Tensor) -> dict[int, int]:
    """By the fold, its place among those that there are."""
    return {fold: place for place, fold in enumerate(torch.unique(folds).tolist())}


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
    (path,) = walk(problem.rows, [problem.panel], problem.stack, strengths)
    chosen, told = chosen_from(path, options)
    return chosen, {**told, "chosen_on": f"{int(problem.folds.max()) + 1} folds"}
