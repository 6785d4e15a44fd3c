"""Metrics for regression with one or several targets; scikit-learn and SciPy count."""

import numpy as np
from scipy import stats  # type: ignore[import-untyped]
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from hftl.metrics.base import LocalMetric, metric_features
from hftl.metrics.values import Array, Result


class RegressionScores(LocalMetric):
    """Errors and correlations; of several targets each number is the mean over the targets.

    ``mse`` and ``rmse`` (mean squared error and its root), ``mae`` (mean absolute error), ``r2`` (share of
    the variance explained; NaN for fewer than two rows), ``pearson`` and ``spearman`` (correlation of values
    and of ranks; NaN where one side is constant).
    """

    about = "Mean squared and absolute errors, R2, Pearson's and Spearman's correlation."
    accepts = (metric_features("float64"), metric_features("float64", rows_are_lists=True))

    def _compute(self, predictions: Array, references: Array) -> Result:
        predicted, expected = (np.reshape(x, (len(x), -1)) for x in (predictions, references))
        targets = [_target_scores(predicted[:, k], expected[:, k]) for k in range(expected.shape[1])]
        return {name: float(np.mean([target[name] for target in targets])) for name in targets[0]}


def _target_scores(predicted: Array, expected: Array) -> dict[str, float]:
    mse = float(mean_squared_error(expected, predicted))
    several = len(expected) > 1
    varied = several and np.ptp(expected) > 0 and np.ptp(predicted) > 0
    return {
        "mse": mse,
        "rmse": mse**0.5,
        "mae": float(mean_absolute_error(expected, predicted)),
        "r2": float(r2_score(expected, predicted)) if several else float("nan"),
        "pearson": float(stats.pearsonr(expected, predicted).statistic) if varied else float("nan"),
        "spearman": float(stats.spearmanr(expected, predicted).statistic) if varied else float("nan"),
    }
