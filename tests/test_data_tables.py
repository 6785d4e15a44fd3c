"""Tables on disk: what is read is what stands there, and what is broken is said with its row."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hftl.data import Data, Texts, load_data
from hftl.errors import DataError, UserError

ROWS = [("good film", "pos"), ("bad film", "neg"), ("fine", "pos"), ("awful", "neg"), ("so so", "pos")]


def write_csv(
    path: Path, rows: list[tuple[object, ...]], header: tuple[str, ...] = ("text", "label"), **options: str
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=options.pop("encoding", "utf-8")) as file:
        writer = csv.writer(file, **options)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def load_text(path: Path | str, **options: object) -> Data:
    return load_data(str(path), wants="text", **options)


def all_rows(data: Data) -> list[tuple[tuple[str, ...], object]]:
    """Return inputs and labels of every split, labels as names."""
    splits = [split for split in (data.train, data.validation, data.test) if split is not None]
    return sorted(
        (row, data.label_names[label])
        for split in splits
        for row, label in zip(split.inputs, split.labels, strict=True)
    )


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "wrapped json", "json lines in .json", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    texts = [
        "plain",
        'a "quoted", one',
        "two\nlines",
        "NA",
        "null",
        "  padded ",
        "ümläut ☃",
        "7",
        "2020-01-01",
        "None",
    ]
    rows = [(text, "ab"[i % 2]) for i, text in enumerate(texts)]
    records = [{"text": text, "label": label} for text, label in rows]
    suffix = "json" if "json" in kind and kind != "jsonl" else kind
    path = tmp_path / f"data.{suffix}"
    if kind in ("csv", "tsv"):
        write_csv(path, rows, delimiter="\t" if kind == "tsv" else ",")
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif kind in ("jsonl", "json lines in .json"):
        write_jsonl(path, records)
    else:
        path.write_text(json.dumps({"data": records} if "wrapped" in kind else records), encoding="utf-8")
    data = load_text(path)
    assert all_rows(data) == sorted(((text,), label) for text, label in rows)
    assert data.task == "single_label"


@pytest.mark.parametrize(("delimiter", "name"), [(";", "d.csv"), ("\t", "d.csv"), (",", "D.CSV")])
def test_delimiters_are_read_from_the_header(tmp_path: Path, delimiter: str, name: str) -> None:
    path = write_csv(tmp_path / name, ROWS, delimiter=delimiter)
    assert all_rows(load_text(path)) == sorted(((text,), label) for text, label in ROWS)


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    body = "text,label\r\n" + "".join(f"{text},{label}\r\n" for text, label in ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + body.encode())
    assert all_rows(load_text(path)) == sorted(((text,), label) for text, label in ROWS)


def test_names_count_data_rows_in_every_shard(tmp_path: Path) -> None:
    for shard in range(2):
        table = pa.table({"text": [f"{shard}-{i}" for i in range(3)], "label": ["a", "b", "a"]})
        pq.write_table(table, tmp_path / f"train-{shard:05d}-of-00002.parquet")
    write = pa.table({"text": ["t"], "label": ["a"]})
    pq.write_table(write, tmp_path / "test-00000-of-00001.parquet")
    inputs = load_text(tmp_path).train.inputs
    assert isinstance(inputs, Texts)
    assert [inputs.name(i) for i in (0, 2, 3, 5)] == [
        "train-00000-of-00002.parquet row 1",
        "train-00000-of-00002.parquet row 3",
        "train-00001-of-00002.parquet row 1",
        "train-00001-of-00002.parquet row 3",
    ]
    assert inputs.select([4, 1]).name(0) == "train-00001-of-00002.parquet row 2"
    assert inputs.select([4, 1])[1] == ("0-1",)
    assert inputs[-1] == ("1-2",)
    assert list(inputs[1:3]) == [("0-1",), ("0-2",)]


@pytest.mark.parametrize(
    "names", [("train", "dev", "test"), ("training", "val", "eval"), ("a_train_v2", "a_valid", "a_test")]
)
def test_splits_are_read_from_file_names(tmp_path: Path, names: tuple[str, str, str]) -> None:
    for size, name in zip((5, 4, 3), names, strict=True):
        write_csv(tmp_path / f"{name}.csv", ROWS[:size])
    write_csv(tmp_path / "notes.csv", [("x", "y")])
    data = load_text(tmp_path)
    assert data.validation is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (5, 4, 3)
    assert any("notes.csv" in note for note in data.notes)


def test_splits_are_read_from_folder_names_and_nameless_files_are_training(tmp_path: Path) -> None:
    write_csv(tmp_path / "a" / "train" / "x.csv", ROWS)
    write_csv(tmp_path / "a" / "test" / "x.csv", ROWS[:2])
    write_csv(tmp_path / "b" / "one.csv", ROWS)
    write_csv(tmp_path / "b" / "two.csv", ROWS)
    assert len(load_text(tmp_path / "a").test) == 2
    parts = load_text(tmp_path / "b")
    assert len(parts.train) + len(parts.test) == 10


def test_null_texts_become_empty_and_are_counted_and_empty_ones_stay(tmp_path: Path) -> None:
    rows = [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(["x", None, "", "y", None, "z"])]
    data = load_text(write_jsonl(tmp_path / "train.jsonl", rows))
    assert [row for row, _ in all_rows(data)].count(("",)) == 3
    assert "2 null texts read as empty" in data.notes


def test_class_names_in_parquet_metadata_are_used(tmp_path: Path) -> None:
    features = {
        "label": {"names": ["zebra", "ant"], "_type": "ClassLabel"},
        "text": {"dtype": "string", "_type": "Value"},
    }
    meta = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"text": [str(i) for i in range(6)], "label": [0, 1] * 3}).replace_schema_metadata(meta)
    pq.write_table(table, tmp_path / "train.parquet")
    data = load_text(tmp_path / "train.parquet")
    assert data.label_names == ["zebra", "ant"]
    assert all_rows(data)[0] == (("0",), "zebra")


BROKEN = {
    "ragged": (b"text,label\nx,a\ny,b,c\n", r"d\.csv row 2: 3 cells, but the header has 2"),
    "unclosed quote": (b'text,label\nx,a\n"y, too,b\nz,c\n', r"d\.csv row 2: .*close each quote"),
    "latin-1": ("text,label\nx,a\ncafé,b\n".encode("latin-1"), r"d\.csv line 3: not UTF-8.*0xe9.*iconv"),
    "empty": (b"", r"d\.csv: the file is empty"),
    "blank": (b"\n \n", r"d\.csv: the file is empty"),
    "header only": (b"text,label\n", r"d\.csv: the training split has no rows"),
    "column twice": (b"text,label,label\nx,a,b\n", r"d\.csv: column 'label' stands twice"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_csv(tmp_path: Path, case: str) -> None:
    content, message = BROKEN[case]
    (tmp_path / "d.csv").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_text(tmp_path / "d.csv")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UserError)  # exit status 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "x", "label": "a"}\n{"text": \n', r"d\.jsonl line 2: not JSON"),
        ('{"text": "x", "label": "a"}\n{"text": "y", "label": 3}\n', r"d\.jsonl: column 'label' mixes kinds"),
        ('["x", "a"]\n', r"d\.jsonl: expected a list of objects"),
    ],
)
def test_broken_jsonl(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "d.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        load_text(tmp_path / "d.jsonl")


def test_broken_parquet_and_unequal_shards(tmp_path: Path) -> None:
    (tmp_path / "d.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"d\.parquet: cannot be read"):
        load_text(tmp_path / "d.parquet")
    write_csv(tmp_path / "s" / "train-0.csv", ROWS)
    write_csv(tmp_path / "s" / "train-1.csv", ROWS, header=("text", "tag"))
    with pytest.raises(DataError, match=r"train-1\.csv: columns 'text', 'tag', but train-0\.csv has"):
        load_text(tmp_path / "s")


def test_missing_files_name_close_matches_and_the_ways_to_write_a_reference(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", ROWS)
    with pytest.raises(DataError, match=r"trian\.csv: no such file or folder \(did you mean 'train\.csv'\?\)"):
        load_text(tmp_path / "trian.csv")
    with pytest.raises(DataError, match=r"no such file or folder"):
        load_text("nothing-of-this-name")
    (tmp_path / "data.xlsx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"must end in \.csv"):
        load_text(tmp_path / "data.xlsx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no table"):
        load_text(tmp_path / "empty")


def test_identity_is_json_and_follows_the_labels(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "train.csv", ROWS * 4)
    first = load_text(path).identity
    assert json.loads(json.dumps(first)) == first
    assert first["files"] == [{"name": "train.csv", "bytes": path.stat().st_size}]
    assert first["splits"] == {"train": 16, "test": 4}
    assert load_text(path).identity == first
    write_csv(path, [*ROWS * 3, *ROWS[:4], ("so so", "neg")])
    assert load_text(path).identity["labels_digest"] != first["labels_digest"]


def test_long_texts_and_many_rows(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "d.csv",
        [("x" * 3_000_000, "a"), ("y", "b")] + [(f"t{i}", "ab"[i % 2]) for i in range(5000)],
    )
    data = load_text(path)
    assert max(len(row[0]) for row in (*data.train.inputs, *data.test.inputs)) == 3_000_000
    assert len(data.train) + len(data.test) == 5002


def test_line_breaks_in_texts_survive_where_a_file_is_read_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hftl.data.csv_text.LARGEST_ROW", 64)
    rows = [(f"line {i}\nand\n\nmore", "ab"[i % 2]) for i in range(50)]
    data = load_text(write_csv(tmp_path / "d.csv", rows))
    assert all_rows(data) == sorted(((text,), label) for text, label in rows)
