"""Set an evaluation split aside where the data bring none: seeded, and stratified by class."""

import numpy as np

from hftl.data.rows import Indices, Labels, Task
from hftl.errors import DataError


def hold_out(labels: Labels, task: Task, test_size: float, seed: int) -> tuple[Indices, Indices]:
    """Draw the rows to evaluate on.

    Of a class with n rows, ``test_size * n`` are drawn, rounded so that the shares add up; at least one stays in training, so a class with a single row is
    never drawn. With several labels a row the draw is plain, and then a row goes back for each label that training would lack.

    Args:
        labels: labels of all rows, as `hftl.data.Split` describes them.
        task: what they are.
        test_size: the share to draw, between 0 and 1.
        seed: the same seed draws the same rows.

    Returns:
        Row numbers that stay in training, and those drawn; both sorted.

    Raises:
        DataError: there are too few rows to draw any.
    """
    if not 0 < test_size < 1:
        raise DataError(f"test_size is {test_size}, but must lie between 0 and 1")
    rng = np.random.default_rng(seed)
    drawn = (
        _draw_by_class(labels, test_size, rng)
        if task == "single_label"
        else _draw(len(labels), test_size, rng)
    )
    if task == "multi_label":
        drawn = _give_back(labels, drawn)
    if len(drawn) == 0 or len(drawn) == len(labels):
        raise DataError(
            f"{len(labels)} labelled rows are too few to set an evaluation split aside: add rows, or give a test split"
        )
    return np.setdiff1d(np.arange(len(labels)), drawn), np.sort(drawn)


def _draw(rows: int, share: float, rng: np.random.Generator) -> Indices:
    return rng.permutation(rows)[: round(share * rows)]


def _draw_by_class(labels: Labels, share: float, rng: np.random.Generator) -> Indices:
    """Draw from each class; what rounding down leaves over goes to the classes with the largest remainders."""
    counts = np.bincount(labels.astype(np.int64))
    quota = share * counts
    take = np.floor(quota).astype(np.int64)
    most = np.maximum(counts - 1, 0)
    left_over = round(share * len(labels)) - int(take.sum())
    # Ties are broken at random, or else the first classes would always win.
    order = np.lexsort((rng.random(len(counts)), take - quota))
    for c in order:
        if left_over > 0 and take[c] < min(most[c], np.ceil(quota[c])):
            take[c] += 1
            left_over -= 1
    take = np.minimum(take, most)
    drawn = [rng.permutation(np.flatnonzero(labels == c))[: take[c]] for c in range(len(counts))]
    return np.concatenate(drawn)


def _give_back(labels: Labels, drawn: Indices) -> Indices:
    stays = np.ones(len(labels), dtype=bool)
    stays[drawn] = False
    for label in range(labels.shape[1]):
        has = labels[:, label] > 0
        if not (has & stays).any() and has.any():
            stays[np.flatnonzero(has)[0]] = True
    return np.flatnonzero(~stays)
