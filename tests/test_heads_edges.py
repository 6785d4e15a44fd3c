"""What heads do with data at the edge: right results or a clear error."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hftl.errors import ConvergenceError, DataError, UserError
from hftl.heads import HeadFit, fit_linear
from hftl.heads.folds import rarest_label_folds, stratified_folds
from hftl.heads.lbfgs import minimize
from hftl.heads.objective import NO_FOLD


def blobs(rows: int, dim: int, classes: int, *, spread: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, dim, generator=generator)
    labels = torch.arange(rows) % classes
    return means[labels] + spread * torch.randn(rows, dim, generator=generator), labels


def fit(x: Tensor, y: Tensor, **options: Any) -> HeadFit:
    options = {"task": "single_label", "num_labels": int(y.max()) + 1, **options}
    head = fit_linear(x, y, **options)
    assert bool(torch.isfinite(head.weight).all() and torch.isfinite(head.bias).all())
    return head


def test_classes_of_one_row_always_train_and_are_named() -> None:
    x, y = blobs(90, 6, 3, spread=0.3)
    single = torch.full((1, 6), 8.0)
    head = fit(torch.cat([x, single, -single]), torch.cat([y, torch.tensor([3, 4])]))
    assert head.report["classes_of_one_row"] == [3, 4]
    assert head.logits(single).argmax(1).tolist() == [3]


def test_folds_are_stratified_and_keep_single_rows_out() -> None:
    labels = torch.tensor([0] * 20 + [1] * 10 + [2] * 3 + [3])
    folds = stratified_folds(labels, 5, seed=4)
    assert folds[-1] == -1
    for fold in range(5):
        assert int((labels[folds == fold] == 0).sum()) == 4
        assert int((labels[folds == fold] == 1).sum()) == 2
    assert sorted(folds[labels == 2].tolist()) == sorted(set(folds[labels == 2].tolist()))


def test_folds_of_several_labels_spread_the_rare_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(500, 6, generator=generator) < torch.tensor([0.5, 0.4, 0.3, 0.02, 0.02, 0.0])).float()
    labels[:, 5] = 0
    labels[7] = torch.tensor([1, 0, 0, 0, 0, 1])
    folds = rarest_label_folds(labels, 5, seed=0)
    assert folds[7] == NO_FOLD, "the only row of a label always trains"
    for label in (3, 4):
        counts = torch.bincount(folds[labels[:, label] > 0], minlength=5)
        assert int(counts.max() - counts.min()) <= 2
    assert torch.equal(folds, rarest_label_folds(labels, 5, seed=0))
    assert not torch.equal(folds, rarest_label_folds(labels, 5, seed=1))


def test_every_class_of_one_row_still_gives_a_head() -> None:
    x = torch.eye(4) * 5
    head = fit(x, torch.arange(4))
    assert head.report["chosen_on"].startswith("nothing")
    assert "calibration" not in head.report
    assert head.logits(x).argmax(1).tolist() == [0, 1, 2, 3]


def test_two_rows() -> None:
    head = fit(torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1]))
    assert head.report["converged"]
    assert head.logits(torch.tensor([[0.0], [1.0]])).argmax(1).tolist() == [0, 1]


def test_five_thousand_classes() -> None:
    x, y = blobs(5200, 8, 5000, spread=0.02)
    head = fit(x, y, strengths=[1.0], calibrate=False, tolerance=1e-2)
    assert len(head.report["classes_of_one_row"]) == 4800
    assert float((head.logits(x).argmax(1) == y).double().mean()) > 0.2  # a thousand times chance


def test_constant_features_get_no_weight_and_change_nothing() -> None:
    x, y = blobs(120, 5, 3, spread=1.5)
    constant = torch.tensor([0.0, 1e6, -3.3]).expand(120, 3)
    head, plain = fit(torch.cat([x, constant], 1), y), fit(x, y)
    assert bool((head.weight[:, 5:] == 0).all())
    torch.testing.assert_close(head.logits(torch.cat([x, constant], 1)), plain.logits(x), atol=1e-4, rtol=1e-4)


def test_only_constant_features_give_the_class_frequencies() -> None:
    y = torch.tensor([0] * 30 + [1] * 10)
    head = fit(torch.full((40, 3), 7.0), y, calibrate=False)
    torch.testing.assert_close(head.logits(torch.full((1, 3), 7.0)).softmax(1)[0], torch.tensor([0.75, 0.25]))


def test_duplicated_features_share_the_weight() -> None:
    x, y = blobs(150, 4, 3, spread=1.5)
    options: dict[str, Any] = {"strengths": [1.0], "calibrate": False}
    head = fit(torch.cat([x, x], 1), y, **options)
    torch.testing.assert_close(head.weight[:, :4], head.weight[:, 4:], atol=1e-5, rtol=1e-4)
    half = fit(x, y, strengths=[0.5], calibrate=False)
    torch.testing.assert_close(head.weight[:, :4] * 2, half.weight, atol=1e-3, rtol=1e-3)


def test_duplicated_rows_equal_doubled_weights() -> None:
    x, y = blobs(100, 5, 3, spread=2.0)
    options: dict[str, Any] = {"strengths": [1.0], "calibrate": False}
    doubled = fit(torch.cat([x, x]), torch.cat([y, y]), **options)
    weighted = fit(x, y, class_weight=[2.0, 2.0, 2.0], **options)
    torch.testing.assert_close(doubled.weight, weighted.weight, atol=1e-4, rtol=1e-4)


def test_more_features_than_rows() -> None:
    x, y = blobs(30, 400, 3, spread=1.0)
    head = fit(x, y, strengths=[10.0], calibrate=False, standardize=False)
    # The optimum satisfies strength * W = (Y - P)' X.
    truth = torch.nn.functional.one_hot(y, 3).double()
    residual = truth - head.logits(x).double().softmax(1)
    torch.testing.assert_close(head.weight.double() * 10, residual.T @ x.double(), atol=1e-3, rtol=1e-3)


def test_separable_data_stay_finite_and_perfect() -> None:
    x, y = blobs(200, 10, 4, spread=0.01)
    head = fit(x, y)
    assert bool((head.logits(x).argmax(1) == y).all())
    assert head.report["converged"]
    assert float(head.logits(x).abs().max()) < 1e4


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1e6, 1e15])
def test_standardised_heads_do_not_see_the_scale(scale: float) -> None:
    x, y = blobs(150, 6, 3, spread=2.0)
    plain, scaled = fit(x, y), fit(x * scale, y)
    torch.testing.assert_close(scaled.logits(x * scale), plain.logits(x), atol=2e-3, rtol=2e-3)


def test_features_of_very_different_scales() -> None:
    x, y = blobs(150, 6, 3, spread=2.0)
    factor = torch.tensor([1e-8, 1.0, 1e8, 1e3, 1e-3, 1.0])
    plain, scaled = fit(x, y), fit(x * factor, y)
    torch.testing.assert_close(scaled.logits(x * factor), plain.logits(x), atol=2e-3, rtol=2e-3)


def test_weights_beyond_float32_are_an_error() -> None:
    x, y = blobs(60, 4, 3)
    with pytest.raises(ConvergenceError, match="not finite"):
        fit(x * 1e-39, y, strengths=[1e-3])


def test_a_class_without_rows_is_never_predicted_and_is_named() -> None:
    x, y = blobs(90, 5, 3)
    head = fit(x, torch.where(y == 1, 3, y), num_labels=5)
    assert head.weight.shape == (5, 5)
    assert head.report["labels_not_learnt"] == [1, 4]
    assert set(head.logits(100 * x).argmax(1).tolist()) <= {0, 2, 3}


def test_a_class_without_rows_and_without_a_bias_is_pushed_down() -> None:
    x, y = blobs(90, 5, 2, spread=0.3)
    head = fit(x, y, num_labels=3, bias=False)
    assert not bool(head.bias.any())
    assert float((head.logits(x).argmax(1) == y).double().mean()) == 1.0


def test_a_label_that_is_always_or_never_set_keeps_its_frequency() -> None:
    x, y = blobs(98, 5, 2)
    labels = torch.stack([y.float(), torch.ones(98), torch.zeros(98)], 1)
    head = fit_linear(x, labels, task="multi_label", num_labels=3)
    assert head.report["labels_not_learnt"] == [1, 2]
    torch.testing.assert_close(head.logits(x).sigmoid()[:, 1], torch.full((98,), 98.5 / 99))
    assert bool((head.logits(x)[:, 2].sigmoid() < 0.01).all())


def test_zero_class_weight_removes_the_class() -> None:
    x, y = blobs(90, 5, 3)
    assert fit(x, y, class_weight=[1, 0, 1]).report["labels_not_learnt"] == [1]


def test_constant_targets() -> None:
    x, _ = blobs(40, 3, 2)
    head = fit_linear(x, torch.full((40,), 2.5), task="regression", num_labels=1)
    torch.testing.assert_close(head.logits(x), torch.full((40, 1), 2.5))


def test_a_head_that_did_not_converge_says_so() -> None:
    x, y = blobs(200, 20, 4, spread=5.0)
    assert not fit(x, y, tolerance=0.0, strengths=[1.0], calibrate=False).report["converged"]
    assert fit(x, y, strengths=[1.0], calibrate=False).report["converged"]


def test_every_problem_of_a_stack_ends_at_its_own_minimum() -> None:
    scale = torch.tensor([[1.0, 1.0], [1.0, 1e4], [3.0, 0.01]], dtype=torch.float64)
    goal = torch.tensor([[1.0, 2.0], [-3.0, 4.0], [5.0, -6.0]], dtype=torch.float64)

    def quartic(x: Tensor, problems: Tensor) -> tuple[Tensor, Tensor]:
        step, s = x - goal[problems], scale[problems]
        return 1 + (s * step**4 + s * step**2).sum(1), s * (4 * step**3 + 2 * step)

    solution = minimize(quartic, torch.zeros(3, 2, dtype=torch.float64), torch.ones_like(goal), tolerance=1e-20)
    torch.testing.assert_close(solution.x, goal, atol=1e-6, rtol=0)
    assert bool(solution.converged.all())
    assert len(set(solution.iterations.tolist())) > 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": torch.tensor([[1.0], [float("nan")]])}, DataError, "row 1, column 0 is NaN"),
        ({"features": torch.zeros(2, 0)}, DataError, "empty"),
        ({"features": torch.zeros(2, 1, dtype=torch.int64)}, DataError, "floating-point"),
        ({"labels": torch.tensor([0, 2])}, DataError, "row 1 is 2, expected a class from 0 to 1"),
        ({"labels": torch.tensor([0, -1])}, DataError, "row 1 is -1"),
        ({"labels": torch.tensor([0, 1, 1])}, DataError, "expected shape"),
        ({"labels": torch.tensor([1, 1])}, DataError, "one class"),
        ({"labels": torch.tensor([0.0, 1.0])}, DataError, "integer"),
        ({"task": "multi_label", "labels": torch.tensor([[0, 1], [2, 0]])}, DataError, "expected 0 or 1"),
        ({"task": "multi_label", "labels": torch.zeros(2, 2)}, DataError, "nothing to learn"),
        (
            {"task": "regression", "num_labels": 1, "labels": torch.tensor([1.0, float("inf")])},
            DataError,
            "finite number",
        ),
        ({"class_weight": [0.0, 0.0]}, UserError, "all rows are zero"),
        ({"class_weight": [1.0, -1.0]}, UserError, "at least zero"),
        ({"class_weight": [1.0, float("inf")]}, UserError, "finite"),
        ({"class_weight": [1.0]}, UserError, "expected 2 numbers"),
        ({"class_weight": "even"}, UserError, "balanced"),
        ({"strengths": [0.0]}, UserError, "positive"),
        ({"strengths": []}, UserError, "positive"),
        ({"folds": 1}, UserError, "at least 2"),
        ({"validation": (torch.zeros(1, 2), torch.tensor([0]))}, UserError, "1 columns"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {
        "features": torch.tensor([[0.0], [1.0]]),
        "labels": torch.tensor([0, 1]),
        "task": "single_label",
        "num_labels": 2,
        **change,
    }
    with pytest.raises(error, match=message):
        fit_linear(given.pop("features"), given.pop("labels"), **given)


def test_a_validation_class_without_training_rows_is_an_error() -> None:
    x, y = blobs(60, 4, 3)
    with pytest.raises(DataError, match="class 2 has no training row"):
        fit_linear(x[y < 2], y[y < 2], task="single_label", num_labels=3, validation=(x[y == 2], y[y == 2]))
