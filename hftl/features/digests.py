"""What a row is called: a 128-bit digest of its content, so that order, copies and file names do not matter.

BLAKE2b-128 in three domains (texts, files, folders): a text and a file of the same bytes differ.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from hftl.errors import StoreError
from hftl.features.shard import Digests

if TYPE_CHECKING:
    from hftl.features.stat_index import StatIndex

FileRow: TypeAlias = "str | os.PathLike[str] | bytes"

_TEXT = b"hftl-text"
_FILE = b"hftl-file"
_FOLDER = b"hftl-folder"
_BLOCK = 1 << 20
_THREADS = 8


def digest_texts(rows: Iterable[Sequence[str]]) -> Digests:
    """Digest n rows of one or more strings each.

    Each string goes in after its length: different rows never give the same bytes. Nothing is normalised.

    Returns:
        uint8 (n, 16).
    """
    blake2b = hashlib.blake2b
    digests = []
    for row in rows:
        data = b""
        for text in row:
            encoded = text.encode("utf-8", "surrogatepass")
            data += len(encoded).to_bytes(8, "little") + encoded
        digests.append(blake2b(data, digest_size=16, person=_TEXT).digest())
    return _stack(digests)


def digest_bytes(data: bytes) -> bytes:
    """Digest the content of one encoded file; 16 bytes."""
    return hashlib.blake2b(data, digest_size=16, person=_FILE).digest()


def digest_files(rows: Sequence[FileRow], index: StatIndex | None = None) -> Digests:
    """Digest the encoded content of n files, such as images; none is decoded.

    Args:
        rows: each a path, or the file's bytes; both give the same digest.
        index: remembers the digests of unchanged files; without one every file is read.

    Returns:
        uint8 (n, 16).

    Raises:
        StoreError: a file cannot be read.
    """
    digests: list[bytes | None] = [digest_bytes(row) if isinstance(row, bytes) else None for row in rows]
    paths = {i: os.fspath(row) for i, row in enumerate(rows) if not isinstance(row, bytes)}
    if index is not None:
        found = [row.tobytes() for row in index.digests(list(paths.values()))]
    else:
        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(read_digest, paths.values()))
    for i, digest in zip(paths, found, strict=True):
        digests[i] = digest
    return _stack([digest for digest in digests if digest is not None])


def read_digest(path: str) -> bytes:
    """Digest one file's content as `digest_bytes` does, without holding it in memory."""
    state = hashlib.blake2b(digest_size=16, person=_FILE)
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a Path for each of a million files is slow
            while block := file.read(_BLOCK):
                state.update(block)
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}; check that the file is there") from error
    return state.digest()


def folder_digest(folder: Path, patterns: Sequence[str] = ("**/*",), index: StatIndex | None = None) -> str:
    """Digest the names and contents of the files in ``folder`` that match ``patterns``; 32 hex digits.

    This is how a local model, which has no commit, is identified: by its weight files, never by its name.

    Raises:
        StoreError: no file matches, or one cannot be read.
    """
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    paths = sorted(found, key=lambda path: path.relative_to(folder).as_posix())
    if not paths:
        raise StoreError(f"no file in {folder} matches {', '.join(patterns)}")
    state = hashlib.blake2b(digest_size=16, person=_FOLDER)
    for path, digest in zip(paths, digest_files(paths, index), strict=True):
        name = path.relative_to(folder).as_posix().encode("utf-8", "surrogateescape")
        state.update(len(name).to_bytes(8, "little") + name + digest.tobytes())
    return state.hexdigest()


def _stack(digests: list[bytes]) -> Digests:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)
