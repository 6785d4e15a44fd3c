"""Regular files: the one door to files that somebody else may have put there.

A folder of data, a model's folder and the cache are shared and copied about, and what stands at a name in them may be
anything. Only regular files are opened, because a FIFO blocks whoever opens it and a device may never end.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


class OddFileError(OSError):
    """What stands at a path is no regular file, or not the one expected: a folder, a pipe, a device, a dead link."""


def open_regular(path: str | Path) -> int:
    """Open a regular file for reading, without ever waiting; returns the descriptor.

    Raises:
        OddFileError: something else stands there.
        OSError: nothing stands there, or it cannot be opened.
    """
    try:
        # Looked at before it is opened, because opening alone does something to some devices.
        _refuse_odd(os.stat(path).st_mode, path)  # noqa: PTH116 - a Path for each of a million files is slow
    except FileNotFoundError:
        if os.path.islink(path):  # noqa: PTH114
            raise OddFileError(errno.ENOENT, "it is a link that leads nowhere", str(path)) from None
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OddFileError(errno.ELOOP, "it is a link that leads back to itself", str(path)) from None
        raise
    # O_NONBLOCK and the second look: another process may have put something else there since the first.
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        _refuse_odd(os.fstat(fd).st_mode, path)
    except OddFileError:
        os.close(fd)
        raise
    return fd


def _refuse_odd(mode: int, path: str | Path) -> None:
    if not stat.S_ISREG(mode):
        raise OddFileError(errno.EINVAL, "it is a folder" if stat.S_ISDIR(mode) else "it is no regular file", str(path))


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a regular file of at most ``most`` bytes.

    Raises:
        OddFileError: something else stands there, or the file is larger.
        OSError: nothing stands there, or it cannot be read.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OddFileError(errno.EFBIG, f"it is larger than {most:,} bytes", str(path))
    return content
