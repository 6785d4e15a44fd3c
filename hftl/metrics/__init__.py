"""Metrics that need no network: `evaluate.Metric` classes, and the report of a run."""

from hftl.metrics.report import evaluate_predictions

__all__ = ["evaluate_predictions"]
