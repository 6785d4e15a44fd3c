"""`on_a_plane`: features of many numbers as points, by UMAP where it is installed and by principal components else."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from hftl.report.collected import FeatureMap

# UMAP looks at 15 neighbours of each row.
FEWEST_FOR_UMAP = 50


def on_a_plane(features: Tensor, rows: np.ndarray, seed: int) -> FeatureMap:
    """Points for rows.

    Args:
        features: (n, d) float32.
        rows: (n,), which rows of the split they are.
        seed: of UMAP.
    """
    if find_spec("umap") is not None and len(features) >= FEWEST_FOR_UMAP:
        return _map("UMAP", [], rows, _umap(features.numpy(), seed))
    # Distances, not scales of single numbers, are what heads and neighbours see.
    centred = features.double() - features.double().mean(0)
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    points = torch.zeros(len(features), 2, dtype=torch.float64)
    kept = min(2, len(singular))
    points[:, :kept] = centred @ directions[:kept].T
    variance = singular.square()
    total = float(variance.sum())
    explained = [float(v) / total if total > 0 else 0.0 for v in variance[:kept]]
    return _map("PCA", explained, rows, points.numpy())


def _map(method: str, explained: list[float], rows: np.ndarray, points: np.ndarray) -> FeatureMap:
    x, y = (np.round(axis.astype(np.float64), 5).tolist() for axis in points.T)
    return FeatureMap(method=method, explained=explained, rows=rows.tolist(), x=x, y=y)


def _umap(features: np.ndarray, seed: int) -> np.ndarray:
    # Brought only here: it compiles for seconds.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from umap import UMAP

        points: np.ndarray = UMAP(random_state=seed, n_jobs=1).fit_transform(features)
    return points
