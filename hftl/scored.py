"""The task's metric on rows that a model has not seen: its value, its interval, and its draws on bootstrap samples.

What a probe of the scout says of a score, and what a comparison of runs says of theirs, is made here and only here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import csr_matrix  # type: ignore[import-untyped]

from hftl.errors import DataError
from hftl.intervals import Array, Interval, percentiles, proportion, resamples
from hftl.metrics.resampled import resampled_metric
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


def scored(
    task: Task, labels: np.ndarray, rows: np.ndarray, scores: np.ndarray, *, seed: int, spread: float = 1.0
) -> Score:
    """The task's metric of predictions for some rows, with its interval.

    Args:
        task: what the labels are.
        labels: of all rows.
        rows: (m,) int64, those that were predicted.
        scores: (m, C), what was predicted.
        seed: of the bootstrap samples.
        spread: how many times as far the metric spreads as under resampled rows; 1 for one fixed model.

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
    if task.is_exclusive:
        interval = proportion(value * len(rows), len(rows), spread=spread)
    else:
        interval = percentiles(value, draws, spread=spread)
    return Score(interval, draws, rows, scores)


def each_output(task: Task, scores: np.ndarray, labels: np.ndarray, counts: Array) -> Array:
    """F1 of each class, or the metric of each label or target, on samples in which each row stands so many times.

    Args:
        task: what the labels are.
        scores: (n, C).
        labels: (n,) class numbers, or (n, C).
        counts: float64 (b, n).

    Returns:
        float64 (b, C); NaN where a sample has no row of a class.
    """
    if task.is_exclusive:
        rows, named = np.arange(len(labels)), scores.argmax(1)
        ones, shape = np.ones(len(labels)), scores.shape
        there = counts @ csr_matrix((ones, (rows, labels)), shape)
        said = counts @ csr_matrix((ones, (rows, named)), shape)
        hits = counts @ csr_matrix(((named == labels).astype(np.float64), (rows, labels)), shape)
        f1: Array = np.where(there > 0, 2 * hits / np.maximum(there + said, 1e-300), np.nan)
        return f1
    columns = [resampled_metric(task, scores[:, [k]], labels[:, [k]], counts) for k in range(scores.shape[1])]
    return np.stack(columns, axis=1)


def telling_rows(task: Task, one: np.ndarray, other: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """On how many rows two models do not do the same by each class, label or target: int64 (C,).

    Rows that only one of them calls of a class; rows with a label, or all rows for a target, whose scores differ.

    Args:
        task: what the labels are.
        one: (n, C), scores of the one.
        other: (n, C), scores of the other.
        labels: (n,) class numbers, or (n, C).
    """
    if task.is_exclusive:
        named = np.stack([scores.argmax(1) for scores in (one, other)])
        return np.bincount(named[:, named[0] != named[1]].ravel(), minlength=one.shape[1])
    differ = one != other
    counts: np.ndarray = (differ & (labels > 0) if task.has_classes else differ).sum(0)
    return counts
