"""Predicting for work: streams in and out, files that are whole or not there, bad rows, and what people get wrong."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import runs
import tiny
from PIL import Image
from runs import Cli
from transformers import pipeline

import hftl
from hftl.errors import BadRowError, DataError, UserError
from hftl.store.files import process_mark

NAMES = ["=cats", "dogs", "birds"]


def exported(kind: str, folder: Path, task: str | None = None) -> Path:
    """A model that stands alone, its weights random and its labels named."""
    model = tiny.model(kind)
    model.config.problem_type = task
    model.config.id2label = dict(enumerate(NAMES))
    model.config.label2id = {name: number for number, name in enumerate(NAMES)}
    model.save_pretrained(folder)
    if kind == "bert":
        tiny.tokenizer().save_pretrained(folder)
    else:
        tiny.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "text": exported("bert", root / "text"),
        "several": exported("bert", root / "several", "multi_label_classification"),
        "numbers": exported("bert", root / "numbers", "regression"),
        "image": exported("vit", root / "image"),
    }


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_images(tmp_path_factory.mktemp("photos"), per_class=8)


def texts_of(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(tiny.WORDS, rng.integers(1, 25))) for _ in range(count)]


def write_table(path: Path, header: list[str], rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def in_json(cli: Cli, *arguments: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in cli.ok("predict", *arguments, "--json").splitlines()]


def feed(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content))))


# ── right ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_table_gets_what_transformers_pipeline_gives_each_row_alone(
    cli: Cli, models: dict[str, Path], tmp_path: Path
) -> None:
    texts = texts_of(250)
    rows = in_json(cli, models["text"], write_table(tmp_path / "t.csv", ["text"], [[text] for text in texts]))
    alone = pipeline("text-classification", model=str(models["text"]), device="cpu", top_k=None)
    assert [row["input"] for row in rows] == [f"t.csv row {i}" for i in range(1, 251)]
    for row, text in zip(rows[::9], texts[::9], strict=True):
        (expected,) = alone([text], truncation=True, max_length=32)
        assert row["label"] == expected[0]["label"]
        assert row["scores"] == pytest.approx({each["label"]: each["score"] for each in expected}, abs=1e-5)


def test_pictures_get_what_transformers_pipeline_gives(cli: Cli, models: dict[str, Path], photos: Path) -> None:
    rows = in_json(cli, models["image"], photos)
    paths = [row["input"] for row in rows]
    assert paths == sorted(map(str, photos.rglob("*.png")))
    theirs = pipeline("image-classification", model=str(models["image"]), device="cpu")(paths, top_k=2)
    best = in_json(cli, models["image"], photos, "--top-k", "2")
    for ours, expected in zip(best, theirs, strict=True):
        assert [each["label"] for each in ours["top"]] == [each["label"] for each in expected]
        assert [each["score"] for each in ours["top"]] == pytest.approx([each["score"] for each in expected], abs=1e-5)
        assert ours["label"] == ours["top"][0]["label"]


def test_however_pictures_are_named_the_answers_are_the_same(
    cli: Cli, models: dict[str, Path], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(photos.rglob("*.png"))
    (photos / "notes.md").write_text("no picture")
    expected = [row["scores"] for row in in_json(cli, models["image"], *files)]
    (tmp_path / "list.txt").write_text("".join(f"{file}\n" for file in files))
    listed = write_table(tmp_path / "list.csv", ["photo"], [[str(file)] for file in files])
    embedded = pa.table({"image": [{"bytes": file.read_bytes(), "path": None} for file in files]})
    pq.write_table(embedded, tmp_path / "list.parquet")
    ways = [
        [photos],
        [f"{photos}/**/*.png"],
        [f"{photos}/*/[0-9].*"],
        [tmp_path / "list.txt"],
        [tmp_path / "list.parquet"],
    ]
    for way in [*ways, [listed], [photos / "class0", photos / "class1", photos / "class2"]]:
        assert [row["scores"] for row in in_json(cli, models["image"], *way)] == [pytest.approx(e) for e in expected]
        assert ("1 file of other kinds left out (.md)" in cli.err) == (way == [photos])
    feed(monkeypatch, (tmp_path / "list.txt").read_bytes())
    assert [row["input"] for row in in_json(cli, models["image"], "-")] == list(map(str, files))


def test_texts_come_by_lines_tables_and_pipes(
    cli: Cli, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = texts_of(20)
    expected = [pytest.approx(row["scores"], abs=1e-6) for row in in_json(cli, models["text"], *texts)]
    lines = "".join(f"{text}\r\n" for text in texts).encode()
    objects = "".join(json.dumps({"text": text, "n": i}) + "\n" for i, text in enumerate(texts)).encode()
    table = ("n\ttext\n" + "".join(f"{i}\t{text}\n" for i, text in enumerate(texts))).encode()
    (tmp_path / "t.txt").write_bytes(lines)
    assert [row["scores"] for row in in_json(cli, models["text"], tmp_path / "t.txt")] == expected
    for content, kind in ((lines, "lines"), (objects, "jsonl"), (table, "tsv")):
        feed(monkeypatch, content)
        assert [row["scores"] for row in in_json(cli, models["text"], "-", "--input-format", kind)] == expected
    feed(monkeypatch, lines)
    assert [row["scores"] for row in in_json(cli, models["text"], "-")] == expected
    feed(monkeypatch, objects)
    assert "stdin begins like jsonl: say --input-format jsonl" in cli.refused("predict", models["text"], "-")
    (tmp_path / "folder").mkdir()
    (tmp_path / "t.txt").rename(tmp_path / "folder" / "b.txt")
    (tmp_path / "folder" / "a.jsonl").write_bytes(objects)
    rows = in_json(cli, models["text"], tmp_path / "folder")
    assert [row["scores"] for row in rows] == expected * 2
    assert rows[0]["input"].endswith("a.jsonl row 1")
    assert rows[20]["input"].endswith("b.txt line 1")


def test_pairs_stay_pairs_in_lines_and_python(
    cli: Cli, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = list(zip(texts_of(6), texts_of(12)[6:], strict=True))
    model = hftl.load(models["text"])
    expected = [pytest.approx(row["scores"], abs=1e-6) for row in model.predict(pairs)]
    feed(monkeypatch, "".join(f"{a}\t{b}\n" for a, b in pairs).encode() + b"only one\n")
    rows = in_json(cli, models["text"], "-", "--input-columns", "a,b")
    assert [row["scores"] for row in rows[:-1]] == expected
    assert "the model reads pairs of texts (a and b), and here are 1" in rows[-1]["error"]
    frame = pd.DataFrame(pairs, columns=["a", "b"])
    for given in (frame, pl.from_pandas(frame), frame.to_dict("records")):
        assert [row["scores"] for row in model.predict(given, input_columns=["a", "b"])] == expected
    assert model.predict(pairs[0])["scores"] == expected[0]


# ── streams ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_are_taken_a_few_windows_ahead_and_no_more(models: dict[str, Path]) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield "the cat sat"

    answers = hftl.load(models["text"]).predict(endless())
    next(answers)
    assert taken <= 64 + 256
    furthest = max(taken - number for number, _ in zip(range(2, 7_000), answers, strict=False))
    assert furthest <= 3 * 4096
    answers.close()


def test_pictures_are_decoded_a_few_ahead_and_no_more(models: dict[str, Path], photos: Path) -> None:
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield photos / "class0" / "0.png"

    answers = hftl.load(models["image"]).predict(endless())
    for number, _ in zip(range(100), answers, strict=False):
        assert taken - number <= 32 * (os.cpu_count() or 1) + 16 + 2
    answers.close()


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["text", "several", "numbers"])
@pytest.mark.parametrize("best", [None, 2])
def test_every_kind_of_file_holds_the_same_results(
    cli: Cli, models: dict[str, Path], tmp_path: Path, kind: str, best: int | None
) -> None:
    if kind == "numbers" and best:
        assert "a regression has no labels to choose from" in cli.refused("predict", models[kind], "a", "--top-k", "2")
        return
    table = pa.table({"id": [7, 8, 9], "text": [*texts_of(2), None], "who": ["=1+1", "ann", None]})
    pq.write_table(table, tmp_path / "t.parquet")
    options = ["--keep", "id,who", *(["--top-k", str(best)] if best else [])]
    expected = in_json(cli, models[kind], tmp_path / "t.parquet", *options)
    assert [row["id"] for row in expected] == [7, 8, 9]
    for suffix in (".csv", ".jsonl", ".parquet"):
        out = tmp_path / f"out{suffix}"
        said = cli.ok("predict", models[kind], tmp_path / "t.parquet", *options, "--out", out, "--json")
        assert json.loads(said) == {"out": str(out), "rows": 3, "bad": 1}
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == expected
    written = pq.read_table(tmp_path / "out.parquet")
    assert written.schema.field("id").type == pa.int64()
    for mine, row in zip(written.to_pylist(), expected, strict=True):
        for column, value in mine.items():
            assert value == (pytest.approx(row[column], abs=1e-6) if _is_plain(row.get(column)) else row.get(column))
    with (tmp_path / "out.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    # Nothing that a spreadsheet would compute, whoever wrote it.
    assert [row["who"] for row in cells] == ["'=1+1", "ann", ""]
    assert not any(cell.startswith("=") for row in cells for cell in row.values())
    assert [row["error"] for row in cells] == ["", "", "the text is empty"]
    if kind == "numbers":
        first = [float(cells[0][name] if name in cells[0] else cells[0][f"'{name}"]) for name in NAMES]
        assert first == pytest.approx(expected[0]["label"], abs=1e-6)
    elif kind == "several":
        assert [label for label in cells[0]["label"].lstrip("'").split("|") if label] == expected[0]["label"]
    else:
        assert cells[0]["label"].lstrip("'") == expected[0]["label"]
        assert float(cells[0]["score"]) == pytest.approx(expected[0]["score"], abs=1e-6)
    if best:
        assert float(cells[0]["score_2"]) == pytest.approx(expected[0]["top"][1]["score"], abs=1e-6)


def _is_plain(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, dict) and all(isinstance(v, float) for v in value.values()))


class Watched(io.RawIOBase):
    """Standard input that calls a function when so many bytes were read."""

    def __init__(self, content: bytes, then: Callable[[], None]) -> None:
        self.content, self.then = io.BytesIO(content), then

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        read = self.content.read(len(buffer))
        if not read:
            self.then()
        buffer[: len(read)] = read
        return len(read)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_file_appears_when_it_is_whole_and_an_interrupt_leaves_what_was_done(
    cli: Cli, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    out, partial = tmp_path / f"out{suffix}", tmp_path / f"out.partial{suffix}"
    content = "".join(f"{text}\n" for text in texts_of(700)).encode()
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    mark = process_mark().split("-")
    (tmp_path / f".out{suffix}.{mark[0]}-{dead.stdout.strip()}-{mark[2]}").write_text("left by a killed process")

    def nothing_there() -> None:
        assert not out.exists()

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Watched(content, nothing_there))))
    cli.ok("predict", models["text"], "-", "--out", out, "--quiet")
    assert cli.err == ""
    assert _rows_in(out) == 700
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")] == []
    out.unlink()

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Watched(content, interrupt))))
    assert cli("predict", models["text"], "-", "--out", out) == 130
    assert f"they are in {partial}" in cli.err
    assert not out.exists()
    assert 0 < _rows_in(partial) < 700
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")] == []


def _rows_in(path: Path) -> int:
    if path.suffix == ".parquet":
        return int(pq.read_metadata(path).num_rows)
    return len(path.read_text().splitlines()) - (path.suffix == ".csv")


# ── bad rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_bad_rows_are_said_and_the_others_answered(
    cli: Cli, models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    good = str(photos / "class0" / "0.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no more")
    rows = [[good], ["broken.png"], [""], ["absent.png"], [good]]
    table = write_table(tmp_path / "t.csv", ["image"], rows)
    table.write_text(table.read_text() + f"{good},too,many\n")
    said = in_json(cli, models["image"], table)
    assert [row["label"] is None for row in said] == [False, True, True, True, False, True]
    for row, why in zip(said[1:], ["not an image", "the cell is empty", "No such file", None, "3 cells"], strict=True):
        assert why is None or why in row["error"]
    assert "4 of 6 rows could not be read; the first is t.csv row 2 (broken.png): not an image" in cli.err
    printed = cli.ok("predict", models["image"], table, "--quiet")
    assert "error: the cell is empty" in printed
    assert cli.err.count("\n") == 1
    # Asked to stop, it has answered what came before.
    assert cli("predict", models["image"], table, "--json", "--on-bad-row", "error") == 2
    assert len(cli.out.splitlines()) == 1
    assert "t.csv row 2 (broken.png): not an image" in cli.err
    assert cli("predict", models["image"], table, "--on-bad-row", "error", "--out", tmp_path / "o.csv") == 2
    assert _rows_in(tmp_path / "o.partial.csv") == 1
    assert not (tmp_path / "o.csv").exists()
    line = cli.refused("predict", models["image"], tmp_path / "broken.png")
    assert "broken.png: not an image" in line


def test_a_table_that_breaks_in_the_middle_costs_no_row_before_it(
    cli: Cli, models: dict[str, Path], tmp_path: Path
) -> None:
    lines = "".join(f"{text}\n" for text in texts_of(4_000)).encode()
    (tmp_path / "t.txt").write_bytes(lines + b"caf\xe9\n")
    line = cli.refused("predict", models["text"], tmp_path / "t.txt", "--out", tmp_path / "o.jsonl")
    assert "t.txt line 4001: not UTF-8 text" in line
    # Text is decoded in blocks of 8 KiB, the last of which is lost.
    assert _rows_in(tmp_path / "o.partial.jsonl") > 3_700


# ── what people get wrong ────────────────────────────────────────────────────────────────────────────────────────────


def test_what_cannot_be_meant_is_refused_in_one_line(
    cli: Cli, models: dict[str, Path], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.md").write_text("text")
    table = write_table(tmp_path / "t.csv", ["id", "ticket"], [["1", "the cat"]])
    named = write_table(tmp_path / "named.csv", ["text", "label"], [["the cat", "x"]])
    feed(monkeypatch, b"")
    text, image = models["text"], models["image"]
    for arguments, said in {
        (text, "-"): "nothing to predict: stdin is empty",
        (text, "-", "-"): "stdin (-) is given twice",
        (text, "a cat", "--input-format", "csv"): "give - as the input",
        (text, "data/*.csv"): "no file matches 'data/*.csv'",
        (text, "revews.csv"): "no file 'revews.csv'",
        (text, "words/a.md"): "is a file, and the model reads texts from files that end in .txt",
        (text, "words"): "holds no file that the model reads",
        (text, table): "say it with --input-columns",
        (text, table, "--input-columns", "tickets"): "no column 'tickets' (did you mean 'ticket'?)",
        (text, table, "--input-columns", "a,b,c"): "one column, or two for pairs of texts",
        (text, named, "--keep", "ids"): "--keep ids: named.csv has no such column",
        (text, named, "--keep", "label"): "--keep label: the results have a column of that name",
        (text, "a cat", "--keep", "id"): "a text has no columns",
        (image, photos, "--keep", "id"): "is no table and has no columns",
        (image, "empty"): "holds no file",
        (image, "words"): "holds no file that the model reads (.bmp",
        (image, "*.jpg"): "no file matches '*.jpg'",
        (image, photos / "clas0"): "(did you mean 'class0'",
        (text, "a cat", "--out", "o.xlsx"): "end in .csv, .jsonl, .parquet",
        (text, "a cat", "--out", "nowhere/o.csv"): "no folder 'nowhere'",
        (text, "a cat", "--out", "words"): "end in .csv",
        (text, "  "): "the text is empty",
        (text, "train-{0..3}.tar"): "train-{0..3}.tar: predict reads files, folders and tables that lie here",
        (text, "s3://bucket/a.csv"): "evaluate reads tables and shards there",
    }.items():
        assert said in cli.refused("predict", *arguments), arguments
    # Texts may hold what patterns are made of.
    assert in_json(cli, text, "is it?", "and/or?", "[sic]")[1]["input"] == "and/or?"


def test_a_header_without_rows_is_a_file_without_rows(cli: Cli, models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text\n")
    cli.ok("predict", models["text"], "t.csv", "--out", "o.parquet")
    assert pq.read_table(tmp_path / "o.parquet").column_names == ["input", "label", "score", "scores", "error"]
    assert in_json(cli, models["text"], "t.csv") == []


def test_tables_of_one_name_are_told_apart(cli: Cli, models: dict[str, Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_table(tmp_path / name / "t.csv", ["text"], [["the cat"]])
    assert [row["input"] for row in in_json(cli, models["text"], "a/t.csv", "b/t.csv")] == [
        "a/t.csv row 1",
        "b/t.csv row 1",
    ]


def test_the_table_for_people_shows_the_best_and_stays_in_its_width(
    cli: Cli, models: dict[str, Path], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    printed = cli.ok("predict", models["image"], photos / "class0", "--top-k", "2")
    lines = printed.splitlines()
    assert lines[0].split() == ["input", "label", "score"]
    assert len(lines) == 1 + 8 * 2
    assert {len(line) for line in lines[1:]} == {len(lines[0])}


# ── Python ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_python_gives_a_dict_for_one_row_and_a_list_for_many(models: dict[str, Path], photos: Path) -> None:
    model = hftl.load(models["text"])
    texts = texts_of(5)
    one = model.predict(texts[0])
    assert list(one) == ["input", "label", "score", "scores"]
    assert one["input"] == texts[0]
    expected = [pytest.approx(row["scores"], abs=1e-6) for row in model.predict(texts)]
    frame = pd.DataFrame({"id": range(5), "text": texts})
    for rows in (frame, frame["text"], pl.from_pandas(frame), pl.Series(texts), np.array(texts), pa.array(texts)):
        assert [row["scores"] for row in model.predict(rows)] == expected
    answers = model.predict(iter(texts), top_k=1)
    assert isinstance(answers, Iterator)
    assert [row["top"][0]["label"] for row in answers] == [row["label"] for row in model.predict(texts)]
    assert pd.DataFrame(model.predict(frame))["label"].tolist() == [row["label"] for row in model.predict(texts)]
    assert repr(model).endswith("single label, 3 labels (=cats, dogs, birds)>")
    assert (model.label_names, str(model.task)) == (NAMES, "single_label")


def test_python_takes_pictures_as_people_have_them(models: dict[str, Path], photos: Path) -> None:
    model = hftl.load(models["image"])
    paths = sorted((photos / "class1").iterdir())
    expected = [pytest.approx(row["scores"], abs=1e-6) for row in model.predict(paths)]
    images = [Image.open(path) for path in paths]
    for rows in (photos / "class1", str(photos / "class1" / "*.png"), list(map(str, paths)), images):
        assert [row["scores"] for row in model.predict(rows)] == expected
    for one in (paths[0], str(paths[0]), paths[0].read_bytes(), images[0], {"bytes": paths[0].read_bytes()}):
        assert model.predict(one)["scores"] == expected[0]
    turned = Image.open(paths[0]).convert("CMYK")
    turned.getexif()[0x0112] = 3
    upright = Image.open(paths[0]).convert("CMYK").rotate(180)
    assert model.predict(turned)["scores"] == pytest.approx(model.predict(upright)["scores"], abs=1e-6)


def test_python_raises_where_a_row_is_bad_unless_told_otherwise(models: dict[str, Path], photos: Path) -> None:
    model, texts = hftl.load(models["text"]), hftl.load(models["image"])
    with pytest.raises(BadRowError, match="row 2: the text is empty"):
        model.predict(["a cat", None])
    rows = model.predict(["a cat", float("nan"), "dog", "\ud800", b"x"], on_bad_row="skip")
    assert [row.get("error") is None for row in rows] == [True, False, True, False, False]
    with pytest.raises(DataError, match="a file of rows alone"):
        model.predict([photos])
    with pytest.raises(DataError, match="a int is no row"):
        model.predict(7)
    with pytest.raises(UserError, match="on_bad_row: expected"):
        model.predict("a", on_bad_row="ignore")
    with pytest.raises(UserError, match="top_k: expected 1 or more"):
        model.predict("a", top_k=0)
    with pytest.raises(BadRowError, match=r"absent\.png: the file cannot be read"):
        texts.predict(["absent.png"])
    with pytest.raises(BadRowError, match="row 1: a int is no path and no file"):
        texts.predict([7])


def test_a_run_on_files_of_text_reads_each_file_as_one(cli: Cli, tmp_path: Path) -> None:
    texts = [line.rsplit(",", 1) for line in runs.write_texts(tmp_path / "t.csv", 60).read_text().splitlines()[1:]]
    for i, (text, label) in enumerate(texts):
        (tmp_path / "data" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / label / f"{i}.txt").write_text(text.replace(" ", "\n"))
    recipe = hftl.Recipe(backbone=str(tiny.save("bert", tmp_path / "bert")), data=str(tmp_path / "data"))
    hftl.run(recipe, out=tmp_path / "run")
    rows = in_json(cli, "run", "data")
    assert len(rows) == 60
    (one,) = in_json(cli, "run", rows[0]["input"])
    assert one["scores"] == pytest.approx(rows[0]["scores"], abs=1e-6)
    assert one["scores"] == pytest.approx(
        in_json(cli, "run", Path(rows[0]["input"]).read_text())[0]["scores"], abs=1e-6
    )
