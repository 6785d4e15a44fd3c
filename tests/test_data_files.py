"""Files as people have them: every encoding, line end, quote, path and layout is read, or said in one line."""

from __future__ import annotations

import base64
import io
import json
import os
import threading
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hftl.data import Data, Files, load_data
from hftl.data.row_streams import plain_line, text_lines
from hftl.errors import BadRowError, DataError

ROWS = [("good film", "pos"), ("bad film", "neg"), ("fine", "pos"), ("awful", "neg"), ("so so", "pos"), ("no", "neg")]


def text_of(rows: Sequence[Sequence[str]] = ROWS, delimiter: str = ",", end: str = "\n") -> str:
    return "".join(delimiter.join(row) + end for row in (("text", "label"), *rows))


def load(path: Path | str, **options: Any) -> Data:
    return load_data(str(path), **{"wants": "text", **options})


def pictures(path: Path | str, **options: Any) -> Data:
    return load_data(str(path), **{"wants": "file", "suffixes": {".png"}, **options})


def read_back(data: Data) -> list[tuple[Any, str]]:
    """Every row with its label."""
    return sorted(
        (row if isinstance(row, bytes) else row[0], data.label_names[label])
        for split in data.splits()
        for row, label in zip(split.inputs, split.labels, strict=True)
    )


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), level).save(buffer, "PNG")
    return buffer.getvalue()


def plant(root: Path, *names: str) -> list[bytes]:
    """Write a picture of its own content for each name."""
    content = [png(at) for at in range(len(names))]
    for name, encoded in zip(names, content, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded)
    return content


# ── text ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize(("delimiter", "first"), [(",", ""), (";", "sep=;"), ("\t", "")])
def test_a_table_is_the_same_in_every_writing(
    tmp_path: Path, end: str, encoding: str, delimiter: str, first: str
) -> None:
    (tmp_path / "d.csv").write_bytes(((first and first + end) + text_of(delimiter=delimiter, end=end)).encode(encoding))
    assert read_back(load(tmp_path / "d.csv")) == sorted(ROWS)


def test_other_encodings_are_named(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_bytes(text_of().encode("utf-16-le"))
    with pytest.raises(DataError, match=r"d.csv: looks like UTF-16 without a byte-order mark: save it as UTF-8"):
        load(tmp_path / "d.csv")
    (tmp_path / "d.jsonl").write_bytes(b"\xff\xfeabc")
    with pytest.raises(DataError, match=r"d.jsonl: damaged UTF-16 text"):
        load(tmp_path / "d.jsonl")


def test_the_empty_name_of_a_row_number_column_is_no_blank_to_cut(tmp_path: Path) -> None:
    (tmp_path / "d.tsv").write_text(
        "\ttext\tlabel\n" + "".join(f"{i}\t{t}\t{label}\n" for i, (t, label) in enumerate(ROWS))
    )
    assert read_back(load(tmp_path / "d.tsv")) == sorted(ROWS)


def lines_of(path: Path) -> list[str]:
    with text_lines(path, path.name) as lines:
        return [plain_line(line) for line in lines]


def test_lines_of_a_text_file_end_where_editors_end_them(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    lines = ["one\u2028still one", "", "two\x0c\x85", " three "]
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        for end in ("\n", "\r\n", "\r"):
            for last in ("", end):
                path.write_bytes((end.join(lines) + last).encode(encoding))
                assert lines_of(path) == lines
    path.write_bytes(b"a\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"t\.txt line 2: not UTF-8 text \(byte 0xe9\)"):
        lines_of(path)
    with pytest.raises(DataError, match=r"none\.txt: cannot be read: No such file"):
        lines_of(tmp_path / "none.txt")
    path.write_bytes(b"")
    assert lines_of(path) == []


# ── quotes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("stray", [(5,), (4, 9), (0, 1, 2), (19,)])
def test_a_stray_quote_swallows_no_row(tmp_path: Path, delimiter: str, stray: Sequence[int]) -> None:
    rows = [(f"{'*' if i in stray else ''}text number {i} here".replace("*", '"'), "yn"[i % 2]) for i in range(20)]
    path = tmp_path / ("d.tsv" if delimiter == "\t" else "d.csv")
    path.write_text(text_of(rows, delimiter))
    data = load(path)
    assert read_back(data) == sorted(rows)
    assert any(f"row {stray[0] + 1}: a quote not closed" in note for note in data.notes)


def test_quotes_inside_a_cell_and_after_it_are_letters(tmp_path: Path) -> None:
    rows = [
        ('"Great" film', "pos"),
        ('he said "no"', "neg"),
        ('5" nails', "pos"),
        ('""', "neg"),
        ('a"', "pos"),
        ("b", "neg"),
    ]
    (tmp_path / "d.tsv").write_text(text_of(rows, "\t"))
    expected = sorted((text if text != '""' else "", label) for text, label in rows)
    assert read_back(load(tmp_path / "d.tsv")) == expected


def test_a_stray_quote_that_leaves_no_table_is_an_error_with_its_row(tmp_path: Path) -> None:
    lines = ["a,x", '"b, c,y', "d,x"]
    (tmp_path / "d.csv").write_text("text,label\n" + "\n".join(lines))
    with pytest.raises(DataError, match=r"d\.csv row 2: a cell begins with a quote .* leaves row 2 with 3 cells"):
        load(tmp_path / "d.csv")


def test_texts_of_several_lines_stay_and_those_like_rows_are_said(tmp_path: Path) -> None:
    rows = [(f'"line {i}\nand ""quoted""\n"', "xy"[i % 2]) for i in range(8)]
    (tmp_path / "d.csv").write_text(text_of(rows))
    data = load(tmp_path / "d.csv")
    assert len(read_back(data)) == 8
    assert read_back(data)[0][0] == 'line 0\nand "quoted"\n'
    assert not [note for note in data.notes if "quote" in note]
    swallowed = ['y\t"one', "n\ttwo", 'y\tthree"', "n\tfour", "y\tfive", "n\tsix"]
    (tmp_path / "e.tsv").write_text("label\ttext\n" + "\n".join(swallowed))
    (note,) = [note for note in load(tmp_path / "e.tsv").notes if "quote is not closed" in note]
    assert "2 lines inside quoted texts could be rows of their own" in note


# ── only what is used needs a type ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "odd",
    [
        [2**53 + 1, -(2**62)],
        [2**64 - 1, 1],
        [2**70, 1],
        [1, "one"],
        [True, 2.5],
        [{"a": 1}, None],
        [[[1]], [[2]]],
        ["\ud83d", "x"],
        [None, None],
        [2**53 + 1, 0.5],
    ],
    ids=lambda odd: repr(odd)[:20],
)
def test_a_column_that_nobody_uses_may_hold_anything(tmp_path: Path, odd: list[Any]) -> None:
    rows = [{"id": odd[i % 2], "text": text, "label": label} for i, (text, label) in enumerate(ROWS)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_back(load(tmp_path / "d.jsonl")) == sorted(ROWS)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("text", "half \ud83d", r"d.jsonl: column 'text' holds half a character \(a lone surrogate\) in row 2"),
        ("label", 10**5000, r"d.jsonl: column 'label' holds an integer that is too large in row 2: write it as text"),
        ("label", 7, r"d.jsonl: column 'label' mixes kinds of values, text \(row 1\) and a whole number \(row 2\)"),
        ("label", {"a": 1}, r"d.jsonl: column 'label' holds nested objects or lists \(row 2\)"),
        ("text", [["a"]], r"d.jsonl: column 'text' holds nested objects or lists \(row 2\)"),
    ],
    ids=["surrogate", "huge", "mixed", "object", "lists"],
)
def test_a_column_that_is_used_is_named_with_its_row(tmp_path: Path, column: str, value: Any, message: str) -> None:
    rows = [{"text": text, "label": label} for text, label in ROWS]
    written = ["%" if at == 1 and value == 10**5000 else row for at, row in enumerate(rows)]
    if value != 10**5000:
        rows[1][column] = value
        written = rows
    lines = [json.dumps(row) if row != "%" else '{"text": "t", "label": ' + "7" * 5000 + "}" for row in written]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path / "d.jsonl")
    assert "\n" not in str(caught.value)


def test_large_whole_numbers_are_classes_and_keep_every_digit(tmp_path: Path) -> None:
    numbers = [2**53, 2**53 + 1, 2**63 - 1]
    pq.write_table(pa.table({"text": ["a", "b", "c"] * 4, "label": numbers * 4}), tmp_path / "d.parquet")
    assert load(tmp_path / "d.parquet").label_names == [str(number) for number in numbers]
    (tmp_path / "d.csv").write_text(text_of([(f"t{i}", "9" * 25 if i % 2 else "8" * 25) for i in range(8)]))
    assert load(tmp_path / "d.csv").label_names == ["8" * 25, "9" * 25]


def test_unused_columns_that_stand_twice_or_differ_between_files_stop_nothing(tmp_path: Path) -> None:
    for part, kind in (("train-0", 1), ("train-1", "one")):
        rows = [{"id": kind, "text": text, "label": label} for text, label in ROWS]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert len(read_back(load(tmp_path))) == 12
    with pytest.raises(DataError, match=r"column 'id' holds different kinds of values"):
        load(tmp_path, input_columns=["id"], label_columns=["label"])
    (tmp_path / "d.csv").write_text("text,label,,\n" + "".join(f"{text},{label},,\n" for text, label in ROWS))
    assert read_back(load(tmp_path / "d.csv")) == sorted(ROWS)


def test_columns_without_any_value_are_no_candidates(tmp_path: Path) -> None:
    header = "text,notes,remarks,kind\n"
    (tmp_path / "d.csv").write_text(header + "".join(f"{text},,,{i % 2}\n" for i, (text, _) in enumerate(ROWS)))
    data = load(tmp_path / "d.csv")
    assert data.identity["columns"] == {"inputs": ["text"], "labels": ["kind"]}


@pytest.mark.parametrize("name", ["d.json", "d.jsonl"])
def test_deeply_nested_json_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('[{"text": "a", "label": ' + "[" * 100_000 + "]" * 100_000 + "}]")
    with pytest.raises(DataError, match="nested too deep"):
        load(tmp_path / name)
    (tmp_path / "e.csv").write_text(text_of([(f"t{i}", "[" * 5000 + "]" * 5000) for i in range(4)]))
    with pytest.raises(DataError):
        load(tmp_path / "e.csv", task="multi_label")


def test_ten_thousand_columns_take_seconds(tmp_path: Path) -> None:
    count = 10_000
    rng = np.random.default_rng(0)
    header = ",".join(["text", "label", *(f"c{i}" for i in range(count))])
    rows = [f"t{i},{'ab'[i % 2]}," + ",".join(map(str, rng.integers(0, 9, count))) for i in range(6)]
    (tmp_path / "d.csv").write_text("\n".join([header, *rows]))
    started = time.perf_counter()
    assert load(tmp_path / "d.csv").label_names == ["a", "b"]
    # Quadratic cost took more than a minute.
    assert time.perf_counter() - started < 20


# ── what is no regular file ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def within_seconds(call: Any) -> BaseException | None:
    """What a call raises; it fails if the call waits for ever."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except DataError as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "it hangs"
    return raised[0] if raised else None


@pytest.mark.parametrize("name", ["d.csv", "d.jsonl", "d.parquet"])
@pytest.mark.parametrize("endless", ["fifo", "/dev/zero"])
def test_pipes_and_devices_are_not_read_as_tables(tmp_path: Path, fifo: Path, name: str, endless: str) -> None:
    if endless == "fifo":
        fifo.rename(tmp_path / name)
    else:
        (tmp_path / name).symlink_to(endless)
    error = within_seconds(lambda: load(tmp_path / name))
    assert "no regular file" in str(error)
    assert name in str(error)


def test_pipes_and_devices_among_pictures_are_bad_rows(tmp_path: Path, fifo: Path) -> None:
    plant(tmp_path / "d", *(f"{c}/{i}.png" for c in "ab" for i in range(4)))
    fifo.rename(tmp_path / "d" / "a" / "pipe.png")
    (tmp_path / "d" / "b" / "zero.png").symlink_to("/dev/zero")
    data = pictures(tmp_path / "d")
    for name in ("a/pipe.png", "b/zero.png"):
        (inputs,) = [s.inputs for s in data.splits() if name in [s.inputs.name(i) for i in range(len(s))]]
        row = [inputs.name(i) for i in range(len(inputs))].index(name)
        assert "no regular file" in str(within_seconds(lambda inputs=inputs, row=row: inputs[row]))


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("~nobody-of-this-name/d.csv", "no file can be looked for there: .*home"),
        ("x" * 5000 + ".csv", "no file can be looked for there: File name too long"),
        ("a\0b.csv", "(no file can be looked for|no such file)"),
        ("/dev/null", "a data file must end in"),
    ],
)
def test_references_that_cannot_be_files(ref: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(ref)
    assert len(str(caught.value)) < 400


# ── paths in tables, and pictures in cells ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "spelled",
    [
        "{name}",
        " {name}",
        "{name} ",
        "sub\\{name}",
        "./sub/{name}",
        "{folder}/sub/{name}",
        "file://{folder}/sub/{name}",
        "file://localhost{folder}/sub/{name}",
    ],
)
def test_paths_are_read_as_people_write_them(tmp_path: Path, spelled: str) -> None:
    where = "sub" if "sub" in spelled else "."
    content = plant(tmp_path / where, *(f"{i}.png" for i in range(8)))
    cells = [spelled.format(name=f"{i}.png", folder=tmp_path) for i in range(8)]
    (tmp_path / "d.csv").write_text(
        "image,label\n" + "".join(f"{cell},{'ab'[i % 2]}\n" for i, cell in enumerate(cells))
    )
    data = pictures(tmp_path / "d.csv")
    assert read_back(data) == sorted((encoded, "ab"[i % 2]) for i, encoded in enumerate(content))
    assert isinstance(data.train.inputs, Files)
    path = data.train.inputs.path(0)
    assert path is not None
    assert path.read_bytes() == data.train.inputs[0]


@pytest.mark.parametrize(("stored", "written"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_of_a_path_are_found_in_either_form(tmp_path: Path, stored: str, written: str) -> None:
    def name(i: int, form: Any) -> str:
        return unicodedata.normalize(form, f"café{i}.png")

    content = plant(tmp_path, *(name(i, stored) for i in range(8)))
    rows = "".join(f"{name(i, written)},{'ab'[i % 2]}\n" for i in range(8))
    (tmp_path / "d.csv").write_text("image,label\n" + rows, encoding="utf-8")
    assert [row for row, _ in read_back(pictures(tmp_path / "d.csv"))] == sorted(content)


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_pictures_in_base64_are_read_from_the_cell(tmp_path: Path, prefix: str) -> None:
    content = [png(i) for i in range(8)]
    cells = [prefix + base64.b64encode(encoded).decode() for encoded in content]
    rows = "".join(f'"{cell}",{"ab"[i % 2]}\n' for i, cell in enumerate(cells))
    (tmp_path / "d.csv").write_text("image,label\n" + rows)
    data = pictures(tmp_path / "d.csv")
    assert [row for row, _ in read_back(data)] == sorted(content)
    assert data.train.inputs.name(0).startswith("d.csv row ")
    assert len(data.train.inputs.name(0)) < 20


@pytest.mark.parametrize(
    "column",
    [
        lambda c: pa.array([{"bytes": b} for b in c]),
        lambda c: pa.array([{"bytes": b, "path": "x.png"} for b in c]),
        lambda c: pa.array(c, pa.binary_view()),
        lambda c: pa.array(c, pa.large_binary()),
        lambda c: pa.array([{"bytes": b} for b in c], pa.struct([("bytes", pa.binary_view())])),
    ],
    ids=["bytes alone", "bytes and path", "views", "large", "views inside"],
)
def test_parquet_pictures_of_every_type(tmp_path: Path, column: Any) -> None:
    content = [png(i) for i in range(8)]
    labels = pa.array(list("abababab"), pa.string_view())
    pq.write_table(pa.table({"image": column(content), "label": labels}), tmp_path / "d.parquet")
    assert read_back(pictures(tmp_path / "d.parquet")) == sorted((b, "ab"[i % 2]) for i, b in enumerate(content))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata_beside_the_pictures_of_each_split(tmp_path: Path, kind: str) -> None:
    for split in ("train", "test"):
        plant(tmp_path / split, *(f"{i}.png" for i in range(6)))
        rows = [{"file_name": f"{i}.png", "label": "ab"[i % 2]} for i in range(6)]
        lines = (
            ["file_name,label", *(",".join(row.values()) for row in rows)] if kind == "csv" else map(json.dumps, rows)
        )
        (tmp_path / split / f"metadata.{kind}").write_text("\n".join(lines))
    data = pictures(tmp_path)
    assert data.sizes() == {"train": 6, "test": 6}
    assert isinstance(data.test.inputs, Files)
    assert data.test.inputs.path(3) == tmp_path / "test" / "3.png"


def test_a_test_file_without_labels_is_left_out_and_said(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(text_of(ROWS * 2))
    (tmp_path / "test.csv").write_text("text\nwhat is this\n")
    data = load(tmp_path)
    assert data.set_aside
    assert "test split left out: it has no label column 'label'" in data.notes


# ── folders ──────────────────────────────────────────────────────────────────────────────────────────────────────────

CLASSES = [f"{c}/{i}.png" for c in "ab" for i in range(4)]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("data/train", "data/val"),
        ("around/data/train", "around/data/test"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("train/images", "test/images"),
    ],
)
def test_split_folders_are_found_where_archives_put_them(tmp_path: Path, train: str, test: str) -> None:
    plant(tmp_path / train, *CLASSES)
    plant(tmp_path / test, *CLASSES[::2])
    data = pictures(tmp_path)
    assert data.label_names == ["a", "b"]
    assert data.sizes() == {"train": 8, "test": 4}
    for i, label in enumerate(data.test.labels):
        assert data.test.inputs.name(i).startswith(f"{test}/{data.label_names[label]}/")


def test_splits_inside_class_folders_are_splits(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{c}/{split}/{i}.png" for c in "ab" for split in ("train", "val", "test") for i in range(3)))
    data = pictures(tmp_path)
    assert data.sizes() == {"train": 6, "validation": 6, "test": 6}
    assert all("/test/" in data.test.inputs.name(i) for i in range(6))
    assert any("inside the class folders" in note for note in data.notes)
    plant(tmp_path, "c/0.png", "c/1.png")
    assert any("are not read as splits" in note for note in pictures(tmp_path).notes)


def test_a_split_of_one_class_with_folders_inside_keeps_its_class(tmp_path: Path) -> None:
    plant(tmp_path, *(f"train/{c}/x/{i}.png" for c in "ab" for i in range(3)), "test/a/x/0.png", "test/a/x/1.png")
    data = pictures(tmp_path)
    assert data.label_names == ["a", "b"]
    assert data.test.labels.tolist() == [0, 0]


@pytest.mark.parametrize(
    "junk", ["@eaDir/0.png/x.png", "$RECYCLE.BIN/z.png", "System Volume Information/x.png", "#recycle/x.png"]
)
def test_what_systems_leave_behind_is_no_class(tmp_path: Path, junk: str) -> None:
    plant(tmp_path, *CLASSES, junk, f"a/{junk}")
    data = pictures(tmp_path)
    assert data.label_names == ["a", "b"]
    assert sum(data.sizes().values()) == 8


def test_an_unlabelled_test_folder_is_no_class(tmp_path: Path) -> None:
    plant(tmp_path, *CLASSES, "test/0.png", "test/1.png")
    data = pictures(tmp_path)
    assert data.label_names == ["a", "b"]
    assert any("'test'" in note for note in data.notes)
    plant(tmp_path / "split", *(f"train/{name}" for name in CLASSES), "test/0.png")
    assert any("files without class folders: 'test'" in note for note in pictures(tmp_path / "split").notes)


def test_folders_of_which_nothing_is_read_are_named(tmp_path: Path) -> None:
    plant(tmp_path, *CLASSES)
    (tmp_path / "empty").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "1.avif").write_bytes(b"x")
    (note,) = [note for note in pictures(tmp_path).notes if note.startswith("no class")]
    assert "'empty' (empty), 'new' (.avif: 1)" in note


def test_a_missing_picture_is_a_bad_row_that_names_its_file(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{i}.png" for i in range(8)))
    rows = "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(12))
    (tmp_path / "d.csv").write_text("image,label\n" + rows + "x" * 4000 + ",a\n")
    data = pictures(tmp_path / "d.csv", test_size=0.1)
    messages = []
    for split in data.splits():
        for i in range(len(split)):
            try:
                split.inputs[i]
            except BadRowError as error:
                messages.append(str(error))
    assert len(messages) == 5
    assert sum("No such file" in message for message in messages) == 4
    assert any("d.csv row 13" in message and "File name too long" in message for message in messages)
