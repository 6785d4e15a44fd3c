"""Data that somebody holds in Python: frames of pandas and polars, lists of pairs (input, label), dicts of splits.

Polars is never imported: who holds a frame of it has done so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from hftl.data.columns import FILE_NAMES, LABEL_NAMES, PAIR_NAMES, TEXT_NAMES
from hftl.data.dataset import RowNames
from hftl.data.images import encode_image, is_image
from hftl.data.raw import LazySplits, RawData, RawSplit, SplitName, assign_splits
from hftl.data.tables import TABLE_SUFFIXES, plain_column, read_tables
from hftl.errors import DataError
from hftl.wording import listing, one_line

WAYS = (
    "give a reference (text), a pandas or polars DataFrame, a datasets.Dataset or DatasetDict, a list of pairs "
    "(input, label), or a dict of splits of one of these"
)
# What the columns of a list of pairs are called: names that are inputs and labels to whoever chooses columns.
INPUT, LABEL = {"text": TEXT_NAMES[0], "file": FILE_NAMES[0]}, LABEL_NAMES[0]
PAIR = PAIR_NAMES[0]

Kind = Literal["reference", "datasets", "frame", "pairs", "splits"]


def kind_of(data: object) -> Kind:
    """What data are, by their type alone.

    Raises:
        DataError: they are of no type that is read.
    """
    if isinstance(data, (str, os.PathLike)):
        return "reference"
    # Subclasses too, such as a GeoDataFrame; a library that nobody imported has made no object.
    ancestry = {(each.__module__.partition(".")[0], each.__name__) for each in type(data).__mro__}
    if ancestry & {("datasets", "Dataset"), ("datasets", "DatasetDict")}:
        return "datasets"
    if ancestry & {("pandas", "DataFrame"), ("polars", "DataFrame")}:
        return "frame"
    name = type(data).__name__
    if isinstance(data, Mapping) and not name.startswith("Iterable"):
        return "splits"
    if isinstance(data, (list, tuple)):
        return "pairs"
    hint = {"LazyFrame": ": collect() it first", "Series": ": it has no labels beside it"}.get(name, "")
    if name.startswith("Iterable"):
        hint = " (of an iterable data set: Dataset.from_list(list(...)))"
    raise DataError(f"data of type {name} cannot be used{hint}; {WAYS}")


def said_of(data: object) -> str:
    """What data are called where they have no reference: ``<DataFrame>``, ``<list>``, ``<dict of DataFrame>``."""
    name = type(data).__name__
    if isinstance(data, Mapping) and kind_of(data) == "splits":
        kinds = ["file" if isinstance(part, (str, os.PathLike)) else type(part).__name__ for part in data.values()]
        name = f"{name} of {' and '.join(dict.fromkeys(kinds))}"
    return f"<{name}>"


def from_objects(data: Any) -> RawData:
    """Read a frame, a list of pairs, or a dict of splits of one kind.

    Raises:
        DataError: a split, a row or a cell cannot be used; the message says which.
    """
    if kind_of(data) != "splits":
        return RawData({"train": _read_part(data, said_of(data).strip("<>"))})
    chosen, others = assign_splits(_split_names(data))
    if not chosen:
        raise DataError(f"a dict of the splits {listing(list(data))} has no training split: call one 'train'")
    notes = [f"ignored other splits: {listing(others)}"] if others else []
    kinds = {key: kind_of(data[key]) for key in chosen.values()}
    if "reference" in kinds.values():
        return _of_files(data, chosen, kinds, notes)
    for key, kind in kinds.items():
        if kind == "splits":
            raise DataError(f"split {key!r} is a dict itself; {WAYS}")
    parts: dict[SplitName, Callable[[], RawSplit]] = {
        split: partial(_read_part, data[key], key) for split, key in chosen.items()
    }
    return RawData(LazySplits(parts), notes=notes, names=list(data))


def _split_names(data: Mapping[Any, Any]) -> list[str]:
    if not data:
        raise DataError("a dict without any split: call one 'train'")
    for key in data:
        if not isinstance(key, str):
            raise DataError(f"a dict of splits has the key {one_line(repr(key), 60)}: its keys are names, 'train' one")
    return list(data)


def _of_files(
    data: Mapping[str, Any], chosen: Mapping[SplitName, str], kinds: Mapping[str, str], notes: list[str]
) -> RawData:
    """Splits that are a file each, read as one folder of such files is."""
    files = {}
    for split, key in chosen.items():
        if kinds[key] != "reference":
            raise DataError(f"split {key!r} is a {type(data[key]).__name__} beside files: give all splits in one way")
        file = Path(data[key]).expanduser()
        if file.suffix.lower() not in TABLE_SUFFIXES or not file.is_file():
            why = "is no table" if file.is_file() else "is not there"
            raise DataError(f"split {key!r}: {file} {why}: a split is one file, {', '.join(TABLE_SUFFIXES)}")
        files[split] = file.resolve()
    root = Path(os.path.commonpath([file.parent for file in files.values()]))
    read = read_tables(list(files.values()), root, splits=list(files))
    return RawData(
        read.parts,
        root=root,
        notes=notes,
        names=list(data),
        identity=read.identity,
    )


def _read_part(data: Any, name: str) -> RawSplit:
    kind = kind_of(data)
    if kind == "datasets":
        from hftl.data.hub import split_of_dataset  # imports datasets, which is there already

        return split_of_dataset(data, name)
    return _of_frame(data, name) if kind == "frame" else _of_pairs(data, name)


# ── frames ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _of_frame(frame: Any, name: str) -> RawSplit:
    """The columns of a frame; one that no Arrow column can hold matters only if it is used."""
    columns: dict[str, pa.ChunkedArray] = {}
    unusable: dict[str, str] = {}
    names = [str(column) for column in frame.columns]
    for at, column in enumerate(names):
        if names.count(column) > 1:
            unusable[column] = f"{name}: column {column!r} stands twice: rename one"
            continue
        series = frame.iloc[:, at] if hasattr(frame, "iloc") else frame[column]
        try:
            columns[column] = plain_column(_arrow_of(series))
        except _CellError as error:
            unusable[column] = f"{name} row {error.row + 1}, column {column!r}: {error.why}"
        except _NO_COLUMN as error:
            unusable[column] = f"{name}: column {column!r} of {series.dtype} cannot be read: {one_line(error, 120)}"
    table = pa.table(columns) if columns else pa.table({"": pa.nulls(len(frame))})
    return RawSplit(table, RowNames([(name, len(frame))]), unusable=unusable)


def _arrow_of(series: Any) -> pa.ChunkedArray:
    """A series of pandas or polars as a column; what is missing (None, NaN, NaT) is null."""
    if str(series.dtype).lower().startswith(("object", "list", "str")):
        return cells_to_arrow(series.to_list())
    if hasattr(series, "fill_nan"):  # polars, where NaN is a number
        array = (series.fill_nan(None) if series.dtype.is_float() else series).to_arrow()
    else:
        array = pa.array(series, from_pandas=True)
    return array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])


# ── lists of pairs ───────────────────────────────────────────────────────────────────────────────────────────────────


def _of_pairs(pairs: Sequence[Any], name: str) -> RawSplit:
    if not pairs:
        return RawSplit(pa.table({LABEL: pa.nulls(0)}), RowNames([(name, 0)]))
    for row, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            given = f"{type(pair).__name__} of {len(pair)}" if isinstance(pair, (tuple, list)) else type(pair).__name__
            raise DataError(f"{name} row {row + 1}: a pair (input, label) is due, and this is a {given}")
    inputs, labels = zip(*pairs, strict=True)
    columns = input_columns_of(inputs, name)
    try:
        columns[LABEL] = cells_to_arrow(labels)
    except _CellError as error:
        raise DataError(f"{name} row {error.row + 1}, label: {error.why}") from error
    return RawSplit(pa.table(columns), RowNames([(name, len(pairs))]))


def input_columns_of(inputs: Sequence[Any], name: str) -> dict[str, pa.ChunkedArray]:
    """The column of inputs, or the two of pairs of texts; all inputs are of one kind.

    Args:
        inputs: texts (or paths), pairs of texts, pictures of Pillow, encoded files (bytes), or paths.
        name: what they are called in an error: ``name row 3``.

    Raises:
        DataError: one is none of these, or of another kind than the first.
    """
    kinds = [_input_kind(value) for value in inputs]
    for row, (value, kind) in enumerate(zip(inputs, kinds, strict=True)):
        if kind is None:
            raise DataError(
                f"{name} row {row + 1}, input: a {type(value).__name__} is no input: give a text, a pair of texts, a "
                "path, a PIL image, or a file's bytes"
            )
        if kind != kinds[0]:
            raise DataError(f"{name} row {row + 1}, input: a {kind}, where the rows before are each a {kinds[0]}")
    if kinds and kinds[0] == "pair of texts":
        return {PAIR[side]: pa.chunked_array([[str(pair[side]) for pair in inputs]]) for side in (0, 1)}
    named = INPUT["text" if not kinds or kinds[0] == "text" else "file"]
    try:
        return {named: cells_to_arrow(inputs)}
    except _CellError as error:
        raise DataError(f"{name} row {error.row + 1}, input: {error.why}") from error


def _input_kind(value: object) -> str | None:
    if isinstance(value, str):
        return "text"
    if isinstance(value, PurePath):
        return "path"
    if isinstance(value, bytes):
        return "file's bytes"
    if is_image(value):
        return "PIL image"
    if isinstance(value, (tuple, list, np.ndarray)) and len(value) == 2 and all(isinstance(t, str) for t in value):
        return "pair of texts"
    return None


# ── cells ────────────────────────────────────────────────────────────────────────────────────────────────────────────


# What pyarrow raises of values that fit no column.
_NO_COLUMN = (pa.ArrowException, TypeError, ValueError, OverflowError)


class _CellError(Exception):
    """A cell that fits no Arrow column."""

    def __init__(self, row: int, why: str) -> None:
        super().__init__(why)
        self.row = row
        self.why = why


def cells_to_arrow(values: Iterable[Any]) -> pa.ChunkedArray:
    """Python values as a column: pictures as the bytes of a file, paths as text, arrays as lists, NaN as null.

    Raises:
        _CellError: a value is of another kind than those before it.
    """
    cells = [_plain_cell(value) for value in values]
    try:
        return _column_of_cells(cells)
    except _NO_COLUMN as error:
        row = _first_odd(cells)
        raise _CellError(row, f"{one_line(repr(cells[row]), 60)} {_why_odd(cells[row])}") from error


def _column_of_cells(cells: list[Any]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(cells, from_pandas=True)])


def _first_odd(cells: list[Any]) -> int:
    """The first of some cells that no column can hold together with those before it."""
    # The column of the first `good` cells can be made, that of the first `bad` ones cannot.
    good, bad = 0, len(cells)
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            _column_of_cells(cells[:middle])
            good = middle
        except _NO_COLUMN:
            bad = middle
    return good


def _why_odd(cell: Any) -> str:
    try:
        _column_of_cells([cell])
    except _NO_COLUMN as error:
        return f"cannot be read: {one_line(error, 100)}"
    return "cannot stand in one column with the values before it"


def _plain_cell(value: Any) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    if is_image(value):
        return encode_image(value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [_plain_cell(each) for each in value]
    return value
