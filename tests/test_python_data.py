"""Data that Python holds are read as files with the same rows are; what is wrong with them names row and column."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pytest
import runs
import tiny
from PIL import Image
from runs import Cli

import hftl
from hftl.data import load_data
from hftl.data.images import decode_image, encode_image
from hftl.data.objects import said_of

TEXTS = [f"the {animal} number {i} sat" for i in range(10) for animal in ("cat", "dog")]
LABELS = ["cats", "dogs"] * 10
PAIRS = list(zip(TEXTS, LABELS, strict=True))


def as_files(folder: Path) -> str:
    pd.DataFrame({"text": TEXTS, "label": LABELS}).to_csv(folder / "rows.csv", index=False)
    return str(folder / "rows.csv")


FORMS = {
    "pandas": lambda: pd.DataFrame({"text": TEXTS, "label": LABELS}),
    "pandas, categories": lambda: pd.DataFrame({"text": pd.Series(TEXTS), "label": pd.Categorical(LABELS)}),
    "pandas, odd index": lambda: pd.DataFrame({"text": TEXTS, "label": LABELS}, index=[7] * 20),
    "polars": lambda: pl.DataFrame({"text": TEXTS, "label": LABELS}),
    "polars, categories": lambda: pl.DataFrame({"text": TEXTS, "label": LABELS}).cast({"label": pl.Categorical}),
    "Dataset": lambda: datasets.Dataset.from_dict({"text": TEXTS, "label": LABELS}),
    "DatasetDict": lambda: datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": TEXTS, "label": LABELS})),
    "pairs": lambda: PAIRS,
    "pairs as lists": lambda: tuple([text, label] for text, label in PAIRS),
    "a dict": lambda: {"train": PAIRS},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_rows_are_the_same_data(form: str, tmp_path: Path):
    data = FORMS[form]()
    known, read = load_data(as_files(tmp_path), wants="text"), load_data(data, wants="text")
    assert (read.task, read.label_names) == (known.task, known.label_names)
    for mine, theirs in zip(read.splits(), known.splits(), strict=True):
        assert list(mine.inputs) == list(theirs.inputs)
        np.testing.assert_array_equal(mine.labels, theirs.labels)
    # What they were is recorded by content, because there is no name to find them by.
    assert read.ref == said_of(data)
    assert read.ref.startswith("<")
    assert read.identity["inputs_digest"] == load_data(PAIRS, wants="text").identity["inputs_digest"]
    assert read.identity["labels_digest"] == known.identity["labels_digest"]
    assert read.identity["inputs_digest"] != load_data(PAIRS[:-2], wants="text").identity["inputs_digest"]


def test_features_of_a_file_serve_the_frame_with_the_same_rows(tmp_path: Path, cli: Cli):
    backbone = str(tiny.save("bert", tmp_path / "backbone"))
    first = hftl.features(hftl.Recipe(backbone=backbone, data=as_files(tmp_path)), quiet=True)
    run = hftl.run(hftl.Recipe(backbone=backbone, data=FORMS["pandas"]()), out="run", quiet=True, report=False)
    assert run is not None
    assert run.metrics["features"] | {"space": None} == {"rows": 20, "computed": 0, "reused": 20, "space": None} | {
        "truncated": 0
    }
    assert len(first) == 20
    assert run.record.recipe["data"] == "<DataFrame>"
    # The record names no data, so doing the run again says so; with data it works.
    refused = cli.refused("run", "run", "--out", "again")
    assert "were a DataFrame given in Python" in refused
    assert "--data" in refused
    cli.ok("run", "run", "--out", "again", "--data", as_files(tmp_path), "--quiet")
    assert runs.metrics(tmp_path / "again")["eval"] == run.metrics["eval"]
    assert hftl.evaluate(run, FORMS["polars"](), quiet=True)["accuracy"] > 0.4


def test_splits_are_named_in_a_dict(tmp_path: Path):
    frame = FORMS["pandas"]()
    parts = {"train": frame[:12], "validation": PAIRS[12:14], "test": pl.from_pandas(frame[14:])}
    read = load_data(parts, wants="text")
    assert read.sizes() == {"train": 12, "validation": 2, "test": 6}
    assert read.test.inputs.name(2) == "test row 3"
    assert read.ref == "<dict of DataFrame and list>"
    file = as_files(tmp_path)
    files = load_data({"dev": file, "train": Path(file)}, wants="text")
    assert files.sizes() == {"train": 20, "test": 20}
    assert files.test.inputs.name(0) == "rows.csv row 1"


def test_pairs_of_texts_and_labels_of_every_kind():
    read = load_data([((a, b), i / 3) for i, (a, b) in enumerate(zip(TEXTS, TEXTS[::-1], strict=True))], wants="text")
    assert read.identity["columns"] == {"inputs": ["sentence1", "sentence2"], "labels": ["label"]}
    assert str(read.task) == "regression"
    assert len(read.train.inputs[0]) == 2
    several = load_data([(text, ["a", "b"] if i % 2 else ["b"]) for i, text in enumerate(TEXTS)], wants="text")
    assert str(several.task) == "multi_label"
    assert several.label_names == ["a", "b"]
    numbers = load_data([(text, np.int64(i % 3)) for i, text in enumerate(TEXTS)], wants="text")
    assert numbers.label_names == ["0", "1", "2"]
    missing = load_data(pd.DataFrame({"text": TEXTS, "label": [None, *LABELS[1:]]}), wants="text", unlabelled=[""])
    assert sum(missing.sizes().values()) == 19
    of_nine = pl.DataFrame({"text": TEXTS, "label": [float("nan"), *(i % 9 for i in range(19))]})
    missing = load_data(of_nine, wants="text", unlabelled=[""])
    assert sum(missing.sizes().values()) == 19


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F"])
def test_a_picture_in_memory_is_the_picture_in_a_file(mode: str):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode in ("I", "I;16", "F"):
        wide = pixels[..., 0].astype({"I": np.int32, "I;16": np.uint16, "F": np.float32}[mode])
        image = Image.fromarray(wide * (300 if mode == "I" else 1))
    else:
        image = image.convert(mode)
    again = Image.open(io.BytesIO(encode_image(image)))
    assert image.mode == again.mode == mode
    np.testing.assert_array_equal(np.asarray(again), np.asarray(image))
    assert encode_image(image) == encode_image(image.copy())


def test_a_picture_in_memory_stands_upright_as_its_file_does(tmp_path: Path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    upright = decode_image((tmp_path / "a.png").read_bytes(), "a")
    with Image.open(tmp_path / "a.png") as opened:
        assert decode_image(encode_image(opened), "a").tobytes() == upright.tobytes()
        assert upright.size == (9, 7)


@pytest.mark.parametrize("form", ["images", "paths", "text paths", "bytes", "pandas", "polars"])
def test_pictures_are_given_in_many_ways(form: str, tmp_path: Path):
    files = sorted(runs.write_images(tmp_path / "data", per_class=4).rglob("*.png"))
    labels = [file.parent.name for file in files]
    images = [Image.open(file).copy() for file in files]
    data: Any = {
        "images": list(zip(images, labels, strict=True)),
        "paths": list(zip(files, labels, strict=True)),
        "text paths": list(zip(map(str, files), labels, strict=True)),
        "bytes": [(file.read_bytes(), label) for file, label in zip(files, labels, strict=True)],
        "pandas": pd.DataFrame({"picture": images, "label": labels}),
        "polars": pl.DataFrame({"image": pl.Series(images, dtype=pl.Object), "label": labels}),
    }[form]
    read = load_data(data, wants="file", suffixes={".png"})
    assert read.label_names == ["class0", "class1", "class2"]
    by_pixels = {Image.open(file).tobytes(): file.parent.name for file in files}
    for split in read.splits():
        for i in range(len(split)):
            known = by_pixels[decode_image(split.inputs[i], "row").tobytes()]
            assert read.label_names[split.labels[i]] == known


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([("a", 1), ("b", "x")], "list row 2, label: 'x' cannot stand in one column"),
        ([("a", 1), ("\ud800", 1)], "list row 2, input: '\\ud800' cannot be read: "),
        ([("a", 1), "b"], "list row 2: a pair (input, label) is due, and this is a str"),
        ([("a", 1), ("b", 1, 2)], "list row 2: a pair (input, label) is due, and this is a tuple of 3"),
        ([("a", 1), (("b", "c"), 1)], "list row 2, input: a pair of texts, where the rows before are each a text"),
        ([("a", 1), (3.5, 1)], "list row 2, input: a float is no input"),
        (pd.DataFrame({"text": ["a", "b"], "label": [1, object()]}), "DataFrame row 2, column 'label'"),
        (pd.DataFrame([["a", "b", 1], ["c", "d", 2]], columns=["text", "text", "label"]), "column 'text' stands twice"),
        (pd.DataFrame({"text": []}), "DataFrame: the training split has no rows"),
        ([], "list: the training split has no rows"),
        (pd.Series(["a"]), "data of type Series cannot be used: it has no labels"),
        (pl.LazyFrame({"a": [1]}), "collect() it first"),
        ({"a": 1}, "no training split: call one 'train'"),
        ({}, "a dict without any split"),
        ({3: []}, "has the key 3: its keys are names"),
        ({"train": {"train": []}}, "split 'train' is a dict itself"),
        ({"train": "rows.csv"}, "split 'train': rows.csv is not there"),
        ({"train": [], "test": "rows.csv"}, "is a list beside files"),
        (42, "data of type int cannot be used; give a reference"),
        (datasets.Dataset.from_dict({"a": [1]}).to_iterable_dataset(), "Dataset.from_list(list(...))"),
    ],
)
def test_what_cannot_be_read_is_said_with_row_and_column(data: Any, said: str):
    with pytest.raises(hftl.DataError) as refused:
        load_data(hftl.Recipe(backbone="x", data=data).data, wants="text")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_recipe_shows_what_its_data_are_and_not_all_of_them():
    assert "data=<DataFrame>" in repr(hftl.Recipe(backbone="x", data=FORMS["pandas"]()))
    assert "data='a.csv'" in repr(hftl.Recipe(backbone="x", data="a.csv"))


def test_polars_is_not_imported_for_data_of_other_kinds(tmp_path: Path):
    code = f"""
import json, sys
import hftl
from hftl.data.load import load_data
load_data({as_files(tmp_path)!r}, wants="text")
load_data({PAIRS!r}, wants="text")
print(json.dumps(sorted({{"polars", "torch", "datasets", "matplotlib"}} & set(sys.modules))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
