"""Who has a space open: one small file for each process, so that `gc` leaves alone what is in use."""

from __future__ import annotations

import os
import time
import weakref
from contextlib import suppress
from pathlib import Path

from hftl.store.files import FILE_CALLS, alive, is_mark, make_folders, process_mark, touch_file

LEASE_SECONDS = 24 * 3600.0
"""A process of another host that gave no sign for this long is taken for gone."""


class Lease:
    """Says that this process uses the space at ``space``; given back when the object or the process ends.

    A store that cannot be written is used without a lease.
    """

    def __init__(self, space: Path, mode: int) -> None:
        self._path = space / "leases" / process_mark()
        with suppress(OSError):
            make_folders(FILE_CALLS, self._path.parent, mode)
            touch_file(self._path, mode & 0o666)
        weakref.finalize(self, _release, self._path, os.getpid())

    def renew(self) -> None:
        """Give a sign of life."""
        with suppress(OSError):
            os.utime(self._path)


def in_use(space: Path) -> bool:
    """Whether a live process has ``space`` open."""
    return bool(live_leases(space))


def live_leases(space: Path) -> list[Path]:
    """The leases of live processes; those of dead ones are removed."""
    leases: list[Path] = []
    with suppress(OSError):
        # Whatever else lies there (a file manager's, a sync tool's) holds nothing, and is not ours to remove.
        leases = [path for path in (space / "leases").iterdir() if is_mark(path.name)]
    return [path for path in leases if _holds(path)]


def _holds(path: Path) -> bool:
    here = alive(path.name)
    with suppress(OSError):
        # Either way: a lease from the far future, by a clock that was wrong, must not hold a space for ever.
        if here or (here is None and abs(time.time() - path.lstat().st_mtime) < LEASE_SECONDS):
            return True
        path.unlink()
    return False


def _release(path: Path, pid: int) -> None:
    if os.getpid() == pid:  # a forked child inherits the object, not the lease
        with suppress(OSError):
            path.unlink()
