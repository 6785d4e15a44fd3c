"""Heads of all folds at once, each with a strength of its own that its fold has no say in (nested cross-validation).

The strength of the head without fold i is chosen by heads that have seen neither i nor one more fold j, on the rows of
j. A head without i and j serves both: it judges j for i, and i for j. So k folds take ``k (k - 1) / 2`` heads in place
of ``k (k - 1)``, and all are solved in one stack of products (see `Objective`).

Nothing of a fold reaches the heads that it is scored by: each starts at the best constant of its own rows, features are
scaled by the deviations of its own rows, and the last head of a fold starts from the mean of those that have not seen
it either. Rows share only the coordinates in which they are multiplied, which no solution depends on, and the number of
features that vary, which places the default strengths.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from hftl.errors import ConvergenceError
from hftl.heads.basis import Basis, default_strengths, fit_basis, own_scales
from hftl.heads.fit import LinearOptions
from hftl.heads.folds import with_every_class_in_sight
from hftl.heads.learnable import NEVER, Learnable, best_constant
from hftl.heads.matrix import Matrix
from hftl.heads.objective import NO_FOLD, FoldRows
from hftl.heads.panel import HeldOut, Panel
from hftl.heads.path import HeadStack, chosen_from, judged_logits, solve, walk

# Without two of fewer folds too few rows are left to choose on, or none; of more there are more pairs than five folds
# of each would have.
FOLDS_THAT_SHARE = range(5, 11)
# A feature that does not vary where a head is trained is scaled down by so much, which is as good as absent.
_ABSENT = 1e-3


@dataclass(frozen=True)
class FoldHead:
    """What the head of a fold says of the fold's rows.

    Attributes:
        logits: (m, num_labels) float32, in the order of the rows, after the temperature.
        report: the strength that was ``chosen``, the ``path``, and thresholds where labels need them.
    """

    logits: Tensor
    report: dict[str, Any]


def fit_each_fold(
    features: Matrix,
    labels: Tensor,
    weights: Tensor,
    folds: Tensor,
    options: LinearOptions,
    validation: tuple[Matrix, Tensor] | None,
) -> list[FoldHead]:
    """The heads of all folds, each solved on the rows of the others.

    Args:
        features: (n, dim), on the device where to compute, as all the rest.
        labels: (n,) classes or (n, num_labels) zeros and ones.
        weights: (n, 1) or (n, num_labels) float64, no row of zeros.
        folds: (n,) int64, the fold of each row from 0, or ``NO_FOLD`` for rows that all are trained on.
        options: what to solve, and how to choose; none of the ``groups`` stands in two folds.
        validation: features and labels that choose the strength of every fold's head, in place of the other folds.

    Raises:
        DataError: the rows outside a fold say nothing that could be learnt.
        ConvergenceError: an objective is not finite.
    """
    nest = _Nest.of(features, labels, weights, folds, options, validation)
    strengths = options.strengths or default_strengths(nest.basis)
    inner = nest.stack(nest.pairs)
    panels = {fold: panel for fold in nest.own if (panel := nest.panel(fold)) is not None}
    paths = walk(nest.rows, list(panels.values()), inner, strengths) if panels else []
    choices = {fold: chosen_from(path, options) for fold, path in zip(panels, paths, strict=True)}

    outer = nest.stack([(fold, *nest.never) for fold in nest.own])
    middle = strengths[len(strengths) // 2]
    each = [choices[fold][0].strength if fold in choices else middle for fold in nest.own]
    start = outer.start.clone()
    for fold, (candidate, _) in choices.items():
        start[fold] = _carried(candidate.heads, list(panels[fold].heads.values()), inner, outer, fold)
    objective = outer.at(nest.rows, torch.tensor(each, dtype=torch.float64, device=folds.device))
    solution = solve(objective, start, options.tolerance)
    if not bool(torch.isfinite(solution.value).all()):
        raise ConvergenceError("a fold's objective is not finite: the features' scale is too extreme for float32")
    heads = objective.in_coordinates(solution.x).float()
    told = []
    for fold in nest.own:
        logits, report = nest.logits(heads[fold], fold), {"path": [], "chosen": middle}
        if fold in choices:
            candidate, report = choices[fold]
            logits /= candidate.temperature
            if nest.every.link == "sigmoid":
                report |= panels[fold].thresholds(judged_logits(candidate, panels[fold], inner, nest.rows))
        told.append(FoldHead(nest.learnable[fold].with_constants(logits), report))
    return told


def _carried(heads: Tensor, places: list[int], inner: HeadStack, outer: HeadStack, fold: int) -> Tensor:
    """The mean of the heads (h, size) that judge for a fold, where the fold's own head starts: (size,) float64."""
    weights = heads.double().view(len(heads), -1, outer.outputs)
    slopes, bias = weights[:, :-1], weights[:, -1]
    if inner.tilt is not None and outer.tilt is not None:
        common = torch.bmm(inner.tilt[places].double(), slopes).mean(0)
        slope = torch.linalg.solve_triangular(outer.tilt[fold].double(), common, upper=False)
    else:
        slope = slopes.mean(0)
    # A class that one of them has no row of says nothing of where the others begin.
    seen = (bias > NEVER / 2).double()
    mean = torch.where(seen.sum(0) > 0, (bias * seen).sum(0) / seen.sum(0).clamp_min(1), NEVER)
    return torch.cat([slope, mean[None]]).flatten()


@dataclass(frozen=True)
class _Nest:
    """What all heads share.

    Attributes:
        features: (n, dim), raw; those of a validation split behind.
        labels: (n,) or (n, num_labels), as they were given.
        weights: (n, 1) or (n, num_labels) float64.
        folds: (n,) int64, or ``NO_FOLD``.
        judge: the fold that is the validation split; None where there is none.
        every: what any training row has, which the outputs of all heads are.
        basis: the coordinates of the rows.
        rows: all of them in blocks.
        options: what is to be solved.
    """

    features: Matrix
    labels: Tensor
    weights: Tensor
    folds: Tensor
    judge: int | None
    every: Learnable
    basis: Basis
    rows: FoldRows
    options: LinearOptions

    @classmethod
    def of(
        cls,
        features: Matrix,
        labels: Tensor,
        weights: Tensor,
        folds: Tensor,
        options: LinearOptions,
        validation: tuple[Matrix, Tensor] | None,
    ) -> "_Nest":
        """See `fit_each_fold`."""
        every, judge = Learnable.of(labels, options), None
        targets, of_targets = every.restrict(labels, weights)
        if validation is not None:
            judge = int(folds.max()) + 1
            targets, of_targets, folds = every.with_validation((targets, of_targets, folds), validation[1], judge)
            features, labels = Matrix.stacked(features, validation[0]), torch.cat([labels, validation[1]])
            weights = torch.cat([weights, weights.new_ones(len(validation[1]), weights.shape[1])])
        # Of all rows: no solution depends on the coordinates, and every row is to have its place in them.
        ones = torch.ones(len(labels), dtype=torch.float64, device=labels.device)
        basis = fit_basis(features, ones, standardize=options.standardize, bias=options.bias)
        columns = len(every.index) * int(folds.max() + 1) ** 2 // 2
        rows = FoldRows(features, targets, of_targets, folds, basis, columns=columns)
        return cls(features, labels, weights, folds, judge, every, basis, rows, options)

    @property
    def own(self) -> range:
        """The folds that heads are scored on."""
        return range(int(self.folds.max()) + 1 if self.judge is None else self.judge)

    @property
    def never(self) -> tuple[int, ...]:
        """The folds that no head is trained on."""
        return () if self.judge is None else (self.judge,)

    @property
    def pairs(self) -> list[tuple[int, ...]]:
        """Which two folds each head that chooses has not seen: that which it chooses for, and that which it judges."""
        return list(combinations(self.own, 2)) if self.judge is None else [(fold, self.judge) for fold in self.own]

    def stack(self, hidden: Sequence[tuple[int, ...]]) -> HeadStack:
        """Heads without these folds, at their best constants."""
        outputs, device = len(self.every.index), self.folds.device
        folds = torch.tensor(hidden, device=device)
        seen = torch.stack([~torch.isin(self.folds, each) for each in folds])
        start = torch.zeros(len(hidden), self.basis.rank + 1, outputs, dtype=torch.float64, device=device)
        if self.options.bias:
            for head, rows in zip(start, seen, strict=True):
                head[-1] = self._constant(rows)
        return HeadStack(self.every.link, outputs, folds, start.flatten(1), self._tilt(seen))

    def _constant(self, rows: Tensor) -> Tensor:
        """The best bias (outputs,) of some rows, finite also of what does not vary there."""
        labels, weights = self.every.restrict(self.labels[rows], self.weights[rows])
        best = best_constant(labels, weights, self.every.link, len(self.every.index))
        if self.every.link == "softmax":
            # Its probability is zero, and so is its gradient: it stays there.
            return best.clamp_min(NEVER)
        furthest = math.log(2 * len(labels) + 1)
        return best.clamp(-furthest, furthest)

    def _tilt(self, seen: Tensor) -> Tensor | None:
        """For heads on rows ``seen`` (k, n): from coordinates of their own scales to those of the rows (k, rank, rank).

        With z the coordinates R'(x / S) of a row and own scales s, ``x / s`` is ``Q U z`` with orthonormal Q, where
        ``U'U = R'(S / s)^2 R``. An L2 penalty does not see Q, so that a head on own scales is one on ``U z``.
        """
        basis, options = self.basis, self.options
        if not options.standardize:
            return None
        weights = seen.double() * self.weights.mean(1)
        own = own_scales(self.features, weights, basis.mean, bias=options.bias)
        ratio = torch.where(own > 0, basis.scale / own.clamp_min(1e-300), _ABSENT)
        # By QR: to square scales that differ much would lose what Cholesky's factor is made of.
        tilts = [torch.linalg.qr(r[:, None] * basis.rotation, mode="r").R for r in ratio]
        return torch.stack([tilt.T * torch.where(tilt.diagonal() < 0, -1.0, 1.0) for tilt in tilts]).float()

    @cached_property
    def learnable(self) -> list[Learnable]:
        """By fold, what the rows that its head is trained on say something about."""
        unseen = [torch.tensor([fold, *self.never], device=self.folds.device) for fold in self.own]
        return [Learnable.of(self.labels[~torch.isin(self.folds, each)], self.options) for each in unseen]

    def panel(self, fold: int) -> Panel | None:
        """The rows that choose the strength of a fold's head, and which head judges each; None where there are none."""
        learnable, options = self.learnable[fold], self.options
        if self.judge is not None:
            rows = torch.nonzero(self.folds == self.judge).flatten()
            folds = self.folds[rows]
            if options.task.is_exclusive:
                folds = torch.where(torch.isin(self.labels[rows], learnable.index), folds, NO_FOLD)
        else:
            rows = torch.nonzero(self.folds != fold).flatten()
            folds = self.folds[rows]
            if options.task.is_exclusive:
                groups = None if options.groups is None else options.groups[rows]
                folds = with_every_class_in_sight(folds, self.labels[rows], groups)
        rows, folds = rows[folds != NO_FOLD], folds[folds != NO_FOLD]
        if not len(rows):
            return None
        places = {frozenset(pair): place for place, pair in enumerate(self.pairs)}
        heads = {other: places[frozenset((fold, other))] for other in torch.unique(folds).tolist()}
        targets, weights = learnable.restrict(self.labels[rows], self.weights[rows])
        outputs = torch.searchsorted(self.every.index, learnable.index)
        return Panel(HeldOut(rows, targets, weights, folds), heads, learnable, self.labels[rows], options, outputs)

    def logits(self, head: Tensor, fold: int) -> Tensor:
        """What a head (rank + 1, outputs) says of a fold's rows, of what it could learn: (m, outputs)."""
        head = head[:, torch.searchsorted(self.every.index, self.learnable[fold].index)].clone()
        if self.every.link == "softmax":
            head[-1] -= head[-1].mean()  # softmax does not see a common shift
        own = self.features.take(self.folds == fold)
        return own.made(lambda rows: self.basis.transform(rows) @ head, head.shape[1])
