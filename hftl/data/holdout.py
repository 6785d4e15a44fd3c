"""Rows that are set aside by a seed, stratified by class."""

from collections.abc import Sequence

import numpy as np

from hftl.data.dataset import Files, Indices, Labels, Split, Texts, indicators
from hftl.errors import DataError
from hftl.tasks import Task
from hftl.wording import plural

_SMALL_ENOUGH_TO_COMPARE = 256 << 20  # bytes of files held in memory, up to which rows of two splits are compared


def shared_rows(train: Split, test: Split) -> list[str]:
    """Count test rows whose content training holds too; files on disk are not read for it."""
    ours, theirs = _contents(train.inputs), _contents(test.inputs)
    # By their hashes first: a set of all rows would be many times as large as they are.
    hashes = [np.fromiter(map(hash, each), np.int64, len(each)) for each in (ours, theirs)]
    alike = [np.flatnonzero(np.isin(own, other)).tolist() for own, other in (hashes, hashes[::-1])]
    known = {ours[row] for row in alike[0]}
    shared = sum(theirs[row] in known for row in alike[1])
    return [f"{shared:,} of {plural(len(test), 'test row')} stand in the training split too"] if shared else []


def _contents(inputs: Texts | Files) -> Sequence[object]:
    if isinstance(inputs, Texts):
        return inputs
    size = inputs.nbytes_in_memory
    return [] if size is None or size > _SMALL_ENOUGH_TO_COMPARE else list(inputs)


def hold_out(
    labels: Labels, task: Task, test_size: float, seed: int, *, what: str = "test_size"
) -> tuple[Indices, Indices]:
    """Draw the rows to evaluate on.

    Of a class with n rows, ``test_size * n`` are drawn, rounded so that the shares add up; at least one stays
    in training, so a class with a single row is never drawn. With several labels a row, or a label for each word, the
    draw is plain, and then a row goes back for each label that training would lack.

    Args:
        labels: labels of all rows, as `hftl.data.Split` describes them.
        task: what they are.
        test_size: the share to draw, between 0 and 1.
        seed: the same seed draws the same rows.
        what: how the share is called, for the error.

    Returns:
        Row numbers that stay in training, and those drawn; both sorted.

    Raises:
        DataError: there are too few rows to draw any.
    """
    if not 0 < test_size < 1:
        raise DataError(f"{what} is {test_size}, but must lie between 0 and 1")
    rng = np.random.default_rng(seed)
    draw = task.case(single_label=_draw_by_class, multi_label=_draw_labels, regression=_draw, token_labels=_draw_labels)
    drawn = draw(labels, test_size, rng)
    if len(drawn) == 0 or len(drawn) == len(labels):
        why, add = "", f"add rows, set a larger {what}"
        if task.is_exclusive and len(np.unique(labels)) == len(labels) > 0:
            why, add = ", because every class has a single one", "add rows to the classes"
        raise DataError(
            f"{plural(len(labels), 'labelled row')} cannot spare an evaluation split{why}: {add}, or give a test split "
            f"(test.csv beside train.csv, or folders train and test)"
        )
    return np.setdiff1d(np.arange(len(labels)), drawn), np.sort(drawn)


def _draw(labels: Labels, share: float, rng: np.random.Generator) -> Indices:
    return rng.permutation(len(labels))[: round(share * len(labels))]


def _draw_labels(labels: Labels, share: float, rng: np.random.Generator) -> Indices:
    labels = indicators(labels)
    return _keep_each_label(labels, _draw(labels, share, rng))


def _draw_by_class(labels: Labels, share: float, rng: np.random.Generator) -> Indices:
    """Draw from each class; what rounding down leaves over goes to the largest remainders."""
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
    drawn = [rng.permutation(np.flatnonzero(labels == c))[: take[c]] for c in range(len(counts))]
    return np.concatenate(drawn)


def _keep_each_label(labels: Labels, drawn: Indices) -> Indices:
    stays = np.ones(len(labels), dtype=bool)
    stays[drawn] = False
    for label in range(labels.shape[1]):
        has = labels[:, label] > 0
        if not (has & stays).any() and has.any():
            stays[np.flatnonzero(has)[0]] = True
    return np.flatnonzero(~stays)
