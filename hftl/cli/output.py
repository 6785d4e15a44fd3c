"""Output of commands: the same rows as a table for people or as JSON for programs, and single lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from typing import Any, TextIO

from hftl.wording import plain, printable


def show(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool) -> None:
    """Print rows: all of their fields as JSON, or the given columns as a table."""
    if as_json:
        print_json(list(rows))
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from hftl.terminal import Terminal

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if row.get(column) is None else printable(row[column])) for column in columns))
    terminal = Terminal()
    if not terminal.is_terminal:
        # A pipe has no width; lines must not be folded where a program reads them.
        terminal.width = 200
    terminal.print(table)


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


def human_bytes(count: float) -> str:
    """Bytes for a person: ``1.5 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
