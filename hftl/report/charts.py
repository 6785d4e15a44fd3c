"""Figures of comparisons and of the scout's answers: numbers and intervals, below one another or along an axis."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from hftl.intervals import Interval
from hftl.report.svg import ACCENT, INK, LONGEST_NAME, QUIET, drawing

_LETTER = 6.4  # pixels of a letter of a name
# Axes whose ends are further apart than this are logarithmic.
_WIDE = 8.0


def whiskers(
    name: str, rows: Sequence[tuple[str, Interval]], label: str, *, strong: Collection[int], zero: bool = False
) -> Markup:
    """Numbers with their intervals, one below the other.

    Args:
        name: of the figure; another one for each figure of a page.
        rows: what each number is of, and the number.
        label: what the numbers are.
        strong: which rows stand out.
        zero: draw a line at 0, because they are differences.
    """
    margin = 16 + _LETTER * min(LONGEST_NAME, max(len(each) for each, _ in rows))
    with drawing(name, 30 * len(rows) + 46) as made:
        axes = made.axes(margin, 6, 16, 40)
        if zero:
            axes.axvline(0, color=QUIET, linewidth=1.2)
        for place, (_, number) in enumerate(rows):
            colour = ACCENT if place in strong else QUIET
            axes.plot([number.low, number.high], [place, place], color=colour, linewidth=2.4)
            axes.plot([number.value], [place], "o", color=colour, markersize=7)
        made.names_at(axes.yaxis, [each for each, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        made.stand_in(axes.set_xlabel(""), label, 60)
        return made.svg(f"{label}: {'; '.join(f'{each} {number}' for each, number in rows)}")


def along(
    name: str,
    points: Sequence[tuple[float, Interval]],
    labels: tuple[str, str],
    *,
    joined: bool = True,
    fitted: Sequence[tuple[float, Interval]] = (),
    marked: float | None = None,
) -> Markup:
    """Numbers with their intervals along an axis.

    Args:
        name: of the figure; another one for each figure of a page.
        points: where on the axis, and the number there.
        labels: of the axis and of the numbers.
        joined: draw a line through them.
        fitted: a line with a band: what a law that was fitted says.
        marked: where on the axis something stands out.
    """
    with drawing(name, 260) as made:
        axes = made.axes(58, 12, 16, 44)
        if fitted:
            x = [at for at, _ in fitted]
            axes.fill_between(x, [n.low for _, n in fitted], [n.high for _, n in fitted], color=ACCENT, alpha=0.16)
            axes.plot(x, [n.value for _, n in fitted], color=ACCENT, linewidth=1.4)
        for at, number in points:
            strong = marked is None or at == marked
            axes.plot([at, at], [number.low, number.high], color=ACCENT if strong else QUIET, linewidth=2)
            axes.plot([at], [number.value], "o", color=ACCENT if strong else QUIET, markersize=7 if strong else 5)
        if joined:
            axes.plot([at for at, _ in points], [n.value for _, n in points], color=QUIET, linewidth=1.2, zorder=0)
        _scale(axes, [at for at, _ in [*points, *fitted]])
        axes.set_xlabel(labels[0])
        made.stand_in(axes.set_ylabel(""), labels[1])
        axes.grid(axis="y")
        told = "; ".join(f"{at:,.6g} {number}" for at, number in points)
        return made.svg(f"{labels[1]} by {labels[0]}: {told}")


def cost_and_score(name: str, costs: Sequence[float], scores: Sequence[Interval], labels: tuple[str, str]) -> Markup:
    """The score of runs, which are numbered from 1, against what they cost."""
    with drawing(name, 260) as made:
        axes = made.axes(58, 18, 22, 44)
        for place, (cost, score) in enumerate(zip(costs, scores, strict=True)):
            colour = ACCENT if place == 0 else QUIET
            axes.plot([cost, cost], [score.low, score.high], color=colour, linewidth=2)
            axes.plot([cost], [score.value], "o", color=colour, markersize=7)
            axes.annotate(
                str(place + 1),
                (cost, score.value),
                (7, 4),
                textcoords="offset points",
                color=INK,
                size=12,
                weight="bold",
            )
        _scale(axes, costs)
        axes.margins(0.12)
        axes.set_xlabel(labels[0])
        made.stand_in(axes.set_ylabel(""), labels[1])
        axes.grid(axis="y")
        told = "; ".join(f"run {n}: {costs[n - 1]:,.6g}, {score}" for n, score in enumerate(scores, 1))
        return made.svg(f"{labels[1]} against {labels[0]}: {told}")


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis where the values need one; ticks as a person writes numbers."""
    least, most = min(values), max(values)
    if least > 0 and most / least > _WIDE:
        axes.set_xscale("log")
        ticks = _round_between(least, most)
        axes.set_xticks(ticks)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        whole = all(float(value).is_integer() for value in values)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}")
    )


def _round_between(least: float, most: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two numbers; only the powers where these are many."""
    exponents = range(int(np.floor(np.log10(least))), int(np.ceil(np.log10(most))) + 1)
    fine = [step * 10.0**k for k in exponents for step in (1, 2, 5) if least * 0.9 <= step * 10.0**k <= most * 1.1]
    return fine if len(fine) <= 6 else [value for value in fine if np.isclose(np.log10(value) % 1, 0)]
