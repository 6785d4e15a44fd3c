"""Many small shards made into few large ones, while others read and write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import filelock
import numpy as np

from hftl.store.gather import SHARD_BYTES, join_rows, take_rows
from hftl.store.lookup import RowIndex
from hftl.store.shard import Shard
from hftl.store.space import ShardGoneError, Space

SMALL_BYTES = SHARD_BYTES // 4
WORTHWHILE = 8


def compact(space: Space, *, worthwhile: int = WORTHWHILE) -> int:
    """Merge the small shards of ``space``; rows that stand in several shards are kept once.

    No row is ever without a shard: a merged shard is on the disk before the first of its sources is
    removed. Since no two shards ever get one name, that holds for several compactions at once, too; the
    lock only spares work.

    Args:
        space: the space, in use or not.
        worthwhile: do nothing for fewer small shards than this.

    Returns:
        The number of shards that were merged away.

    Raises:
        StoreError: the merged shard cannot be written; nothing is lost.
    """
    with _alone(space) as alone:
        sizes = space.shard_sizes()
        small = sorted(name for name, size in sizes.items() if size < SMALL_BYTES)
        writable = os.access(space.path / "shards", os.W_OK)
        if not alone or not writable or len(small) < worthwhile:
            return 0
        # Rows that stand in a large shard already need no second copy in the merged one.
        settled = RowIndex()
        for number, name in enumerate(sorted(sizes.keys() - set(small))):
            with suppress(ShardGoneError):
                settled.add(space.read_shard(name).digests, number)
        return sum(_merge(space, group, settled) for group in _groups(small, sizes))


def _groups(names: list[str], sizes: dict[str, int]) -> Iterator[list[str]]:
    group: list[str] = []
    for name in names:
        if group and sum(sizes[other] for other in group) + sizes[name] > SHARD_BYTES:
            yield group
            group = []
        group.append(name)
    yield group


def _merge(space: Space, names: list[str], settled: RowIndex) -> int:
    """Merge shards into one, without the rows that ``settled`` has."""
    merged: list[Shard] = []
    sources: list[str] = []
    for name in names:
        with suppress(ShardGoneError):  # another compaction was faster
            merged.append(space.read_shard(name))
            sources.append(name)
    if not sources:
        return 0
    # Copied out of the maps, a bounded group at a time; what two runs stored at once becomes one row here.
    whole = join_rows(merged)
    _, first = np.unique(whole.digests, axis=0, return_index=True)
    first.sort()
    wanted = first[settled.find(whole.digests[first])[0] < 0]
    if len(wanted):
        if len(sources) == 1 and len(wanted) == len(whole.digests):
            return 0  # merging one shard into itself would only give it a new name
        # Written and on the disk before the first source goes: no row is ever without a shard.
        space.write_shard(take_rows(whole, wanted))
    for name in sources:
        space.remove_shard(name)
    return len(sources)


@contextmanager
def _alone(space: Space) -> Iterator[bool]:
    """Whether no other process compacts; True as well where the file system has no locks."""
    lock = filelock.FileLock(space.path / "compaction.lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        yield False
        return
    except (NotImplementedError, OSError):
        yield True
        return
    try:
        yield True
    finally:
        lock.release()
