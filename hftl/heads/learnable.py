"""The classes or labels that training rows say something about; the others are constants, and are not solved for."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hftl.errors import DataError
from hftl.heads.fit import LinearOptions
from hftl.tasks import Link

# The bias of a class that has no training row: its probability is zero, and the number fits into float16.
NEVER = -1e4


@dataclass(frozen=True)
class Learnable:
    """The classes or labels that the training rows say something about.

    Attributes:
        index: (outputs,) int64, which of the ``num_labels`` they are.
        bias: (num_labels,) float64, the constant logits of the others.
        link: the loss.
    """

    index: Tensor
    bias: Tensor
    link: Link

    @classmethod
    def of(cls, labels: Tensor, options: LinearOptions) -> "Learnable":
        """What can be learnt. Without a free bias to run off to infinity, every class has a finite optimum.

        Raises:
            DataError: it is nothing.
        """
        num_labels, bias, link = options.num_labels, options.bias, options.task.link
        if link == "softmax":
            index = torch.unique(labels)
            if len(index) < 2:
                raise DataError("labels: all training rows are of one class; a head needs at least two")
            if not bias:
                index = torch.arange(num_labels, device=labels.device)
            return cls(index, torch.full((num_labels,), NEVER, dtype=torch.float64, device=labels.device), link)
        positive = (labels > 0).double().sum(0)
        varies = (positive > 0) & (positive < len(labels))
        if not bool(varies.any()):
            raise DataError("labels: every label is the same in all training rows; there is nothing to learn")
        index = torch.nonzero(varies if bias else torch.ones_like(varies)).flatten()
        return cls(index, ((positive + 0.5) / (len(labels) + 1)).logit(), link)

    def restrict(self, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Labels and weights in terms of what can be learnt."""
        if self.link == "softmax":
            return torch.searchsorted(self.index, labels), weights
        return labels[:, self.index], weights if weights.shape[1] == 1 else weights[:, self.index]

    def with_constants(self, learnt: Tensor) -> Tensor:
        """Logits (m, num_labels) of what can be learnt, and the constants of what cannot."""
        if len(self.index) == len(self.bias):
            return learnt
        logits = self.bias.float().repeat(len(learnt), 1)
        logits[:, self.index] = learnt
        return logits

    def with_validation(
        self, training: tuple[Tensor, Tensor, Tensor], new_labels: Tensor, fold: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Labels, weights and folds with those of the validation rows, of weight one, behind.

        Args:
            training: of the training rows, restricted.
            new_labels: of the validation rows, as they were given.
            fold: theirs.

        Raises:
            DataError: one is of a class without training rows.
        """
        labels, weights, folds = training
        if self.link == "softmax":
            unseen = ~torch.isin(new_labels, self.index)
            if bool(unseen.any()):
                label = int(new_labels[unseen][0])
                raise DataError(f"validation labels: class {label} has no training row; leave its rows out")
        ones = torch.ones(len(new_labels), weights.shape[1], dtype=torch.float64, device=weights.device)
        new_labels, ones = self.restrict(new_labels, ones)
        return (
            torch.cat([labels, new_labels]),
            torch.cat([weights, ones]),
            torch.cat([folds, torch.full((len(new_labels),), fold, device=folds.device)]),
        )


def best_constant(labels: Tensor, weights: Tensor, link: Link, outputs: int) -> Tensor:
    """The bias (outputs,) float64 that is optimal where all weights are zero; infinite of what does not vary."""
    if link == "softmax":
        of_class = torch.zeros(outputs, dtype=torch.float64, device=labels.device).index_add_(0, labels, weights[:, 0])
        return (of_class / weights.sum()).log()
    return ((weights * labels).sum(0) / weights.expand(-1, outputs).sum(0)).logit()
