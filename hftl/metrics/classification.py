"""Metrics for single-label and multi-label classification; scikit-learn counts."""

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    precision_recall_fscore_support,
)

from hftl.metrics.base import LocalMetric, metric_features
from hftl.metrics.values import Array, Result

_CLASSES = metric_features("int64")
_VECTORS = metric_features("int64", rows_are_lists=True)
_SCORES = metric_features("float64", rows_are_lists=True)


class Accuracy(LocalMetric):
    """Share of rows predicted right; for vectors of 0 and 1, the share of rows with every label right."""

    about = "Share of rows whose class, or whose whole set of labels, is predicted right."
    accepts = (_CLASSES, _VECTORS)

    def _compute(self, predictions: Array, references: Array) -> Result:
        return {"accuracy": float(accuracy_score(references, predictions))}


class F1(LocalMetric):
    """F1, the harmonic mean of precision and recall, as scikit-learn's ``f1_score`` averages it over classes.

    Classes that stand neither in the labels nor in the predictions do not count; an undefined F1 counts as 0.
    """

    about = "F1 averaged over classes; average is one of macro, weighted, micro, binary."
    accepts = (_CLASSES, _VECTORS)

    def _compute(self, predictions: Array, references: Array, average: str = "macro") -> Result:
        return {"f1": float(f1_score(references, predictions, average=average, zero_division=0))}


class PerClass(LocalMetric):
    """Precision, recall, F1 and number of labelled rows of each class; what is undefined counts as 0."""

    about = "Precision, recall, F1 and support of each class, keyed by the names given as label_names."
    accepts = (_CLASSES, _VECTORS)

    def _compute(self, predictions: Array, references: Array, label_names: list[str]) -> Result:
        columns = precision_recall_fscore_support(
            references, predictions, labels=np.arange(len(label_names)), average=None, zero_division=0
        )
        names = ("precision", "recall", "f1", "support")
        return {
            label: {name: column[at].item() for name, column in zip(names, columns, strict=True)}
            for at, label in enumerate(label_names)
        }


class MeanAveragePrecision(LocalMetric):
    """Average precision (area under the precision-recall steps), averaged over labels with a positive row.

    Predictions are scores, higher for likelier labels; NaN if no label has a positive row.
    """

    about = "Mean over labels of the average precision of scores; labels without a positive row do not count."
    accepts = (_SCORES,)

    def _compute(self, predictions: Array, references: Array) -> Result:
        predictions, references = np.asarray(predictions), np.asarray(references)
        present = references.any(axis=0)
        if not present.any():
            return {"map": float("nan")}
        # Label by label: scikit-learn's own average would copy the whole matrix for each of its steps.
        each = [average_precision_score(references[:, k] > 0, predictions[:, k]) for k in np.flatnonzero(present)]
        return {"map": float(np.mean(each))}
