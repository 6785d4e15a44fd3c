"""`Data` and its splits: rows to read one by one, labels, and what was inferred about them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from hftl.data.cell_paths import embedded_file, find_file
from hftl.data.marks import NO_MARKS, Marks
from hftl.data.opening import read_regular, why_unreadable
from hftl.errors import BadRowError
from hftl.store.digests import FilePart
from hftl.tasks import Task
from hftl.wording import printable

# Rows that an export is proved on.
FEW_ROWS = 8
# Rows that are made Python objects at a time where all are gone through.
_TOGETHER = 8192
# A tuple of one string, beside its characters.
_OBJECT_BYTES = 120
Indices: TypeAlias = npt.NDArray[np.int64]
Labels: TypeAlias = npt.NDArray[np.int64] | npt.NDArray[np.float32] | npt.NDArray[np.object_]


class RowNames:
    """Names of rows for a person: ``train.csv row 17`` is the 17th row of data, the header not counted.

    Args:
        sources: name and number of rows of each file (or split) that the rows come from, in order.
    """

    def __init__(self, sources: Iterable[tuple[str, int]]) -> None:
        self._sources: list[str] = []
        self._starts: list[int] = []
        start = 0
        for source, rows in sources:
            self._sources.append(source)
            self._starts.append(start)
            start += rows

    @property
    def source(self) -> str:
        """Name of the first file."""
        return self._sources[0]

    def source_of(self, row: int) -> int:
        """Return the number of the file that a row comes from, counted from 0."""
        return bisect_right(self._starts, row) - 1

    def __getitem__(self, row: int) -> str:
        at = self.source_of(row)
        return f"{self._sources[at]} row {row - self._starts[at] + 1}"


class KeyNames(RowNames):
    """Names of rows that have a key in their file: ``train-000.tar:n01440764/3``.

    Args:
        sources: as of `RowNames`.
        keys: of the rows, strings.
    """

    def __init__(self, sources: Iterable[tuple[str, int]], keys: pa.ChunkedArray) -> None:
        super().__init__(sources)
        self._keys = keys

    def __getitem__(self, row: int) -> str:
        return f"{self._sources[self.source_of(row)]}:{_one_line(self._keys[row].as_py())}"


class TextColumns(Sequence[tuple[str, ...]]):
    """Rows of one text or two that stay in Arrow columns, where a text takes its bytes and no Python object.

    Args:
        columns: strings, n each; a missing one is an empty text.
    """

    def __init__(self, columns: Sequence[pa.ChunkedArray]) -> None:
        self._columns = columns
        self._starts = [np.cumsum([0, *map(len, column.chunks)]) for column in columns]

    def __len__(self) -> int:
        return len(self._columns[0])

    @overload
    def __getitem__(self, row: int) -> tuple[str, ...]: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[tuple[str, ...]]: ...
    def __getitem__(self, row: int | slice) -> tuple[str, ...] | Sequence[tuple[str, ...]]:
        if isinstance(row, slice):
            return self.take(np.arange(len(self))[row])
        return tuple(column[row].as_py() or "" for column in self._columns)

    def take(self, rows: Indices) -> list[tuple[str, ...]]:
        """Some rows as Python has them."""
        cells = [
            _chosen_cells(column, starts, rows) for column, starts in zip(self._columns, self._starts, strict=True)
        ]
        return list(zip(*cells, strict=True))

    def lengths(self, rows: Indices) -> Indices:
        """Characters of some rows, int64 (n,)."""
        each = [pc.fill_null(pc.utf8_length(column), 0).to_numpy() for column in self._columns]
        characters: Indices = np.stack(each)[:, rows].sum(0, dtype=np.int64)
        return characters

    @property
    def columns(self) -> Sequence[pa.ChunkedArray]:
        """The columns."""
        return self._columns


def _chosen_cells(column: pa.ChunkedArray, starts: Indices, rows: Indices) -> list[str]:
    """Some cells of a column whose chunks begin at ``starts``."""
    # Each chunk for itself: Arrow would join all of them first, and cannot where they are larger than 2 GB together.
    chunk = np.searchsorted(starts, rows, side="right") - 1
    found = np.empty(len(rows), dtype=object)
    for number in np.unique(chunk).tolist():
        here = np.flatnonzero(chunk == number)
        found[here] = column.chunk(number).take(pa.array(rows[here] - starts[number])).to_pylist()
    return [text or "" for text in found.tolist()]


class Texts(Sequence[tuple[str, ...]]):
    """Rows of one string (a text) or two (a pair), or of a sentence's words.

    Args:
        values: the strings of each row, of which these texts are some.
        names: rows' names, as many.
        index: rows of ``values`` that these texts are, in order; all by default.
    """

    def __init__(
        self,
        values: Sequence[tuple[str, ...]],
        names: RowNames | Sequence[str],
        index: Indices | None = None,
    ) -> None:
        self._values = values
        self._names = names
        self._index = np.arange(len(values)) if index is None else index

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        for start in range(0, len(self), _TOGETHER):
            yield from self._taken(self._index[start : start + _TOGETHER])

    @overload
    def __getitem__(self, row: int) -> tuple[str, ...]: ...
    @overload
    def __getitem__(self, row: slice) -> Texts: ...
    def __getitem__(self, row: int | slice) -> tuple[str, ...] | Texts:
        return self.select(np.arange(len(self))[row]) if isinstance(row, slice) else self._values[int(self._index[row])]

    def name(self, row: int) -> str:
        """Return the row's name for a person, such as ``train.csv row 17`` (the header not counted)."""
        return self._names[int(self._index[row])]

    def lengths(self) -> Indices:
        """Characters of each row, int64 (n,): near enough to tokens to batch by, and known without a tokenizer."""
        if isinstance(self._values, TextColumns):
            return self._values.lengths(self._index)
        return np.array([sum(map(len, texts)) for texts in self], dtype=np.int64)

    def select(self, indices: Sequence[int] | Indices) -> Texts:
        """Return the rows at ``indices``, in that order; no text is copied."""
        return Texts(self._values, self._names, self._index[np.asarray(indices, dtype=np.int64)])

    @property
    def columns(self) -> Sequence[pa.ChunkedArray]:
        """The Arrow columns that the texts are some rows of; none where they are Python objects."""
        return self._values.columns if isinstance(self._values, TextColumns) else ()

    @property
    def nbytes(self) -> int:
        """Bytes that the rows take beside `columns`, about."""
        if isinstance(self._values, TextColumns):
            return self._index.nbytes
        return self._index.nbytes + int(self.lengths().sum()) + _OBJECT_BYTES * len(self)

    def _taken(self, rows: Indices) -> list[tuple[str, ...]]:
        if isinstance(self._values, TextColumns):
            return self._values.take(rows)
        return [self._values[row] for row in rows.tolist()]


class Files(Sequence[bytes]):
    """Encoded files (images, sounds), never decoded here; what is known of them stays in its Arrow column.

    Args:
        column: strings (paths, or the bytes in base64), binaries (the encoded bytes), or structs ``{bytes, path}`` as
            `datasets` has them, of which one field may be missing, or structs ``{path, offset, size, state}``, parts of
            files.
        names: rows' names; ``None`` where the path itself is the best name.
        root: folder that relative paths start from.
        folders: for each source of ``names``, another folder that its relative paths may start from.
        within: if not empty, the folders outside which no path is read (for data that somebody else wrote).
        index: rows of ``column`` that these files are, in order; all by default.
    """

    def __init__(
        self,
        column: pa.ChunkedArray,
        names: RowNames | None = None,
        *,
        root: Path = Path(),
        folders: Sequence[Path] = (),
        within: tuple[Path, ...] = (),
        index: Indices | None = None,
    ) -> None:
        self._column = column
        self._names = names
        self._root = root
        self._folders = folders
        self._within = within
        self._index = np.arange(len(column)) if index is None else index
        # Asked once: of a million rows each would be made a Python object to see that it is no part.
        self._of_parts = pa.types.is_struct(column.type) and column.type.get_field_index("offset") >= 0

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, row: int) -> bytes: ...
    @overload
    def __getitem__(self, row: slice) -> Files: ...
    def __getitem__(self, row: int | slice) -> bytes | Files:
        return self.select(np.arange(len(self))[row]) if isinstance(row, slice) else self.read(row)

    def select(self, indices: Sequence[int] | Indices) -> Files:
        """Return the rows at ``indices``, in that order; nothing is read or copied."""
        chosen = self._index[np.asarray(indices, dtype=np.int64)]
        return Files(
            self._column, self._names, root=self._root, folders=self._folders, within=self._within, index=chosen
        )

    def name(self, row: int) -> str:
        """Return the row's name for a person: ``train/cat/3.jpg``, ``train.csv row 17 (cat/3.jpg)``."""
        content, path = self._cell(row)
        # A cell that is a whole picture in base64 is no name.
        path = None if content is None and path and embedded_file(path) is not None else path
        if self._names is None:
            return _one_line(path) if path else f"row {row + 1}"
        name = self._names[int(self._index[row])]
        return f"{name} ({_one_line(path)})" if path else name

    def path(self, row: int) -> Path | None:
        """Return where the file lies, or ``None`` if its bytes came with the data."""
        content, path = self._cell(row)
        if content is not None or not path or embedded_file(path) is not None:
            return None
        return self._located(row, path)

    def part(self, row: int) -> FilePart | None:
        """Return where in which file the row's bytes are, if it has no file of its own."""
        if not self._of_parts:
            return None
        value = self._value(row)
        if value is None or value["offset"] is None:
            return None
        return FilePart(str(self._root / value["path"]), value["offset"], value["size"], value["state"])

    def _located(self, row: int, path: str) -> Path:
        # The files of a folder were listed; the cells of a table were written by somebody.
        if self._names is None:
            return self._root / path
        source = self._names.source_of(int(self._index[row]))
        return find_file(path, (self._root, *self._folders[source : source + 1]))

    def read(self, row: int) -> bytes:
        """Return the file's bytes, as stored.

        Raises:
            BadRowError: the cell is empty, or its file is missing, unreadable, no regular file or outside the data's
                own folders.
            DataError: the file that holds the row among others changed since its rows were found in it.
        """
        if (part := self.part(row)) is not None:
            try:
                return part.read()
            except OSError as error:
                raise BadRowError(self.name(row), f"the file cannot be read: {why_unreadable(error)}") from error
        content, path = self._cell(row)
        if content is not None:
            return content
        if not path:
            raise BadRowError(self.name(row), "the cell is empty")
        if (embedded := embedded_file(path)) is not None:
            return embedded
        try:
            self.check_inside(row)
            return read_regular(self._located(row, path))
        except (OSError, ValueError) as error:
            where = printable(self._root / path)
            raise BadRowError(self.name(row), f"the file cannot be read: {why_unreadable(error)} ({where})") from error

    def check_inside(self, row: int) -> None:
        """See that a row's file lies where files of these data are read.

        Raises:
            BadRowError: it lies outside the folders of the data set.
        """
        file = self.path(row) if self._within else None
        if file is not None and not any(file.resolve().is_relative_to(folder) for folder in self._within):
            raise BadRowError(self.name(row), "the path leads out of the data set's folder and is not read")

    @property
    def columns(self) -> Sequence[pa.ChunkedArray]:
        """The Arrow column that the files are some rows of."""
        return (self._column,)

    @property
    def nbytes(self) -> int:
        """Bytes that the rows take beside `columns`."""
        return self._index.nbytes

    @property
    def nbytes_in_memory(self) -> int | None:
        """Size of the column if it holds every file's bytes, so that none lies on disk; else ``None``."""
        cells = self._column
        if pa.types.is_struct(cells.type):
            if cells.type.get_field_index("bytes") < 0:
                return None
            cells = pc.struct_field(cells, "bytes")
        holds_bytes = pa.types.is_binary(cells.type) or pa.types.is_large_binary(cells.type)
        return int(cells.nbytes) if holds_bytes and not cells.null_count else None

    def _cell(self, row: int) -> tuple[bytes | None, str | None]:
        """Return the row's bytes and path, as far as the column holds them."""
        value = self._value(row)
        if isinstance(value, dict):
            return (None, None) if self._of_parts else (value.get("bytes"), value.get("path"))
        return (None, value) if isinstance(value, str) else (value, None)

    def _value(self, row: int) -> Any:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self._column[int(self._index[row])].as_py()


def bytes_of(parts: Iterable[Texts | Files]) -> int:
    """Bytes that rows take in memory, about: a column whole, however few of its rows there are, and once.

    What Arrow has mapped from files is none of them.
    """
    parts = list(parts)
    columns = {id(column): int(column.nbytes) for part in parts for column in part.columns}
    return min(sum(columns.values()), int(pa.total_allocated_bytes())) + sum(part.nbytes for part in parts)


def _one_line(path: str) -> str:
    """A path as it is, unless it holds line breaks or control characters."""
    return path if path.isprintable() else printable(path)


def labels_as_bytes(labels: Labels) -> bytes:
    """Bytes that tell labels from any others of the same task."""
    if labels.dtype != object:
        return labels.tobytes()
    return b"".join(len(row).to_bytes(8, "little") + row.tobytes() for row in labels)


def occurring(labels: Labels) -> npt.NDArray[np.float32]:
    """Which classes occur among the words of each sentence: (n, C) of 0 and 1."""
    classes = max((int(row.max()) for row in labels if len(row)), default=-1) + 1
    shown = np.zeros((len(labels), classes), dtype=np.float32)
    for at, row in enumerate(labels):
        shown[at, row] = 1
    return shown


def indicators(labels: Labels) -> Labels:
    """Labels as (n, C) of 0 and 1 where a row is a sentence, else as they are."""
    return occurring(labels) if labels.dtype == object else labels


def lines_of(labels: Labels) -> list[int]:
    """Lines of logits of each row: of a sentence one for each word."""
    return [len(row) for row in labels] if labels.dtype == object else [1] * len(labels)


def rows_of_lines(labels: Labels) -> Indices:
    """The row of each line of logits: of each word its sentence."""
    return np.repeat(np.arange(len(labels)), np.array(lines_of(labels), dtype=np.int64))


@dataclass(frozen=True)
class Split:
    """One part of the data.

    Attributes:
        name: ``train``, ``validation`` or ``test``.
        inputs: the rows.
        labels: int64 ``(n,)`` class numbers for single_label; float32 ``(n, k)`` of 0 and 1 for multi_label;
            float32 ``(n, k)`` targets for regression; ``(n,)`` objects for token_labels, int64 (words,) each.
        marks: what the columns say that a recipe names for how rows are divided.
    """

    name: str
    inputs: Texts | Files
    labels: Labels
    marks: Marks = NO_MARKS

    def __len__(self) -> int:
        return len(self.inputs)

    def select(self, rows: np.ndarray, name: str | None = None) -> Split:
        """Some of its rows, by position; under another name where one is given."""
        return Split(name or self.name, self.inputs.select(rows), self.labels[rows], self.marks.select(rows))

    def few_rows(self) -> list[int]:
        """Positions of a few rows, the shortest and the longest text among them: those that an export is proved on."""
        count = len(self)
        chosen = np.linspace(0, count - 1, min(FEW_ROWS, count)).astype(int).tolist()
        if isinstance(self.inputs, Texts) and count:
            lengths = self.inputs.lengths()
            chosen[:2] = [int(lengths.argmin()), int(lengths.argmax())][: len(chosen)]
        return sorted(set(chosen))


@dataclass(frozen=True)
class Data:
    """Everything a run knows about its data.

    Attributes:
        ref: the reference as given.
        task: what the labels are.
        label_names: names of the classes (every one has a training row), or of the targets of a regression.
        train: rows to learn from.
        validation: rows for choosing, if the data bring them.
        test: rows that the run reports on.
        notes: one sentence for each thing that was inferred, dropped or made.
        identity: what the data were, as JSON: reference, commit or files, split sizes, columns, labels'
            digest.
        set_aside: whether ``test`` was drawn from the training rows because the data bring no other split.
        outside: rows of a label that is out of scope, to measure how they are told from the classes; their labels are
            -1, and `splits` does not have them. None where no label is.
    """

    ref: str
    task: Task
    label_names: list[str]
    train: Split
    validation: Split | None
    test: Split
    notes: list[str]
    identity: dict[str, Any]
    set_aside: bool = False
    outside: Split | None = None

    def splits(self) -> list[Split]:
        """The splits that there are, in the order in which their rows are numbered."""
        return [split for split in (self.train, self.validation, self.test) if split is not None]

    def sizes(self) -> dict[str, int]:
        """Rows of each split."""
        return {split.name: len(split) for split in self.splits()}
