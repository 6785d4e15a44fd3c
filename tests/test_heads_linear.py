"""Linear heads against scikit-learn, brute force and their own promises."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score, precision_recall_curve, precision_score, recall_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from hftl.heads import HeadFit, cross_validate, fit_linear
from hftl.heads.calibration import fit_temperature, reliability
from hftl.heads.folds import stratified_folds
from hftl.heads.matrix import Matrix, RowGroup
from hftl.heads.thresholds import asked_thresholds, best_thresholds, threshold_report
from hftl.methods import Aim
from hftl.tasks import Task


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = torch.tensor(x[order], dtype=torch.float32), torch.tensor(y[order])
    return x[:1198], y[:1198], x[1198:], y[1198:]


def blobs(rows: int, dim: int, classes: int, *, spread: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, dim, generator=generator)
    labels = torch.arange(rows) % classes
    return means[labels] + spread * torch.randn(rows, dim, generator=generator), labels


def objective(weight: Any, bias: Any, x: Any, y: Any, strength: float, row_weight: Any = 1.0) -> float:
    logits = x @ weight.T + bias
    peak = logits.max(1, keepdims=True)
    log_normaliser = peak[:, 0] + np.log(np.exp(logits - peak).sum(1))
    losses = log_normaliser - logits[np.arange(len(y)), y]
    return float((row_weight * losses).sum() + strength / 2 * (weight**2).sum())


def in_standard_units(head: HeadFit, scaler: StandardScaler) -> tuple[Any, Any]:
    weight, bias = head.weight.double().numpy(), head.bias.double().numpy()
    return weight * scaler.scale_, bias + weight @ scaler.mean_


def accuracy(head: HeadFit, x: Tensor, y: Tensor) -> float:
    return float((head.logits(x).argmax(1) == y).double().mean())


@pytest.mark.parametrize("c", [0.01, 0.1, 1.0])
def test_softmax_on_standardised_features_equals_scikit_learn(c: float) -> None:
    x, y, x_eval, _ = digits()
    head = fit_linear(x, y, task="single_label", num_labels=10, strengths=[1 / c], calibrate=False)
    scaler = StandardScaler().fit(x.double().numpy())
    z = scaler.transform(x.double().numpy())
    reference = LogisticRegression(C=c, tol=1e-9, max_iter=10_000).fit(z, y.numpy())
    weight, bias = in_standard_units(head, scaler)

    ours = objective(weight, bias, z, y.numpy(), 1 / c)
    theirs = objective(reference.coef_, reference.intercept_, z, y.numpy(), 1 / c)
    assert ours <= theirs * (1 + 1e-6)
    np.testing.assert_allclose(weight, reference.coef_, atol=1e-3)
    expected = reference.predict_proba(scaler.transform(x_eval.double().numpy()))
    np.testing.assert_allclose(head.logits(x_eval).softmax(-1), expected, atol=1e-3)
    assert head.report["converged"]


def test_softmax_on_raw_features_with_weights_equals_scikit_learn() -> None:
    x, y, x_eval, _ = digits()
    x, x_eval = x / 4, x_eval / 4
    times = torch.randint(1, 5, (len(x),), generator=torch.Generator().manual_seed(1))
    class_weight = [1.0, 2.0, 0.5, 1.0, 3.0, 1.0, 1.0, 0.2, 1.0, 1.0]
    head = fit_linear(
        x.repeat_interleave(times, 0),
        y.repeat_interleave(times),
        task="single_label",
        num_labels=10,
        strengths=[2.0],
        standardize=False,
        calibrate=False,
        class_weight=class_weight,
    )
    reference = LogisticRegression(C=0.5, tol=1e-9, max_iter=20_000, class_weight=dict(enumerate(class_weight))).fit(
        x.double().numpy(), y.numpy(), sample_weight=times.double().numpy()
    )
    np.testing.assert_allclose(head.weight, reference.coef_, atol=1e-3)
    expected = reference.predict_proba(x_eval.double().numpy())
    np.testing.assert_allclose(head.logits(x_eval).softmax(-1), expected, atol=1e-3)


def test_two_classes_equal_scikit_learn_at_twice_the_strength() -> None:
    x, y = blobs(300, 8, 2, spread=3.0)
    head = fit_linear(x, y, task="single_label", num_labels=2, strengths=[2.0], calibrate=False, standardize=False)
    reference = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(x.double().numpy(), y.numpy())
    np.testing.assert_allclose(head.weight[1] - head.weight[0], reference.coef_[0], atol=1e-3)


def test_balanced_weights_equal_scikit_learn() -> None:
    x, y = blobs(400, 6, 4, spread=2.0)
    keep = (y != 3) | (torch.arange(400) < 40)
    x, y = x[keep], y[keep]
    options: dict[str, Any] = {"strengths": [1.0], "calibrate": False, "standardize": False}
    head = fit_linear(x, y, task="single_label", num_labels=4, class_weight="balanced", **options)
    reference = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000, class_weight="balanced")
    reference.fit(x.double().numpy(), y.numpy())
    np.testing.assert_allclose(head.weight, reference.coef_, atol=1e-3)


def test_zero_weights_are_the_same_as_leaving_the_rows_out() -> None:
    x, y = blobs(200, 5, 3, spread=2.0)
    x[y == 0] += 50
    with_zeros = fit_linear(x, y, task="single_label", num_labels=3, class_weight=[0.0, 1.0, 1.0])
    without = fit_linear(x[y > 0], y[y > 0], task="single_label", num_labels=3)
    assert torch.equal(with_zeros.weight, without.weight)
    assert with_zeros.report["rows_of_zero_weight"] == 67


def multi_label_set() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(500, 12, generator=generator)
    logits = 2 * x @ torch.randn(12, 4, generator=generator) + torch.tensor([0.0, -1.0, -4.0, 2.0])
    return x, (torch.rand(500, 4, generator=generator) < logits.sigmoid()).float()


def test_multi_label_equals_one_logistic_regression_for_each_label() -> None:
    x, y = multi_label_set()
    head = fit_linear(x, y, task="multi_label", num_labels=4, strengths=[0.7], calibrate=False)
    scaler = StandardScaler().fit(x.double().numpy())
    z = scaler.transform(x.double().numpy())
    weight, bias = in_standard_units(head, scaler)
    for label in range(4):
        reference = LogisticRegression(C=1 / 0.7, tol=1e-10, max_iter=10_000).fit(z, y[:, label].numpy())
        np.testing.assert_allclose(weight[label], reference.coef_[0], atol=1e-3)
        np.testing.assert_allclose(bias[label], reference.intercept_[0], atol=1e-3)


def test_balanced_multi_label_equals_scikit_learn() -> None:
    x, y = multi_label_set()
    options: dict[str, Any] = {"strengths": [0.7], "calibrate": False, "standardize": False}
    head = fit_linear(x, y, task="multi_label", num_labels=4, class_weight="balanced", **options)
    for label in range(4):
        reference = LogisticRegression(C=1 / 0.7, tol=1e-10, max_iter=10_000, class_weight="balanced")
        reference.fit(x.double().numpy(), y[:, label].numpy())
        np.testing.assert_allclose(head.weight[label], reference.coef_[0], atol=1e-3)


def test_a_head_of_several_labels_brings_a_threshold_for_each() -> None:
    x, y = multi_label_set()
    report = fit_linear(x, y, task="multi_label", num_labels=4).report
    assert report["thresholds_for"] == "F1"
    assert report["f1_macro_at_thresholds"] > report["f1_macro_at_half"] - 0.01
    assert len(report["thresholds"]) == 4
    assert all(0 < threshold < 1 for threshold in report["thresholds"])


def test_a_solved_head_brings_what_its_folds_say_of_the_rows_they_had_not_seen() -> None:
    x, y = multi_label_set()
    held_out = fit_linear(x, y, task="multi_label", num_labels=4).held_out
    again = cross_validate(x, y, task=Task.MULTI_LABEL, num_labels=4)
    assert held_out is not None
    assert torch.equal(held_out.rows, again.rows)
    torch.testing.assert_close(held_out.logits, again.logits)
    # Rows of weight zero are left out, and the others keep their numbers.
    classes = torch.arange(len(x)) % 3
    some = fit_linear(x, classes, task="single_label", num_labels=3, class_weight=[1.0, 0.0, 1.0]).held_out
    assert some is not None
    assert torch.equal(some.rows, torch.nonzero(classes != 1).flatten())
    given = fit_linear(x, y, task="multi_label", num_labels=4, validation=(x, y))
    assert given.held_out is None


def several(rows: int, labels: int, seed: int, apart: float = 1.5) -> tuple[torch.Tensor, torch.Tensor]:
    """Calibrated probabilities of rare and frequent labels, and labels drawn with them."""
    generator = torch.Generator().manual_seed(seed)
    rates = torch.logspace(-2, -0.5, labels)
    y = (torch.rand(rows, labels, generator=generator) < rates).float()
    seen = torch.randn(rows, labels, generator=generator) + y * apart
    return (seen * apart - apart**2 / 2 + rates.logit()).sigmoid(), y


def f1_at(p: torch.Tensor, y: torch.Tensor, threshold: float) -> float:
    said, true = (p > threshold).numpy(), y.numpy() > 0
    return 2 * float((said & true).sum()) / max(1, int(said.sum() + true.sum()))


def test_thresholds_are_as_good_as_the_best_cut_within_the_noise_of_a_bootstrap() -> None:
    p, y = several(400, 5, 0)
    chosen = best_thresholds(p, y)
    rng = np.random.default_rng(0)
    for label, threshold in enumerate(chosen.tolist()):
        cuts = [0.0, *p[:, label].tolist()]
        best = max(cuts, key=lambda cut, k=label: f1_at(p[:, k], y[:, k], cut))
        gain = f1_at(p[:, label], y[:, label], best) - f1_at(p[:, label], y[:, label], threshold)
        drawn = [rng.integers(0, 400, 400) for _ in range(200)]
        gains = [
            f1_at(p[rows, label], y[rows, label], best) - f1_at(p[rows, label], y[rows, label], threshold)
            for rows in drawn
        ]
        assert gain <= 1.4 * np.std(gains) + 1e-9


def test_thresholds_beat_one_half_on_rare_labels_and_leave_separable_ones_alone() -> None:
    (p, y), (fresh, truth) = several(500, 12, 1), several(20_000, 12, 2)
    chosen = best_thresholds(p, y)
    at_half, at_chosen = (
        f1_score(truth.numpy(), (fresh > cut).numpy(), average="macro", zero_division=0.0) for cut in (0.5, chosen)
    )
    assert at_chosen > at_half + 0.05
    # Nearly separable, with one odd row that the largest F1 would follow.
    y = (torch.arange(200)[:, None] < 60).float()
    p = torch.where(y > 0, 0.99, 0.001)
    p[59] = 0.0031
    assert float(best_thresholds(p, y)) == pytest.approx(0.5, abs=0.02)
    assert float(best_thresholds(p, torch.zeros(200, 1))) == 0.5


def test_a_precision_or_a_recall_that_is_asked_is_reached_as_a_search_reaches_it() -> None:
    p, y = several(500, 6, 3)
    for metric, least in (("precision", 0.6), ("recall", 0.8)):
        thresholds, reached = asked_thresholds(p, y, Aim(metric, least))
        for label in range(6):
            truth, scores = y[:, label].numpy(), p[:, label].numpy()
            precision, recall, _ = precision_recall_curve(truth, scores)
            points = list(zip(precision.tolist(), recall.tolist(), strict=True))
            able = [(a, b) for a, b in points if (a if metric == "precision" else b) >= least and b > 0]
            assert bool(reached[label]) == bool(able)
            if not able:
                assert float(thresholds[label]) == float(best_thresholds(p, y)[label])
                continue
            decided = scores > float(thresholds[label])
            found = precision_score(truth, decided), recall_score(truth, decided)
            assert found[metric == "recall"] >= least
            other = int(metric == "precision")
            assert found[other] == pytest.approx(max(point[other] for point in able))
    assert 0 < int(asked_thresholds(p, y, Aim("precision", 0.6))[1].sum()) < 6
    report = threshold_report(p.logit(), y, Aim("precision", 0.6))
    assert report["thresholds_for"] == "precision 0.6"
    assert len(report["not_reached"]) == 6 - int(asked_thresholds(p, y, Aim("precision", 0.6))[1].sum())


def test_ridge_equals_scikit_learn_and_brute_force_leave_one_out() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=generator) * torch.tensor([1.0, 5.0, 0.1, 1.0, 1.0, 1.0]) + 3
    y = x @ torch.randn(6, 2, generator=generator) + torch.randn(40, 2, generator=generator)
    y[:, 1] *= 100
    times = torch.randint(1, 4, (40,), generator=generator)
    x, y = x.repeat_interleave(times, 0), y.repeat_interleave(times, 0)
    strengths = [30.0, 3.0, 0.3]
    head = fit_linear(
        x,
        y,
        task="regression",
        num_labels=2,
        strengths=strengths,
        standardize=False,
    )
    x64, y64 = x.double().numpy(), y.double().numpy()
    errors, standard_errors = [], []
    for strength in strengths:
        squares = []
        for i in range(len(x)):
            rest = np.arange(len(x)) != i
            model = Ridge(alpha=strength, solver="cholesky").fit(x64[rest], y64[rest])
            squares.append((model.predict(x64[i : i + 1])[0] - y64[i]) ** 2)
        of_rows = (squares / y64.var(axis=0)).mean(axis=1)
        errors.append(of_rows.mean())
        standard_errors.append(of_rows.std() / len(x) ** 0.5)
    np.testing.assert_allclose([p["validation"] for p in head.report["path"]], errors, rtol=1e-6)
    np.testing.assert_allclose([p["se"] for p in head.report["path"]], standard_errors, rtol=1e-6)
    assert head.report["chosen"] == strengths[int(np.argmin(errors))]
    reference = Ridge(alpha=head.report["chosen"], solver="cholesky").fit(x64, y64)
    np.testing.assert_allclose(head.weight, reference.coef_, rtol=1e-5)
    np.testing.assert_allclose(head.bias, reference.intercept_, rtol=1e-4)


def test_regression_takes_one_target_as_a_vector_and_a_validation_split() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 5, generator=generator)
    y = x[:, 0] * 2 + 0.5 + 0.1 * torch.randn(100, generator=generator)
    head = fit_linear(
        x[:70],
        y[:70],
        task="regression",
        num_labels=1,
        validation=(x[70:], y[70:, None]),
        strengths=[1.0, 0.1],
    )
    mse = float((head.logits(x[70:])[:, 0] - y[70:]).square().mean())
    assert head.report["mse"] == [pytest.approx(mse, rel=1e-4)]
    assert mse < 0.02


def test_the_chosen_strength_is_as_accurate_as_scikit_learns_grid() -> None:
    x, y = load_digits(return_X_y=True)
    ours, chosen, best = [], [], []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(y))
        train, held = order[:600], order[600:]
        head = fit_linear(torch.tensor(x[train]).float(), torch.tensor(y[train]), task="single_label", num_labels=10)
        ours.append(accuracy(head, torch.tensor(x[held]).float(), torch.tensor(y[held])))
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000))
        grid = {"logisticregression__C": 10.0 ** np.arange(-3, 3)}
        search = GridSearchCV(model, grid, cv=5).fit(x[train], y[train])
        chosen.append(search.score(x[held], y[held]))
        each = (clone(model).set_params(logisticregression__C=c) for c in 10.0 ** np.arange(-3, 3))
        best.append(max(m.fit(x[train], y[train]).score(x[held], y[held]) for m in each))
    assert np.mean(ours) >= np.mean(chosen) - 0.003
    assert np.mean(ours) >= np.mean(best) - 0.005  # the grid's best on the very rows that are scored


def test_path_scores_equal_heads_fitted_without_each_fold() -> None:
    x, y = blobs(150, 6, 3, spread=2.0)
    strengths = [30.0, 3.0]
    report = fit_linear(
        x,
        y,
        task="single_label",
        num_labels=3,
        strengths=strengths,
        folds=3,
        calibrate=False,
        standardize=False,
    ).report
    folds = stratified_folds(y, 3, seed=0)
    for entry, strength in zip(report["path"], strengths, strict=True):
        losses = np.zeros(150)
        for fold in range(3):
            rest = (folds != fold).numpy()
            model = LogisticRegression(C=1 / strength, tol=1e-8, max_iter=5000).fit(x.numpy()[rest], y.numpy()[rest])
            held = model.predict_proba(x.numpy()[~rest])
            losses[~rest] = -np.log(held[np.arange((~rest).sum()), y.numpy()[~rest]])
        assert entry["validation"] == pytest.approx(losses.mean(), rel=1e-2)
        assert abs(entry["validation"] - losses.mean()) < 0.6 * entry["se"]


def test_the_path_ends_once_weaker_penalties_have_made_it_worse() -> None:
    x, y = blobs(200, 80, 4, spread=6.0)
    path = fit_linear(x, y, task="single_label", num_labels=4, calibrate=False).report["path"]
    assert 4 < len(path) < 20
    scores = [p["validation"] for p in path]
    best = min(path, key=lambda p: p["validation"])
    assert scores[-4:] == sorted(scores[-4:])
    assert scores[-1] > best["validation"] + best["se"]


def test_one_standard_error_takes_a_stronger_penalty() -> None:
    x, y, _, _ = digits()
    best = fit_linear(x[:300], y[:300], task="single_label", num_labels=10).report
    careful = fit_linear(x[:300], y[:300], task="single_label", num_labels=10, rule="one_se").report
    assert careful["chosen"] > best["chosen"]
    smallest = min(best["path"], key=lambda p: p["validation"])
    at = next(p for p in best["path"] if p["strength"] == careful["chosen"])
    assert at["validation"] <= smallest["validation"] + smallest["se"]


def test_a_validation_split_chooses_and_does_not_train() -> None:
    x, y = blobs(240, 10, 3, spread=3.0)
    split: dict[str, Any] = {"validation": (x[160:], y[160:]), "calibrate": False}
    head = fit_linear(x[:160], y[:160], task="single_label", num_labels=3, **split)
    alone = fit_linear(
        x[:160],
        y[:160],
        task="single_label",
        num_labels=3,
        calibrate=False,
        strengths=[head.report["chosen"]],
    )
    torch.testing.assert_close(head.weight, alone.weight, atol=1e-4, rtol=1e-3)
    loss = float(torch.nn.functional.cross_entropy(head.logits(x[160:]), y[160:]))
    assert min(p["validation"] for p in head.report["path"]) == pytest.approx(loss, rel=1e-2)


def test_the_temperature_is_folded_and_improves_held_out_rows() -> None:
    x, y = blobs(400, 60, 8, spread=4.0)
    options: dict[str, Any] = {"task": "single_label", "num_labels": 8, "strengths": [0.01]}
    plain = fit_linear(x, y, calibrate=False, **options)
    calibrated = fit_linear(x, y, calibrate=True, **options)
    report = calibrated.report["calibration"]
    assert report["temperature"] > 1.5  # a hardly penalised head is far too sure of itself
    torch.testing.assert_close(calibrated.weight * report["temperature"], plain.weight, atol=1e-2, rtol=1e-2)
    assert torch.equal(calibrated.logits(x).argmax(1), plain.logits(x).argmax(1))
    for score in ("ece", "brier", "log_loss"):
        assert report["after"][score] < report["before"][score]
    assert sum(row["rows"] for row in report["reliability"]) == 400


def test_temperature_equals_a_fine_search() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(500, 4, generator=generator)
    labels = torch.multinomial((logits / 3).softmax(-1), 1, generator=generator).flatten()
    temperature = fit_temperature(logits, labels, torch.ones(500, 1), "softmax")
    grid = torch.linspace(1, 8, 3501)
    losses = torch.stack([torch.nn.functional.cross_entropy(logits / t, labels) for t in grid])
    assert temperature == pytest.approx(float(grid[losses.argmin()]), abs=0.005)


def test_expected_calibration_error_by_hand() -> None:
    confidence = torch.tensor([0.95, 0.95, 0.95, 0.95, 0.52, 0.52])
    correct = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    ece, table = reliability(confidence, correct)
    assert ece == pytest.approx(4 / 6 * 0.20 + 2 / 6 * 0.02, abs=1e-6)
    assert [row["rows"] for row in table] == [2, 4]


def test_same_seed_same_bits_and_another_seed_other_folds() -> None:
    x, y, _, _ = digits()
    x, y = x[:400], y[:400]
    first, again, other = (fit_linear(x, y, task="single_label", num_labels=10, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(first.bias, again.bias)
    assert first.report == again.report
    assert first.report["path"] != other.report["path"]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_many_rows_which_are_centred_in_each_pass_give_the_head_of_few(task: str, bias: bool) -> None:
    x, y, _, _ = digits()
    # Means far from zero, which float32 does not hold to the last digit of what varies.
    x = x + 100 * torch.randn(64, generator=torch.Generator().manual_seed(0)) if bias else x
    labels = y if task == "single_label" else torch.nn.functional.one_hot(y, 10).float()
    options: dict[str, Any] = {"task": task, "num_labels": 10, "strengths": [10.0, 1.0], "bias": bias}
    kept = fit_linear(x, labels, **options)
    held = fit_linear(x[300:], labels[300:], validation=(x[:300], labels[:300]), **options)
    whole, first, last = (replace(Matrix.of(rows), resident_bytes=0) for rows in (x, x[:300], x[300:]))
    centred = fit_linear(whole, labels, **options)
    centred_held = fit_linear(last, labels[300:], validation=(first, labels[:300]), **options)
    for one, other in ((kept, centred), (held, centred_held)):
        assert other.report["converged"]
        assert other.report["chosen"] == one.report["chosen"]
        assert other.report["objective"] == pytest.approx(one.report["objective"], rel=1e-6)
        torch.testing.assert_close(other.logits(x), one.logits(x), atol=2e-3, rtol=1e-3)
    assert torch.equal(fit_linear(whole, labels, **options).weight, centred.weight)


def in_parts(x: torch.Tensor, resident_bytes: int) -> Matrix:
    """Features that are read in parts of mixed order, as they lie in a store."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    parts = [RowGroup(rows, partial(x.__getitem__, rows)) for rows in torch.split(order, 130)]
    return Matrix(parts, x.shape, x.dtype, x.device, resident_bytes)


@pytest.mark.parametrize("resident_bytes", [0, 1 << 30])
@pytest.mark.parametrize("judged", ["folds", "validation"])
@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression"])
def test_features_that_are_read_in_blocks_give_the_head_of_those_in_memory(
    task: str, judged: str, resident_bytes: int
) -> None:
    x, y, _, _ = digits()
    one_hot = torch.nn.functional.one_hot(y, 10)
    labels = {"single_label": y, "multi_label": one_hot.float(), "regression": x[:, :2].double() + one_hot[:, :2]}[task]
    x = x[:, 3:] if task == "regression" else x
    rows = 300 if judged == "validation" else 0
    options: dict[str, Any] = {"task": task, "num_labels": 2 if task == "regression" else 10}
    plain = [x[rows:], x[:rows]]
    in_memory, in_blocks = (
        fit_linear(known, labels[rows:], validation=(held, labels[:rows]) if rows else None, **options)
        for known, held in (plain, [in_parts(side, resident_bytes) for side in plain])
    )
    assert in_blocks.report["chosen"] == pytest.approx(in_memory.report["chosen"], rel=1e-9)
    if task != "regression":
        assert in_blocks.report["objective"] == pytest.approx(in_memory.report["objective"], rel=1e-6)
    one, other = ([step["validation"] for step in fit.report["path"]] for fit in (in_memory, in_blocks))
    assert other == pytest.approx(one, rel=1e-3)
    torch.testing.assert_close(in_blocks.logits(x), in_memory.logits(x), atol=2e-3, rtol=1e-3)


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_a_head_on_many_rows_takes_less_memory_than_a_copy_of_their_features() -> None:
    script = """
import pathlib, torch
from hftl.heads import fit_linear
def resident(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024
draw = torch.Generator().manual_seed(0)
x, y = torch.randn(100_000, 384, generator=draw), torch.randint(0, 3, (100_000,), generator=draw)
options = dict(task="single_label", num_labels=3, strengths=[1e6])
fit_linear(x[:2000], y[:2000], **options)
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
fit_linear(x, y, **options)
print((resident("VmHWM") - before) / x.nbytes)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1


def test_the_report_tells_the_path_in_plain_json() -> None:
    x, y, _, _ = digits()
    report = fit_linear(x[:300], y[:300], task="single_label", num_labels=10).report
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    varying = int((x[:300].std(0) > 0).sum())
    walked = [p["strength"] for p in report["path"]]
    assert walked == pytest.approx((varying * np.logspace(1.5, -3, 20))[: len(walked)])
    assert set(report) >= {"kind", "chosen", "chosen_on", "iterations", "gradient_norm", "converged"}
    assert report["gradient_norm"] < 1e-4
