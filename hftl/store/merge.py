"""The rows of one space taken into another of the same identity, such as one that another machine filled."""

from __future__ import annotations

import numpy as np

from hftl.errors import StoreError
from hftl.store.description import same_record
from hftl.store.gather import take_rows
from hftl.store.space import ShardGoneError, Space


class DifferentCutError(StoreError):
    """Two spaces of one name record different things of the model."""


def merge(space: Space, source: Space) -> tuple[int, int]:
    """Take in the rows of ``source`` that ``space`` has not, shard by shard, so that a kill costs at most one.

    Args:
        space: where they go; created as the source was, if it is new.
        source: a space of the same identity; it is only read.

    Returns:
        How many rows were taken in, and how many shards of the source are damaged.

    Raises:
        DifferentCutError: the two record different cuts of the model.
        StoreError: rows cannot be written.
    """
    assert source.info is not None, "it was read from its description"
    if space.info is not None and not same_record(space.info, space.columns, source.info, source.columns):
        raise DifferentCutError(f"{source.path} records another cut of the model than {space.path}: left out")
    space.create(source.info, source.columns)
    taken = damaged = 0
    for name in sorted(source.shard_sizes()):
        try:
            shard = source.read_shard(name)
        except ShardGoneError as error:
            damaged += error.damaged
            continue
        lacking = np.flatnonzero(~space.known(shard.digests))
        if len(lacking):
            space.write_shard(take_rows(shard, lacking))
            taken += len(lacking)
    return taken, damaged
