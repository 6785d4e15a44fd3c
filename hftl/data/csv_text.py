"""Csv and tsv files as columns of text: each row that stands in the file, whatever its quotes look like.

pyarrow reads the cells. It takes a quote that is never closed as the beginning of a text that runs on to the next
quote, many rows later, so quotes are checked first (RFC 4180), and a file whose quotes do not fit is read line by line.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import cache

import pyarrow as pa
import pyarrow.csv

from hftl.errors import DataError
from hftl.wording import one_line, plural

LARGEST_ROW = 1 << 26  # 64 MiB: pyarrow wants each csv row to fit into one block

QUOTE_HINT = "put a text that holds the delimiter or a line break in double quotes, and close each quote"


@dataclass(frozen=True)
class CsvColumns:
    """What a csv file holds.

    Attributes:
        names: the header's cells, blanks around them cut; a name may stand twice.
        columns: one array of strings for each; an empty cell is an empty string.
        notes: what was read otherwise than it stands there, one sentence each.
    """

    names: list[str]
    columns: list[pa.ChunkedArray]
    notes: list[str]


def read_csv(text: str, name: str, *, tab: bool) -> CsvColumns:
    """Read every cell as text; what a number or an empty cell means is decided where its use is known.

    Args:
        text: the file's content.
        name: the file's name for a person.
        tab: whether it is a tsv file.

    Raises:
        DataError: there is no header, or rows have more or fewer cells than it.
    """
    stated, text = stated_delimiter(text)
    text = text.lstrip("\r\n")
    if "\n" not in text:
        text = text.replace("\r", "\n")  # the line ends of old Macs
    header = re.split(r"\r\n|\n|\r", text, maxsplit=1)[0]
    delimiter = stated or delimiter_of(header, tab)
    # Without pyarrow's own names, so that a name may stand twice where the column is not used.
    names = [cell.strip() for cell in next(csv.reader([header], delimiter=delimiter), [])]
    fault = first_bad_quote(text, delimiter) if '"' in text else None
    if fault is None:
        notes = note_of_swallowed(*swallowed_lines(text, delimiter, len(names)))
        return CsvColumns(names, _cells(text, name, delimiter, len(names)), notes)
    return _read_by_line(text, delimiter, names, fault, name)


def stated_delimiter(text: str) -> tuple[str | None, str]:
    """The delimiter in the first line that Excel writes, ``sep=;``, and the rest of the text."""
    line = re.match(r'"?sep=(.)"?(\r\n|\n|\r)', text, re.IGNORECASE)
    return (line[1], text[line.end() :]) if line else (None, text)


def delimiter_of(header: str, tab: bool) -> str:
    """What stands between cells, by a header; a tsv file's is stated by its name."""
    if tab or ("\t" in header and "," not in header):
        return "\t"
    return ";" if ";" in header and "," not in header else ","


def _cells(text: str, name: str, delimiter: str, width: int) -> list[pa.ChunkedArray]:
    content = text.encode()
    numbers = [str(number) for number in range(width)]
    # One thread, because only then does pyarrow say which row is broken.
    blocks = pa.csv.ReadOptions(
        use_threads=False, block_size=min(len(content) + 1, LARGEST_ROW), column_names=numbers, skip_rows_after_names=1
    )
    parse = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(numbers, pa.string()), strings_can_be_null=False)
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(content), read_options=blocks, parse_options=parse, convert_options=convert
        )
    except pa.ArrowException as error:
        raise DataError(_csv_error(name, str(error))) from error
    return list(table.columns)


def _csv_error(name: str, message: str) -> str:
    """Say pyarrow's error in terms of data rows; it counts the header as row 1."""
    if ragged := re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", message):
        row, expected, got = map(int, ragged.groups())
        return f"{name} row {row - 1}: {plural(got, 'cell')}, but the header has {expected}: {QUOTE_HINT}"
    return f"{name}: cannot be read as csv: {one_line(message)}"


# ── quotes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@cache
def _quoted(delimiter: str) -> re.Pattern[str]:
    """A quote at the beginning of a cell; with the rest of a well-formed cell, if it is one, as the group ``cell``."""
    mark = re.escape(delimiter)
    blank = "[ ]*" if delimiter != " " else ""
    return re.compile(rf'(?:\A|(?<=[{mark}\n\r]))"(?P<cell>(?:[^"]|"")*"{blank}(?=[{mark}\n\r]|\Z))?')


def first_bad_quote(text: str, delimiter: str) -> int | None:
    """Where a cell begins with a quote that is not closed at the cell's end; None if every quote is."""
    at, pattern = 0, _quoted(delimiter)
    while (opening := pattern.search(text, at)) is not None:
        if opening["cell"] is None:
            return opening.start()
        at = opening.end()
    return None


def swallowed_lines(text: str, delimiter: str, width: int) -> tuple[int, str]:
    """How many whole lines in quoted texts look like rows of their own, which a stray quote would make of them.

    Returns:
        Their number, and the beginning of the first text that holds some.
    """
    swallowed, first = 0, ""
    if '"' not in text or width < 2:
        return swallowed, first
    for cell in _quoted(delimiter).finditer(text):
        # All lines but the last, the first of them with the cells before this one.
        above = text[text.rfind("\n", 0, cell.start()) + 1 : cell.end()].split("\n")[:-1]
        if above and all(line.count(delimiter) == width - 1 for line in above):
            first = first or one_line(cell[0], 40)
            swallowed += len(above)
    return swallowed, first


def note_of_swallowed(count: int, first: str) -> list[str]:
    """Say so, where there are such lines: only a person can tell a stray quote whose partner happens to end a cell."""
    lines = f"{plural(count, 'line')} inside quoted texts could be rows of their own (the first: {first})"
    return [f"{lines}: if so, a quote is not closed"] if count else []


def _read_by_line(text: str, delimiter: str, names: list[str], fault: int, name: str) -> CsvColumns:
    """Read one row a line, taking a quote that does not enclose its whole cell as a letter like any other.

    Raises:
        DataError: lines have more or fewer cells than the header, so that this is not what the file means.
    """
    lines = [line for line in re.split(r"\r\n|\n|\r", text) if line]
    fault_row = sum(bool(line) for line in re.split(r"\r\n|\n|\r", text[:fault])[:-1])
    rows: list[list[str]] = []
    for line in lines[1:]:
        cells = cells_of_line(line, delimiter)
        if len(cells) != len(names):
            raise DataError(
                f"{name} row {fault_row}: a cell begins with a quote that is not closed at its end, and read as a "
                f"letter it leaves row {len(rows) + 1} with {plural(len(cells), 'cell')} where the header has "
                f"{len(names)}: {QUOTE_HINT}"
            )
        rows.append(cells)
    columns = [pa.chunked_array([pa.array(values, pa.string())]) for values in zip(*rows, strict=True)]
    columns = columns or [pa.chunked_array([[]], pa.string()) for _ in names]
    return CsvColumns(names, columns, [note_of_letters(name, fault_row)])


def note_of_letters(name: str, row: int) -> str:
    """Say from which row on quotes were read as letters."""
    return f"{name} row {row}: a quote not closed at its cell's end was read as a letter, and each line as a row"


def cells_of_line(line: str, delimiter: str) -> list[str]:
    """The cells of one line, where a quote that does not enclose its whole cell is a letter like any other."""
    cells = []
    for match in _cell_of_line(delimiter).finditer(line):
        cells.append(match[1].replace('""', '"') if match[1] is not None else match[2])
        if not match[3]:
            break
    return cells


@cache
def _cell_of_line(delimiter: str) -> re.Pattern[str]:
    mark = re.escape(delimiter)
    return re.compile(rf'(?:"((?:[^"]|"")*)"[ ]*(?=[{mark}]|\Z)|([^{mark}]*))([{mark}]|\Z)')
