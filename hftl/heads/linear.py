"""Linear heads on cached features, solved exactly: the one entry for every kind of task."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hftl.errors import ConvergenceError, UserError
from hftl.heads.checks import check_features, check_labels, check_strengths, loss_weights
from hftl.heads.fit import HeadFit, LinearOptions
from hftl.heads.folds import folds_for
from hftl.heads.judging import Judge
from hftl.heads.logistic import fit_logistic
from hftl.heads.matrix import Matrix
from hftl.heads.nested import FoldHead, fit_each_fold
from hftl.heads.ridge import fit_ridge
from hftl.heads.selection import Rule
from hftl.heads.threads import threads_for
from hftl.methods import F1, Aim
from hftl.tasks import ClassWeight, Task


def fit_linear(
    features: Tensor | Matrix,
    labels: Tensor,
    *,
    task: Task | str,
    num_labels: int,
    strengths: Sequence[float] | None = None,
    folds: int = 5,
    rule: Rule = "best",
    class_weight: ClassWeight = None,
    standardize: bool = True,
    bias: bool = True,
    calibrate: bool = True,
    validation: tuple[Tensor | Matrix, Tensor] | None = None,
    aim: Aim = F1,
    judge: Judge | None = None,
    dealt: Tensor | None = None,
    groups: Tensor | None = None,
    least: float = 0.0,
    views: int = 1,
    tolerance: float = 1e-10,
    seed: int = 0,
) -> HeadFit:
    """Solve a linear head over a path of L2 strengths, choose one on held-out rows, solve that on all rows.

    ``single_label`` is multinomial logistic regression, ``multi_label`` one logistic regression for each
    label with a common strength, ``regression`` ridge with exact leave-one-out errors. The objective is
    scikit-learn's: the weighted sum of the losses plus ``strength / 2 * ||W||^2`` on (standardised) features,
    with a free bias. So ``strength`` is ``1 / C`` of ``LogisticRegression`` (``2 / C`` for two classes of a
    single-label task, which have two rows of weights here) and ``alpha`` of ``Ridge``.

    With ``calibrate``, strengths are judged by the log-loss after the best temperature, that is, by the head
    that would be exported; otherwise by the plain log-loss.

    The same inputs and seed give the same bits on the same device and number of threads.

    Args:
        features: (n, dim) floating point, on the device where to compute; a `Matrix` is read a part at a time.
        labels: (n,) int64 class indices for ``single_label``, (n, num_labels) zeros and ones for
            ``multi_label``, (n, num_labels) or (n,) numbers for ``regression``.
        task: what the labels mean.
        num_labels: classes, labels or targets.
        strengths: L2 strengths to try; ``default_strengths`` of the features where None.
        folds: stratified folds to choose on; leave-one-out is used for regression.
        rule: ``best``, or ``one_se`` for the strongest strength within one standard error of the best.
        class_weight: ``balanced``, or a weight for each class (multi-label: for each label's positive rows).
        standardize: divide features by their standard deviation before penalising; folded into the result.
        bias: whether the head has a free bias; without one nothing is centred and the returned bias is zero, which is
            what fits a model whose last layer has none.
        calibrate: divide the logits by a temperature fitted on held-out rows (classification only).
        validation: features and labels to choose and calibrate on, in place of folds.
        aim: what thresholds are chosen for.
        judge: the metric that chooses the strength, in place of the loss; the loss decides between strengths of which
            it says the same, and all of them where it is undefined at every one.
        dealt: (n,) int64, the fold of each row, from 0, in place of folds that are stratified by label.
        groups: (n,) int64, the group of each row, such as the sentence of a word; folds never part a group.
        least: share of the largest deviation below which a feature counts as constant; 0 for none, as heads do not
            depend on the scale of features. To be stated where the network is trained on: some have outputs whose norm
            has a weight of 1e-30, and to divide by such a deviation makes a weight that no training survives.
        views: how often each row stands in ``features``, which are then (views * n, dim): all rows, then all of them
            again as further views, in one order. A view weighs its share of the row, is held out with it, and only the
            first judges. For labels alone.
        tolerance: relative distance from the minimum at which the exported head stops; the report says
            whether it was reached.
        seed: decides the folds.

    Raises:
        DataError: features or labels are malformed, not finite, or have only one class.
        UserError: an option or a weight makes no sense.
        ConvergenceError: the solution is not finite.
    """
    task = Task(task)
    if folds < 2:
        raise UserError(f"folds: expected at least 2, got {folds}")
    if views > 1 and not task.has_classes:
        raise UserError("views are for labels: a regression's strength is chosen by leaving out single rows")
    options = LinearOptions(
        task,
        num_labels,
        None if strengths is None else check_strengths(strengths),
        folds,
        rule,
        standardize,
        bias,
        calibrate,
        tolerance,
        seed,
        groups,
        judge,
        dealt,
        least,
        aim,
    )
    rows = len(features) // views
    matrix, labels, weights, judging = _checked_inputs(features, labels, rows, options, class_weight, validation)

    # A class of weight zero is as good as absent: its rows must not give the folds or the axes their shape either.
    used = (weights > 0).any(1)
    if not bool(used.all()):
        matrix = matrix.take(used.repeat(views))
        labels, weights = labels[used], weights[used]
        dealt, groups = (None if each is None else each.to(used.device)[used] for each in (dealt, groups))
        options = replace(options, dealt=dealt, groups=groups)
    if views > 1:
        if validation is None:
            options = replace(options, dealt=folds_for(labels, options).repeat(views), groups=None)
        options = replace(options, rows=len(labels))
        labels, weights = (torch.cat([each] * views) for each in (labels, weights / views))
    with threads_for(matrix, num_labels * folds):
        if task.has_classes:
            head = fit_logistic(matrix, labels, weights, options, judging)
        else:
            head = fit_ridge(matrix, labels, options, judging)
    if not bool(torch.isfinite(head.weight).all() and torch.isfinite(head.bias).all()):
        raise ConvergenceError(
            "the head's weights are not finite in float32; rescale the features, or set standardize=True"
        )
    head.report["task"] = task
    head.report["rows_of_zero_weight"] = int((~used).sum())
    if head.held_out is None or bool(used.all()):
        return head
    known = torch.nonzero(used).flatten()[head.held_out.rows]
    return replace(head, held_out=replace(head.held_out, rows=known))


def fit_linear_folds(
    features: Tensor | Matrix,
    labels: Tensor,
    dealt: Tensor,
    *,
    task: Task | str,
    num_labels: int,
    strengths: Sequence[float] | None = None,
    rule: Rule = "best",
    class_weight: Sequence[float] | None = None,
    standardize: bool = True,
    bias: bool = True,
    calibrate: bool = True,
    validation: tuple[Tensor | Matrix, Tensor] | None = None,
    aim: Aim = F1,
    judge: Judge | None = None,
    groups: Tensor | None = None,
    tolerance: float = 1e-5,
) -> list[FoldHead]:
    """What `fit_linear` without each fold in turn says of the fold's rows; all folds are solved together.

    The strength of each fold's head is chosen on the other folds, which ``dealt`` says, and by them alone; see
    `hftl.heads.nested`. Arguments that `fit_linear` has too are as there.

    Args:
        features: (n, dim) floating point, on the device where to compute.
        labels: as for `fit_linear`, of a task that has classes.
        dealt: (n,) int64, the fold of each row, from 0, as many as `FOLDS_THAT_SHARE` says; -1 of rows that all are
            trained on.
        task: what the labels mean.
        num_labels: classes or labels.
        strengths: as of `fit_linear`.
        rule: as of `fit_linear`.
        class_weight: numbers above zero.
        standardize: as of `fit_linear`, by the deviations of the rows that a head is trained on.
        bias: as of `fit_linear`.
        calibrate: as of `fit_linear`.
        validation: features and labels that choose for every fold.
        aim: as of `fit_linear`.
        judge: as of `fit_linear`.
        groups: (n,) int64, the group of each row, none of which is in two folds.
        tolerance: as of `fit_linear`.

    Returns:
        One for each fold.

    Raises:
        DataError: as of `fit_linear`, also where the rows outside a fold have one class only.
        UserError: as of `fit_linear`.
        ConvergenceError: as of `fit_linear`.
    """
    options = LinearOptions(
        Task(task),
        num_labels,
        None if strengths is None else check_strengths(strengths),
        int(dealt.max()) + 1,
        rule,
        standardize,
        bias,
        calibrate,
        tolerance,
        0,
        groups,
        judge,
        dealt,
        aim=aim,
    )
    rows = len(features)
    matrix, labels, weights, judging = _checked_inputs(features, labels, rows, options, class_weight, validation)
    with threads_for(matrix, num_labels * options.folds**2 // 2):
        return fit_each_fold(matrix, labels, weights, dealt.to(matrix.device), options, judging)


def _checked_inputs(
    features: Tensor | Matrix,
    labels: Tensor,
    rows: int,
    options: LinearOptions,
    class_weight: ClassWeight,
    validation: tuple[Tensor | Matrix, Tensor] | None,
) -> tuple[Matrix, Tensor, Tensor, tuple[Matrix, Tensor] | None]:
    """Features, labels, the weights of their losses, and validation rows, checked and on the features' device."""
    matrix = check_features(features)
    labels = check_labels(labels, rows, options.task, options.num_labels).to(matrix.device)
    weights = loss_weights(labels, options.task, options.num_labels, class_weight)
    judging = None if validation is None else _check_validation(validation, matrix, options)
    return matrix, labels, weights, judging


def _check_validation(
    validation: tuple[Tensor | Matrix, Tensor], training: Matrix, options: LinearOptions
) -> tuple[Matrix, Tensor]:
    (features, labels), dim = validation, training.shape[1]
    if isinstance(features, Tensor):
        features = features.to(training.device)
    matrix = check_features(features, "validation features")
    if matrix.shape[1] != dim:
        raise UserError(f"validation features: expected {dim} columns as in training, got {matrix.shape[1]}")
    labels = check_labels(labels, len(matrix), options.task, options.num_labels, "validation labels")
    return matrix, labels.to(training.device)
