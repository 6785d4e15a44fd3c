"""A task's metric on many bootstrap samples of the same rows at once."""

from collections.abc import Callable

import numpy as np

from hftl.metrics.values import Array
from hftl.tasks import Task


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
