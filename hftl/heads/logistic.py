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
from hftl.heads.basis import default_strengths, fit_basis
from hftl.heads.calibration import calibration_report
from hftl.heads.fit import HeadFit
from hftl.heads.folds import rarest_label_folds, stratified_folds
from hftl.heads.objective import EVERY_ROW, NO_FOLD, FoldRows, Objective
from hftl.heads.path import Candidate, HeldOut, held_out_logits, solve, walk
from hftl.heads.selection import Rule, best_thresholds, choose, f1_scores
from hftl.tasks import Link

# The bias of a class that has no training row: its probability is zero, and the number fits into float16.
_NEVER = -1e4


@dataclass(frozen=True)
class LogisticOptions:
    """How ``fit_linear`` was asked to choose; the fields are its arguments."""

    strengths: list[float] | None
    folds: int
    rule: Rule
    standardize: bool
    bias: bool
    calibrate: bool
    tolerance: float
    seed: int
    max_bytes: int


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
    features: Tensor,
    labels: Tensor,
    weights: Tensor,
    loss: Link,
    num_labels: int,
    options: LogisticOptions,
    validation: tuple[Tensor, Tensor] | None,
) -> HeadFit:
    """Solve, choose, refit and calibrate a logistic head.

    Args:
        features: (n, dim), on any device; the rest is on the device where the solver runs.
        labels: (n,) classes or (n, num_labels) zeros and ones.
        weights: (n, 1) or (n, num_labels) float64, no row of zeros.
        loss: ``softmax`` or ``sigmoid``.
        num_labels: rows of the returned weight.
        options: how to choose.
        validation: features and labels to choose on, in place of folds.
    """
    learnable = _learnable(labels, loss, num_labels, options.bias)
    outputs, device = len(learnable.index), labels.device
    labels, weights = _restrict(labels, weights, learnable, loss)
    folds = _deal(labels, loss, options) if validation is None else torch.full((len(labels),), NO_FOLD)
    folds = folds.to(device)
    basis = fit_basis(features, weights.mean(1), standardize=options.standardize, device=device, bias=options.bias)
    strengths = options.strengths or default_strengths(basis)
    start = torch.zeros(basis.rank + 1, outputs, dtype=torch.float64, device=device)
    if options.bias:
        start[-1] = _best_constant(labels, weights, loss, outputs)
    everything = EVERY_ROW
    if validation is not None:
        everything = 0
        features, labels, weights, folds = _join((features, labels, weights, folds), validation, learnable, loss)
    rows = FoldRows(
        features,
        labels,
        weights,
        folds,
        basis,
        columns=outputs * max(1, int(folds.max()) + 1),
        device=device,
        max_bytes=options.max_bytes,
    )
    index = torch.nonzero(folds != NO_FOLD).flatten()
    held_out = HeldOut(index, labels[index], weights[index], folds[index])

    chosen: Candidate | None = None
    report: dict[str, Any] = {"kind": "linear", "rule": options.rule, "path": []}
    if len(index) and (options.calibrate or loss == "sigmoid" or len(strengths) > 1):
        path = walk(rows, held_out, loss, start, strengths, options.calibrate)
        chosen = path[choose([c.score for c in path], [c.error for c in path], options.rule)]
        report["path"] = [candidate.entry for candidate in path]
        report["chosen_on"] = "validation split" if validation else f"{int(folds.max()) + 1} folds"
        start = chosen.heads.double().mean(0).view(start.shape)
    else:
        report["chosen_on"] = "nothing: one strength" if len(index) else "nothing: no two rows of one class"
    strength = chosen.strength if chosen else strengths[len(strengths) // 2]
    report["chosen"] = strength

    problem = torch.tensor([everything], device=device)
    solution = solve(Objective(rows, loss, outputs, strength, problem), start.flatten()[None], options.tolerance)
    if not bool(torch.isfinite(solution.value).all()):
        raise ConvergenceError("the head's objective is not finite: the features' scale is too extreme for float32")
    theta = solution.x[0].view(start.shape).clone()
    if loss == "softmax":
        theta[-1] -= theta[-1].mean()  # softmax does not see a common shift
    weight, bias = basis.unfold(theta / (chosen.temperature if chosen else 1.0))
    report |= {
        "objective": float(solution.value),
        "iterations": int(solution.iterations),
        "gradient_norm": float(solution.gradient.abs().max()),
        "converged": bool(solution.converged),
        "labels_not_learnt": sorted(set(range(num_labels)) - set(learnable.index.tolist())),
    }
    if loss == "softmax" and validation is None:
        report["classes_of_one_row"] = learnable.index[labels[folds == NO_FOLD]].sort().values.tolist()
    if chosen is not None:
        folded = Objective(rows, loss, outputs, strength, torch.unique(held_out.folds))
        logits = held_out_logits(folded, chosen.heads, held_out)
        report |= _held_out_report(logits, held_out.targets, chosen.temperature, loss, learnable, options)
    full_weight = torch.zeros(num_labels, weight.shape[1], dtype=torch.float64, device=device)
    full_weight[learnable.index] = weight
    full_bias = learnable.bias.clone()
    full_bias[learnable.index] = bias
    return HeadFit(full_weight.float(), full_bias.float(), report)


def _learnable(labels: Tensor, loss: Link, num_labels: int, bias: bool) -> _Learnable:
    """What can be learnt. Without a free bias to run off to infinity, every class has a finite optimum."""
    if loss == "softmax":
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


def _deal(labels: Tensor, loss: Link, options: LogisticOptions) -> Tensor:
    """The fold of each row; all ``NO_FOLD`` where nothing can be held out."""
    deal = stratified_folds if loss == "softmax" else rarest_label_folds
    return deal(labels, options.folds, options.seed)


def _join(
    training: tuple[Tensor, Tensor, Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    learnable: _Learnable,
    loss: Link,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Append the validation rows, of weight one, as fold 0 to the training rows, which are in no fold."""
    features, labels, weights, folds = training
    new_features, new_labels = validation
    if loss == "softmax":
        unseen = ~torch.isin(new_labels, learnable.index)
        if bool(unseen.any()):
            label = int(new_labels[unseen][0])
            raise DataError(f"validation labels: class {label} has no training row; leave its rows out")
    ones = torch.ones(len(new_labels), weights.shape[1], dtype=torch.float64, device=weights.device)
    new_labels, ones = _restrict(new_labels, ones, learnable, loss)
    return (
        torch.cat([features, new_features.to(features.device)]),
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


def _held_out_report(
    logits: Tensor, targets: Tensor, temperature: float, loss: Link, learnable: _Learnable, options: LogisticOptions
) -> dict[str, Any]:
    """What the rows that were not seen say of the chosen strength: calibration and, for labels,
    thresholds."""
    report: dict[str, Any] = {}
    if options.calibrate:
        report["calibration"] = {**calibration_report(logits, targets, temperature, loss), "folded": True}
    if loss == "sigmoid":
        thresholds, f1 = best_thresholds((logits / temperature).sigmoid(), targets)
        tuned = torch.full_like(learnable.bias, 0.5)
        tuned[learnable.index] = thresholds
        report["thresholds"] = tuned.tolist()
        report["f1_macro_at_half"] = float(f1_scores(logits > 0, targets).mean())
        report["f1_macro_at_thresholds"] = float(f1.mean())
    return report
