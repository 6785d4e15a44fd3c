"""Numbers of classes are read by the names that their own file gives them, whatever other files call them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hftl.data import Data, load_data
from hftl.data.evaluation import load_evaluation_data
from hftl.errors import DataError

ABC, AC = ["a", "b", "c"], ["c", "a"]


def rows_of(names: Sequence[str], labels: str, start: int = 0) -> datasets.Dataset:
    """A data set whose texts name their own label, so that what is read can be compared with what is right."""
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))})
    rows = {"text": [f"{label} {start + i}" for i, label in enumerate(labels)], "label": list(labels)}
    return datasets.Dataset.from_dict(rows, features)


def assert_right(data: Data) -> None:
    for split in data.splits():
        for (text,), label in zip(split.inputs, split.labels, strict=True):
            assert data.label_names[label] == text.split()[0]


@pytest.fixture(autouse=True)
def quiet() -> None:
    datasets.disable_progress_bars()


def test_each_split_of_a_dataset_dict_has_its_own_codebook() -> None:
    data = load_data(datasets.DatasetDict(train=rows_of(ABC, "abcabc"), test=rows_of(AC, "caac", 50)), wants="text")
    assert data.label_names == ABC
    assert_right(data)


@pytest.mark.parametrize("files", [("train-0", "train-1", "test-0"), ("a", "b", "c"), ("train-0", "test-0", "test-1")])
def test_each_parquet_file_has_its_own_codebook(tmp_path: Path, files: Sequence[str]) -> None:
    books = (ABC, AC, ["b", "c", "a"])
    for at, (file, names) in enumerate(zip(files, books, strict=True)):
        labels = "".join(names) * 3
        rows_of(names, labels, 100 * at).to_parquet(tmp_path / f"{file}.parquet")
    data = load_data(str(tmp_path), wants="text")
    assert data.label_names == ABC
    assert not [note for note in data.notes if "left out" in note]
    assert_right(data)


def test_a_saved_dataset_dict_is_read_by_each_split_s_codebook(tmp_path: Path) -> None:
    saved = datasets.DatasetDict(train=rows_of(ABC, "abcabc"), test=rows_of(AC, "caac", 50))
    saved.save_to_disk(tmp_path / "saved")
    data = load_data(str(tmp_path / "saved"), wants="text")
    assert_right(data)
    assert {split.name: len(split) for split in data.splits()} == {"train": 6, "test": 4}
    rows_of(ABC, "abcabc" * 2).save_to_disk(tmp_path / "one")
    assert_right(load_data(str(tmp_path / "one"), wants="text"))
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"one: cannot be read as a folder of save_to_disk: "):
        load_data(str(tmp_path / "one"), wants="text")


def test_lists_of_numbers_are_named_by_their_own_file() -> None:
    def lists(names: Sequence[str], rows: Sequence[Sequence[str]]) -> datasets.Dataset:
        label = datasets.List(datasets.ClassLabel(names=list(names)))
        features = datasets.Features({"text": datasets.Value("string"), "labels": label})
        numbers = [[list(names).index(name) for name in row] for row in rows]
        return datasets.Dataset.from_dict({"text": [" ".join(row) for row in rows], "labels": numbers}, features)

    # All rows are as long and hold 0 and 1 only: without names they would pass for vectors of 0 and 1.
    data = load_data(
        datasets.DatasetDict(
            train=lists(ABC, [["a", "b"], ["b", "a"], ["a", "c"], ["b", "c"]]), test=lists(AC, [["a", "c"], ["c", "a"]])
        ),
        wants="text",
    )
    assert (data.task, data.label_names) == ("multi_label", ABC)
    for split in data.splits():
        for (text,), row in zip(split.inputs, split.labels, strict=True):
            assert {name for name, has in zip(ABC, row, strict=True) if has} == set(text.split())


def test_evaluation_reads_numbers_by_name_too(tmp_path: Path) -> None:
    rows_of(AC, "caac").to_parquet(tmp_path / "test.parquet")
    evaluation = load_evaluation_data(
        str(tmp_path / "test.parquet"), wants="text", task="single_label", label_names=["b", "c", "a"]
    )
    assert evaluation.split.labels.tolist() == [1, 2, 2, 1]


def with_names(path: Path, labels: Sequence[Any], names: Sequence[str] | None) -> Path:
    table = pa.table({"text": [f"t{i}" for i in range(len(labels))], "label": labels})
    if names is not None:
        features = {"label": {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


def test_numbers_without_names_beside_numbers_with_names_are_refused(tmp_path: Path) -> None:
    with_names(tmp_path / "train.parquet", [0, 1] * 3, ["x", "y"])
    with_names(tmp_path / "test.parquet", [0, 1], None)
    with pytest.raises(DataError, match=r"test.parquet row 1: 0 in column 'label' has no name, while other files"):
        load_data(str(tmp_path), wants="text")
    # The advice: names in place of the numbers.
    with_names(tmp_path / "test.parquet", ["y", "x"], None)
    assert load_data(str(tmp_path), wants="text").test.labels.tolist() == [1, 0]
    # Where no row has a label there is nothing to misread.
    with_names(tmp_path / "test.parquet", [-1, -1], None)
    assert any(note.startswith("test split left out") for note in load_data(str(tmp_path), wants="text").notes)


def test_a_class_called_minus_one_is_not_the_mark_minus_one(tmp_path: Path) -> None:
    path = with_names(tmp_path / "d.parquet", [0, 1, 2, -1] * 4, ["-1", "0", "1"])
    data = load_data(str(path), wants="text")
    assert data.label_names == ["-1", "0", "1"]
    assert len(data.train) + len(data.test) == 12
    evaluation = load_evaluation_data(str(path), wants="text", task="single_label", label_names=["0", "1", "-1"])
    assert evaluation.split.labels.tolist() == [2, 0, 1] * 4


def test_two_classes_of_one_name_and_numbers_beyond_the_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two classes of the name 'crane'"):
        load_data(str(with_names(tmp_path / "d.parquet", [0, 1] * 4, ["crane", "crane"])), wants="text")
    with pytest.raises(DataError, match=r"d.parquet row 2: label 7 of only 2 classes"):
        load_data(str(with_names(tmp_path / "d.parquet", [0, 7], ["x", "y"])), wants="text")


def test_a_regression_on_named_numbers_needs_one_meaning_of_them(tmp_path: Path) -> None:
    stars = ["1 star", "2 stars", "3 stars"]
    with_names(tmp_path / "train.parquet", [0, 1, 2] * 3, stars)
    with_names(tmp_path / "test.parquet", [2, 0], stars)
    assert load_data(str(tmp_path), wants="text", task="regression").test.labels.tolist() == [[2.0], [0.0]]
    with_names(tmp_path / "test.parquet", [2, 0], stars[::-1])
    with pytest.raises(DataError, match="different names, so they are no targets"):
        load_data(str(tmp_path), wants="text", task="regression")
