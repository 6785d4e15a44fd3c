"""Spaces that were made elsewhere: kept apart from a store's own, with their origin, and never looked up by themselves.

<root>/foreign/<origin>-<16 hex digits>/     the folder of a space, as `hftl.store.space` has it, and
    origin.json                              where it came from
    incoming/                                what is on its way, and not verified yet
    checked/                                 one empty file for each set of rows that a spot check found to be right
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from hftl.errors import StoreError
from hftl.regular import read_bounded
from hftl.store.description import now
from hftl.store.files import FILE_CALLS, bring_to_disk, make_folders, mode_of, store_errors, write_atomically
from hftl.store.shard import BadShardError, Digests, decode, finite_rows, open_shard
from hftl.store.space import Space

FOREIGN = "foreign"
ORIGIN = "origin.json"
_LARGEST_ORIGIN = 1 << 16


@dataclass(frozen=True)
class Origin:
    """Where a foreign space came from.

    Attributes:
        name: what a person calls it: ``user/name`` on the Hub, a folder, an address.
        commit: of the Hub's repository; None elsewhere.
        pulled: ISO time, UTC.
        complete: whether all of it had arrived then.
    """

    name: str
    commit: str | None
    pulled: str
    complete: bool

    @classmethod
    def now(cls, name: str, commit: str | None, *, complete: bool) -> Origin:
        """That of a space that is pulled now."""
        return cls(name, commit, now(), complete)

    @classmethod
    def read(cls, folder: Path) -> Origin | None:
        """Of the foreign space in a folder; None where nothing says it."""
        with suppress(OSError, ValueError, TypeError, RecursionError):
            made = cls(**json.loads(read_bounded(folder / ORIGIN, _LARGEST_ORIGIN)))
            if isinstance(made.name, str) and isinstance(made.complete, bool):
                return made
        return None

    def write(self, folder: Path, mode: int) -> None:
        """Into the folder of the space."""
        text = json.dumps(asdict(self), indent=2) + "\n"
        write_atomically(FILE_CALLS, folder / ORIGIN, [text.encode("ascii")], mode & 0o666)

    def __str__(self) -> str:
        return f"{self.name} at {self.commit[:12]}" if self.commit else self.name


def foreign_folder(root: Path, name: str) -> Path:
    """Where the space from an origin is kept in the store at ``root``."""
    digits = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8, person=b"hftl-origin").hexdigest()
    readable = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.")[-60:].lower() or "origin"
    return root / FOREIGN / f"{readable}-{digits}"


def receive(space: Space, path: Path, name: str) -> str | None:
    """Take a file that arrived into a foreign space, if it is the shard that its name says.

    Args:
        space: the foreign space.
        path: the file, on the same file system; it is gone afterwards.
        name: of the shard.

    Returns:
        Why it was not taken in; None where it was.

    Raises:
        StoreError: the space cannot be written.
    """
    with store_errors("write features to", space.path):
        try:
            if any(size < 1 for spec in space.columns.values() for size in spec.shape):
                # Any number of values of no size stand in no bytes, and take as much memory to look at.
                raise BadShardError("its space has a column of no size")
            with open_shard(path) as file:
                file.check(name)
                shard = decode(file.map(), space.columns, space.id)
            for column, values in shard.columns.items():
                if not finite_rows(values, space.columns[column]).all():
                    raise BadShardError(f"its features ({column}) are NaN or infinite")
        except BadShardError as error:
            path.unlink()
            return str(error)
        mode = mode_of(space.path)
        make_folders(FILE_CALLS, space.path / "shards", mode)
        path.chmod(mode & 0o666)
        bring_to_disk(path)
        path.replace(space.path / "shards" / name)
        FILE_CALLS.fsync_folder(space.path / "shards")
    return None


def check_name(space: Space, digests: Digests) -> Path:
    """The file that is there once a spot check found these rows of a foreign space to be right.

    Args:
        space: the foreign space, as it is now.
        digests: the rows, uint8 (n, 16), in any order.
    """
    state = hashlib.blake2b(digest_size=16, person=b"hftl-checked")
    for name in sorted(space.shard_sizes()):
        state.update(name.encode())
    state.update(np.unique(digests, axis=0).tobytes())
    return space.path / "checked" / state.hexdigest()


def remember_check(checked: Path, mode: int) -> None:
    """Note that a spot check went well; a store that cannot be written does without."""
    with suppress(OSError, StoreError):
        make_folders(FILE_CALLS, checked.parent, mode)
        write_atomically(FILE_CALLS, checked, [b""], mode & 0o666)
