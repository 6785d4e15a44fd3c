"""Turns: of several processes that need the same rows at once, one computes them and the others wait.

    <root>/claims/<32 hex digits>      the name of the process that computes; its mtime is its last sign of life

A claim spares work and nothing else: no row is wrong or lost without it. So whatever is odd about one (a store that
cannot be written, a process that is gone or gives no sign) ends the waiting, and the work is done.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hftl.regular import read_bounded
from hftl.store.files import (
    FILE_CALLS,
    STALE_SECONDS,
    alive,
    is_mark,
    make_folders,
    process_mark,
    process_of,
    write_atomically,
)

SIGN_SECONDS = 15.0
SILENT_SECONDS = 120.0
"""A process that gave no sign for so long is stopped, hangs, or is on a machine that is gone: nobody waits for it."""
_POLL_SECONDS = 0.2
_LONGEST_MARK = 100


@contextmanager
def turn(path: Path, mode: int, waiting: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other process holds the claim at ``path``, and hold it while the block runs.

    Args:
        path: the claim's file; its name says what is computed.
        mode: the permission bits of the store's folders.
        waiting: called once with the name of the process that is waited for, for a person.
    """
    mark = process_mark()
    if not _acquired(path, mark, mode, waiting):
        yield
        return
    done = threading.Event()
    signs = threading.Thread(target=_renew_claim, args=(path, done), daemon=True)
    signs.start()
    try:
        yield
    finally:
        done.set()
        signs.join()
        with suppress(OSError):
            if _mark_in(path) == mark:  # not that of somebody who took this process for dead
                path.unlink()


def remove_stale_claims(folder: Path) -> None:
    """Remove what processes left that died in their turn."""
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                if time.time() - path.lstat().st_mtime > STALE_SECONDS:
                    path.unlink()


def _acquired(path: Path, mark: str, mode: int, waiting: Callable[[str], None]) -> bool:
    """Whether the claim is ours now; False where there can be none."""
    waited = False
    while True:
        try:
            make_folders(FILE_CALLS, path.parent, mode)
            write_atomically(FILE_CALLS, path, [mark.encode()], mode & 0o666, new=True)
            return True
        except FileExistsError:
            try:
                holder = _holder(path)
            except FileNotFoundError:
                continue  # given back this moment
        except OSError:
            return False
        if holder is None:
            # Two who wait may both do so, and one of them remove the other's new claim: then both work, no harm done.
            try:
                path.unlink(missing_ok=True)
            except OSError:
                return False
        elif not waited:
            waiting(holder)
            waited = True
        else:
            time.sleep(_POLL_SECONDS)


def _holder(path: Path) -> str | None:
    """The live process that holds a claim, for a person; None where it is not held by one.

    Raises:
        FileNotFoundError: the claim is gone.
    """
    try:
        silent = abs(time.time() - path.lstat().st_mtime) > SILENT_SECONDS
        mark = _mark_in(path)
    except FileNotFoundError:
        raise
    except OSError:
        return None
    here = alive(mark)
    if silent or here is False or not is_mark(mark):
        return None
    return f"process {process_of(mark)}{'' if here else ' of another machine'}"


def _mark_in(path: Path) -> str:
    return read_bounded(path, _LONGEST_MARK).decode("ascii", "replace")


def _renew_claim(path: Path, done: threading.Event) -> None:
    while not done.wait(SIGN_SECONDS):
        with suppress(OSError):
            os.utime(path)
