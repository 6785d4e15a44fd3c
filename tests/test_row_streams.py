"""Tables that stream hold the rows that they hold when they are read whole, and take no more memory for more rows."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftl.data.csv_rows import CsvRows
from hftl.data.csv_text import read_csv
from hftl.data.row_streams import stream_table
from hftl.errors import DataError


def whole(text: str) -> list[list[str]]:
    content = read_csv(text, "t.csv", tab=False)
    return [list(row) for row in zip(*(column.to_pylist() for column in content.columns), strict=True)]


def streamed(text: str) -> list[list[str] | str]:
    return list(CsvRows(io.StringIO(text, newline=""), "t.csv", tab=False))


CELLS = st.text(st.sampled_from('ab ",;\n\r\té'), max_size=6)


@settings(max_examples=100)
@given(st.lists(st.lists(CELLS, min_size=2, max_size=2), max_size=6), st.sampled_from(["\n", "\r\n"]))
def test_what_csv_writers_write_is_read_back(rows: list[list[str]], end: str) -> None:
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([["x", "y"], *rows])
    assert streamed(file.getvalue()) == rows


LINES = st.lists(st.text(st.sampled_from('ab",'), max_size=5), max_size=5)


@settings(max_examples=200)
@given(LINES)
def test_whatever_can_be_read_whole_is_the_same_in_a_stream(lines: list[str]) -> None:
    text = "x,y\n" + "\n".join(lines)
    try:
        expected = whole(text)
    except DataError:
        return
    try:
        rows = streamed(text)
    except DataError as error:
        # What was given away as a text of several lines cannot be taken back: it is refused, never read otherwise.
        if "below texts of several lines" in str(error):
            return
        raise
    assert rows == expected


@pytest.mark.parametrize(
    "text",
    [
        'x,y\na,"b ""c"" d"\n',
        "\n\nx,y\r\na,b\r\n\r\nc,d",
        "sep=;\nx;y\na,b;c\n",
        "x\ty\na,b\tc\n",
        "x,y\ra,b\rc,d\r",
        'x,y\n"abc" ,d\n',
        'x,y\n"two\nlines",a\nb,c\n',
        'x,y\n5" disk,a\n"b,c\nd,e\n',
    ],
)
def test_the_ways_of_real_files(text: str) -> None:
    assert streamed(text) == whole(text)


def test_a_row_with_too_few_cells_is_said_and_the_others_are_read() -> None:
    assert streamed("x,y\na,b\nc\nd,e\n")[::2] == [["a", "b"], ["d", "e"]]
    assert "1 cell, but the header has 2" in str(streamed("x,y\na,b\nc\nd,e\n")[1])


def test_quotes_that_mean_neither_rows_nor_lines_are_refused() -> None:
    with pytest.raises(DataError, match="row 2: a cell begins with a quote that is not closed"):
        streamed('x,y\n"two\nlines",a\n"b,c\nd,e\n')
    rows = CsvRows(io.StringIO('x,y\n"a,1\nb,2\nc",3\nd,4\n', newline=""), "t.csv", tab=False)
    assert len(list(rows)) == 2
    assert "could be rows of their own" in rows.notes[0]


def test_every_kind_of_table_gives_the_same_rows(tmp_path: Path) -> None:
    rows = [{"n": i, "text": f"row {i}, with \u2028 and é", "more": None} for i in range(700)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=64)
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "t.json").write_text(json.dumps(rows))
    for suffix in ("csv", "tsv"):
        with (tmp_path / f"t.{suffix}").open("w", newline="", encoding="utf-16") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if suffix == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    for file in sorted(tmp_path.iterdir()):
        stream = stream_table(file, file.name)
        assert stream.columns == ["n", "text", "more"]
        assert stream.total in (700, None)
        read = list(stream.read(["text", "n"]))
        assert read == list(stream.read(["text", "n"])), "a table can be read again"
        assert [(row["text"], str(row["n"])) for row in read] == [(row["text"], str(row["n"])) for row in rows]
    assert stream_table(tmp_path / "t.parquet", "t").types["n"] == pa.int64()
    assert stream_table(tmp_path / "t.jsonl", "t").types["n"] == pa.int64()


def test_lines_of_jsonl_that_are_no_objects_are_said(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"a": 1}\n[1]\n{"a": \n\n{"b": 2}\n{"a": ' + "9" * 5000 + "}\n")
    first, second, third, fourth, last = stream_table(tmp_path / "t.jsonl", "t").read(["a"])
    assert first == {"a": 1}
    assert "not an object" in str(second)
    assert "not JSON" in str(third)
    assert fourth == {"a": None}
    assert last == {"a": "9" * 5000}
    (tmp_path / "no.jsonl").write_text("text\nlabel\n")
    with pytest.raises(DataError, match="expected one object a line"):
        stream_table(tmp_path / "no.jsonl", "no.jsonl")
    (tmp_path / "none.csv").write_text("")
    with pytest.raises(DataError, match="the file is empty"):
        stream_table(tmp_path / "none.csv", "none.csv")


def test_a_stream_takes_no_more_than_it_gives() -> None:
    taken = 0

    def lines():
        nonlocal taken
        yield "x,y\n"
        while True:
            taken += 1
            yield f"a,{taken}\n"

    rows = iter(CsvRows(lines(), "t.csv", tab=False))
    for _ in range(10):
        next(rows)
    assert taken == 10
