"""The handful of file operations behind every commit, and the one order in which they are used.

What the store promises after a crash depends on a few calls (write, fsync, rename, fsync of the folder). They
stand behind one small class so that a test can make each of them fail, or forget what was not yet synced.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias, TypeVar

from xxhash import xxh3_128

from hftl.errors import StoreError
from hftl.lifetime import is_known

Buffer: TypeAlias = "bytes | memoryview"
T = TypeVar("T")

STALE_SECONDS = 3600.0
"""A temporary file untouched for this long has no writer left, whichever host it came from."""

_TEMP = re.compile(r"\.tmp-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}")
_MARK = re.compile(r"([0-9a-f]{8})-(\d+)-[0-9a-f]{8}")
_INTERRUPTED_TRIES = 16
_PIECE = 1 << 20


class FileCalls:
    """The operating system's file calls that a commit uses."""

    def open(self, path: Path, mode: int | None) -> int:
        """Create ``path``, which must not exist, for writing; returns the descriptor.

        Args:
            path: the file.
            mode: its permission bits, whatever the umask; None for those that new files have.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        fd = os.open(path, flags, 0o666 if mode is None else mode)
        if mode is None:
            return fd
        with suppress(OSError):  # some network mounts have no modes
            os.chmod(path, mode)  # noqa: PTH101 - exact whatever the umask, so that a shared store stays shared
        return fd

    def write(self, fd: int, data: Buffer) -> int:
        """Write some of ``data``; returns the number of bytes taken."""
        return os.write(fd, data)

    def fsync(self, fd: int) -> None:
        """Bring a file's content to the disk."""
        os.fsync(fd)

    def close(self, fd: int) -> None:
        """Close the descriptor; a network file system may report a late write error here."""
        os.close(fd)

    def replace(self, source: Path, target: Path) -> None:
        """Rename atomically, over whatever stands at ``target``."""
        source.replace(target)

    def place(self, source: Path, target: Path) -> None:
        """Rename atomically, unless ``target`` exists (`FileExistsError`)."""
        try:
            target.hardlink_to(source)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if target.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
            source.replace(target)
        else:
            source.unlink()

    def fsync_folder(self, path: Path) -> None:
        """Bring a folder's entries (a rename, a new file) to the disk."""
        try:
            fd = os.open(path, os.O_RDONLY)
        except PermissionError:  # one may create in a folder that one may not read; there is no other way to sync it
            return
        try:
            os.fsync(fd)
        except OSError as error:
            # Mounted buckets and some network file systems have no such call, and no cache it would flush.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
                raise
        finally:
            os.close(fd)

    def make_folder(self, path: Path, mode: int) -> None:
        """Create one folder, whose parent exists; an existing one is left as it is."""
        try:
            path.mkdir(mode=mode)
        except FileExistsError:
            return
        with suppress(OSError):
            path.chmod(mode)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        path.unlink()


FILE_CALLS = FileCalls()


def write_atomically(
    files: FileCalls, path: Path, parts: Iterable[Buffer], mode: int | None, *, new: bool = False
) -> None:
    """Make ``path`` appear with all of ``parts`` in it, on the disk, or not at all.

    Args:
        files: the file calls to use.
        path: where it shall appear; what stands there is replaced.
        parts: the file's content.
        mode: the file's permission bits; None for those that new files have.
        new: refuse with `FileExistsError` where ``path`` exists.

    Raises:
        OSError: the first error of any step; the temporary file is removed.
    """
    # In the same folder: a rename is atomic within one file system only. The name says whose it is, for the clean-up.
    temp = path.with_name(f".tmp-{process_mark()}")
    try:
        fd = uninterrupted(lambda: files.open(temp, mode))
        try:
            for part in parts:
                _write_all(files, fd, memoryview(part).cast("B"))
            # Before the rename: a name must never reach the disk ahead of the bytes it stands for.
            uninterrupted(lambda: files.fsync(fd))
        finally:
            files.close(fd)
        uninterrupted(lambda: files.place(temp, path) if new else files.replace(temp, path))
        # The rename itself is an entry of the folder, which is lost in a crash until the folder is on the disk.
        uninterrupted(lambda: files.fsync_folder(path.parent))
    except BaseException:  # an interrupt must not leave the file either
        with suppress(OSError):
            files.unlink(temp)
        raise


def write_file(path: Path, content: Buffer) -> None:
    """Make a file outside the store appear with its content, on the disk, or not at all; what stands there is replaced.

    Raises:
        OSError: it cannot be written.
    """
    write_atomically(FILE_CALLS, path, [content], None)


def bring_to_disk(path: Path) -> None:
    """Bring a file that is written to the disk, before a name stands for it.

    Raises:
        OSError: it cannot be done.
    """
    fd = os.open(path, os.O_RDWR)
    try:
        uninterrupted(lambda: FILE_CALLS.fsync(fd))
    finally:
        os.close(fd)


def size_and_checksum(path: Path) -> tuple[int, str]:
    """Bytes of a file and their xxh3_128 in hex digits, read piece by piece.

    Raises:
        OSError: it cannot be read.
    """
    checksum = xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            checksum.update(piece)
        return file.tell(), checksum.hexdigest()


def _write_all(files: FileCalls, fd: int, data: memoryview) -> None:
    at = 0
    while at < len(data):  # a write may take less than it was given: on a signal, or near the end of the disk
        at += uninterrupted(functools.partial(files.write, fd, data[at:]))


def uninterrupted(call: Callable[[], T]) -> T:
    """Repeat a call that a signal interrupted: Python itself does so for most calls, not for all (rename)."""
    for _ in range(_INTERRUPTED_TRIES - 1):
        with suppress(InterruptedError):
            return call()
    return call()


def make_folders(files: FileCalls, path: Path, mode: int, levels: int = 1) -> None:
    """Create ``path`` and its parents with ``mode``, and bring the last ``levels`` of them to the disk.

    Also those that exist: whoever created them may have been killed before it could do so.
    """
    if levels > 1 or not path.parent.is_dir():
        make_folders(files, path.parent, mode, levels - 1)
    uninterrupted(lambda: files.make_folder(path, mode))
    uninterrupted(lambda: files.fsync_folder(path.parent))


@contextmanager
def store_errors(action: str, path: Path) -> Iterator[None]:
    """Turn an ``OSError`` into the one line that a user can act on."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            advice = "free some space (hftl cache gc) and run again, nothing that was stored is lost"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = "set HFTL_CACHE to a folder that you can write to"
        elif error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP):
            advice = (
                "something else stands where hftl keeps its files: move it away, or set HFTL_CACHE to another folder"
            )
        else:
            advice = "check the disk and run again, nothing that was stored is lost"
        reason = error.strerror or type(error).__name__
        raise StoreError(f"cannot {action} {path}: {reason}; {advice}") from error


def process_mark() -> str:
    """A name that no other process, now or later, gives: host, process and a random part."""
    return f"{host_tag()}-{os.getpid()}-{secrets.token_hex(4)}"


@functools.cache
def host_tag() -> str:
    """Eight hex digits for the set of processes whose ids can be told apart.

    Containers may share a host name and a cache but not their process ids; a reboot starts the ids afresh.
    """
    parts = [socket.gethostname().encode()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_bytes())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid").encode())  # noqa: PTH115 - not a path
    return hashlib.blake2b(b"\0".join(parts), digest_size=4).hexdigest()


def is_mark(name: str) -> bool:
    """Whether a name is one that `process_mark` gives."""
    return _MARK.fullmatch(name) is not None


def process_of(mark: str) -> int:
    """The id of the process that gave the name ``mark``, on its own machine."""
    return int(mark.split("-")[1])


def alive(mark: str) -> bool | None:
    """Whether the process that gave the name ``mark`` (`process_mark`) runs; None for one of another host."""
    match = _MARK.fullmatch(mark)
    if match is None or match[1] != host_tag() or os.name == "nt":
        return None
    return is_known(int(match[2]))


def mode_of(root: Path) -> int:
    """The permission bits for everything in the cache folder ``root``: its own, private (0700) while it is new.

    The owner's bits are always among them: who may not read what it wrote would compute every row again.
    """
    try:
        return stat.S_IMODE(root.stat().st_mode) | stat.S_IRWXU
    except OSError:
        return stat.S_IRWXU


def touch_file(path: Path, mode: int) -> None:
    """Set the mtime of ``path`` to now, create it if need be; nothing happens where that is not allowed."""
    with suppress(OSError):
        new = not path.exists()
        path.touch()
        if new:
            path.chmod(mode)


def set_aside(path: Path, files: FileCalls, mode: int) -> None:
    """Move a damaged file of a space to its quarantine; nothing happens where that is not allowed."""
    space = path.parent.parent if path.parent.name == "shards" else path.parent
    with suppress(OSError):
        files.make_folder(space / "quarantine", mode)
        path.replace(space / "quarantine" / f"{path.name}.{process_mark()}")


def remove_tree(path: Path) -> None:
    """Remove a folder with all that is in it, whatever its folders' modes; of a link only the link.

    Raises:
        OSError: something in it cannot be removed.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    _open_up(path)
    for folder, names, _ in os.walk(path):
        for name in names:
            _open_up(Path(folder, name))  # before os.walk goes there: what is in a closed folder is not seen
    shutil.rmtree(path)


def _open_up(folder: Path) -> None:
    if not folder.is_symlink() and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        with suppress(OSError):
            folder.chmod(stat.S_IRWXU)


def remove_orphans(folder: Path, files: FileCalls = FILE_CALLS) -> int:
    """Remove the temporary files that dead writers left in ``folder``; returns how many.

    A file of a live writer stays: those of a process of this host that is gone go, and those an hour old.
    """
    removed = 0
    with suppress(OSError):
        for path in folder.glob(".tmp-*"):
            with suppress(OSError):
                if not _TEMP.fullmatch(path.name):
                    continue
                old = time.time() - path.stat().st_mtime > STALE_SECONDS
                if old or alive(path.name.removeprefix(".tmp-")) is False:
                    files.unlink(path)
                    removed += 1
    return removed
