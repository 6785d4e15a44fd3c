"""The one writer of a run's folder: a small file that says which process writes there and that it still does."""

from __future__ import annotations

import json
import os
import socket
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from hftl.errors import UserError
from hftl.lifetime import is_running, started_at
from hftl.store.files import alive, process_mark

WRITER = ".writer-"
SIGN_SECONDS = 15.0
"""How often a writer gives a sign of life."""
GONE_SECONDS = 120.0
"""A writer on another machine that gave no sign for this long is taken for gone."""


class WriterLease:
    """Says that this process writes to ``folder``; given back by `release`, and with the object or the process.

    Two that start at the same moment may both be refused, but never both write: each puts its own file there before
    it looks for others'.

    Raises:
        UserError: another process writes there.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / f"{WRITER}{process_mark()}"
        own = {"pid": os.getpid(), "started": started_at(os.getpid()), "host": socket.gethostname()}
        path.write_text(json.dumps(own), encoding="utf-8")
        ended = threading.Event()
        self.release = weakref.finalize(self, _give_back, path, ended, os.getpid())
        others = [other for other in sorted(folder.glob(f"{WRITER}*")) if other != path]
        for other in others:
            if _still_writes(other, path):
                self.release()
                raise UserError(_who(folder, other))
            other.unlink(missing_ok=True)
        # Not this object's own method: the thread would keep the object, and with it the lease.
        threading.Thread(target=_give_signs, args=(path, ended), name="writer-lease", daemon=True).start()


def is_lease(path: Path) -> bool:
    """Whether a file in a run's folder only says who writes there."""
    return path.name.startswith(WRITER)


def _still_writes(lease: Path, mine: Path) -> bool:
    here = alive(lease.name.removeprefix(WRITER))
    if here is None:
        # Ages are told by the file system's own clock: two machines' clocks may differ by more than that.
        try:
            return mine.stat().st_mtime - lease.stat().st_mtime < GONE_SECONDS
        except OSError:  # it was given back meanwhile
            return False
    described = _writer_of(lease)
    return here and is_running(int(described.get("pid", 0)), described.get("started"))


def _writer_of(lease: Path) -> dict[str, Any]:
    # A process that was killed in between leaves an empty file; its name still tells the process.
    described: dict[str, Any] = {"pid": lease.name.split("-")[-2]}
    with suppress(OSError, ValueError):
        described |= json.loads(lease.read_text(encoding="utf-8"))
    return described


def _who(folder: Path, lease: Path) -> str:
    described = _writer_of(lease)
    host = described.get("host", "another machine")
    elsewhere = "" if alive(lease.name.removeprefix(WRITER)) else "; if it is gone, try again in two minutes"
    return (
        f"process {described['pid']} on {host} writes to {folder}: wait until it ends, stop it, or give another folder "
        f"with --out{elsewhere}"
    )


def _give_signs(path: Path, ended: threading.Event) -> None:
    while not ended.wait(SIGN_SECONDS):
        with suppress(OSError):
            os.utime(path)


def _give_back(path: Path, ended: threading.Event, pid: int) -> None:
    ended.set()
    if os.getpid() == pid:  # a forked child inherits the object, not the lease
        with suppress(OSError):
            path.unlink()
