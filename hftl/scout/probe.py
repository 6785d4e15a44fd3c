"""How well a head on frozen features does on rows that it has not seen, with an interval; and how two such compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from hftl.errors import DataError
from hftl.heads import cross_validate, neighbour_scores
from hftl.intervals import (
    LEVEL,
    SPREAD_OF_HEADS,
    Array,
    Difference,
    Interval,
    difference,
    holm,
    percentiles,
    proportion,
    resamples,
)
from hftl.metrics.resampled import resampled_metric
from hftl.scout.stored import TrainingRows
from hftl.tasks import Task

# Of each fold. With five folds, heads that judge have seen 95 % of the rows, and score hardly less than the head on all
# of them, which is the one that a run exports.
PARTS = 4


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


def linear_probe(
    features: Tensor, labels: Tensor, *, task: Task, num_labels: int, folds: int, seed: int, parts: int = PARTS
) -> Score:
    """The exact linear head, cross-validated; see `hftl.heads.cross_validate`.

    The interval is that of the head on all rows, which a run exports.

    Raises:
        DataError: there is one class only, or no two rows of any class.
    """
    held = cross_validate(features, labels, task=task, num_labels=num_labels, folds=folds, parts=parts, seed=seed)
    rows, logits = held.rows.numpy(), held.logits.numpy()
    return scored(task, labels.numpy(), rows, logits, seed=seed, spread=SPREAD_OF_HEADS)


def probe_rows(known: TrainingRows, folds: int, parts: int = PARTS) -> Score:
    """`linear_probe` of training rows."""
    labels, outputs = known.labels, len(known.data.label_names)
    return linear_probe(
        known.features, labels, task=known.task, num_labels=outputs, folds=folds, seed=known.seed, parts=parts
    )


def neighbour_probe(features: Tensor, labels: Tensor, targets: Tensor, *, task: Task, seed: int) -> Score:
    """The 20 nearest rows by cosine, each row judged by all others; nothing is trained.

    Args:
        features: (n, d).
        labels: of the rows.
        targets: (n, C) float32, the labels as numbers to average.
        task: what they are.
        seed: of the bootstrap samples.
    """
    scores = neighbour_scores(features, targets, features, own=True)
    return scored(task, labels.numpy(), np.arange(len(labels)), scores.numpy(), seed=seed, spread=SPREAD_OF_HEADS)


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


def compare(one: Score, other: Score) -> Difference:
    """How much better one cross-validated head is than another on the same rows."""
    value = one.interval.value - other.interval.value
    return difference(value, one.draws - other.draws, spread=SPREAD_OF_HEADS)


def tied_groups(scores: Sequence[Score]) -> list[int]:
    """Groups of scores that are the same within noise, numbered from 1, the best.

    All pairs are compared, with Holm's correction. From the best downwards, a score opens a new group where it differs
    from the first of the group before.

    Args:
        scores: from best to worst, of the same rows.
    """
    pairs = [(i, j) for i in range(len(scores)) for j in range(i + 1, len(scores))]
    adjusted = dict(zip(pairs, holm([compare(scores[i], scores[j]).p for i, j in pairs]), strict=True))
    groups: list[int] = []
    leader = 0
    for place in range(len(scores)):
        if place and adjusted[leader, place] < 1 - LEVEL:
            leader = place
        # A leader opens its group; all others are in the one that was opened last.
        opens = place == leader
        groups.append((groups[-1] if groups else 0) + opens)
    return groups
