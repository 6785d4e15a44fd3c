"""Losses as sums over rows, so that a mean over the effective batch is right however the batch is cut into parts."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from hftl.tasks import Task


class Loss:
    """The loss of one kind of task: the functions that transformers' own classification models use.

    ``single_label`` is cross-entropy, as ``token_labels`` is over words, ``multi_label`` binary cross-entropy and
    ``regression`` the squared error, the last two averaged over the labels of a row. The mean over rows is
    ``loss(...) / loss.weight(...)``, equal to that of `torch.nn.functional.cross_entropy` with ``weight`` and
    ``label_smoothing``.

    Args:
        task: what the labels are.
        num_labels: classes, labels or targets.
        smoothing: share of the target that is spread evenly (Szegedy et al. 2016).
        class_weights: (C,) for ``single_label``; (2, C) for negatives and positives of ``multi_label``; None for ones.
    """

    def __init__(
        self, task: Task | str, num_labels: int, smoothing: float = 0.0, class_weights: Tensor | None = None
    ) -> None:
        self.task = Task(task)
        self.num_labels = num_labels
        self.smoothing = smoothing
        self.class_weights = class_weights

    def __call__(self, logits: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
        """The sum over rows, a scalar.

        Args:
            logits: (n, C).
            targets: (n,) int64 class numbers or (n, C) probabilities for ``single_label``, else (n, C).
            counted: (n,) 1 for a row that counts, 0 for one that only fills a batch up.
        """
        logits = logits.float()
        if self.task.link == "identity":
            rows = (logits.view(targets.shape) - targets).square().mean(1)
        elif self.task.link == "sigmoid":
            smooth = targets * (1 - self.smoothing) + self.smoothing / 2
            each = F.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
            rows = (each * self._of_labels(targets)).mean(1)
        else:
            rows = F.cross_entropy(
                logits,
                targets,
                weight=None if self.class_weights is None else self.class_weights.to(logits),
                label_smoothing=self.smoothing,
                reduction="none",
            )
        return (rows * counted).sum()

    def weight(self, targets: Tensor) -> float:
        """What a sum of losses over rows with these targets is divided by: their number, or their classes' weights."""
        if not self.task.unit.is_exclusive or self.class_weights is None:
            return float(len(targets))
        if targets.dim() == 1:
            return float(self.class_weights[targets].double().sum())
        return float((targets.double() @ self.class_weights.double()).sum())

    def _of_labels(self, targets: Tensor) -> Tensor | float:
        if self.class_weights is None:
            return 1.0
        weights = self.class_weights.to(targets)
        of_labels: Tensor = weights[0] + targets * (weights[1] - weights[0])
        return of_labels
