"""Class folders, encoded files, and samples."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hftl import samples
from hftl.data import Data, Files, load_data
from hftl.errors import BadRowError, DataError

SUFFIXES = {".png", ".jpg"}


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), level % 256).save(buffer, "PNG")
    return buffer.getvalue()


def plant(root: Path, *files: str) -> None:
    for at, name in enumerate(files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(at) if path.suffix in SUFFIXES else b"text")


def load_files(ref: Path | str, **options: object) -> Data:
    return load_data(str(ref), wants="file", suffixes=SUFFIXES, **options)


def test_class_folders_become_sorted_classes_and_a_stratified_split(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{c}/{i}.png" for c in ("dog", "cat", "Ant") for i in range(10)))
    data = load_files(tmp_path)
    assert data.task == "single_label"
    assert data.label_names == ["Ant", "cat", "dog"]
    assert np.bincount(data.test.labels).tolist() == [2, 2, 2]
    inputs = data.train.inputs
    assert isinstance(inputs, Files)
    for i in range(len(inputs)):
        assert inputs.name(i).split("/")[0] == data.label_names[data.train.labels[i]]
        path = inputs.path(i)
        assert path == tmp_path / inputs.name(i)
        assert inputs.read(i) == inputs[i] == path.read_bytes()


@pytest.mark.parametrize(
    "names", [("train", "valid", "test"), ("Training", "val", "EVAL"), ("train", "dev", "testing")]
)
def test_split_folders(tmp_path: Path, names: tuple[str, str, str]) -> None:
    for size, split in zip((3, 1, 2), names, strict=True):
        plant(tmp_path / split, *(f"{c}/deep/er/{i}.png" for c in "ab" for i in range(size)))
    data = load_files(tmp_path)
    assert data.validation is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (6, 2, 4)
    assert data.label_names == ["a", "b"]
    assert data.test.inputs.name(0) == f"{names[2]}/a/deep/er/0.png"


def test_hidden_junk_and_other_files_are_ignored_and_counted(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{c}/{i}.PNG".replace("PNG", "png") for c in "ab" for i in range(5)))
    plant(
        tmp_path,
        "a/.hidden.png",
        ".cache/c/1.png",
        "a/Thumbs.db",
        "__MACOSX/a/1.png",
        "a/notes.txt",
        "b/x.gif",
        "README.md",
        "stray.png",
    )
    data = load_files(tmp_path)
    assert len(data.train) + len(data.test) == 10
    assert data.label_names == ["a", "b"]
    (note,) = [note for note in data.notes if "ignored" in note]
    assert note.startswith("ignored 4 other files")
    assert ".gif: 1" in note


def test_suffixes_are_compared_without_case(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{c}/{i}.png" for c in "ab" for i in range(5)))
    (tmp_path / "a" / "0.png").rename(tmp_path / "a" / "0.PNG")
    assert len(load_data(str(tmp_path), wants="file", suffixes={".Png"}).identity["splits"]) == 2
    assert sum(load_data(str(tmp_path), wants="file", suffixes={".Png"}).identity["splits"].values()) == 10


def test_a_class_called_train_is_no_split(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{c}/{i}.png" for c in ("train", "bus", "car") for i in range(5)))
    assert load_files(tmp_path).label_names == ["bus", "car", "train"]


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    plant(tmp_path / "elsewhere", *(f"{i}.png" for i in range(5)))
    plant(tmp_path / "data", *(f"b/{i}.png" for i in range(5)))
    (tmp_path / "data" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "b" / "loop").symlink_to(tmp_path / "data")
    data = load_files(tmp_path / "data")
    assert data.label_names == ["a", "b"]
    assert len(data.train) + len(data.test) == 10


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["x.png", "y.png"], "no .jpg, .png files in class folders"),
        (["a/x.txt", "b/y.txt"], "no .jpg, .png files in class folders .* it holds 2 files"),
        (["train/x.png", "test/y.png"], "no .jpg, .png files in class folders"),
        (["all/a/x.png", "all/b/y.png"], "only one class folder, 'all', and it holds folders: give .*all"),
        (["a/x.png", "a/y.png"], "single class, 'a'"),
        (
            ["train/a/0.png", "train/b/0.png", "test/a/0.png", "test/c/0.png"],
            r"never saw: 'c' \(first: test/c/0.png\)",
        ),
    ],
)
def test_folders_that_cannot_be_used(tmp_path: Path, files: list[str], message: str) -> None:
    plant(tmp_path, *files)
    with pytest.raises(DataError, match=message):
        load_files(tmp_path)


def test_a_file_name_that_is_not_utf8_is_said(tmp_path: Path) -> None:
    plant(tmp_path, "a/0.png", "b/0.png")
    (tmp_path / "a" / os.fsdecode(b"caf\xe9.png")).write_bytes(png(1))
    with pytest.raises(DataError, match=r"caf\\xe9.png' is not UTF-8; rename it"):
        load_files(tmp_path)


def test_a_folder_that_cannot_be_listed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="cannot be listed: Permission denied"):
        load_files(tmp_path)


def test_folders_of_texts(tmp_path: Path) -> None:
    for split, size in (("train", 4), ("test", 2)):
        for label in ("pos", "neg"):
            for i in range(size):
                path = tmp_path / split / label / f"{i}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{label} review {i} ☃", encoding="utf-8")
    data = load_data(str(tmp_path), wants="text")
    assert data.label_names == ["neg", "pos"]
    assert data.test.inputs[0] == ("neg review 0 ☃",)
    assert data.test.inputs.name(3) == "test/pos/1.txt"
    (tmp_path / "test" / "pos" / "1.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"test/pos/1\.txt: not UTF-8"):
        load_data(str(tmp_path), wants="text")


@pytest.mark.parametrize("column", ["image", "file_name", "whatever"])
def test_a_table_of_paths(tmp_path: Path, column: str) -> None:
    plant(tmp_path, *(f"images/{i}.png" for i in range(10)))
    rows = "".join(f"images/{i}.png,{'ab'[i % 2]}\n" for i in range(10))
    (tmp_path / "train.csv").write_text(f"{column},label\n{rows}")
    data = load_files(tmp_path / "train.csv")
    path = data.train.inputs.path(0) if isinstance(data.train.inputs, Files) else None
    assert path == tmp_path / "images" / "0.png"
    assert data.train.inputs.name(0) == "train.csv row 1 (images/0.png)"
    whole_folder = load_files(tmp_path)
    assert list(whole_folder.train.inputs) == list(data.train.inputs)


def test_paths_that_all_lead_nowhere_are_refused_but_one_missing_file_is_a_bad_row(tmp_path: Path) -> None:
    plant(tmp_path, *(f"images/{i}.png" for i in range(10)))
    rows = "".join(f"images/{i}.png,{'ab'[i % 2]}\n" for i in range(10))
    (tmp_path / "train.csv").write_text(f"image,label\n{rows}")
    os.remove(tmp_path / "images" / "0.png")  # noqa: PTH107
    inputs = load_files(tmp_path / "train.csv").train.inputs
    with pytest.raises(BadRowError, match=r"train\.csv row 1 \(images/0\.png\): the file cannot be read: No such file"):
        inputs[0]
    (tmp_path / "sub").mkdir()
    (tmp_path / "train.csv").rename(tmp_path / "sub" / "train.csv")
    with pytest.raises(DataError, match=r"train\.csv row 1 .*paths must start from the folder"):
        load_files(tmp_path / "sub" / "train.csv")


def test_text_data_for_an_image_backbone_and_the_reverse(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"n": 1, "label": "a"}\n{"n": 2, "label": "b"}\n')
    with pytest.raises(DataError, match=r"no image or audio file column; found n .int., label .text."):
        load_files(tmp_path / "d.jsonl")
    with pytest.raises(DataError, match=r"no text column; found image .file., label .text."):
        load_data("sample:digits", wants="text")


def test_the_sample_is_what_samples_give() -> None:
    data = load_data("sample:digits", wants="file")
    rows = samples.DATASETS["digits"]()
    for split in (data.train, data.test):
        assert list(split.inputs) == [row.encoded for row in rows[split.name]]
        assert [data.label_names[i] for i in split.labels] == [row.label for row in rows[split.name]]
        assert [split.inputs.name(i) for i in range(3)] == [row.name for row in rows[split.name][:3]]
    assert isinstance(data.test.inputs, Files)
    assert data.test.inputs.path(0) is None
    with pytest.raises(DataError, match=r"sample:digit: no such sample \(did you mean 'digits'\?\)"):
        load_data("sample:digit", wants="file")


def test_files_select_slice_and_pickle(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{c}/{i}.png" for c in "ab" for i in range(5)))
    inputs = load_files(tmp_path, test_size=0.1).train.inputs
    assert isinstance(inputs, Files)
    chosen = inputs.select([4, 0, 4]).select(np.array([2, 1]))
    assert [chosen.name(i) for i in range(2)] == [inputs.name(4), inputs.name(0)]
    assert list(inputs[2:4]) == [inputs[2], inputs[3]]
    assert inputs[-1] == inputs[len(inputs) - 1]
    assert list(pickle.loads(pickle.dumps(chosen))) == list(chosen)
    with pytest.raises(IndexError):
        inputs[len(inputs)]
