"""Signals that ask fine-tuning to stop: SIGTERM, SIGINT, and SIGHUP, which comes when a terminal is closed.

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

from hftl.lifetime import STOP_SIGNALS

BURST = 1.0


class StopSignals:
    """While entered, the first signal only sets ``asked``; a SIGINT after the burst interrupts at once.

    The loop looks at ``asked`` between steps, and saves its state. Does nothing outside the main thread, where Python
    allows no handlers. A SIGHUP that was told to be ignored, as ``nohup`` does, stays ignored.
    """

    def __init__(self) -> None:
        self.asked = False
        self._first = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if number in (signal.SIGTERM, signal.SIGINT) or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            # A burst may last longer than the step that it ends.
            signal.signal(number, _AfterBurst(handler) if self.asked else handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if not self.asked:
            self.asked, self._first = True, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._first > BURST:
            raise KeyboardInterrupt


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
