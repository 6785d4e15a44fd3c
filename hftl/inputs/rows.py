"""`InputRow`, and how cells and Python values become one: texts, pairs of texts, or encoded files.

The run's record says which columns rows came from and whether they are pairs of texts. What does not fit is refused:
a model that is asked the wrong thing answers all the same.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa

from hftl.data import Files, RowNames
from hftl.data.cell_paths import embedded_file
from hftl.errors import BadRowError, DataError
from hftl.export.loaded import LoadedModel
from hftl.inputs.sentences import Sentence
from hftl.wording import did_you_mean, listing, printable

# Pillow writes these modes into PNG as they are; of the others TIFF loses nothing.
PNG_MODES = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")


@dataclass(frozen=True)
class InputRow:
    """One row to predict.

    Attributes:
        name: what a person calls it.
        read: gives its content: encoded bytes, a tuple of one or two strings, or a `Sentence`; raises `BadRowError`.
        kept: cells of its table that are carried to the result, by column.
    """

    name: str
    read: Callable[[], Any]
    kept: Mapping[str, Any] = field(default_factory=dict)


class InputReader:
    """How one model reads rows.

    Args:
        model: who is asked.
        columns: what to read of a table; None for what the model was trained on.

    Attributes:
        wants: ``"text"`` or ``"file"``.
        of_words: whether a row is a sentence: a text that is cut into words, or a list of words.
        columns: the columns to read; None where nobody recorded them.
        width: texts in a row, 1 or 2; None where nobody recorded the columns, and whoever gives pairs says so.
    """

    def __init__(self, model: LoadedModel, columns: Sequence[str] | None) -> None:
        self.wants = model.backbone.wants
        self.columns = list(columns) if columns is not None else model.input_columns
        self.of_words = model.task.of_words
        self.width = len(self.columns) if self.columns is not None else 1 if self.wants == "file" else None
        if self.width not in (None, 1, 2) or (self.width == 2 and self.wants == "file"):
            raise DataError(
                f"input columns {listing(self.columns or [])}: {model.backbone.name} reads "
                f"{'one column, or two for pairs of texts' if self.wants == 'text' else 'one column'}"
            )

    @property
    def kind(self) -> str:
        """What a row is, for people."""
        if self.wants == "file":
            return "files"
        if self.of_words:
            return "a text, or a list of words"
        if self.width != 2:
            return "single texts or pairs" if self.width is None else "single texts"
        return f"pairs of texts ({' and '.join(self.columns)})" if self.columns else "pairs of texts"

    def row(self, name: str, cells: Sequence[Any], kept: Mapping[str, Any] | None = None) -> InputRow:
        """A row of texts.

        Args:
            name: what a person calls it.
            cells: one, or two of a pair; anything but texts is written as one, and nothing is an empty one.
            kept: cells to carry to the result.
        """
        if self.of_words:
            return (
                _row_of_words(name, cells[0], kept)
                if len(cells) == 1
                else bad_row(name, f"the model reads {self.kind}", kept)
            )
        if self.width is None and len(cells) in (1, 2):
            # Rows of both kinds cannot stand in one batch.
            self.width = len(cells)
        if len(cells) != self.width:
            return bad_row(name, f"the model reads {self.kind}, and here are {len(cells)}", kept)
        try:
            texts = tuple(_cell_as_text(cell) for cell in cells)
        except ValueError as error:
            return bad_row(name, str(error), kept)
        if not any(map(str.strip, texts)):
            return bad_row(name, "the text is empty", kept)
        return InputRow(name, partial(_itself, texts), kept or {})

    def file(self, name: str, cell: Any, folders: Sequence[Path], kept: Mapping[str, Any] | None = None) -> InputRow:
        """A row that is a file.

        Args:
            name: what a person calls it.
            cell: its path, its bytes, the bytes in base64, or ``{bytes, path}`` as `datasets` has them.
            folders: what a relative path may start from, one or two.
            kept: cells to carry to the result.
        """
        if not (cell is None or isinstance(cell, (str, bytes, Mapping))):
            return bad_row(name, f"a {type(cell).__name__} is no path and no file", kept)
        files = Files(
            pa.chunked_array([[cell]]), RowNames([(name, 1)]), root=folders[0], folders=folders[1:] or folders
        )
        return InputRow(name, partial(files.read, 0), kept or {})

    # ── Python values ────────────────────────────────────────────────────────────────────────────────────────────────

    def values(self, values: Iterable[Any]) -> Iterator[InputRow]:
        """One row for each value, taken as rows are asked for."""
        for number, value in enumerate(values, 1):
            yield self.value(value, number)

    def value(self, value: Any, number: int) -> InputRow:
        """A row that is a Python value.

        Args:
            value: a text, a tuple of texts, a path, bytes, a PIL image, or a mapping with the model's columns.
            number: of the row, from 1.
        """
        name = f"row {number}"
        if hasattr(value, "as_py"):
            value = value.as_py()
        if isinstance(value, Mapping) and not (self.wants == "file" and value.keys() <= {"bytes", "path"}):
            value = self._of_mapping(value, name)
        if self.wants == "text":
            if isinstance(value, PurePath):
                raise DataError(f"{name}: {value} is a path, and the model reads texts: give a file of rows alone")
            if self.of_words:
                words = not isinstance(value, str) and isinstance(value, Sequence)
                return self.row(" ".join(map(str, value)) if words else str(value), (value,))
            cells = value if isinstance(value, (tuple, list)) else (value,)
            said = " | ".join(map(str, cells)) if all(isinstance(cell, str) for cell in cells) else name
            return self.row(said, cells)
        if hasattr(value, "getexif"):
            return InputRow(name, partial(_encoded, value))
        cell = str(value) if isinstance(value, PurePath) else value
        return self.file(path_in(cell) or name, cell, (Path(),))

    def _of_mapping(self, row: Mapping[str, Any], name: str) -> Any:
        columns = self.chosen(name, list(row))
        cells = tuple(row[column] for column in columns)
        return cells if self.wants == "text" else cells[0]

    def chosen(self, where: str, there: Sequence[str], text_names: Sequence[str] = ()) -> list[str]:
        """The columns to read of a table: the model's; where nobody recorded them its only one, or one called a text.

        Args:
            where: the table, for people.
            there: its columns.
            text_names: what a column of texts is called.

        Raises:
            DataError: it has no such column, or nobody knows which.
        """
        if self.columns is not None:
            for name in self.columns:
                if name not in there:
                    raise DataError(
                        f"{where}: no column {name!r}{did_you_mean(name, there)}, which the model reads; it has "
                        f"{listing(list(there))}: name the columns with --input-columns"
                    )
            return self.columns
        named = [name for name in there if name.lower() in text_names]
        candidates = named if len(there) > 1 else list(there)
        if len(candidates) != 1:
            raise DataError(
                f"{where}: nobody recorded which of {listing(list(there))} the model reads: say it with --input-columns"
            )
        return candidates


def _row_of_words(name: str, cell: Any, kept: Mapping[str, Any] | None) -> InputRow:
    """A row of words: a text is cut into them."""
    try:
        if isinstance(cell, (list, tuple)):
            sentence = Sentence.of_words([_cell_as_text(word) for word in cell])
        else:
            sentence = Sentence.of_text(_cell_as_text(cell))
    except ValueError as error:
        return bad_row(name, str(error), kept)
    if not sentence:
        return bad_row(name, "the text is empty: it has no word", kept)
    return InputRow(name, partial(_itself, sentence), kept or {})


def bad_row(name: str, why: str, kept: Mapping[str, Any] | None = None) -> InputRow:
    """A row that is known to be bad before it is read."""
    return InputRow(name, partial(_refuse, name, why), kept or {})


def path_in(cell: Any) -> str | None:
    """The path that a cell of files names, on one line; None where it holds the file itself."""
    path = cell.get("path") if isinstance(cell, Mapping) else cell
    if not isinstance(path, str) or not path or embedded_file(path) is not None:
        return None
    return path if path.isprintable() else printable(path)


def _refuse(name: str, why: str) -> Any:
    raise BadRowError(name, why)


def _itself(texts: tuple[str, ...]) -> tuple[str, ...]:
    return texts


def _cell_as_text(cell: Any) -> str:
    """A cell as a text: nothing, also in the ways of numpy and pandas, is an empty one."""
    if cell is None or type(cell).__name__ in ("NAType", "NaTType") or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, (list, tuple, dict, bytes)):
        raise ValueError(f"a {type(cell).__name__} is no text")
    text = str(cell)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half a character (a lone surrogate)") from None
    return text


def _encoded(image: Any) -> bytes:
    """A PIL image as the bytes of a file that gives it back; what says which way is up comes along."""
    file = io.BytesIO()
    kind = {"format": "PNG", "compress_level": 1} if image.mode in PNG_MODES else {"format": "TIFF"}
    image.save(file, exif=image.getexif(), **kind)
    return file.getvalue()
