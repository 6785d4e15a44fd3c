"""A trained model is asked what it was trained on: its own columns, pairs as pairs, outputs by their names."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import runs
import tiny
from PIL import Image
from runs import Cli, metrics, predictions
from test_run import write_recipe

import hftl
from hftl.errors import DataError, UserError
from hftl.export.loaded import LoadedModel, unique_names
from hftl.tasks import Task


def rows_of(cli: Cli, *arguments: str | Path) -> list[dict]:
    return [json.loads(line) for line in cli.ok("predict", *arguments, "--json").splitlines()]


def table(path: Path, header: list[str], rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def pairs(cli: Cli, tmp_path: Path) -> Path:
    """A run on pairs of texts, whose table has more columns than those."""
    recipe = write_recipe(
        tmp_path, tiny.save("bert", tmp_path / "bert"), runs.write_texts(tmp_path / "pairs.csv", 120, pairs=True)
    )
    cli.ok("run", recipe, "--out", tmp_path / "pairs", "--quiet")
    return tmp_path / "pairs"


@pytest.fixture
def tickets(cli: Cli, tmp_path: Path) -> Path:
    """A run on the column ``ticket`` of a table that has an ``id`` before it."""
    source = list(csv.reader(runs.write_texts(tmp_path / "texts.csv", 120).read_text().splitlines()))[1:]
    rows = [[str(i), text, label] for i, (text, label) in enumerate(source)]
    data = table(tmp_path / "tickets.csv", ["id", "ticket", "label"], rows)
    recipe = write_recipe(tmp_path, tiny.save("bert", tmp_path / "bert"), data)
    cli.ok("run", recipe, "--out", tmp_path / "run", "--input-columns", "ticket", "--quiet")
    return tmp_path / "run"


def test_a_table_is_read_by_the_columns_of_the_run(cli: Cli, tickets: Path, tmp_path: Path) -> None:
    texts = ["the cat sat under the tree", "two bird flew over a rug"]
    other = table(tmp_path / "new.csv", ["id", "note", "ticket"], [["7", "red", texts[0]], ["8", "blue", texts[1]]])
    alone = rows_of(cli, tickets, *texts)
    for model in (tickets, tickets / "model"):
        rows = rows_of(cli, model, other)
        assert [row["scores"] for row in rows] == [pytest.approx(row["scores"], abs=1e-6) for row in alone]
        assert [row["input"] for row in rows] == ["new.csv row 1", "new.csv row 2"]
    renamed = table(tmp_path / "renamed.csv", ["id", "tickets"], [["7", texts[0]]])
    line = cli.refused("predict", tickets, renamed)
    assert "no column 'ticket' (did you mean 'tickets'?)" in line
    # The advice works when it is followed.
    assert "--input-columns" in line
    assert rows_of(cli, tickets, renamed, "--input-columns", "tickets")[0]["scores"] == pytest.approx(
        alone[0]["scores"]
    )


def test_a_model_of_pairs_reads_pairs(cli: Cli, pairs: Path, tmp_path: Path) -> None:
    mine = predictions(pairs)
    source = list(csv.reader((tmp_path / "pairs.csv").read_text().splitlines()))[1:]
    number = int(mine["row"][0].split(" row ")[1]) - 1
    first, second, _ = source[number]
    (row,) = rows_of(cli, pairs, first, second)
    assert list(row["scores"].values()) == pytest.approx(mine["scores"][0], abs=1e-5)
    swapped = table(tmp_path / "new.csv", ["sentence2", "sentence1"], [[second, first]])
    (again,) = rows_of(cli, pairs, swapped)
    assert again["scores"] == pytest.approx(row["scores"], abs=1e-6)
    assert hftl.load(pairs).predict((first, second))["scores"] == pytest.approx(row["scores"], abs=1e-6)
    assert "reads pairs of texts (sentence1 and sentence2), and 1 texts were given" in cli.refused(
        "predict", pairs, "one text"
    )
    (tmp_path / "lines.txt").write_text("one line\n")
    assert "lines.txt line 1: the model reads pairs of texts" in cli.refused("predict", pairs, tmp_path / "lines.txt")
    assert "no column 'sentence2'" in cli.refused("predict", pairs, table(tmp_path / "x.csv", ["sentence1"], [["a"]]))
    with pytest.raises(DataError, match="reads single texts"):
        hftl.load(pairs).predict(("a", "b"), input_columns=["text"])


def test_a_model_alone_reads_a_column_only_where_there_is_one(cli: Cli, tickets: Path, tmp_path: Path) -> None:
    alone = (tickets / "model").rename(tmp_path / "alone")
    one = table(tmp_path / "one.csv", ["anything"], [["the cat sat"]])
    assert len(rows_of(cli, alone, one)) == 1
    named = table(tmp_path / "named.csv", ["id", "text"], [["3", "the cat sat"]])
    assert rows_of(cli, alone, named)[0]["scores"] == rows_of(cli, alone, "the cat sat")[0]["scores"]
    two = table(tmp_path / "two.csv", ["id", "ticket"], [["3", "the cat sat"]])
    assert "say it with --input-columns" in cli.refused("predict", alone, two)
    assert len(rows_of(cli, alone, two, "--input-columns", "ticket")) == 1


def test_what_looks_like_a_file_and_is_none_is_not_classified(cli: Cli, tickets: Path, tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text("ticket\na cat\n")
    assert "no file" in cli.refused("predict", tickets, "review.csv")
    long = "the cat sat " * 40 + "end.txt"
    assert rows_of(cli, tickets, long)[0]["input"] == long


def test_a_table_of_paths_is_read_for_pictures(cli: Cli, tmp_path: Path) -> None:
    data = runs.write_images(tmp_path / "data")
    cli.ok("run", write_recipe(tmp_path, tiny.save("vit", tmp_path / "vit"), data), "--out", "run", "--quiet")
    listed = table(tmp_path / "data" / "list.csv", ["photo"], [["class0/0.png"], ["class1/0.png"]])
    rows = rows_of(cli, "run", listed, "--input-columns", "photo")
    files = rows_of(cli, "run", data / "class0" / "0.png", data / "class1" / "0.png")
    assert [row["scores"] for row in rows] == [pytest.approx(row["scores"]) for row in files]
    assert "no file or folder" in cli.refused("predict", "run", "~nobody-here/x.png")


def test_outputs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    model = tiny.model("vit", num_labels=4)
    model.config.id2label = {0: "crane", 1: "dog", 2: "crane", 3: "cat"}
    model.config.label2id = {"crane": 2, "dog": 1, "cat": 3}
    model.save_pretrained(tmp_path / "model")
    tiny.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    row = hftl.load(tmp_path / "model").predict(tmp_path / "red.png")
    assert list(row["scores"]) == ["crane (0)", "dog", "crane (2)", "cat"]
    assert sum(row["scores"].values()) == pytest.approx(1, abs=1e-5)
    assert unique_names(["a", "b"]) == ["a", "b"]


@pytest.mark.parametrize("stated", [[0.5], [0.2, 1.5], ["0.2", "0.3"], 0.5], ids=str)
def test_thresholds_that_are_none_are_refused(tmp_path: Path, stated: Any) -> None:
    model = tiny.model("bert", num_labels=2)
    model.config.problem_type, model.config.thresholds = "multi_label_classification", stated
    model.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="write 2 numbers from 0 to 1"):
        hftl.load(tmp_path / "model")


def test_one_output_without_a_problem_type_is_no_softmax_of_one_number(tmp_path: Path) -> None:
    model = tiny.model("bert", num_labels=1)
    model.config.problem_type = None
    model.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    row = hftl.load(tmp_path / "model").predict("the cat sat")
    from transformers import pipeline

    (plain,) = pipeline("text-classification", model=str(tmp_path / "model"))("the cat sat")
    assert list(row["scores"].values()) == pytest.approx([plain["score"]], abs=1e-6)
    assert Task.of_config(SimpleNamespace(architectures=[], problem_type="regression", num_labels=1)) is Task.REGRESSION
    assert Task.of_config(SimpleNamespace(architectures=None, problem_type=None, num_labels=2)) is Task.SINGLE_LABEL


def test_a_model_is_loaded_once_and_asked_often(cli: Cli, tickets: Path) -> None:
    loaded = hftl.load(tickets)
    texts = ["the cat sat", "the dog ran"]
    for together, text in zip(loaded.predict(texts), texts, strict=True):
        alone = loaded.predict(text)
        assert alone["label"] == together["label"]
        assert alone["scores"] == pytest.approx(together["scores"], abs=1e-6)
    assert hftl.evaluate(loaded, str(tickets.parent / "tickets.csv"))["accuracy"] > 0.5
    assert metrics(tickets)["eval"]["accuracy"] > 0.5
    assert np.isclose(sum(loaded.predict(texts[0])["scores"].values()), 1)


@pytest.mark.parametrize(("architecture", "pooling"), [("bert", "native"), ("roberta", "native"), ("bert", "mean")])
def test_what_a_run_computed_is_not_computed_again_to_evaluate_it(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, pooling: str
) -> None:
    (tmp_path / "data").mkdir()
    for seed, split in enumerate(("train", "test")):
        runs.write_texts(tmp_path / "data" / f"{split}.csv", 80, seed=seed)
    backbone = tiny.save(architecture, tmp_path / "backbone")
    cli.ok("run", write_recipe(tmp_path, backbone, tmp_path / "data"), "--out", "run", "--pooling", pooling)

    def forward(*_: object) -> None:
        raise AssertionError("the model was asked")

    with monkeypatch.context() as patched:
        patched.setattr(LoadedModel, "logits", forward)
        stored = hftl.evaluate("run", str(tmp_path / "data"), quiet=True)
    assert stored["accuracy"] == metrics(Path("run"))["eval"]["accuracy"]
    assert stored["log_loss"] == pytest.approx(metrics(Path("run"))["eval"]["log_loss"], abs=1e-5)
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "elsewhere"))
    computed = hftl.evaluate("run", str(tmp_path / "data"), quiet=True)
    assert computed["log_loss"] == pytest.approx(stored["log_loss"], abs=1e-5)
    assert computed["confusion"] == stored["confusion"]


# ── evaluate ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_evaluate_reads_the_columns_that_the_run_read(cli: Cli, tickets: Path, tmp_path: Path) -> None:
    source = list(csv.reader((tmp_path / "tickets.csv").read_text().splitlines()))[1:]
    # A second text, before the one that the model reads, and a second column of classes.
    rows = [[f"red {i}", text, label, "zzz"] for i, text, label in source]
    other = table(tmp_path / "other.csv", ["text", "ticket", "label", "category"], rows)
    plain = hftl.evaluate(tickets, str(tmp_path / "tickets.csv"), quiet=True)
    assert hftl.evaluate(tickets, str(other), quiet=True)["confusion"] == plain["confusion"]
    renamed = table(tmp_path / "renamed.csv", ["text", "note", "label"], [row[:3] for row in rows])
    line = cli.refused("evaluate", tickets, "--data", renamed)
    assert "no column 'ticket'" in line
    assert "--input-columns" in line
    values = json.loads(cli.ok("evaluate", tickets, "--data", renamed, "--input-columns", "note", "--json"))
    assert values["confusion"] == plain["confusion"]


def test_evaluate_asks_little_of_the_data(cli: Cli, tmp_path: Path) -> None:
    data = runs.write_images(tmp_path / "data")
    cli.ok("run", write_recipe(tmp_path, tiny.save("vit", tmp_path / "vit"), data), "--out", "run", "--quiet")
    runs.write_images(tmp_path / "only" / "test", per_class=1)
    runs.write_images(tmp_path / "one", per_class=4, classes=1)
    (tmp_path / "both" / "train" / "unheard").mkdir(parents=True)
    runs.write_images(tmp_path / "both" / "test", per_class=2)
    (tmp_path / "both" / "train" / "unheard" / "0.png").write_bytes(b"no image")
    listed = table(tmp_path / "one.csv", ["image", "label"], [["one/class0/0.png", "class0"]])
    for given, rows in (("only", 3), ("one", 4), ("both", 6), (listed, 1)):
        out = tmp_path / "metrics.json"
        cli.ok("evaluate", "run", "--data", given, "--out", out)
        assert sum(map(sum, json.loads(out.read_text())["confusion"])) == rows
        assert f"{rows} row" in cli.err


def test_targets_are_matched_by_name(cli: Cli, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [line.rsplit(",", 1)[0] for line in runs.write_texts(tmp_path / "t.csv", 80).read_text().splitlines()[1:]]
    targets = [[str(len(text)), f"{rng.normal() * 0.01 - len(text.split()) * 1.5:.4f}"] for text in texts]
    data = table(
        tmp_path / "d.csv", ["text", "length", "words"], [[a, *b] for a, b in zip(texts, targets, strict=True)]
    )
    recipe = write_recipe(tmp_path, tiny.save("bert", tmp_path / "bert"), data)
    cli.ok("run", recipe, "--out", "run", "--task", "regression", "--label-columns", "length,words", "--quiet")
    swapped = table(
        tmp_path / "s.csv", ["words", "text", "length"], [[b[1], a, b[0]] for a, b in zip(texts, targets, strict=True)]
    )
    straight, crossed = (hftl.evaluate("run", str(each), quiet=True) for each in (data, swapped))
    assert crossed["r2"] == pytest.approx(straight["r2"], abs=1e-6)
    assert crossed["per_target"]["words"] == pytest.approx(straight["per_target"]["words"])
