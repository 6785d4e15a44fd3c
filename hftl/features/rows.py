"""Cutting and copying rows, evenly sized or ragged, with bounded memory beside the result."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from hftl.features.shard import Array, Column, ColumnSpec, RaggedArray, Shard

SHARD_BYTES = 1 << 27
"""A larger commit becomes several shards: a reader never needs more than about this beside its result."""
_COPY_BYTES = 1 << 24


def ragged(column: Column) -> RaggedArray:
    """``column``, which is known to be ragged."""
    assert isinstance(column, RaggedArray)
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
            columns[name] = np.concatenate([part for part in parts if not isinstance(part, RaggedArray)])
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


def copy_rows(source: Array, rows: npt.NDArray[np.int64], target: Array, to: npt.NDArray[np.int64]) -> None:
    """Set ``target[to] = source[rows]``."""
    step = max(1, _COPY_BYTES // max(1, source.itemsize * math.prod(source.shape[1:])))
    for i in range(0, len(rows), step):
        target[to[i : i + step]] = np.take(source, rows[i : i + step], axis=0)


def copy_ragged(
    source: RaggedArray, rows: npt.NDArray[np.int64], target: RaggedArray, to: npt.NDArray[np.int64]
) -> None:
    """Copy ``rows`` of ``source`` so that they begin at the elements ``to`` of ``target``."""
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
