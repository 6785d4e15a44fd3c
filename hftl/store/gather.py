"""Cutting and copying rows, evenly sized or ragged, with bounded memory beside the result."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from hftl.store.shard import Array, Column, ColumnSpec, RaggedArray, Shard

SHARD_BYTES = 1 << 27
"""A larger commit becomes several shards: a reader never needs more than about this beside its result."""
_COPY_BYTES = 1 << 24


def ragged(column: Column) -> RaggedArray:
    """``column``, which is known to be ragged."""
    assert isinstance(column, RaggedArray)
    return column


def even(column: Column) -> Array:
    """``column``, which is known not to be ragged."""
    assert not isinstance(column, RaggedArray)
    return column


def split_rows(shard: Shard, specs: Mapping[str, ColumnSpec]) -> Iterator[Shard]:
    """Cut rows into parts of about `SHARD_BYTES`, without copying."""
    n = len(shard.digests)
    sizes = np.full(n, 16, np.int64)
    for name, column in shard.columns.items():
        sizes += specs[name].row_bytes * (column.lengths if isinstance(column, RaggedArray) else 1)
    part = (np.cumsum(sizes) - sizes) // SHARD_BYTES
    edges = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), n]
    for begin, end in itertools.pairwise(edges):
        if end > begin:
            columns = {name: _slice(column, begin, end) for name, column in shard.columns.items()}
            yield Shard(shard.digests[begin:end], columns)


def _slice(column: Column, begin: int, end: int) -> Column:
    if isinstance(column, RaggedArray):
        first = int(column.lengths[:begin].sum())
        last = first + int(column.lengths[begin:end].sum())
        return RaggedArray(column.values[first:last], column.lengths[begin:end])
    return column[begin:end]


def join_rows(shards: Sequence[Shard]) -> Shard:
    """The rows of several shards, one after the other."""
    columns: dict[str, Column] = {}
    for name, first in shards[0].columns.items():
        parts = [shard.columns[name] for shard in shards]
        if isinstance(first, RaggedArray):
            values = np.concatenate([ragged(part).values for part in parts])
            columns[name] = RaggedArray(values, np.concatenate([ragged(part).lengths for part in parts]))
        else:
            columns[name] = np.concatenate([even(part) for part in parts])
    return Shard(np.concatenate([shard.digests for shard in shards]), columns)


def take_rows(shard: Shard, rows: npt.NDArray[np.int64]) -> Shard:
    """Some rows of a shard, in the order of ``rows``."""
    columns: dict[str, Column] = {}
    for name, column in shard.columns.items():
        if isinstance(column, RaggedArray):
            begins = np.cumsum(column.lengths) - column.lengths
            lengths = column.lengths[rows]
            columns[name] = RaggedArray(column.values[_spans(begins[rows], lengths)], lengths)
        else:
            columns[name] = column[rows]
    return Shard(shard.digests[rows], columns)


def rows_from_shards(
    read: Callable[[int], Shard],
    shard: npt.NDArray[np.int32],
    row: npt.NDArray[np.int64],
    specs: Mapping[str, ColumnSpec],
) -> dict[str, Column]:
    """Copy n rows out of their shards, with one shard mapped at a time.

    Args:
        read: maps the shard with a number.
        shard: each row's shard, (n,).
        row: each row's place there, (n,).
        specs: the columns wanted.
    """
    n = len(shard)
    # Shard by shard, not row by row: each is mapped once, and its pages can go before the next one's come.
    order = np.argsort(shard, kind="stable")
    cuts = np.flatnonzero(np.diff(shard[order])) + 1
    groups = [group for group in np.split(order, cuts) if len(group)]
    # Ragged columns take two passes, since the result cannot be allocated before all lengths are known.
    lengths = {name: np.zeros(n, np.int64) for name, spec in specs.items() if spec.ragged}
    for group in groups if lengths else []:
        source = read(int(shard[group[0]]))
        for name, target in lengths.items():
            target[group] = ragged(source.columns[name]).lengths[row[group]]
    out = {name: _empty(n, spec, lengths.get(name)) for name, spec in specs.items()}
    for group in groups:
        source = read(int(shard[group[0]]))
        for name, column in out.items():
            if isinstance(column, RaggedArray):
                begins = np.cumsum(column.lengths) - column.lengths
                _copy_ragged(ragged(source.columns[name]), row[group], column, begins[group])
            else:
                _copy_even(even(source.columns[name]), row[group], column, group)
    return out


def _empty(n: int, spec: ColumnSpec, lengths: npt.NDArray[np.int64] | None) -> Column:
    if lengths is None:
        return np.empty((n, *spec.shape), spec.storage)
    return RaggedArray(np.empty((int(lengths.sum()), *spec.shape), spec.storage), lengths)


def _copy_even(source: Array, rows: npt.NDArray[np.int64], target: Array, to: npt.NDArray[np.int64]) -> None:
    # In steps, because indexing with many rows makes a copy of all of them before they are assigned.
    step = max(1, _COPY_BYTES // max(1, source.itemsize * math.prod(source.shape[1:])))
    for i in range(0, len(rows), step):
        target[to[i : i + step]] = np.take(source, rows[i : i + step], axis=0)


def _copy_ragged(
    source: RaggedArray, rows: npt.NDArray[np.int64], target: RaggedArray, to: npt.NDArray[np.int64]
) -> None:
    begins = np.cumsum(source.lengths) - source.lengths
    mean_bytes = source.values.nbytes // max(1, len(source.lengths))
    step = max(1, _COPY_BYTES // max(1, mean_bytes))
    for i in range(0, len(rows), step):
        some = rows[i : i + step]
        lengths = source.lengths[some]
        taken = np.take(source.values, _spans(begins[some], lengths), axis=0)
        target.values[_spans(to[i : i + step], lengths)] = taken


def _spans(begins: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The concatenation of ``arange(begin, begin + length)``."""
    ends = np.cumsum(lengths)
    return np.repeat(begins - (ends - lengths), lengths) + np.arange(int(ends[-1]) if len(ends) else 0)
