"""Heads for models whose last layer has no bias, against scikit-learn without an intercept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import LogisticRegression, Ridge

from hftl.heads import fit_linear


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    features, labels = load_digits(return_X_y=True)
    return features.astype(np.float32) / 16, labels


def test_logistic_regression_without_bias(digits: tuple[np.ndarray, np.ndarray]):
    features, labels = digits
    fit = fit_linear(
        torch.from_numpy(features),
        torch.from_numpy(labels),
        task="single_label",
        num_labels=10,
        strengths=[1.0],
        standardize=False,
        bias=False,
        calibrate=False,
    )
    reference = LogisticRegression(C=1.0, fit_intercept=False, solver="newton-cg", tol=1e-7, max_iter=5000)
    reference.fit(features.astype(np.float64), labels)
    assert not fit.bias.any()
    np.testing.assert_allclose(fit.weight.numpy(), reference.coef_, atol=1e-3)
    np.testing.assert_allclose(
        fit.logits(torch.from_numpy(features)).softmax(1).numpy(), reference.predict_proba(features), atol=1e-3
    )


def test_a_head_without_bias_learns_as_well(digits: tuple[np.ndarray, np.ndarray]):
    features, labels = digits
    fit = fit_linear(
        torch.from_numpy(features[:1000]),
        torch.from_numpy(labels[:1000]),
        task="single_label",
        num_labels=10,
        bias=False,
    )
    assert not fit.bias.any()
    predicted = fit.logits(torch.from_numpy(features[1000:])).argmax(1).numpy()
    assert (predicted == labels[1000:]).mean() > 0.9


def test_ridge_without_bias_and_its_leave_one_out_error():
    features, target = load_diabetes(return_X_y=True)
    features, target = features.astype(np.float32)[:60], target[:60].astype(np.float32)
    fit = fit_linear(
        torch.from_numpy(features),
        torch.from_numpy(target)[:, None],
        task="regression",
        num_labels=1,
        strengths=[0.1],
        standardize=False,
        bias=False,
    )
    reference = Ridge(alpha=0.1, fit_intercept=False).fit(features.astype(np.float64), target)
    np.testing.assert_allclose(fit.weight[0].numpy(), reference.coef_, rtol=1e-3)
    errors = []
    for row in range(len(features)):
        rest = np.arange(len(features)) != row
        left = Ridge(alpha=0.1, fit_intercept=False).fit(features[rest].astype(np.float64), target[rest])
        errors.append((left.predict(features[row : row + 1].astype(np.float64))[0] - target[row]) ** 2)
    assert fit.report["mse"][0] == pytest.approx(np.mean(errors), rel=1e-6)
