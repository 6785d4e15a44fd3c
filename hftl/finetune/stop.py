"""Signals that ask a run to stop: SIGTERM, SIGINT, and SIGHUP, which comes when a terminal is closed.

Whoever presses Ctrl-C in impatience presses it several times. What follows the first signal within `BURST` seconds is
taken as the same wish, so that it cannot hit the saving of the state, or the last lines that are printed.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

BURST = 1.0
_NUMBERS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]


class Interrupts:
    """While entered, a signal to stop raises ``KeyboardInterrupt``, as SIGINT does by itself; once for each burst.

    Does nothing outside the main thread, where Python allows no handlers. A SIGHUP that was told to be ignored, as
    ``nohup`` does, stays ignored.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._first: float | None = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in _NUMBERS:
                ignored = signal.getsignal(number) == signal.SIG_IGN
                if number == signal.SIGINT or not ignored:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            in_burst = self._first is not None or isinstance(signal.getsignal(number), _AfterBurst)
            signal.signal(number, _AfterBurst(handler) if in_burst else handler)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Take a signal; ``frame`` is what ran."""
        del number, frame
        if not self._in_burst():
            self._first = time.monotonic()
            raise KeyboardInterrupt

    def _in_burst(self) -> bool:
        return self._first is not None and time.monotonic() - self._first < BURST


class StopSignals(Interrupts):
    """While entered, the first signal only sets ``asked``; a SIGINT after the burst interrupts at once.

    The loop looks at ``asked`` between steps, and saves its state.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.asked and number == signal.SIGINT and not self._in_burst():
            raise KeyboardInterrupt
        if not self.asked:
            self._first = time.monotonic()
        self.asked = True


class _AfterBurst:
    """A handler that ignores what belongs to the burst, and afterwards does as if it were not there."""

    def __init__(self, before: Any) -> None:
        self._before = before
        self._until = time.monotonic() + BURST

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if time.monotonic() < self._until:
            return
        signal.signal(number, self._before)
        if callable(self._before):
            self._before(number, frame)
        elif self._before == signal.SIG_DFL:
            os.kill(os.getpid(), number)
