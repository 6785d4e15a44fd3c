"""Csv and tsv rows one after another, in memory that does not grow with the file, each as `read_csv` reads it."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Iterator

from hftl.data.csv_text import (
    LARGEST_ROW,
    QUOTE_HINT,
    cells_of_line,
    delimiter_of,
    first_bad_quote,
    note_of_letters,
    note_of_swallowed,
    stated_delimiter,
    swallowed_lines,
)
from hftl.errors import DataError
from hftl.wording import plural


class CsvRows:
    """The rows of a csv or tsv file, read as they are asked for.

    Args:
        lines: of the file, with their ends.
        name: the file's name for a person.
        tab: whether it is a tsv file.

    Attributes:
        names: the header's cells, blanks around them cut.
        notes: what was read otherwise than it stands there, known when all rows are read.

    Raises:
        DataError: there is no header. Read: the file's quotes mean neither rows nor lines.
    """

    def __init__(self, lines: Iterable[str], name: str, *, tab: bool) -> None:
        self._lines = iter(lines)
        self._name = name
        first = next(self._lines, "")
        stated, rest = stated_delimiter(first)
        header = next((line for line in itertools.chain([rest], self._lines) if line.strip("\r\n")), "")
        if not header.strip():
            raise DataError(f"{name}: the file is empty")
        self._delimiter = stated or delimiter_of(header, tab)
        self.names = [cell.strip() for cell in next(csv.reader([header.rstrip("\r\n")], delimiter=self._delimiter), [])]
        self.notes: list[str] = []

    def __iter__(self) -> Iterator[list[str] | str]:
        """For each row its cells, as many as the header has; or why it has none."""
        # Python's own limit is shorter than texts that the whole file could hold.
        csv.field_size_limit(LARGEST_ROW)
        held: list[str] = []
        records = csv.reader(self._held(held), delimiter=self._delimiter)
        row, several, swallowed, first_swallowed = 0, False, 0, ""
        while True:
            held.clear()
            try:
                cells = next(records, None)
            except csv.Error:  # a cell longer than any text, because its quote is never closed
                cells = []
            if cells is None:
                break
            record = "".join(held)
            if '"' in record and (not cells or first_bad_quote(record, self._delimiter) is not None):
                if several:
                    raise DataError(
                        f"{self._name} row {row + 1}: a cell begins with a quote that is not closed at its end, below "
                        f"texts of several lines: {QUOTE_HINT}"
                    )
                self.notes.append(note_of_letters(self._name, row + 1))
                yield from self._by_line(held)
                break
            if cells:
                row += 1
                yield self._checked(cells)
            if len(held) > 1:
                several = True
                count, first = swallowed_lines(record, self._delimiter, len(self.names))
                swallowed, first_swallowed = swallowed + count, first_swallowed or first
        self.notes += note_of_swallowed(swallowed, first_swallowed)

    def _held(self, held: list[str]) -> Iterator[str]:
        """The lines, and in ``held`` those of the record that is being read."""
        for line in self._lines:
            held.append(line)
            yield line

    def _by_line(self, held: list[str]) -> Iterator[list[str] | str]:
        for line in itertools.chain(list(held), self._lines):
            if plain := line.rstrip("\r\n"):
                yield self._checked(cells_of_line(plain, self._delimiter))

    def _checked(self, cells: list[str]) -> list[str] | str:
        if len(cells) == len(self.names):
            return cells
        return f"{plural(len(cells), 'cell')}, but the header has {len(self.names)}: {QUOTE_HINT}"
