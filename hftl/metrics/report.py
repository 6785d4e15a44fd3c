"""All that a run reports about its predictions, as JSON."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import log_softmax  # type: ignore[import-untyped]
from sklearn.metrics import confusion_matrix

from hftl.metrics.base import Array, Result, to_plain
from hftl.metrics.classification import F1, Accuracy, MeanAveragePrecision, PerClass
from hftl.metrics.regression import RegressionScores
from hftl.tasks import Task

MOST_CLASSES_IN_CONFUSION = 256
"""A table of more classes is left out: it grows with the square, and nobody reads it."""


def evaluate_predictions(task: Task | str, logits: Array, labels: Array, label_names: Sequence[str]) -> dict[str, Any]:
    """Compare predictions with labels.

    Args:
        task: ``single_label``, ``multi_label`` or ``regression``.
        logits: float ``(n, C)``: what the model returns; for a regression the predicted targets.
        labels: as `hftl.data.Split` has them: ``(n,)`` class numbers, or ``(n, C)``.
        label_names: names of the C classes or targets.

    Returns:
        Values that JSON knows; a number that is undefined (a correlation with a constant) is ``None``.
        single_label: ``accuracy``, ``f1_macro``, ``f1_weighted``, ``log_loss`` (natural logarithm, mean over
            rows), ``per_class`` (precision,
        recall, F1, support) and ``confusion`` (row: label, column: prediction; up to 256 classes).
        multi_label, a label being predicted where its logit is above 0: ``subset_accuracy``, ``f1_micro``,
        ``f1_macro``, ``map``, ``log_loss`` (mean over rows and labels) and ``per_class``.
        regression: ``mse``, ``rmse``, ``mae``, ``r2``, ``pearson``, ``spearman``, and with several targets
            ``per_target``.
    """
    if len(logits) == 0:
        raise ValueError("there are no predictions to evaluate")
    scores = np.asarray(logits, dtype=np.float64)
    report = Task(task).case(single_label=_single_label, multi_label=_multi_label, regression=_regression)
    result: dict[str, Any] = to_plain(report(scores, np.asarray(labels), list(label_names)))
    return result


def _single_label(logits: Array, labels: Array, label_names: list[str]) -> Result:
    pair = {"predictions": logits.argmax(axis=1), "references": labels}
    log_probabilities = log_softmax(logits, axis=1)
    result = {
        **Accuracy().compute(**pair),
        "f1_macro": F1().compute(**pair, average="macro")["f1"],
        "f1_weighted": F1().compute(**pair, average="weighted")["f1"],
        "log_loss": -log_probabilities[np.arange(len(labels)), labels].mean(),
        "per_class": PerClass().compute(**pair, label_names=label_names),
    }
    if len(label_names) <= MOST_CLASSES_IN_CONFUSION:
        result["confusion"] = confusion_matrix(labels, pair["predictions"], labels=np.arange(len(label_names)))
    return result


def _multi_label(logits: Array, labels: Array, label_names: list[str]) -> Result:
    pair = {"predictions": (logits > 0).astype(np.int64), "references": labels.astype(np.int64)}
    return {
        "subset_accuracy": Accuracy().compute(**pair)["accuracy"],
        "f1_micro": F1().compute(**pair, average="micro")["f1"],
        "f1_macro": F1().compute(**pair, average="macro")["f1"],
        **MeanAveragePrecision().compute(predictions=logits, references=labels),
        # -log sigmoid(x) where the label is 1, -log sigmoid(-x) where it is 0; logaddexp does not overflow.
        "log_loss": np.logaddexp(0, np.where(labels > 0, -logits, logits)).mean(),
        "per_class": PerClass().compute(**pair, label_names=label_names),
    }


def _regression(predicted: Array, expected: Array, target_names: list[str]) -> Result:
    result: Result = dict(RegressionScores().compute(predictions=predicted, references=expected))
    if len(target_names) > 1:
        result["per_target"] = {
            name: RegressionScores().compute(predictions=predicted[:, k], references=expected[:, k])
            for k, name in enumerate(target_names)
        }
    return result
