"""Conversion between the tensors that callers hold and the numpy arrays that shards hold.

torch is imported only where a tensor is at hand, so that looking after a store does not wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from hftl.errors import StoreError
from hftl.store.shard import Array, Column, ColumnSpec, RaggedArray

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths.

    Attributes:
        values: (total, ...), one row after the other.
        lengths: int64 (n,), summing to ``total``.
    """

    values: torch.Tensor
    lengths: torch.Tensor


Values: TypeAlias = "torch.Tensor | Ragged | Column"


def to_storage(
    columns: Mapping[str, Values], specs: Mapping[str, ColumnSpec], n: int, place: Path
) -> dict[str, Column]:
    """Check n rows against the columns of the space at ``place``; returns them as a shard holds them.

    Raises:
        StoreError: a column is missing or has another type or shape.
    """
    if columns.keys() != specs.keys():
        raise StoreError(f"{place} has the columns {sorted(specs)}, not {sorted(columns)}")
    stored: dict[str, Column] = {}
    for name, spec in specs.items():
        value = columns[name]
        if isinstance(value, Ragged | RaggedArray):
            lengths = np.asarray(_to_numpy(value.lengths, "int64", name), np.int64)
            values = _to_numpy(value.values, spec.dtype, name)
            shape, wanted = values.shape, (int(lengths.sum()), *spec.shape)
            fits = spec.ragged and lengths.shape == (n,) and bool((lengths >= 0).all())
            stored[name] = RaggedArray(values, lengths)
        else:
            array = _to_numpy(value, spec.dtype, name)
            shape, wanted, fits = array.shape, (n, *spec.shape), not spec.ragged
            stored[name] = array
        if shape != wanted or not fits:
            kind = "ragged" if spec.ragged else "even"
            raise StoreError(f"column {name!r} of {place} holds {kind} rows of {spec.shape}; {n} rows got {shape}")
    return stored


def to_torch(column: Column, spec: ColumnSpec) -> torch.Tensor | Ragged:
    """The stored values as tensors that share their memory."""
    import torch

    if isinstance(column, RaggedArray):
        return Ragged(_to_tensor(column.values, spec), torch.from_numpy(column.lengths))
    return _to_tensor(column, spec)


def by_row(column: torch.Tensor | Ragged) -> Any:
    """A column whose rows can be sliced: a tensor, or a list of tensors where they have lengths of their own."""
    if not isinstance(column, Ragged):
        return column
    import torch

    return list(torch.split(column.values, column.lengths.tolist()))


def rows_of_column(column: torch.Tensor | Ragged, rows: np.ndarray) -> torch.Tensor | Ragged:
    """Some rows of a column, by their numbers, in that order."""
    import torch

    index = torch.from_numpy(rows)
    if not isinstance(column, Ragged):
        return column[index]
    parts = by_row(column)
    return Ragged(torch.cat([column.values[:0], *(parts[row] for row in rows.tolist())]), column.lengths[index])


def _to_tensor(array: Array, spec: ColumnSpec) -> torch.Tensor:
    import torch

    tensor: torch.Tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if spec.dtype == "bfloat16" else tensor


def _to_numpy(value: torch.Tensor | Array, dtype: str, name: str) -> Array:
    if isinstance(value, np.ndarray):
        if value.dtype != ColumnSpec(dtype, ()).storage:
            raise StoreError(f"column {name!r} is stored as {dtype}, not {value.dtype}")
        return value
    import torch

    tensor = value.detach().cpu()
    if tensor.dtype != getattr(torch, dtype):
        raise StoreError(f"column {name!r} is stored as {dtype}, not {str(tensor.dtype).removeprefix('torch.')}")
    if dtype == "bfloat16":
        # numpy has no such type: the bits travel as they are.
        tensor = tensor.contiguous().view(torch.uint16)
    array: Array = tensor.numpy()
    return array
