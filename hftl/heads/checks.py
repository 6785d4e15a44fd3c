"""What a head is given is checked once, here; the solvers trust it."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from hftl.errors import DataError, UserError

Task = Literal["single_label", "multi_label", "regression"]
ClassWeight = Literal["balanced"] | Sequence[float] | None

_BLOCK_ROWS = 8192


def check_features(features: Tensor, name: str = "features") -> None:
    """Raise ``DataError`` unless ``features`` is a finite, non-empty floating-point matrix."""
    if features.ndim != 2 or not features.is_floating_point():
        found = f"{tuple(features.shape)} {features.dtype}"
        raise DataError(f"{name}: expected a floating-point matrix (rows, dim), got {found}")
    if 0 in features.shape:
        raise DataError(f"{name}: the matrix of shape {tuple(features.shape)} is empty; give rows and columns")
    for start in range(0, len(features), _BLOCK_ROWS):
        bad = ~torch.isfinite(features[start : start + _BLOCK_ROWS])
        if bool(bad.any()):
            row, column = (int(i) for i in torch.nonzero(bad)[0])
            raise DataError(f"{name}: row {start + row}, column {column} is NaN or Inf; recompute or drop that row")


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
    if task == "regression" and labels.ndim == 1:
        labels = labels[:, None]
    shape = (rows,) if task == "single_label" else (rows, num_labels)
    if tuple(labels.shape) != shape:
        raise DataError(f"{name}: expected shape {shape} for {task}, got {tuple(labels.shape)}")
    if task == "single_label":
        if labels.is_floating_point():
            raise DataError(f"{name}: expected integer class indices, got {labels.dtype}")
        outside = (labels < 0) | (labels >= num_labels)
        if bool(outside.any()):
            row = int(torch.nonzero(outside)[0])
            raise DataError(f"{name}: row {row} is {int(labels[row])}, expected a class from 0 to {num_labels - 1}")
        return labels.long()
    bad = ~torch.isfinite(labels)
    if task == "multi_label":
        bad |= (labels != 0) & (labels != 1)
    if bool(bad.any()):
        row, column = (int(i) for i in torch.nonzero(bad)[0])
        wanted = "0 or 1" if task == "multi_label" else "a finite number"
        raise DataError(f"{name}: row {row}, column {column} is {labels[row, column].item()}, expected {wanted}")
    return labels.double() if task == "regression" else labels.float()


def check_strengths(strengths: Sequence[float]) -> list[float]:
    """Return the strengths from strong to weak, or raise ``UserError``: each must be positive and finite."""
    bad = [s for s in strengths if not 0 < s < float("inf")]
    if bad or not strengths:
        raise UserError(f"strengths: expected positive numbers, got {bad[0] if bad else 'none'}")
    return sorted({float(s) for s in strengths}, reverse=True)


def loss_weights(
    labels: Tensor, task: Task, num_labels: int, class_weight: ClassWeight, sample_weight: Tensor | None
) -> Tensor:
    """The weight of each row's loss: (rows, 1), or (rows, num_labels) for a multi-label task with class
    weights.

    ``balanced`` gives every class the same total weight, as in scikit-learn: ``rows / (classes * count)``.
    For a multi-label task each label is a problem of two classes, and given weights are those of its positive
    rows.

    Raises:
        UserError: a weight is negative or not finite, their number is wrong, or all are zero.
    """
    rows, device = len(labels), labels.device
    weights = torch.ones(rows, 1, dtype=torch.float64, device=device)
    if sample_weight is not None:
        if tuple(sample_weight.shape) != (rows,):
            raise UserError(f"sample_weight: expected shape ({rows},), got {tuple(sample_weight.shape)}")
        weights = sample_weight.to(device, torch.float64)[:, None]
    if class_weight is not None:
        if task == "regression":
            raise UserError("class_weight: a regression has no classes; use sample_weight")
        weights = weights * _class_weights(labels, task, num_labels, class_weight)
    if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        raise UserError("weights: expected finite numbers of at least zero; check sample_weight and class_weight")
    if not bool((weights > 0).any()):
        raise UserError("weights: all are zero, so there is nothing to learn from")
    return weights


def _class_weights(labels: Tensor, task: Task, num_labels: int, class_weight: ClassWeight) -> Tensor:
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise UserError(f"class_weight: expected 'balanced' or {num_labels} numbers, got {class_weight!r}")
        if task == "single_label":
            counts = torch.bincount(labels, minlength=num_labels)
            present = int((counts > 0).sum())
            return (len(labels) / (present * counts.clamp_min(1).double()))[labels, None]
        positive = labels.double().sum(0)
        of_positive, of_negative = (len(labels) / (2 * n.clamp_min(1)) for n in (positive, len(labels) - positive))
        return torch.where(labels > 0, of_positive, of_negative)
    given = torch.tensor([float(w) for w in class_weight or ()], dtype=torch.float64, device=labels.device)
    if len(given) != num_labels:
        raise UserError(f"class_weight: expected {num_labels} numbers, one for each label, got {len(given)}")
    return given[labels, None] if task == "single_label" else torch.where(labels > 0, given, 1.0)
