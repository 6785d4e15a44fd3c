"""Rows that a file names are left out, by name and content, exactly and again; what does not fit is refused."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import runs
import tiny
from PIL import Image
from runs import Cli, predictions

from hftl.data import load_data
from hftl.data.drop import read_row_refs, without_rows
from hftl.errors import DataError, HftlError
from hftl.recipes import Recipe
from hftl.rowrefs import RowRef, as_named, inert


def write_csv(path: Path, rows: list[list[str]], header: tuple[str, ...] = ("row", "split", "digest")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([list(header), *rows])
    return path


def digest_of_text(*texts: str) -> str:
    state = hashlib.blake2b(digest_size=16, person=b"hftl-text")
    for text in texts:
        state.update(len(text.encode()).to_bytes(8, "little") + text.encode())
    return f"blake2b:{state.hexdigest()}"


def digest_of_file(path: Path) -> str:
    return f"blake2b:{hashlib.blake2b(path.read_bytes(), digest_size=16, person=b'hftl-file').hexdigest()}"


def texts(folder: Path) -> Path:
    folder.mkdir()
    for split, rows in (("train", 12), ("test", 6)):
        lines = [[f"{split} text {i}", "ab"[i % 2]] for i in range(rows)]
        write_csv(folder / f"{split}.csv", lines, ("text", "label"))
    return folder


def text_data(folder: Path):
    return load_data(str(folder), wants="text")


def contents(split) -> list[str]:
    return [row[0] for row in split.inputs]


def test_exactly_the_named_rows_of_the_named_splits_are_left_out(tmp_path: Path):
    data = text_data(texts(tmp_path / "data"))
    refs = read_row_refs(write_csv(tmp_path / "d.csv", [
        ["train.csv row 3", "train", digest_of_text("train text 2")],
        ["train.csv row 3", "train", digest_of_text("train text 2")],
        ["test.csv row 1", "test", ""],
    ]))  # fmt: skip
    left = without_rows(data, refs)
    assert contents(left.train) == [f"train text {i}" for i in range(12) if i != 2]
    assert contents(left.test) == [f"test text {i}" for i in range(1, 6)]
    assert left.train.labels.tolist() == [i % 2 for i in range(12) if i != 2]
    assert "dropped 2 rows as asked: train 1, test 1" in left.notes
    assert left.identity["dropped"] == 2
    assert left.identity["splits"] == {"train": 11, "test": 5}


def test_a_row_of_other_content_than_it_was_named_with_is_not_dropped(tmp_path: Path):
    data = text_data(texts(tmp_path / "data"))
    # As if a row had been inserted before it since the file was written.
    with pytest.raises(DataError, match=r"'train.csv row 3' of the train split holds other content"):
        without_rows(data, [RowRef("train", "train.csv row 3", digest_of_text("train text 1"))])


@pytest.mark.parametrize(
    ("ref", "match"),
    [
        (RowRef("train", "train.csv row 99"), "the train split has no row 'train.csv row 99'"),
        (RowRef("train", "test.csv row 1"), "the train split has no row 'test.csv row 1'"),
        (RowRef("validation", "train.csv row 1"), "have only 'train', 'test'"),
    ],
)
def test_rows_that_the_data_do_not_have_are_refused_by_name(tmp_path: Path, ref: RowRef, match: str):
    with pytest.raises(DataError, match=match):
        without_rows(text_data(texts(tmp_path / "data")), [ref])


def test_no_split_and_no_class_may_be_left_without_a_row(tmp_path: Path):
    data = text_data(texts(tmp_path / "data"))
    with pytest.raises(DataError, match="every row of the test split"):
        without_rows(data, [RowRef("test", f"test.csv row {i}") for i in range(1, 7)])
    with pytest.raises(DataError, match="no training row of the class 'b'"):
        without_rows(data, [RowRef("train", f"train.csv row {i}") for i in range(2, 13, 2)])


def test_files_that_name_no_rows_are_refused(tmp_path: Path):
    (tmp_path / "empty.csv").write_text(" \n")
    write_csv(tmp_path / "header.csv", [])
    write_csv(tmp_path / "other.csv", [["a", "b"]], ("row", "label"))
    for file, match in (
        ("empty.csv", "is empty"),
        ("header.csv", "names no row"),
        ("other.csv", r"has no column 'split', only 'row', 'label'"),
        ("missing.csv", "cannot be read"),
    ):
        with pytest.raises(HftlError, match=match):
            Recipe(backbone="a", data="b", drop=str(tmp_path / file))


def test_rows_of_one_name_are_told_apart_by_their_content_only(tmp_path: Path):
    folder = tmp_path / "data"
    for label in "ab":
        (folder / label).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(np.full((4, 4, 3), 20 * i + ord(label), np.uint8)).save(folder / label / f"{i}.png")
    # On one line both are called "a/1 2.png".
    (folder / "a" / "1.png").rename(folder / "a" / "1 2.png")
    (folder / "a" / "2.png").rename(folder / "a" / "1\n2.png")
    data = load_data(str(folder), wants="file", suffixes=[".png"], test_size=0.25)
    names = [data.train.inputs.name(i) for i in range(len(data.train))]
    assert names.count("a/1 2.png") == 2
    with pytest.raises(DataError, match=r"2 rows of the train split have the name 'a/1 2\.png'"):
        without_rows(data, [RowRef("train", "a/1 2.png")])
    left = without_rows(data, [RowRef("train", "a/1 2.png", digest_of_file(folder / "a" / "1\n2.png"))])
    assert (folder / "a" / "1 2.png").read_bytes() in list(left.train.inputs)
    assert (folder / "a" / "1\n2.png").read_bytes() not in list(left.train.inputs)


def test_names_are_inert_in_a_spreadsheet_and_still_found(tmp_path: Path):
    names = ["=1+1.png", "+x", "-x", "@x", "'=x", "'x", "''", "x", "", "'"]
    assert [as_named(inert(name)) for name in names] == names
    assert not any(inert(name).startswith(("=", "+", "-", "@")) for name in names)
    path = write_csv(tmp_path / "d.csv", [[inert(name), "train", ""] for name in names])
    assert [ref.row for ref in read_row_refs(path)] == names


def test_a_csv_that_a_spreadsheet_saved_with_semicolons_is_read(tmp_path: Path):
    (tmp_path / "d.csv").write_text("row;split;finding\r\ntrain.csv row 1;train;copy\r\n", encoding="utf-8-sig")
    assert read_row_refs(tmp_path / "d.csv") == (RowRef("train", "train.csv row 1"),)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    tiny.save("vit", tmp_path / "backbone")
    return runs.write_images(tmp_path / "pictures", per_class=10)


def test_a_run_leaves_rows_out_records_them_and_does_so_again(cli: Cli, pictures: Path, tmp_path: Path):
    common = ("--backbone", "backbone", "--data", "pictures", "--folds", "2")
    recipe = tmp_path / "r.py"
    recipe.write_text(
        "from hftl import Recipe, recipe\n\n@recipe\ndef r() -> Recipe:\n    return Recipe(backbone='a', data='b')\n"
    )
    cli.ok("run", recipe, *common, "--out", "all")
    in_test = predictions(tmp_path / "all")["row"]
    drop = write_csv(tmp_path / "d.csv", [[in_test[0], "test", digest_of_file(pictures / in_test[0])]])
    out = cli.ok("run", recipe, *common, "--drop", drop, "--out", "some")
    assert "dropped 1 row as asked: test 1" in out
    assert predictions(tmp_path / "some")["row"] == in_test[1:]
    recorded = json.loads((tmp_path / "some" / "recipe.json").read_text())["recipe"]["drop"]
    assert [(row["split"], row["row"]) for row in recorded] == [("test", in_test[0])]
    card = (tmp_path / "some" / "model" / "README.md").read_text()
    assert in_test[0] not in card
    assert "1 row left out" in card

    # Whatever became of the file, the record says what was left out.
    drop.unlink()
    cli.ok("run", "some/recipe.json", "--out", "again")
    assert predictions(tmp_path / "again") == predictions(tmp_path / "some")
    # And it says what the rows held.
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(pictures / in_test[0])
    assert "holds other content" in cli.refused("run", "some/recipe.json", "--out", "changed")


def test_rows_are_left_out_of_cross_validation_where_there_is_no_test_split(cli: Cli, pictures: Path, tmp_path: Path):
    recipe = tmp_path / "r.py"
    recipe.write_text(
        "from hftl import Recipe, recipe\n\n@recipe\ndef r() -> Recipe:\n"
        "    return Recipe(backbone='backbone', data='pictures')\n"
    )
    gone = next(file for file in sorted(pictures.rglob("*")) if file.is_file()).relative_to(pictures).as_posix()
    drop = write_csv(tmp_path / "d.csv", [[gone, "train", ""]])
    out = cli.ok("run", recipe, "--cv", "2", "--drop", drop, "--no-report", "--out", "run")
    assert "dropped 1 row as asked: train 1" in out
    rows = predictions(tmp_path / "run")["row"]
    assert len(rows) == 29
    assert gone not in rows


def test_features_are_computed_without_dropped_rows(cli: Cli, pictures: Path, tmp_path: Path):
    recipe = tmp_path / "r.py"
    recipe.write_text(
        "from hftl import Recipe, recipe\n\n@recipe\ndef r() -> Recipe:\n"
        "    return Recipe(backbone='backbone', data='pictures')\n"
    )
    out = cli.ok("features", recipe, "--export", "f.npy")
    assert "30 computed" in out
    facts = json.loads((tmp_path / "f.json").read_text())
    drop = write_csv(tmp_path / "d.csv", [[facts["rows"][0], facts["splits"][0], ""]])
    cli.ok("features", recipe, "--drop", drop, "--export", "g.npy")
    left = json.loads((tmp_path / "g.json").read_text())
    assert left["rows"] == facts["rows"][1:]
    line = cli.refused("features", recipe, "--drop", tmp_path / "none.csv")
    assert "none.csv cannot be read" in line
