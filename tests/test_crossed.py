"""Cross-validation of whole runs, intervals of every score, and several seeds as one result."""

from __future__ import annotations

import csv
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from runs import RECIPES, Cli, metrics
from scipy.special import softmax
from scipy.stats import binomtest, norm, t
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import (
    GroupKFold,
    PredefinedSplit,
    RepeatedStratifiedKFold,
    StratifiedGroupKFold,
    cross_val_predict,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tiny import save

import hftl
from hftl.crossed import Plan, dealt_for
from hftl.data import Split, Texts
from hftl.finetune.loop import Loop
from hftl.intervals import percentiles, proportion, share_of_units
from hftl.report.alike import OpenedRun
from hftl.report.numbers import said as said_of
from hftl.report.sections import RunPage
from hftl.runs.folder import RunFolder
from hftl.scored import intervals_of
from hftl.tasks import Task


def rows_of(patients: int = 24, seed: int = 0) -> list[dict[str, str]]:
    """Texts of patients, whose words say a little of their class."""
    generator = np.random.default_rng(seed)
    words = (["good", "nice", "happy", "fine"], ["bad", "sad", "poor", "ill"], ["red", "blue", "green", "grey"])
    rows = []
    for patient in range(patients):
        label = int(generator.integers(0, 3))
        for visit in range(int(generator.integers(1, 6))):
            spoken = [str(generator.choice(words[label if generator.random() < 0.6 else generator.integers(0, 3)]))]
            text = f"{spoken[0]} {generator.integers(0, 50)} of {patient} on {visit}"
            rows.append({"text": text, "label": "abc"[label], "patient": f"p{patient}"})
    return rows


def write(file: Path, rows: list[dict[str, str]]) -> Path:
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


STATED = ("--input-columns", "text", "--label-columns", "label", "--no-report")


def theirs(name: str, labels: np.ndarray, groups: np.ndarray) -> list[np.ndarray]:
    """The fold of each row, of each deal, as scikit-learn deals them."""
    if name == "RepeatedStratifiedKFold":
        splits = list(RepeatedStratifiedKFold(n_splits=4, n_repeats=2, random_state=0).split(labels, labels))
    else:
        dealer = GroupKFold(4) if name == "GroupKFold" else StratifiedGroupKFold(4, shuffle=True, random_state=0)
        splits = list(dealer.split(labels, labels, groups))
    deals = []
    for start in range(0, len(splits), 4):
        folds = np.empty(len(labels), dtype=int)
        for fold, (_, held) in enumerate(splits[start : start + 4]):
            folds[held] = fold
        deals.append(folds)
    return deals


@pytest.mark.parametrize("name", ["GroupKFold", "StratifiedGroupKFold", "RepeatedStratifiedKFold"])
def test_the_same_folds_give_scikit_learn_s_scores(cli: Cli, tmp_path: Path, name: str) -> None:
    backbone, rows = save("bert", tmp_path / "bert"), rows_of()
    labels = np.array([row["label"] for row in rows])
    for deal, folds in enumerate(theirs(name, labels, np.array([row["patient"] for row in rows]))):
        data = tmp_path / f"data{deal}"
        data.mkdir()
        write(data / "train.csv", [row | {"part": str(fold)} for row, fold in zip(rows, folds, strict=True)])
        write(data / "test.csv", [row | {"part": "0"} for row in rows_of(6, seed=1)])
        out = tmp_path / f"run{deal}"
        head = ("--strengths", "20", "--no-calibrate")
        cli.ok(
            "run", "--backbone", backbone, "--data", data, *STATED, "--fold", "part", "--cv", "4", *head, "--out", out
        )
        recipe = hftl.Recipe(backbone=str(backbone), data=str(data), input_columns=["text"], label_columns=["label"])
        x, y = hftl.features(recipe, quiet=True).of("train")
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1 / 20, tol=1e-8, max_iter=5000))
        predicted = cross_val_predict(model, x, y, cv=PredefinedSplit(folds))
        found = metrics(out)["cross_validation"]
        assert found["eval"]["accuracy"] == pytest.approx(accuracy_score(y, predicted), abs=1.5 / len(y))
        assert found["eval"]["f1_macro"] == pytest.approx(f1_score(y, predicted, average="macro"), abs=0.03)
        stored = pd.read_parquet(out / "out_of_fold.parquet")
        assert (stored["prediction"].to_numpy() == np.array(["a", "b", "c"])[predicted]).mean() > 0.98
        assert (stored["fold"].to_numpy() == folds + 1).all()
        assert not found["in_place_of_a_test_split"]


def test_a_run_without_a_test_split_reports_what_rows_were_scored_by_models_that_had_not_seen_them(
    cli: Cli, tmp_path: Path
) -> None:
    backbone, file = save("bert", tmp_path / "bert"), write(tmp_path / "x.csv", rows_of())
    run = ("run", "--backbone", backbone, "--data", file, "--input-columns", "text", "--label-columns", "label")
    said = cli.ok(*run, "--group", "patient", "--cv", "3x2", "--out", tmp_path / "run", "--report")
    rows = len(rows_of())
    assert f"3 folds, dealt 2 times: 6 trainings, then one on all {rows} rows" in said
    assert "what is exported is trained on all of them, and measured on none" in " ".join(said.split())
    stored = pd.read_parquet(tmp_path / "run/out_of_fold.parquet")
    assert len(stored) == 2 * rows
    assert (stored.groupby(["repeat", "group"])["fold"].nunique() == 1).all()
    found = metrics(tmp_path / "run")
    each = [accuracy_score(one["label"], one["prediction"]) for _, one in stored.groupby("repeat")]
    assert found["eval"]["accuracy"] == pytest.approx(np.mean(each))
    assert found["cross_validation"]["in_place_of_a_test_split"]
    assert found["rows"] == {"train": rows}
    assert found["intervals"]["drawn"] == "groups"
    assert found["intervals"]["units"] == 24
    first = stored[stored["repeat"] == 1].reset_index(drop=True)
    kept = pd.read_parquet(tmp_path / "run/predictions.parquet")
    assert (kept["prediction"] == first["prediction"]).all()
    card = (tmp_path / "run/model/README.md").read_text()
    assert f"By cross-validation on {rows} rows, 3 folds dealt 2 times" in card
    assert "no row is left to measure it on" in card
    page = (tmp_path / "run/report.html").read_text()
    assert f"By cross-validation on {rows} rows" in page
    assert "by bootstrap over 24 groups" in page
    # What costs nothing is scored on rows that it has not seen, too: a nearest neighbour is never the row itself.
    assert found["head"]["baselines"]["knn"] < 1
    for name, (low, high) in found["head"]["baseline_intervals"].items():
        alone = proportion(rows * found["head"]["baselines"][name], rows)
        assert low <= found["head"]["baselines"][name] <= high
        # Of patients, not of rows.
        assert high - low > alone.high - alone.low
    # A run that is done again is scored as it was.
    said = cli.ok("run", tmp_path / "run", "--no-report", "--out", tmp_path / "again")
    assert "3x2, as the run that is done again had it (--cv none draws a test split)" in said
    assert "3 folds, dealt 2 times" in said
    assert metrics(tmp_path / "again")["eval"] == found["eval"]
    assert (
        hftl.run(str(tmp_path / "run"), out=tmp_path / "third", report=False, quiet=True).metrics["eval"]
        == found["eval"]
    )
    cli.ok("run", tmp_path / "run", "--cv", "none", "--no-report", "--out", tmp_path / "drawn")
    assert "cross_validation" not in metrics(tmp_path / "drawn")
    assert metrics(tmp_path / "drawn")["rows"]["test"] > 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--cv", "five"), "give folds and how often they are dealt, such as 5x3"),
        (("--cv", "1x3"), "at least 2x1"),
        (("--cv", "5x3", "--depth", "auto"), "depth='auto' looks at all of them: give --depth N"),
        (("--cv", "5x3", "--time", "patient"), "--cv deals rows at random, and time wants the past"),
        (("--cv", "5x3", "--validation-size", "0.2"), "leave out --validation-size"),
        (("--cv", "30x1", "--group", "patient"), "24 groups of training rows are fewer than 30 folds: give --cv 24"),
        (("--cv", "5x1", "--fold", "label2"), "the column of folds has 3 in training, not 5: give --cv 3"),
        (("--cv", "3x2", "--fold", "label2"), "folds that are given cannot be dealt 2 times: give --cv 3"),
    ],
)
def test_what_does_not_go_with_cross_validation_is_refused(
    cli: Cli, tmp_path: Path, flags: tuple[str, ...], said: str
) -> None:
    backbone = save("bert", tmp_path / "bert")
    file = write(tmp_path / "x.csv", [row | {"label2": row["label"]} for row in rows_of()])
    assert said in cli.refused(
        "run", "--backbone", backbone, "--data", file, *STATED, *flags, "--out", tmp_path / "run"
    )


def test_metrics_of_functions_are_the_mean_of_all_deals(tmp_path: Path) -> None:
    def right(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        own = softmax(logits, axis=1)[np.arange(len(labels)), labels]
        return {"right": float(own.mean()), "rows": float(len(labels))}

    rows = rows_of()
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "train.csv", rows)
    recipe = hftl.Recipe(
        backbone=str(save("bert", tmp_path / "bert")),
        data=str(write(tmp_path / "x.csv", rows)),
        input_columns=["text"],
        label_columns=["label"],
        metrics=(right,),
    )
    found = hftl.run(recipe, out=tmp_path / "run", report=False, quiet=True, cv="5x2").metrics
    stored = pd.read_parquet(tmp_path / "run/out_of_fold.parquet")
    own = [scores["abc".index(label)] for scores, label in zip(stored["scores"], stored["label"], strict=True)]
    each = pd.Series(own).groupby(stored["repeat"]).mean()
    assert abs(each[1] - each[2]) > 1e-4
    assert found["eval"]["right"] == pytest.approx(each.mean(), abs=1e-6)
    # Beside a test split, those of the test rows stand in eval, and those of folds in cross_validation.
    write(folder / "test.csv", rows_of(6, seed=1))
    beside = hftl.run(
        recipe.model_copy(update={"data": str(folder)}), out=tmp_path / "beside", report=False, quiet=True, cv="5x2"
    ).metrics
    assert beside["eval"]["rows"] == len(rows_of(6, seed=1))
    assert beside["cross_validation"]["eval"]["rows"] == len(rows)


def test_fine_tuning_goes_on_with_the_folds_that_were_done(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, file = save("bert", tmp_path / "bert"), write(tmp_path / "x.csv", rows_of())
    method = ("--method", "full", "--epochs", "1", "--lr", "1e-3")
    run = ("run", "--backbone", backbone, "--data", file, *STATED, *method, "--cv", "2", "--out", tmp_path / "run")
    said = cli.ok(*run)
    assert "2 folds, dealt once: 2 trainings of 1 epochs (--method head takes seconds)" in said
    whole = metrics(tmp_path / "run")
    # The exported model was measured on rows that it was trained on, and nothing says otherwise.
    assert "start     the head solved on the features\n" in said
    assert "test split" not in said
    assert "on the train split" in said
    assert {epoch["split"] for epoch in (*whole["finetune"]["epochs"], whole["finetune"]["start"])} == {"train"}
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    assert {event["split"] for event in events if event["event"] == "epoch"} == {"train"}
    # Advice is of what --cv takes.
    assert "--validation-size" not in said
    # A finished run has what its folds said in one file.
    assert not (tmp_path / "run/cv").exists()

    accumulate, steps = Loop.accumulate, []

    def stopped(self: Loop, step: Any, number: int) -> torch.Tensor:
        if (tmp_path / "stopped/cv/1-1.json").exists():
            os.kill(os.getpid(), signal.SIGTERM)
        steps.append(number)
        return accumulate(self, step, number)

    monkeypatch.setattr(Loop, "accumulate", stopped)
    run = (*run[:-1], tmp_path / "stopped")
    assert cli(*run) == 130
    monkeypatch.setattr(Loop, "accumulate", lambda *given: (steps.append(given[2]), accumulate(*given))[1])
    # Folds of another seed are of other rows.
    assert "the run began otherwise" in cli.refused(*run, "--seed", "1", "--resume")
    before = len(steps)
    cli.ok(*run, "--resume")
    # The first fold is not trained again; the second and the whole are.
    assert len(steps) - before < 2 * before
    assert metrics(tmp_path / "stopped")["eval"] == whole["eval"]
    assert not (tmp_path / "stopped/cv").exists()
    kept, found = (metrics(tmp_path / name)["finetune"] for name in ("run", "stopped"))
    assert found["baseline_intervals"] == kept["baseline_intervals"]


def test_labels_that_folds_decided_by_their_own_thresholds_are_told_as_they_were_decided(
    cli: Cli, tmp_path: Path
) -> None:
    generator, lines = np.random.default_rng(0), []
    for row in range(48):
        has = generator.random(2) < 0.5
        words = [word if has[k] != (generator.random() < 0.25) else "grey" for k, word in enumerate(("good", "red"))]
        labels = [name for k, name in enumerate(("kind", "warm")) if has[k]]
        lines.append(json.dumps({"text": f"{words[0]} {words[1]} {row}", "labels": labels}) + "\n")
    (tmp_path / "x.jsonl").write_text("".join(lines))
    data = ("--data", tmp_path / "x.jsonl", "--input-columns", "text", "--label-columns", "labels")
    run = ("run", "--backbone", save("bert", tmp_path / "bert"), *data, "--task", "multi_label", "--cv", "2x2")
    tuned = ("--method", "full", "--epochs", "2", "--lr", "1e-3", "--at-precision", "0.6", "--out", tmp_path / "run")
    refused = cli.refused(*run, *tuned)
    assert "add --patience 2" in refused
    assert "--validation-size" not in refused
    assert "(--patience 2)" in cli.refused(*run, *tuned, "--validation-size", "0.1")
    cli.ok(*run, *tuned, "--patience", "2")
    card = (tmp_path / "run/model/README.md").read_text()
    assert "| label | precision | recall | F1 | rows |" in card
    assert "tables by label and all others are of the first deal" in card
    kept = pd.read_parquet(tmp_path / "run/predictions.parquet")
    decided = [[name in row for name in ("kind", "warm")] for row in kept["prediction"]]
    # The exported model's thresholds would have decided otherwise.
    by_last = np.stack(kept["scores"]) > metrics(tmp_path / "run")["finetune"]["thresholds"]
    assert (by_last != decided).any()
    opened = OpenedRun.of(tmp_path / "run")
    assert (opened.tested.predicted == decided).all()
    assert (RunPage(RunFolder(tmp_path / "run")).predictions.predicted == decided).all()
    place = np.array([5, 2, 9])
    turned = opened.at(place, replace(opened, tested=replace(opened.tested, names=["warm", "kind"])))
    assert (turned.predicted == np.array(decided)[place][:, ::-1]).all()
    assert said_of(turned, 1)[1] == [name for name in ("warm", "kind") if name in kept["prediction"][2]]


def test_neighbouring_seeds_share_no_deal() -> None:
    split = Split(
        "train", Texts([(f"text {row}",) for row in range(40)], [str(row) for row in range(40)]), np.arange(40) % 2
    )
    deals = [dealt_for(Plan(4, 3), split, Task.SINGLE_LABEL, seed) for seed in (0, 1)]
    assert not any((one == other).all() for one in deals[0] for other in deals[1])


# ── intervals ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_run_has_intervals_everywhere_and_accuracy_has_wilson_s(cli: Cli, tmp_path: Path) -> None:
    said = cli.ok("run", RECIPES / "digits.py", "--limit", "60", "--out", tmp_path / "run", "--report")
    found = metrics(tmp_path / "run")
    accuracy = found["eval"]["accuracy"]
    expected = binomtest(round(60 * accuracy), 60).proportion_ci(method="wilson")
    assert found["intervals"]["of"]["accuracy"] == pytest.approx([expected.low, expected.high])
    assert set(found["intervals"]["of"]) == {"accuracy", "f1_macro", "f1_weighted", "log_loss"}
    low, high = found["intervals"]["of"]["f1_macro"]
    assert low < found["eval"]["f1_macro"] <= high or found["eval"]["f1_macro"] == 1
    shown = f"{expected.low:.4f} to {expected.high:.4f}"
    for text in (said, (tmp_path / "run/model/README.md").read_text(), (tmp_path / "run/report.html").read_text()):
        assert shown in text


def test_percentiles_are_expanded_as_a_t_interval_is() -> None:
    draws = np.random.default_rng(0).normal(size=200_001)
    made = percentiles(0.0, draws, units=10)
    assert made.high == pytest.approx(t.ppf(0.975, 9) * (10 / 9) ** 0.5, abs=0.03)
    assert made.high > percentiles(0.0, draws).high == pytest.approx(norm.ppf(0.975), abs=0.02)


def test_a_share_of_groups_knows_how_many_rows_tell_as_much() -> None:
    # Rows of one group say the same, so that 20 groups of 5 are 20 rows.
    right = np.repeat(np.arange(20) < 15, 5)
    scores = np.where(right[:, None], [0.9, 0.1], [0.1, 0.9]).astype(np.float32)
    groups = np.repeat(np.arange(20), 5)
    made = intervals_of(Task.SINGLE_LABEL, scores, np.zeros(100, dtype=np.int64), groups=groups).of["accuracy"]
    alone = proportion(15, 20)
    assert made.high - made.low == pytest.approx((alone.high - alone.low) * t.ppf(0.975, 19) / norm.ppf(0.975), rel=0.1)
    apart = intervals_of(Task.SINGLE_LABEL, scores, np.zeros(100, dtype=np.int64)).of["accuracy"]
    assert made.high - made.low > 1.8 * (apart.high - apart.low)


def test_nothing_wrong_is_not_certainty() -> None:
    scores = np.tile([[0.9, 0.1]], (12, 1)).astype(np.float32)
    made = intervals_of(Task.SINGLE_LABEL, scores, np.zeros(12, dtype=np.int64), groups=np.arange(12) // 2)
    assert made.of["accuracy"].low == share_of_units(1.0, np.ones(9), 6).low < 0.6
    assert made.of["f1_macro"].low < 0.6


# ── seeds ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_several_seeds_are_one_result_and_a_stopped_one_goes_on(cli: Cli, tmp_path: Path) -> None:
    backbone, file = save("bert", tmp_path / "bert"), write(tmp_path / "x.csv", rows_of())
    run = ("run", "--backbone", backbone, "--data", file, *STATED, "--seeds", "3", "--out", tmp_path / "runs")
    said = cli.ok(*run, "--seed", "4")
    assert "each seed draws its own test split" in said
    values = [metrics(tmp_path / f"runs/seed-{seed}")["eval"]["accuracy"] for seed in (4, 5, 6)]
    together: dict[str, Any] = json.loads((tmp_path / "runs/seeds.json").read_text())
    assert together["seeds"] == [4, 5, 6]
    accuracy = together["metrics"]["accuracy"]
    assert accuracy["values"] == values
    assert [accuracy["mean"], accuracy["sd"]] == pytest.approx([np.mean(values), np.std(values, ddof=1)])
    # As if it had been killed in the last.
    (tmp_path / "runs/seed-6/metrics.json").unlink()
    (tmp_path / "runs/seeds.json").write_text(json.dumps({"seeds": [4, 5, 6]}))
    assert "add --resume to go on" in cli.refused(*run, "--seed", "4")
    assert "holds the seeds [4, 5, 6], not [0, 1, 2]" in cli.refused(*run, "--resume")
    said = cli.ok(*run, "--seed", "4", "--resume")
    assert said.count("done before") == 2
    assert json.loads((tmp_path / "runs/seeds.json").read_text()) == together
    assert "was run with another group" in cli.refused(*run, "--seed", "4", "--resume", "--group", "patient")
    assert "--seeds 1: give at least 2" in cli.refused("run", RECIPES / "digits.py", "--seeds", "1")
    refused = cli.refused("run", RECIPES / "digits.py", "--seeds", "2", "--push", "me/x")
    assert "--push publishes one model" in refused


def test_seeds_of_a_depth_that_is_chosen_go_on(cli: Cli, tmp_path: Path) -> None:
    backbone, file = save("bert", tmp_path / "bert"), write(tmp_path / "x.csv", rows_of(12))
    run = ("run", "--backbone", backbone, "--data", file, *STATED, "--seeds", "2", "--depth", "auto")
    cli.ok(*run, "--out", tmp_path / "runs")
    (tmp_path / "runs/seed-1/metrics.json").unlink()
    (tmp_path / "runs/seeds.json").write_text(json.dumps({"seeds": [0, 1]}))
    assert cli.ok(*run, "--out", tmp_path / "runs", "--resume").count("done before") == 1
