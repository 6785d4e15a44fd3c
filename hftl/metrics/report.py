"""All that a run reports about its predictions, as JSON.

Memory beside the predictions is bounded: with thousands of classes a float64 copy of the logits would weigh more than
everything else in an evaluation, so rows are looked at in blocks and labels one by one.

The metrics' own classes are brought where they are used: evaluate and scikit-learn take a second to import, and who
predicts needs neither.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from hftl.errors import ConvergenceError
from hftl.metrics.values import Array, Result, ratio, to_plain
from hftl.tasks import Task

MOST_CLASSES_IN_CONFUSION = 256
"""A table of more classes is left out: it grows with the square, and nobody reads it."""
_BLOCK_NUMBERS = 1 << 20


def evaluate_predictions(
    task: Task | str,
    logits: Array,
    labels: Array,
    label_names: Sequence[str],
    thresholds: Sequence[float] | Array | None = None,
) -> dict[str, Any]:
    """Compare predictions with labels.

    Args:
        task: ``single_label``, ``multi_label``, ``regression`` or ``token_labels``.
        logits: float ``(n, C)``: what the model returns; for a regression the predicted targets; for tokens those of
            all words, ``(words, C)``.
        labels: as `hftl.data.Split` has them: ``(n,)`` class numbers, ``(n, C)``, or tags of sentences.
        label_names: names of the C classes or targets.
        thresholds: of several labels, the probability of each above which it is predicted, (C,), or (n, C) where rows
            were decided by different models; None for 0.5.

    Returns:
        Values that JSON knows; a number that is undefined (a correlation with a constant) is ``None``.

        - single_label: ``accuracy``, ``f1_macro``, ``f1_weighted``, ``log_loss`` (natural logarithm, mean over rows),
          ``per_class`` (precision, recall, F1, support) and ``confusion`` (row: label, column: prediction; up to 256
          classes).
        - multi_label, a label being predicted where its probability is above its threshold: ``subset_accuracy``,
          ``f1_micro``, ``f1_macro``, ``map``, ``log_loss`` (mean over rows and labels) and ``per_class``. Where
          thresholds are given, ``per_class`` has each, and ``at_half`` the first three for a threshold of 0.5.
        - regression: ``mse``, ``rmse``, ``mae``, ``r2``, ``pearson``, ``spearman``, and with several targets
          ``per_target``.
        - token_labels: ``f1``, ``precision`` and ``recall`` of entities as seqeval counts them, ``f1_macro`` over their
          types, ``accuracy`` and ``log_loss`` of words, ``scheme`` and ``per_type`` (precision, recall, F1, support).

    Raises:
        ConvergenceError: a prediction is NaN or infinite.
        ValueError: there are no rows.
    """
    if len(logits) == 0:
        raise ValueError("there are no predictions to evaluate")
    logits = np.asarray(logits)
    _refuse_non_finite(logits)
    labels, names = np.asarray(labels), list(label_names)
    report: Callable[[], Result] = Task(task).case(
        single_label=lambda: _single_label(logits, labels, names),
        multi_label=lambda: _multi_label(logits, labels, names, thresholds),
        regression=lambda: _regression(logits, labels, names),
        token_labels=lambda: _token_labels(logits, labels, names),
    )
    result: dict[str, Any] = to_plain(report())
    return result


def _refuse_non_finite(logits: Array) -> None:
    # argmax takes NaN for the largest number: such a row would be counted as a prediction like any other.
    for rows in _blocks_of_rows(logits):
        bad = np.argwhere(~np.isfinite(logits[rows]))
        if len(bad):
            row, column = int(bad[0][0]) + rows.start, int(bad[0][1])
            raise ConvergenceError(
                f"predictions: row {row}, output {column} is {logits[row, column]}; the model's weights are damaged or "
                "its training diverged: train it again, with a lower learning rate or in float32"
            )


def _blocks_of_rows(logits: Array) -> Iterator[slice]:
    step = max(1, _BLOCK_NUMBERS // max(1, logits.shape[1]))
    for start in range(0, len(logits), step):
        yield slice(start, min(start + step, len(logits)))


def _single_label(logits: Array, labels: Array, label_names: list[str]) -> Result:
    from scipy.special import log_softmax  # type: ignore[import-untyped]
    from sklearn.metrics import confusion_matrix

    from hftl.metrics.classification import F1, Accuracy, PerClass

    predicted = logits.argmax(axis=1)
    total = 0.0
    for rows in _blocks_of_rows(logits):
        log_probabilities = log_softmax(logits[rows].astype(np.float64), axis=1)
        total -= log_probabilities[np.arange(len(log_probabilities)), labels[rows]].sum()
    result = {
        **Accuracy().of(predicted, labels),
        "f1_macro": F1().of(predicted, labels, average="macro")["f1"],
        "f1_weighted": F1().of(predicted, labels, average="weighted")["f1"],
        "log_loss": total / len(labels),
        "per_class": PerClass().of(predicted, labels, label_names=_keys(label_names)),
    }
    if len(label_names) <= MOST_CLASSES_IN_CONFUSION:
        result["confusion"] = confusion_matrix(labels, predicted, labels=np.arange(len(label_names)))
    return result


def _multi_label(
    logits: Array, labels: Array, label_names: list[str], thresholds: Sequence[float] | Array | None
) -> Result:
    from scipy.special import logit

    from hftl.metrics.classification import MeanAveragePrecision

    # Logits as they are: 0 is what a probability of 0.5 is, without rounding.
    cuts = np.zeros(len(label_names)) if thresholds is None else logit(np.asarray(thresholds, np.float64))
    total = 0.0
    decided, at_half = _Decisions(len(label_names)), _Decisions(len(label_names))
    for rows in _blocks_of_rows(logits):
        scores, truth = logits[rows].astype(np.float64), labels[rows] > 0
        decided.count(scores > (cuts if cuts.ndim == 1 else cuts[rows]), truth)
        at_half.count(scores > 0, truth)
        # -log sigmoid(x) where the label is 1, -log sigmoid(-x) where it is 0; logaddexp does not overflow.
        total += float(np.logaddexp(0, np.where(truth, -scores, scores)).sum())
    columns = decided.per_label()
    if thresholds is not None and cuts.ndim == 1:
        columns["threshold"] = np.asarray(thresholds)
    result = {
        **decided.scores(),
        **MeanAveragePrecision().of(logits, labels),
        "log_loss": total / labels.size,
        "per_class": {
            name: {column: values[k] for column, values in columns.items()} for k, name in enumerate(_keys(label_names))
        },
    }
    return result if thresholds is None else {**result, "at_half": at_half.scores()}


class _Decisions:
    """Counts of what was predicted of several labels, and what was true."""

    def __init__(self, labels: int) -> None:
        self.rows = self.right = 0
        self.hits, self.said, self.there = (np.zeros(labels, np.int64) for _ in range(3))

    def count(self, positive: Array, truth: Array) -> None:
        """Add rows (n, labels) of what was predicted and what is true."""
        self.rows += len(truth)
        self.right += int((positive == truth).all(axis=1).sum())
        self.hits += (positive & truth).sum(axis=0)
        self.said += positive.sum(axis=0)
        self.there += truth.sum(axis=0)

    @property
    def f1(self) -> Array:
        return ratio(2 * self.hits, self.said + self.there)

    def scores(self) -> Result:
        """One number each over all labels."""
        return {
            "subset_accuracy": self.right / self.rows,
            "f1_micro": float(ratio(2 * self.hits.sum(), self.said.sum() + self.there.sum())),
            "f1_macro": float(self.f1.mean()),
        }

    def per_label(self) -> dict[str, Array]:
        """(labels,) precision, recall, F1 and support."""
        precision, recall = ratio(self.hits, self.said), ratio(self.hits, self.there)
        return {"precision": precision, "recall": recall, "f1": self.f1, "support": self.there}


def _keys(names: list[str]) -> list[str]:
    """The names as keys: of outputs that share one (ImageNet has two cranes), each says its number too."""
    count = Counter(names)
    return [f"{name} ({k})" if count[name] > 1 else name for k, name in enumerate(names)]


def _token_labels(logits: Array, labels: Array, tag_names: list[str]) -> Result:
    from scipy.special import softmax

    from hftl.metrics.entities import entity_scores

    return entity_scores(softmax(logits.astype(np.float64), axis=1), labels, tag_names)


def _regression(predicted: Array, expected: Array, target_names: list[str]) -> Result:
    from hftl.metrics.regression import RegressionScores

    predicted, expected = predicted.astype(np.float64), expected.astype(np.float64)
    result: Result = RegressionScores().of(predicted, expected)
    if len(target_names) > 1:
        result["per_target"] = {
            name: RegressionScores().of(predicted[:, k], expected[:, k]) for k, name in enumerate(_keys(target_names))
        }
    return result
