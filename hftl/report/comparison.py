"""`compare`: finished runs side by side, from their folders alone: scores, differences, changes, cost, rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hftl.criterion import Criterion, as_logits
from hftl.errors import UserError
from hftl.intervals import (
    LEVEL,
    SPREAD_OF_HEADS,
    Array,
    Difference,
    Interval,
    at_least_by_chance,
    difference,
    holm,
    resamples,
    units_of,
)
from hftl.report.alike import OpenedRun, other_data, refuse_other_labels, refuse_other_tasks, rows_in_common
from hftl.report.changes import Change, changes_between
from hftl.report.numbers import Predictions, said
from hftl.report.spans import said_entities
from hftl.runs.record import Metrics
from hftl.scored import Score, better_by, each_output, scored, telling_rows
from hftl.scout.answer import Answer
from hftl.tagging import Span
from hftl.tasks import Task

# Rows of disagreement that are kept, those first on which runs disagree most.
MOST_ROWS = 50
# What a run reports and its predictions give may differ by the rounding of scores to float32.
ROUNDING = 1e-4


@dataclass(frozen=True)
class Cost:
    """What a run took.

    Attributes:
        seconds: of ``extract``, ``train`` and ``total``.
        trained_parameters: how many numbers were trained; None in runs of a release that did not say.
        computed: rows whose features the run computed; what others had computed before cost it nothing.
        reused: rows whose features were there already.
    """

    seconds: dict[str, float]
    trained_parameters: int | None
    computed: int
    reused: int


@dataclass(frozen=True)
class ComparedRun:
    """One run beside the first.

    Attributes:
        folder: where it is.
        recipe: the recipe's name.
        backbone: the backbone's name.
        method: ``head``, ``partial``, ``lora`` or ``full``.
        score: the metric on the rows that are compared.
        against_first: how much better it is than the first run on the same rows, above 0 where it is; p adjusted for
            all that are compared with it (Holm); None for the first.
        verdict: ``better``, ``worse``, or ``the same within noise``; empty for the first.
        only_it: rows that it gets right, sentences with all their entities, and the first run does not; None where a
            row is not right or wrong.
        only_first: rows that the first run gets right and it does not.
        reported: metrics on all of its own test rows, as it reported them.
        cost: what it took.
    """

    folder: str
    recipe: str
    backbone: str
    method: str
    score: Interval
    against_first: Difference | None
    verdict: str
    only_it: int | None
    only_first: int | None
    reported: dict[str, float]
    cost: Cost


@dataclass(frozen=True)
class ComparedOutput:
    """One class, label, target or type of entity.

    Attributes:
        name: its name.
        rows: compared rows of the class, or with the label; all rows for a target; the entities of a type.
        scores: of each run: F1 of a class or type; the task's metric of a label or a target.
        against_first: of each run but the first; p adjusted for all outputs and runs.
    """

    name: str
    rows: int
    scores: list[float]
    against_first: list[Difference]


@dataclass(frozen=True)
class Disagreement:
    """A row for which the runs predict different things.

    Attributes:
        row: its name.
        label: what is true, for a person: a name, several, numbers, or entities by the numbers of their words.
        predictions: of each run, likewise.
        sure: the score of each prediction, where a row has one label.
        distance: how far apart the runs are: for classes and labels the mean difference of a score from all runs' mean,
            summed over classes; for targets in standard deviations of the labels.
    """

    row: str
    label: Any
    predictions: list[Any]
    sure: list[float]
    distance: float


@dataclass(frozen=True)
class Comparison(Answer):
    """Runs side by side.

    Attributes:
        task: what the labels are.
        metric: the one that chose in the first run.
        rows: test rows that all runs predicted, on which they are compared.
        runs: in the order in which they were given.
        changes: fields that are not the same in all of them.
        outputs: classes, labels, targets or types of entities, the one that differs most first; none where there is
            only one.
        disagreements: rows with different predictions, at most 50, the greatest disagreement first.
        disagreeing: how many there are; for a regression all rows.
        notes: what a person should know before the numbers are believed.
    """

    task: Task
    metric: str
    rows: int
    runs: list[ComparedRun]
    changes: list[Change]
    outputs: list[ComparedOutput]
    disagreements: list[Disagreement]
    disagreeing: int
    notes: list[str]

    @property
    def unit(self) -> str:
        """What a row is."""
        return "sentence" if self.task.of_words else "row"


def compare(runs: Sequence[str | os.PathLike[str]], *, seed: int = 0) -> Comparison:
    """Compare finished runs of one task with the first of them, on the test rows that all of them predicted.

    Rows are matched by name. Intervals and differences come from a paired bootstrap over rows, adjusted for several
    runs by Holm's method; they say what other test rows would change, and nothing of what another seed of training
    would.

    Args:
        runs: folders of two or more runs.
        seed: of the bootstrap samples.

    Raises:
        UserError: a folder holds no finished run; or the runs cannot be compared, because their tasks, their classes or
            the labels of their test rows differ, or because no row was tested by all.
        HftlError: a folder is damaged.
    """
    if len(runs) < 2:
        raise UserError("one run has nothing to be compared with: give two or more")
    opened = [OpenedRun.of(Path(run).expanduser()) for run in runs]
    refuse_other_tasks(opened)
    places, notes = rows_in_common(opened)
    together = [run.at(place, opened[0]) for run, place in zip(opened, places, strict=True)]
    first = together[0]
    task = opened[0].record.data.task
    refuse_other_labels(opened, together)
    every = np.arange(len(first))
    # As the runs' own intervals have it: folds score what is then trained on all rows.
    spread = SPREAD_OF_HEADS if any(run.metrics.is_by_folds for run in opened) else 1.0
    criterion, said_of_metric = _criterion(opened)
    notes += said_of_metric
    scores = [
        scored(
            criterion,
            rows.labels,
            every,
            _as_judged(criterion, rows),
            seed=seed,
            spread=spread,
            groups=first.groups,
            label_names=first.names,
            thresholds=rows.thresholds,
        )
        for rows in together
    ]
    gains = [
        _ahead(task, (rows, score), (first, scores[0]), spread)
        for rows, score in zip(together[1:], scores[1:], strict=True)
    ]
    adjusted = [replace(gain, p=p) for gain, p in zip(gains, holm([gain.p for gain in gains]), strict=True)]
    compared = [
        _beside_first(run, rows, score, gain, first)
        for run, rows, score, gain in zip(opened, together, scores, [None, *adjusted], strict=True)
    ]
    notes += other_data(opened)
    notes += _roundings(opened, compared, criterion.name, len(first))
    disagreements, disagreeing = _most_apart(task, together)
    return Comparison(
        task,
        criterion.name,
        len(first),
        compared,
        changes_between([run.record for run in opened]),
        _each_gain(task, opened[0].record.data.label_names, together, seed, spread),
        disagreements,
        disagreeing,
        notes,
    )


def _criterion(opened: Sequence[OpenedRun]) -> tuple[Criterion, list[str]]:
    """The metric that the runs are compared by, and what is to be said of it."""
    chose = [run.record.criterion for run in opened]
    first, own = chose[0], Criterion.of_task(chose[0].task)
    if not first.is_own:
        return own, [
            f"{first.name}, which chose in run 1, is a function of its recipe: runs are compared by {own.name}"
        ]
    others = [place for place, each in enumerate(chose, 1) if each.name != first.name]
    return first, [f"run {place} was chosen by {chose[place - 1].name}, not by {first.name}" for place in others]


def _as_judged(criterion: Criterion, rows: Predictions) -> np.ndarray:
    """Scores as the metric wants them; those of a task's own metric as they are, for it only orders them."""
    return as_logits(criterion.task, rows.scores) if criterion.is_stated else rows.scores


# ── scores ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _beside_first(
    run: OpenedRun, rows: Predictions, score: Score, gain: Difference | None, first: Predictions
) -> ComparedRun:
    record, metrics = run.record, run.metrics
    only_it = only_first = None
    right, first_right = rows.right, first.right
    if gain is not None and right is not None and first_right is not None:
        only_it, only_first = int((right & ~first_right).sum()), int((first_right & ~right).sum())
    return ComparedRun(
        str(run.folder.path),
        record.name,
        record.backbone.name,
        str(record.method["name"]),
        score.interval,
        gain,
        _verdict_on(gain),
        only_it,
        only_first,
        {name: value for name, value in metrics.eval.items() if isinstance(value, float)},
        Cost(
            metrics.seconds,
            _trained_parameters(metrics),
            int(metrics.features.get("computed", 0)),
            int(metrics.features.get("reused", 0)),
        ),
    )


def _ahead(task: Task, one: tuple[Predictions, Score], first: tuple[Predictions, Score], spread: float) -> Difference:
    (rows, score), (first_rows, first_score) = one, first
    gain = better_by(score, first_score, spread=spread)
    if task.of_words:
        differ = _entities_differ(rows, first_rows).any(1)
    elif rows.right is not None:
        differ = rows.right != first_rows.right
    else:
        differ = (rows.scores != first_rows.scores).any(1)
    return at_least_by_chance(gain, int(differ.sum()))


def _verdict_on(gain: Difference | None) -> str:
    if gain is None:
        return ""
    if gain.p >= 1 - LEVEL:
        return "the same within noise"
    return "better" if gain.value > 0 else "worse"


def _trained_parameters(metrics: Metrics) -> int | None:
    counted = metrics.training.get("parameters")
    counted = counted.get("trained") if isinstance(counted, dict) else counted
    return counted if isinstance(counted, int) else None


def _roundings(opened: Sequence[OpenedRun], compared: Sequence[ComparedRun], metric: str, rows: int) -> list[str]:
    """Where the file of predictions does not give what the run reported."""
    return [
        f"{run.folder} reported {metric} {run.reported[metric]:.4f}, and its predictions give {run.score.value:.4f}"
        for run, read in zip(compared, opened, strict=True)
        if len(read.tested) == rows
        and metric in run.reported
        and abs(run.reported[metric] - run.score.value) > ROUNDING
    ]


def _each_gain(
    task: Task, names: Sequence[str], together: Sequence[Predictions], seed: int, spread: float
) -> list[ComparedOutput]:
    """Each class, label, target or type that occurs, the one that differs most from the first run first."""
    first = together[0]
    labels = first.labels
    if task.of_words:
        names = first.tagging.types
    if len(names) < 2:
        return []
    measured = _types_measured(together) if task.of_words else _outputs_measured(task, together)
    values = measured(np.ones((1, len(labels))))[:, 0]
    draws = np.concatenate(
        [measured(times) for times in resamples(len(labels), groups=first.groups, seed=seed)], axis=1
    )
    units = units_of(len(labels), first.groups)
    occurring = [k for k in range(len(names)) if np.isfinite(values[:, k]).all()]
    telling = [
        _entities_differ(rows, first).sum(0).tolist()
        if task.of_words
        else telling_rows(task, rows.scores, first.scores, labels).tolist()
        for rows in together[1:]
    ]
    gains: list[list[Difference]] = []
    for k in occurring:
        away = values[1:, k] - values[0, k]
        drawn = draws[1:, :, k] - draws[:1, :, k]
        # A sample without a row of the class says nothing of it.
        drawn = np.where(np.isfinite(drawn), drawn, away[:, None])
        found = [difference(float(value), each, units, spread=spread) for value, each in zip(away, drawn, strict=True)]
        gains.append([at_least_by_chance(gain, rows[k]) for gain, rows in zip(found, telling, strict=True)])
    adjusted = iter(holm([gain.p for of_output in gains for gain in of_output]))
    counts = _entities_of_each(first) if task.of_words else _rows_of_each(task, labels, len(names))
    outputs = [
        ComparedOutput(
            names[k], int(counts[k]), values[:, k].tolist(), [replace(gain, p=next(adjusted)) for gain in of_output]
        )
        for k, of_output in zip(occurring, gains, strict=True)
    ]
    return sorted(outputs, key=lambda each: -max(abs(gain.value) for gain in each.against_first))


def _outputs_measured(task: Task, together: Sequence[Predictions]) -> Callable[[Array], Array]:
    return lambda times: np.stack([each_output(task, rows.scores, rows.labels, times) for rows in together])


def _types_measured(together: Sequence[Predictions]) -> Callable[[Array], Array]:
    """F1 of each type of entity on samples: (runs, b, types); NaN where a sample has no entity of a type."""
    found = [rows.entity_counts for rows in together]

    def measured(times: Array) -> Array:
        each = []
        for counts in found:
            hits, said, there = np.moveaxis(np.tensordot(times, counts, axes=1), -1, 0)
            each.append(np.where(there > 0, 2 * hits / np.maximum(said + there, 1), np.nan))
        return np.stack(each)

    return measured


def _entities_differ(one: Predictions, other: Predictions) -> np.ndarray:
    """In which sentences two runs do not find, or claim, as many entities of each type: bool (n, types)."""
    differ: np.ndarray = (one.entity_counts != other.entity_counts).any(2)
    return differ


def _entities_of_each(rows: Predictions) -> np.ndarray:
    """How many entities of each type there are: int64 (types,)."""
    there: np.ndarray = rows.entity_counts[:, :, 2].sum(0).astype(np.int64)
    return there


def _rows_of_each(task: Task, labels: np.ndarray, outputs: int) -> np.ndarray:
    """How many rows are of each class or have each label; all of them for a target: (C,)."""
    if task.is_exclusive:
        return np.bincount(labels, minlength=outputs)
    counts: np.ndarray = labels.sum(0) if task.has_classes else np.full(outputs, len(labels))
    return counts


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _most_apart(task: Task, together: Sequence[Predictions]) -> tuple[list[Disagreement], int]:
    first = together[0]
    scores = np.stack([rows.scores for rows in together]).astype(np.float64)
    apart = np.abs(scores - scores.mean(0)).mean(0)
    if not task.has_classes:
        apart = apart / np.maximum(first.labels.std(0), 1e-12)
    distance = apart.sum(1)
    if task.of_words:
        distance = np.array([each.sum() for each in task.by_row(distance, first.labels)])
        spans = [_predicted_spans(rows) for rows in together]
        other = np.flatnonzero([any(of_run[row] != spans[0][row] for of_run in spans) for row in range(len(first))])
    else:
        predicted = np.stack([rows.predicted for rows in together]).reshape(len(together), len(first), -1)
        other = np.flatnonzero((predicted != predicted[0]).any((0, 2)))
    worst = other[np.argsort(-distance[other], kind="stable")][:MOST_ROWS].tolist()
    kept = [
        Disagreement(
            first.rows[row],
            *_said_of(together, row),
            [float(rows.scores[row].max()) for rows in together] if task.is_exclusive else [],
            float(distance[row]),
        )
        for row in worst
    ]
    return kept, len(other)


def _said_of(together: Sequence[Predictions], row: int) -> tuple[Any, list[Any]]:
    """The label of a row and what each run predicted, for a person."""
    first = together[0]
    if not first.task.of_words:
        return said(first, row)[0], [said(rows, row)[1] for rows in together]
    tagging = first.tagging
    every = [first.labels[row], *(rows.predicted[row] for rows in together)]
    label, *predictions = [said_entities(tagging.spans(tags.tolist())) for tags in every]
    return label, predictions


def _predicted_spans(rows: Predictions) -> list[list[Span]]:
    """The predicted entities of each sentence."""
    tagging = rows.tagging
    return [list(tagging.spans(tags.tolist())) for tags in rows.predicted]
