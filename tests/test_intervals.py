"""Intervals and comparisons, held to scipy, to brute force, and to problems whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hftl import intervals


@pytest.mark.parametrize(("hits", "rows"), [(0, 7), (7, 7), (50, 100), (993, 1000)])
def test_a_share_has_wilsons_interval(hits: int, rows: int) -> None:
    found = intervals.proportion(hits, rows)
    expected = stats.binomtest(hits, rows).proportion_ci(method="wilson")
    assert found.value == hits / rows
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_samples_draw_as_many_rows_as_there_are_and_repeat() -> None:
    first = np.concatenate(list(intervals.resamples(50, seed=3)))
    again = np.concatenate(list(intervals.resamples(50, seed=3)))
    assert first.shape == (2000, 50)
    assert (first.sum(1) == 50).all()
    assert (first == again).all()
    assert first.mean() == pytest.approx(1.0)
    # Binomial: every row is drawn 50 times with chance 1/50.
    assert first.var() == pytest.approx(49 / 50, rel=0.02)


def test_groups_are_drawn_whole() -> None:
    groups = np.array([4, 4, 4, 9, 9, 1])
    drawn = np.concatenate(list(intervals.resamples(6, groups=groups, seed=0)))
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert (drawn[:, 3] == drawn[:, 4]).all()
    assert ((drawn[:, 0] + drawn[:, 3] + drawn[:, 5]) == 3).all()


def test_the_jackknife_of_a_mean_is_its_standard_error_and_heavy_tails_are_known_worse() -> None:
    generator = np.random.default_rng(0)
    normal, heavy = generator.normal(size=400), generator.standard_t(3, size=400)
    known = []
    for values in (normal, heavy):
        without = np.concatenate([counts @ values / counts.sum(1) for counts in intervals.left_out(400)])
        found = intervals.Jackknife.of(without, 400)
        assert found.error == pytest.approx(values.std(ddof=1) / 20)
        known.append(found.freedom)
    # A variance of n normal numbers is known with n degrees of freedom.
    assert known[0] == pytest.approx(399, rel=0.2)
    assert known[1] < known[0] / 2
    groups = np.repeat(np.arange(7), 3)
    left = np.concatenate(list(intervals.left_out(21, groups=groups)))
    assert sorted(np.flatnonzero(each == 0).tolist() for each in left) == np.arange(21).reshape(7, 3).tolist()
    # Of very many rows, blocks: each row is left out once.
    assert (np.concatenate(list(intervals.left_out(50, most=8))) == 0).sum(0).tolist() == [1] * 50
    assert not list(intervals.left_out(5, groups=np.zeros(5, np.int64)))


def test_the_bootstrap_of_a_mean_is_what_the_normal_law_says() -> None:
    values = np.random.default_rng(0).normal(size=400)
    draws = np.concatenate([times @ values / 400 for times in intervals.resamples(400)])
    found = intervals.percentiles(float(values.mean()), draws)
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


MANY = 10**9


def test_a_difference_of_nothing_is_no_difference_and_a_large_one_is_certain() -> None:
    draws = np.random.default_rng(0).normal(size=2000)
    assert intervals.difference(0.0, draws, MANY).p == 1.0
    assert intervals.difference(0.0, np.zeros(2000), MANY).p == 1.0
    sure = intervals.difference(10.0, draws + 10, MANY)
    # Where no sample is as far, the tail of the normal law: else many comparisons at once could find nothing.
    assert sure.p == pytest.approx(2 * stats.norm.sf(10 / draws.std()), rel=1e-6)
    assert intervals.difference(4.2, draws + 4.2, MANY).p <= 1 / 2001
    assert min(intervals.holm([sure.p, *[0.5] * 300])) < 0.05
    assert sure.low > 7
    two_sided = 2 * stats.norm.sf(1.5)
    assert intervals.difference(1.5, draws + 1.5, MANY).p == pytest.approx(two_sided, abs=0.02)
    # A wider spread moves the interval's ends and the p-value together.
    wide = intervals.difference(1.5, draws + 1.5, MANY, spread=2.0)
    assert wide.p == pytest.approx(2 * stats.norm.sf(0.75), abs=0.03)
    assert wide.high - wide.low == pytest.approx(2 * (sure.high - sure.low), rel=1e-6)


@pytest.mark.parametrize("units", [2, 3, 5, 10, 40])
def test_what_is_equal_is_seldom_called_different_however_few_groups_tell(units: int) -> None:
    random, called, problems = np.random.default_rng(units), 0, 400
    for seed in range(problems):
        # What one model is better by in each group, of which the mean is nothing.
        gains = random.normal(size=units)
        draws = np.concatenate([times @ gains / times.sum(1) for times in intervals.resamples(units, seed=seed)])
        called += intervals.difference(float(gains.mean()), draws, units).p < 0.05
    # The binomial law of 400 problems reaches 8 % once in a hundred times.
    assert called <= 0.08 * problems


def test_groups_that_all_speak_for_one_model_are_told_from_chance_only_where_they_are_many() -> None:
    for units, p in ((1, 1.0), (2, 0.5), (4, 0.125)):
        assert intervals.difference(0.3, np.full(2000, 0.3), units).p >= p
    assert intervals.difference(0.3, np.full(2000, 0.3), 40).p < 0.01


def test_a_wider_spread_widens_every_interval() -> None:
    narrow, wide = (intervals.proportion(30, 100, spread=spread) for spread in (1.0, 2.0))
    # Twice the spread is that of a quarter of the rows.
    assert _ends(wide) == pytest.approx(_ends(intervals.proportion(7.5, 25)))
    assert wide.low < narrow.low < narrow.high < wide.high
    draws = np.random.default_rng(0).normal(size=2000)
    once, twice = (intervals.percentiles(0.0, draws, spread=spread) for spread in (1.0, 2.0))
    assert _ends(twice) == pytest.approx((2 * once.low, 2 * once.high))


def _ends(interval: intervals.Interval) -> tuple[float, float]:
    return interval.low, interval.high


def test_holm_is_the_closed_test() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    # By hand: sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, made monotone.
    assert intervals.holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert intervals.holm([]) == []
    assert intervals.holm([0.9, 0.8]) == [1.0, 1.0]
