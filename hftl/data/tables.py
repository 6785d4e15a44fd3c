"""Read csv, tsv, json, jsonl and parquet files as they are: no copy in a cache, no 'NA' turned into null."""

import csv
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from hftl.data.dataset import RowNames
from hftl.data.raw import RawData, RawSplit, SplitName, require_train, split_of
from hftl.errors import DataError
from hftl.wording import listing, one_line, plural

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")

_LARGEST_ROW = 1 << 26  # 64 MiB: pyarrow wants each csv row to fit into one block


def read_tables(files: Sequence[Path], root: Path) -> RawData:
    """Read one file, or the files of a folder, as a source.

    One file is the training split. Of several, the file's name (``test.csv``,
    ``train-00000-of-00002.parquet``), or else that of a folder above it, says the split; where no name says
    one, all are read as one training split.

    Args:
        files: the files, sorted.
        root: the folder that names of files and relative paths inside them start from.

    Raises:
        DataError: a file cannot be read, or files of one split do not have the same columns.
    """
    grouped, notes = _by_split(files, root)
    require_train(grouped, [file.name for file in files], str(root))
    used = [file for members in grouped.values() for file in members]
    as_text = {file.suffix.lower() in (".csv", ".tsv") for file in used}
    if len(as_text) > 1:
        kinds = sorted({file.suffix.lower() for file in used})
        raise DataError(
            f"{root}: {listing(kinds)} files side by side: give a folder with files of one kind, or one file"
        )
    parts: dict[SplitName, RawSplit] = {}
    class_names: dict[str, list[str]] = {}
    for split, members in grouped.items():
        tables = [_read(file, file.relative_to(root).as_posix()) for file in members]
        names = [file.relative_to(root).as_posix() for file in members]
        parts[split] = RawSplit(_concat(tables, names), RowNames(zip(names, map(len, tables), strict=True)))
        if split == "train":
            class_names = _class_names(tables[0].schema)
    return RawData(
        parts,
        numbers_as_text=as_text.pop(),
        class_names=class_names,
        root=root,
        notes=notes,
        identity={"files": [{"name": f.relative_to(root).as_posix(), "bytes": f.stat().st_size} for f in used]},
    )


def _by_split(files: Sequence[Path], root: Path) -> tuple[dict[SplitName, list[Path]], list[str]]:
    if len(files) == 1:
        return {"train": list(files)}, []
    grouped: dict[SplitName, list[Path]] = defaultdict(list)
    nameless: list[Path] = []
    for file in files:
        within = file.relative_to(root)
        words = [within.stem, *reversed(within.parent.parts)]
        split = next((split for split in map(split_of, words) if split), None)
        (grouped[split] if split else nameless).append(file)
    if not grouped:
        return {"train": nameless}, [f"{plural(len(nameless), 'file')} read as one training split"]
    ignored = [file.relative_to(root).as_posix() for file in nameless]
    return grouped, [f"ignored, as the name says no split: {listing(ignored)}"] if ignored else []


def _read(file: Path, name: str) -> pa.Table:
    suffix = file.suffix.lower()
    try:
        if suffix == ".parquet":
            return plain_columns(pa.parquet.read_table(file, memory_map=True))
        content = file.read_bytes()
        if not content.strip():
            raise DataError(f"{name}: the file is empty")
        _check_utf8(content, name)
        if suffix in (".csv", ".tsv"):
            return _read_csv(content, name, tab=suffix == ".tsv")
        return _read_json(content, name, lines=suffix == ".jsonl")
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{name}: cannot be read: {one_line(error)}") from error


def _check_utf8(content: bytes, name: str) -> None:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name} line {line}: not UTF-8 text (byte 0x{content[error.start]:02x}); save it as UTF-8, "
            f"for example with 'iconv -f latin1 -t utf-8'"
        ) from error


def _read_csv(content: bytes, name: str, *, tab: bool) -> pa.Table:
    """Read every column as text; what a number or an empty cell means is decided where its use is known."""
    header = content.lstrip().split(b"\n", 1)[0].decode("utf-8-sig").rstrip("\r")
    delimiter = (
        "\t" if tab or ("\t" in header and "," not in header) else ";" if ";" in header and "," not in header else ","
    )
    parse = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    columns = next(csv.reader([header], delimiter=delimiter))
    if repeated := sorted({column for column in columns if columns.count(column) > 1}):
        raise DataError(f"{name}: column {listing(repeated)} stands twice in the header: rename one")
    convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False)
    # One thread, because only then does pyarrow say which row is broken.
    blocks = pa.csv.ReadOptions(use_threads=False, block_size=min(len(content) + 1, _LARGEST_ROW))
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(content), read_options=blocks, parse_options=parse, convert_options=convert
        )
    except pa.ArrowInvalid as error:
        raise DataError(_csv_error(name, str(error))) from error
    return table.rename_columns([column.strip() for column in columns])


def _csv_error(name: str, message: str) -> str:
    """Say pyarrow's error in terms of data rows; it counts the header as row 1."""
    if ragged := re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", message):
        row, expected, got = map(int, ragged.groups())
        hint = "put a text that holds the delimiter or a line break in double quotes, and close each quote"
        return f"{name} row {row - 1}: {plural(got, 'cell')}, but the header has {expected}: {hint}"
    return f"{name}: cannot be read as csv: {one_line(message)}"


def _read_json(content: bytes, name: str, *, lines: bool) -> pa.Table:
    """Read a list of objects, or one object a line, without guessing that a text might be a date."""
    text = content.decode("utf-8-sig")
    rows: Any
    if not lines:
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            lines = "Extra data" in error.msg  # one object a line, in a file called .json
            if not lines:
                raise DataError(f"{name} line {error.lineno}: not JSON: {error.msg}") from error
        else:
            if isinstance(rows, dict) and len(rows) == 1:
                (rows,) = rows.values()  # {"data": [...]}
    if lines:
        rows = _json_lines(text, name)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f'{name}: expected a list of objects, one for each row, such as [{{"text": …, "label": …}}, …]')
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = {column: _json_column([row.get(column) for row in rows], column, name) for column in columns}
    return pa.table({column: values for column, values in table.items() if values is not None})


def _json_lines(text: str, name: str) -> list[Any]:
    rows = []
    # Not splitlines(): a text may hold U+2028 or a form feed, which JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise DataError(f"{name} line {number}: not JSON: {error.msg}") from error
    return rows


def _json_column(values: list[Any], column: str, name: str) -> pa.Array | None:
    if any(isinstance(value, dict) for value in values):
        return None  # nested objects are neither input nor label
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError) as error:
        raise DataError(f"{name}: column {column!r} mixes kinds of values: {one_line(error)}") from error


def plain_columns(table: pa.Table) -> pa.Table:
    """Replace dictionary-encoded columns by their values."""
    for at, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(at, field.with_type(field.type.value_type), table[at].cast(field.type.value_type))
    return table


def _concat(tables: list[pa.Table], names: list[str]) -> pa.Table:
    for table, name in zip(tables, names, strict=True):
        if set(table.column_names) != set(tables[0].column_names):
            raise DataError(
                f"{name}: columns {listing(table.column_names)}, but {names[0]} has "
                f"{listing(tables[0].column_names)}: files of one split need the same columns"
            )
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(
            f"{listing(names)}: columns of one name hold different kinds of values: {one_line(error)}"
        ) from error


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the names of classes that `datasets` wrote into the metadata of a parquet file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return class_label_names(features)


def class_label_names(features: dict[str, Any]) -> dict[str, list[str]]:
    """Return the class names of each column in the JSON form of `datasets` features, also of lists."""
    found = {}
    for column, feature in features.items():
        inner = feature
        while isinstance(inner, dict) and "feature" in inner:
            inner = inner["feature"]
        if isinstance(inner, list) and len(inner) == 1:
            (inner,) = inner
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" and inner.get("names"):
            found[column] = [str(name) for name in inner["names"]]
    return found
