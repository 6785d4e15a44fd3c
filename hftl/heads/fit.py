"""What every linear solver is asked, and what it returns."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hftl.heads.judging import Judge
from hftl.heads.selection import Rule
from hftl.methods import F1, Aim
from hftl.tasks import Task


@dataclass(frozen=True)
class LinearOptions:
    """What is to be solved, and how one strength is chosen; the fields are arguments of ``fit_linear``.

    Attributes:
        rows: how many of the rows judge, the first ones; the others are further views of them. None for all.
    """

    task: Task
    num_labels: int
    strengths: list[float] | None
    folds: int
    rule: Rule
    standardize: bool
    bias: bool
    calibrate: bool
    tolerance: float
    seed: int
    groups: Tensor | None = None
    judge: Judge | None = None
    dealt: Tensor | None = None
    least: float = 0.0
    aim: Aim = F1
    rows: int | None = None


@dataclass(frozen=True)
class HeldOutLogits:
    """Logits of rows, each by a head that was solved without the row.

    Attributes:
        rows: (m,) int64, the rows that were held out once; all but those of classes with a single row, or group.
        logits: (m, num_labels) float32 after the temperature; a regression's predicted targets.
        strength: the L2 strength; None where each fold chooses its own.
    """

    rows: Tensor
    logits: Tensor
    strength: float | None


@dataclass(frozen=True)
class HeadFit:
    """A solved linear head: ``logits = x @ weight.T + bias`` on raw features.

    Attributes:
        weight: (num_labels, dim) float32, standardisation and temperature folded in.
        bias: (num_labels,) float32.
        report: what ``metrics.json`` tells about the head; plain JSON values.
        held_out: what the folds' heads at the chosen strength say of the training rows; None for a regression, and
            where nothing, or a validation split, chose the strength.
    """

    weight: Tensor
    bias: Tensor
    report: dict[str, Any]
    held_out: HeldOutLogits | None = None

    def logits(self, features: Tensor) -> Tensor:
        """Apply the head to raw features (n, dim): (n, num_labels) float32."""
        return features @ self.weight.T.to(features.device) + self.bias.to(features.device)
