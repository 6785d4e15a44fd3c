"""Models without a network: what a pretrained backbone has to beat."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hftl.ahead import ahead
from hftl.data import Files, Texts
from hftl.data.images import decode_image
from hftl.tasks import Task

# N-grams that are counted at most, the most frequent ones.
MOST_TERMS = 100_000
PIXELS, CELLS, ORIENTATIONS, LEVELS = 16, 4, 8, 8


def text_scores(texts: Texts, labels: np.ndarray, task: Task, folds: np.ndarray) -> np.ndarray:
    """What linear models of TF-IDF say of rows that they have not seen: float32 (m, C), the rows that are in a fold.

    Words, word pairs and character n-grams, counted without labels; a linear support vector machine for each class or
    label, ridge regression for numbers (scikit-learn's defaults). Pairs of texts are joined.

    Args:
        texts: the n rows.
        labels: of the rows; see `hftl.data.Split`.
        task: what they are.
        folds: int64 (n,), the fold of each row, negative where it is always trained on.
    """
    from scipy.sparse import hstack  # type: ignore[import-untyped]

    rows = [" ".join(texts[i]) for i in range(len(texts))]
    terms = hstack([_counted(rows, "word", (1, 2)), _counted(rows, "char", (2, 4))]).tocsr()
    targets = labels[:, None] == np.unique(labels) if task.is_exclusive else labels
    scores = np.zeros((len(rows), targets.shape[1]), dtype=np.float32)
    for fold in np.unique(folds[folds >= 0]):
        held = folds == fold
        for k in range(targets.shape[1]):
            scores[held, k] = _one_output(terms[~held], targets[~held, k], terms[held], task)
    return scores[folds >= 0]


def _counted(rows: Sequence[str], analyzer: str, lengths: tuple[int, int]) -> Any:
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        analyzer=analyzer, ngram_range=lengths, sublinear_tf=True, max_features=MOST_TERMS, dtype=np.float32
    )
    try:
        return vectorizer.fit_transform(rows)
    except ValueError:
        # scikit-learn refuses rows of which none has a term: they all look alike.
        return csr_matrix((len(rows), 1), dtype=np.float32)


def _one_output(terms: Any, target: np.ndarray, held: Any, task: Task) -> np.ndarray:
    """One class against the rest, one label, or one number."""
    from sklearn.linear_model import Ridge
    from sklearn.svm import LinearSVC

    if not task.has_classes:
        predicted: np.ndarray = Ridge(solver="sparse_cg").fit(terms, target).predict(held)
        return predicted
    present = target > 0
    if present.all() or not present.any():
        return np.full(held.shape[0], 1.0 if present.any() else -1.0)
    decided: np.ndarray = LinearSVC().fit(terms, present).decision_function(held)
    return decided


def image_features(files: Files) -> Tensor:
    """Small colour and edge statistics and raw pixels: float32 (n, 1016).

    16 × 16 RGB pixels, mean and spread of each channel in 4 × 4 cells, a histogram of each channel, and histograms of
    edge directions weighted by strength in 4 × 4 cells (the plain form of Dalal & Triggs, CVPR 2005).

    Raises:
        BadRowError: a picture cannot be decoded.
    """

    def describe(row: int) -> np.ndarray:
        image = decode_image(files.read(row), files.name(row))
        return described(np.asarray(image.resize((64, 64), Image.Resampling.BOX), dtype=np.float32) / 255)

    rows: Sequence[int] = range(len(files))
    return torch.from_numpy(np.stack(list(ahead(describe, rows, os.cpu_count() or 1, depth=32))))


def described(pixels: np.ndarray) -> np.ndarray:
    """A picture of 64 × 64 pixels, float32 (64, 64, 3) from 0 to 1, as 1,016 numbers."""
    size = len(pixels)
    small = pixels.reshape(PIXELS, size // PIXELS, PIXELS, size // PIXELS, 3).mean((1, 3))
    cells = pixels.reshape(CELLS, size // CELLS, CELLS, size // CELLS, 3).swapaxes(1, 2).reshape(CELLS**2, -1, 3)
    levels = np.minimum((pixels * LEVELS).astype(int), LEVELS - 1)
    colours = np.stack([np.bincount(levels[..., c].ravel(), minlength=LEVELS) for c in range(3)]) / size**2
    down, right = np.gradient(pixels.mean(2))
    angles = np.minimum((np.arctan2(down, right) % np.pi) / np.pi * ORIENTATIONS, ORIENTATIONS - 1).astype(int)
    cell = np.arange(size) // (size // CELLS)
    place = (cell[:, None] * CELLS + cell) * ORIENTATIONS + angles
    edges = np.bincount(place.ravel(), np.hypot(down, right).ravel(), minlength=CELLS**2 * ORIENTATIONS)
    parts = (small, cells.mean(1), cells.std(1), colours, edges)
    return np.concatenate([part.ravel() for part in parts]).astype(np.float32)
