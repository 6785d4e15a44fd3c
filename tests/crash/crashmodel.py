"""Rows whose right features follow from their number, so that any process can tell a wrong feature.

Imports no torch: the crash tests start many processes.
"""

from pathlib import Path

import numpy as np

from hftl.store.files import FILE_CALLS, FileCalls
from hftl.store.shard import ColumnSpec, RaggedArray
from hftl.store.store import FeatureStore, Space

COLUMNS = {
    "pooled": ColumnSpec("float32", (4,)),
    "tokens": ColumnSpec("float16", (2,), ragged=True),
    "truncated": ColumnSpec("uint8", ()),
}
INFO = {"what": "crash test"}


def digests_of(ids: np.ndarray) -> np.ndarray:
    """uint8 (n, 16), different for every id."""
    ids = np.asarray(ids, np.uint64)
    with np.errstate(over="ignore"):
        halves = np.stack([ids * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1), ids], axis=1)
    return np.ascontiguousarray(halves).view(np.uint8).reshape(-1, 16)


def columns_of(ids: np.ndarray) -> dict:
    """The right features of the rows ``ids``."""
    ids = np.asarray(ids, np.int64)
    lengths = ids % 3
    tokens = np.repeat(ids, lengths)
    return {
        "pooled": (ids[:, None] * 7 + np.arange(4)).astype(np.float32),
        "tokens": RaggedArray(np.stack([tokens % 2048, tokens % 1021], 1).astype(np.float16), lengths),
        "truncated": (ids % 2).astype(np.uint8),
    }


def open_space(root: Path, name: str = "space", files: FileCalls = FILE_CALLS) -> Space:
    return FeatureStore(root, files).space({"model": name}, name)


def commit(space: Space, ids: np.ndarray) -> None:
    space.commit(digests_of(ids), columns_of(ids))


def wrong_rows(space: Space, ids: np.ndarray) -> int:
    """How many of the stored rows ``ids`` are not what they should be."""
    if not len(ids):
        return 0
    got, want = space.gather_arrays(digests_of(ids)), columns_of(ids)
    wrong = (got["pooled"] != want["pooled"]).any(axis=1) | (got["truncated"] != want["truncated"])
    wrong |= got["tokens"].lengths != want["tokens"].lengths
    if not wrong.any() and (got["tokens"].values != want["tokens"].values).any():
        return len(ids)
    return int(wrong.sum())


def violations(root: Path, committed: np.ndarray, others: np.ndarray, name: str = "space") -> list[str]:
    """Look at a store after a crash: what is broken of that which the store promises."""
    found = []
    committed = np.unique(np.asarray(committed, np.int64))
    others = np.setdiff1d(np.asarray(others, np.int64), committed)
    space = open_space(root, name)
    lost = int((~space.known(digests_of(committed))).sum()) if len(committed) else 0
    if lost:
        found.append(f"{lost} committed rows lost")
    there = np.concatenate([committed, others])
    there = there[space.known(digests_of(there))] if len(there) else there
    if wrong := wrong_rows(space, there):
        found.append(f"{wrong} wrong rows served")
    damaged = list((space.path / "quarantine").glob("*"))
    if damaged:
        found.append(f"{len(damaged)} files were seen before they were whole")
    return found


def temporary_files(root: Path) -> list[Path]:
    return list(root.rglob(".tmp-*"))
