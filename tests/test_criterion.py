"""The metric that chooses: its direction, what it chooses, and what is said where it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import RECIPES, Cli
from scipy.stats import spearmanr
from sklearn.metrics import f1_score, log_loss, roc_auc_score

import hftl
from hftl.criterion import Criterion, as_logits, criterion_of
from hftl.errors import RecipeError
from hftl.finetune.loop import better_at_start, score_of
from hftl.heads import cross_validate, fit_linear, fit_mlp
from hftl.scored import better_by, intervals_of, scored
from hftl.tasks import Task


def rare_class(rows: int = 240, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes that overlap, of which one is rare: what is best by accuracy is not by F1."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0] * 12 + [1] * 90 + [2] * (rows - 102))
    means = torch.randn(3, 12, generator=generator)
    return torch.randn(rows, 12, generator=generator) * 1.6 + means[labels], labels


def f1_of_the_rare(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    return float(f1_score(y_true == 0, y_pred == 0, zero_division=0))


def misses(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    return float((y_true != y_pred).sum())


def never(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    return float("nan")


STRENGTHS = [1000.0, 100.0, 10.0, 1.0, 0.1, 0.01]


@pytest.mark.parametrize(
    ("criterion", "measure"),
    [
        (criterion_of(Task.SINGLE_LABEL, "f1_macro", None), lambda y, z: f1_score(y, z.argmax(1), average="macro")),
        (criterion_of(Task.SINGLE_LABEL, "log_loss", None), lambda y, z: -log_loss(y, z.double().softmax(1))),
        (
            criterion_of(Task.SINGLE_LABEL, "f1_of_the_rare", True, [f1_of_the_rare]),
            lambda y, z: f1_of_the_rare(y.numpy(), z.argmax(1).numpy()),
        ),
        (
            criterion_of(Task.SINGLE_LABEL, "misses", False, [misses]),
            lambda y, z: -misses(y.numpy(), z.argmax(1).numpy()),
        ),
    ],
    ids=lambda each: getattr(each, "name", ""),
)
def test_the_strength_is_the_best_by_the_metric_on_rows_held_out(criterion, measure) -> None:
    features, labels = rare_class()
    how = {"task": Task.SINGLE_LABEL, "num_labels": 3}
    fit = fit_linear(features, labels, strengths=STRENGTHS, judge=criterion, **how)
    for strength in (100.0, 1.0):
        held = cross_validate(features, labels, strengths=[strength], **how)
        (entry,) = fit_linear(features, labels, strengths=[strength], judge=criterion, **how).report["path"]
        assert criterion.sign * entry["metric"] == pytest.approx(measure(labels[held.rows], held.logits), abs=1e-6)
    path = {entry["strength"]: criterion.sign * entry["metric"] for entry in fit.report["path"]}
    assert len(path) == len(STRENGTHS)
    assert path[fit.report["chosen"]] == max(path.values())
    assert fit.report["chosen_by"] == criterion.name


def test_another_metric_may_choose_another_strength_and_the_rule_of_one_error_a_stronger_one() -> None:
    features, labels = rare_class()
    how = {"task": Task.SINGLE_LABEL, "num_labels": 3}
    by_f1 = criterion_of(Task.SINGLE_LABEL, "f1_macro", None)
    loss, metric = (fit_linear(features, labels, judge=judge, **how).report for judge in (None, by_f1))
    careful = fit_linear(features, labels, judge=by_f1, rule="one_se", **how).report
    assert metric["chosen"] < loss["chosen"]
    assert careful["chosen"] > metric["chosen"]
    assert "chosen_by" not in loss


def test_ridge_is_chosen_by_what_each_row_is_predicted_without_it() -> None:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(50, 8, generator=generator)
    targets = (features[:, :1] + 0.6 * torch.randn(50, 1, generator=generator)).exp()
    judge = criterion_of(Task.REGRESSION, "spearman", None)
    fit = fit_linear(features, targets, task="regression", num_labels=1, strengths=STRENGTHS, judge=judge)
    found = {}
    for strength in STRENGTHS:
        held = cross_validate(features, targets, task=Task.REGRESSION, num_labels=1, strengths=[strength])
        found[strength] = spearmanr(held.logits[:, 0], targets[:, 0]).statistic
    assert {entry["strength"]: entry["metric"] for entry in fit.report["path"]} == pytest.approx(found, abs=1e-3)
    assert found[fit.report["chosen"]] == max(found.values())


def test_a_head_without_an_exact_solution_is_chosen_by_the_metric_too() -> None:
    features, labels = rare_class()
    judge = criterion_of(Task.SINGLE_LABEL, "f1_macro", None)
    how = {"task": "single_label", "num_labels": 3, "hidden": 8, "validation": ({"features": features}, labels)}
    by_loss, by_metric = (fit_mlp(features, labels, judge=each, **how) for each in (None, judge))
    assert by_metric.report["chosen_by"] == "f1_macro"
    assert by_metric.report["metric"] <= 1
    assert by_metric.report["validation"] >= by_loss.report["validation"]


@pytest.mark.parametrize("task", [Task.SINGLE_LABEL, Task.MULTI_LABEL])
def test_where_the_metric_is_undefined_the_loss_chooses_and_the_report_says_so(task: Task) -> None:
    features, labels = rare_class()
    labels = labels if task.is_exclusive else torch.nn.functional.one_hot(labels, 3).float()
    judge = criterion_of(task, "never", True, [never])
    with_judge = fit_linear(features, labels, task=task, num_labels=3, judge=judge).report
    without = fit_linear(features, labels, task=task, num_labels=3).report
    assert with_judge["chosen_by"] == "the held-out loss, because never is undefined on the held-out rows"
    assert with_judge["chosen"] == without["chosen"]
    assert {entry["metric"] for entry in with_judge["path"]} == {None}


def test_an_undefined_epoch_comes_last_and_less_is_better_where_it_is() -> None:
    by_mae = criterion_of(Task.REGRESSION, "mae", None)
    history = [{"mae": 3.0, "mse": 9.0}, {"mae": None, "mse": 1.0}, {"mae": 2.0, "mse": 8.0}, {"mae": 2.0, "mse": 7.0}]
    assert max(range(4), key=lambda epoch: score_of(by_mae, history[epoch])) == 3
    assert better_at_start(by_mae, history, 1) == ["mae"]
    assert better_at_start(by_mae, history, 3) == []


@pytest.mark.parametrize("name", ["log_loss", "misses", "accuracy"])
def test_better_by_is_above_zero_for_the_better_one_whichever_way_the_metric_runs(name: str) -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 200)
    good = np.eye(3)[labels] * 3 + generator.normal(size=(200, 3))
    bad = generator.normal(size=(200, 3))
    criterion = criterion_of(Task.SINGLE_LABEL, name, False if name == "misses" else None, [misses])
    one, other = (scored(criterion, labels, np.arange(200), each, seed=0) for each in (good, bad))
    assert better_by(one, other).low > 0
    assert better_by(other, one).high < 0
    assert one.merit > other.merit


def test_shares_of_neighbours_are_read_as_probabilities() -> None:
    shares = np.array([[0.7, 0.3, 0.0], [0.2, 0.2, 0.6]])
    labels = np.array([0, 2])
    criterion = criterion_of(Task.SINGLE_LABEL, "log_loss", None)
    value = criterion.value(as_logits(Task.SINGLE_LABEL, shares), labels)
    assert value == pytest.approx(-np.log([0.7, 0.6]).mean(), abs=1e-5)


@pytest.mark.parametrize(
    ("metric", "greater_is_better", "said"),
    [
        (
            "f1_marco",
            None,
            "has 'accuracy', 'f1_macro', 'f1_weighted', 'log_loss', .* .did you mean 'f1_macro'",
        ),
        ("r2", None, "metric 'r2': single label has"),
        ("misses", None, "nothing says which way is better: add --greater-is-better or --no-greater-is-better"),
        ("log_loss", True, "metric 'log_loss': less is better; leave out greater_is_better"),
        ("signed", False, "metric 'signed' says greater_is_better=True itself"),
        (None, True, "none is named: give --metric too"),
    ],
)
def test_a_metric_that_cannot_choose_is_refused_in_one_line(metric, greater_is_better, said: str) -> None:
    def signed(y_true, y_pred) -> float:
        return 0.0

    signed.greater_is_better = True  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match=said) as refused:
        criterion_of(Task.SINGLE_LABEL, metric, greater_is_better, [misses, signed])
    assert "\n" not in str(refused.value)
    assert criterion_of(Task.SINGLE_LABEL, "signed", None, [signed]).greater_is_better


def test_a_function_that_fails_or_gives_many_numbers_cannot_choose() -> None:
    def broken(y_true, y_pred) -> float:
        raise ZeroDivisionError("no rows")

    def several(y_true, y_pred) -> dict[str, float]:
        return {"one": 1.0, "two": 2.0}

    logits, labels = np.eye(2), np.array([0, 1])
    for function, said in ((broken, "failed, so it cannot choose: ZeroDivisionError: no rows"), (several, "'one'")):
        criterion = criterion_of(Task.SINGLE_LABEL, function.__name__, True, [function])
        with pytest.raises(RecipeError, match=said):
            criterion.value(logits, labels)


def test_a_function_may_fail_on_a_sample_but_not_on_the_rows() -> None:
    def area(logits, labels, task) -> float:
        # It refuses rows of which none, or each, is of the second class.
        return float(roc_auc_score(labels, logits[:, 1] - logits[:, 0])) if len(set(labels)) == 2 else 1 / 0

    labels = np.array([0] * 12 + [1])
    logits = np.random.default_rng(0).normal(size=(13, 2)) + np.eye(2)[labels]
    criterion = criterion_of(Task.SINGLE_LABEL, "area", True, [area])
    score = scored(criterion, labels, np.arange(13), logits, seed=0)
    assert score.interval.value == pytest.approx(roc_auc_score(labels, logits[:, 1] - logits[:, 0]))
    assert np.isfinite(score.draws).all()
    assert np.isfinite(criterion.judge(logits, labels, None, with_error=True)).all()
    with pytest.raises(RecipeError, match="area' failed"):
        criterion.value(logits[:12], labels[:12])


@pytest.mark.parametrize("task", [each for each in Task if not each.of_words])
def test_no_interval_reaches_past_what_a_metric_can_be(task: Task) -> None:
    generator = np.random.default_rng(3)
    classes = generator.integers(0, 2, 40)
    labels = task.case(
        single_label=classes,
        multi_label=np.eye(2, dtype=np.float32)[classes],
        regression=generator.normal(size=(40, 2)),
        token_labels=None,
    )
    truth = np.eye(2)[classes] if task.has_classes else labels
    scores = (truth + generator.normal(scale=0.2, size=truth.shape)).astype(np.float32)
    scores[:2] = scores[:2, ::-1]
    made = intervals_of(task, task.scores(torch.from_numpy(scores)).numpy(), labels, spread=3.0).of
    made |= {"chosen": scored(Criterion.of_task(task), labels, np.arange(40), scores, seed=0, spread=3.0).interval}
    for name, each in made.items():
        if name == "chosen" or task.directions[name]:
            assert each.value <= each.high <= 1, name
        else:
            assert 0 <= each.low <= each.value, name


def test_every_metric_of_a_task_has_a_direction_and_the_value_that_a_run_reports() -> None:
    generator = np.random.default_rng(1)
    for task in (each for each in Task if not each.of_words):
        labels = task.case(
            single_label=generator.integers(0, 3, 60),
            multi_label=generator.integers(0, 2, (60, 3)).astype(np.float32),
            regression=generator.normal(size=(60, 3)).astype(np.float32),
            token_labels=None,
        )
        logits = generator.normal(size=(60, 3)).astype(np.float32)
        reported = hftl.metrics.evaluate_predictions(task, logits, labels, ["a", "b", "c"])
        numbers = {name: value for name, value in reported.items() if isinstance(value, float)}
        assert set(task.directions) == set(numbers)
        for name, value in numbers.items():
            assert criterion_of(task, name, None).value(logits, labels) == pytest.approx(value, abs=1e-6)


def test_a_run_says_what_chose_and_compare_follows_it(cli: Cli, tmp_path: Path) -> None:
    said = cli.ok(
        "run", RECIPES / "digits.py", "--limit", "60", "--metric", "log_loss", "--out", tmp_path / "one", "--report"
    )
    cli.ok("run", RECIPES / "digits.py", "--limit", "60", "--seed", "1", "--out", tmp_path / "two", "--no-report")
    assert "metric    log_loss chooses, less is better" in said
    found = json.loads((tmp_path / "one/metrics.json").read_text())
    assert found["chosen_by"] == {"metric": "log_loss", "greater_is_better": False}
    assert found["head"]["chosen_by"] == "log_loss"
    record = hftl.runs.folder.RunFolder(tmp_path / "one").record()
    assert record.criterion == Criterion(Task.SINGLE_LABEL, "log_loss", False, is_stated=True)
    assert "| chosen by | log\\_loss |" in (tmp_path / "one/model/README.md").read_text()
    assert "by log_loss on 5 folds" in (tmp_path / "one/report.html").read_text()
    listed = json.loads(cli.ok("runs", tmp_path, "--json"))
    assert {run["metric"] for run in listed} == {"log_loss", "accuracy"}
    refused = cli.refused("run", RECIPES / "digits.py", "--metric", "r2", "--out", tmp_path / "three")
    assert "single label has 'accuracy'" in refused
    assert not (tmp_path / "three").exists()
