"""What is drawn on a page; numbers come from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from hftl.intervals import Interval
from hftl.report.collected import FeatureMap
from hftl.report.numbers import Bin, LabelCurve
from hftl.report.svg import ACCENT, INK, LINE, LONGEST_NAME, QUIET, SERIES, Drawing, drawing
from hftl.wording import plural

# Colours of pictures inside a figure, which no page can change: they show on light and dark, and ink shows on them.
RIGHT, WRONG = (0.5, 0.5, 0.55), (0.88, 0.42, 0.10)
MOST_OPAQUE = 0.72
MOST_CELLS_WITH_NUMBERS = 24
LONGEST_AXIS = 48
_LETTER = 6.4  # pixels of a letter of a name


def beside(scores: Sequence[tuple[str, Interval]], metric: str) -> Markup:
    """Scores with their intervals, one below the other; the first is the run's own."""
    with drawing("beside", 34 * len(scores) + 44) as made:
        axes = made.axes(138, 6, 16, 38)
        for place, (_, score) in enumerate(scores):
            colour = ACCENT if place == 0 else QUIET
            axes.plot([score.low, score.high], [place, place], color=colour, linewidth=2.4)
            axes.plot([score.value], [place], "o", color=colour, markersize=8)
        made.names_at(axes.yaxis, [name for name, _ in scores])
        axes.set_ylim(len(scores) - 0.4, -0.6)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        made.stand_in(axes.set_xlabel(""), f"{metric} on the test split", LONGEST_AXIS)
        told = "; ".join(f"{name} {score}" for name, score in scores)
        return made.svg(f"{metric} with 95 % intervals: {told}")


def strengths_by(path: Sequence[Mapping[str, Any]], chosen: float, metric: str) -> Markup:
    """The metric that chose, on held-out rows, along the path of L2 strengths."""
    with drawing("strengths", 240) as made:
        axes = made.axes(56, 10, 26, 44)
        rows = sorted(path, key=lambda step: float(step["strength"]))
        x, y = (np.array([step.get(key) for step in rows], dtype=np.float64) for key in ("strength", "metric"))
        axes.plot(x, y, color=ACCENT)
        at = int(np.abs(np.log(x) - np.log(chosen)).argmin())
        axes.plot([x[at]], [y[at]], "o", color=ACCENT, markersize=8)
        _strength_axis(axes)
        _axis_names(axes, "L2 strength", "")
        made.stand_in(axes.set_ylabel(""), metric, LONGEST_AXIS)
        return made.svg(f"{metric} along the L2 strengths; {y[at]:.4f} at {chosen:.3g}, which was chosen")


def _strength_axis(axes: Any) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda strength, _: f"{strength:g}"))


def strengths(path: Sequence[Mapping[str, Any]], chosen: float) -> Markup:
    """The error on held-out rows along the path of L2 strengths."""
    with drawing("strengths", 240) as made:
        axes = made.axes(56, 10, 26, 44)
        rows = sorted(path, key=lambda step: float(step["strength"]))
        x, y, error = (np.array([step.get(key) or 0.0 for step in rows]) for key in ("strength", "validation", "se"))
        axes.fill_between(x, y - error, y + error, color=ACCENT, alpha=0.18)
        axes.plot(x, y, color=ACCENT)
        at = int(np.abs(np.log(x) - np.log(chosen)).argmin())
        axes.plot([x[at]], [y[at]], "o", color=ACCENT, markersize=8)
        _strength_axis(axes)
        # As far as there is something to choose between: a hopeless end would flatten the rest.
        low, high = float((y - error).min()), float((y + error).max())
        axes.set_ylim(max(0.0, low * 0.95), min(high, 3 * float(y.min())) * 1.05 + 1e-9)
        _axis_names(axes, "L2 strength", "held-out loss")
        return made.svg(f"Held-out loss along the L2 strengths; the least, {y[at]:.4f}, at {chosen:.3g}")


def epochs(history: Sequence[Mapping[str, Any]], kept: int, metric: str) -> Markup:
    """A metric after each epoch, the start being epoch 0."""
    with drawing("epochs", 240) as made:
        axes = made.axes(56, 10, 14, 44)
        y = np.array([np.nan if step.get(metric) is None else float(step[metric]) for step in history])
        axes.plot(np.arange(len(y)), y, color=ACCENT, marker="o", markersize=4)
        axes.plot([kept], [y[kept]], "o", color=ACCENT, markersize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _axis_names(axes, "epoch", "")
        made.stand_in(axes.set_ylabel(""), metric, LONGEST_AXIS)
        return made.svg(f"{metric} after each epoch; epoch {kept} is kept: {y[kept]:.4f}")


def losses_by_step(steps: Sequence[Mapping[str, Any]]) -> Markup:
    """The training loss of each step, as a line through means of neighbouring steps."""
    with drawing("steps", 240) as made:
        axes = made.axes(56, 10, 14, 44)
        x = np.array([step["step"] for step in steps], dtype=np.float64)
        y = np.array([step["loss"] for step in steps], dtype=np.float64)
        bins = np.array_split(np.arange(len(x)), min(len(x), 200))
        axes.plot([x[b].mean() for b in bins], [y[b].mean() for b in bins], color=ACCENT)
        axes.set_ylim(bottom=0)
        _axis_names(axes, "step", "training loss")
        return made.svg(f"Training loss by step, from {y[0]:.3f} to {y[-1]:.3f}")


def confusion(matrix: np.ndarray, names: Sequence[str], name: str) -> Markup:
    """Counts of labels by predictions: the diagonal grey, what is wrong in colour, the more the stronger.

    Names and numbers stand in it where there are at most 24 classes.
    """
    readable = len(matrix) <= MOST_CELLS_WITH_NUMBERS
    if readable:
        cell = min(36.0, max(22.0, 330 / len(matrix)))
        margin = 22 + _LETTER * min(LONGEST_NAME, max(map(len, names)))
    else:
        cell, margin = 420 / len(matrix), 28.0
    side = cell * len(matrix)
    with drawing(name, side + margin + 8, side + margin + 8) as made:
        axes = made.axes(margin, 4, 4, margin)
        axes.imshow(_heat(matrix), interpolation="none", aspect="auto")
        axes.spines[:].set_visible(False)
        if readable:
            for row, column in np.argwhere(matrix).tolist():
                colour = QUIET if row == column else INK
                axes.text(column, row, f"{matrix[row, column]:,}", ha="center", va="center", color=colour, size=10.5)
            made.names_at(axes.yaxis, names)
            made.names_at(axes.xaxis, names, rotation=90 if max(map(len, names)) > 2 else 0)
        else:
            axes.set_xticks([])
            axes.set_yticks([])
        axes.set_xlabel("predicted", size=11)
        axes.set_ylabel("label", size=11)
        right = int(np.trace(matrix))
        return made.svg(
            f"Confusion matrix of {plural(len(names), 'class')}: {right:,} rows right, {int(matrix.sum()) - right:,} "
            "wrong; the most frequent confusions are listed below"
        )


def _heat(matrix: np.ndarray) -> np.ndarray:
    """Colours float (k, k, 4) by the share of each label's rows."""
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    diagonal = np.eye(len(matrix), dtype=bool)
    wrong = np.where(diagonal, 0, share)
    heat = np.zeros((*matrix.shape, 4))
    heat[..., :3] = np.where(diagonal[..., None], RIGHT, WRONG)
    # The square root, so that single mistakes are seen beside frequent ones.
    strength = np.sqrt(wrong / max(float(wrong.max()), 1e-9))
    heat[..., 3] = np.where(diagonal, 0.35 * share, MOST_OPAQUE * strength)
    return heat


def reliability_diagram(bins: Sequence[Bin], error: float) -> Markup:
    """How often predictions of each confidence are right, and how many there are."""
    with drawing("reliability", 320) as made:
        axes = made.axes(56, 10, 14, 104)
        axes.plot([0, 1], [0, 1], color=LINE, linewidth=1.4)
        x = [each.confidence for each in bins]
        for each in bins:
            axes.plot([each.confidence] * 2, [each.right.low, each.right.high], color=ACCENT, linewidth=2, alpha=0.45)
        axes.plot(x, [each.right.value for each in bins], "o", color=ACCENT, markersize=6)
        axes.set(xlim=(0, 1.01), ylim=(0, 1.02))
        axes.set_ylabel("share that is right")
        axes.xaxis.set_major_formatter(NullFormatter())
        axes.grid()
        below = made.axes(56, 226, 14, 44)
        below.bar(x, [each.count for each in bins], width=0.045, color=QUIET, alpha=0.7)
        below.set(xlim=(0, 1.01), yticks=[])
        below.spines["left"].set_visible(False)
        below.set_xlabel("confidence; bars: how many predictions")
        return made.svg(f"Reliability diagram; expected calibration error {error:.4f}")


def plane(found: FeatureMap, classes: np.ndarray, coloured: Sequence[int], wrong: np.ndarray) -> Markup:
    """Rows on a plane: some classes coloured, the others grey, what was predicted wrong with a ring.

    Args:
        found: the points.
        classes: int (n,), the class of each point; -1 for none.
        coloured: classes that have a colour each, at most ten.
        wrong: bool (n,).
    """
    with drawing("plane", 420) as made:
        axes = made.axes(8, 8, 8, 30)
        x, y = np.array(found.x), np.array(found.y)
        others = ~np.isin(classes, list(coloured))
        axes.scatter(x[others], y[others], s=9, color=QUIET, alpha=0.35, linewidths=0)
        for colour, k in zip(SERIES, coloured, strict=False):
            inside = classes == k
            axes.scatter(x[inside], y[inside], s=15, color=colour, alpha=0.85, linewidths=0)
        axes.scatter(x[wrong], y[wrong], s=34, facecolors="none", edgecolors=INK, linewidths=0.8)
        _without_ticks(axes)
        return made.svg(
            f"{plural(len(x), 'test row')} on a plane by {found.method}, {int(wrong.sum()):,} predicted wrong"
        )


def values_on_plane(found: FeatureMap, values: np.ndarray, name: str) -> Markup:
    """Rows on a plane, the larger the value the stronger the colour."""
    with drawing("plane", 420) as made:
        axes = made.axes(8, 8, 8, 30)
        x, y = np.array(found.x), np.array(found.y)
        rank = values.argsort().argsort() / max(len(values) - 1, 1)
        for fifth in range(5):
            inside = np.minimum((rank * 5).astype(int), 4) == fifth
            axes.scatter(x[inside], y[inside], s=15, color=ACCENT, alpha=0.1 + 0.2 * fifth, linewidths=0)
        _without_ticks(axes)
        return made.svg(f"{plural(len(x), 'test row')} on a plane by {found.method}, coloured by {name}")


def _without_ticks(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(True)
    axes.margins(0.03)


def predicted_by_true(labels: np.ndarray, predicted: np.ndarray, target: str, name: str) -> Markup:
    """Predicted against true values of one target, and the line on which both are the same."""
    with drawing(name, 400) as made:
        axes = made.axes(60, 10, 14, 46)
        axes.scatter(labels, predicted, s=12, color=ACCENT, alpha=0.4, linewidths=0)
        ends = [float(min(labels.min(), predicted.min())), float(max(labels.max(), predicted.max()))]
        axes.plot(ends, ends, color=QUIET, linewidth=1.2)
        axes.grid()
        made.stand_in(axes.set_xlabel(""), f"true {target}", LONGEST_AXIS)
        made.stand_in(axes.set_ylabel(""), f"predicted {target}", LONGEST_AXIS)
        return made.svg(f"Predicted against true {target} for {plural(len(labels), 'test row')}")


def residuals(errors: np.ndarray, target: str, name: str) -> Markup:
    """How predictions of one target err."""
    with drawing(name, 200) as made:
        axes = made.axes(60, 10, 14, 46)
        axes.hist(errors, bins=40, color=ACCENT, alpha=0.75)
        axes.axvline(0, color=QUIET, linewidth=1.2)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        made.stand_in(axes.set_xlabel(""), f"predicted − true {target}", LONGEST_AXIS)
        axes.set_ylabel("rows")
        return made.svg(f"Errors of {target}: mean {errors.mean():.4g}, standard deviation {errors.std():.4g}")


def precision_recall(curves: Sequence[LabelCurve]) -> Markup:
    """Precision by recall for each label, side by side, with the point at its threshold."""
    columns = 3
    rows = -(-len(curves) // columns)
    with drawing("curves", 152 * rows + 20) as made:
        for place, curve in enumerate(curves):
            _curve(made, curve, place % columns, place // columns, rows)
        told = "; ".join(f"{curve.label}: average precision {curve.average_precision:.3f}" for curve in curves)
        return made.svg(f"Precision by recall. {told}")


def _curve(made: Drawing, curve: LabelCurve, column: int, row: int, rows: int) -> None:
    left, top = 34 + column * 146, 26 + row * 152
    axes = made.axes(left, top, made.width - left - 112, made.height - top - 106)
    axes.step(curve.recall, curve.precision, where="post", color=ACCENT, linewidth=1.5)
    axes.plot([curve.at[0]], [curve.at[1]], "o", color=INK, markersize=5)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.04), xticks=[0, 1], yticks=[0, 1])
    made.stand_in(axes.set_title("", size=11, loc="left", pad=5), curve.label, 17)
    if column == 0:
        axes.set_ylabel("precision", labelpad=-6, size=10.5)
    if row == rows - 1:
        axes.set_xlabel("recall", labelpad=-8, size=10.5)


def _axis_names(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="y")
