"""One shard: an immutable safetensors file of feature rows whose name is the checksum of its bytes.

The file is written and read here with numpy alone, without copies: a header that safetensors' own library
accepts, then the columns, then `digests` (uint8, n × 16). Reading maps the file; arrays are views of the map.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash

from hftl.regular import open_regular

Array: TypeAlias = "npt.NDArray[np.generic]"
Digests: TypeAlias = "npt.NDArray[np.uint8]"

SUFFIX = ".safetensors"
DIGESTS = "digests"
LENGTHS = ".lengths"
_BLOCK = 1 << 20
_LARGEST_HEADER = 1 << 26
LARGEST_METADATA = 100_000_000
"""Bytes of a header that the safetensors library still reads."""
_FORMAT = "hftl-features-1"

# name -> (safetensors' code, how numpy holds it; bfloat16 has no numpy type and travels as its bits)
_DTYPES: dict[str, tuple[str, np.dtype[np.generic]]] = {
    name: (code, np.dtype(storage))
    for name, code, storage in [
        ("float64", "F64", "<f8"),
        ("int64", "I64", "<i8"),
        ("float32", "F32", "<f4"),
        ("int32", "I32", "<i4"),
        ("float16", "F16", "<f2"),
        ("bfloat16", "BF16", "<u2"),
        ("int16", "I16", "<i2"),
        ("int8", "I8", "i1"),
        ("uint8", "U8", "u1"),
        ("bool", "BOOL", "?"),
    ]
}


class BadShardError(Exception):
    """The bytes are not those that were written, or they belong to another space."""


@dataclass(frozen=True)
class ColumnSpec:
    """One column of a space.

    Attributes:
        dtype: torch's name of the type, such as ``float32`` or ``bfloat16``.
        shape: the shape of one row; of one element of a row where the column is ragged.
        ragged: whether rows have lengths of their own (a row is then ``(length, *shape)``).
    """

    dtype: str
    shape: tuple[int, ...]
    ragged: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype {self.dtype!r} cannot be stored; known: {', '.join(_DTYPES)}")

    @property
    def storage(self) -> np.dtype[np.generic]:
        """The numpy type that holds the values."""
        return _DTYPES[self.dtype][1]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, or of one element of a ragged row."""
        return self.storage.itemsize * math.prod(self.shape)


@dataclass(frozen=True)
class RaggedArray:
    """Rows of different lengths: ``values`` (total, ...) one row after the other, ``lengths`` int64 (n,)."""

    values: Array
    lengths: npt.NDArray[np.int64]


Column: TypeAlias = "Array | RaggedArray"


@dataclass(frozen=True)
class Shard:
    """What a shard holds; arrays may be views of a mapped file, which is unmapped with the last of them."""

    digests: Digests
    columns: dict[str, Column]


def encode(shard: Shard, specs: Mapping[str, ColumnSpec], space: str, nonce: str) -> list[memoryview]:
    """The bytes of a shard file, in parts: a header, then each array as it lies in memory.

    Args:
        shard: digests (n, 16) and columns of n rows in their storage types.
        specs: the space's columns.
        space: the space's id; a shard that strays into another space's folder is not served there.
        nonce: never used before, so that no two shards ever get one name, not even with equal rows.
    """
    arrays: list[tuple[str, str, Array]] = []
    for name, spec in specs.items():
        column = shard.columns[name]
        code = _DTYPES[spec.dtype][0]
        if isinstance(column, RaggedArray):
            arrays.append((name + LENGTHS, "I64", column.lengths))
            arrays.append((name, code, column.values))
        else:
            arrays.append((name, code, column))
    arrays.append((DIGESTS, "U8", shard.digests))
    arrays.sort(key=lambda item: -item[2].dtype.itemsize)  # the widest first, so that every array is aligned
    described = [(name, code, array.shape, array.nbytes) for name, code, array in arrays]
    header = file_header(described, {"format": _FORMAT, "space": space, "nonce": nonce})
    parts = [np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for _, _, array in arrays]
    return [memoryview(header), *parts]


def file_header(arrays: Sequence[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str]) -> bytes:
    """What a safetensors file begins with, its length included.

    Args:
        arrays: each array's name, safetensors' code of its type, shape and bytes, in the order in which they follow.
        metadata: texts by name.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    for name, code, shape, size in arrays:
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def file_name(parts: Sequence[memoryview]) -> str:
    """The name of a shard file with these bytes: their XXH3-128 checksum."""
    state = xxhash.xxh3_128()
    for part in parts:
        state.update(part)
    return f"{state.hexdigest()}{SUFFIX}"


def decode(data: mmap.mmap | bytes, specs: Mapping[str, ColumnSpec], space: str) -> Shard:
    """Views of the arrays in the bytes of a shard file.

    Raises:
        BadShardError: the bytes are not a shard of this space.
    """
    try:
        arrays = _arrays(data, space)
        digests = arrays.pop(DIGESTS, ("U8", np.empty((0, 0), np.uint8)))[1]
        n = len(digests)
        if digests.dtype != np.uint8 or digests.shape != (n, 16):
            raise BadShardError("its digests are malformed")
        columns = {name: _checked_column(arrays, name, spec, n) for name, spec in specs.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BadShardError(f"it is malformed ({error})") from error
    if arrays:
        raise BadShardError("it has columns that the space does not have")
    return Shard(digests, columns)  # type: ignore[arg-type]  # the dtype was checked above


def header_rows(path: Path) -> int:
    """The number of rows that a shard's header states, the rest unread and unchecked; 0 if unreadable."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > _LARGEST_HEADER:
                return 0
            rows = int(json.loads(file.read(size))[DIGESTS]["shape"][0])
            # A header that rotted may say any number; each row takes at least its digest.
            return rows if 0 <= 16 * rows <= os.fstat(file.fileno()).st_size else 0
    except (OSError, ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError):
        return 0


class ShardFile:
    """A shard file that is open for reading; use `open_shard`.

    Attributes:
        signature: inode, size and mtime in ns: another file in its place has another.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        status = os.fstat(fd)
        self.signature = (status.st_ino, status.st_size, status.st_mtime_ns)

    def check(self, name: str) -> None:
        """Read all bytes and compare them with ``name``.

        Read, not mapped: an error of the disk is then an exception, where a map would kill the process.
        What was read is in the page cache, where the map finds it.

        Raises:
            BadShardError: they are not those that were written.
        """
        state = xxhash.xxh3_128()
        buffer = memoryview(bytearray(min(_BLOCK, self.signature[1] + 1)))
        try:
            with open(self._fd, "rb", buffering=0, closefd=False) as file:
                # First, because a file that grew without end (a sparse one, say) would take hours to read.
                if _stated_size(file) != self.signature[1]:
                    raise BadShardError("its size is not what its header says")
                file.seek(0)
                while size := file.readinto(buffer):
                    state.update(buffer[:size])
        except OSError as error:
            raise BadShardError(f"it cannot be read ({error.strerror})") from error
        if state.hexdigest() + SUFFIX != name:
            raise BadShardError("its checksum is wrong")

    def map(self) -> mmap.mmap | bytes:
        """The bytes of the file, mapped."""
        return mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ) if self.signature[1] else b""


@contextmanager
def open_shard(path: Path) -> Iterator[ShardFile]:
    """Open a shard for reading.

    Raises:
        OddFileError: no regular file stands there.
        OSError: it is gone, or cannot be opened.
    """
    fd = open_regular(path)
    try:
        yield ShardFile(fd)
    finally:
        os.close(fd)


def _stated_size(file: IO[bytes]) -> int | None:
    """The size of a shard file by its own header; None where that says none."""
    try:
        size = int.from_bytes(file.read(8), "little")
        if size > _LARGEST_HEADER:
            return None
        header = json.loads(file.read(size))
        return 8 + size + max(int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError):
        return None


def finite_rows(column: Column, spec: ColumnSpec) -> npt.NDArray[np.bool_]:
    """Which of n rows are free of NaN and Inf; bool (n,)."""
    values = column.values if isinstance(column, RaggedArray) else column
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    if spec.dtype == "bfloat16":
        exponent = np.uint16(0x7F80)
        good = (np.bitwise_and(flat.view(np.uint16), exponent) != exponent).all(axis=1)
    elif spec.dtype.startswith("float"):
        good = np.isfinite(flat).all(axis=1)
    else:
        good = np.ones(len(flat), bool)
    if not isinstance(column, RaggedArray):
        return good  # type: ignore[no-any-return]
    bad_so_far = np.concatenate([[0], np.cumsum(~good)])
    ends = np.cumsum(column.lengths)
    return bad_so_far[ends] == bad_so_far[ends - column.lengths]  # type: ignore[no-any-return]


def _arrays(data: mmap.mmap | bytes, space: str) -> dict[str, tuple[str, Array]]:
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:
        raise BadShardError("it is cut short")
    header = json.loads(data[8 : 8 + size])
    metadata = header.pop("__metadata__")
    if (metadata["format"], metadata["space"]) != (_FORMAT, space):
        raise BadShardError("it belongs to another space or another version of the format")
    storages = dict(_DTYPES.values())
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        storage = storages[entry["dtype"]]
        if not 0 <= begin <= end <= len(data) - 8 - size or math.prod(entry["shape"]) * storage.itemsize != end - begin:
            raise BadShardError("it is cut short")
        flat = np.frombuffer(data, storage, (end - begin) // storage.itemsize, offset=8 + size + begin)
        arrays[name] = (entry["dtype"], flat.reshape(entry["shape"]))
    return arrays


def _checked_column(arrays: dict[str, tuple[str, Array]], name: str, spec: ColumnSpec, n: int) -> Column:
    code, values = arrays.pop(name)
    if code != _DTYPES[spec.dtype][0] or values.shape[1:] != spec.shape:
        raise BadShardError(f"column {name!r} has another type than the space's")
    if not spec.ragged:
        if len(values) != n:
            raise BadShardError(f"column {name!r} has {len(values)} rows, not {n}")
        return values
    code, lengths = arrays.pop(name + LENGTHS)
    # Each for itself first: sums wrap.
    out_of_range = code != "I64" or lengths.shape != (n,) or ((lengths < 0) | (lengths > len(values))).any()  # type: ignore[operator]
    if out_of_range or int(lengths.sum()) != len(values):
        raise BadShardError(f"the lengths of column {name!r} are malformed")
    return RaggedArray(values, lengths)  # type: ignore[arg-type]
