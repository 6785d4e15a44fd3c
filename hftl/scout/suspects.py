"""Labels that a head which has not seen the row would not give: how suspicious each is, and how many are wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq  # type: ignore[import-untyped]
from scipy.special import log_softmax  # type: ignore[import-untyped]
from scipy.stats import t as student_t  # type: ignore[import-untyped]

from hftl.intervals import Array, Interval

# Inverse temperatures that are tried, and how finely about the best of them.
_BETAS, _FINER = np.geomspace(0.1, 30, 40), np.geomspace(0.85, 1.17, 13)
# Half the 95 % quantile of chi-square with one degree of freedom: how far a profile of the log-likelihood may fall.
_FALL = 1.920729
_FALL_FROM_NOTHING = -math.log(0.025)


@dataclass(frozen=True)
class Suspects:
    """Labels and how far they can be trusted, for m rows (or for m pairs of a row and a label).

    Attributes:
        score: float64 (m,), the least the most suspicious.
        suggested: int64 (m,), the class that the row rather is of.
        listed: bool (m,), whether it is named as likely wrong.
        wrong: how many labels are wrong, with a 95 % interval.
    """

    score: np.ndarray
    suggested: np.ndarray
    listed: np.ndarray
    wrong: Interval


def confident_learning(probabilities: np.ndarray, labels: np.ndarray) -> Suspects:
    """Likely wrong labels by confident learning (Northcutt, Jiang & Chuang, JAIR 70, 2021, section 3).

    A row is confidently of a class where its probability reaches the mean probability that rows labelled so have
    (equation 2; of several classes the most probable). Rows that are confidently of another class than their label's
    are listed: the off-diagonal of the confident joint. The order is by self-confidence, the probability of the row's
    own label. How many are wrong is estimated by `how_many_are_wrong`, because the confident joint counts rows that are
    only hard for the head.

    Args:
        probabilities: (m, C), of rows that the head has not seen.
        labels: int64 (m,).
    """
    own, suggested, listed = likely_wrong(probabilities, labels)
    return Suspects(own, suggested, listed, how_many_are_wrong(probabilities, labels))


def likely_wrong(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which labels `confident_learning` lists, without saying how many there are in all, which takes far longer.

    Args:
        probabilities: (m, C), of rows that the head has not seen.
        labels: int64 (m,).

    Returns:
        float64 (m,) the probability of each row's own label, int64 (m,) the class that the row rather is of, and bool
        (m,) whether the label is listed.
    """
    rows, classes = np.arange(len(labels)), probabilities.shape[1]
    own = probabilities[rows, labels].astype(np.float64)
    confident = np.where(probabilities >= _thresholds(own, labels, classes), probabilities, -1.0)
    best = confident.argmax(1)
    reached = confident[rows, best] >= 0
    others = probabilities.copy()
    others[rows, labels] = -1.0
    suggested = np.where(reached & (best != labels), best, others.argmax(1))
    return own, suggested, reached & (best != labels)


def _thresholds(own: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """The mean probability that the rows of each class have of it: float64 (C,)."""
    counts = np.bincount(labels, minlength=classes)
    thresholds = np.bincount(labels, own, minlength=classes) / np.maximum(counts, 1)
    # A class without a labelled row has no threshold to reach.
    thresholds[counts == 0] = np.inf
    return thresholds


def how_many_are_wrong(probabilities: np.ndarray, labels: np.ndarray) -> Interval:
    """How many labels are wrong, by maximum likelihood, with the interval of its profile.

    A label is what the head's probabilities say at some temperature, or, with some chance e, any class at random. What
    the head finds hard is explained by the temperature; e explains labels of which it is surer of the contrary than
    that allows, which grow with the share of wrong labels and hardly with the head's weakness. Wrong labels that look
    right, such as confusions of classes that a head confuses too, are not counted.

    Args:
        probabilities: (m, C), of rows that the head has not seen.
        labels: int64 (m,).
    """
    rows, classes = np.arange(len(labels)), probabilities.shape[1]
    logits = np.log(np.maximum(probabilities, 1e-30))

    def own_at(betas: Array) -> Array:
        """The probability of each row's label at inverse temperatures: (b, m)."""
        logs = np.stack([log_softmax(beta * logits, axis=1)[rows, labels] for beta in betas])
        own: Array = np.exp(logs.astype(np.float64))
        return own

    def likelihood(own: Array, chance: float) -> Array:
        logs: Array = np.log(np.maximum((1 - chance) * own + chance / classes, 1e-300)).sum(-1)
        return logs

    def likeliest(own: Array) -> float:
        """The chance e for one temperature: the log-likelihood is concave in it."""

        def slope(chance: float) -> float:
            rise = 1 / classes - own
            return float((rise / np.maximum((1 - chance) * own + chance / classes, 1e-300)).sum())

        if slope(0.0) <= 0:
            return 0.0
        return 1.0 if slope(1.0) >= 0 else float(brentq(slope, 0.0, 1.0, xtol=1e-7))

    def best_of(owns: Array) -> tuple[int, float]:
        chances = [likeliest(own) for own in owns]
        values = [float(likelihood(own, chance)) for own, chance in zip(owns, chances, strict=True)]
        return int(np.argmax(values)), chances[int(np.argmax(values))]

    coarse, _ = best_of(own_at(_BETAS))
    owns = own_at(_BETAS[coarse] * _FINER)
    _, chance = best_of(owns)
    # Where none looks wrong the next label may be: of a share of 3.7 in n, n labels show nothing once in 40 times.
    lowest = float(likelihood(owns, chance).max()) - (_FALL if chance > 0 else _FALL_FROM_NOTHING)

    def above(other: float) -> float:
        return float(likelihood(owns, other).max()) - lowest

    low = 0.0 if above(0.0) >= 0 else float(brentq(above, 0.0, chance))
    high = 1.0 if above(1.0) >= 0 else float(brentq(above, chance, 1.0))
    # A label that is drawn at random may be the right one.
    number = len(labels) * (1 - 1 / classes)
    return Interval(chance * number, low * number, high * number)


def wrong_in_each_label(probabilities: np.ndarray, labels: np.ndarray) -> tuple[list[Suspects], Interval]:
    """Confident learning for each of several labels, which a row has or not.

    Args:
        probabilities: (m, C), of having each label.
        labels: (m, C) of 0 and 1.

    Returns:
        For each label the suspects among all rows, and the number of wrong entries, summed over labels.
    """
    of_label = [
        confident_learning(np.stack([1 - column, column], axis=1), truth.astype(np.int64))
        for column, truth in zip(probabilities.T, labels.T, strict=True)
    ]
    return of_label, _sum([each.wrong for each in of_label])


def _sum(parts: Sequence[Interval]) -> Interval:
    """The sum of independent numbers: the squares of their distances to the intervals' ends add up."""
    value = sum(part.value for part in parts)
    below = math.hypot(*(part.value - part.low for part in parts))
    above = math.hypot(*(part.high - part.value for part in parts))
    return Interval(value, max(value - below, 0.0), value + above)


def large_residuals(predicted: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Targets that lie further from what is predicted than chance explains.

    Residuals of rows that the head has not seen, in units of their spread, which is taken from the median absolute
    deviation, because wrong targets must not hide themselves. Listed are those beyond Student's t at 5 % over all rows
    and targets (Bonferroni).

    Args:
        predicted: (m, C), for rows that the head has not seen.
        targets: (m, C).

    Returns:
        float64 (m, C) studentised residuals, and bool (m, C).
    """
    residual = targets.astype(np.float64) - predicted
    centred = residual - np.median(residual, axis=0)
    spread = 1.4826 * np.median(np.abs(centred), axis=0)
    studentised = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)
    limit = student_t.ppf(1 - 0.025 / max(studentised.size, 1), df=max(len(targets) - 1, 1))
    return studentised, np.abs(studentised) > limit
