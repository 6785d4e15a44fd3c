"""What a page tells of predictions: scores with intervals, confusions, calibration, the rows that are worst."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from hftl.data.sentences import tag_numbers
from hftl.errors import HftlError
from hftl.heads.calibration import reliability
from hftl.intervals import Interval, proportion
from hftl.metrics.entities import entity_counts
from hftl.scored import Intervals, intervals_of
from hftl.tagging import Tagging
from hftl.tasks import Task
from hftl.wording import one_line

# Of more classes no whole matrix is made; the most confused ones are shown all the same.
MOST_CLASSES = 256
# Points of a curve that are drawn.
MOST_STEPS = 80


@dataclass(frozen=True)
class Predictions:
    """What a model said of the rows of a test split.

    Attributes:
        task: what the labels are.
        names: of the C classes or targets.
        rows: the rows' names.
        labels: int64 (n,) class numbers; float32 (n, C) of 0 and 1, or targets; tags of sentences.
        scores: float32 (n, C), or (words, C), as `hftl.tasks.Task.scores` gives them.
        thresholds: of several labels, above which each is predicted, (C,), or float64 (n, C) where rows were decided by
            different models; None for 0.5.
        groups: int64 (n,), the group of each row; None where rows are independent.
    """

    task: Task
    names: list[str]
    rows: list[str]
    labels: np.ndarray
    scores: np.ndarray
    thresholds: Any = None
    groups: np.ndarray | None = None

    @classmethod
    def read(
        cls, file: Path, task: Task, names: list[str], thresholds: list[float] | None, *, by_folds: bool = False
    ) -> Predictions:
        """Read ``predictions.parquet``.

        Args:
            file: the file.
            task: what the labels are.
            names: of the C classes or targets.
            thresholds: the exported model's.
            by_folds: whether models of folds decided, each by thresholds of its own, so that only the file says how.

        Raises:
            HftlError: the file is missing or damaged.
        """
        try:
            table = pq.read_table(file)
            column = table.column("scores" if task.has_classes else "prediction")
            # Of sentences a list for each word.
            scores = _matrix(pc.list_flatten(column) if task.of_words else column, len(names))
            given = table.column("label").to_pylist()
            read: Callable[[], np.ndarray] = task.case(
                single_label=lambda: _class_numbers(given, names, scores),
                multi_label=lambda: _indicators(given, names, scores),
                regression=lambda: np.array(given, dtype=np.float32).reshape(scores.shape),
                token_labels=lambda: _tags(given, names, scores),
            )
            labels = read()
            rows = table.column("row").to_pylist()
            decided: Any = thresholds
            if by_folds and thresholds is not None:
                # A probability is above 0 where it was above a threshold, and never above 1.
                decided = 1.0 - _indicators(table.column("prediction").to_pylist(), names, scores)
            named = table.column("group").to_pylist() if "group" in table.column_names else None
            groups = None if named is None else np.unique(named, return_inverse=True)[1]
        except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
            raise HftlError(f"{file} cannot be read ({one_line(error, 100)}); run it again") from error
        return cls(task, names, rows, labels, scores, decided, groups)

    def __len__(self) -> int:
        return len(self.rows)

    def scores_of(self, rows: np.ndarray) -> np.ndarray:
        """Scores of some rows, int64 (m,): (m, C); of sentences those of all their words, (words, C)."""
        of_rows = self.task.by_row(self.scores, self.labels)
        return np.concatenate([of_rows[row] for row in rows.tolist()]) if self.task.of_words else self.scores[rows]

    @cached_property
    def tagging(self) -> Tagging:
        """What the tags of sentences say."""
        return Tagging(tuple(self.names))

    @cached_property
    def entity_counts(self) -> np.ndarray:
        """Entities of each type found right, predicted and there, in each sentence: float64 (n, types, 3)."""
        return entity_counts(self.tagging, self.labels, self.predicted)

    @cached_property
    def right(self) -> np.ndarray | None:
        """Whether each row is right, bool (n,): of sentences all their entities; None where that is no question."""
        if self.task.of_words:
            spans, pairs = self.tagging.spans, zip(self.labels, self.predicted, strict=True)
            return np.array([list(spans(a.tolist())) == list(spans(b.tolist())) for a, b in pairs])
        return self.predicted == self.labels if self.task.is_exclusive else None

    @cached_property
    def predicted(self) -> Any:
        """What is predicted, as `labels` are given."""
        cuts = 0.5 if self.thresholds is None else np.asarray(self.thresholds)
        return self.task.case(
            single_label=self.scores.argmax(1),
            multi_label=self.scores > cuts,
            regression=self.scores,
            token_labels=self.task.by_row(self.scores.argmax(1), self.labels),
        )


def _matrix(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """A column of lists of ``width`` finite numbers as float32 (n, width)."""
    lists = column.combine_chunks()
    if not (np.asarray(lists.value_lengths()) == width).all():
        raise ValueError(f"a row has not {width} numbers")
    # A copy: what Arrow holds cannot be written to, which torch warns of.
    flat = np.array(lists.flatten(), dtype=np.float32)
    if not np.isfinite(flat).all():
        raise ValueError("a score is no finite number")
    return flat.reshape(-1, width)


def _class_numbers(labels: list[str], names: list[str], scores: np.ndarray) -> np.ndarray:
    number = {name: k for k, name in reversed(list(enumerate(names)))}
    read = np.array([number[label] for label in labels], dtype=np.int64)
    # Of classes that share a name (ImageNet has two cranes) the file does not say which: the one that is predicted.
    predicted = scores.argmax(1)
    same = np.array([names[k] == label for k, label in zip(predicted.tolist(), labels, strict=True)], dtype=bool)
    return np.where(same, predicted, read)


def _tags(labels: list[list[str]], names: list[str], scores: np.ndarray) -> np.ndarray:
    number = {name: k for k, name in enumerate(names)}
    read = tag_numbers([[number[label] for label in given] for given in labels])
    if sum(map(len, read)) != len(scores):
        raise ValueError("there are not as many tags as scores")
    return read


def _indicators(labels: list[list[str]], names: list[str], scores: np.ndarray) -> np.ndarray:
    number = {name: k for k, name in enumerate(names)}
    read = np.zeros(scores.shape, dtype=np.float32)
    for row, given in enumerate(labels):
        read[row, [number[label] for label in given]] = 1
    return read


# ── scores ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def intervals(predictions: Predictions) -> Intervals:
    """Bootstrap intervals over the rows, or groups, of every metric that a run reports."""
    return intervals_of(
        predictions.task,
        predictions.scores,
        predictions.labels,
        thresholds=predictions.thresholds,
        groups=predictions.groups,
        label_names=predictions.names,
    )


# ── confusions ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Confusion:
    """Rows of one class that were taken for another."""

    label: int
    predicted: int
    count: int


def confusions(predictions: Predictions) -> list[Confusion]:
    """Every pair of different classes that occurs, the most frequent first; exclusive classes only."""
    wrong = predictions.predicted != predictions.labels
    pairs = np.stack([predictions.labels[wrong], predictions.predicted[wrong]], axis=1)
    distinct, counts = np.unique(pairs, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [Confusion(int(a), int(b), int(n)) for (a, b), n in zip(distinct[order], counts[order], strict=True)]


def confusion_matrix(predictions: Predictions, classes: Sequence[int]) -> np.ndarray:
    """Counts int64 (k, k) of rows of some classes: label by prediction."""
    place = np.full(len(predictions.names), -1)
    place[list(classes)] = np.arange(len(classes))
    label, predicted = place[predictions.labels], place[predictions.predicted]
    inside = (label >= 0) & (predicted >= 0)
    matrix = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(matrix, (label[inside], predicted[inside]), 1)
    return matrix


def clustered(matrix: np.ndarray) -> list[int]:
    """An order of the classes in which those that are confused stand together.

    Average linkage of ``1 -`` the share of two classes' rows that are taken for one another, leaves in optimal order
    (Bar-Joseph, Gifford & Jaakkola, Bioinformatics 17, 2001).
    """
    from scipy.cluster.hierarchy import leaves_list, linkage  # type: ignore[import-untyped]
    from scipy.spatial.distance import squareform  # type: ignore[import-untyped]

    if len(matrix) < 3:
        return list(range(len(matrix)))
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    alike = share + share.T
    np.fill_diagonal(alike, 2.0)
    tree = linkage(squareform(2.0 - alike, checks=False), "average", optimal_ordering=True)
    order: list[int] = leaves_list(tree).tolist()
    return order


def most_confused(found: Sequence[Confusion], most: int) -> list[int]:
    """The classes of the most frequent confusions, at most so many."""
    chosen: dict[int, None] = {}
    for each in found:
        pair = dict.fromkeys((each.label, each.predicted))
        if len(chosen | pair) > most:
            break
        chosen |= pair
    return list(chosen)


# ── calibration ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Bin:
    """Predictions of about one confidence.

    Attributes:
        count: how many there are.
        confidence: their mean confidence.
        right: the share of them that is right, with Wilson's 95 % interval.
    """

    count: int
    confidence: float
    right: Interval


def calibration(predictions: Predictions) -> tuple[float, list[Bin]]:
    """The expected calibration error on the test split and what it is made of; see `hftl.heads.calibration`.

    Of exclusive classes the confidence is the predicted class's score; of several labels every label of every row is a
    prediction of its own.
    """
    if predictions.task.is_exclusive:
        confidence, right = predictions.scores.max(1), predictions.predicted == predictions.labels
    else:
        confidence, right = predictions.scores.ravel(), predictions.labels.ravel() > 0
    error, table = reliability(torch.from_numpy(confidence), torch.from_numpy(right))
    bins = [
        Bin(int(row["rows"]), row["confidence"], proportion(round(row["accuracy"] * row["rows"]), int(row["rows"])))
        for row in table
    ]
    return error, bins


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def losses(predictions: Predictions) -> np.ndarray:
    """How bad each prediction is, float64 (n,): the logarithmic loss, of several labels the sum over them; of targets
    the mean square of the error in units of the labels' standard deviation.
    """
    scores, labels = predictions.scores.astype(np.float64), predictions.labels
    least = float(np.finfo(np.float32).tiny)
    if not predictions.task.has_classes:
        spread = labels.std(0, dtype=np.float64)
        squares: np.ndarray = (((scores - labels) / np.where(spread > 0, spread, 1.0)) ** 2).mean(1)
        return squares
    if predictions.task.is_exclusive:
        own = scores[np.arange(len(labels)), labels]
        loss: np.ndarray = -np.log(np.maximum(own, least))
        return loss
    summed: np.ndarray = -np.log(np.maximum(np.where(labels > 0, scores, 1 - scores), least)).sum(1)
    return summed


def worst_rows(predictions: Predictions, most: int) -> list[int]:
    """The rows that are wrong, the worst first; of a regression the rows that are furthest off."""
    bad = losses(predictions)
    if predictions.task.has_classes:
        differs = predictions.predicted != predictions.labels
        wrong = differs if differs.ndim == 1 else differs.any(1)
        candidates = np.flatnonzero(wrong)
    else:
        candidates = np.arange(len(bad))
    order = candidates[np.argsort(-bad[candidates], kind="stable")]
    found: list[int] = order[:most].tolist()
    return found


def said(predictions: Predictions, row: int) -> tuple[Any, Any]:
    """A row's label and prediction: names, lists of names, or lists of numbers."""
    one = slice(row, row + 1)
    task, names, cuts = predictions.task, predictions.names, predictions.thresholds
    if np.ndim(cuts) == 2:
        cuts = cuts[one]
    return task.truth(predictions.labels[one], names)[0], task.predicted(predictions.scores[one], names, cuts)[0]


# ── several labels ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class LabelCurve:
    """Precision by recall of one label.

    Attributes:
        label: its name.
        recall: falling from 1 to 0.
        precision: at each.
        average_precision: the area under the steps.
        at: recall and precision at the label's threshold.
    """

    label: str
    recall: np.ndarray
    precision: np.ndarray
    average_precision: float
    at: tuple[float, float]


def curves(predictions: Predictions, most: int) -> list[LabelCurve]:
    """Of labels that have test rows, those with the least average precision, the least first."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    truth, said_ = predictions.labels > 0, predictions.predicted
    found = []
    for k in np.flatnonzero(truth.any(0)).tolist():
        hits = int((truth[:, k] & said_[:, k]).sum())
        at = hits / int(truth[:, k].sum()), hits / max(int(said_[:, k].sum()), 1)
        precision, recall, _ = precision_recall_curve(truth[:, k], predictions.scores[:, k])
        kept = np.unique(np.linspace(0, len(recall) - 1, min(len(recall), MOST_STEPS)).astype(int))
        average = float(average_precision_score(truth[:, k], predictions.scores[:, k]))
        found.append(LabelCurve(predictions.names[k], recall[kept], precision[kept], average, at))
    return sorted(found, key=lambda curve: curve.average_precision)[:most]
