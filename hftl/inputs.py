"""`InputRow`: what a person hands to a trained model, read as the model was trained to read.

The run's record says which columns rows came from and whether they are pairs of texts. What does not fit is refused:
a model that is asked the wrong thing answers all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa

from hftl.backbones.protocol import Backbone
from hftl.data import Files, read_lines
from hftl.data.columns import TEXT_NAMES
from hftl.data.folders import list_files
from hftl.data.load import strings_of
from hftl.data.tables import TABLE_SUFFIXES, read_tables
from hftl.errors import DataError
from hftl.export.loaded import LoadedModel
from hftl.wording import did_you_mean, listing

LINES_SUFFIX = ".txt"


@dataclass(frozen=True)
class InputRow:
    """One row to predict.

    Attributes:
        name: what a person calls it.
        read: gives its content: encoded bytes, or a tuple of one or two strings.
    """

    name: str
    read: Callable[[], Any]


def read_inputs(
    model: LoadedModel, inputs: Sequence[str | tuple[str, ...]], columns: Sequence[str] | None
) -> list[InputRow]:
    """The rows that inputs hold.

    Args:
        model: who is asked.
        inputs: as in `hftl.predictions`.
        columns: what to read of a table; None for what the model was trained on.

    Raises:
        DataError: an input is not there, or is not what the model was trained on.
    """
    asked = list(columns) if columns is not None else model.input_columns
    if model.backbone.wants == "text":
        return _text_rows(inputs, asked)
    return [row for given in inputs for row in _file_rows(model.backbone, str(given), asked)]


# ── texts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _text_rows(inputs: Sequence[str | tuple[str, ...]], columns: Sequence[str] | None) -> list[InputRow]:
    pairs = columns is not None and len(columns) == 2
    rows: list[InputRow] = []
    plain: list[str] = []
    for given in inputs:
        if isinstance(given, tuple):
            rows.append(_text_row(given, " | ".join(given), pairs, columns))
        elif (path := _file_of(given)) is None:
            plain.append(given)
        elif path.suffix.lower() == LINES_SUFFIX:
            rows += [_text_row((line,), name, pairs, columns) for line, name in _lines(path)]
        else:
            rows += _table_texts(path, columns)
    if pairs and plain:
        if len(plain) != 2:
            raise DataError(
                f"the model reads pairs of texts ({' and '.join(columns or ())}), and {len(plain)} texts were given: "
                f"give two, or a table with these columns"
            )
        rows.append(_text_row(tuple(plain), " | ".join(plain), pairs, columns))
    elif plain:
        rows += [_text_row((text,), text, pairs, columns) for text in plain]
    return rows


def _text_row(texts: tuple[str, ...], name: str, pairs: bool, columns: Sequence[str] | None) -> InputRow:
    wanted = 2 if pairs else 1
    # Where nobody recorded what the model reads, whoever gives pairs says so.
    if columns is not None and len(texts) != wanted:
        kind = f"pairs of texts ({' and '.join(columns)})" if pairs else "single texts"
        raise DataError(f"{name}: the model reads {kind}, and here are {len(texts)}")
    return InputRow(name, partial(_itself, texts))


def _itself(texts: tuple[str, ...]) -> tuple[str, ...]:
    return texts


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(read_lines(path), 1):
        yield line, f"{path.name} line {number}"


def _table_texts(path: Path, columns: Sequence[str] | None) -> list[InputRow]:
    part = read_tables([path], path.parent).parts["train"]
    chosen = _columns_of(path, [*part.columns, *part.unusable], columns)
    rows = zip(*(strings_of(part.column(name, "train")) for name in chosen), strict=True)
    return [InputRow(f"{path.name} row {i}", partial(_itself, row)) for i, row in enumerate(rows, 1)]


def _columns_of(path: Path, there: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    """The columns to read of a table: those wanted; where nobody says, its only one, or one that is called a text."""
    if wanted is not None:
        for name in wanted:
            if name not in there:
                raise DataError(
                    f"{path.name}: no column {name!r}{did_you_mean(name, there)}, which the model reads; it has "
                    f"{listing(list(there))}: name the columns with --input-columns"
                )
        return list(wanted)
    named = [name for name in there if name.lower() in TEXT_NAMES]
    candidates = named if len(there) > 1 else list(there)
    if len(candidates) != 1:
        raise DataError(
            f"{path.name}: nobody recorded which of {listing(list(there))} the model reads: say it with --input-columns"
        )
    return candidates


def _file_of(given: str) -> Path | None:
    """The file that a text names; None where it is a text.

    Raises:
        DataError: it can only be meant as a file, and there is none.
    """
    try:
        path = Path(given).expanduser() if given.startswith("~") else Path(given)
        is_name = path.suffix.lower() in (*TABLE_SUFFIXES, LINES_SUFFIX) and not any(c.isspace() for c in given)
        if path.suffix.lower() in (*TABLE_SUFFIXES, LINES_SUFFIX) and path.is_file():
            return path
    except (OSError, ValueError, RuntimeError):
        # Longer than a file name can be, with a null character, in nobody's home folder: whatever it is, it is no file.
        return None
    if is_name:
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(
            f"no file {given!r}{did_you_mean(path.name, beside)}; a text that looks like one goes into a file"
        )
    return None


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _file_rows(backbone: Backbone, given: str, columns: Sequence[str] | None) -> list[InputRow]:
    try:
        path = Path(given).expanduser()
        is_folder, is_there = path.is_dir(), path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"no file or folder {given!r}") from error
    if not is_there:
        raise DataError(f"no file or folder {given!r}")
    if is_folder:
        names = [name for name in list_files(path) if PurePath(name).suffix.lower() in backbone.suffixes]
        if not names:
            suffixes = ", ".join(sorted(backbone.suffixes))
            raise DataError(f"folder {given!r} holds no file that {backbone.name} reads ({suffixes})")
        return _rows_of(Files(pa.chunked_array([[str(path / name) for name in names]])))
    if path.suffix.lower() in TABLE_SUFFIXES:
        part = read_tables([path], path.parent).parts["train"]
        (column,) = _columns_of(path, [*part.columns, *part.unusable], columns)
        return _rows_of(Files(part.column(column, "train"), part.names, root=path.parent, folders=part.folders))
    return _rows_of(Files(pa.chunked_array([[str(path)]])))


def _rows_of(files: Files) -> list[InputRow]:
    return [InputRow(files.name(i), partial(files.read, i)) for i in range(len(files))]
