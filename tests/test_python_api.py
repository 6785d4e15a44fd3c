"""Python: a run in the hand, features as a matrix, recipes in any form, metrics that are plain functions."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import runs
import tiny
from runs import Cli
from safetensors import safe_open
from sklearn.metrics import balanced_accuracy_score, f1_score, fbeta_score, mean_absolute_error
from test_terminal import RECIPE, RED, unprintable

import hftl
from hftl.notebook import html_table
from hftl.scout.findings import Finding

FAST = hftl.Head(folds=2, strengths=[1.0])


def texts(tmp_path: Path, rows: int = 40) -> hftl.Recipe:
    data = runs.write_texts(tmp_path / "texts.csv", rows)
    return hftl.Recipe(backbone=str(tiny.save("bert", tmp_path / "bert")), data=str(data), method=FAST)


def run_of(recipe: Any, **options: Any) -> hftl.Run:
    made = hftl.run(recipe, **{"out": "run", "quiet": True, "report": False, **options})
    assert made is not None
    return made


# ── a run ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_is_in_the_hand_and_can_be_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    made = run_of(texts(tmp_path))
    again = hftl.Run.open("run")
    assert again.folder == made.folder == Path("run")
    assert again.metrics == made.metrics == json.loads(Path("run/metrics.json").read_text())
    assert again.record.data.rows == made.metrics["rows"]
    assert not Path("run/report.html").exists()
    assert made.report() == Path("run/report.html")
    assert made.report().stat().st_size > 10_000
    predictions = again.predictions
    assert isinstance(predictions, pd.DataFrame)
    right = (predictions["label"] == predictions["prediction"]).mean()
    assert right == pytest.approx(made.metrics["eval"]["accuracy"])
    assert repr(made) == f"Run('run', accuracy {right:.4f})"
    Path("run/predictions.parquet").write_bytes(b"PAR1")
    with pytest.raises(hftl.HftlError, match="is damaged"):
        _ = again.predictions
    # It is its folder's path, so whatever takes a run's folder takes it.
    assert os.fspath(made) == "run"
    assert hftl.load(made).label_names == made.model.label_names == ["birds", "cats", "dogs"]
    assert hftl.evaluate(made, str(tmp_path / "texts.csv"), quiet=True)["accuracy"] > 0


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path):
    with pytest.raises(hftl.UserError, match="no folder"):
        hftl.Run.open(tmp_path / "nothing")
    with pytest.raises(hftl.UserError, match="no run of hftl"):
        hftl.Run.open(tmp_path)


def test_a_recipe_is_given_in_any_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    tiny.save("vit", tmp_path / "vit")
    runs.write_images(tmp_path / "pictures")
    Path("r.py").write_text(RECIPE)
    by_path = run_of("r.py", out="one")
    assert by_path.record.name == "r"
    by_object = run_of(hftl.Recipe(backbone="./vit", data="pictures", method=hftl.Head(folds=2)), out="two")
    by_run = run_of(by_path, out="three")
    function = hftl.recipe(lambda: hftl.Recipe(backbone="./vit", data="pictures", method=hftl.Head(folds=2)))
    by_function = run_of(function, out="four")
    for other in (by_object, by_run, by_function):
        assert other.metrics["eval"] == by_path.metrics["eval"]
        assert other.metrics["features"]["computed"] == 0
    np.testing.assert_array_equal(hftl.features("r.py", quiet=True).matrix, hftl.features(by_run, quiet=True).matrix)
    with pytest.raises(hftl.RecipeError, match="this is a int: give a Recipe"):
        hftl.run(3)  # type: ignore[arg-type]
    with pytest.raises(hftl.RecipeError, match="no recipe"):
        hftl.run("nothing.py")


# ── features ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_features_are_a_matrix_with_names(tmp_path: Path):
    recipe = texts(tmp_path)
    features = hftl.features(recipe, quiet=True)
    assert features.matrix.dtype == np.float32
    assert features.matrix.shape == (40, 32)
    assert len(features) == len(features.row_names) == len(features.labels) == 40
    X, y = features.of("test")
    assert (X.shape, y.shape, y.dtype) == ((8, 32), (8,), np.int64)
    np.testing.assert_array_equal(X, features.matrix[features.split == "test"])
    with pytest.raises(hftl.DataError, match=re.escape("no split 'tets' (did you mean 'test'?); there is train, test")):
        features.of("tets")
    assert repr(features) == "Features(40 × 32 float32; train 32, test 8; 3 labels)"
    # Against the file itself: a row's name leads to its label.
    frame = features.to_pandas()
    known = pd.read_csv(recipe.data)
    assert list(frame.columns) == ["split", "label", *range(32)]
    for name, label in frame["label"].items():
        assert known["label"][int(str(name).rsplit(" ", 1)[1]) - 1] == label
    np.testing.assert_array_equal(frame.loc[:, 0:].to_numpy(), features.matrix)


def test_features_of_several_targets_have_a_column_each(tmp_path: Path):
    rows = [(f"the cat sat {i}", [i / 7, -i / 3]) for i in range(20)]
    recipe = hftl.Recipe(backbone=str(tiny.save("bert", tmp_path / "bert")), data=rows)
    features = hftl.features(recipe, quiet=True)
    frame = features.to_pandas()
    assert list(frame.columns[:3]) == ["split", "label: label_0", "label: label_1"]
    np.testing.assert_array_equal(frame[["label: label_0", "label: label_1"]].to_numpy(), features.labels)
    (file,) = features.write(tmp_path / "deep" / "f.parquet")
    table = pq.read_table(file)
    np.testing.assert_array_equal(np.stack(table["label"].to_numpy()), features.labels)
    (file,) = features.write(str(tmp_path / "f.safetensors"))
    with safe_open(file, "np") as opened:
        np.testing.assert_array_equal(opened.get_tensor("labels"), features.labels)


# ── metrics that are functions ───────────────────────────────────────────────────────────────────────────────────────


def margin(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits[np.arange(len(labels)), labels] - logits.mean(1)).mean())


def both(labels: np.ndarray, task: str, logits: np.ndarray) -> dict[str, float]:
    assert task == "single_label"
    return {"rows": len(labels), "classes": logits.shape[1]}


def broken(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    raise ZeroDivisionError("no\x1b[31m rows")


def accuracy(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    return -1.0


def test_a_recipe_brings_metrics_that_are_functions(tmp_path: Path, cli: Cli):
    beta = functools.partial(fbeta_score, beta=2, average="macro")
    recipe = texts(tmp_path).model_copy(
        update={"metrics": (balanced_accuracy_score, margin, both, beta, broken, accuracy)}
    )
    capsys = cli.capsys
    made = run_of(recipe, quiet=False)
    out = capsys.readouterr().out
    values, predictions = made.metrics["eval"], made.predictions
    truth, predicted = predictions["label"], predictions["prediction"]
    assert values["balanced_accuracy_score"] == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert values["fbeta_score"] == pytest.approx(fbeta_score(truth, predicted, beta=2, average="macro"))
    assert (values["rows"], values["classes"]) == (len(truth), 3)
    assert values["margin"] > -10
    # What fails is said, and missing; what hftl measures itself stays.
    assert values["broken"] is None
    assert values["accuracy"] == pytest.approx((truth == predicted).mean())
    assert "metric 'broken' failed, so its value is missing: ZeroDivisionError" in out
    assert "metric 'accuracy' is left out" in out
    assert unprintable(out) == []
    assert made.record.recipe["metrics"][:2] == [
        "sklearn.metrics._classification:balanced_accuracy_score",
        "test_python_api:margin",
    ]
    # A run that is done again does without, and says so.
    cli.ok("run", "run", "--out", "again", "--quiet")
    assert "metric 'test_python_api:margin' of that run is left out" in cli.err
    assert "margin" not in runs.metrics(tmp_path / "again")["eval"]


def test_a_metric_of_a_regression_gets_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    rows = [(f"the cat sat {'on ' * (i % 5)}", i % 5 + 0.5) for i in range(40)]
    made = run_of(
        hftl.Recipe(
            backbone=str(tiny.save("bert", tmp_path / "bert")),
            data=rows,
            method=FAST,
            task=hftl.Task.REGRESSION,
            metrics=[mean_absolute_error],
        )
    )
    values = made.metrics["eval"]
    assert values["mean_absolute_error"] == pytest.approx(values["mae"])


def test_a_metric_of_several_labels_gets_zeros_and_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    rows = [(f"the cat sat {i}", ["a", "b"] if i % 3 else ["b"]) for i in range(40)]
    macro = functools.partial(f1_score, average="macro", zero_division=0)
    recipe = hftl.Recipe(backbone=str(tiny.save("bert", tmp_path / "bert")), data=rows, method=FAST, metrics=[macro])
    values = run_of(recipe).metrics["eval"]
    assert values["f1_score"] == pytest.approx(values["f1_macro"])


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ([lambda y_true, y_pred: 0.0], "a lambda has no name"),
        ([f1_score, functools.partial(f1_score, average="macro")], "two are called 'f1_score'"),
        ([fbeta_score], "'beta' has no default; fill it in with functools.partial"),
        ([lambda: 0.0], "lambda"),
        ([max], "parameters"),
        ([len], "its parameters are 'obj'; name them (y_true, y_pred)"),
    ],
)
def test_a_metric_whose_parameters_do_not_say_what_they_want_is_refused(metrics: list[Any], said: str):
    with pytest.raises(hftl.RecipeError, match=re.escape(said)):
        hftl.Recipe(backbone="x", data="y", metrics=metrics)


# ── in a notebook ────────────────────────────────────────────────────────────────────────────────────────────────────


class Seen(HTMLParser):
    """The tags of a page, their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data + " "


HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "&lt;b&gt;", RED, "{{7*7}}", "</table></div>"]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_others_wrote_is_inert_in_a_notebook(text: str):
    seen = Seen(html_table([{text: text, "number": 1.0}], text, [text]))
    assert seen.tags == {"div", "b", "table", "thead", "tbody", "tr", "th", "td"}
    assert seen.attributes == {"style"}
    assert unprintable(seen.text) == []
    shown = text.replace("\x1b", "\ufffd").replace("\x07", "\ufffd").replace("\u202e", "\ufffd")
    assert seen.text.count(shown) == 4


def test_a_run_is_a_small_table_in_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    page = run_of(texts(tmp_path))._repr_html_()
    seen = Seen(page)
    assert "accuracy" in seen.text
    assert "32" in seen.text
    assert len(page) < 4000
    # No colour of its own: dark notebooks stay readable.
    assert "color" not in page
    assert "background" not in page


# ── answers of the scout ─────────────────────────────────────────────────────────────────────────────────────────────


def test_answers_of_the_scout_are_a_line_a_frame_and_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.py").write_text(RECIPE.replace("./vit", "./bert").replace("pictures", "texts.csv"))
    texts(tmp_path, 60)
    answers = [
        hftl.rank("r.py", ["./bert"], folds=2, quiet=True),
        hftl.layers("r.py", folds=2, quiet=True),
        hftl.audit("r.py", quiet=True),
    ]
    for answer in answers:
        rows = getattr(answer, answer.table)
        frame = answer.to_pandas()
        assert len(frame) == len(rows)
        assert repr(answer).startswith(f"{type(answer).__name__}({len(rows)} {answer.table}: ")
        assert len(repr(answer)) < 300
        seen = Seen(answer._repr_html_())
        assert " ".join(answer.advice.split()) in seen.text
        assert answer.as_json()["advice"] == answer.advice
    ranking = answers[0]
    assert isinstance(ranking, hftl.Ranking)
    (first,) = ranking.to_pandas().to_dict("records")
    best = ranking.backbones[0]
    assert (first["probe"], first["probe_low"], first["probe_high"]) == (
        best.probe.value,
        best.probe.low,
        best.probe.high,
    )
    # The command runs what was given by name.
    assert ranking.command.startswith("hftl run r.py")
    audit = answers[-1]
    assert isinstance(audit, hftl.Audit)
    assert set(audit.to_pandas()["finding"]) == {each.finding for each in audit.findings}


def test_long_tables_are_cut_in_a_notebook_and_whole_in_a_frame():
    finding = Finding("copy", "train", RED, "a", "<b>why</b>", "train", "y", "", 1.0, "d1d1")
    answer = hftl.Audit({}, [finding] * 100, {}, None, None, [], {}, [], "Look at them.", 0.0, None, "text")
    assert len(answer.to_pandas()) == 100
    seen = Seen(answer._repr_html_())
    assert seen.text.count("why") == 21
    assert "and 80 more: to_pandas() has all" in seen.text
    assert unprintable(seen.text) == []
    assert "d1d1" not in seen.text


def test_hftl_brings_what_it_names_and_nothing_before():
    code = """
import sys, hftl
heavy = {"torch", "transformers", "pandas", "matplotlib", "sklearn", "datasets"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
hftl.Recipe(backbone="x", data="y.csv")
assert not heavy & set(sys.modules), heavy & set(sys.modules)
try:
    hftl.compute_features
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "module 'hftl' has no attribute 'compute_features'\n"
