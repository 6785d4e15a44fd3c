"""`RowSource`: files, folders, tables and standard input as streams of rows, looked at before anything is computed."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from hftl.data.columns import TEXT_NAMES
from hftl.data.folders import FILE_COLUMN, list_files
from hftl.data.json_rows import json_row
from hftl.data.opening import decode_text
from hftl.data.remote import is_address
from hftl.data.row_streams import RowStream, plain_line, stream_table, stream_text_table, text_lines
from hftl.data.tables import TABLE_SUFFIXES
from hftl.data.tar_shards import PACKED, SHARD_SUFFIX
from hftl.errors import BadRowError, DataError
from hftl.export.loaded import LoadedModel
from hftl.inputs.rows import InputReader, InputRow, bad_row, path_in
from hftl.wording import did_you_mean, listing, plural

LINES_SUFFIX = ".txt"
STDIN = "stdin"
FORMATS = ("lines", "csv", "tsv", "jsonl")


@dataclass
class RowSource:
    """Where rows come from.

    Attributes:
        rows: gives them, read as they are asked for.
        total: how many there are; None where nobody knows before the end.
        kept: the types of the columns that are carried to the result.
        notes: what was left out or read otherwise than it stands there; whole when all rows are read.
    """

    rows: Callable[[], Iterator[InputRow]]
    total: int | None = None
    kept: dict[str, pa.DataType] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class RowSources:
    """Opens what a person names for one model.

    Args:
        model: who is asked.
        columns: what to read of a table; None for what the model was trained on.
        keep: columns of tables to carry to the result.
    """

    def __init__(self, model: LoadedModel, columns: Sequence[str] | None = None, keep: Sequence[str] = ()) -> None:
        self.reader = InputReader(model, columns)
        self.keep = list(keep)
        self.suffixes = model.backbone.suffixes
        # A run on class folders of texts read each file as one text.
        self.whole_files = self.reader.wants == "text" and self.reader.columns == [FILE_COLUMN]

    def named(self, word: str, said: str | None = None) -> list[RowSource]:
        """What a path or a pattern names; see `path` and `pattern`."""
        refuse_data(word)
        return self.pattern(word) if is_pattern(word) else self.path(Path(word), said)

    def path(self, path: Path, said: str | None = None) -> list[RowSource]:
        """A file or a folder.

        Args:
            path: where; ``~`` stands for the home folder.
            said: what rows of the file are named after; None for its name.

        Raises:
            DataError: nothing is there, or nothing that the model reads.
        """
        try:
            path = path.expanduser()
            is_folder, is_there = path.is_dir(), path.exists()
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"no file or folder {str(path)!r}") from error
        if not is_there:
            raise DataError(f"no file or folder {str(path)!r}{did_you_mean(path.name, lying_beside(path))}")
        if is_folder:
            return self._folder(path)
        said, suffix = said or path.name, path.suffix.lower()
        if suffix in TABLE_SUFFIXES:
            return [self._table(stream_table(path, said), said, path.parent)]
        if suffix == LINES_SUFFIX and not self.whole_files:
            self._refuse_keep(said)
            return [RowSource(lambda: self._of_file_lines(path, said))]
        if self.reader.wants == "text" and not self.whole_files:
            raise DataError(
                f"{str(path)!r} is a file, and the model reads texts from files that end in "
                f"{', '.join((LINES_SUFFIX, *TABLE_SUFFIXES))}: rename it, or give a text of that name by - (stdin)"
            )
        return [self._files([path])]

    def pattern(self, pattern: str) -> list[RowSource]:
        """The files that a pattern such as ``photos/**/*.jpg`` matches, sorted.

        Raises:
            DataError: there is none, or none that the model reads.
        """
        found = sorted(path for path in matching(pattern) if not path.is_dir())
        if not found:
            raise DataError(f"no file matches {pattern!r}; in a pattern * is any name, ** any folders, ? one character")
        return self._several(found, repr(pattern))

    def _folder(self, folder: Path) -> list[RowSource]:
        names = list_files(folder)
        if not names:
            raise DataError(f"folder {str(folder)!r} holds no file")
        return self._several([folder / name for name in names], f"folder {str(folder)!r}")

    def _several(self, paths: Sequence[Path], where: str) -> list[RowSource]:
        """Files of one kind among those that lie somewhere, the others counted."""
        kinds = self.suffixes if self.reader.wants == "file" else {LINES_SUFFIX, *TABLE_SUFFIXES}
        if self.whole_files:
            kinds = {LINES_SUFFIX}
        used = [path for path in paths if path.suffix.lower() in kinds]
        if not used:
            raise DataError(f"{where} holds no file that the model reads ({', '.join(sorted(kinds))})")
        others = sorted({path.suffix.lower() or path.name for path in paths} - kinds)
        if self.reader.wants == "file" or self.whole_files:
            sources = [self._files(used)]
        else:
            sources = [source for path in used for source in self.path(path, str(path))]
        if others:
            count = len(paths) - len(used)
            sources[0].notes.append(f"{where}: {plural(count, 'file')} of other kinds left out ({', '.join(others)})")
        return sources

    # ── kinds of sources ─────────────────────────────────────────────────────────────────────────────────────────────

    def stdin(self, stream: IO[bytes], kind: str | None) -> RowSource:
        """Standard input, taken from as rows are asked for.

        Args:
            stream: its bytes.
            kind: one of ``FORMATS``; None for lines, unless the first one looks like a table.

        Raises:
            DataError: it is empty, or not of that kind.
        """
        lines = _lines_of(stream)
        if kind in (None, "lines"):
            first = next(lines, None)
            if first is None:
                raise DataError("nothing to predict: stdin is empty")
            if kind is None and (likely := self._likely(first)):
                raise DataError(
                    f"stdin begins like {likely}: say --input-format {likely}, or lines if each line is a row as it is"
                )
            numbered = enumerate(itertools.chain([first], lines), 1)
            self._refuse_keep(STDIN)
            return RowSource(lambda: self._of_lines(numbered, STDIN, ()))
        return self._table(stream_text_table(lines, STDIN, kind), STDIN, Path())

    def _likely(self, line: str) -> str | None:
        """What a first line looks like, if not like a row: an object, or a header with the columns of the run."""
        if isinstance(json_row(line), dict):
            return "jsonl"
        for kind, mark in (("csv", ","), ("tsv", "\t")):
            cells = [cell.strip() for cell in plain_line(line).split(mark)]
            if self.reader.columns and set(self.reader.columns) <= set(cells):
                return kind
        return None

    def _table(self, stream: RowStream, said: str, folder: Path) -> RowSource:
        chosen = self.reader.chosen(said, stream.columns, TEXT_NAMES)
        for name in self.keep:
            if name not in stream.columns:
                raise DataError(
                    f"--keep {name}: {said} has no such column{did_you_mean(name, stream.columns)}, only "
                    f"{listing(stream.columns)}"
                )
        for name in (*chosen, *self.keep):
            if name in stream.unusable:
                raise DataError(stream.unusable[name])
        types = {name: _kept_type(name, stream.types.get(name, pa.string())) for name in self.keep}
        wanted = list(dict.fromkeys((*chosen, *self.keep)))
        return RowSource(
            lambda: self._of_table(stream.read(wanted), chosen, said, folder), stream.total, types, stream.notes
        )

    def _of_table(
        self, rows: Iterator[dict[str, Any] | str], chosen: Sequence[str], said: str, folder: Path
    ) -> Iterator[InputRow]:
        for number, cells in enumerate(rows, 1):
            name = f"{said} row {number}"
            if isinstance(cells, str):
                yield bad_row(name, cells)
                continue
            kept = {column: cells[column] for column in self.keep}
            if self.reader.wants == "text":
                yield self.reader.row(name, [cells[column] for column in chosen], kept)
            else:
                cell = cells[chosen[0]]
                path = path_in(cell)
                yield self.reader.file(f"{name} ({path})" if path else name, cell, (folder,), kept)

    def _of_file_lines(self, path: Path, said: str) -> Iterator[InputRow]:
        with text_lines(path, said) as lines:
            empty = True
            for row in self._of_lines(enumerate(lines, 1), said, (path.parent,)):
                empty = False
                yield row
        if empty:
            raise DataError(f"{said}: the file is empty")

    def _of_lines(self, lines: Iterator[tuple[int, str]], said: str, folders: Sequence[Path]) -> Iterator[InputRow]:
        """Rows of lines: a text each, two with a tab between for pairs, or a path."""
        for number, line in lines:
            name, text = f"{said} line {number}", plain_line(line)
            if self.reader.wants == "text":
                yield self.reader.row(name, text.split("\t") if self.reader.width == 2 else [text])
            else:
                # A list that another program made begins where that was started.
                yield self.reader.file(text or name, text, (*folders, Path()))

    def _files(self, paths: Sequence[Path]) -> RowSource:
        read = self._whole_text if self.whole_files else self._file
        self._refuse_keep(str(paths[0]))
        return RowSource(lambda: map(read, paths), len(paths))

    def _file(self, path: Path) -> InputRow:
        return self.reader.file(path_in(str(path)) or path.name, str(path), (Path(),))

    def _whole_text(self, path: Path) -> InputRow:
        row = self._file(path)

        def read() -> Any:
            content = row.read()
            try:
                text = decode_text(content, row.name)
            except DataError as error:
                raise BadRowError(row.name, str(error)) from error
            return self.reader.row(row.name, [text]).read()

        return InputRow(row.name, read)

    def _refuse_keep(self, said: str) -> None:
        if self.keep:
            raise DataError(f"--keep {','.join(self.keep)}: {said} is no table and has no columns; leave out --keep")


def _kept_type(name: str, kind: pa.DataType) -> pa.DataType:
    """The type of a column in the results: its own, or text where it is nothing or a code for text."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_null(kind) or kind == pa.string_view() or pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise DataError(f"--keep {name}: its cells are of the type {kind}, which no cell of the results holds")
    return kind


def refuse_data(word: str) -> None:
    """Refuse the references that only `evaluate` reads.

    Raises:
        DataError: the word is one.
    """
    here = f"{word}: predict reads files, folders and tables that lie here"
    if is_address(word):
        raise DataError(f"{here}, and no address: fetch what lies there; evaluate reads tables and shards there")
    if word.lower().endswith((SHARD_SUFFIX, *PACKED)):
        raise DataError(f"{here}, and no tar files: unpack it; evaluate reads {SHARD_SUFFIX} files as they are")


def is_pattern(word: str) -> bool:
    """Whether a name holds wildcards and is not simply that of a file."""
    try:
        return glob.has_magic(word) and not Path(word).exists()
    except (OSError, ValueError):
        return False


def is_one_file(word: str) -> bool:
    """Whether a path to files is one row: no folder, no pattern, no table and no list of paths."""
    path = Path(word)
    return not (is_pattern(word) or path.is_dir() or path.suffix.lower() in (LINES_SUFFIX, *TABLE_SUFFIXES))


def matching(pattern: str) -> Iterator[Path]:
    """What a pattern matches; links to folders are followed, hidden files are left out."""
    return map(Path, glob.iglob(pattern, recursive=True))  # noqa: PTH207 - a pattern may be absolute


def lying_beside(path: Path) -> list[str]:
    """What lies beside a path, to find a slip of the hand in its name."""
    return [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []


def _lines_of(stream: IO[bytes]) -> Iterator[str]:
    with text_lines(stream, STDIN) as lines:
        yield from lines
