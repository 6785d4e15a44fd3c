"""What a row is called: a 128-bit digest of its content, so that order, copies and file names do not matter.

BLAKE2b-128 in two domains, texts and files: a text and a file of the same bytes differ.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from hftl.errors import DataError, StoreError
from hftl.regular import open_regular
from hftl.store.shard import Digests

_TEXT = b"hftl-text"
_FILE = b"hftl-file"
_BLOCK = 1 << 20


def state_of(stat: os.stat_result) -> str:
    """What tells that a file is still the one it was: size, date and inode."""
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"


class FilePart(NamedTuple):
    """Some bytes of a file that holds many rows, such as a member of a tar file.

    Attributes:
        path: of the file.
        offset: of the first byte.
        size: bytes.
        state: of the file when the part was found in it (`state_of`); None where nobody knows.
    """

    path: str
    offset: int
    size: int
    state: str | None = None

    def refuse_changed(self, stat: os.stat_result) -> None:
        """See that the file is the one in which the part was found: in another one, the same place is another row.

        Raises:
            DataError: it is not.
        """
        if self.state is not None and self.state != state_of(stat):
            raise DataError(f"{self.path}: changed since its members were listed: run again")

    def read(self) -> bytes:
        """The bytes.

        Raises:
            DataError: the file changed since the part was found in it.
            OSError: the file cannot be read, or ends before them.
        """
        with os.fdopen(open_regular(self.path), "rb", buffering=0) as file:
            self.refuse_changed(os.fstat(file.fileno()))
            file.seek(self.offset)
            data = file.read(self.size)
            while len(data) < self.size and (more := file.read(self.size - len(data))):
                data += more
        if len(data) < self.size:
            raise OSError(f"it ends {self.size - len(data):,} bytes too early")
        return data


def digest_texts(rows: Iterable[Sequence[str]]) -> Digests:
    """Digest n rows of one or more strings each.

    Each string goes in after its length: different rows never give the same bytes. Nothing is normalised.

    Returns:
        uint8 (n, 16).
    """
    blake2b = hashlib.blake2b
    digests = bytearray()
    for row in rows:
        data = b""
        for text in row:
            encoded = text.encode("utf-8", "surrogatepass")
            data += len(encoded).to_bytes(8, "little") + encoded
        digests += blake2b(data, digest_size=16, person=_TEXT).digest()
    return np.frombuffer(digests, np.uint8).reshape(-1, 16)


def digest_bytes(data: bytes) -> bytes:
    """Digest the content of one encoded file; 16 bytes."""
    return hashlib.blake2b(data, digest_size=16, person=_FILE).digest()


def read_digest(path: str | FilePart) -> bytes:
    """Digest one file's content as `digest_bytes` does, without holding it in memory; a part of one is held."""
    if isinstance(path, FilePart):
        try:
            return digest_bytes(path.read())
        except OSError as error:
            raise StoreError(
                f"cannot read {path.path}: {error.strerror or error}; check that the file is whole"
            ) from error
    state = hashlib.blake2b(digest_size=16, person=_FILE)
    try:
        with os.fdopen(open_regular(path), "rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                state.update(block)
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}; check that the file is there") from error
    return state.digest()


def stack_digests(digests: list[bytes]) -> Digests:
    """Digests of 16 bytes as uint8 (n, 16)."""
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)
