"""`Progress`: one line that redraws on a terminal and in a notebook, a plain line now and then elsewhere.

Nothing is shown of what ends within two seconds. Progress within progress (a probe of one backbone of five) shares the
line: the outer one stands before the inner one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from hftl.wording import plain

if TYPE_CHECKING:
    from rich.progress import Progress as Live

SHOWN_AFTER = 2.0
SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_UPDATES = 0.5
# Below this width a bar would leave no room for words.
ROOM_FOR_A_BAR = 100

Item = TypeVar("Item")

# What is fast enough for a number of them in a second to say something.
RATED = ("rows", "bytes")

_open: list[Progress] = []


class Progress:
    """Counts towards a total, on standard error.

    What is left is estimated by work, where work is said: texts run longest first, so that half of the rows are far
    more than half of the time. The clock starts with the first rows: loading a model says nothing about the rest.

    Args:
        what: what is being done, such as ``"features"``.
        total: how much there is to do; None where nobody knows; 0 for one thing, which progress inside it tells of.
        quiet: print nothing (``--quiet``, or a process other than the main one); None to be seen only inside another.
        unit: what is counted.
        done: how much of it was done before, by a run that was stopped.
        stream: where to print.
    """

    def __init__(
        self,
        what: str,
        total: int | None = 0,
        *,
        quiet: bool | None = False,
        unit: str = "rows",
        done: int = 0,
        stream: TextIO | None = None,
    ) -> None:
        self.what = what
        self.total = total
        self.quiet = not _open if quiet is None else quiet
        self.is_inner = quiet is None
        self.unit = unit
        self.stream = stream or sys.stderr
        self.done = done
        self.note = ""
        self._work = float(done)
        self._all_work: float | None = None
        # From when on speed is measured, and what was done by then.
        self._begin = (time.monotonic(), done, float(done))
        self._first: tuple[float, int, float] | None = None
        self._line: _Line | None = None

    def __enter__(self) -> Progress:
        if not self.quiet:
            self._line = _open[0]._line if _open else _line_on(self.stream)
            _open.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._line is None:
            return
        with suppress(ValueError):
            _open.remove(self)
        seconds = time.monotonic() - self._begin[0]
        if kind is None and seconds >= SHOWN_AFTER and self.total != 0 and not self.is_inner:
            speed = f" ({self.rate})" if self.unit in RATED else ""
            self._line.say(f"{self.what}: {self._amount(self.done)} in {said_seconds(seconds)}{speed}")
        if not _open:
            self._line.end()
        self._line = None

    def rate_of(self, each: float = 1) -> str:
        """What is done in a second, for a person, where each that is counted stands for so many."""
        at, done, _ = self._since()
        rate = (self.done - done) / max(time.monotonic() - at, 1e-9)
        return f"{rate * each:,.0f}" if rate * each >= 10 else f"{rate * each:,.1f}"

    @property
    def rate(self) -> str:
        """What is done in a second, for a person."""
        if self.unit == "bytes":
            return f"{self.rate_of(1e-6)} MB/s"
        return f"{self.rate_of()} {self.unit}/s"

    @property
    def seconds_left(self) -> float | None:
        """What the rest will take; None while nobody knows."""
        at, _, before = self._since()
        if not self.total or self._work <= before:
            return None
        rest = max(self._all_work or float(self.total), self._work) - self._work
        return (time.monotonic() - at) / (self._work - before) * rest

    def _since(self) -> tuple[float, int, float]:
        """From when on speed is measured: the first rows, unless nothing was done after them."""
        return self._first if self._first and self.done > self._first[1] else self._begin

    def expect(self, work: float) -> None:
        """Say how much work all of it is, in the unit that `advance` is told of."""
        self._all_work = work

    def say(self, line: str) -> None:
        """Print a line among the progress."""
        if self._line is not None:
            self._line.say(line)
        elif not self.quiet:
            print(plain(line), file=self.stream, flush=True)

    def advance(self, count: int = 1, work: float | None = None, note: str | None = None) -> None:
        """Say that so many more are done.

        Args:
            count: how many.
            work: how much of what `expect` was told that was; None for as much as any.
            note: what else to show, such as a loss.
        """
        self.done += count
        self._work += count if work is None else work
        self.note = self.note if note is None else note
        if self._first is None:
            self._first = (time.monotonic(), self.done, self._work)
        if self._line is not None and time.monotonic() - _open[0]._begin[0] >= SHOWN_AFTER:
            self._line.show(_open)

    def words(self) -> str:
        """How far it is, on one line."""
        if self.total == 0:
            return self.what
        parts = [f"{self.what}: {self._amount(self.done, of=self.total is not None)}"]
        if (left := self.seconds_left) is not None and self.done < (self.total or 0):
            parts.append(f"{said_seconds(left)} left")
        if self.unit in RATED:
            parts.append(self.rate)
        return ", ".join([*parts, *([self.note] if self.note else [])])

    def _amount(self, count: int, *, of: bool = False) -> str:
        if self.unit == "bytes":
            return f"{count / 1e6:,.1f}{f' of {(self.total or 0) / 1e6:,.1f}' if of else ''} MB"
        return f"{count:,}{f' of {self.total:,}' if of else ''} {self.unit}"


def counted(what: str, items: Sequence[Item], *, unit: str, quiet: bool | None = None) -> Iterator[Item]:
    """The items, each counted when the next one is asked for.

    Args:
        what: what is being done with them.
        items: in their order.
        unit: what they are.
        quiet: as for `Progress`; by default they are seen only inside other progress.
    """
    with Progress(what, len(items), quiet=quiet, unit=unit) as progress:
        for item in items:
            yield item
            progress.advance()


def say_among(line: str) -> None:
    """Print a line among whatever progress is shown; nothing where none is."""
    if _open:
        _open[0].say(line)


class _Line:
    """A log file or a pipe: a plain line now and then."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.shown = time.monotonic()

    def show(self, levels: list[Progress]) -> None:
        # What is done is said once, at its end.
        if levels[-1].done != levels[-1].total and self._is_due(SECONDS_BETWEEN_LINES):
            self.say(_words(levels))

    def say(self, line: str) -> None:
        print(plain(line), file=self.stream, flush=True)

    def end(self) -> None:
        """Leave nothing behind."""

    def _is_due(self, seconds: float) -> bool:
        now = time.monotonic()
        if now - self.shown < seconds:
            return False
        self.shown = now
        return True


class _LiveLine(_Line):
    """A terminal: one line that redraws, and is gone when it ends."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.live: Live | None = None

    def show(self, levels: list[Progress]) -> None:
        outermost = levels[0] if levels[0].total else levels[-1]
        text = plain(_words(levels))
        if self.live is None:
            self.live = self._started()
            self.task = self.live.add_task(text, total=outermost.total or None)
        self.live.update(self.task, description=text, completed=outermost.done, total=outermost.total or None)

    def _started(self) -> Live:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Live
        from rich.table import Column

        from hftl.terminal import Terminal

        console = Terminal(file=self.stream)
        words = TextColumn(
            "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
        )
        columns = [BarColumn(20), words] if console.width >= ROOM_FOR_A_BAR else [words]
        # What a program reads of standard output must not be drawn on the terminal instead.
        live = Live(*columns, console=console, transient=True, expand=True, redirect_stdout=sys.stdout.isatty())
        live.start()
        Terminal.redrawing = console
        return live

    def say(self, line: str) -> None:
        if self.live is None:
            super().say(line)
        else:
            self.live.console.print(line)

    def end(self) -> None:
        if self.live is not None:
            from hftl.terminal import Terminal

            Terminal.redrawing = None
            self.live.stop()
            self.live = None


class _NotebookLine(_Line):
    """A notebook: an output that is written again, which needs no widgets."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.handle: Any = None

    def show(self, levels: list[Progress]) -> None:
        if self._is_due(SECONDS_BETWEEN_UPDATES):
            self._put(_words(levels))

    def say(self, line: str) -> None:
        # The line that was said last stays, and progress goes on below it.
        self._put(line)
        self.handle = None

    def end(self) -> None:
        if self.handle is not None:
            self._put("")

    def _put(self, line: str) -> None:
        from IPython.display import display

        shown = {"text/plain": plain(line)}
        if self.handle is None:
            self.handle = display(shown, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self.handle.update(shown, raw=True)


def _line_on(stream: TextIO) -> _Line:
    """What suits a stream."""
    if stream.isatty():
        return _LiveLine(stream)
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return _NotebookLine(stream) if hasattr(shell, "kernel") else _Line(stream)


def _words(levels: list[Progress]) -> str:
    return " · ".join(level.words() for level in levels)


def said_seconds(seconds: float) -> str:
    """Seconds for a person: ``8 s``, ``3 min``, ``1 h 05 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
