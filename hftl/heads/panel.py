"""Rows that were held out, which judge every strength of a path together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hftl.heads.abstention import abstention_report
from hftl.heads.calibration import calibration_report
from hftl.heads.fit import LinearOptions
from hftl.heads.judging import MetricSays, judged
from hftl.heads.learnable import Learnable
from hftl.heads.thresholds import threshold_report
from hftl.tasks import Link


@dataclass(frozen=True)
class HeldOut:
    """The m rows that judge: index (m,), targets (m,) or (m, outputs), weights (m, 1 or outputs), folds (m,)."""

    index: Tensor
    targets: Tensor
    weights: Tensor
    folds: Tensor


@dataclass(frozen=True)
class Panel:
    """Held-out rows, and which head of a stack has not seen each.

    Attributes:
        held_out: the rows.
        heads: by the fold of a row, the place in the stack of the head that judges it.
        learnable: which labels their targets are.
        truth: (m,) or (m, num_labels), their labels as they were given.
        options: how one strength is chosen.
        outputs: (outputs,) int64, which of the stack's outputs are their targets; None where all are.
    """

    held_out: HeldOut
    heads: Mapping[int, int]
    learnable: Learnable
    truth: Tensor
    options: LinearOptions
    outputs: Tensor | None = None

    @property
    def link(self) -> Link:
        """The loss."""
        return self.learnable.link

    def says(self, logits: Tensor) -> MetricSays | None:
        """What the metric that chooses says of logits (m, outputs), at the thresholds that they would give.

        None where the loss chooses.
        """
        if self.options.judge is None:
            return None
        full = self.learnable.with_constants(logits)
        thresholds = self.thresholds(logits)["thresholds"] if self.link == "sigmoid" else None
        return judged(self.options.judge, full, self.truth, thresholds, rule=self.options.rule)

    def report(self, logits: Tensor, temperature: float) -> dict[str, Any]:
        """What logits (m, outputs), after the temperature, tell: calibration and, where they are due, thresholds."""
        told: dict[str, Any] = {}
        if self.options.calibrate:
            measured = calibration_report(logits * temperature, self.held_out.targets, temperature, self.link)
            told["calibration"] = {**measured, "folded": True}
        if self.link == "sigmoid":
            told |= self.thresholds(logits)
        elif self.options.aim.metric == "coverage":
            told |= abstention_report(logits, self.held_out.targets, self.options.aim.least)
        return told

    def thresholds(self, logits: Tensor) -> dict[str, Any]:
        """Of several labels, those that logits (m, outputs), after the temperature, give."""
        index, targets, options = self.learnable.index, self.held_out.targets, self.options
        return threshold_report(logits, targets, options.aim, index=index, num_labels=options.num_labels)
