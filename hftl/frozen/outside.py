"""Scores for "none of these": how well they tell rows that are out of scope from test rows, by AUROC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hftl.intervals import Array, Interval, of_draws, resamples

# Of few rows of a class the tenth nearest is already of another: `benchmarks/scope.py` has what each gives.
NEIGHBOUR = 1
_BLOCK_NUMBERS = 1 << 22


def logit_scores(logits: Tensor) -> dict[str, Array]:
    """What logits (n, C) alone say of each row, (n,) float64, larger for what is rather out of scope.

    ``energy`` is ``-logsumexp`` of the logits (Liu et al., *Energy-based out-of-distribution detection*, NeurIPS 2020,
    eq. 4, at the temperature that they have), ``top_probability`` one less the largest probability (Hendrycks & Gimpel,
    ICLR 2017), which is what abstaining goes by.
    """
    exact = logits.double()
    return {
        "energy": -exact.logsumexp(-1).numpy(),
        "top_probability": 1 - exact.softmax(-1).max(-1).values.numpy(),
    }


def neighbour_distance(known: Tensor, asked: Tensor) -> Array:
    """One less the cosine to the nearest training row, of centred features: (m,) float64.

    Deep nearest neighbours (Sun et al., ICML 2022) ask nothing of the shape of classes, while Mahalanobis' distance
    (Lee et al., NeurIPS 2018) wants a covariance of as many numbers as the features' width squared, which few rows do
    not give.

    Args:
        known: (n, d) features of the training rows.
        asked: (m, d) features of rows.
    """
    return 1 - nearest_rows(asked, known, NEIGHBOUR)[0][:, -1].double().numpy()


def nearest_rows(queries: Tensor, reference: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosine (m, k) and number (m, k) of the nearest of some rows, by features centred on these."""
    mean, k = reference.mean(0), min(k, len(reference))
    unit = torch.nn.functional.normalize(reference - mean)
    blocks = torch.split(queries, max(1, _BLOCK_NUMBERS // len(reference)))
    found = [(torch.nn.functional.normalize(block - mean) @ unit.T).topk(k) for block in blocks]
    return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])


def auroc(outside: Array, inside: Array, times_outside: Array, times_inside: Array) -> Array:
    """The chance that a row that is out of scope has the larger score, ties by half, on resampled rows.

    Args:
        outside: (m,) scores of rows that are out of scope.
        inside: (n,) scores of the others.
        times_outside: (b, m), how often each stands in a sample.
        times_inside: (b, n).

    Returns:
        (b,) float64; NaN where a sample lacks one of the two kinds.
    """
    order = np.argsort(inside, kind="stable")
    below = np.pad(np.cumsum(times_inside[:, order], axis=1), ((0, 0), (1, 0)))
    less, upto = (np.searchsorted(inside[order], outside, side) for side in ("left", "right"))
    wins = (times_outside * (below[:, less] + below[:, upto])).sum(1) / 2
    with np.errstate(invalid="ignore"):
        share: Array = wins / (times_outside.sum(1) * times_inside.sum(1))
    return share


def told_apart(outside: Mapping[str, Array], inside: Mapping[str, Array], *, seed: int) -> dict[str, Interval]:
    """The AUROC of each score, with its bootstrap interval over rows of both kinds.

    Args:
        outside: by score, (m,) of rows that are out of scope.
        inside: by score, (n,) of the others.
        seed: of the samples.
    """
    found = {}
    for name, scores in outside.items():
        rows, others = len(scores), len(inside[name])
        value = float(auroc(scores, inside[name], np.ones((1, rows)), np.ones((1, others)))[0])
        samples = resamples(rows + others, seed=seed)
        draws = np.concatenate([auroc(scores, inside[name], times[:, :rows], times[:, rows:]) for times in samples])
        draws = draws[np.isfinite(draws)]
        found[name] = of_draws(value, draws, min(rows, others))
    return found


def scope_report(label: str, found: Mapping[str, Interval], rows: int, others: int) -> dict[str, Any]:
    """What ``metrics.json`` has: ``label``, ``rows`` with it, ``against`` so many, ``auroc`` and ``intervals``."""
    return {
        "label": label,
        "rows": rows,
        "against": others,
        "auroc": {name: each.value for name, each in found.items()},
        "intervals": {name: [each.low, each.high] for name, each in found.items()},
    }
