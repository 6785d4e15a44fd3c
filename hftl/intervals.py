"""How sure a number is: resampled rows, intervals, paired differences; shared by whatever reports a number."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri, stdtr, stdtrit  # type: ignore[import-untyped]

Array = npt.NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95
# How much wider a cross-validated score spreads about that of the head on all rows than its rows say, and a difference
# of two such scores about the true one. Rows that are resampled under fixed heads do not see that other training rows
# give other heads. On simulated problems (`benchmarks/coverage.py rank`) the variance is 1.0 to 1.6 times as large,
# most where rows are few beside features. Nadeau & Bengio, *Inference for the generalization error*, Machine Learning
# 52 (2003), section 3, say 2.05 times, with which backbones that differ are called the same more often than need be.
SPREAD_OF_HEADS = math.sqrt(1.4)
# Rows or groups, or blocks of them, that are left out one by one.
LEFT_OUT = 1000
# A t with fewer degrees of freedom has no variance.
_LEAST_FREEDOM = 2.0
# The normal quantile that belongs to the level.
_QUANTILE = 1.959963984540054
# Counts that are made at once; they must not outweigh the features that are judged.
_BLOCK_NUMBERS = 1 << 17


@dataclass(frozen=True)
class Interval:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def within(self, lowest: float, highest: float) -> Interval:
        """The same without what the number cannot be: spread draws reach past it."""
        return replace(self, low=max(self.low, lowest), high=min(self.high, highest))

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Difference(Interval):
    """A difference of two numbers, its 95 % interval, and how often chance alone gives one as large.

    Attributes:
        p: two-sided p-value, from 0 to 1.
    """

    p: float

    def signed(self) -> str:
        """The difference and its interval with signs: ``+0.012 (-0.003 to +0.027)``."""
        numbers = (self.value, self.low, self.high)
        value, low, high = (f"{each:+.3f}" if abs(each) >= 0.0005 else "0.000" for each in numbers)
        return f"{value} ({low} to {high})"


def resamples(
    rows: int, *, groups: npt.NDArray[np.int64] | None = None, seed: int = 0, most: int = RESAMPLES
) -> Iterator[Array]:
    """How often each row is drawn in each of 2,000 bootstrap samples (Efron 1979), in blocks of samples.

    The same rows, groups and seed give the same samples, so that two scores of the same rows are compared in pairs.

    Args:
        rows: how many there are.
        groups: int64 (rows,), the group of each row; groups are drawn whole, because their rows are not independent.
        seed: of the draws.
        most: only so many of the samples, the first ones.

    Yields:
        float64 (b, rows); the b add up to 2,000, or to ``most``.
    """
    members = np.arange(rows) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(members.max()) + 1
    generator = np.random.default_rng(seed)
    together = max(1, _BLOCK_NUMBERS // max(rows, count))
    for start in range(0, most, together):
        number = min(together, most - start)
        drawn = generator.integers(0, count, (number, count)) + count * np.arange(number)[:, None]
        times = np.bincount(drawn.ravel(), minlength=number * count).reshape(number, count)
        yield times[:, members].astype(np.float64)


def left_out(
    rows: int, *, groups: npt.NDArray[np.int64] | None = None, seed: int = 0, most: int = LEFT_OUT
) -> Iterator[Array]:
    """All rows but one, for each (the jackknife): how often each row stands in each sample, in blocks of samples.

    Args:
        rows: how many there are.
        groups: int64 (rows,), the group of each row; groups are left out whole.
        seed: of the dealing of blocks.
        most: so many samples; where there are more rows, or groups, blocks of them are left out, dealt at random.

    Yields:
        float64 (b, rows) of zeros and ones; nothing of a single unit, without which nothing is left.
    """
    unit = np.arange(rows) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(unit.max(initial=0)) + 1
    blocks = min(count, most) if count > 1 else 0
    block = np.random.default_rng(seed).permutation(np.arange(count) % max(blocks, 1))[unit]
    together = max(1, _BLOCK_NUMBERS // rows)
    for start in range(0, blocks, together):
        yield (block != np.arange(start, min(start + together, blocks))[:, None]).astype(np.float64)


@dataclass(frozen=True)
class Jackknife:
    """What a statistic tells of how far it can be trusted, from its values without each unit.

    Attributes:
        error: its standard error (Efron & Tibshirani 1993, eq. 11.5).
        freedom: with how many degrees of freedom that is known: of heavy tails fewer than of so many normal units,
            ``2 n / (kurtosis - 1)`` (Satterthwaite, Biometrics Bulletin 2, 1946, with the variance of a variance).
    """

    error: float
    freedom: float

    @classmethod
    def of(cls, without: Array, units: int) -> Jackknife:
        """From the statistic (blocks,) on the samples of `left_out`, of so many units."""
        distance = without - without.mean() if len(without) else np.zeros(1)
        square, fourth = (float((distance**power).mean()) for power in (2, 4))
        freedom = max(units - 1.0, 1.0)
        if square > 0 and fourth > square**2:
            freedom = min(freedom, max(_LEAST_FREEDOM, 2 * len(distance) / (fourth / square**2 - 1)))
        return cls(math.sqrt((len(distance) - 1) * square), freedom)


def percentiles(
    value: float, draws: Array, *, spread: float = 1.0, units: int | None = None, freedom: float | None = None
) -> Interval:
    """A statistic and the percentile interval of its bootstrap draws (Efron & Tibshirani 1993, section 13.3).

    With ``units`` the percentiles are expanded as far as a t interval of so many is wider than a normal one with the
    biased standard deviation (Hesterberg, *What teachers should know about the bootstrap*, The American Statistician 69
    (2015), section 4.3): the bootstrap of few units is too narrow.

    Args:
        value: the statistic.
        draws: (samples,), on each sample.
        spread: what the draws' distances from the value are multiplied with.
        units: how many independent rows, or groups, were drawn from; None leaves the percentiles as they are.
        freedom: degrees of freedom of that t; None for one less than there are units.
    """
    tail = (1 - LEVEL) / 2
    if units is not None and units > 1:
        tail = float(ndtr(math.sqrt(units / (units - 1)) * stdtrit(freedom or units - 1, tail)))
    low, high = np.quantile(value + (draws - value) * spread, [tail, 1 - tail])
    # The best that a statistic can be, such as r2 of the mean on its own rows, no sample reaches.
    return Interval(value, min(float(low), value), max(float(high), value))


def proportion(successes: float, rows: float, *, spread: float = 1.0) -> Interval:
    """A share of independent rows and its score interval, which holds near 0 and 1 too (Wilson 1927, eq. 8).

    Args:
        successes: of the rows.
        rows: how many.
        spread: how many times as far the share spreads as that of independent rows.
    """
    share, square = successes / rows, (_QUANTILE * spread) ** 2
    middle = (share + square / (2 * rows)) / (1 + square / rows)
    half = _QUANTILE * spread * math.sqrt(share * (1 - share) / rows + square / (4 * rows**2)) / (1 + square / rows)
    return Interval(share, min(middle - half, share), max(middle + half, share))


def share_of_units(
    share: float, draws: Array, units: int, *, spread: float = 1.0, freedom: float | None = None
) -> Interval:
    """A share of rows that are not independent, and its score interval: `proportion` of so many rows as tell as much.

    The effective number of rows is what makes the binomial variance that of the draws, less what few units leave open
    (Korn & Graubard, Survey Methodology 24 (1998); Dean & Pagano, J. Survey Statistics and Methodology 3 (2015), find
    it good for Wilson's interval too). Where the draws do not vary, because nothing is wrong, there are as many as
    units.

    Args:
        share: of the rows.
        draws: (samples,), on samples of units.
        units: how many groups, or rows.
        spread: as of `proportion`.
        freedom: as of `percentiles`.
    """
    variance = float(np.var(draws)) * units / max(units - 1, 1)
    rows = share * (1 - share) / variance if variance > 0 and 0 < share < 1 else float(units)
    wider = stdtrit(freedom or max(units - 1, 1), (1 + LEVEL) / 2) / _QUANTILE
    return proportion(share * rows, rows, spread=spread * wider)


def of_draws(value: float, draws: Array, units: int, *, spread: float = 1.0, freedom: float | None = None) -> Interval:
    """Expanded percentiles of a score; where no sample changes a 0 or a 1, what a share of right rows has.

    Args:
        value: the score.
        draws: on bootstrap samples.
        units: how many independent rows, or groups, there are.
        spread: as of `percentiles`.
        freedom: as of `percentiles`.
    """
    if value in (0.0, 1.0) and not np.ptp(draws):
        return share_of_units(value, draws, units, spread=spread, freedom=freedom)
    return percentiles(value, draws, spread=spread, units=units, freedom=freedom)


def units_of(rows: int, groups: npt.NDArray[np.int64] | None) -> int:
    """How many independent units rows are: groups where they are drawn whole, else themselves."""
    return rows if groups is None else len(np.unique(groups))


def difference(value: float, draws: Array, units: int, *, spread: float = 1.0) -> Difference:
    """A difference of two scores of the same rows, from draws on the same bootstrap samples.

    Interval and p-value are expanded by the same t, as `percentiles` says; and p is no less than chance gives where so
    many units all speak for the same one.

    Args:
        value: the difference.
        draws: (samples,), the difference on each sample.
        units: how many independent rows, or groups, were drawn from.
        spread: what the draws' distances from the value are multiplied with; see `SPREAD_OF_HEADS`.
    """
    distances = (draws - value) * spread
    scored = percentiles(value, draws, spread=spread, units=units)
    # One more sample, the data themselves, so that no p-value is 0 (Davison & Hinkley 1997, eq. 4.11).
    larger = int((np.abs(distances) >= abs(value) - 1e-12).sum())
    normal = float(ndtri((1 + larger) / (1 + len(draws)) / 2))
    deviation = float(distances.std())
    if not larger and deviation > 0:
        # Of 2,000 samples p could not be less than 1/2001, and of 101 comparisons at once none would ever differ: what
        # no sample reaches has the tail of the normal law with their deviation.
        normal = min(normal, -abs(value) / deviation)
    if units < 2:
        return Difference(value, scored.low, scored.high, 1.0)
    p = 2 * float(stdtr(units - 1, math.sqrt((units - 1) / units) * normal))
    return at_least_by_chance(Difference(value, scored.low, scored.high, p), units)


def at_least_by_chance(difference: Difference, rows: int) -> Difference:
    """A difference whose p is no less than chance gives where so few rows tell two models apart.

    Were the two as good, each such row would speak for either with one half, so that all speak for the same one with
    ``2^(1 - rows)``. The bootstrap does not know: where every row of a small class falls one way, it does so in all
    samples.

    Args:
        difference: of two scores of the same rows.
        rows: on how many of them the two models do not do the same.
    """
    return replace(difference, p=max(difference.p, min(1.0, 2.0 ** (1 - rows))))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of several comparisons, adjusted so that all hold together (Holm 1979)."""
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
