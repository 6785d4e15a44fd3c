"""Data to evaluate a model on: one split, read by the model's own names of inputs, classes and targets."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hftl.data import EvaluationData, load_evaluation_data
from hftl.errors import DataError

ABC = ["a", "b", "c"]


def write(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def labelled(path: Path, labels: Sequence[Any]) -> Path:
    return write(path, ("text", "label"), [(f"text {i}", label) for i, label in enumerate(labels)])


def load(ref: Any, names: Sequence[str] = ABC, task: str = "single_label", **options: Any) -> EvaluationData:
    ref = str(ref) if isinstance(ref, Path) else ref
    return load_evaluation_data(ref, **{"wants": "text", "task": task, "label_names": names, **options})


def plant(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(root / name)
    return root


def pictures(ref: Path) -> EvaluationData:
    return load_evaluation_data(str(ref), wants="file", suffixes={".png"}, task="single_label", label_names=ABC)


# ── which rows ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_few_rows_of_one_class_are_enough(tmp_path: Path) -> None:
    data = load(labelled(tmp_path / "d.csv", ["b"]))
    assert (data.split.labels.tolist(), data.split.name, data.said) == ([1], "all", "all 1 row")
    assert data.split.inputs[0] == ("text 0",)
    assert data.identity["rows"] == 1


def test_the_test_split_comes_before_validation_and_training_is_not_looked_at(tmp_path: Path) -> None:
    for split, labels in (("test", "ab"), ("validation", "abc")):
        labelled(tmp_path / f"{split}.csv", labels)
    (tmp_path / "train.csv").write_bytes(b"\xff broken \x00")
    assert load(tmp_path).said == "test split, 2 rows"
    assert load(tmp_path, split="validation").said == "validation split, 3 rows"
    (tmp_path / "test.csv").unlink()
    assert load(tmp_path).said == "validation split, 3 rows"
    with pytest.raises(DataError, match="there is no test split; there is 'validation', 'train'"):
        load(tmp_path, split="test")


def test_a_test_split_without_labels_gives_way_to_validation_but_never_to_training(tmp_path: Path) -> None:
    labelled(tmp_path / "train.csv", "abc")
    labelled(tmp_path / "dev.csv", "ca")
    for unlabelled in (["-1", "-1"], ["", ""]):
        labelled(tmp_path / "test.csv", unlabelled)
        data = load(tmp_path)
        assert data.said == "validation split, 2 rows"
        assert any(note.startswith("test split left out: none of the 2 rows has a label") for note in data.notes)
    write(tmp_path / "test.csv", ("text",), [("what is this",)])
    assert load(tmp_path, label_columns=["label"]).said == "validation split, 2 rows"
    (tmp_path / "dev.csv").unlink()
    with pytest.raises(DataError, match="nothing to evaluate on: the test split has no label column 'label'"):
        load(tmp_path, label_columns=["label"])


@pytest.mark.parametrize(
    ("files", "said", "labels"),
    [
        (["test/a/0.png", "test/b/0.png", "test/c/0.png"], "test split, 3 rows", [0, 1, 2]),
        (["a/0.png", "a/1.png"], "all 2 rows", [0, 0]),
        (["a/0.png", "b/0.png"], "all 2 rows", [0, 1]),
        (["train/x/0.png", "train/a/0.png", "test/b/0.png"], "test split, 1 row", [1]),
        (["val/c/0.png"], "validation split, 1 row", [2]),
        (["data/test/c/0.png", "data/train/a/0.png"], "test split, 1 row", [2]),
        (["a/test/0.png", "a/train/0.png", "b/test/0.png"], "test split, 2 rows", [0, 1]),
    ],
)
def test_folders_of_any_extent(tmp_path: Path, files: list[str], said: str, labels: list[int]) -> None:
    data = pictures(plant(tmp_path, *files))
    assert (data.said, data.split.labels.tolist()) == (said, labels)


def test_a_split_column_says_the_rows(tmp_path: Path) -> None:
    rows = [(f"t{i}", "abc"[i % 3], ("train", "test")[i % 2]) for i in range(12)]
    path = write(tmp_path / "d.csv", ("text", "label", "split"), rows)
    data = load(path)
    assert data.said == "test split, 6 rows"
    assert [text for (text,) in data.split.inputs] == [f"t{i}" for i in range(1, 12, 2)]
    assert data.split.labels.tolist() == [i % 3 for i in range(1, 12, 2)]
    assert load(path, split="train").said == "train split, 6 rows"
    with pytest.raises(DataError, match="there is no validation split"):
        load(path, split="validation")


def test_a_dataset_dict(tmp_path: Path) -> None:
    parts = {
        split: datasets.Dataset.from_dict({"text": list("xy"), "label": ["c", "a"]}) for split in ("train", "test")
    }
    assert load(datasets.DatasetDict(parts)).split.labels.tolist() == [2, 0]
    with pytest.raises(DataError, match="cannot be used"):
        load(3)


# ── classes by name ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_classes_are_found_by_name_whatever_the_data_hold(tmp_path: Path) -> None:
    assert load(labelled(tmp_path / "d.csv", "ccb")).split.labels.tolist() == [2, 2, 1]
    names = ["007", "1", "-1", "2.50", "True"]
    cells = ["True", "-1", "007", "2.50", "1.0", " 1", "+1"]
    assert load(labelled(tmp_path / "e.csv", cells), names).split.labels.tolist() == [4, 2, 0, 3, 1, 1, 1]
    (tmp_path / "f.jsonl").write_text("\n".join(json.dumps({"text": "t", "label": v}) for v in (-1, 1)))
    assert load(tmp_path / "f.jsonl", names).split.labels.tolist() == [2, 1]


def test_an_accent_is_the_same_in_either_form(tmp_path: Path) -> None:
    data = load(labelled(tmp_path / "d.csv", ["cafe\u0301", "caf\u00e9"]), ["x", "caf\u00e9"])
    assert data.split.labels.tolist() == [1, 1]
    assert load(tmp_path / "d.csv", ["x", "cafe\u0301"]).split.labels.tolist() == [1, 1]


def test_an_unknown_label_is_named_with_its_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"d.csv row 2: the model does not know the label 'beee' \(did you mean 'bee'"):
        load(labelled(tmp_path / "d.csv", ["ant", "beee"]), ["ant", "bee"])
    with pytest.raises(DataError, match=r"d.csv row 2: no label"):
        load(labelled(tmp_path / "d.csv", ["ant", ""]), ["ant", "bee"])


def test_rows_marked_as_unlabelled_are_left_out_and_said(tmp_path: Path) -> None:
    data = load(labelled(tmp_path / "d.csv", ["a", "-1", "c"]))
    assert data.split.labels.tolist() == [0, 2]
    assert data.split.inputs.name(1) == "d.csv row 3"
    assert any("dropped 1 row" in note for note in data.notes)
    stated = load(labelled(tmp_path / "e.csv", ["a", "?", ""]), unlabelled=["?", ""])
    assert stated.split.labels.tolist() == [0]


@pytest.mark.parametrize(
    ("cells", "options"),
    [
        (["c|a", "b", ""], {}),
        (["['c', 'a']", "['b']", "[]"], {}),
        (["c / a", "b", ""], {"label_separator": "/"}),
    ],
)
def test_several_labels_are_found_by_name(tmp_path: Path, cells: list[str], options: dict[str, str]) -> None:
    data = load(labelled(tmp_path / "d.csv", cells), task="multi_label", **options)
    assert data.split.labels.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert data.split.labels.dtype == np.float32


def test_columns_of_0_and_1_are_found_by_name_in_any_order(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", ("c", "text", "a", "b"), [(1, "t", 0, 0), (0, "u", 1, 1)])
    for options in ({}, {"label_columns": ["c", "b", "a"]}):
        data = load(path, task="multi_label", **options)
        assert data.split.labels.tolist() == [[0, 0, 1], [1, 1, 0]]
    with pytest.raises(DataError, match="no column of the model's labels 'd'"):
        load(path, [*ABC, "d"], task="multi_label", label_columns=ABC)


def test_vectors_are_read_by_position_only_where_positions_are_the_names(tmp_path: Path) -> None:
    table = pa.table({"text": ["t", "u"], "labels": [[1, 0, 1], [0, 1, 0]]})
    pq.write_table(table, tmp_path / "d.parquet")
    data = load(tmp_path / "d.parquet", ["0", "1", "2"], task="multi_label")
    assert data.split.labels.tolist() == [[1, 0, 1], [0, 1, 0]]
    with pytest.raises(DataError, match="does not know the label '1'"):
        load(tmp_path / "d.parquet", task="multi_label")


# ── targets by name ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_targets_are_found_by_name_in_any_order(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", ("width", "text", "extra", "height"), [(1.5, "t", 9.5, 2), (3, "u", 8.5, 4.25)])
    for options in ({}, {"label_columns": ["width", "height"]}, {"label_columns": ["height", "width"]}):
        data = load(path, ["height", "width"], task="regression", **options)
        assert data.split.labels.tolist() == [[2.0, 1.5], [4.25, 3.0]]
    with pytest.raises(DataError, match=r"targets are 'height', 'depth', .*rename the columns of 'depth'"):
        load(path, ["height", "depth"], task="regression", label_columns=["height", "width"])


def test_a_single_target_may_be_called_otherwise_if_that_is_stated(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", ("text", "stars", "score"), [("t", 1, 2.5), ("u", 2, -1)])
    assert load(path, ["score"], task="regression").split.labels.tolist() == [[2.5], [-1.0]]
    assert load(path, ["label"], task="regression", label_columns=["stars"]).split.labels.tolist() == [[1.0], [2.0]]


def test_lists_of_targets_keep_their_order(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(json.dumps({"text": "t", "label": [0.5, 2]}))
    assert load(tmp_path / "d.jsonl", ["label_0", "label_1"], task="regression").split.labels.tolist() == [[0.5, 2.0]]
    with pytest.raises(DataError, match="targets are found by name"):
        load(tmp_path / "d.jsonl", ["height", "width"], task="regression")
