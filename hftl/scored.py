"""The metric that chooses on rows that a model has not seen: its value, its interval, its draws on bootstrap samples.

What a probe of the scout says of a score, and what a comparison of runs says of theirs, is made here and only here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix  # type: ignore[import-untyped]

from hftl.criterion import Criterion
from hftl.errors import DataError
from hftl.intervals import (
    LEFT_OUT,
    LEVEL,
    RESAMPLES,
    Array,
    Difference,
    Interval,
    Jackknife,
    at_least_by_chance,
    difference,
    left_out,
    of_draws,
    percentiles,
    proportion,
    resamples,
    share_of_units,
    units_of,
)
from hftl.metrics.entities import SentenceSums
from hftl.metrics.resampled import resampled_metric, resampled_metrics
from hftl.tasks import Task


@dataclass(frozen=True)
class Score:
    """The metric that chooses, on held-out rows.

    Attributes:
        criterion: the metric.
        interval: its value and 95 % interval.
        draws: (samples,) float64, the metric on bootstrap samples of the rows: the same samples for the same rows.
        rows: (m,) int64, the rows that were held out.
        scores: (m, C) float32, what was predicted for them; of sentences for all their words, (words, C).
        units: how many of the rows, or of their groups, are independent.
    """

    criterion: Criterion
    interval: Interval
    draws: Array = field(repr=False)
    rows: np.ndarray = field(repr=False)
    scores: np.ndarray = field(repr=False)
    units: int

    @property
    def merit(self) -> float:
        """The value, more being better."""
        return self.criterion.rank(self.interval.value)


def scored(
    criterion: Criterion,
    labels: np.ndarray,
    rows: np.ndarray,
    scores: np.ndarray,
    *,
    seed: int,
    spread: float = 1.0,
    groups: np.ndarray | None = None,
    label_names: Sequence[str] = (),
    thresholds: Sequence[float] | None = None,
) -> Score:
    """The metric that chooses of predictions for some rows, with its interval.

    Args:
        criterion: the metric.
        labels: of all rows.
        rows: (m,) int64, those that were predicted.
        scores: (m, C) logits; what orders the classes alike, where the metric asks for no more. Of sentences those of
            all their words, (words, C).
        seed: of the bootstrap samples.
        spread: how many times as far the metric spreads as under resampled rows; 1 for one fixed model.
        groups: int64, the group of each of all rows; groups are drawn whole. None where rows are independent.
        label_names: of tags, which say what an entity is; else not needed.
        thresholds: of several labels, the probability of each above which it is predicted; None for 0.5.

    Raises:
        DataError: the metric is undefined on these rows.
    """
    truth = labels[rows]
    of_rows = None if groups is None else groups[rows]
    measured = _on_samples(criterion, scores, truth, thresholds, label_names)
    value = float(measured(np.ones((1, len(rows))))[0])
    if not np.isfinite(value):
        raise DataError(
            f"{criterion.name} is undefined on these {len(rows):,} rows: their labels, or the predictions, do not vary"
        )
    samples = resamples(len(rows), groups=of_rows, seed=seed, most=criterion.samples)
    draws = np.concatenate([measured(times) for times in samples])
    # A sample may leave the metric undefined; it says nothing.
    draws = np.where(np.isfinite(draws), draws, value)
    units = units_of(len(rows), of_rows)
    if criterion.name == "accuracy" and groups is None:
        interval = proportion(value * len(rows), len(rows), spread=spread)
    elif criterion.is_share and value in (0.0, 1.0) and not np.ptp(draws):
        # Where no sample changes a 0 or a 1, what a share of right rows has: such rows are no proof of certainty.
        interval = share_of_units(value, draws, units, spread=spread)
    else:
        interval = percentiles(value, draws, spread=spread).within(*criterion.bounds)
    return Score(criterion, interval, draws, rows, scores, units)


def _on_samples(
    criterion: Criterion,
    scores: np.ndarray,
    truth: np.ndarray,
    thresholds: Sequence[float] | None,
    label_names: Sequence[str],
) -> Callable[[Array], Array]:
    """The metric of predictions on samples; what each sentence adds to it is counted once for all of them."""
    if not criterion.task.of_words:
        return partial(criterion.at, scores, truth, thresholds=thresholds)
    sums = SentenceSums.of(scores, truth, label_names)
    return lambda counts: sums.at(counts)[criterion.name]


# Numbers that are drawn for intervals at most: where rows are many, fewer samples tell as much.
_MOST_DRAWN = 40_000_000
_FEWEST_RESAMPLES = 200
_SHARES_OF_ROWS = ("accuracy", "subset_accuracy")
# Of fewer rows, or groups, an interval is wide, and itself not sure.
FEW_UNITS = 30


@dataclass(frozen=True)
class Intervals:
    """How sure the metrics of some predictions are.

    Attributes:
        of: by the metric's name, of those that are one number and defined.
        units: how many independent rows, or groups, there are.
        grouped: whether groups were drawn.
        samples: bootstrap samples that they are made of.
    """

    of: dict[str, Interval]
    units: int
    grouped: bool
    samples: int

    def as_json(self) -> dict[str, Any]:
        """What ``metrics.json`` has."""
        return {
            "level": LEVEL,
            "drawn": "groups" if self.grouped else "rows",
            "units": self.units,
            "samples": self.samples,
            "of": {name: [each.low, each.high] for name, each in self.of.items()},
        }


def intervals_of(
    task: Task,
    scores: np.ndarray,
    labels: np.ndarray,
    *,
    thresholds: Sequence[float] | np.ndarray | None = None,
    groups: np.ndarray | None = None,
    seed: int = 0,
    spread: float = 1.0,
    label_names: Sequence[str] = (),
) -> Intervals:
    """Intervals of all metrics that a run reports, by bootstrap over rows or groups.

    A share of right rows has Wilson's interval, which holds near 1 too, of groups with the effective number of rows;
    everything else has expanded percentiles. Of groups both spread at least as the jackknife says, because the
    bootstrap of few groups of unequal size does not spread far enough (Cameron & Miller, J. Human Resources 50, 2015,
    section VI).

    Args:
        task: what the labels are.
        scores: (n, C), as `hftl.tasks.Task.scores` gives them; or (r, n, C), of r models that are scored each for
            itself, of which the mean is what is reported.
        labels: (n,) class numbers, or (n, C).
        thresholds: of several labels, (C,) or (r, n, C); None for 0.5.
        groups: int64 (n,), the group of each row; groups are drawn whole. None where rows are independent.
        seed: of the samples.
        spread: as of `hftl.intervals.percentiles`.
        label_names: of tags, which say what an entity is; else not needed.
    """
    models = scores if scores.ndim == 3 else scores[None]
    rows = len(labels)
    units = units_of(rows, groups)
    # Labels and targets are gone through one by one, exclusive classes all at once.
    numbers = rows * len(models) if task.is_exclusive else models.size
    wanted = min(RESAMPLES, max(_FEWEST_RESAMPLES, _MOST_DRAWN // max(numbers, 1)))

    by_model = isinstance(thresholds, np.ndarray) and thresholds.ndim == 3
    cuts: Sequence[Any] = list(thresholds) if by_model and thresholds is not None else [thresholds] * len(models)

    def measured(counts: Array) -> dict[str, Array]:
        each = [resampled_metrics(task, one, labels, counts, cut) for one, cut in zip(models, cuts, strict=True)]
        return {name: np.mean([found[name] for found in each], axis=0) for name in each[0]}

    if task.of_words:
        measured = SentenceSums.of(scores, labels, label_names).at
    values = measured(np.ones((1, rows)))
    drawn = [measured(counts) for counts in resamples(rows, groups=groups, seed=seed, most=wanted)]
    without = [measured(counts) for counts in left_out(rows, groups=groups, seed=seed, most=min(wanted, LEFT_OUT))]
    found, grouped = {}, groups is not None or task.of_words
    for name, (value,) in values.items():
        draws, others = (np.concatenate([*(each[name] for each in some), np.zeros(0)]) for some in (drawn, without))
        draws, others = (each[np.isfinite(each)] for each in (draws, others))
        if not len(draws) or not np.isfinite(value):
            continue
        # The words of a sentence are a group.
        if name in _SHARES_OF_ROWS and not grouped:
            made = proportion(float(value) * units, units, spread=spread)
        else:
            made = _interval(name, float(value), draws, Jackknife.of(others, units), units, grouped, spread=spread)
        found[name] = made.within(*task.bounds(name))
    return Intervals(found, units, groups is not None, wanted)


def _interval(
    name: str, value: float, draws: Array, known: Jackknife, units: int, grouped: bool, *, spread: float
) -> Interval:
    """Of a share of right rows in groups, or of another score; see `intervals_of`."""
    deviation = float(np.std(draws))
    if grouped and deviation > 0:
        draws = value + (draws - value) * max(1.0, known.error / deviation)
    make = share_of_units if name in _SHARES_OF_ROWS else of_draws
    return make(value, draws, units, spread=spread, freedom=known.freedom)


def shares_of_right(right: Mapping[str, np.ndarray], groups: np.ndarray | None, *, seed: int) -> dict[str, Interval]:
    """By name, the share of rows that are right; of several models, or deals of folds, the mean share.

    Args:
        right: by name bool (n,) or (r, n).
        groups: int64 (n,), as of `intervals_of`.
        seed: of the samples of groups, which all are measured on.
    """
    rows = {name: np.atleast_2d(each).mean(0) for name, each in right.items()}
    if groups is None:
        return {name: proportion(float(each.sum()), len(each)) for name, each in rows.items()}
    samples = [
        [counts @ each / counts.sum(1) for each in rows.values()]
        for counts in resamples(len(groups), groups=groups, seed=seed)
    ]
    units = len(np.unique(groups))
    return {
        name: share_of_units(float(each.mean()), np.concatenate(draws), units)
        for (name, each), draws in zip(rows.items(), zip(*samples, strict=True), strict=True)
    }


def answered_scores(
    scores: np.ndarray, labels: np.ndarray, abstain_below: float, *, groups: np.ndarray | None = None, seed: int = 0
) -> dict[str, Interval | None]:
    """What is left where a model abstains: the share of rows that it answers, and how many of these are right.

    Intervals are Wilson's, of groups with the effective number of rows; that of the accuracy is of as many rows as are
    answered.

    Args:
        scores: (n, C) probabilities of one label a row.
        labels: (n,) class numbers.
        abstain_below: rows whose highest probability is less are not answered.
        groups: int64 (n,), as of `intervals_of`.
        seed: of the samples of groups.

    Returns:
        ``accuracy_answered``, None where nothing is answered, and ``coverage``.
    """
    # Of one width with the threshold, as a prediction compares them.
    answered = scores.max(1).astype(np.float64) >= abstain_below
    right = answered & (scores.argmax(1) == labels)
    rows, said, hits = len(labels), int(answered.sum()), int(right.sum())
    if groups is None:
        return {
            "accuracy_answered": proportion(hits, said) if said else None,
            "coverage": proportion(said, rows),
        }
    parts = [
        np.stack([counts @ each.astype(np.float64) for each in (right, answered)] + [counts.sum(1)])
        for counts in resamples(rows, groups=groups, seed=seed)
    ]
    of_right, of_answered, of_all = np.concatenate(parts, axis=1)
    defined = of_answered > 0
    accuracy = None
    if said:
        draws, units = of_right[defined] / of_answered[defined], len(np.unique(groups[answered]))
        accuracy = share_of_units(hits / said, draws, units)
    return {
        "accuracy_answered": accuracy,
        "coverage": share_of_units(said / rows, of_answered / of_all, len(np.unique(groups))),
    }


def better_by(one: Score, other: Score, *, spread: float = 1.0) -> Difference:
    """How much better one score is than another of the same rows: above 0 where it is, whichever way the metric runs.

    Its p is no less than chance gives where the two call few rows differently; see `at_least_by_chance`.

    Args:
        one: the one.
        other: the other.
        spread: as of `hftl.intervals.difference`.
    """
    sign = one.criterion.sign
    value = sign * (one.interval.value - other.interval.value)
    gain = difference(value, sign * (one.draws - other.draws), one.units, spread=spread)
    if one.criterion.task.is_exclusive and not one.criterion.needs_probabilities:
        return at_least_by_chance(gain, int((one.scores.argmax(1) != other.scores.argmax(1)).sum()))
    return gain


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
