"""Where a row lies: an exact index from 128-bit digests to (shard, row), in numpy.

Sorted runs that are merged as they grow (each at least twice as long as the next), so that a store that
grows by many small commits is not sorted anew for each of them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hftl.store.shard import Digests

_MIX = [
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
]


class _SortedRun(NamedTuple):
    key: npt.NDArray[np.uint64]  # ascending
    low: npt.NDArray[np.uint64]
    shard: npt.NDArray[np.int32]
    row: npt.NDArray[np.int64]


class RowIndex:
    """Finds rows by digest; a digest may stand in several shards."""

    def __init__(self) -> None:
        self._runs: list[_SortedRun] = []

    def add(self, digests: Digests, shard: int) -> None:
        """Add the rows of one shard, in order; digests are uint8 (n, 16)."""
        key, low = _halves(digests)
        run = _SortedRun(key, low, np.full(len(key), shard, np.int32), np.arange(len(key)))
        self._runs.append(_sorted([run]))
        # As in a log-structured merge: each row is merged O(log n) times, whatever the size of the commits.
        while len(self._runs) > 1 and len(self._runs[-2].key) < 2 * len(self._runs[-1].key):
            self._runs[-2:] = [_sorted(self._runs[-2:])]

    def drop(self, shards: Collection[int]) -> None:
        """Forget every row of these shards."""
        # Filtered, not marked: an order that was sorted stays sorted.
        gone = np.fromiter(shards, np.int32, len(shards))
        for i, run in enumerate(self._runs):
            keep = ~np.isin(run.shard, gone)
            if not keep.all():
                self._runs[i] = _taken(run, keep)

    def find(self, digests: Digests) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Find n digests, uint8 (n, 16).

        Returns:
            The shard of each, int32 (n,), -1 where it is in none, and its row there, int64 (n,).
        """
        key, low = _halves(digests)
        shard = np.full(len(key), -1, np.int32)
        row = np.zeros(len(key), np.int64)
        order = np.argsort(key)  # neighbours in a query meet neighbours in the run: far fewer cache misses
        for run in self._runs:
            todo = order[shard[order] < 0]
            at = np.searchsorted(run.key, key[todo])
            # Equal keys are next to each other: walk on, until a row's other half agrees too or its keys end.
            while len(todo):
                inside = at < len(run.key)
                todo, at = todo[inside], at[inside]
                same = run.key[at] == key[todo]
                todo, at = todo[same], at[same]
                hit = run.low[at] == low[todo]
                shard[todo[hit]] = run.shard[at[hit]]
                row[todo[hit]] = run.row[at[hit]]
                todo, at = todo[~hit], at[~hit] + 1
        return shard, row


def _halves(digests: Digests) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Two halves that together are the digest; rows that differ anywhere almost surely differ in the first."""
    halves = np.ascontiguousarray(digests).view(np.uint64)
    low = np.ascontiguousarray(halves[:, 1])
    # splitmix64 of one half into the other: digests that agree in a half, as counted ones do, get different keys all
    # the same, and the walk over equal keys stays short.
    mixed = low.copy()
    for shift, factor in _MIX:
        mixed ^= mixed >> shift
        mixed *= factor
    return halves[:, 0] ^ mixed ^ (mixed >> np.uint64(31)), low


def _sorted(runs: list[_SortedRun]) -> _SortedRun:
    whole = runs[0]
    if len(runs) > 1:
        whole = _SortedRun(
            np.concatenate([run.key for run in runs]),
            np.concatenate([run.low for run in runs]),
            np.concatenate([run.shard for run in runs]),
            np.concatenate([run.row for run in runs]),
        )
    return _taken(whole, np.argsort(whole.key, kind="stable"))


def _taken(run: _SortedRun, which: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> _SortedRun:
    return _SortedRun(run.key[which], run.low[which], run.shard[which], run.row[which])
