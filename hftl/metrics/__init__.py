"""Metrics that need no network: `evaluate.Metric` classes, and the report of a run."""

from hftl.metrics.base import LocalMetric
from hftl.metrics.classification import F1, Accuracy, MeanAveragePrecision, PerClass
from hftl.metrics.regression import RegressionScores
from hftl.metrics.report import evaluate_predictions

__all__ = [
    "F1",
    "Accuracy",
    "LocalMetric",
    "MeanAveragePrecision",
    "PerClass",
    "RegressionScores",
    "evaluate_predictions",
]
