"""`StopOnce`: a signal to stop ends the command once and in order, however often it comes."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from hftl.lifetime import STOP_SIGNALS

PATIENCE = 2.0  # seconds
STATUS = 130


class StopOnce:
    """While entered, the first signal to stop raises KeyboardInterrupt.

    More of them that come within two seconds are the same wish: a person who holds the keys down, or a shell that tells
    the whole group. They must not break into the work that the first one began: closing files, giving leases back.
    A program that ignores a signal on purpose (``nohup``) goes on ignoring it.

    Attributes:
        name: of the signal that came first; None while none has.
        finished: the last line is printed, so that a further signal may end the process at once.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.finished = False
        self._at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopOnce:
        # Python lets only the main thread have handlers.
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *exc: object) -> None:
        # After a stop the handlers stay: the process ends, and waits for its threads only after this.
        if self.name is None:
            for number, handler in self._before.items():
                # Fine-tuning that was asked to stop leaves a handler for the rest of the burst.
                if signal.getsignal(number) == self._stop:
                    signal.signal(number, handler)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if self.finished:
            os._exit(STATUS)
        now = time.monotonic()
        if self.name is None or now - self._at > PATIENCE:
            self.name = self.name or signal.Signals(number).name
            self._at = now
            raise KeyboardInterrupt
