"""All that a run reports about its predictions, as JSON.

Memory beside the predictions is bounded: with thousands of classes a float64 copy of the logits would weigh more than
everything else in an evaluation, so rows are looked at in blocks and labels one by one.

The metrics' own classes are brought where they are used: evaluate and scikit-learn take a second to import, and who
predicts needs neither.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from hftl.errors import ConvergenceError
from hftl.metrics.values import Array, Result, to_plain
from hftl.tasks import Task

MOST_CLASSES_IN_CONFUSION = 256
"""A table of more classes is left out: it grows with the square, and nobody reads it."""
_BLOCK_NUMBERS = 1 << 20


def evaluate_predictions(task: Task | str, logits: Array, labels: Array, label_names: Sequence[str]) -> dict[str, Any]:
    """Compare predictions with labels.

    Args:
        task: ``single_label``, ``multi_label`` or ``regression``.
        logits: float ``(n, C)``: what the model returns; for a regression the predicted targets.
        labels: as `hftl.data.Split` has them: ``(n,)`` class numbers, or ``(n, C)``.
        label_names: names of the C classes or targets.

    Returns:
        Values that JSON knows; a number that is undefined (a correlation with a constant) is ``None``.

        - single_label: ``accuracy``, ``f1_macro``, ``f1_weighted``, ``log_loss`` (natural logarithm, mean over rows),
          ``per_class`` (precision, recall, F1, support) and ``confusion`` (row: label, column: prediction; up to 256
          classes).
        - multi_label, a label being predicted where its logit is above 0: ``subset_accuracy``, ``f1_micro``,
          ``f1_macro``, ``map``, ``log_loss`` (mean over rows and labels) and ``per_class``.
        - regression: ``mse``, ``rmse``, ``mae``, ``r2``, ``pearson``, ``spearman``, and with several targets
          ``per_target``.

    Raises:
        ConvergenceError: a prediction is NaN or infinite.
        ValueError: there are no rows.
    """
    if len(logits) == 0:
        raise ValueError("there are no predictions to evaluate")
    logits = np.asarray(logits)
    _refuse_non_finite(logits)
    report = Task(task).case(single_label=_single_label, multi_label=_multi_label, regression=_regression)
    result: dict[str, Any] = to_plain(report(logits, np.asarray(labels), list(label_names)))
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


def _multi_label(logits: Array, labels: Array, label_names: list[str]) -> Result:
    from hftl.metrics.classification import MeanAveragePrecision

    right, total = 0, 0.0
    hits, said, there = (np.zeros(len(label_names), np.int64) for _ in range(3))
    for rows in _blocks_of_rows(logits):
        scores, truth = logits[rows].astype(np.float64), labels[rows] > 0
        positive = scores > 0
        right += int((positive == truth).all(axis=1).sum())
        hits += (positive & truth).sum(axis=0)
        said += positive.sum(axis=0)
        there += truth.sum(axis=0)
        # -log sigmoid(x) where the label is 1, -log sigmoid(-x) where it is 0; logaddexp does not overflow.
        total += float(np.logaddexp(0, np.where(truth, -scores, scores)).sum())
    f1 = _ratio(2 * hits, said + there)
    columns = (_ratio(hits, said), _ratio(hits, there), f1, there)
    return {
        "subset_accuracy": right / len(labels),
        "f1_micro": float(_ratio(2 * hits.sum(), said.sum() + there.sum())),
        "f1_macro": float(f1.mean()),
        **MeanAveragePrecision().of(logits, labels),
        "log_loss": total / labels.size,
        "per_class": {
            name: dict(zip(("precision", "recall", "f1", "support"), (column[k] for column in columns), strict=True))
            for k, name in enumerate(_keys(label_names))
        },
    }


def _keys(names: list[str]) -> list[str]:
    """The names as keys: of outputs that share one (ImageNet has two cranes), each says its number too."""
    count = Counter(names)
    return [f"{name} ({k})" if count[name] > 1 else name for k, name in enumerate(names)]


def _ratio(part: Array | np.integer[Any], whole: Array | np.integer[Any]) -> Array:
    """A share that is 0 where nothing could be counted, as scikit-learn's ``zero_division=0`` has it."""
    return np.where(whole > 0, part / np.maximum(whole, 1), 0.0)


def _regression(predicted: Array, expected: Array, target_names: list[str]) -> Result:
    from hftl.metrics.regression import RegressionScores

    predicted, expected = predicted.astype(np.float64), expected.astype(np.float64)
    result: Result = RegressionScores().of(predicted, expected)
    if len(target_names) > 1:
        result["per_target"] = {
            name: RegressionScores().of(predicted[:, k], expected[:, k]) for k, name in enumerate(_keys(target_names))
        }
    return result
