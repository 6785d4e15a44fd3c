"""Are two pictures one, encoded again, made smaller or slightly cropped? Asked of their small grey versions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

SIDE = 64
# Edges of the part of one picture that the other may show, as shares; finer steps follow where it is close.
_COARSE = [
    (0.0, 1.0),
    *((shift * (1 - part), shift * (1 - part) + part) for part in (0.95, 0.9) for shift in (0, 0.5, 1)),
]
_STEPS = (0.02, 0.01)
# What two pictures of one composition share is left out of the comparison by what is smoother than this many pixels.
_SMOOTH = 5
# Correlations of the coarse overview, and of details at a coarse alignment, below which nothing finer is tried.
_OVERVIEW, _PROMISING = 0.75, 0.5
_PAIRS_AT_ONCE = 64


def picture_similarity(thumbnails: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """How well the details of two pictures agree once one is laid on the best-fitting part of the other.

    The correlation of what is left of the grey levels without what is smooth in them, so that two photos of different
    things on one background are not alike; the part is looked for among crops of up to 12 % of each side.

    Args:
        thumbnails: uint8 (m, 64, 64), as `hftl.data.images.grey_thumbnail` gives them.
        pairs: int64 (p, 2), which to compare.

    Returns:
        float32 (p,) from -1 to 1: above 0.95 for the same picture encoded again or made smaller, above 0.85 for a
        cropped one.
    """
    found = np.full(len(pairs), -1.0, dtype=np.float32)
    overviews = _details(torch.from_numpy(thumbnails).float(), _crops([(0.0, 1.0)], 8), smooth=0)[:, 0]
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        block = pairs[start : start + _PAIRS_AT_ONCE]
        alike = (overviews[block[:, 0]] * overviews[block[:, 1]]).sum((1, 2)).numpy() > _OVERVIEW
        if alike.any():
            found[start : start + len(block)][alike] = _aligned(thumbnails, block[alike])
    return found


def _aligned(thumbnails: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Agreement at the best alignment: a coarse one of all pairs, then a finer one of promising ones."""
    # Either picture may be a part of the other.
    both = np.concatenate([pairs, pairs[:, ::-1]])
    wholes = torch.from_numpy(thumbnails[both[:, 0]]).float()
    parts = torch.from_numpy(thumbnails[both[:, 1]]).float()
    wanted = _details(parts, _crops([(0.0, 1.0)], 24), smooth=_SMOOTH)
    best, at = (_details(wholes, _crops(_COARSE, 24), smooth=_SMOOTH) * wanted).sum((2, 3)).max(1)
    found: np.ndarray = best.view(2, -1).amax(0).numpy()
    for i in np.flatnonzero(found > _PROMISING):
        way = int(i) + len(pairs) * int(best[i] < best[i + len(pairs)])
        rows, columns = _COARSE[int(at[way]) // len(_COARSE)], _COARSE[int(at[way]) % len(_COARSE)]
        found[i] = _refined(wholes[way : way + 1], parts[way : way + 1], rows, columns)
    return found


Edges = tuple[float, float]


def _refined(whole: Tensor, part: Tensor, rows: Edges, columns: Edges) -> float:
    """The correlation of finer details at the best alignment near one that was found."""
    wanted = _details(part, _crops([(0.0, 1.0)], 32), smooth=_SMOOTH)
    best = -1.0
    for step in _STEPS:
        near_rows, near_columns = _shifted(rows, step), _shifted(columns, step)
        crops = _details(whole, _crops(near_rows, 32), _crops(near_columns, 32), smooth=_SMOOTH)
        value, at = (crops * wanted).sum((2, 3))[0].max(0)
        best = max(best, float(value))
        rows, columns = near_rows[int(at) // len(near_columns)], near_columns[int(at) % len(near_columns)]
    return best


def _shifted(edges: Edges, step: float) -> list[Edges]:
    low, high = edges
    shifts = (-step, 0.0, step)
    return list(dict.fromkeys((max(0.0, low + a), min(1.0, high + b)) for a in shifts for b in shifts))


def _crops(windows: Sequence[Edges], out: int) -> Tensor:
    """For each window a matrix (out, 64) that averages the pixels of one axis under each of ``out`` new pixels."""
    edges = torch.tensor([[low + (high - low) * i / out for i in range(out + 1)] for low, high in windows]) * SIDE
    pixels = torch.arange(SIDE).float()
    covered = torch.minimum(edges[:, 1:, None], pixels + 1) - torch.maximum(edges[:, :-1, None], pixels)
    covered = covered.clamp_min(0)
    return covered / covered.sum(2, keepdim=True)


def _details(pictures: Tensor, rows: Tensor, columns: Tensor | None = None, *, smooth: int) -> Tensor:
    """Pictures (p, 64, 64) cut along both axes, without what is smooth, of mean 0 and norm 1: (p, crops, out, out)."""
    columns = rows if columns is None else columns
    cut = torch.einsum("vox,pxy,wuy->pvwou", rows, pictures, columns).flatten(1, 2)
    if smooth:
        flat = cut.flatten(0, 1)[:, None]
        blurred = torch.nn.functional.avg_pool2d(flat, smooth, 1, smooth // 2, count_include_pad=False)
        cut = (flat - blurred).view(cut.shape)
    cut = cut - cut.mean((2, 3), keepdim=True)
    norm: Tensor = cut.flatten(2).norm(dim=2).clamp_min(1e-3)
    return cut / norm[:, :, None, None]
