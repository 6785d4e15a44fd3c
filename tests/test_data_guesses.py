"""What is guessed is guessed once for a column, said, and overruled by what is stated; each piece of advice works."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hftl.data import Data, load_data
from hftl.errors import DataError
from hftl.recipes import Recipe, changed


def write(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def labelled(path: Path, labels: Sequence[Any], column: str = "label") -> Path:
    return write(path, ("text", column), [(f"text {i}", label) for i, label in enumerate(labels)])


def load(path: Path, **options: Any) -> Data:
    return load_data(str(path), wants="text", **options)


def as_flags(*assignments: str) -> dict[str, Any]:
    """What ``--set FIELD=VALUE`` on the command line makes of a recipe, as the options of `load_data`."""
    recipe = changed(Recipe(backbone="x", data="y"), dict(text.split("=", 1) for text in assignments))
    names = ("input_columns", "label_columns", "task", "unlabelled", "label_separator")
    return {name: getattr(recipe, name) for name in names}


def rows(data: Data) -> int:
    return sum(data.sizes().values())


# ── -1 ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_minus_one_beside_0_and_1_is_asked_about_and_both_answers_work(tmp_path: Path) -> None:
    path = labelled(tmp_path / "d.csv", [-1, 0, 1] * 20)
    with pytest.raises(DataError, match="--set task=single_label if it is a class, --set unlabelled=-1 if it is not"):
        load(path)
    kept = load(path, **as_flags("task=single_label"))
    assert (kept.label_names, rows(kept)) == (["-1", "0", "1"], 60)
    dropped = load(path, **as_flags("unlabelled=-1"))
    assert (dropped.label_names, rows(dropped)) == (["0", "1"], 40)


def test_a_guess_about_minus_one_is_said_and_overruled(tmp_path: Path) -> None:
    path = labelled(tmp_path / "d.csv", [0, 1, 2, 3] * 5 + [-1])
    guessed = load(path)
    assert rows(guessed) == 20
    assert (
        "-1 beside class numbers is taken for 'no label'; if it is a class, state --set unlabelled=[]" in guessed.notes
    )
    assert rows(load(path, **as_flags("unlabelled=[]"))) == 21


def test_minus_one_that_training_never_has_marks_unlabelled_rows_though_the_task_is_stated(tmp_path: Path) -> None:
    labelled(tmp_path / "train.csv", [0, 1] * 5)
    labelled(tmp_path / "test.csv", [-1, 0, 1])
    assert load(tmp_path, task="single_label").test.labels.tolist() == [0, 1]


def test_words_and_blanks_that_mark_unlabelled_rows_are_stated(tmp_path: Path) -> None:
    path = labelled(tmp_path / "d.csv", ["pos", "neg", "?", ""] * 5)
    with pytest.raises(DataError, match=r"row 4: no label .* --set 'unlabelled=\[\"\"\]'"):
        load(path)
    assert load(path, **as_flags('unlabelled=[""]')).label_names == ["?", "neg", "pos"]
    data = load(path, unlabelled=["", "?"])
    assert (data.label_names, rows(data)) == (["neg", "pos"], 10)
    assert "dropped 10 rows of the train split labelled ?, nothing (unlabelled)" in data.notes


# ── several labels in a cell ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("cells", "options", "names"),
    [
        (["Arts, Crafts", "Home|Garden", "Arts, Crafts|Home"], {}, ["Arts, Crafts", "Garden", "Home"]),
        (["a;b", "b", "c, d"], {}, ["a", "b", "c, d"]),
        (["a, b", "b", "c"], {}, ["a", "b", "c"]),
        (["a, b", "b", "c"], {"label_separator": "|"}, ["a, b", "b", "c"]),
        (["a b", "b", "c"], {"label_separator": " "}, ["a", "b", "c"]),
        (["['a, b', 'c']", "['c']", "[]"], {}, ["a, b", "c"]),
    ],
)
def test_the_separator_is_one_for_the_column(
    tmp_path: Path, cells: list[str], options: dict[str, str], names: list[str]
) -> None:
    data = load(labelled(tmp_path / "d.csv", cells * 5), task="multi_label", **options)
    assert data.label_names == names


def test_the_separator_is_decided_over_all_splits_and_said(tmp_path: Path) -> None:
    labelled(tmp_path / "train.csv", ["Arts, Crafts", "Home", "Garden"])
    labelled(tmp_path / "test.csv", ["Home|Arts, Crafts"])
    data = load(tmp_path, task="multi_label")
    assert data.label_names == ["Arts, Crafts", "Garden", "Home"]
    assert data.test.labels.tolist() == [[1, 0, 1]]
    (note,) = [note for note in data.notes if "separated by" in note]
    assert "'|' (',' stand in names)" in note
    assert "--set label_separator=" in note


def test_lists_in_brackets_are_several_labels(tmp_path: Path) -> None:
    data = load(labelled(tmp_path / "d.csv", ["['a', 'b']", "['b']", "[]"] * 5))
    assert (data.task, data.label_names) == ("multi_label", ["a", "b"])
    assert any("lists in brackets" in note for note in data.notes)


@pytest.mark.parametrize(
    ("cells", "several"),
    [
        (["a|b", "c"], True),
        (["a;b", "c"], True),
        (["a,b", "b,c"], True),
        (["a,b", "a"], True),
        (["Oslo, Norway", "x"], False),
    ],
)
def test_single_labels_that_look_like_several_are_named(tmp_path: Path, cells: list[str], several: bool) -> None:
    data = load(labelled(tmp_path / "d.csv", cells * 5))
    assert data.task == "single_label"
    notes = [note for note in data.notes if "state task=multi_label" in note]
    assert bool(notes) is several
    if several:
        assert load(tmp_path / "d.csv", **as_flags("task=multi_label")).task == "multi_label"


# ── types ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_label_is_a_word_in_all_splits_or_in_none(tmp_path: Path, kind: str) -> None:
    for split, labels in (("train", ["1", "2", "A"] * 3), ("test", [1, 2])):
        if kind == "csv":
            labelled(tmp_path / f"{split}.csv", labels)
        else:
            lines = [f'{{"text": "t{i}", "label": {label!r}}}'.replace("'", '"') for i, label in enumerate(labels)]
            (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    data = load(tmp_path)
    assert data.label_names == ["1", "2", "A"]
    assert data.test.labels.tolist() == [0, 1]


def test_one_odd_label_of_the_test_split_is_named_alone(tmp_path: Path) -> None:
    labelled(tmp_path / "train.csv", ["1", "2", "3"] * 3)
    labelled(tmp_path / "test.csv", ["1", "?", "2"])
    with pytest.raises(DataError, match=r"1 label that training never saw: '\?' \(first: test.csv row 2\)"):
        load(tmp_path)


def test_labels_of_one_look_are_one_class(tmp_path: Path) -> None:
    labelled(tmp_path / "train.csv", ["caf\u00e9", "t\u00e9", "caf\u00e9", "t\u00e9"])
    labelled(tmp_path / "test.csv", ["cafe\u0301", "te\u0301"])
    data = load(tmp_path)
    assert data.label_names == ["caf\u00e9", "t\u00e9"]
    assert data.test.labels.tolist() == [0, 1]
    assert any("NFC" in note for note in data.notes)


def test_targets_beyond_a_float32_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"d.csv row 2: 1e\+300 in column 'label' is too large"):
        load(labelled(tmp_path / "d.csv", [0.5, 1e300, 1.5, 2.5]))


# ── a column that says the split ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "words", [("train", "validation", "test"), ("Training", "VAL", "Eval"), ("train", "dev", "testing")]
)
def test_a_split_column_is_the_split(tmp_path: Path, words: Sequence[str]) -> None:
    table = [(f"text {i}", "ab"[i % 2], words[min(i // 6, 2)]) for i in range(18)]
    data = load(write(tmp_path / "d.csv", ("text", "label", "split"), table))
    assert data.sizes() == {"train": 6, "validation": 6, "test": 6}
    for split, start in zip(data.splits(), (0, 6, 12), strict=True):
        assert [text for (text,) in split.inputs] == [f"text {i}" for i in range(start, start + 6)]
        assert split.inputs.name(0) == f"d.csv row {start + 1}"
        assert split.labels.tolist() == [0, 1] * 3
    assert any(note.startswith("splits by column 'split': train 6") for note in data.notes)


def test_a_split_column_of_pictures_keeps_files_and_labels_together(tmp_path: Path) -> None:
    for i in range(12):
        Image.new("L", (4, 4), 10 * i).save(tmp_path / f"{i}.png")
    table = [(f"{i}.png", "ab"[i % 2], ("test", "train", "unused")[i % 3]) for i in range(12)]
    path = write(tmp_path / "d.csv", ("image", "label", "split"), table)
    data = load_data(str(path), wants="file")
    assert data.sizes() == {"train": 4, "test": 4}
    assert [data.train.inputs.read(at) for at in range(4)] == [
        (tmp_path / f"{i}.png").read_bytes() for i in range(1, 12, 3)
    ]
    assert [data.label_names[label] for label in data.train.labels] == ["ab"[i % 2] for i in range(1, 12, 3)]
    assert any("left out: 4 rows called 'unused'" in note for note in data.notes)


def test_a_split_column_that_is_stated_or_says_no_split_is_none(tmp_path: Path) -> None:
    table = [(f"text {i}", "ab"[i % 2], "xy"[i % 2]) for i in range(12)]
    data = load(write(tmp_path / "d.csv", ("text", "label", "split"), table))
    assert rows(data) == 12
    assert any("column 'split' is not read as splits" in note for note in data.notes)
    table = [(f"text {i}", "ab"[i % 2], ("train", "test")[i % 2]) for i in range(12)]
    stated = load(write(tmp_path / "e.csv", ("text", "label", "split"), table), label_columns=["split"])
    assert stated.label_names == ["test", "train"]
    assert rows(stated) == 12


def test_a_split_column_that_contradicts_the_files_is_said(tmp_path: Path) -> None:
    header = ("text", "label", "split")
    write(tmp_path / "train.csv", header, [(f"a {i}", "ab"[i % 2], ("train", "test")[i == 0]) for i in range(8)])
    write(tmp_path / "test.csv", header, [(f"b {i}", "ab"[i % 2], "test") for i in range(4)])
    (note,) = [note for note in load(tmp_path).notes if "disagrees" in note]
    assert "1 row of the train split" in note


# ── advice ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_row_for_each_class_leads_to_advice_that_works(tmp_path: Path) -> None:
    path = labelled(tmp_path / "train.csv", [f"c{i}" for i in range(24)])
    with pytest.raises(DataError, match="--set label_columns=NAME, or this one if they are classes"):
        load(path)
    with pytest.raises(DataError, match=r"every class has a single one: .* or give a test split"):
        load(path, **as_flags("label_columns=label"))
    labelled(tmp_path / "test.csv", [f"c{i}" for i in range(0, 24, 2)])
    assert load(tmp_path, **as_flags("label_columns=label")).sizes() == {"train": 24, "test": 12}
    labelled(tmp_path / "more.csv", [f"c{i % 24}" for i in range(72)])
    assert len(load(tmp_path / "more.csv").label_names) == 24


def test_a_folder_for_each_picture_leads_to_the_same_advice(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for i in range(24):
            (tmp_path / part / f"c{i}").mkdir(parents=True)
            Image.new("L", (4, 4), i).save(tmp_path / part / f"c{i}" / "0.png")
    with pytest.raises(DataError, match="every class has a single one"):
        load_data(str(tmp_path / "train"), wants="file", suffixes={".png"})
    assert len(load_data(str(tmp_path), wants="file", suffixes={".png"}).label_names) == 24


def test_advice_about_columns_works_as_it_is_written(tmp_path: Path) -> None:
    numbers = np.arange(8)
    table = [(f"a {i}", f"b {i}", i % 2, i % 4) for i in numbers]
    path = write(tmp_path / "d.csv", ("first", "second", "n", "m"), table)
    with pytest.raises(DataError, match="--set input_columns=NAME"):
        load(path, label_columns=["n"])
    with pytest.raises(DataError, match="--set label_columns=NAME"):
        load(path, input_columns=["first"])
    data = load(path, **as_flags("input_columns=first", "label_columns=n"))
    assert data.identity["columns"] == {"inputs": ["first"], "labels": ["n"]}
