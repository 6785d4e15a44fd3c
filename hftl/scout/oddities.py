"""Rows that are far from everything, and classes that are one class under two names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata  # type: ignore[import-untyped]

from hftl.intervals import Interval, percentiles, resamples

# Robust z-score from which a row is far from everything.
FAR = 6.0
# Of fewer rows it cannot be said what is usual.
FEWEST_TO_COMPARE = 20
# Rows of each of two classes that are needed to call them one.
FEWEST_ROWS = 5
# The chance that a head tells two classes apart is one half where they are one; this much more is still nothing.
ONE_CLASS = 0.65
_MOST_PAIRS = 200


def far_rows(cosine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose nearest neighbours are unusually far away.

    The mean cosine distance to the nearest rows, as a z-score from median and median absolute deviation. (Ramaswamy,
    Rastogi & Shim, SIGMOD 2000, take the distance to the k-th.)

    Args:
        cosine: (n, k), to the nearest other rows.

    Returns:
        float64 (n,) z-scores, and bool (n,).
    """
    distance = 1 - cosine.astype(np.float64).mean(1)
    centred = distance - np.median(distance)
    spread = 1.4826 * np.median(np.abs(centred))
    usual = spread > 0 and len(cosine) >= FEWEST_TO_COMPARE
    score = centred / spread if usual else np.zeros_like(centred)
    return score, score > FAR


@dataclass(frozen=True)
class ClassPair:
    """Two classes that may be one.

    Attributes:
        classes: their names.
        same_name: whether the names differ in case, blanks and punctuation only.
        told_apart: how often the head gives the first class more of its own row than of the other's: 0.5 is chance;
            None where there are too few rows.
        why: the reason in words.
    """

    classes: tuple[str, str]
    same_name: bool
    told_apart: Interval | None
    why: str


def one_class_in_two_names(
    names: Sequence[str], probabilities: np.ndarray, labels: np.ndarray, *, seed: int = 0
) -> list[ClassPair]:
    """Pairs of classes with one name, or that a head does not tell apart.

    Two classes are one where, among their rows alone, the area under the ROC curve of their log odds is about that of
    chance: the upper end of its 95 % interval, by a bootstrap over rows, is below 0.65. Asked of the pairs that are
    confused most, both ways.

    Args:
        names: of the C classes.
        probabilities: (m, C), of rows that the head has not seen.
        labels: int64 (m,).
        seed: of the bootstrap.
    """
    alike = pairs_of_one_name(names)
    found = []
    for a, b in dict.fromkeys([*alike, *_most_confused(probabilities, labels)]):
        told = _told_apart(probabilities, labels, a, b, seed)
        if (a, b) in alike:
            found.append(ClassPair((names[a], names[b]), True, told, "the names differ in spelling only"))
        elif told is not None and told.high < ONE_CLASS:
            why = f"a head tells their rows apart no better than chance: {told}, chance is 0.5"
            found.append(ClassPair((names[a], names[b]), False, told, why))
    return found


def pairs_of_one_name(names: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of names that are equal without case, blanks and punctuation; names of nothing else are left alone."""
    known: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        if letters := "".join(c for c in name.casefold() if c.isalnum()):
            known[letters].append(i)
    # "1.5" and "15", "-1" and "1" are numbers, and numbers of one sequence of digits may be two classes.
    return [(same[0], other) for letters, same in known.items() if not letters.isdigit() for other in same[1:]]


def _most_confused(probabilities: np.ndarray, labels: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of classes by how much of the one's rows goes to the other, in the direction where that is less."""
    classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=classes)
    given = np.zeros((classes, classes))
    np.add.at(given, labels, probabilities)
    given /= np.maximum(counts, 1)[:, None]
    own = np.diag(given)
    # Where two classes are one, a row's probability is about as large for the other as for its own.
    both = np.minimum(given, given.T) / np.maximum(np.maximum(own[:, None], own[None]), 1e-12)
    both[counts < FEWEST_ROWS] = both[:, counts < FEWEST_ROWS] = 0
    first, second = np.nonzero(np.triu(both > 1 / 3, 1))
    order = np.argsort(-both[first, second], kind="stable")[:_MOST_PAIRS]
    return list(zip(first[order].tolist(), second[order].tolist(), strict=True))


def _told_apart(probabilities: np.ndarray, labels: np.ndarray, a: int, b: int, seed: int) -> Interval | None:
    rows = np.flatnonzero((labels == a) | (labels == b))
    is_first = labels[rows] == a
    if min(is_first.sum(), (~is_first).sum()) < FEWEST_ROWS:
        return None
    chosen = probabilities[rows].astype(np.float64)
    odds = np.log(chosen[:, a] + 1e-300) - np.log(chosen[:, b] + 1e-300)
    level = rankdata(odds, method="dense") - 1
    draws = np.concatenate([_areas(level, is_first, times) for times in resamples(len(rows), seed=seed)])
    value = float(_areas(level, is_first, np.ones((1, len(rows))))[0])
    return percentiles(value, np.where(np.isfinite(draws), draws, value))


def _areas(level: np.ndarray, is_first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The area under the ROC curve on samples in which each row stands so many times, ties counted half: (b,)."""
    order = np.argsort(level, kind="stable")
    first, second = counts[:, order] * is_first[order], counts[:, order] * ~is_first[order]
    starts = np.flatnonzero(np.diff(level[order], prepend=-1))
    first, second = (np.add.reduceat(each, starts, axis=1) for each in (first, second))
    below = np.cumsum(second, axis=1) - second
    with np.errstate(invalid="ignore"):
        area: np.ndarray = (first * (below + second / 2)).sum(1) / (first.sum(1) * second.sum(1))
    return area
