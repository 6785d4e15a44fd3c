"""Heads of all folds at once: each is the head that its own rows alone give, and chooses by them alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hftl.heads import fit_linear, fit_linear_folds, logistic
from hftl.heads import path as path_of_strengths

STRENGTHS = [10.0, 1.0]
SINGLE, MULTI = {"task": "single_label", "num_labels": 4}, {"task": "multi_label", "num_labels": 3}


def problem(task: dict[str, Any], rows: int = 100, width: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features of many scales, labels and five folds."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=generator) * torch.logspace(-0.5, 0.5, width)
    scores = x / torch.logspace(-0.5, 0.5, width) @ torch.randn(width, task["num_labels"], generator=generator)
    scores = scores + 2 * torch.randn(scores.shape, generator=generator)
    y = scores.argmax(1) if task is SINGLE else (scores > 1).float()
    return x, y, torch.arange(rows) % 5


def close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths solved as far as what is exported, so that two ways to the same solution can be compared."""
    for module in (path_of_strengths, logistic):
        monkeypatch.setattr(module, "PATH_TOLERANCE", 1e-9)


@pytest.mark.parametrize("task", [SINGLE, MULTI], ids=["classes", "labels"])
@pytest.mark.parametrize(("calibrate", "rule"), [(True, "best"), (False, "best"), (True, "one_se")])
def test_a_fold_s_head_is_the_one_that_is_solved_without_it(
    task: dict[str, Any], calibrate: bool, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    close(monkeypatch)
    x, y, dealt = problem(task)
    # Where features are scaled, those of `fit_linear` that choose are scaled by all rows, and these by their own.
    how = {
        **task,
        "strengths": STRENGTHS,
        "standardize": False,
        "calibrate": calibrate,
        "rule": rule,
        "tolerance": 1e-10,
    }
    for fold, found in enumerate(fit_linear_folds(x, y, dealt, **how)):
        rest = dealt != fold
        others = dealt[rest] - (dealt[rest] > fold).long()
        alone = fit_linear(x[rest], y[rest], dealt=others, **how)
        assert found.report["chosen"] == alone.report["chosen"]
        assert [step["se"] for step in found.report["path"]] == pytest.approx(
            [step["se"] for step in alone.report["path"]], rel=1e-3
        )
        said, expected = found.logits, alone.logits(x[~rest])
        if task is SINGLE:
            said, expected = said.log_softmax(1), expected.log_softmax(1)
        torch.testing.assert_close(said, expected, atol=2e-3, rtol=1e-3)
        if task is MULTI:
            assert found.report["thresholds"] == pytest.approx(alone.report["thresholds"], abs=1e-3)


def test_a_fold_chooses_as_scikit_learn_does_with_features_scaled_on_what_is_trained_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    close(monkeypatch)
    x, y, dealt = problem(SINGLE)
    # Of one fold's rows a feature is all but constant elsewhere: scales differ much between the heads.
    x[:, 3] = torch.where(dealt == 0, x[:, 3] * 50, x[:, 3])
    found = fit_linear_folds(x, y, dealt, **SINGLE, strengths=STRENGTHS, calibrate=False, tolerance=1e-10)
    folds = dealt.numpy()

    def theirs(train: np.ndarray, held: np.ndarray, strength: float) -> np.ndarray:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1 / strength, tol=1e-8, max_iter=10_000))
        model.fit(x.double().numpy()[train], y.numpy()[train])
        return log_softmax(model.decision_function(x.double().numpy()[held]), axis=1)

    for fold in range(5):
        losses = []
        for strength in STRENGTHS:
            held = [np.flatnonzero(folds == other) for other in range(5) if other != fold]
            said = [theirs(np.flatnonzero((folds != fold) & ~np.isin(folds, folds[r[0]])), r, strength) for r in held]
            truth = y.numpy()[np.concatenate(held)]
            losses.append(-np.concatenate(said)[np.arange(len(truth)), truth].mean())
        steps = [step["validation"] for step in found[fold].report["path"]]
        assert steps == pytest.approx(losses, rel=1e-3)
        chosen = STRENGTHS[int(np.argmin(losses))]
        assert found[fold].report["chosen"] == chosen
        expected = theirs(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold), chosen)
        np.testing.assert_allclose(found[fold].logits.log_softmax(1).numpy(), expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("task", [SINGLE, MULTI], ids=["classes", "labels"])
def test_rows_of_a_fold_have_no_say_in_what_they_are_scored_by(task: dict[str, Any]) -> None:
    x, y, dealt = problem(task)
    how = {**task, "strengths": STRENGTHS, "tolerance": 1e-10}
    before = fit_linear_folds(x, y, dealt, **how)
    turned = torch.where((dealt == 2).reshape(-1, *[1] * (y.ndim - 1)), y.roll(5, 0), y)
    after = fit_linear_folds(x, turned, dealt, **how)
    assert after[2].report["chosen"] == before[2].report["chosen"]
    torch.testing.assert_close(after[2].logits, before[2].logits, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(after[1].logits, before[1].logits, atol=1e-2)


def test_a_class_that_no_other_fold_has_is_never_said_and_one_of_two_folds_is_learnt() -> None:
    x, y, dealt = problem(SINGLE)
    y[(y == 3) & (dealt != 0)] = 2
    two = torch.nonzero(y == 1).flatten()[[0, 1]]
    y[(y == 1) & ~torch.isin(torch.arange(len(y)), two)] = 0
    dealt[two] = torch.tensor([1, 2])
    found = fit_linear_folds(x, y, dealt, **SINGLE, strengths=STRENGTHS)
    assert (found[0].logits.argmax(1) != 3).all()
    assert (found[0].logits[:, 3] < -1e3).all()
    # Without fold 1 the class is known by its row in fold 2, which no head that chooses may lack.
    assert all(bool((each.logits[:, 1] > -100).all()) for each in found)
    assert all(step["converged"] for each in found for step in each.report["path"])


def test_a_validation_split_chooses_for_every_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    close(monkeypatch)
    x, y, dealt = problem(SINGLE)
    fresh, truth, _ = problem(SINGLE, rows=60)
    how = {**SINGLE, "strengths": STRENGTHS, "validation": (fresh, truth), "tolerance": 1e-8}
    for fold, found in enumerate(fit_linear_folds(x, y, dealt, **how)):
        alone = fit_linear(x[dealt != fold], y[dealt != fold], **how)
        assert found.report["chosen"] == alone.report["chosen"]
        # By their own rows' scales both, because a validation split has no say in these.
        expected = alone.logits(x[dealt == fold]).log_softmax(1)
        torch.testing.assert_close(found.logits.log_softmax(1), expected, atol=2e-3, rtol=1e-3)
