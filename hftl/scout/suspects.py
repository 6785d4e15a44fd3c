"""Labels that a head which has not seen the row would not give: how suspicious each is, and how many are wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t  # type: ignore[import-untyped]

from hftl.intervals import Interval, percentiles, proportion, resamples

# A resample moves a class's threshold by less: a probability further below it is never confident.
_NEAR = 0.5


@dataclass(frozen=True)
class Suspects:
    """Labels and how far they can be trusted, for m rows (or for m pairs of a row and a label).

    Attributes:
        score: float64 (m,), the least the most suspicious.
        suggested: int64 (m,), the class that the row rather is of.
        listed: bool (m,), whether it is named as likely wrong.
        wrong: how many labels are wrong, with a 95 % interval.
        draws: float64 (2000,), how many are on bootstrap samples of the rows.
    """

    score: np.ndarray
    suggested: np.ndarray
    listed: np.ndarray
    wrong: Interval
    draws: np.ndarray


def confident_learning(probabilities: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> Suspects:
    """Likely wrong labels by confident learning (Northcutt, Jiang & Chuang, JAIR 70, 2021, section 3).

    A row is confidently of a class where its probability reaches the mean probability that rows labelled so have
    (equation 2; of several classes the most probable). Rows that are confidently of another class than their label's
    are listed: the off-diagonal of the confident joint. Calibrated to the labels' counts (equation 3), it estimates how
    many are wrong; where a head tells classes apart badly, that counts rows that are only hard. The order is by
    self-confidence, the probability of the row's own label.

    Args:
        probabilities: (m, C), of rows that the head has not seen.
        labels: int64 (m,).
        seed: of the bootstrap over rows.
    """
    own, suggested, listed = likely_wrong(probabilities, labels)
    joint = _Joint.of(probabilities, labels, own, _thresholds(own, labels, probabilities.shape[1]))
    value = float(joint.wrong(np.ones((1, len(labels))))[0])
    draws = np.concatenate([joint.wrong(times) for times in resamples(len(labels), seed=seed)])
    wrong = _how_many(value, draws, len(labels))
    return Suspects(own, suggested, listed, wrong, draws)


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


def _how_many(value: float, draws: np.ndarray, labels: int) -> Interval:
    if value > 0:
        return percentiles(value, draws)
    # Samples of labels of which none is wrong have none either, but the next label may be.
    return Interval(0.0, 0.0, labels * proportion(0, labels).high)


@dataclass(frozen=True)
class _Joint:
    """The confident joint of many samples of the same rows.

    Attributes:
        labels: int64 (m,).
        own: float64 (m,), the probability of each row's label.
        classes: how many.
        row: int64 (e,), rows with a class that may be reached, by row and then from probable to improbable.
        column: int64 (e,), that class.
        probability: float64 (e,).
    """

    labels: np.ndarray
    own: np.ndarray
    classes: int
    row: np.ndarray
    column: np.ndarray
    probability: np.ndarray

    @classmethod
    def of(cls, probabilities: np.ndarray, labels: np.ndarray, own: np.ndarray, thresholds: np.ndarray) -> _Joint:
        row, column = np.nonzero(probabilities >= _NEAR * thresholds)
        probability = probabilities[row, column].astype(np.float64)
        order = np.lexsort((-probability, row))
        return cls(labels, own, len(thresholds), row[order], column[order], probability[order])

    def wrong(self, counts: np.ndarray) -> np.ndarray:
        """How many labels are wrong on samples in which each row stands so many times, (b, m): float64 (b,)."""
        return np.array([self._wrong(times) for times in counts])

    def _wrong(self, times: np.ndarray) -> float:
        weight = np.bincount(self.labels, times, minlength=self.classes)
        thresholds = np.bincount(self.labels, times * self.own, minlength=self.classes) / np.maximum(weight, 1e-300)
        thresholds[weight == 0] = np.inf
        reached = np.flatnonzero(self.probability >= thresholds[self.column])
        # Entries of a row stand from probable to improbable, so its first is the class that it is confidently of.
        reached = reached[np.diff(self.row[reached], prepend=-1) > 0]
        row, column = self.row[reached], self.column[reached]
        label = self.labels[row]
        confident = np.bincount(label, times[row], minlength=self.classes)
        off = np.bincount(label, times[row] * (column != label), minlength=self.classes)
        return float((off / np.maximum(confident, 1e-300) * weight * (confident > 0)).sum())


def wrong_in_each_label(
    probabilities: np.ndarray, labels: np.ndarray, *, seed: int = 0
) -> tuple[list[Suspects], Interval]:
    """Confident learning for each of several labels, which a row has or not.

    Args:
        probabilities: (m, C), of having each label.
        labels: (m, C) of 0 and 1.
        seed: of the bootstrap over rows.

    Returns:
        For each label the suspects among all rows, and the number of wrong entries, summed over labels.
    """
    of_label = [
        confident_learning(np.stack([1 - column, column], axis=1), truth.astype(np.int64), seed=seed)
        for column, truth in zip(probabilities.T, labels.T, strict=True)
    ]
    # Every label was judged on the same samples of rows.
    draws = np.sum([each.draws for each in of_label], axis=0)
    return of_label, _how_many(sum(each.wrong.value for each in of_label), draws, labels.size)


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
