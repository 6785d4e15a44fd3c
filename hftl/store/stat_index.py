"""Remembers the digests of files that did not change, the way git's index does.

A file is taken as unchanged while its size, mtime, ctime and inode are. That is safe only for files that were
already old when they were read: one that is written twice within a tick of the clock looks the same
afterwards. Such files (git calls them racily clean) are not remembered until they were at rest for `RACY_NS`.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
import xxhash

from hftl.errors import StoreError
from hftl.regular import open_regular
from hftl.store.digests import FilePart, digest_bytes, read_digest, stack_digests
from hftl.store.files import FILE_CALLS, make_folders, mode_of, remove_orphans, write_atomically
from hftl.store.lookup import RowIndex
from hftl.store.shard import Digests

Place: TypeAlias = "str | FilePart"
"""A file, or a part of one."""
FileRow: TypeAlias = "str | os.PathLike[str] | FilePart | bytes"

RACY_NS = 2_000_000_000
"""Longer than the mtime tick of any file system in use (FAT has 2 s)."""
FORGET_DAYS = 90
_DAY_NS = 86_400_000_000_000
_SAVE_SECONDS = 60.0
_CHUNK = 4096
_THREADS = 8
_TRIES = 3
_U64 = (1 << 64) - 1


# Arrays, not objects: an index of a million files is loaded and searched at the start of every run.
class _Entries(NamedTuple):
    """n files: digest of the path, size/mtime/ctime/inode, digest of the content, day last seen."""

    path: Digests  # (n, 16)
    stat: npt.NDArray[np.uint64]  # (n, 4)
    digest: Digests  # (n, 16)
    day: npt.NDArray[np.int64]  # (n,)

    def checksum(self) -> str:
        state = xxhash.xxh3_128()
        for part in self:
            state.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        return str(state.hexdigest())

    def take(self, which: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> _Entries:
        return _Entries(self.path[which], self.stat[which], self.digest[which], self.day[which])

    def plus(self, other: _Entries) -> _Entries:
        """Both; where they speak of one file, ``other`` is believed."""
        index = RowIndex()
        index.add(other.path, 0)
        mine = self.take(index.find(self.path)[0] < 0)
        return _Entries(
            np.concatenate([mine.path, other.path]),
            np.concatenate([mine.stat, other.stat]),
            np.concatenate([mine.digest, other.digest]),
            np.concatenate([mine.day, other.day]),
        )


_NONE = _Entries(
    np.empty((0, 16), np.uint8),
    np.empty((0, 4), np.uint64),
    np.empty((0, 16), np.uint8),
    np.empty(0, np.int64),
)


class StatIndex:
    """Digests of files, remembered in one file that is replaced atomically.

    Several processes may use one index: the last to write keeps what the others wrote. A damaged or
    unwritable index costs time, never correctness.

    Args:
        path: the index's file, usually ``cache_root() / "digests" / "files.safetensors"``.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def digests(self, paths: Sequence[Place]) -> Digests:
        """The content digests of n files or parts of files, reading only those that are new or changed; uint8 (n, 16).

        Raises:
            StoreError: a file cannot be read.
            DataError: a file changed since a part was found in it.
        """
        now = _now_ns()
        entries = self._load()
        keys = _path_keys(paths)
        stats = _stats(paths)
        known = RowIndex()
        known.add(entries.path, 0)
        which, row = known.find(keys)
        fresh = which >= 0
        fresh[fresh] = (entries.stat[row[fresh]] == stats[fresh]).all(axis=1)
        digests = np.zeros((len(paths), 16), np.uint8)
        digests[fresh] = entries.digest[row[fresh]]
        today = now // _DAY_NS
        if len(todo := np.flatnonzero(~fresh)):
            self._read(paths, keys, stats, todo, now, digests)
        # Written again only for the dates, and seldom: a warm run should not write at all.
        elif (entries.day[row] < today - FORGET_DAYS // 4).any():
            self._save(_Entries(keys, stats, digests, np.full(len(keys), today)))
        return digests

    def _read(
        self,
        paths: Sequence[Place],
        keys: Digests,
        stats: npt.NDArray[np.uint64],
        todo: npt.NDArray[np.int64],
        now: int,
        digests: Digests,
    ) -> None:
        """Digest and remember the files ``todo``, in chunks, so that an interruption costs little."""
        pending: list[npt.NDArray[np.int64]] = []
        saved = time.monotonic()
        with ThreadPoolExecutor(_THREADS) as pool:
            for i in range(0, len(todo), _CHUNK):
                # Threads, because what takes the time (reading, BLAKE2) leaves Python's lock free.
                some = todo[i : i + _CHUNK]
                read = list(pool.map(_read_at_rest, [paths[j] for j in some], stats[some], itertools.repeat(now)))
                digests[some] = np.frombuffer(b"".join(digest for digest, _ in read), np.uint8).reshape(-1, 16)
                pending.append(some[[at_rest for _, at_rest in read]])
                if time.monotonic() - saved > _SAVE_SECONDS or i + _CHUNK >= len(todo):
                    rest = np.concatenate(pending)
                    if len(rest):
                        day = np.full(len(rest), now // _DAY_NS)
                        self._save(_Entries(keys[rest], stats[rest], digests[rest], day))
                    pending, saved = [], time.monotonic()

    def _load(self) -> _Entries:
        """What is remembered; nothing where the file is missing or damaged."""
        with suppress(OSError, safetensors.SafetensorError, KeyError, ValueError, TypeError, AttributeError):
            os.close(open_regular(self.path))  # safetensors itself would wait for a FIFO's other end
            with safetensors.safe_open(self.path, "numpy") as file:
                stated = (file.metadata() or {}).get("checksum")
                entries = _Entries(*(file.get_tensor(name) for name in _Entries._fields))
            n = len(entries.day)
            shapes = [part.shape for part in entries]
            if entries.checksum() == stated and shapes == [(n, 16), (n, 4), (n, 16), (n,)]:
                return entries
        return _NONE

    def _save(self, new: _Entries) -> None:
        """Add ``new`` to what the file says by now, not to what it said when this process began: others write too."""
        entries = self._load()
        entries = entries.take(entries.day >= int(new.day.max()) - FORGET_DAYS).plus(new)
        data = safetensors.numpy.save(entries._asdict(), {"checksum": entries.checksum()})
        with suppress(OSError):
            mode = mode_of(self.path.parent.parent)
            make_folders(FILE_CALLS, self.path.parent, mode)
            remove_orphans(self.path.parent)
            write_atomically(FILE_CALLS, self.path, [data], mode & 0o666)


def digest_files(rows: Sequence[FileRow], index: StatIndex) -> Digests:
    """Digest the encoded content of n files, such as images; none is decoded.

    Args:
        rows: each a path, a part of a file, or the file's bytes; all give the same digest.
        index: remembers the digests of unchanged files.

    Returns:
        uint8 (n, 16).

    Raises:
        StoreError: a file cannot be read.
        DataError: a file changed since a part was found in it.
    """
    digests: list[bytes | None] = [digest_bytes(row) if isinstance(row, bytes) else None for row in rows]
    paths: dict[int, Place] = {
        i: row if isinstance(row, FilePart) else os.fspath(row)
        for i, row in enumerate(rows)
        if not isinstance(row, bytes)
    }
    for i, digest in zip(paths, index.digests(list(paths.values())), strict=True):
        digests[i] = digest.tobytes()
    return stack_digests([digest for digest in digests if digest is not None])


def _now_ns() -> int:
    return time.time_ns()


def _path_keys(paths: Sequence[Place]) -> Digests:
    blake2b = hashlib.blake2b
    encoded = (os.path.abspath(_written(path)).encode("utf-8", "surrogateescape") for path in paths)  # noqa: PTH100
    keys = b"".join([blake2b(path, digest_size=16).digest() for path in encoded])
    return np.frombuffer(keys, np.uint8).reshape(-1, 16)


def _written(place: Place) -> str:
    # No path has a null character, so no file is taken for a part of another.
    return f"{place.path}\0{place.offset}\0{place.size}" if isinstance(place, FilePart) else place


def _stats(places: Sequence[Place]) -> npt.NDArray[np.uint64]:
    # Of all parts of a file it is asked once.
    parts = {(place.path, place.state): place for place in places if isinstance(place, FilePart)}
    known = {file: _status_of(part) for file, part in parts.items()}
    return np.array(
        [known[place.path, place.state] if isinstance(place, FilePart) else _status_of(place) for place in places],
        np.uint64,
    ).reshape(-1, 4)


def _status_of(place: Place) -> tuple[int, int, int, int]:
    path = place.path if isinstance(place, FilePart) else place
    try:
        stat = os.stat(path)  # noqa: PTH116 - a Path for each of a million files is slow
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}; check that the file is there") from error
    if isinstance(place, FilePart):
        place.refuse_changed(stat)
    return stat.st_size, stat.st_mtime_ns & _U64, stat.st_ctime_ns & _U64, stat.st_ino & _U64


def _read_at_rest(path: Place, stat: npt.NDArray[np.uint64], now: int) -> tuple[bytes, bool]:
    """Digest a file; also says whether ``stat``, taken after ``now``, will notice every later change."""
    before = tuple(stat.tolist())
    for _ in range(_TRIES):
        digest = read_digest(path)
        after = _status_of(path)
        if after == before:  # the bytes read are those of one state of the file
            return digest, max(before[1], before[2]) < now - RACY_NS
        before, now = after, 0
    return digest, False
