"""What an exact linear head says of rows that it has not seen: cross-validation over the training rows."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hftl.errors import DataError
from hftl.heads.checks import check_features, check_labels, loss_weights
from hftl.heads.fit import HeldOutLogits, LinearOptions
from hftl.heads.folds import folds_for
from hftl.heads.judging import Judge
from hftl.heads.logistic import held_out_logistic
from hftl.heads.matrix import Matrix
from hftl.heads.ridge import fit_ridge, left_out_predictions
from hftl.heads.threads import threads_for
from hftl.tasks import ClassWeight, Task


def cross_validate(
    features: Tensor,
    labels: Tensor,
    *,
    task: Task,
    num_labels: int,
    folds: int = 5,
    parts: int = 1,
    groups: Tensor | None = None,
    strengths: Sequence[float] | None = None,
    class_weight: ClassWeight = None,
    bias: bool = True,
    judge: Judge | None = None,
    dealt: Tensor | None = None,
    least: float = 0.0,
    seed: int = 0,
) -> HeldOutLogits:
    """Solve a linear head without each fold in turn, and let it judge that fold.

    Labels, groups and seed alone decide the folds, so that heads on different features of the same rows can be compared
    row by row. One strength serves all folds, chosen by their own log-loss: without groups `fit_linear` chooses the
    same. With ``parts``, heads that are solved once more at this strength judge a part of a fold each, and have seen
    the rest of it: with 5 folds of 4 parts they are trained on 95 % of the rows, and a head on all of them is hardly
    better. A regression without groups leaves out single rows, exactly.

    Args:
        features: (n, dim) floating point.
        labels: as for `fit_linear`.
        task: what the labels mean.
        num_labels: classes, labels or targets.
        folds: how many.
        parts: of each fold.
        groups: (n,) int64, the group of each row; rows of one group, such as copies, are held out together.
        strengths: L2 strengths to choose from; None for a path of 20.
        class_weight: as for `fit_linear`.
        bias: whether heads have a free bias.
        judge: the metric that chooses the strength; as of `fit_linear`.
        dealt: (n,) int64, the fold of each row, from 0, in place of ``folds`` and ``groups``; each is
            held out whole.
        least: as of `fit_linear`.
        seed: decides the folds.

    Raises:
        DataError: features or labels are malformed, have one class only, or no two rows of any class.
    """
    matrix = check_features(features)
    labels = check_labels(labels, len(features), task, num_labels).to(features.device)
    weights = loss_weights(labels, task, num_labels, class_weight)
    path = None if strengths is None else sorted(map(float, strengths), reverse=True)
    options = LinearOptions(
        task, num_labels, path, folds, "best", True, bias, True, 1e-10, seed, groups, judge, dealt, least
    )
    with threads_for(matrix, num_labels * folds):
        if task.has_classes:
            return held_out_logistic(matrix, labels, weights, options, parts if dealt is None else 1)
        return _ridge(matrix, labels, options)


def _ridge(features: Matrix, targets: Tensor, options: LinearOptions) -> HeldOutLogits:
    """Each row by a ridge regression of all others; each fold of groups by one of the others, of its own strength."""
    if len(features) < 3:
        raise DataError("regression needs at least three training rows to hold one out")
    if options.groups is None and options.dealt is None:
        predicted, strength = left_out_predictions(features, targets, options)
        return HeldOutLogits(torch.arange(len(targets), device=features.device), predicted, strength)
    dealt = folds_for(targets, options)
    predicted = torch.zeros(len(targets), options.num_labels, device=features.device)
    for fold in torch.unique(dealt).tolist():
        held = dealt == fold
        # The other folds choose the strength: what they keep together must not be parted by leave-one-out.
        inner = replace(options, calibrate=False, dealt=None if options.dealt is None else dealt[~held])
        head = fit_ridge(features.take(~held), targets[~held], inner, None)
        predicted[held] = features.take(held).made(head.logits, options.num_labels).float()
    return HeldOutLogits(torch.arange(len(targets), device=features.device), predicted, None)
