"""Columns and labels: what is inferred, what can be stated, what is refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hftl.data import Data, load_data
from hftl.errors import DataError


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """Return a function that writes columns as splits of jsonl or csv and loads them."""

    def load(
        train: dict[str, Sequence[Any]],
        test: dict[str, Sequence[Any]] | None = None,
        validation: dict[str, Sequence[Any]] | None = None,
        kind: str = "jsonl",
        **options: Any,
    ) -> Data:
        for split, columns in (("train", train), ("test", test), ("validation", validation)):
            if columns is None:
                continue
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            path = tmp_path / f"{split}.{kind}"
            if kind == "jsonl":
                path.write_text("\n".join(json.dumps(row) for row in rows))
            else:
                cells = [",".join(columns), *(",".join(f'"{cell}"' for cell in row.values()) for row in rows)]
                path.write_text("\n".join(cells))
        return load_data(str(tmp_path), wants="text", **options)

    return load


def texts(n: int) -> list[str]:
    return [f"text number {i}" for i in range(n)]


# Columns


@pytest.mark.parametrize(
    ("columns", "inputs", "labels"),
    [
        (("text", "label"), ("text",), ("label",)),
        (("id", "Sentence", "Intent"), ("Sentence",), ("Intent",)),
        (("label", "premise", "hypothesis"), ("premise", "hypothesis"), ("label",)),
        (("sentence_A", "sentence_B", "label", "score"), ("sentence_A", "sentence_B"), ("label",)),
        (("question1", "question2", "similarity"), ("question1", "question2"), ("similarity",)),
        (("idx", "title", "content", "stars"), ("content",), ("stars",)),
        (("whatever", "class"), ("whatever",), ("class",)),
        (("text", "anything"), ("text",), ("anything",)),
        (("text", "coarse_label", "author"), ("text",), ("coarse_label",)),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_usual_columns_are_found_and_said(load: Any, kind: str, columns: Any, inputs: Any, labels: Any) -> None:
    label_like = {"label", "Intent", "similarity", "stars", "class", "anything", "coarse_label", "score"}
    values = {
        c: ([0, 1] * 6 if c in label_like else list(range(12)) if c in ("id", "idx") else texts(12)) for c in columns
    }
    data = load(values, kind=kind)
    assert data.identity["columns"] == {"inputs": list(inputs), "labels": list(labels)}
    (note,) = [note for note in data.notes if note.startswith("columns:")]
    for column in (*inputs, *labels):
        assert repr(column) in note
    assert len(data.train.inputs[0]) == len(inputs)


def test_stated_columns_win(load: Any) -> None:
    columns = {"text": texts(8), "other": texts(8), "label": ["a", "b"] * 4, "mood": ["x", "y"] * 4}
    data = load(columns, input_columns=["other"], label_columns=["mood"])
    assert data.label_names == ["x", "y"]
    pair = load(columns, input_columns=["other", "text"])
    assert pair.train.inputs[0][0] == pair.train.inputs[0][1]
    assert pair.label_names == ["a", "b"]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (
            ("text", "label"),
            {"label_columns": ["lable"]},
            r"no column 'lable' \(did you mean 'label'\?\); columns: 'text', 'label'",
        ),
        (
            ("text", "label"),
            {"input_columns": ["sentence"]},
            r"no column 'sentence'; columns: 'text', 'label'",
        ),
        (("first", "second", "label"), {}, r"which of 'first', 'second' is the text: .*--set input_columns="),
        (("text", "n", "m"), {}, r"which of 'n', 'm' is the label: .*--set label_columns="),
        (("text",), {}, r"no label among the columns 'text'"),
        (("label", "n"), {}, "no text column; found label .int., n .int."),
        (
            ("text", "label"),
            {"input_columns": ["text"], "label_columns": ["text"]},
            "both as input and as label",
        ),
        (("a", "b", "c", "label"), {"input_columns": ["a", "b", "c"]}, "3 input columns stated; one or two"),
        (("text", "label"), {"task": "clasification"}, "task 'clasification'"),
        (("text", "label"), {"test_size": 1.5}, "test_size is 1.5"),
    ],
)
def test_wrong_or_ambiguous_columns(load: Any, columns: Any, options: Any, message: str) -> None:
    numbers = {"n": [1, 2, 3, 4], "m": [4, 3, 2, 1], "label": [1, 2, 1, 2]}
    with pytest.raises(DataError, match=message):
        load({c: numbers.get(c, texts(4)) for c in columns}, **options)


def test_a_column_missing_in_one_split_is_named(load: Any) -> None:
    with pytest.raises(DataError, match=r"test split: no column 'label' \(did you mean 'labels'\?\)"):
        load({"text": texts(4), "label": ["a", "b"] * 2}, {"text": texts(2), "labels": ["a", "b"]})


# Task and classes


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["b", "a", "c", "a"], ["a", "b", "c"]),
        ([10, 9, 2, 10], ["2", "9", "10"]),
        ([True, False, True, True], ["False", "True"]),
        ([1.0, 0.0, 2.0, 1.0], ["0", "1", "2"]),
    ],
)
def test_classes_are_ordered_and_named(load: Any, labels: list[Any], names: list[str]) -> None:
    data = load({"text": texts(12), "label": labels * 3}, {"text": texts(4), "label": labels})
    assert data.task == "single_label"
    assert data.label_names == names
    assert data.test.labels.dtype == np.int64
    assert [data.label_names[i] for i in data.test.labels] == [
        str(int(v) if isinstance(v, float) else v) for v in labels
    ]


@pytest.mark.parametrize(
    ("cells", "task", "names"),
    [
        (["10", "9", "2", "10"], "single_label", ["2", "9", "10"]),
        (["True", "False"] * 2, "single_label", ["False", "True"]),
        (["1.5", "2", "-3.25e1", "4"], "regression", ["label"]),
        (["NA", "null", "None", "x"], "single_label", ["NA", "None", "null", "x"]),
        ([" pos", "neg ", "pos", "neg"], "single_label", ["neg", "pos"]),
        (["007", "010", "007", "010"], "single_label", ["007", "010"]),
    ],
)
def test_what_numbers_and_words_in_a_csv_mean(load: Any, cells: list[str], task: str, names: list[str]) -> None:
    data = load({"text": texts(12), "label": cells * 3}, kind="csv")
    assert (data.task, data.label_names) == (task, names)


def test_many_different_whole_numbers_are_targets_but_class_numbers_are_classes(load: Any) -> None:
    prices = load({"text": texts(200), "label": [137 * i % 9973 for i in range(200)]})
    assert prices.task == "regression"
    assert any("200 different whole numbers" in note and "task=" in note for note in prices.notes)
    few_shot = load({"text": texts(231), "label": [i % 77 for i in range(231)]})
    assert few_shot.task == "single_label"
    assert len(few_shot.label_names) == 77
    stated = load({"text": texts(200), "label": [137 * (i % 100) for i in range(200)]}, task="single_label")
    assert len(stated.label_names) == 100


def test_several_targets(load: Any) -> None:
    columns = {
        "text": texts(10),
        "valence": np.linspace(1, 5, 10).tolist(),
        "arousal": np.linspace(2, 2.9, 10).tolist(),
    }
    for options in ({}, {"label_columns": ["valence", "arousal"]}):
        data = load(columns, columns, **options)
        assert data.task == "regression"
        assert data.label_names == ["valence", "arousal"]
        assert data.test.labels.dtype == np.float32
        np.testing.assert_allclose(
            data.test.labels, np.stack([columns["valence"], columns["arousal"]], axis=1), rtol=1e-6
        )
    one = load(columns, columns, label_columns=["arousal"])
    assert one.test.labels.shape == (10, 1)


MULTI = [["x", "y"], [], ["z"], ["y"], ["x"], ["z", "x"]]
MATRIX = np.array([[1, 1, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 0, 1]], dtype=np.float32)


@pytest.mark.parametrize(
    ("labels", "options", "names"),
    [
        (MULTI, {}, ["x", "y", "z"]),
        ([[{"x": 4, "y": 7, "z": 12}[v] for v in row] for row in MULTI], {}, ["4", "7", "12"]),
        (MATRIX.astype(int).tolist(), {}, ["0", "1", "2"]),
        (MATRIX.tolist(), {}, ["0", "1", "2"]),
        ([", ".join(row) for row in MULTI], {"task": "multi_label"}, ["x", "y", "z"]),
        (["|".join(row) for row in MULTI], {"task": "multi_label"}, ["x", "y", "z"]),
        ([str(row) for row in MULTI], {"task": "multi_label"}, ["x", "y", "z"]),
    ],
)
def test_multi_label_forms_give_the_same_matrix(load: Any, labels: list[Any], options: Any, names: list[str]) -> None:
    columns = {"text": texts(6), "labels": labels}
    data = load(columns, columns, **options)
    assert data.task == "multi_label"
    assert data.label_names == names
    assert data.test.labels.dtype == np.float32
    np.testing.assert_array_equal(data.test.labels, MATRIX)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_column_of_0_and_1_for_each_label(load: Any, kind: str) -> None:
    columns = {"text": texts(6), **{name: MATRIX[:, k].astype(int).tolist() for k, name in enumerate("pqr")}}
    data = load(columns, columns, kind=kind)
    assert (data.task, data.label_names) == ("multi_label", ["p", "q", "r"])
    np.testing.assert_array_equal(data.test.labels, MATRIX)


def test_comma_separated_words_are_classes_unless_multi_label_is_stated(load: Any) -> None:
    assert load({"text": texts(6), "label": ["a,b", "c"] * 3}).label_names == ["a,b", "c"]


# Refusals


@pytest.mark.parametrize(
    ("train", "test", "options", "message"),
    [
        (
            ["a", "b", "a"],
            ["a", "c", "d"],
            {},
            r"test split: 2 labels that training never saw: 'c', 'd' \(first: test.jsonl row 2\)",
        ),
        ([["a"], ["b"]], [["a", "z"]], {}, r"test split: 1 label that training never saw: 'z'"),
        (["a", "a", "a"], None, {}, r"single class, 'a', in label column 'label'"),
        (["a", None, "b", None], None, {}, r"train.jsonl row 2: no label .*in 2 rows of the train split"),
        ([0.5, float("nan"), 1.5], None, {}, r"train.jsonl row 2: no label .*NaN"),
        ([0.5, float("inf"), 1.5], None, {}, r"train.jsonl row 2: no label"),
        (
            [1.5, 2.5, 3.5],
            None,
            {"task": "single_label"},
            r"train.jsonl row 1: 1.5 .*has a fraction and is no class",
        ),
        (
            ["a", "b", "c"],
            None,
            {"task": "regression"},
            r"train.jsonl row 1: 'a' in column 'label' is not 1 number",
        ),
        ([["a"], ["b"]], None, {"task": "single_label"}, r"train.jsonl row 1: a list .*task=multi_label"),
        ([[0.5, 1.0], [0.25]], None, {}, r"train.jsonl row 2: .* is not 2 numbers"),
        ([[0, 1], [1, 1]], [[0, 1], [1, 0, 1]], {}, r"test.jsonl row 2: .* is not 2 times 0 or 1"),
        ([[], []], None, {}, "no training row has any label"),
        (["a", "b"], [], {}, r"test.jsonl: the file is empty"),
        ([-1, -1], None, {"label_columns": ["label"]}, "train split: none of the 2 rows has a label"),
        (["a", "b"], None, {}, "2 labelled rows cannot spare an evaluation split"),
    ],
)
def test_labels_that_cannot_be_used(load: Any, train: Any, test: Any, options: Any, message: str) -> None:
    def columns(labels: Any) -> Any:
        return None if labels is None else {"text": texts(len(labels)), "label": labels}

    with pytest.raises(DataError, match=message) as caught:
        load(columns(train), columns(test), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cell", ["", "nan", "NaN", "NA", "null"])
def test_missing_numbers_in_a_csv_are_named(load: Any, cell: str) -> None:
    with pytest.raises(DataError, match=r"train.csv row 3: no label .*in 1 row of"):
        load({"text": texts(4), "label": ["0", "1", cell, "1"]}, kind="csv")


def test_texts_that_are_all_different_are_no_classes(load: Any) -> None:
    with pytest.raises(DataError, match="30 different texts in 30 rows are no classes"):
        load({"text": texts(30), "summary": [f"s{i}" for i in range(30)]})


# Unlabelled rows


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_unlabelled_rows_are_dropped_and_said(load: Any, kind: str) -> None:
    labels = [0, -1, 1, 2, -1, 0, -1, 1]
    data = load({"text": texts(8), "label": labels}, {"text": texts(3), "label": [2, -1, 0]}, kind=kind)
    assert data.label_names == ["0", "1", "2"]
    assert [row for (row,) in data.train.inputs] == [texts(8)[i] for i in (0, 2, 3, 5, 7)]
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1]
    assert data.train.inputs.name(1) == f"train.{kind} row 3"
    assert data.test.labels.tolist() == [2, 0]
    assert "dropped 3 rows of the train split labelled -1 (unlabelled)" in data.notes
    assert "dropped 1 row of the test split labelled -1 (unlabelled)" in data.notes


def test_minus_one_is_kept_where_it_is_a_class_or_a_number(load: Any) -> None:
    assert load({"text": texts(8), "label": [-1, 1] * 4}).label_names == ["-1", "1"]
    assert load({"text": texts(9), "label": [-2, -1, 0] * 3}).label_names == ["-2", "-1", "0"]
    scores = load({"text": texts(6), "label": [-1, 0.5, 1, -1, 2, 3]})
    assert (len(scores.train) + len(scores.test), scores.task) == (6, "regression")
    stated = load({"text": texts(6), "label": [-1, 0, 1, 2, 3, 4]}, task="regression")
    assert len(stated.train) + len(stated.test) == 6


def test_a_test_split_without_labels_is_left_out_and_validation_is_reported_on(load: Any) -> None:
    data = load(
        {"text": texts(4), "label": [0, 1, 0, 1]},
        {"text": texts(5), "label": [-1] * 5},
        {"text": texts(3), "label": [1, 1, 0]},
    )
    assert data.validation is None
    assert data.test.labels.tolist() == [1, 1, 0]
    assert any("test split left out" in note for note in data.notes)
    assert any("reports on the validation split" in note for note in data.notes)


# Splits


def test_test_is_reported_on_and_validation_kept(load: Any) -> None:
    def columns(n: int) -> Any:
        return {"text": texts(n), "label": ["a", "b"] * (n // 2)}

    data = load(columns(8), columns(4), columns(2))
    assert data.validation is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 2, 4)
    assert "4 of 4 test rows stand in the training split too" in data.notes


@pytest.mark.parametrize("seed", [0, 5])
def test_a_made_split_is_stratified_seeded_and_said(load: Any, seed: int) -> None:
    labels = ["a"] * 60 + ["b"] * 30 + ["c"] * 10 + ["rare"]
    columns = {"text": texts(101), "label": labels}
    data = load(columns, seed=seed)
    counts = np.bincount(data.test.labels, minlength=4)
    assert counts.tolist() == [12, 6, 2, 0]
    assert sorted([*data.train.inputs, *data.test.inputs]) == sorted((text,) for text in texts(101))
    assert {
        row: name for split in (data.train, data.test) for (row,), name in zip(split.inputs, split.labels, strict=True)
    } == {text: "abcr".index(label[0]) for text, label in zip(texts(101), labels, strict=True)}
    assert any("20% of 101 rows (20) set aside, stratified, seed" in note for note in data.notes)
    assert list(load(columns, seed=seed).test.inputs) == list(data.test.inputs)
    assert list(load(columns, seed=seed + 1).test.inputs) != list(data.test.inputs)
    assert len(load(columns, seed=seed, test_size=0.5).test) in (50, 51)


def test_a_made_split_leaves_every_class_and_label_to_training(load: Any) -> None:
    for seed in range(10):
        single = load({"text": texts(30), "label": [f"c{i // 2}" for i in range(30)]}, seed=seed, test_size=0.4)
        assert len(np.unique(single.train.labels)) == 15
        assert len(single.test) == 12
        rare = load({"text": texts(49), "label": ["a"] * 40 + [f"c{i}" for i in range(9)]}, seed=seed, test_size=0.3)
        assert set(rare.test.labels) == {0}
        assert len(rare.test) == 12
        labels = [["often"] if i else ["once", "often"] for i in range(12)]
        multi = load({"text": texts(12), "labels": labels}, seed=seed, test_size=0.5)
        assert multi.train.labels.sum(axis=0).min() >= 1
