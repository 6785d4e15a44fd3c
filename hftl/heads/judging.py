"""Choosing by a metric in place of the loss."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from hftl.heads.selection import Rule, choose


class Judge(Protocol):
    """A metric that chooses; `hftl.criterion.Criterion` is one."""

    @property
    def name(self) -> str:
        """Of the metric."""

    @property
    def sign(self) -> float:
        """What it is multiplied with, so that more is better."""

    def judge(
        self, logits: np.ndarray, labels: np.ndarray, thresholds: Sequence[float] | None, *, with_error: bool
    ) -> tuple[float, float]:
        """The metric of logits (m, num_labels) of held-out rows, NaN where undefined, and its error where asked."""


@dataclass(frozen=True)
class MetricSays:
    """What a metric says of one candidate.

    Attributes:
        value: the metric; NaN where it is undefined.
        error: its standard error; 0 where nobody asked.
    """

    value: float
    error: float


def judged(
    judge: Judge, logits: Tensor, labels: Tensor, thresholds: Sequence[float] | None, *, rule: Rule
) -> MetricSays:
    """What a metric says of logits (m, num_labels) of held-out rows."""
    value, error = judge.judge(
        logits.detach().float().cpu().numpy(), labels.cpu().numpy(), thresholds, with_error=rule == "one_se"
    )
    return MetricSays(value, error)


def chosen_of(
    losses: list[float], errors: list[float], rule: Rule, judge: Judge | None, found: Sequence[MetricSays]
) -> tuple[int, dict[str, Any]]:
    """The chosen one of candidates that run from strong to weak regularisation, and what a report tells of the choice.

    Of candidates of which the metric says the same, the one with the smallest loss is the best; where the metric is
    undefined for all, the loss chooses.

    Args:
        losses: on held-out rows.
        errors: their standard errors.
        rule: as of `choose`.
        judge: the metric; None where the loss chooses.
        found: what it says of each candidate.
    """
    if judge is None:
        return choose(losses, errors, rule), {}
    known = [i for i, each in enumerate(found) if math.isfinite(each.value)]
    if not known:
        return choose(losses, errors, rule), {"chosen_by": undefined_everywhere(judge)}
    merits = [judge.sign * each.value for each in found]
    best = max(known, key=lambda i: (merits[i], -losses[i]))
    if rule == "one_se":
        best = next(i for i in known if merits[i] >= merits[best] - found[best].error)
    return best, {"chosen_by": judge.name}


def undefined_everywhere(judge: Judge) -> str:
    """What chose where the metric could not."""
    return f"the held-out loss, because {judge.name} is undefined on the held-out rows"


def entry_of(found: MetricSays | None) -> dict[str, Any]:
    """What a report tells of one candidate."""
    return {} if found is None else {"metric": found.value if math.isfinite(found.value) else None}
