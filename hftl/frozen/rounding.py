"""Numbers in half the bytes: how they are rounded for the store, and how far that moves them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hftl.backbones.cut.cut import Cut
from hftl.backbones.precision import DTYPES, dtype_name
from hftl.methods import Storage
from hftl.store.values import Ragged

if TYPE_CHECKING:
    from hftl.heads.matrix import Matrix


def stored_dtype(computed: str, storage: Storage) -> str:
    """What numbers of a type become in the store: those of 32 bits that are asked for in 16, and no others."""
    return dtype_name(DTYPES[storage]) if computed == "float32" and storage != "float32" else computed


def half_ulp(storage: Storage) -> float:
    """The largest error that rounding makes, as a share of the number; 0 where nothing is rounded."""
    return torch.finfo(DTYPES[storage]).eps / 2 if storage != "float32" else 0.0


def error_in_words(error: float, storage: Storage) -> str:
    """The largest error for a person: as it was measured, or where nothing was rounded now, what it is at most."""
    return f"by {error:.2%} of it" if error else f"by {half_ulp(storage):.2%} of it at most"


def rounded(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, float]:
    """Numbers as the store holds them, and the largest relative error: infinite where one is too large for the type.

    Numbers below the smallest normal one of the type are compared with that: they are off by half of its last digit.
    """
    if dtype == values.dtype:
        return values, 0.0
    short = values.to(dtype)
    # What is not finite itself is refused, and named, when it is to be stored.
    finite = values.isfinite()
    if not bool(finite.any()):
        return short, 0.0
    apart = (short.float() - values).abs() / values.abs().clamp_min(torch.finfo(dtype).tiny)
    return short, float(apart[finite].max())


def as_computed(columns: Mapping[str, Any], cut: Cut) -> dict[str, Any]:
    """Stored columns of rows in the types that the cut has them in."""
    types = {name: getattr(torch, dtype) for name, (dtype, _) in cut.kept().items()}
    return {name: _as_type(value, types[name]) if name in types else value for name, value in columns.items()}


def _as_type(value: Any, dtype: torch.dtype) -> Any:
    return Ragged(value.values.to(dtype), value.lengths) if isinstance(value, Ragged) else value.to(dtype)


def logit_slack(vectors: Tensor | Matrix, weight: Tensor, storage: Storage) -> Tensor | None:
    """How far rounding may have moved each logit of a linear head at most, (n, C) on the CPU; None where nothing was.

    Args:
        vectors: (n, d) of rows, as the store holds them.
        weight: (C, d) of the head.
        storage: of the vectors.
    """
    if storage == "float32":
        return None
    # Brought only here: whoever predicts needs no heads.
    from hftl.heads.matrix import Matrix

    unit = half_ulp(storage)
    smallest, matrix = torch.finfo(DTYPES[storage]).tiny, Matrix.of(vectors)
    most = weight.abs().T.to(matrix.device)
    return matrix.made(lambda rows: (unit / (1 - unit) * rows.abs().clamp_min(smallest)) @ most, len(weight)).cpu()
