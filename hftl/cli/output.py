"""Output of commands: the same rows as a table for people or as JSON for programs, and single lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from textwrap import wrap
from typing import Any, TextIO

from hftl.wording import plain, printable

# Columns of a table stand so far apart, and one of sentences is at least so wide.
BETWEEN, PROSE = 3, 20


def show(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool) -> None:
    """Print rows: all of their fields as JSON, or the given columns as a table."""
    if as_json:
        print_json(list(rows))
        return
    from hftl.terminal import Terminal

    texts = [["" if row.get(c) is None else printable(row[c]) for c in columns] for row in rows]
    terminal = Terminal()
    # A pipe has no width; lines must not be folded where a program reads them.
    room = terminal.width if terminal.is_terminal else sys.maxsize
    widths = _widths(columns, texts, room)
    if widths is None:
        for line in _blocks(columns, texts, room):
            terminal.print(line)
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, width in zip(columns, widths, strict=True):
        table.add_column(column, width=width)
    for row in texts:
        table.add_row(*map(Text, row))
    terminal.width = max(terminal.width, sum(widths) + BETWEEN * len(widths))
    terminal.print(table)


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """Widths of a table's columns in which every word is whole; None where there is no room for that."""
    from rich.cells import cell_len

    cells = list(zip(columns, *rows, strict=True))
    widest = [max(map(cell_len, column)) for column in cells]
    narrowest = [
        max(min(wide, PROSE), *(cell_len(word) for text in column for word in text.split() or [""]))
        for column, wide in zip(cells, widest, strict=True)
    ]
    spare = room - BETWEEN * len(columns) - sum(narrowest)
    if spare < 0:
        return None
    widths = []
    for least, most in zip(narrowest, widest, strict=True):
        widths.append(least + min(spare, most - least))
        spare -= widths[-1] - least
    return widths


def _blocks(columns: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> Iterator[str]:
    """Rows one below the other: the first column, then the others under their names, on lines that fit."""
    for first, *others in rows:
        yield first
        named = [f"{column} {text}" for column, text in zip(columns[1:], others, strict=True) if text]
        line = ""
        for part in named:
            if line and len(line) + len(part) + 6 > room:
                yield f"    {line}"
                line = ""
            line = f"{line}, {part}" if line else part
        if line:
            yield from (
                f"    {each}" for each in wrap(line, max(room - 4, 20), break_long_words=False, break_on_hyphens=False)
            )
        yield ""


@contextmanager
def answering(*, as_json: bool) -> Iterator[None]:
    """Let whatever is printed go to standard error, if standard output is for an answer in JSON alone."""
    if not as_json or _answers.get() is not None:
        yield
        return
    before = _answers.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _answers.reset(before)


# Where answers go while standard output is redirected.
_answers: ContextVar[TextIO | None] = ContextVar("answers", default=None)


def print_json(value: Any) -> None:
    """Print a value as JSON, in which what a terminal could obey is escaped."""
    print(json.dumps(value, indent=2, default=str), file=_answers.get() or sys.stdout, flush=True)


def say(line: str, *, error: bool = False) -> None:
    """Print one line, on standard error if it is about something that went wrong."""
    print(plain(line), file=sys.stderr if error else sys.stdout)
