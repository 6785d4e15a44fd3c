"""What a head is given is checked once, here; the solvers trust it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hftl.errors import DataError, UserError
from hftl.heads.matrix import Matrix
from hftl.tasks import ClassWeight, Task

_BLOCK_ROWS = 8192


def check_features(features: Tensor | Matrix, name: str = "features") -> Matrix:
    """Return features as a matrix, or raise ``DataError`` unless they are a finite, non-empty floating-point one."""
    if len(features.shape) != 2 or not features.dtype.is_floating_point:
        given = f"{tuple(features.shape)} {features.dtype}"
        raise DataError(f"{name}: expected a floating-point matrix (rows, dim), got {given}")
    if 0 in features.shape:
        raise DataError(f"{name}: the matrix of shape {tuple(features.shape)} is empty; give rows and columns")
    matrix = Matrix.of(features)
    for rows, block in matrix.blocks(_BLOCK_ROWS):
        bad = ~torch.isfinite(block)
        if bool(bad.any()):
            place, column = (int(i) for i in torch.nonzero(bad)[0])
            row = int(rows[place]) if isinstance(rows, Tensor) else rows.start + place
            raise DataError(f"{name}: row {row}, column {column} is NaN or Inf; recompute or drop that row")
    return matrix


def check_labels(labels: Tensor, rows: int, task: Task, num_labels: int, name: str = "labels") -> Tensor:
    """Return the labels in the dtype that the solvers use, or raise ``DataError``.

    Args:
        labels: (rows,) class indices for ``single_label``; (rows, num_labels) zeros and ones for
            ``multi_label``; (rows, num_labels) or, for one target, (rows,) numbers for ``regression``.
        rows: how many rows the features have.
        task: what the labels mean.
        num_labels: classes, labels or targets.
        name: what to call them in a message.
    """
    if not task.has_classes and labels.ndim == 1:
        labels = labels[:, None]
    shape = task.label_shape(rows, num_labels)
    if tuple(labels.shape) != shape:
        raise DataError(f"{name}: expected shape {shape} for {task}, got {tuple(labels.shape)}")
    if task.is_exclusive:
        if labels.is_floating_point():
            raise DataError(f"{name}: expected integer class indices, got {labels.dtype}")
        outside = (labels < 0) | (labels >= num_labels)
        if bool(outside.any()):
            row = int(torch.nonzero(outside)[0])
            raise DataError(f"{name}: row {row} is {int(labels[row])}, expected a class from 0 to {num_labels - 1}")
        return labels.long()
    bad = ~torch.isfinite(labels)
    if task.has_classes:
        bad |= (labels != 0) & (labels != 1)
    if bool(bad.any()):
        row, column = (int(i) for i in torch.nonzero(bad)[0])
        wanted = "0 or 1" if task.has_classes else "a finite number"
        raise DataError(f"{name}: row {row}, column {column} is {labels[row, column].item()}, expected {wanted}")
    return labels.float() if task.has_classes else labels.double()


def check_strengths(strengths: Sequence[float]) -> list[float]:
    """Return the strengths from strong to weak, or raise ``UserError``: each must be positive and finite."""
    bad = [s for s in strengths if not 0 < s < float("inf")]
    if bad or not strengths:
        raise UserError(f"strengths: expected positive numbers, got {bad[0] if bad else 'none'}")
    return sorted({float(s) for s in strengths}, reverse=True)


def loss_weights(labels: Tensor, task: Task, num_labels: int, class_weight: ClassWeight) -> Tensor:
    """The weight of each row's loss: (rows, 1), or (rows, num_labels) for several labels with class weights.

    ``balanced`` gives every class the same total weight, as in scikit-learn: ``rows / (classes * count)``.
    For a multi-label task each label is a problem of two classes, and given weights are those of its positive
    rows.

    Raises:
        UserError: a weight is negative or not finite, their number is wrong, or those of all rows are zero.
    """
    of_classes = task.class_weights(class_weight, labels, num_labels)
    if of_classes is None:
        return torch.ones(len(labels), 1, dtype=torch.float64, device=labels.device)
    weights = _row_weights(of_classes, labels, task)
    if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        raise UserError("class_weight: expected finite numbers of at least zero")
    if not bool((weights > 0).any()):
        raise UserError("class_weight: the weights of all rows are zero, so there is nothing to learn from")
    return weights


def _row_weights(of_classes: Tensor, labels: Tensor, task: Task) -> Tensor:
    """The classes' weights for each row's loss: (rows, 1), or (rows, num_labels) for a multi-label task."""
    if task.is_exclusive:
        return of_classes[labels, None]
    return torch.where(labels > 0, of_classes[1], of_classes[0])
