"""Csv, tsv, json, jsonl, parquet and CoNLL files, read as they are: no copy in a cache, no 'NA' turned into null."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from hftl.data.conll import CONLL_SUFFIXES, read_conll
from hftl.data.csv_text import read_csv
from hftl.data.dataset import RowNames
from hftl.data.json_rows import read_json
from hftl.data.opening import decode_text, read_regular, why_unreadable
from hftl.data.raw import Codebooks, LazySplits, RawData, RawSplit, SplitName, split_of
from hftl.errors import DataError
from hftl.regular import open_regular
from hftl.wording import listing, one_line, plural

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", *CONLL_SUFFIXES)


def read_tables(files: Sequence[Path], root: Path, splits: Sequence[SplitName] = ()) -> RawData:
    """Read one file, or the files of a folder, as a source; each split is read when it is asked for.

    One file is the training split. Of several, the file's name (``test.csv``, ``train-00000-of-00002.parquet``), or
    else that of a folder above it, says the split; where no name says one, all are read as one training split.

    Args:
        files: the files, sorted.
        root: the folder that names of files and relative paths inside them start from.
        splits: the split of each file, where somebody said it.

    Raises:
        DataError: the files are of different kinds. Asked for a split: a file of it cannot be read, or its files have
            different columns.
    """
    grouped, notes = by_split(files, root)
    if splits:
        grouped, notes = {split: [file] for split, file in zip(splits, files, strict=True)}, []
    used = [file for members in grouped.values() for file in members]
    if len(set(map(_is_csv, used))) > 1:
        kinds = sorted({file.suffix.lower() for file in used})
        raise DataError(
            f"{root}: {listing(kinds)} files side by side: give a folder with files of one kind, or one file"
        )
    return RawData(
        LazySplits({split: partial(_read_split, members, root) for split, members in grouped.items()}),
        root=root,
        notes=notes,
        names=[file.name for file in files],
        identity=identity_of(used, root),
    )


def identity_of(files: Sequence[Path], root: Path) -> dict[str, Any]:
    """What files were, as JSON."""
    return {"files": [{"name": f.relative_to(root).as_posix(), "bytes": _bytes_of(f)} for f in files]}


def by_split(files: Sequence[Path], root: Path) -> tuple[dict[SplitName, list[Path]], list[str]]:
    """The files of each split, as their names or those of folders above them say it, and what is to be said of it."""
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
    return dict(grouped), [f"ignored, as the name says no split: {listing(ignored)}"] if ignored else []


def _bytes_of(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:  # said when the file is read, if it ever is
        return None


def _read_split(files: Sequence[Path], root: Path) -> RawSplit:
    names = [file.relative_to(root).as_posix() for file in files]
    read = [_read_table(file, name) for file, name in zip(files, names, strict=True)]
    columns, unusable = join_files(read, names)
    rows = [part.rows for part in read]
    return RawSplit(
        table_of(columns, sum(rows)),
        RowNames(zip(names, rows, strict=True)),
        unusable=unusable,
        codebooks=[part.codebooks for part in read],
        folders=[file.parent for file in files],
        notes=[note for part in read for note in part.notes],
        numbers_as_text=columns.keys() if _is_csv(files[0]) else (),
    )


def _is_csv(file: Path) -> bool:
    return file.suffix.lower() in (".csv", ".tsv")


def table_of(columns: Mapping[str, pa.ChunkedArray], rows: int) -> pa.Table:
    """A table of so many rows, be it that none of their columns can be used."""
    # A column whose name nobody can ask for keeps the number of rows.
    return pa.table(columns or {"": pa.nulls(rows)})


class FileContent:
    """One file's columns, those that cannot be used with the reason, and its class names."""

    def __init__(
        self, columns: dict[str, pa.ChunkedArray], unusable: dict[str, str], codebooks: Codebooks, notes: Sequence[str]
    ) -> None:
        self.columns = columns
        self.unusable = unusable
        self.codebooks = codebooks
        self.notes = notes
        self.rows = max((len(column) for column in columns.values()), default=0)


def _read_table(file: Path, name: str) -> FileContent:
    suffix = file.suffix.lower()
    try:
        if suffix == ".parquet":
            os.close(open_regular(file))  # pyarrow waits for ever for a pipe
            table = pa.parquet.read_table(file, memory_map=True, partitioning=None)
            columns, twice = _distinct(table.column_names, [plain_column(c) for c in table.columns], name)
            return FileContent(columns, twice, _codebooks(table.schema), ())
        text = decode_text(read_regular(file), name)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{name}: cannot be read: {why_unreadable(error)}") from error
    if not text.strip():
        raise DataError(f"{name}: the file is empty")
    if _is_csv(file):
        content = read_csv(text, name, tab=suffix == ".tsv")
        columns, twice = _distinct(content.names, content.columns, name)
        return FileContent(columns, twice, {}, content.notes)
    if suffix in (*CONLL_SUFFIXES, ".txt"):
        return FileContent(dict(read_conll(text, name)), {}, {}, ())
    arrays, unusable = read_json(text, name, lines=suffix == ".jsonl")
    return FileContent({key: pa.chunked_array([array]) for key, array in arrays.items()}, unusable, {}, ())


def _distinct(
    names: Sequence[str], columns: Sequence[pa.ChunkedArray], file: str
) -> tuple[dict[str, pa.ChunkedArray], dict[str, str]]:
    """Columns by name, and the names that stand twice, with what to say of them."""
    twice = twice_in(names, file)
    return {name: column for name, column in zip(names, columns, strict=True) if name not in twice}, twice


def twice_in(names: Sequence[str], file: str) -> dict[str, str]:
    """The names of columns that stand twice, with what to say of them, which matters only if one is used."""
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    return {name: f"{file}: column {name!r} stands twice in the header: rename one" for name in twice}


def plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column without dictionaries and views: its values, in the types that the rest of hftl knows."""
    plain = _plain_type(column.type)
    return column if plain == column.type else column.cast(plain)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """A type with dictionaries and views, at any depth, replaced by what they stand for."""
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if kind == pa.string_view():
        return pa.string()
    if kind == pa.binary_view():
        return pa.binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain_type(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_plain_type(kind.value_type)))
    return kind


def join_files(read: Sequence[FileContent], names: Sequence[str]) -> tuple[dict[str, pa.ChunkedArray], dict[str, str]]:
    """The columns of a split's files one after another, and those that cannot be joined with the reason."""
    columns: dict[str, pa.ChunkedArray] = {}
    unusable: dict[str, str] = {}
    everywhere = dict.fromkeys(column for part in read for column in (*part.columns, *part.unusable))
    for column in everywhere:
        if reasons := [part.unusable[column] for part in read if column in part.unusable]:
            unusable[column] = reasons[0]
        elif missing := [at for at, part in enumerate(read) if column not in part.columns]:
            has = next(at for at, part in enumerate(read) if column in part.columns)
            unusable[column] = (
                f"{names[missing[0]]}: columns {listing(list(read[missing[0]].columns))}, but {names[has]} has "
                f"{listing(list(read[has].columns))}: files of one split need the same columns"
            )
        else:
            try:
                columns[column] = _concatenated([part.columns[column] for part in read])
            except pa.ArrowException as error:
                unusable[column] = (
                    f"{listing(names)}: column {column!r} holds different kinds of values: {one_line(error)}"
                )
    return columns, unusable


def _concatenated(parts: list[pa.ChunkedArray]) -> pa.ChunkedArray:
    if len(parts) == 1:
        return parts[0]
    joined = pa.concat_tables([pa.table({"": part}) for part in parts], promote_options="permissive")
    return joined.column(0)


def _codebooks(schema: pa.Schema) -> Codebooks:
    """The names of classes that `datasets` wrote into the metadata of a parquet file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return class_label_names(features)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return {}


def class_label_names(features: dict[str, Any]) -> Codebooks:
    """The class names of each column in the JSON form of `datasets` features, also of lists.

    Raises:
        DataError: two classes of one column have the same name.
    """
    books: Codebooks = {}
    for column, feature in features.items():
        inner = feature
        while isinstance(inner, dict) and "feature" in inner:
            inner = inner["feature"]
        if isinstance(inner, list) and len(inner) == 1:
            (inner,) = inner
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" and inner.get("names"):
            books[column] = [str(name) for name in inner["names"]]
    return books
