"""The task's metric on rows that a model has not seen: its value, its interval, and its draws on bootstrap samples.

What a scout's probe, a run and a comparison of runs say of a score is made here, and only here. Neither torch nor
scikit-learn is needed for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from hftl.errors import DataError
from hftl.intervals import Array, Interval, percentiles, proportion, resamples
from hftl.tasks import Task


@dataclass(frozen=True)
class Score:
    """The task's metric on held-out rows.

    Attributes:
        interval: its value and 95 % interval.
        draws: (2000,) float64, the metric on bootstrap samples of the rows: the same samples for the same rows.
        rows: (m,) int64, the rows that were held out.
        scores: (m, C) float32, what was predicted for them.
    """

    interval: Interval
    draws: Array = field(repr=False)
    rows: np.ndarray = field(repr=False)
    scores: np.ndarray = field(repr=False)


def scored(task: Task, labels: np.ndarray, rows: np.ndarray, scores: np.ndarray, *, seed: int) -> Score:
    """The task's metric of predictions for some rows, with its interval.

    Args:
        task: what the labels are.
        labels: of all rows.
        rows: (m,) int64, those that were predicted.
        scores: (m, C), what was predicted.
        seed: of the bootstrap samples.

    Raises:
        DataError: the metric is undefined, because the labels of these rows do not vary.
    """
    truth = labels[rows]
    value = float(resampled_metric(task, scores, truth, np.ones((1, len(rows))))[0])
    if not np.isfinite(value):
        raise DataError(f"{task.metric} is undefined on these {len(rows):,} rows: their labels do not vary")
    draws = np.concatenate([resampled_metric(task, scores, truth, times) for times in resamples(len(rows), seed=seed)])
    # A sample may leave the metric undefined; it says nothing.
    draws = np.where(np.isfinite(draws), draws, value)
    interval = proportion(value * len(rows), len(rows)) if task.is_exclusive else percentiles(value, draws)
    return Score(interval, draws, rows, scores)


def resampled_metric(task: Task, scores: Array, labels: Array, counts: Array) -> Array:
    """The metric that chooses (`Task.metric`) on samples in which each row stands so many times.

    With every count 1 it is what `hftl.metrics.evaluate_predictions` reports under that name.

    Args:
        task: what the labels are.
        scores: float (n, C): logits, or anything that orders as they do; for a regression the predicted targets.
        labels: (n,) class numbers, or (n, C).
        counts: float64 (b, n).

    Returns:
        float64 (b,); NaN where a sample leaves the metric undefined.
    """
    measure: Callable[[Array, Array, Array], Array] = task.case(
        single_label=_accuracy, multi_label=_mean_average_precision, regression=_r2
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return measure(scores, labels, counts)


def _accuracy(scores: Array, labels: Array, counts: Array) -> Array:
    right = (scores.argmax(1) == labels).astype(np.float64)
    share: Array = counts @ right / counts.sum(1)
    return share


def _mean_average_precision(scores: Array, labels: Array, counts: Array) -> Array:
    """The mean over labels that occur of sum(precision × gain in recall), one step for each distinct score."""
    total, occurring = np.zeros(len(counts)), np.zeros(len(counts))
    for k in range(scores.shape[1]):
        order = np.argsort(-scores[:, k], kind="stable")
        ordered = scores[order, k]
        # Rows of one score enter together, at the last of them.
        last = np.append(ordered[1:] != ordered[:-1], True)
        weights = counts[:, order]
        hits = np.cumsum(weights * (labels[order, k] > 0), axis=1)[:, last]
        said = np.cumsum(weights, axis=1)[:, last]
        gained = np.diff(hits, axis=1, prepend=0)
        precision = hits / np.maximum(said, 1e-300)
        there = hits[:, -1]
        total += np.where(there > 0, (gained * precision).sum(1) / np.maximum(there, 1e-300), 0.0)
        occurring += there > 0
    mean: Array = total / occurring
    return mean


def _r2(predicted: Array, expected: Array, counts: Array) -> Array:
    """The mean over targets of ``1 - residual / total`` sums of squares."""
    rows = counts.sum(1, keepdims=True)
    # Centred first: the difference of two large squares would lose what is looked for.
    centred = expected - expected.mean(0)
    mean = counts @ centred / rows
    total = counts @ centred**2 - rows * mean**2
    residual = counts @ (predicted - expected) ** 2
    r2: Array = (1 - residual / total).mean(1)
    return r2
