"""A split's features as the matrix that heads are solved on, in memory or read out of the store in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hftl.frozen.features import SplitFeatures, StoredFeatures, gathered, line_columns
from hftl.heads.matrix import Matrix, RowGroup
from hftl.store.shard import Digests
from hftl.store.space import Space

# Of the memory that features may take, what the rows that are read together take, and what a solver may keep.
_READ_SHARE, _KEPT_SHARE = 16, 4
# Fewer rows would make a solver's blocks small, and more gain nothing.
_FEWEST_BYTES, _MOST_BYTES = 8 << 20, 64 << 20


def matrix_of(features: StoredFeatures, part: SplitFeatures, device: torch.device) -> Matrix:
    """The vectors of a split's rows, or of some of them; of words one each.

    Args:
        features: what they are of.
        part: the rows.
        device: where to compute with them.
    """
    if part.columns:
        columns = line_columns(part.columns, features.content.cut)
        return Matrix.of(columns["features"].to(device))
    memory, width = features.memory or 0, features.content.cut.width
    together = max(1, min(max(memory // _READ_SHARE, _FEWEST_BYTES), _MOST_BYTES) // (4 * width))
    order = features.spaces[0].order(part.digests)
    parts = [
        RowGroup(torch.from_numpy(rows).to(device), _Read(features.spaces, part.digests, rows, device))
        for rows in (order[at : at + together] for at in range(0, len(order), together))
    ]
    return Matrix(parts, torch.Size((len(order), width)), torch.float32, device, memory // _KEPT_SHARE)


@dataclass(frozen=True)
class _Read:
    """Reads some rows of a split out of the store."""

    spaces: Sequence[Space]
    digests: Digests
    rows: np.ndarray
    device: torch.device

    def __call__(self) -> Tensor:
        found: Tensor = gathered(self.spaces, self.digests[self.rows], ["features"])["features"]
        return found.to(self.device)
