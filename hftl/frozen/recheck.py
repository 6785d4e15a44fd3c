"""A row asked for again: a backbone that answers otherwise has no features that could be kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hftl.errors import BackboneError
from hftl.store.values import Ragged

# How far a row's features may be from the same row's, as a share of the largest: between two batches of one run, and
# between two runs, which may have been on other devices.
SAME_RUN, OTHER_RUN = 1e-3, 1e-2
# Autocast rounds to 8 or 11 bits, batch by batch.
AUTOCAST = 1e-1


def check_again(name: str, first: Mapping[str, Any], again: Mapping[str, Any], tolerance: float, when: str) -> None:
    """Compare what is kept of one row with what is kept of it once more.

    Args:
        name: of the backbone.
        first: its columns, one row each.
        again: the same columns.
        tolerance: as a share of the largest value.
        when: where ``first`` is from, for the error.

    Raises:
        BackboneError: they are not the same.
    """
    gap = gap_between(first, again)
    if not gap <= tolerance:
        raise BackboneError(
            f"{name} gives a row other features than {when} ({gap:.1g} of the largest): something in it is random, "
            "or its weights are not what they were (a plugin's build() has to load the same weights and call .eval())"
        )


def gap_between(first: Mapping[str, Any], again: Mapping[str, Any]) -> float:
    """How far two columns of a row are apart at most, as a share of the largest value."""
    return max((_apart(_plain(first[column]), _plain(again[column])) for column in again), default=0.0)


def _plain(value: Any) -> Tensor:
    if isinstance(value, Ragged):
        return value.values
    return torch.cat(value) if isinstance(value, list) else value


def _apart(left: Tensor, right: Tensor) -> float:
    left, right = left.reshape(-1).double(), right.reshape(-1).double()
    if left.shape != right.shape:
        return float("inf")
    if not len(left) or not bool(left.isfinite().all() and right.isfinite().all()):
        # Rows that are not finite are named when they are to be stored.
        return 0.0
    return float((left - right).abs().max() / left.abs().max().clamp(min=1e-6))
