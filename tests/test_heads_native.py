"""Trained heads, and the baselines that cost nothing."""

import json
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor
from torch.nn import functional as F

from hftl.errors import ConvergenceError, DataError
from hftl.heads import baselines, fit_mlp, fit_native, mlp_logits, native
from hftl.heads.baselines import ledoit_wolf, prototype
from hftl.heads.matrix import Matrix, RowGroup
from hftl.heads.native import _adamw, _batches, _schedule


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = torch.tensor(x[order], dtype=torch.float32) / 16, torch.tensor(y[order])
    return x[:800], y[:800], x[800:], y[800:]


def head_params(dim: int, num_labels: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "dense.weight": torch.randn(dim, dim, generator=generator) * 0.1,
        "dense.bias": torch.zeros(dim),
        "out_proj.weight": torch.randn(num_labels, dim, generator=generator) * 0.02,
        "out_proj.bias": torch.zeros(num_labels),
    }


def dense_tanh_projection(params: dict[str, Tensor], features: dict[str, Tensor], train: bool) -> Tensor:
    hidden = F.dropout(features["x"], 0.1, train)
    hidden = torch.tanh(F.linear(hidden, params["dense.weight"], params["dense.bias"]))
    return F.linear(F.dropout(hidden, 0.1, train), params["out_proj.weight"], params["out_proj.bias"])


def refuses_vmap(params: dict[str, Tensor], features: dict[str, Tensor], train: bool) -> Tensor:
    assert float(params["dense.weight"].detach().sum()) != 0  # needs a number, which vmap cannot give
    return dense_tanh_projection(params, features, train)


SHAPES = {"weight": (10, 64), "bias": (10,)}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two settings, twelve rounds."""
    monkeypatch.setattr(native, "LEARNING_RATES", (1e-3, 3e-3))
    monkeypatch.setattr(native, "WEIGHT_DECAYS", (0.01,))
    monkeypatch.setattr(native, "ROUNDS", 12)


@pytest.mark.usefixtures("quick")
def test_a_non_linear_head_learns_and_is_deterministic() -> None:
    x, y, x_eval, y_eval = digits()
    params = head_params(64, 10)
    before = {name: value.clone() for name, value in params.items()}
    state = torch.get_rng_state()
    first, again, other = (
        fit_native(dense_tanh_projection, params, {"x": x}, y, task="single_label", num_labels=10, seed=seed)
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(params[name], value) for name, value in before.items())
    assert all(torch.equal(first.params[name], again.params[name]) for name in params)
    assert not torch.equal(first.params["out_proj.weight"], other.params["out_proj.weight"])
    logits = dense_tanh_projection(first.params, {"x": x_eval}, False)
    assert float((logits.argmax(1) == y_eval).double().mean()) > 0.93
    assert first.report["stacked"]
    assert len(first.report["settings"]) == 2
    assert first.report == json.loads(json.dumps(first.report, allow_nan=False))


def test_a_forward_that_vmap_refuses_is_looped_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, _, _ = digits()
    monkeypatch.setattr(native, "ROUNDS", 2)
    options: dict[str, Any] = {"task": "single_label", "num_labels": 10}

    def without_dropout(forward: Any) -> Any:
        return lambda params, features, train: forward(params, features, False)

    stacked, looped = (
        fit_native(without_dropout(forward), head_params(64, 10), {"x": x}, y, **options)
        for forward in (dense_tanh_projection, refuses_vmap)
    )
    assert stacked.report["stacked"]
    assert not looped.report["stacked"]
    for mine, theirs in zip(stacked.report["settings"], looped.report["settings"], strict=True):
        assert mine["validation"] == pytest.approx(theirs["validation"], rel=1e-3)


@pytest.mark.usefixtures("quick")
def test_a_validation_split_keeps_the_best_parameters_as_they_are() -> None:
    x, y, _, _ = digits()
    fit = fit_native(
        dense_tanh_projection,
        head_params(64, 10),
        {"x": x[:600]},
        y[:600],
        task="single_label",
        num_labels=10,
        validation=({"x": x[600:]}, y[600:]),
    )
    logits = dense_tanh_projection(fit.params, {"x": x[600:]}, False) * fit.report["calibration"]["temperature"]
    assert fit.report["validation"] == pytest.approx(float(F.cross_entropy(logits, y[600:])), rel=1e-4)
    assert fit.report["validation"] == min(s["validation"] for s in fit.report["settings"])


def two_last_layers(params: dict[str, Tensor], features: dict[str, Tensor], train: bool) -> Tensor:
    one, other = (
        F.linear(features["x"], params[f"{name}.weight"], params[f"{name}.bias"]) for name in ("one", "other")
    )
    return (one + other) / 2


def bounded(params: dict[str, Tensor], features: dict[str, Tensor], train: bool) -> Tensor:
    return 5 * torch.tanh(dense_tanh_projection(params, features, train))


@pytest.mark.usefixtures("quick")
def test_the_temperature_is_folded_into_the_last_layer_where_that_scales_the_logits() -> None:
    x, y, x_eval, _ = digits()
    pair = {f"{name}.{part}": torch.zeros(*shape) for name in ("one", "other") for part, shape in SHAPES.items()}
    for forward, params, num_labels, folded in (
        (dense_tanh_projection, head_params(64, 10), 10, True),
        (dense_tanh_projection, head_params(64, 64), 64, True),  # its first layer has a row for each label too
        (two_last_layers, pair, 10, True),
        (bounded, head_params(64, 10), 10, False),
    ):
        plain, calibrated = (
            fit_native(forward, params, {"x": x}, y, task="single_label", num_labels=num_labels, calibrate=calibrate)
            for calibrate in (False, True)
        )
        assert "calibration" not in plain.report
        report = calibrated.report["calibration"]
        assert report["folded"] == folded
        assert report["after"]["log_loss"] <= report["before"]["log_loss"]
        before, after = (forward(fit.params, {"x": x_eval}, False) for fit in (plain, calibrated))
        torch.testing.assert_close(after, before / report["temperature"] if folded else before, rtol=1e-4, atol=1e-4)


def test_stacked_adamw_equals_torch_adamw() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, 3, generator=generator)
    settings = [(1e-2, 0.0), (1e-1, 0.3)]
    stack = start.expand(2, 4, 3).clone()
    mean, square = torch.zeros_like(stack), torch.zeros_like(stack)
    rates, decays = (torch.tensor(column) for column in zip(*settings, strict=True))
    singles = [start.clone().requires_grad_() for _ in settings]
    optimizers = [
        torch.optim.AdamW([p], lr=rate, weight_decay=decay) for p, (rate, decay) in zip(singles, settings, strict=True)
    ]
    for step in range(1, 6):
        gradient = torch.randn(2, 4, 3, generator=generator)
        _adamw(stack, gradient, (mean, square), rates, decays, step)
        for i, (single, optimizer) in enumerate(zip(singles, optimizers, strict=True)):
            single.grad = gradient[i].clone()
            optimizer.step()
            torch.testing.assert_close(stack[i], single.detach())


def test_schedule_and_batches_cover_all() -> None:
    rates = [_schedule(step, 100) for step in range(1, 101)]
    assert max(rates) == 1.0
    assert rates[0] == pytest.approx(0.2)
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)
    batches = _batches(10, 4, seed=0)
    first, second = (torch.cat([next(batches) for _ in range(3)]) for _ in range(2))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_other_tasks_learn(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "ROUNDS", 20)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(800, 6, generator=generator)
    signal = torch.tanh(x @ torch.randn(6, 2, generator=generator))
    y = (signal > 0).float() if task == "multi_label" else signal
    fit = fit_native(dense_tanh_projection, head_params(6, 2), {"x": x[:700]}, y[:700], task=task, num_labels=2)
    logits = dense_tanh_projection(fit.params, {"x": x[700:]}, False)
    if task == "multi_label":
        assert float(((logits > 0) == y[700:].bool()).double().mean()) > 0.9
    else:
        assert float((logits - y[700:]).square().mean()) < 0.2 * float(y.var())


@pytest.mark.usefixtures("quick")
def test_class_weights_move_the_decision() -> None:
    x, y, x_eval, _ = digits()
    options: dict[str, Any] = {"task": "single_label", "num_labels": 10}
    weight = [1.0] * 9 + [200.0]
    plain, heavy = (
        fit_native(dense_tanh_projection, head_params(64, 10), {"x": x}, y, class_weight=w, **options)
        for w in (None, weight)
    )
    said = [int((dense_tanh_projection(f.params, {"x": x_eval}, False).argmax(1) == 9).sum()) for f in (plain, heavy)]
    assert said[1] > said[0]


@pytest.mark.usefixtures("quick")
def test_bad_input_is_named() -> None:
    x, y, _, _ = digits()
    options: dict[str, Any] = {"task": "single_label", "num_labels": 10}
    with pytest.raises(DataError, match="'x': 799 rows, but 800 labels"):
        fit_native(dense_tanh_projection, head_params(64, 10), {"x": x[1:]}, y, **options)
    with pytest.raises(DataError, match="NaN"):
        fit_native(dense_tanh_projection, head_params(64, 10), {"x": x * torch.nan}, y, **options)
    with pytest.raises(DataError, match="too few"):
        fit_native(dense_tanh_projection, head_params(64, 10), {"x": x[:2]}, torch.tensor([0, 1]), **options)
    broken = {**head_params(64, 10), "out_proj.bias": torch.full((10,), torch.nan)}
    with pytest.raises(ConvergenceError, match="finite loss"):
        fit_native(dense_tanh_projection, broken, {"x": x}, y, **options)


@pytest.mark.usefixtures("quick")
def test_the_perceptron_works_on_raw_features() -> None:
    x, y, x_eval, y_eval = digits()
    raw, raw_eval = x * 1000 + 5000, x_eval * 1000 + 5000
    fit = fit_mlp(raw, y, task="single_label", num_labels=10, hidden=64)
    accuracy = float((mlp_logits(fit.params, raw_eval).argmax(1) == y_eval).double().mean())
    assert accuracy > 0.94
    assert fit.report["kind"] == "mlp"


def test_prototype_equals_discriminant_analysis_with_ledoit_wolf() -> None:
    x, y, x_eval, _ = digits()
    residual = (x - torch.stack([x[y == c].mean(0) for c in range(10)])[y]).double()
    shrinkage = ledoit_wolf(residual.square().sum(1).square().mean(), residual.T @ residual / len(x), len(x))
    assert shrinkage == pytest.approx(ledoit_wolf_shrinkage(residual.numpy(), assume_centered=True), rel=1e-9)
    scale = x.std(0, correction=0).clamp_min(1e-6)
    kept = x.std(0) > 0
    standard = ((x - x.mean(0)) / scale)[:, kept]
    standard_eval = ((x_eval - x.mean(0)) / scale)[:, kept]
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.02, priors=[0.1] * 10)
    reference.fit(standard.double().numpy(), y.numpy())
    same = prototype(x, y, x_eval).numpy() == reference.predict(standard_eval.double().numpy())
    assert same.mean() > 0.98


def test_baselines_are_between_chance_and_the_truth() -> None:
    x, y, x_eval, y_eval = digits()
    scores = {name: float(right.double().mean()) for name, right in baselines(x, y, x_eval, y_eval).items()}
    assert scores["majority"] < 0.2
    assert scores["prototype"] > 0.9
    assert scores["knn"] > 0.95
    with pytest.raises(DataError, match="eval features"):
        baselines(x, y, x_eval * torch.nan, y_eval)


def test_baselines_of_features_in_blocks_are_those_of_features_in_memory() -> None:
    x, y, x_eval, y_eval = digits()
    parts = [RowGroup(rows, partial(x.__getitem__, rows)) for rows in torch.randperm(len(x)).split(100)]
    in_blocks = Matrix(parts, x.shape, x.dtype, x.device)
    known, other = (baselines(train, y, x_eval, y_eval) for train in (x, in_blocks))
    assert known.keys() == other.keys()
    assert all(torch.equal(known[name], other[name]) for name in known)
