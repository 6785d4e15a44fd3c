"""``curve``: how the score grows with the number of labels, and what twice as many would bring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from hftl.criterion import Criterion
from hftl.data.division import hold_out_rows
from hftl.errors import DataError
from hftl.frozen.head import LEAST_DEVIATION
from hftl.heads import fit_linear
from hftl.heads.folds import task_folds
from hftl.intervals import LEVEL, Array, Interval, difference, percentiles
from hftl.methods import Head
from hftl.progress import counted
from hftl.runs.again import RecipeLike, as_recipe
from hftl.scored import Score, scored
from hftl.scout.answer import Answer
from hftl.scout.stored import TrainingRows, reading
from hftl.tasks import Task

HELD_OUT = 0.2
# Sizes of training sets: each next one is this share of the one before, down to so many rows, and so many a class.
STEP, MOST_SIZES, FEWEST_SIZES = 0.5**0.5, 8, 4
# At how many sizes the answer says what the law gives.
FITTED_POINTS = 25
FEWEST_ROWS, FEWEST_OF_A_CLASS = 16, 2
# Exponents of the power law that are tried.
_EXPONENTS = np.geomspace(0.05, 2.0, 80)
# Relative distance from the minimum at which a head stops: far below what the held-out rows can tell apart.
_TOLERANCE = 1e-4
# An interval of the gain that is wider than this says no more than that nobody knows.
_TOO_WIDE = 0.05


@dataclass(frozen=True)
class CurvePoint:
    """The score of heads trained on so many rows.

    Attributes:
        rows: labelled rows.
        score: the metric that chooses on held-out rows, the mean of all seeds.
    """

    rows: int
    score: Interval


@dataclass(frozen=True, repr=False)
class Curve(Answer):
    """Score against the number of labels.

    Attributes:
        metric: the one that chooses.
        rows: training rows that there are; sentences where words have labels.
        seeds: draws of held-out and training rows.
        points: from few rows to many.
        limit: what the fitted law tends to with endless labels.
        doubled: what twice the labels would bring, in units of the metric; None where the data cannot tell.
        predicted: what the law fitted without the largest size says of it.
        fitted: what the fitted law says of so many rows, up to twice as many as there are; empty where none is fitted.
        why_not: why the data cannot tell; empty where they can.
        advice: one sentence.
    """

    table: ClassVar[str] = "points"

    metric: str
    rows: int
    seeds: int
    points: list[CurvePoint]
    limit: Interval | None
    doubled: Interval | None
    predicted: float | None
    why_not: str
    fitted: list[CurvePoint]
    advice: str


def curve(
    recipe: RecipeLike,
    *,
    seeds: int = 5,
    subset: int | None = None,
    offline: bool = False,
    allow_pickle: bool = False,
    on_bad_row: str = "error",
    quiet: bool = False,
) -> Curve:
    """Train exact heads on nested stratified parts of the training rows, and extrapolate.

    For each seed a fifth of the training rows is held out and heads are solved on growing parts of the rest. The law
    ``a - b n^-c`` (Cortes et al., *Learning curves: asymptotic values and rate of convergence*, NIPS 1993) is fitted to
    the mean of all seeds, and again to bootstrap samples of seeds and held-out rows. Where words have labels, rows are
    sentences and the score is F1 of entities.

    Args:
        recipe: the backbone and the data; as of `hftl.run`.
        seeds: how many draws.
        subset: use only about so many training rows, stratified.
        offline: use only what is on this machine.
        allow_pickle: read weights that are there only as a pickle, as nothing but tensors.
        on_bad_row: ``"error"``, or ``"skip"`` to leave out rows that cannot be decoded.
        quiet: print nothing but errors.

    Raises:
        UserError: the recipe, its data or its backbone cannot be used, or there are too few rows for a single part.
        CutError: the backbone cannot be cut exactly.
    """
    recipe, _ = as_recipe(recipe)
    with reading(
        offline=offline, allow_pickle=allow_pickle, on_bad_row=on_bad_row, quiet=quiet, of_words=True
    ) as reader:
        known = reader.training(recipe, subset)
    sizes, scores = _measured(known, seeds, reader.quiet)
    return _answer(known, sizes, scores)


def _measured(known: TrainingRows, seeds: int, quiet: bool) -> tuple[list[int], list[list[Score]]]:
    """The sizes, and for each of them the score of each seed."""
    labels, task, groups = known.split.labels, known.task, known.split.marks.groups
    # Where every draw holds out the newest rows, all of them are judged on the same samples of these: as if samples
    # were independent, their mean would seem surer than any of them.
    one_sample = known.split.marks.times is not None
    sizes: list[int] = []
    scores: list[list[Score]] = []
    strengths: list[float] = []
    for seed in counted("curve", range(known.seed, known.seed + seeds), unit="draws", quiet=quiet):
        pool, held = hold_out_rows(known.split, task, HELD_OUT, seed)
        order = pool[nested_order(labels[pool], task, seed)]
        if not sizes:
            sizes = _sizes(len(pool), len(known.data.label_names) if task.is_exclusive else 0)
            scores = [[] for _ in sizes]
        for place, size in enumerate(counted("sizes", sizes, unit="sizes")):
            # The first seed chooses the strength of its size: it depends on the size far more than on the draw.
            known_already = place < len(strengths)
            given = [strengths[place]] if known_already else _nearby(strengths[-1]) if strengths else None
            criterion = known.criterion
            lines = known.lines_of(order[:size])
            fit = fit_linear(
                known.features[lines],
                known.labels[lines],
                task=task.unit,
                num_labels=len(known.data.label_names),
                strengths=given,
                calibrate=criterion.needs_probabilities,
                judge=criterion if criterion.is_stated else None,
                groups=known.apart[lines] if task.of_words and known.apart is not None else None,
                dealt=None if task.of_words else _kept_together(known, order[:size], seed),
                least=LEAST_DEVIATION if task.of_words else 0.0,
                tolerance=_TOLERANCE,
                seed=seed,
            )
            if not known_already:
                strengths.append(float(fit.report["chosen"]))
            logits = fit.logits(known.features[known.lines_of(held)]).numpy()
            sampled, names = known.seed if one_sample else seed, known.data.label_names
            scores[place].append(
                scored(criterion, labels, held, logits, seed=sampled, groups=groups, label_names=names)
            )
    return sizes, scores


def _kept_together(known: TrainingRows, rows: np.ndarray, seed: int) -> Tensor | None:
    """Folds to choose a strength on that part no group, int64 (n,) of some rows; None where rows are independent."""
    if known.split.marks.groups is None:
        return None
    groups = torch.from_numpy(known.split.marks.groups[rows])
    return task_folds(known.labels[rows], known.task, Head().folds, seed, groups)


def _nearby(strength: float) -> list[float]:
    """Strengths about that of the size before, as far apart as those of a whole path; the best one moves slowly."""
    return [strength * 10 ** (4.5 / 19 * step) for step in range(-3, 4)]


def nested_order(labels: np.ndarray, task: Task, seed: int) -> np.ndarray:
    """An order of rows, int64 (n,), of which every beginning has the classes in proportion."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    if not task.is_exclusive:
        return order
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        # Rows of a class are spread evenly over the order; where in the first gap they begin is left to chance.
        place[members] = (np.arange(len(members)) + generator.random()) / len(members)
    return np.argsort(place, kind="stable")


def _sizes(most: int, classes: int) -> list[int]:
    fewest = max(FEWEST_ROWS, FEWEST_OF_A_CLASS * classes)
    sizes = [round(most * STEP**k) for k in range(MOST_SIZES)]
    kept = sorted({size for size in sizes if size >= fewest})
    if not kept:
        raise DataError(
            f"{most:,} rows are left to train on when a fifth is held out, and a learning curve begins at {fewest:,} "
            f"({FEWEST_OF_A_CLASS} of each class): label more rows"
        )
    return kept


def _answer(known: TrainingRows, sizes: list[int], scores: list[list[Score]]) -> Curve:
    criterion, rows, seeds = known.criterion, len(known.split), len(scores[0])
    metric = criterion.name
    values = np.array([[score.interval.value for score in of_size] for of_size in scores])
    # Seeds are drawn again together with rows; one sample takes the same ones at every size.
    every = np.array([[score.draws for score in of_size] for of_size in scores])
    samples = every.shape[2]
    chosen = np.random.default_rng(known.seed).integers(0, seeds, (samples, seeds))
    draws = every[:, chosen, np.arange(samples)[:, None]].mean(2)
    means = values.mean(1)
    points = [CurvePoint(n, percentiles(float(v), d)) for n, v, d in zip(sizes, means, draws, strict=True)]
    limit, gained, predicted, why_not = None, None, None, ""
    fitted: list[CurvePoint] = []
    sign = criterion.sign
    rise = difference(sign * float(means[-1] - means[0]), sign * (draws[-1] - draws[0]), scores[0][0].units)
    if len(sizes) < FEWEST_SIZES:
        why_not = f"{len(sizes)} sizes of training sets are too few for a curve"
    elif rise.value <= 0 or rise.p > 1 - LEVEL:
        grows = "rise" if criterion.greater_is_better else "fall"
        why_not = f"{metric} does not {grows} beyond noise from {sizes[0]:,} to {sizes[-1]:,} labels"
    else:
        noise = draws.std(1).clip(1e-6)
        # The law is one of growth: of a metric of which less is better it is fitted to the negative.
        laws = fitted_laws(np.array(sizes), sign * np.column_stack([means, draws]).T, noise, criterion.best)
        at = [sign * law_at(laws, n) for n in (rows, 2 * rows)]
        gain = at[1] - at[0]
        limit = percentiles(sign * float(laws[0, 0]), sign * laws[1:, 0])
        drawn_at = np.unique(np.geomspace(sizes[0], 2 * rows, FITTED_POINTS).round().astype(int)).tolist()
        fitted = [CurvePoint(n, _said_by(laws, n, sign)) for n in drawn_at]
        gained = percentiles(float(gain[0]), gain[1:])
        earlier = fitted_laws(np.array(sizes[:-1]), sign * means[None, :-1], noise[:-1], criterion.best)
        predicted = sign * float(law_at(earlier, sizes[-1])[0])
        scale = 1.0 if criterion.is_share else abs(float(means[-1]))
        if gained.high - gained.low > _TOO_WIDE * scale:
            why_not = f"twice the labels could bring anything from {_said_change(criterion, gained)}"
            gained = None
    advice = _advised_labels(criterion, rows, gained, why_not)
    return Curve(metric, rows, seeds, points, limit, gained, predicted, why_not, fitted, advice)


def fitted_laws(sizes: Array, scores: Array, noise: Array, most: float = 1.0) -> Array:
    """The law ``a - b n^-c`` that fits best, with ``b >= 0`` and ``a <= most``, by weighted least squares.

    Args:
        sizes: (k,) numbers of rows.
        scores: (m, k), m curves.
        noise: (k,) standard errors of the scores.
        most: what no score exceeds; infinite where nobody can tell.

    Returns:
        float64 (m, 3): a, b and c of each curve.
    """
    weights = 1 / noise**2
    weights = weights / weights.sum()
    best = np.full(len(scores), np.inf)
    laws = np.zeros((len(scores), 3))
    for exponent in _EXPONENTS:
        x = sizes.astype(np.float64) ** -exponent
        centre = weights @ x
        slope = np.minimum((scores * weights) @ (x - centre) / (weights @ (x - centre) ** 2), 0)
        top = scores @ weights - slope * centre
        # Where the limit would lie above what the metric can be, the curve is fitted to reach just that.
        if np.isfinite(most):
            above = top > most
            through = np.minimum(((scores - most) * weights) @ x / (weights @ x**2), 0)
            slope, top = np.where(above, through, slope), np.where(above, most, top)
        error = ((top[:, None] + slope[:, None] * x - scores) ** 2) @ weights
        better = error < best
        best = np.where(better, error, best)
        laws[better] = np.column_stack([top, -slope, np.full(len(scores), exponent)])[better]
    return laws


def law_at(laws: Array, rows: float) -> Array:
    """What laws (m, 3) say of so many rows: float64 (m,)."""
    value: Array = laws[:, 0] - laws[:, 1] * float(rows) ** -laws[:, 2]
    return value


def _said_by(laws: Array, rows: int, sign: float) -> Interval:
    """What the first law says of so many rows, with the interval of the others."""
    value = sign * law_at(laws, rows)
    return percentiles(float(value[0]), value[1:])


def _said_change(criterion: Criterion, gained: Interval) -> str:
    """The ends of what is gained, in points where the metric is a share."""
    if criterion.is_share:
        return f"{100 * gained.low:+.1f} to {100 * gained.high:+.1f} points"
    return f"{gained.low:+.3g} to {gained.high:+.3g} of {criterion.name}"


def _advised_labels(criterion: Criterion, rows: int, doubled: Interval | None, why_not: str) -> str:
    if doubled is None:
        return f"The data cannot tell what more labels would bring: {why_not}."
    if criterion.is_share:
        points = f"{100 * doubled.value:+.1f} points of {criterion.name}"
        points += f" ({100 * doubled.low:.1f} to {100 * doubled.high:.1f})"
        pays = doubled.low > 0.005
    else:
        points = f"{doubled.value:+.3g} of {criterion.name} ({doubled.low:+.3g} to {doubled.high:+.3g})"
        pays = min(criterion.sign * doubled.low, criterion.sign * doubled.high) > 0
    worth = "more labels pay" if pays else "they may not be worth their cost"
    return f"Twice the labels ({2 * rows:,} rows) would bring {points}: {worth}."
