"""Metrics against scikit-learn, SciPy and hand counts; with no network and nothing written."""

import json
import os
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from hftl.errors import ConvergenceError
from hftl.metrics import evaluate_predictions
from hftl.metrics.classification import F1, Accuracy, MeanAveragePrecision, PerClass
from hftl.metrics.regression import RegressionScores

RNG = np.random.default_rng(7)


def random_classes(n: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    logits = RNG.normal(size=(n, classes)).astype(np.float32) * 3
    return logits, RNG.integers(0, classes, n)


@pytest.mark.parametrize(("n", "classes"), [(500, 2), (800, 7), (300, 40)])
def test_single_label_agrees_with_scikit_learn(n: int, classes: int) -> None:
    logits, labels = random_classes(n, classes)
    names = [f"c{i}" for i in range(classes)]
    result = evaluate_predictions("single_label", logits, labels, names)
    predicted = logits.argmax(axis=1)
    exp = np.exp(logits.astype(np.float64))
    assert result["accuracy"] == pytest.approx(np.mean(predicted == labels), abs=1e-12)
    assert result["f1_macro"] == pytest.approx(sk.f1_score(labels, predicted, average="macro", zero_division=0))
    assert result["f1_weighted"] == pytest.approx(sk.f1_score(labels, predicted, average="weighted", zero_division=0))
    assert result["log_loss"] == pytest.approx(
        sk.log_loss(labels, exp / exp.sum(axis=1, keepdims=True), labels=np.arange(classes)), rel=1e-9
    )
    report = sk.classification_report(
        labels, predicted, labels=np.arange(classes), target_names=names, output_dict=True, zero_division=0
    )
    for name in names:
        assert result["per_class"][name]["precision"] == pytest.approx(report[name]["precision"])
        assert result["per_class"][name]["recall"] == pytest.approx(report[name]["recall"])
        assert result["per_class"][name]["f1"] == pytest.approx(report[name]["f1-score"])
        assert result["per_class"][name]["support"] == report[name]["support"]
    brute = np.zeros((classes, classes), dtype=int)
    for label, prediction in zip(labels, predicted, strict=True):
        brute[label, prediction] += 1
    assert result["confusion"] == brute.tolist()


def test_classes_absent_from_labels_and_predictions_give_no_warning_and_do_not_count_in_macro_f1() -> None:
    logits = np.array([[5, 0, 0, 0], [0, 5, 0, 0], [5, 0, 0, 0]], dtype=np.float32)
    result = evaluate_predictions("single_label", logits, np.array([0, 1, 1]), ["a", "b", "c", "d"])
    # a: precision 1/2, recall 1; b: precision 1, recall 1/2: F1 is 2/3 for both, c and d are nowhere.
    assert result["f1_macro"] == pytest.approx(2 / 3)
    assert result["per_class"]["d"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert result["confusion"][3] == [0, 0, 0, 0]


def test_log_loss_stays_finite_for_extreme_logits() -> None:
    logits = np.array([[1e4, -1e4], [1e4, -1e4]], dtype=np.float32)
    result = evaluate_predictions("single_label", logits, np.array([0, 1]), ["a", "b"])
    assert result["log_loss"] == pytest.approx(1e4)  # half of 0 + 2e4


def test_confusion_is_left_out_for_very_many_classes() -> None:
    logits, labels = random_classes(50, 300)
    result = evaluate_predictions("single_label", logits, labels, [str(i) for i in range(300)])
    assert "confusion" not in result
    assert len(result["per_class"]) == 300


def test_multi_label_agrees_with_scikit_learn() -> None:
    logits = RNG.normal(size=(400, 6)).astype(np.float32)
    labels = (RNG.random((400, 6)) < 0.3).astype(np.float32)
    names = list("abcdef")
    result = evaluate_predictions("multi_label", logits, labels, names)
    predicted = logits > 0
    assert result["subset_accuracy"] == pytest.approx((predicted == labels).all(axis=1).mean())
    for average in ("micro", "macro"):
        expected = sk.f1_score(labels, predicted, average=average, zero_division=0)
        assert result[f"f1_{average}"] == pytest.approx(expected)
    each = [sk.average_precision_score(labels[:, k], logits[:, k]) for k in range(6)]
    assert result["map"] == pytest.approx(np.mean(each))
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    each = [sk.log_loss(labels[:, k], probability[:, k]) for k in range(6)]
    assert result["log_loss"] == pytest.approx(np.mean(each), rel=1e-9)
    assert result["per_class"]["c"]["recall"] == pytest.approx(sk.recall_score(labels[:, 2], predicted[:, 2]))


def test_several_labels_are_decided_by_a_threshold_each() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((50, 3)) < 0.4).astype(np.float32)
    logits = rng.normal(size=(50, 3)).astype(np.float32)
    thresholds = [0.2, 0.5, 0.9]
    result = evaluate_predictions("multi_label", logits, labels, ["a", "b", "c"], thresholds)
    decided = 1 / (1 + np.exp(-logits.astype(np.float64))) > thresholds
    assert result["f1_macro"] == pytest.approx(sk.f1_score(labels, decided, average="macro", zero_division=0))
    assert result["subset_accuracy"] == pytest.approx((decided == labels).all(1).mean())
    assert [result["per_class"][name]["threshold"] for name in "abc"] == thresholds
    plain = evaluate_predictions("multi_label", logits, labels, ["a", "b", "c"])
    assert result["at_half"] == {name: plain[name] for name in ("subset_accuracy", "f1_micro", "f1_macro")}
    assert result["map"] == plain["map"]


def test_multi_label_with_labels_that_never_occur() -> None:
    logits = np.array([[2.0, -1.0, -3.0], [-2.0, -1.0, 3.0]], dtype=np.float32)
    labels = np.array([[1, 0, 0], [0, 0, 0]], dtype=np.float32)
    result = evaluate_predictions("multi_label", logits, labels, ["a", "b", "c"])
    assert result["map"] == 1.0  # only 'a' has a positive row, and it is ranked first
    assert result["subset_accuracy"] == 0.5
    nothing = evaluate_predictions("multi_label", logits, np.zeros((2, 3), np.float32), ["a", "b", "c"])
    assert nothing["map"] is None


@pytest.mark.parametrize("targets", [1, 3])
def test_regression_agrees_with_scikit_learn_and_scipy(targets: int) -> None:
    expected = RNG.normal(size=(200, targets)).astype(np.float32)
    predicted = (expected + RNG.normal(size=(200, targets))).astype(np.float32)
    names = [f"t{k}" for k in range(targets)]
    result = evaluate_predictions("regression", predicted, expected, names)
    assert result["mse"] == pytest.approx(sk.mean_squared_error(expected, predicted), rel=1e-5)
    assert result["rmse"] == pytest.approx(sk.root_mean_squared_error(expected, predicted), rel=1e-5)
    assert result["mae"] == pytest.approx(sk.mean_absolute_error(expected, predicted), rel=1e-5)
    assert result["r2"] == pytest.approx(sk.r2_score(expected, predicted), rel=1e-5)
    pearson = [np.corrcoef(expected[:, k], predicted[:, k])[0, 1] for k in range(targets)]
    assert result["pearson"] == pytest.approx(np.mean(pearson), rel=1e-5)
    ranks = [np.corrcoef(stats.rankdata(expected[:, k]), stats.rankdata(predicted[:, k]))[0, 1] for k in range(targets)]
    assert result["spearman"] == pytest.approx(np.mean(ranks), rel=1e-5)
    assert ("per_target" in result) == (targets > 1)
    if targets > 1:
        assert result["per_target"]["t1"]["mae"] == pytest.approx(np.abs(expected - predicted)[:, 1].mean(), rel=1e-5)


def test_regression_on_a_constant_has_no_correlation_but_an_error() -> None:
    result = evaluate_predictions("regression", np.ones((5, 1)), np.arange(5.0)[:, None], ["y"])
    assert result["pearson"] is None
    assert result["spearman"] is None
    assert result["mae"] == pytest.approx(np.abs(np.arange(5) - 1).mean())


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("single_label", np.array([1])),
        ("multi_label", np.array([[1, 0]], dtype=np.float32)),
        ("regression", np.array([[0.5, 1.0]], dtype=np.float32)),
    ],
)
def test_one_row_is_enough_and_everything_is_json(task: str, labels: np.ndarray) -> None:
    result = evaluate_predictions(task, np.array([[0.25, 2.0]], dtype=np.float32), labels, ["a", "b"])
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="no predictions"):
        evaluate_predictions("single_label", np.zeros((0, 2)), np.zeros(0, int), ["a", "b"])


@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_predictions_that_are_not_finite_are_an_error_and_never_a_metric(task: str, bad: float) -> None:
    logits = np.zeros((900, 3000), dtype=np.float32)
    logits[700, 4] = bad
    labels = np.zeros(900, int) if task == "single_label" else np.zeros((900, 3000), np.float32)
    with pytest.raises(ConvergenceError, match=r"row 700, output 4 is -?(nan|inf); .* train it again"):
        evaluate_predictions(task, logits, labels, [str(i) for i in range(3000)])


def test_outputs_that_share_a_name_are_all_reported() -> None:
    """ImageNet has two cranes: the bird and the machine."""
    logits = np.array([[3, 0, 0], [0, 3, 0], [0, 0, 3], [0, 3, 0]], dtype=np.float32)
    names = ["crane", "crane", "heron"]
    per_class = evaluate_predictions("single_label", logits, np.array([0, 1, 2, 2]), names)["per_class"]
    assert [(name, row["support"]) for name, row in per_class.items()] == [
        ("crane (0)", 1),
        ("crane (1)", 1),
        ("heron", 2),
    ]
    several = evaluate_predictions("multi_label", logits, np.eye(3)[[0, 1, 2, 2]], names)["per_class"]
    assert list(several) == list(per_class)
    targets = evaluate_predictions("regression", logits, np.eye(3)[[0, 1, 2, 2]], names)["per_target"]
    assert list(targets) == list(per_class)


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_thousands_of_classes_take_no_more_memory_than_a_block_of_rows(task: str) -> None:
    rows, classes = 6000, 3000
    logits = RNG.normal(size=(rows, classes)).astype(np.float32)  # 72 MB, and 144 MB as float64
    labels = RNG.integers(0, classes, rows)
    if task == "multi_label":
        labels = (np.arange(classes) == labels[:, None]).astype(np.float32)
        logits[:, 40:] = -1.0  # an average precision for each of 3,000 labels would take a minute
        labels[:, 40:] = 0
    tracemalloc.start()
    result = evaluate_predictions(task, logits, labels, [str(i) for i in range(classes)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(result["per_class"]) == classes
    assert peak < 60e6


def test_classes_work_as_evaluate_metrics_in_batches() -> None:
    logits, labels = random_classes(100, 4)
    predicted = logits.argmax(axis=1)
    accuracy = Accuracy()
    for start in range(0, 100, 30):
        accuracy.add_batch(predictions=predicted[start : start + 30], references=labels[start : start + 30])
    assert accuracy.compute() == {"accuracy": pytest.approx(np.mean(predicted == labels))}
    assert F1().compute(predictions=[0, 1, 1], references=[0, 1, 0], average="weighted")["f1"] == pytest.approx(2 / 3)
    assert PerClass().compute(predictions=[0], references=[0], label_names=["x"])["x"]["f1"] == 1.0
    assert MeanAveragePrecision().compute(predictions=[[0.1], [0.9]], references=[[0], [1]]) == {"map": 1.0}
    assert RegressionScores().compute(predictions=[1.0, 2.0], references=[1.0, 4.0])["mse"] == 2.0


def test_no_network_and_no_file_is_needed(tmp_path: Path) -> None:
    """In a process whose sockets are blocked and whose caches cannot be written."""
    script = """
        import socket, sys
        def refuse(*a, **k):
            raise AssertionError("network")
        socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
        import numpy as np
        from hftl.metrics import evaluate_predictions
        r = evaluate_predictions("single_label", np.eye(3), np.array([0, 1, 1]), ["a", "b", "c"])
        print(r["accuracy"])
    """
    home = tmp_path / "home"
    home.mkdir()
    env = {**os.environ, "HOME": str(home), "HF_HOME": str(home / "hf")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(2 / 3)
    assert not [p for p in home.rglob("*") if p.is_file()]
    assert not (home / "hf" / "metrics").exists()
    assert not (home / "hf" / "evaluate").exists()
