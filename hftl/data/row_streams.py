"""Tables and texts as streams of rows: what is read of a file does not grow with it.

A `.json` file, one list of objects, is the exception, as is a CoNLL file: they are read whole.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet

from hftl.data.conll import CONLL_SUFFIXES, read_conll
from hftl.data.csv_rows import CsvRows
from hftl.data.json_rows import json_row, read_json
from hftl.data.opening import decode_text, encoding_of, not_decodable, read_regular, why_unreadable
from hftl.data.tables import plain_column, twice_in
from hftl.errors import DataError
from hftl.regular import open_regular

Row: TypeAlias = "dict[str, Any] | str"
"""A row's cells by column, or why it has none."""

# Rows of jsonl in which its columns are looked for: a field that is null may be left out of an object.
PEEKED = 64
# Rows of a parquet file that are decoded at once: pictures may be among its cells.
PARQUET_ROWS = 256


@dataclass
class RowStream:
    """A table whose rows are read as they are asked for.

    Attributes:
        columns: their names.
        read: gives the rows' cells of some columns.
        unusable: columns that cannot be read, with the reason, which matters only if one is used.
        total: how many rows there are; None where nobody knows before the end.
        types: the columns' Arrow types, where the file states them; text where it does not.
        notes: what was read otherwise than it stands there, known when all rows are read.
    """

    columns: list[str]
    read: Callable[[Sequence[str]], Iterator[Row]]
    unusable: dict[str, str] = field(default_factory=dict)
    total: int | None = None
    types: dict[str, pa.DataType] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def stream_table(path: Path, name: str) -> RowStream:
    """A table's rows.

    Args:
        path: csv, tsv, jsonl, json, parquet or CoNLL.
        name: what a person calls it.

    Raises:
        DataError: it cannot be read; also while rows are read.
    """
    suffix = path.suffix.lower()
    with _readable(name):
        if suffix == ".parquet":
            return _of_parquet(path, name)
        if suffix == ".json":
            return _of_json_file(path, name)
        if suffix in CONLL_SUFFIXES:
            return _of_columns(read_conll(decode_text(read_regular(path), name), name), {})
        with text_lines(path, name) as lines:
            # Looked at now, so that a wrong column is known before anything is computed, and read anew later.
            first = stream_text_table(lines, name, suffix[1:])

    def read(wanted: Sequence[str]) -> Iterator[Row]:
        with text_lines(path, name) as lines:
            again = stream_text_table(lines, name, suffix[1:])
            yield from again.read(wanted)
            stream.notes[:] = again.notes

    stream = replace(first, read=read)
    return stream


def stream_text_table(lines: Iterator[str], name: str, kind: str) -> RowStream:
    """The rows of a table that is text.

    Args:
        lines: with their ends; taken from as rows are asked for.
        name: what a person calls it.
        kind: ``csv``, ``tsv`` or ``jsonl``.

    Raises:
        DataError: it is empty; also while rows are read.
    """
    return _of_jsonl(lines, name) if kind == "jsonl" else _of_csv(lines, name, tab=kind == "tsv")


@contextmanager
def text_lines(source: Path | IO[bytes], name: str) -> Iterator[Iterator[str]]:
    """The lines of a text file with their ends, LF, CR LF or CR; closed at the end if it is a path.

    Raises:
        DataError: it cannot be read, or is in another encoding; also while lines are read.
    """
    with _readable(name):
        file = io.BufferedReader(io.FileIO(open_regular(source))) if isinstance(source, Path) else source
    # What arrives on a pipe may be shorter; it is looked at once.
    head = file.peek(256)[:256] if isinstance(file, io.BufferedReader) else b""
    text = io.TextIOWrapper(file, encoding_of(head, name), newline="")
    try:
        yield _decoded_lines(text, name)
    finally:
        if isinstance(source, Path):
            text.close()
        else:
            text.detach()


def plain_line(line: str) -> str:
    """A line without its end."""
    return line.rstrip("\r\n")


def _decoded_lines(text: io.TextIOWrapper, name: str) -> Iterator[str]:
    number = 0
    with _readable(name):
        while True:
            try:
                line = text.readline()
            except UnicodeDecodeError as error:
                at = number + 1 + bytes(error.object[: error.start]).count(b"\n")
                raise not_decodable(f"{name} line {at}", error) from error
            if not line:
                return
            number += 1
            yield line


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{name}: cannot be read: {why_unreadable(error)}") from error


# ── kinds of tables ──────────────────────────────────────────────────────────────────────────────────────────────────


def _of_csv(lines: Iterator[str], name: str, *, tab: bool) -> RowStream:
    rows = CsvRows(lines, name, tab=tab)
    unusable = twice_in(rows.names, name)

    def read(wanted: Sequence[str]) -> Iterator[Row]:
        places = [(column, rows.names.index(column)) for column in wanted]
        for cells in rows:
            yield cells if isinstance(cells, str) else {column: cells[place] for column, place in places}

    return RowStream(list(dict.fromkeys(rows.names)), read, unusable, notes=rows.notes)


def _of_jsonl(lines: Iterator[str], name: str) -> RowStream:
    rows = (json_row(line) for line in lines if line.strip())
    first = list(itertools.islice(rows, PEEKED))
    if not first:
        raise DataError(f"{name}: the file is empty")
    objects = [row for row in first if isinstance(row, dict)]
    columns = list(dict.fromkeys(column for row in objects for column in row))
    if not columns:
        raise DataError(f'{name}: expected one object a line, such as {{"text": …}}; its first line: {first[0]}')

    def read(wanted: Sequence[str]) -> Iterator[Row]:
        for row in itertools.chain(first, rows):
            yield row if isinstance(row, str) else {column: row.get(column) for column in wanted}

    types = {column: _type_of([row.get(column) for row in objects]) for column in columns}
    return RowStream(columns, read, types=types)


def _type_of(values: list[Any]) -> pa.DataType:
    try:
        kind = pa.array(values).type
    except (pa.ArrowException, OverflowError, ValueError):
        return pa.string()
    return kind if pa.types.is_primitive(kind) else pa.string()


def _of_json_file(path: Path, name: str) -> RowStream:
    text = decode_text(read_regular(path), name)
    if not text.strip():
        raise DataError(f"{name}: the file is empty")
    arrays, unusable = read_json(text, name, lines=False)
    return _of_columns(arrays, unusable)


def _of_columns(arrays: Mapping[str, pa.Array | pa.ChunkedArray], unusable: dict[str, str]) -> RowStream:
    """The rows of columns that were read whole."""

    def read(wanted: Sequence[str]) -> Iterator[Row]:
        for values in zip(*(arrays[column].to_pylist() for column in wanted), strict=True):
            yield dict(zip(wanted, values, strict=True))

    types = {column: array.type for column, array in arrays.items()}
    total = max(map(len, arrays.values()), default=0)
    return RowStream([*arrays, *unusable], read, unusable, total, types)


def _of_parquet(path: Path, name: str) -> RowStream:
    os.close(open_regular(path))  # pyarrow waits for ever for a pipe
    with pa.parquet.ParquetFile(path, memory_map=True) as file:
        schema, total = file.schema_arrow, file.metadata.num_rows
    unusable = twice_in(schema.names, name)

    def read(wanted: Sequence[str]) -> Iterator[Row]:
        # Nothing is fetched ahead: a row group may be as large as the file.
        with _readable(name), pa.parquet.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
            for batch in file.iter_batches(PARQUET_ROWS, columns=list(wanted), use_threads=False):
                columns = [plain_column(pa.chunked_array([batch.column(column)])).to_pylist() for column in wanted]
                for values in zip(*columns, strict=True):
                    yield dict(zip(wanted, values, strict=True))

    types = {field.name: field.type for field in schema}
    return RowStream(list(types), read, unusable, total, types)
