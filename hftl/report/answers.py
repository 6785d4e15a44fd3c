"""The pages of the scout's answers: numbers drawn with their intervals, tables, and rows that were found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from hftl.intervals import LEVEL, Interval
from hftl.report.audited import audit_parts
from hftl.report.charts import along, whiskers
from hftl.report.parts import Cell, Page, Part, Table, count_cell, with_interval, with_sign, write_page
from hftl.scout.advise import Advice
from hftl.scout.audit import Audit
from hftl.scout.curve import Curve
from hftl.scout.layers import Layers
from hftl.scout.rank import Ranking
from hftl.scout.transfer import Transfer
from hftl.wording import plural

ScoutAnswer: TypeAlias = Ranking | Layers | Transfer | Curve | Audit | Advice

# Classes that are drawn; the table has all.
MOST_DRAWN = 20


def write_answer(answer: ScoutAnswer, path: Path, *, about: str) -> Path:
    """Write an answer of the scout as one HTML file that needs nothing but a browser.

    Args:
        answer: what `rank`, `layers`, `transfer`, `curve`, `audit` or `advise` gave.
        path: the file; its folder is made if missing.
        about: what the question was asked of, such as the backbone and the data.

    Returns:
        The file.

    Raises:
        HftlError: it cannot be written.
    """
    known: dict[type[ScoutAnswer], tuple[str, str, Callable[[Any], list[Part]]]] = {
        Ranking: ("rank", "Which backbone?", _rank_parts),
        Layers: ("layers", "How deep?", _layers_parts),
        Transfer: ("transfer", "Does the transfer pay?", _transfer_parts),
        Curve: ("curve", "What would more labels bring?", _curve_parts),
        Audit: ("audit", "What is wrong with the data?", audit_parts),
        Advice: ("advise", "What to do?", _advice_parts),
    }
    command, title, parts = known[type(answer)]
    notes = answer.notes if isinstance(answer, (Transfer, Audit)) else []
    return write_page(Page(f"hftl {command} · {about}", title, answer.advice, notes, parts(answer)), path)


def _probed(answer: Ranking | Layers) -> str:
    return (
        f"The exact linear head, cross-validated on {plural(answer.rows, 'training row')} in {answer.folds} folds, by "
        f"{answer.metric}. Intervals are 95 %."
    )


def _rank_parts(answer: Ranking) -> list[Part]:
    every = answer.backbones
    # The end of a path tells more than its beginning.
    names = [each.backbone for each in every]
    drawn = [(n.rpartition("/")[2] if n[:1] in "/.~" else n, b.probe) for n, b in zip(names, every, strict=True)]
    strong = [place for place, each in enumerate(every) if each.group == every[0].group]
    rows = [
        [
            Cell(each.backbone),
            count_cell(each.group),
            with_interval(each.probe),
            Cell(f"{each.knn.value:.3f}", each.knn.value),
            Cell(f"{each.log_evidence:.3f}", each.log_evidence),
            *([Cell(f"{h.value:.1f} / {h.null:.1f}", h.value)] if (h := each.h_score) else [Cell("–")]),
            Cell(f"{each.parameters / 1e6:,.1f} M", each.parameters),
            Cell(f"{each.rows_per_second:,.0f}", each.rows_per_second),
            Cell(f"{each.bytes_per_row:,}", each.bytes_per_row),
        ]
        for each in every
    ]
    heads = ["backbone", "group#", f"{answer.metric}#", "k-NN#", "LogME#", "H-score / null#", "parameters#", "rows/s#"]
    lines = [
        _probed(answer),
        "Backbones of one group are the same within noise (paired bootstrap, Holm); the best group stands out.",
        *(f"{each.backbone}: {note}" for each in every for note in each.notes),
    ]
    parts = [
        Part("Scores", lines, [whiskers("backbones", drawn, answer.metric, strong=strong)]),
        Part("Scores and cost", tables=[Table([*heads, "bytes a row#"], rows)]),
    ]
    if answer.failed:
        parts.append(Part("Left out", [f"{each.backbone}: {each.why}" for each in answer.failed]))
    return [*parts, Part("What to run", code=answer.command)]


def _layers_parts(answer: Layers) -> list[Part]:
    points = [(float(each.depth), each.probe) for each in answer.depths]
    figure = along("depths", points, ("blocks", answer.metric), marked=float(answer.chosen))
    rows = [
        [
            count_cell(each.depth),
            with_interval(each.probe),
            Cell(f"{each.parameters / 1e6:,.1f} M", each.parameters),
            Cell(("yes" if each.same else "no") + (", chosen" if each.depth == answer.chosen else "")),
        ]
        for each in answer.depths
    ]
    heads = ["blocks#", f"{answer.metric}#", "parameters#", "as good as the best"]
    lines = [_probed(answer), f"The chosen depth is {answer.speedup:.1f} times as fast as all blocks, on this machine."]
    lines += [f"Pooling {name} at depth {answer.chosen}: {score}." for name, score in answer.pooled.items()]
    if side := answer.together:
        named = ", ".join(map(str, side.depths))
        lines.append(
            f"One head on depths {named} side by side, which no export holds: {side.probe}, ahead of the best by "
            f"{side.gain}."
        )
    return [
        Part("Scores by depth", lines, [figure], [Table(heads, rows)]),
        Part("What to run", code="\n".join(answer.commands)),
    ]


def _transfer_parts(answer: Transfer) -> list[Part]:
    scores = [(answer.backbone, answer.pretrained), *((each.name, each.score) for each in answer.rivals)]
    gains = [(each.name, each.gain) for each in answer.rivals]
    strong = [place for place, (_, gain) in enumerate(gains) if gain.p < 1 - LEVEL]
    rows = [[Cell(answer.backbone), with_interval(answer.pretrained), Cell(""), Cell("")]]
    rows += [
        [Cell(each.name), with_interval(each.score), with_sign(each.gain), Cell(f"{each.gain.p:.3f}", each.gain.p)]
        for each in answer.rivals
    ]
    line = (
        f"The same exact head on the same folds of {plural(answer.rows, 'training row')}, by {answer.metric}. "
        "Intervals are 95 %, p is adjusted for all rivals (Holm)."
    )
    label = f"{answer.metric}: the pretrained is better by"
    parts = [
        Part(
            f"The transfer: {answer.verdict}",
            [line],
            [
                whiskers("scores", scores, answer.metric, strong=range(1)),
                whiskers("gains", gains, label, strong=strong, zero=True),
            ],
            [Table(["model", f"{answer.metric}#", "pretrained is ahead by#", "p#"], rows)],
        )
    ]
    if len(answer.outputs) > 1:
        parts.append(_outputs_of_transfer(answer))
    return parts


def _outputs_of_transfer(answer: Transfer) -> Part:
    drawn: list[tuple[str, Interval]] = [(each.name, each.gain) for each in answer.outputs[:MOST_DRAWN]]
    strong = [place for place, each in enumerate(answer.outputs[:MOST_DRAWN]) if each.gain.p < 1 - LEVEL]
    rows = [
        [
            Cell(each.name, stands_out=each.name in answer.hurt),
            Cell(f"{each.pretrained:.3f}", each.pretrained),
            Cell(f"{each.rival:.3f}", each.rival),
            Cell(f"{each.blind:.3f}", each.blind),
            with_sign(each.gain, stands_out=each.name in answer.hurt),
            Cell(f"{each.gain.p:.3f}", each.gain.p),
        ]
        for each in answer.outputs
    ]
    heads = ["class", "pretrained#", "best rival#", "one answer for all#", "difference#", "p#"]
    hurt = f"It hurts {', '.join(answer.hurt)} beyond noise." if answer.hurt else "None is hurt beyond noise."
    lines = [
        "F1 of each class, or the metric of each label or target, against the best rival that looks at the rows; the "
        f"most hurt first. {hurt}"
    ]
    label = "the pretrained is better by"
    return Part("By class", lines, [whiskers("outputs", drawn, label, strong=strong, zero=True)], [Table(heads, rows)])


def _curve_parts(answer: Curve) -> list[Part]:
    points = [(float(each.rows), each.score) for each in answer.points]
    fitted = [(float(each.rows), each.score) for each in answer.fitted]
    figure = along("curve", points, ("labelled rows", answer.metric), joined=not fitted, fitted=fitted)
    lines = [
        f"Exact heads on held-out rows, by {answer.metric}, the mean of {answer.seeds} draws. Intervals are 95 %, over "
        "held-out rows and draws."
    ]
    if fitted:
        lines.append(
            "The line is the law a − b·n^−c fitted to the points, up to twice the rows there are, and its band."
        )
    if answer.limit is not None:
        lines.append(f"With endless labels the law tends to {answer.limit}.")
    if answer.predicted is not None:
        last = answer.points[-1]
        lines.append(
            f"Fitted without the largest size it says {answer.predicted:.3f} there, and {last.score.value:.3f} is."
        )
    rows = [[count_cell(each.rows), with_interval(each.score)] for each in answer.points]
    return [Part("Scores by labels", lines, [figure], [Table(["labelled rows#", f"{answer.metric}#"], rows)])]


def _advice_parts(answer: Advice) -> list[Part]:
    parts = [Part("What to run", code=answer.command), Part("Evidence", answer.evidence)]
    if answer.trials:
        drawn = [(each.method, each.score) for each in answer.trials]
        rows = [
            [
                Cell(each.method),
                with_interval(each.score),
                Cell("") if each.gain is None else with_sign(each.gain),
                Cell(f"{each.seconds:,.1f}", each.seconds),
            ]
            for each in answer.trials
        ]
        parts.append(
            Part(
                "Short trials",
                ["On the same held-out training rows. Intervals are 95 %."],
                [whiskers("trials", drawn, answer.metric, strong=range(1))],
                [Table(["method", f"{answer.metric}#", "over the frozen head#", "seconds#"], rows)],
            )
        )
    if answer.skipped:
        parts.append(Part("Not asked", answer.skipped))
    return parts
