"""One feature space: a folder with `space.json` and immutable, content-addressed shards.

    space.json                         who the space is, for people and programs; written once
    shards/<xxh3-128>.safetensors      rows; the name is the checksum of the file's bytes
    quarantine/                        shards whose bytes were not what their name says
    leases/                            one file for each process that has the space open
    last_used                          empty; its mtime is the time of the last use

No lock is needed: a shard appears whole, by rename, and never changes. At worst two writers
store a row twice.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hftl.errors import StoreError
from hftl.regular import OddFileError
from hftl.store.description import Description, same_record
from hftl.store.files import (
    FileCalls,
    make_folders,
    remove_orphans,
    set_aside,
    store_errors,
    touch_file,
    uninterrupted,
    write_atomically,
)
from hftl.store.gather import join_rows, rows_from_shards, split_rows, take_rows
from hftl.store.identity import JSON, space_id
from hftl.store.lease import Lease, live_leases
from hftl.store.lookup import RowIndex
from hftl.store.shard import (
    SUFFIX,
    BadShardError,
    Column,
    ColumnSpec,
    Digests,
    Shard,
    decode,
    encode,
    file_name,
    finite_rows,
    open_shard,
)
from hftl.store.values import Ragged, Values, to_storage, to_torch

if TYPE_CHECKING:
    import torch

_TOUCH_SECONDS = 60.0
_RELISTS = 20


class _RowsError(StoreError):
    """Some rows are the reason.

    Attributes:
        rows: their positions in what was given, int64.
    """

    def __init__(self, message: str, rows: npt.NDArray[np.int64]) -> None:
        super().__init__(message)
        self.rows = rows


class NonFiniteError(_RowsError):
    """Features contain NaN or Inf; nothing was stored. ``rows`` are positions in the commit."""


class MissingRowsError(_RowsError):
    """Rows that were asked for are not (or no longer) in the store. ``rows`` are positions in the request."""


class ShardGoneError(Exception):
    """A shard that was listed is gone, or ``damaged`` and set aside: list again."""

    def __init__(self, name: str, *, damaged: bool) -> None:
        super().__init__(name)
        self.damaged = damaged


class Space:
    """The stored rows of one feature space; open it with `FeatureStore.space`.

    Attributes:
        path: the space's folder, which exists once `create` was called.
        id: 32 hex digits, see `hftl.store.identity.space_id`.
        identity: everything that can change a number in the space.
        info: what `create` recorded, None while the space is new.
        columns: the columns that `create` recorded, empty while the space is new.
        lenders: foreign spaces of the same identity that rows are read from which this one lacks; nothing of theirs is
            ever written here.
        passed_over: folders of the same space in formats that this hftl does not read; they stay as they are.
        only_read: whether damaged shards stay where they are.
    """

    def __init__(self, path: Path, identity: Mapping[str, JSON], label: str, files: FileCalls, mode: int) -> None:
        self.path = path
        self.id = space_id(identity)
        self.identity = dict(identity)
        self.label = label
        self.info: dict[str, Any] | None = None
        self.columns: dict[str, ColumnSpec] = {}
        self.lenders: list[Space] = []
        self.passed_over: list[Path] = []
        self.only_read = False
        self._files = files
        self._mode = mode
        # Threads share the index; the lock is reentrant because a read that misses refreshes it.
        self._lock = threading.RLock()
        self._index = RowIndex()
        self._numbers: dict[str, int] = {}  # of the shards in the index
        self._names: list[str] = []  # by number, those gone included
        # Checked by this process: inode, size, mtime. A file that was replaced since is checked again.
        self._good: dict[str, tuple[int, int, int]] = {}
        self._bad: dict[str, tuple[int, int, int] | None] = {}  # where they could not be set aside
        self._touched = float("-inf")
        self._lease: Lease | None = None
        self._settled = False  # space.json is known to be on the disk
        self._load()

    # -- what the space is ---------------------------------------------------------------------------------

    def create(self, info: Mapping[str, JSON], columns: Mapping[str, ColumnSpec]) -> None:
        """Record what the space holds; again with the same content is fine, from any process.

        Args:
            info: whatever a reader of the features needs to know; JSON.
            columns: the columns that every commit brings.

        Raises:
            StoreError: the space exists with other content, or cannot be written.
        """
        for name in columns:
            if name == "digests" or name.endswith(".lengths"):
                raise ValueError(f"{name!r} cannot be a column's name")
        if self.info is None:
            self._load()
        if self.info is None:
            self._write_description(info, columns)
            self._load()
        if self.info is None:
            raise StoreError(
                f"{self.path / 'space.json'} is damaged and cannot be moved to quarantine: "
                "remove the space with hftl cache clear, or set HFTL_CACHE to another folder"
            )
        if not same_record(self.info, self.columns, info, columns):
            raise StoreError(
                f"{self.path} was created with other content than this program's; "
                "remove it with hftl cache clear and run again"
            )
        self.touch()
        self.remove_orphans()

    def _write_description(self, info: Mapping[str, JSON], columns: Mapping[str, ColumnSpec]) -> None:
        text = Description(self.identity, self.label, dict(info), dict(columns)).encode()
        with store_errors("write", self.path):
            # root, features, space and shards: on the disk before the description says that they are there
            make_folders(self._files, self._shards, self._mode, levels=4)
            with suppress(FileExistsError):  # another process was first; the caller compares
                write_atomically(self._files, self.path / "space.json", [text], self._mode & 0o666, new=True)

    def _load(self) -> None:
        path = self.path / "space.json"
        try:
            with store_errors("read", path):
                description = Description.load(path)
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                return
            raise
        if description is None:
            set_aside(path, self._files, self._mode)
            return
        if description.id != self.id:
            raise StoreError(f"{path} describes another space; move it away and run again")
        self.info = description.info
        self.columns = description.columns

    # -- rows ----------------------------------------------------------------------------------------------

    def known(self, digests: Digests) -> npt.NDArray[np.bool_]:
        """Which of n rows, uint8 (n, 16), are stored now, here or with a lender; bool (n,).

        Sees what other processes committed.
        """
        stored = self.owned(digests)
        for lender in self.lenders:
            stored |= lender.known(digests)
        return stored

    def owned(self, digests: Digests) -> npt.NDArray[np.bool_]:
        """`known` without lenders."""
        digests = _as_digests(digests)
        if self.info is None:
            self._load()
        with self._lock:
            self._refresh()
            stored: npt.NDArray[np.bool_] = self._index.find(digests)[0] >= 0
        return stored

    def commit(self, digests: Digests, columns: Mapping[str, Values], names: Sequence[str] | None = None) -> None:
        """Store n rows for good: when this returns, they survive a crash of the machine.

        Args:
            digests: uint8 (n, 16).
            columns: every column of the space, n rows each; torch tensors (or numpy arrays) and `Ragged`.
            names: the rows' names for a person, used in errors.

        Raises:
            NonFiniteError: a row has NaN or Inf; nothing is stored.
            StoreError: the disk is full, or cannot be written; what was committed before stays.
        """
        digests = _as_digests(digests)
        if self.info is None:
            raise StoreError(f"{self.path} is not created yet")
        shard = Shard(digests, to_storage(columns, self.columns, len(digests), self.path))
        # Before the first byte is written: a shard with one bad row would be served for ever.
        self._refuse_non_finite(shard, names)
        for part in split_rows(shard, self.columns):
            self.write_shard(part)
        self.touch()

    def gather(self, digests: Digests, only: Sequence[str] | None = None) -> dict[str, torch.Tensor | Ragged]:
        """Read n rows in the order asked; a digest may be asked for more than once.

        Args:
            digests: uint8 (n, 16).
            only: the columns to read; all of them where it is None.

        Returns:
            For each column a tensor (n, *shape), or `Ragged`, on the CPU.

        Raises:
            MissingRowsError: rows are not stored, or their shard turned out to be damaged and was set aside.
        """
        arrays = self.gather_arrays(digests, only)
        return {name: to_torch(column, self.columns[name]) for name, column in arrays.items()}

    def gather_arrays(self, digests: Digests, only: Sequence[str] | None = None) -> dict[str, Column]:
        """`gather` without torch: numpy arrays in their storage types (bfloat16 as its bits, uint16)."""
        digests = _as_digests(digests)
        if self.lenders and not (owned := self.owned(digests)).all():
            return self._gather_borrowed(digests, owned, only)
        return self._gather_own(digests, only)

    def order(self, digests: Digests) -> npt.NDArray[np.int64]:
        """The numbers of n rows in the order in which they lie here, int64 (n,), those of lenders first.

        Whoever reads many rows a part at a time reads each shard once, if the parts are cut from this.
        """
        with self._lock:
            self._refresh()
            shard, row = self._index.find(_as_digests(digests))
        return np.lexsort((row, shard))

    def _gather_own(self, digests: Digests, only: Sequence[str] | None) -> dict[str, Column]:
        """Rows that this space has itself."""
        if self.info is None:
            self._load()
        self.touch()
        columns = self.columns if only is None else {name: self.columns[name] for name in only}
        with self._lock:
            # Another process may merge or clear shards while they are read: their rows are looked up again then.
            for _ in range(_RELISTS):
                shard, row = self._find(digests)
                try:
                    return rows_from_shards(self._read_numbered, shard, row, columns)
                except ShardGoneError:
                    self._refresh()
        raise StoreError(f"{self.path} keeps changing while it is read; run again when nothing else cleans it up")

    def _gather_borrowed(
        self, digests: Digests, owned: npt.NDArray[np.bool_], only: Sequence[str] | None
    ) -> dict[str, Column]:
        """Rows of which this space has those that are ``owned``, and lenders the others, put together in order."""
        parts, places, left = [], [], np.arange(len(digests))
        for space in (self, *self.lenders):
            has = owned[left] if space is self else space.known(digests[left])
            chosen, left = left[has], left[~has]
            if len(chosen):
                asked = digests[chosen]
                rows = space._gather_own(asked, only) if space is self else space.gather_arrays(asked, only)
                parts.append(Shard(asked, rows))
                places.append(chosen)
        if len(left):
            raise MissingRowsError(
                f"{len(left)} of {len(digests)} rows are neither in {self.path} nor in {self.lenders[0].path}; run "
                "again to compute them",
                left,
            )
        return take_rows(join_rows(parts), np.argsort(np.concatenate(places))).columns

    def _read_numbered(self, number: int) -> Shard:
        return self.read_shard(self._names[number])

    def _find(self, digests: Digests) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        shard, row = self._index.find(digests)
        if (shard < 0).any() or not self._names:
            self._refresh()
            shard, row = self._index.find(digests)
        missing = np.flatnonzero(shard < 0)
        if len(missing):
            raise MissingRowsError(
                f"{len(missing)} of {len(digests)} rows are not in {self.path}; run again to compute them",
                missing,
            )
        return shard, row

    # -- shards --------------------------------------------------------------------------------------------

    @property
    def _shards(self) -> Path:
        return self.path / "shards"

    def shard_sizes(self) -> dict[str, int]:
        """The file names of the shards that stand in the folder now, and their bytes."""
        sizes = {}
        for name in self._list():
            path = self._shards / name
            try:
                sizes[name] = path.stat().st_size
            except OSError:
                # A link that leads nowhere is damage to be set aside; what is gone altogether is no shard any more.
                if path.is_symlink():
                    sizes[name] = 0
        return sizes

    def _list(self) -> set[str]:
        """The shards that stand in the folder now.

        A folder that is read while a merged shard appears and its sources go may show neither: it is read
        until it shows the same twice.
        """
        last: set[str] | None = None
        for _ in range(_RELISTS):
            try:
                names = {name for name in os.listdir(self._shards) if _is_shard(name)}  # noqa: PTH208 - names
            except (FileNotFoundError, NotADirectoryError):
                return set()
            except OSError:
                with store_errors("read", self._shards):
                    raise
            if names == last:
                break
            last = names
        return names

    def write_shard(self, shard: Shard) -> str:
        """Write one shard, durably; returns its file name."""
        parts = encode(shard, self.columns, self.id, nonce=secrets.token_hex(16))
        name = file_name(parts)
        path = self._shards / name
        with store_errors("write features to", self._shards):
            try:
                self._settle()
                write_atomically(self._files, path, parts, self._mode & 0o666)
            except FileNotFoundError:
                # Somebody cleared the space, or the file that was being written, under us: start over once.
                self._write_description(self.info or {}, self.columns)
                write_atomically(self._files, path, parts, self._mode & 0o666)
        with self._lock:
            self._add(name, shard.digests)
        return name

    def _settle(self) -> None:
        """Bring space.json to the disk: whoever wrote it may have been killed before it could do so."""
        if not self._settled:
            uninterrupted(lambda: self._files.fsync_folder(self.path))
            self._settled = True

    def remove_shard(self, name: str) -> None:
        """Remove one shard, whose rows stand in another."""
        with store_errors("remove", self._shards / name), suppress(FileNotFoundError):
            self._files.unlink(self._shards / name)
        self._forget(name)

    def read_shard(self, name: str) -> Shard:
        """Map one shard; its checksum is verified when this process opens it for the first time.

        Raises:
            ShardGoneError: it is gone, or bad and now set aside; the index has forgotten it.
        """
        path = self._shards / name
        signature = _signature(path)
        try:
            with open_shard(path) as file:
                signature = file.signature
                try:
                    # Once a process: a checksum at each read would cost more than the read.
                    if self._good.get(name) != signature:
                        file.check(name)
                    shard = decode(file.map(), self.columns, self.id)
                except BadShardError:
                    shard = None
        except OddFileError:
            shard = None
        except FileNotFoundError:
            self._forget(name)
            raise ShardGoneError(name, damaged=False) from None
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}; check its permissions") from error
        if shard is None:
            self._forget(name)
            # In a store that cannot be written the bad shard stays: remembered, it is not read at each refresh.
            self._bad[name] = signature
            if not self.only_read:
                set_aside(path, self._files, self._mode)
            raise ShardGoneError(name, damaged=True)
        assert signature is not None  # it was opened
        self._good[name] = signature
        return shard

    def _refresh(self) -> None:
        """Bring the index up to what stands in the folder."""
        if self.info is None:
            return
        for _ in range(_RELISTS):
            names = self._list()
            for name in self._numbers.keys() - names:
                self._forget(name)
            taken = [self._take_in(name) for name in sorted(names - self._numbers.keys())]
            if all(taken):
                return

    def _take_in(self, name: str) -> bool:
        """Add a listed shard to the index; False where it went meanwhile, so that its rows are elsewhere now."""
        if name in self._bad and self._bad[name] == _signature(self._shards / name):
            return True
        try:
            self._add(name, self.read_shard(name).digests)
        except ShardGoneError as error:
            return error.damaged
        return True

    def _add(self, name: str, digests: Digests) -> None:
        if name not in self._numbers:
            self._numbers[name] = len(self._names)
            self._names.append(name)
            self._index.add(digests, self._numbers[name])

    def _forget(self, name: str) -> None:
        number = self._numbers.pop(name, None)
        self._good.pop(name, None)
        if number is not None:
            self._index.drop([number])

    def remove_orphans(self) -> int:
        """Remove the temporary files and leases of dead processes; returns the number of files."""
        live_leases(self.path)
        return remove_orphans(self.path, self._files) + remove_orphans(self._shards, self._files)

    def touch(self) -> None:
        """Note that the space is in use; a store that cannot be written is used without a note."""
        # Not at every read: a touch is a write, and `gc` counts in days.
        if self.info is None or time.monotonic() - self._touched < _TOUCH_SECONDS:
            return
        self._touched = time.monotonic()
        touch_file(self.path / "last_used", self._mode & 0o666)
        if self._lease is None:
            self._lease = Lease(self.path, self._mode)
        self._lease.renew()

    def _refuse_non_finite(self, shard: Shard, names: Sequence[str] | None) -> None:
        finite = {name: finite_rows(column, self.columns[name]) for name, column in shard.columns.items()}
        bad = np.flatnonzero(~np.logical_and.reduce(list(finite.values())))
        if len(bad):
            shown = ", ".join(names[i] if names is not None else f"row {i}" for i in bad[:3])
            more = f" and {len(bad) - 3} more rows" if len(bad) > 3 else ""
            where = ", ".join(name for name, good in finite.items() if not good.all())
            raise NonFiniteError(
                f"{shown}{more}: the features ({where}) are NaN or infinite and were not stored; "
                "look at these rows, or compute in float32",
                bad,
            )


def _is_shard(name: str) -> bool:
    return name.endswith(SUFFIX) and len(name) == 32 + len(SUFFIX)


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _as_digests(digests: Digests) -> Digests:
    if digests.dtype != np.uint8 or digests.ndim != 2 or digests.shape[1] != 16:
        raise ValueError(f"digests must be uint8 (n, 16), not {digests.dtype} {digests.shape}")
    return np.ascontiguousarray(digests)
