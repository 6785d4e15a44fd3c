"""The scout's numbers, held to dense brute force and to scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, average_precision_score, r2_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from hftl.criterion import Criterion
from hftl.errors import DataError
from hftl.heads import cross_validate, fit_linear, neighbour_scores
from hftl.heads.folds import stratified_folds, task_folds, with_every_class_in_sight
from hftl.intervals import resamples
from hftl.metrics import evaluate_predictions
from hftl.metrics.resampled import resampled_metric
from hftl.scout.curve import fitted_laws, law_at, nested_order
from hftl.scout.measures import h_score, log_evidence
from hftl.scout.probe import ahead_by, linear_probe, neighbour_probe, tied_groups
from hftl.tasks import Task

OF_CLASSES, OF_NUMBERS = Criterion.of_task(Task.SINGLE_LABEL), Criterion.of_task(Task.REGRESSION)


def problem(
    rows: int, width: int, classes: int, *, apart: float = 1.0, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % classes
    means = apart * torch.randn(classes, width, generator=generator)
    return torch.randn(rows, width, generator=generator) + means[labels], labels


@pytest.mark.parametrize(("rows", "width", "rank"), [(12, 5, 5), (6, 15, 6), (10, 8, 4)])
def test_log_evidence_is_the_largest_density_of_the_labels(rows: int, width: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    features = torch.randn(rows, rank, generator=generator) @ torch.randn(rank, width, generator=generator)
    targets = torch.randn(rows, 2, generator=generator, dtype=torch.float64) + features[:, :1].double()
    dense = features.double().numpy()

    def largest(target: np.ndarray) -> float:
        def surprise(logs: np.ndarray) -> float:
            alpha, beta = np.exp(np.clip(logs, -25, 25))
            covariance = np.eye(rows) / beta + dense @ dense.T / alpha
            return -float(multivariate_normal(np.zeros(rows), covariance).logpdf(target))

        starts = [(a, b) for a in (-3.0, 0.0, 3.0, 8.0) for b in (-1.0, 1.0)]
        options = {"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000}
        return -min(float(minimize(surprise, start, method="Nelder-Mead", options=options).fun) for start in starts)

    expected = np.mean([largest(targets[:, k].numpy()) for k in range(2)]) / rows
    assert log_evidence(features, targets) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(("rows", "width"), [(40, 6), (15, 30)])
def test_h_score_is_the_trace_of_the_shrunk_covariances(rows: int, width: int) -> None:
    features, labels = problem(rows, width, 3)
    dense = features.double().numpy()
    shrunk = LedoitWolf().fit(dense)
    means = np.stack([dense[labels == c].mean(0) for c in range(3)])[labels]
    between = np.cov(means.T, bias=True)
    expected = np.trace(np.linalg.inv(shrunk.covariance_) @ ((1 - shrunk.shrinkage_) * between))
    assert h_score(features, labels).value == pytest.approx(expected, rel=1e-4)


def test_noise_scores_at_the_null() -> None:
    features, _ = problem(300, 20, 3)
    labels = torch.randint(0, 3, (300,), generator=torch.Generator().manual_seed(5))
    found = h_score(features, labels)
    assert found.p > 0.05
    assert found.value == pytest.approx(found.null, rel=0.6)
    probes = [
        linear_probe(features, drawn, criterion=OF_CLASSES, num_labels=3, folds=5, seed=0).interval.value
        for drawn in torch.randint(0, 3, (6, 300), generator=torch.Generator().manual_seed(6))
    ]
    assert np.mean(probes) == pytest.approx(1 / 3, abs=0.04)
    # Features that say nothing have no evidence beyond that of no features at all.
    targets = torch.nn.functional.one_hot(labels).double()
    constant = torch.ones(300, 1)
    assert log_evidence(torch.cat([features, constant], 1), targets) < log_evidence(constant, targets) + 0.01


def test_the_probe_is_scikit_learns_logistic_regression_on_the_same_folds() -> None:
    features, labels = problem(240, 12, 3, apart=0.6)
    held = cross_validate(features, labels, task=Task.SINGLE_LABEL, num_labels=3, strengths=[4.0], seed=7)
    assert held.rows.tolist() == list(range(240))
    folds = stratified_folds(labels, 5, 7).numpy()
    scaled = StandardScaler().fit_transform(features.double().numpy())
    expected = np.zeros((240, 3))
    for fold in range(5):
        seen = folds != fold
        model = LogisticRegression(C=1 / 4.0, tol=1e-10, max_iter=5000).fit(scaled[seen], labels.numpy()[seen])
        expected[~seen] = model.predict_proba(scaled[~seen])
    assert (held.logits.numpy().argmax(1) == expected.argmax(1)).mean() > 0.99
    probe = linear_probe(features, labels, criterion=OF_CLASSES, num_labels=3, folds=5, seed=7)
    assert probe.interval.value == pytest.approx((expected.argmax(1) == labels.numpy()).mean(), abs=0.02)


def test_rows_are_judged_by_heads_that_have_seen_all_but_their_part_of_a_fold() -> None:
    features, labels = problem(240, 12, 3, apart=0.6)
    held = cross_validate(features, labels, task=Task.SINGLE_LABEL, num_labels=3, parts=4, seed=7)
    coarse, fine = (stratified_folds(labels, folds, 7).numpy() for folds in (5, 20))
    assert (fine % 5 == coarse).all()
    # The strength is the one that a run chooses.
    assert held.strength == fit_linear(features, labels, task="single_label", num_labels=3, seed=7).report["chosen"]
    scaled = StandardScaler().fit_transform(features.double().numpy())
    expected = np.zeros((240, 3))
    for part in range(20):
        seen = fine != part
        model = LogisticRegression(C=1 / held.strength, tol=1e-10, max_iter=5000)
        expected[~seen] = model.fit(scaled[seen], labels.numpy()[seen]).decision_function(scaled[~seen])
    mine = (held.logits - held.logits.mean(1, keepdim=True)).double().numpy()
    # But for the temperature, and for where the solver stops.
    slope = (mine * expected).sum() / (expected**2).sum()
    assert np.abs(mine - slope * expected).max() < 0.05 * np.abs(mine).max()
    assert (mine.argmax(1) == expected.argmax(1)).mean() > 0.99


def test_rows_of_a_group_are_held_out_together_and_no_class_is() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3])
    groups = torch.tensor([5, 5, 1, 2, 3, 4, 4, 5, 6, 6, 6, 7])
    folds = task_folds(labels, Task.SINGLE_LABEL, 3, 0, groups)
    for group in groups.unique():
        assert len(folds[groups == group].unique()) == 1
    # All rows of class 2 are one group, and class 3 has one row: every head trains on them.
    assert folds[8:].tolist() == [-1, -1, -1, -1]
    for fold in range(3):
        assert set(labels[folds != fold].tolist()) == {0, 1, 2, 3}
    alone = torch.arange(12)
    assert task_folds(labels, Task.SINGLE_LABEL, 3, 0, alone).tolist() == stratified_folds(labels, 3, 0).tolist()


def test_rows_beside_all_rows_of_a_class_stay_out_with_them() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    groups = torch.tensor([1, 2, 3, 1, 2, 3, 3])
    dealt = groups - 1
    # Class 2 has one row: every head trains on it, and so on all of its group, or the group would be on both sides.
    assert with_every_class_in_sight(dealt, labels, groups).tolist() == [0, 1, -1, 0, 1, -1, -1]
    assert with_every_class_in_sight(dealt, labels, None).tolist() == [0, 1, 2, 0, 1, 2, -1]


def test_copies_do_not_teach_a_head_the_label_that_it_judges() -> None:
    features = torch.randn(60, 40, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 2, (60,), generator=torch.Generator().manual_seed(1))
    twice, of_twice = torch.cat([features, features]), torch.cat([labels, labels])
    groups = torch.arange(60).repeat(2)
    how = {"task": Task.SINGLE_LABEL, "num_labels": 2, "strengths": [1.0]}
    parted, together = cross_validate(twice, of_twice, **how), cross_validate(twice, of_twice, groups=groups, **how)
    # Labels of chance cannot be known; with the copy in sight they are.
    assert (parted.logits.argmax(1) == of_twice).float().mean() > 0.7
    assert (together.logits.argmax(1) == of_twice).float().mean() < 0.65


def test_a_regression_without_groups_leaves_out_single_rows() -> None:
    features, _ = problem(40, 4, 3)
    targets = features[:, :1] + torch.randn(40, 1, generator=torch.Generator().manual_seed(1))
    held = cross_validate(features, targets, task=Task.REGRESSION, num_labels=1, strengths=[3.0])
    scaled = StandardScaler().fit_transform(features.double().numpy())
    for row in range(40):
        rest = np.arange(40) != row
        model = Ridge(alpha=3.0).fit(scaled[rest], targets.numpy()[rest, 0])
        assert float(held.logits[row]) == pytest.approx(float(model.predict(scaled[[row]])[0]), abs=1e-4)
    grouped = cross_validate(features, targets, task=Task.REGRESSION, num_labels=1, groups=torch.arange(40) // 2)
    assert np.corrcoef(grouped.logits[:, 0], held.logits[:, 0])[0, 1] > 0.9


def test_the_interval_holds_the_score_of_the_head_on_all_rows() -> None:
    held = 0
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        weights = torch.randn(15, 1, generator=generator) / 4
        features = torch.randn(1080, 15, generator=generator)
        targets = features @ weights + torch.randn(1080, 1, generator=generator)
        how = {"num_labels": 1, "seed": seed}
        interval = linear_probe(features[:80], targets[:80], criterion=OF_NUMBERS, folds=5, **how).interval
        head = fit_linear(features[:80], targets[:80], task=Task.REGRESSION, **how)
        value = r2_score(targets[80:], head.logits(features[80:]))
        held += interval.low <= value <= interval.high
    assert held >= 54


def test_the_probe_of_a_regression_is_ridge_on_folds() -> None:
    features, _ = problem(90, 5, 3)
    targets = features[:, :2] @ torch.tensor([[1.0], [-2.0]]) + 0.1 * torch.randn(
        90, 1, generator=torch.Generator().manual_seed(1)
    )
    probe = linear_probe(features, targets, criterion=OF_NUMBERS, num_labels=1, folds=5, seed=0)
    model = Ridge(alpha=0.1).fit(features.numpy(), targets.numpy())
    assert probe.interval.value == pytest.approx(r2_score(targets, model.predict(features.numpy())), abs=0.02)
    assert probe.interval.low < probe.interval.value < probe.interval.high


def test_neighbours_are_scikit_learns() -> None:
    features, labels = problem(200, 8, 4, apart=0.7)
    train, test = features[:150], features[150:]
    scores = neighbour_scores(train, torch.nn.functional.one_hot(labels[:150]).float(), test)

    def weight(distances: np.ndarray) -> np.ndarray:
        return np.exp(-distances / 0.07)

    centred = (features - train.mean(0)).numpy()
    model = KNeighborsClassifier(20, metric="cosine", weights=weight).fit(centred[:150], labels[:150])
    np.testing.assert_allclose(scores.numpy(), model.predict_proba(centred[150:]), atol=1e-5)


def test_no_row_is_its_own_neighbour() -> None:
    features, _ = problem(60, 8, 2)
    labels = torch.randint(0, 2, (60,), generator=torch.Generator().manual_seed(0))
    targets = torch.nn.functional.one_hot(labels).float()
    score = neighbour_probe(features, labels, targets, criterion=OF_CLASSES, seed=0)
    one_by_one = [
        neighbour_scores(
            torch.cat([features[:i], features[i + 1 :]]),
            torch.cat([targets[:i], targets[i + 1 :]]),
            features[i : i + 1],
        )
        for i in range(60)
    ]
    # The centre moves a little when the row itself is left out.
    np.testing.assert_allclose(score.scores, torch.cat(one_by_one).numpy(), atol=0.1)


@pytest.mark.parametrize("task", [task for task in Task if not task.of_words])
def test_a_metric_of_samples_is_the_metric_of_the_rows_drawn(task: Task) -> None:
    generator = np.random.default_rng(0)
    rows = 40
    labels = task.case(
        single_label=generator.integers(0, 3, rows),
        multi_label=generator.integers(0, 2, (rows, 3)).astype(np.float32),
        regression=generator.normal(size=(rows, 2)).astype(np.float32),
        token_labels=None,
    )
    scores = generator.normal(size=(rows, 2 if task is Task.REGRESSION else 3)).round(1)
    scores = scores + (labels if task is Task.REGRESSION else 0)
    names = [str(k) for k in range(scores.shape[1])]
    whole = resampled_metric(task, scores, labels, np.ones((1, rows)))[0]
    assert whole == pytest.approx(evaluate_predictions(task, scores, labels, names)[task.metric])
    measure = task.case(
        single_label=lambda s, y: accuracy_score(y, s.argmax(1)),
        multi_label=lambda s, y: np.mean([average_precision_score(y[:, k], s[:, k]) for k in range(3)]),
        regression=lambda s, y: r2_score(y, s),
        token_labels=None,
    )
    times = next(resamples(rows, seed=1))[:20]
    drawn = [np.repeat(np.arange(rows), each.astype(int)) for each in times]
    expected = [measure(scores[each], labels[each]) for each in drawn]
    np.testing.assert_allclose(resampled_metric(task, scores, labels, times), expected, atol=1e-5)


def test_equal_backbones_share_a_group_and_a_worse_one_opens_the_next() -> None:
    features, labels = problem(400, 10, 4, apart=1.0)
    noisy = features + 6 * torch.randn(400, 10, generator=torch.Generator().manual_seed(3))
    turned = features @ torch.linalg.qr(torch.randn(10, 10, generator=torch.Generator().manual_seed(4)))[0]
    good, same, bad = (
        linear_probe(each, labels, criterion=OF_CLASSES, num_labels=4, folds=5, seed=0)
        for each in (features, turned, noisy)
    )
    assert tied_groups([good, same, bad]) == [1, 1, 2]
    assert tied_groups([good]) == [1]
    assert ahead_by(good, bad).low > 0


def test_a_law_is_found_again_and_extrapolates() -> None:
    sizes = np.array([50, 100, 200, 400, 800])
    truth = np.array([[0.9, 2.0, 0.7], [0.75, 1.0, 0.5], [1.0, 0.8, 0.3]])
    scores = np.stack([law_at(truth, n) for n in sizes], axis=1)
    laws = fitted_laws(sizes, scores, np.full(5, 0.01))
    np.testing.assert_allclose(law_at(laws, 1600), law_at(truth, 1600), atol=2e-3)
    assert (laws[:, 0] <= 1).all()
    assert (laws[:, 1] >= 0).all()


def test_every_beginning_of_an_order_has_the_classes_in_proportion() -> None:
    labels = np.repeat([0, 1, 2], [100, 40, 10])
    order = nested_order(labels, Task.SINGLE_LABEL, 0)
    assert sorted(order) == list(range(150))
    for size in (15, 45, 90):
        counts = np.bincount(labels[order[:size]], minlength=3)
        assert np.abs(counts - size * np.array([100, 40, 10]) / 150).max() <= 1


def test_what_cannot_be_probed_is_refused_by_name() -> None:
    features = torch.randn(6, 3)
    with pytest.raises(DataError, match="one class"):
        linear_probe(
            features,
            torch.zeros(6, dtype=torch.int64),
            criterion=OF_CLASSES,
            num_labels=1,
            folds=5,
            seed=0,
        )
    with pytest.raises(DataError, match="no class has two rows"):
        linear_probe(features, torch.arange(6), criterion=OF_CLASSES, num_labels=6, folds=5, seed=0)
    with pytest.raises(DataError, match="do not vary"):
        neighbour_probe(features, torch.ones(6, 1), torch.ones(6, 1), criterion=OF_NUMBERS, seed=0)
