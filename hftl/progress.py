"""`Progress`: one line that is live on a terminal, a plain line now and then in a log file, nothing if quiet."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from hftl.wording import plain

if TYPE_CHECKING:
    from rich.progress import Progress as Live

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts rows towards a total, on standard error.

    Args:
        what: what is being done, such as ``"features"``.
        total: rows to do; None where nobody knows.
        quiet: print nothing (``--quiet``, or a process other than the main one).
        stream: where to print.
    """

    def __init__(self, what: str, total: int | None, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.what = what
        self.total = total
        self.quiet = quiet
        self.stream = stream or sys.stderr
        self.done = 0
        self._live: Live | None = None
        self._started = self._last = time.monotonic()

    def __enter__(self) -> Progress:
        # A live line redraws itself, which in a log file is thousands of lines.
        if not self.quiet and self.stream.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Live

            from hftl.terminal import Terminal

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
            )
            self._live = Live(*columns, console=Terminal(file=self.stream), transient=True)
            self._live.start()
            self._task = self._live.add_task(self.what, total=self.total, rate="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        if not self.quiet and kind is None:
            seconds = time.monotonic() - self._started
            self._print(f"{self.what}: {self.done:,} rows in {seconds:.1f} s ({self.rate})")

    @property
    def rate(self) -> str:
        """Rows per second so far, for a person."""
        return f"{self.done / max(time.monotonic() - self._started, 1e-9):,.0f} rows/s"

    def say(self, line: str) -> None:
        """Print a line among the progress."""
        if self._live is not None:
            self._live.console.print(line)
        elif not self.quiet:
            self._print(line)

    def advance(self, rows: int) -> None:
        """Say that so many more rows are done."""
        self.done += rows
        if self.quiet:
            return
        if self._live is not None:
            self._live.update(self._task, completed=self.done, rate=self.rate)
            return
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_LINES:
            return
        if self.total is None:
            self._last = now
            self._print(f"{self.what}: {self.done:,} rows, {self.rate}")
        elif self.done < self.total:
            self._last = now
            left = (now - self._started) / self.done * (self.total - self.done)
            self._print(f"{self.what}: {self.done:,} of {self.total:,} rows, {self.rate}, {left:.0f} s left")

    def _print(self, line: str) -> None:
        print(plain(line), file=self.stream, flush=True)
