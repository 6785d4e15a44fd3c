"""Features that heads are solved on: a matrix that is read a part at a time, whether it is in memory or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Transformed features are kept up to this size. Beyond it they would take as much memory as the features themselves.
RESIDENT_BYTES = 128 << 20


@dataclass(frozen=True)
class RowGroup:
    """Rows of a matrix that are read together.

    Attributes:
        rows: which they are, a slice, or (m,) int64 numbers.
        read: gives them, (m, dim) floating point.
    """

    rows: slice | Tensor
    read: Callable[[], Tensor]

    def numbers(self, places: Tensor) -> Tensor:
        """The numbers of rows in the matrix, by their places (k,) in the part."""
        if isinstance(self.rows, Tensor):
            return self.rows[places]
        return places + self.rows.start if self.rows.start else places

    def some(self, start: int, stop: int) -> slice | Tensor:
        """Which rows of the matrix stand from one place in the part to another."""
        if isinstance(self.rows, Tensor):
            return self.rows[start:stop]
        return slice(self.rows.start + start, self.rows.start + stop)

    def behind(self, count: int) -> RowGroup:
        """The same part of a matrix that has so many rows before it."""
        rows = self.rows
        return replace(
            self,
            rows=rows + count if isinstance(rows, Tensor) else slice(rows.start + count, rows.stop + count),
        )


@dataclass(frozen=True)
class Matrix:
    """A matrix of features.

    Attributes:
        parts: its rows, each in one of them.
        shape: (n, dim).
        dtype: of the numbers.
        device: where the parts are once they are read.
        resident_bytes: up to how many bytes a solver may keep what it makes of all rows.
    """

    parts: Sequence[RowGroup]
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    resident_bytes: int = RESIDENT_BYTES

    @classmethod
    def of(cls, features: Tensor | Matrix) -> Matrix:
        """A matrix that is in memory, as one part; what is a matrix already as it is."""
        if isinstance(features, Matrix):
            return features
        part = RowGroup(slice(0, len(features)), lambda: features)
        return cls([part], features.shape, features.dtype, features.device)

    @classmethod
    def stacked(cls, first: Matrix, second: Matrix) -> Matrix:
        """Two as one, without a copy of either."""
        parts = [*first.parts, *(part.behind(len(first)) for part in second.parts)]
        return replace(first, parts=parts, shape=torch.Size((len(first) + len(second), first.shape[1])))

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def in_memory(self) -> bool:
        """Whether all of it can be had without reading."""
        return len(self.parts) == 1 and isinstance(self.parts[0].rows, slice)

    def numel(self) -> int:
        """How many numbers it has."""
        return self.shape.numel()

    def blocks(self, rows: int) -> Iterator[tuple[slice | Tensor, Tensor]]:
        """So many rows at most at a time: which they are, and the rows themselves."""
        for part in self.parts:
            read = part.read()
            for start in range(0, len(read), rows):
                stop = min(start + rows, len(read))
                yield part.some(start, stop), read[start:stop]

    def whole(self) -> Tensor:
        """All of it in memory."""
        if self.in_memory:
            return self.parts[0].read()
        return self.made(lambda block: block, self.shape[1], self.dtype)

    def made(self, make: Callable[[Tensor], Tensor], width: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """What is made of each row, (n, width), a part at a time."""
        if self.in_memory:
            return make(self.parts[0].read())
        out = torch.empty(len(self), width, dtype=dtype, device=self.device)
        for part in self.parts:
            out[part.rows] = make(part.read())
        return out

    def take(self, rows: Tensor) -> Matrix:
        """Some of its rows, (k,) int64 numbers in ascending order or (n,) bool."""
        rows = torch.nonzero(rows).flatten() if rows.dtype == torch.bool else rows
        if self.in_memory:
            return replace(Matrix.of(self.parts[0].read()[rows]), resident_bytes=self.resident_bytes)
        place = torch.full((len(self),), -1, dtype=torch.int64, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        parts = []
        for part in self.parts:
            there = place[part.rows]
            stays = torch.nonzero(there >= 0).flatten()
            if len(stays):
                parts.append(RowGroup(there[stays], _SomeOf(part.read, stays)))
        return replace(self, parts=parts, shape=torch.Size((len(rows), self.shape[1])))


@dataclass(frozen=True)
class _SomeOf:
    """Reads some rows of what is read together."""

    read: Callable[[], Tensor]
    places: Tensor

    def __call__(self) -> Tensor:
        return self.read()[self.places]
