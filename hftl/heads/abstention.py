"""Below which top probability a model of one label a row abstains: chosen on held-out rows for a share of answers."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from hftl.errors import DataError


def answering_threshold(top: Tensor, coverage: float) -> float:
    """The largest threshold that leaves at least so many rows answered: those whose top probability reaches it.

    To reject where the largest probability is low is the best rule where probabilities are true (Chow, *On optimum
    recognition error and reject tradeoff*, IEEE Trans. Information Theory 16, 1970), and hard to beat where they are a
    network's (Geifman & El-Yaniv, *Selective classification for deep neural networks*, NeurIPS 2017).

    Args:
        top: (n,) the largest probability of each row, n at least 1.
        coverage: the share to answer, above 0 and below 1.

    Returns:
        Halfway between the least that is answered and the next below it; 0 where rows of one value cannot be parted, so
        that all are answered.
    """
    ordered = top.double().sort(descending=True).values
    # Rounding must not ask for a row more: 0.29 * 100 is 29.000000000000004 in some products.
    least = ordered[max(1, math.ceil(coverage * len(top) - 1e-9)) - 1]
    below = ordered[ordered < least]
    return float((least + below[0]) / 2) if len(below) else 0.0


def abstention_report(logits: Tensor, labels: Tensor, coverage: float) -> dict[str, Any]:
    """The threshold on the top probability, and what it leaves of held-out rows.

    Args:
        logits: (n, C) of rows that were not trained on, as the exported model would give them.
        labels: (n,) int64 class numbers.
        coverage: the share of rows to answer.

    Returns:
        ``abstain_below``, and under ``abstention`` the coverage ``asked``, and of the held-out ``rows`` the
        ``coverage``, the ``accuracy`` of all and ``accuracy_answered``.

    Raises:
        DataError: there are no such rows.
    """
    if not len(logits):
        raise DataError("coverage: the threshold is chosen on held-out rows, and there are none: leave it out")
    # In float32, as predictions are made.
    top, predicted = logits.float().softmax(-1).max(-1)
    threshold = answering_threshold(top, coverage)
    answered, right = top.double() >= threshold, predicted == labels
    return {
        "abstain_below": threshold,
        "abstention": {
            "asked": coverage,
            "rows": len(logits),
            "coverage": float(answered.double().mean()),
            "accuracy": float(right.double().mean()),
            "accuracy_answered": float(right[answered].double().mean()),
        },
    }
