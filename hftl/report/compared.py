"""The page of several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from hftl.intervals import LEVEL
from hftl.report.changes import said_value
from hftl.report.charts import cost_and_score, whiskers
from hftl.report.collected import Collected, ShownRow
from hftl.report.comparison import ComparedRun, Comparison
from hftl.report.parts import Card, Cell, Page, Part, Table, count_cell, with_interval, with_sign
from hftl.wording import plural

# Classes that are drawn, and rows that are shown; the table and `hftl compare --json` have more.
MOST_DRAWN, MOST_SHOWN = 20, 24


def page_of(answer: Comparison) -> Page:
    """A comparison as a page; rows are shown where one of the runs kept them for its own page."""
    parts = [_scores_part(answer), _changes(answer), _costs(answer)]
    if answer.outputs:
        parts.append(_outputs(answer))
    if answer.disagreements:
        parts.append(_rows(answer))
    return Page("hftl report", f"{len(answer.runs)} runs side by side", _lead(answer), answer.notes, parts)


def _name(answer: Comparison, number: int) -> str:
    """What a run is called in a figure: its number, and what of its making differs."""
    run = answer.runs[number - 1]
    differs = {change.field for change in answer.changes}
    telling = [run.method] if "method" in differs else []
    if "backbone" in differs:
        telling.append(run.backbone.rpartition("/")[2])
    return f"{number} {', '.join(telling)}".strip()


def _lead(answer: Comparison) -> str:
    where = f"On the {plural(answer.rows, f'test {answer.unit}')} that all predicted"
    if all(run.verdict == "the same within noise" for run in answer.runs[1:]):
        return f"{where}, {answer.metric} is the same within noise."
    said = [f"run {n} is {_against(run)}" for n, run in enumerate(answer.runs[1:], 2)]
    return f"{where}, by {answer.metric}: {'; '.join(said)}."


def _against(run: ComparedRun) -> str:
    return f"{run.verdict} {'as' if run.verdict.startswith('the same') else 'than'} run 1"


def _scores_part(answer: Comparison) -> Part:
    named = [_name(answer, number) for number in range(1, len(answer.runs) + 1)]
    scores = list(zip(named, [run.score for run in answer.runs], strict=True))
    gains = [(name, run.against_first) for name, run in zip(named, answer.runs, strict=True) if run.against_first]
    strong = [place for place, (_, gain) in enumerate(gains) if gain.p < 1 - LEVEL]
    lines = [
        f"Intervals are 95 %, of differences by a paired bootstrap on the same {plural(answer.rows, answer.unit)}, "
        "each for itself; p is adjusted for all runs (Holm), and the verdict goes by it. Both say what other test rows "
        "would change, and nothing of what another seed of training would."
    ]
    figures = [
        whiskers("scores", scores, answer.metric, strong=range(1)),
        whiskers("gains", gains, f"{answer.metric}: better than run 1 by", strong=strong, zero=True),
    ]
    return Part("Scores", lines, figures, [_compared_scores(answer), _all_reported(answer)])


def _compared_scores(answer: Comparison) -> Table:
    heads = ["run#", "folder", f"{answer.metric}#", "better than run 1 by#", "p#", "verdict"]
    counted = any(run.only_it is not None for run in answer.runs)
    if counted:
        heads += ["only it right#", "only 1 right#"]
    rows = []
    for number, run in enumerate(answer.runs, 1):
        gain = run.against_first
        cells = [Cell(str(number), number), Cell(run.folder), with_interval(run.score)]
        cells += [Cell("")] * 3 if gain is None else [with_sign(gain), Cell(f"{gain.p:.3f}", gain.p), Cell(run.verdict)]
        if counted:
            cells += [Cell("") if count is None else count_cell(count) for count in (run.only_it, run.only_first)]
        rows.append(cells)
    return Table(heads, rows)


def _all_reported(answer: Comparison) -> Table:
    metrics = list(dict.fromkeys(name for run in answer.runs for name in run.reported))
    rows = [
        [Cell(_name(answer, number), number), *(_reported(run, name) for name in metrics)]
        for number, run in enumerate(answer.runs, 1)
    ]
    caption = "As each run reported on all of its own test rows"
    return Table(["run", *(f"{name}#" for name in metrics)], rows, caption)


def _reported(run: ComparedRun, metric: str) -> Cell:
    value = run.reported.get(metric)
    return Cell("–") if value is None else Cell(f"{value:.4f}", value)


def _changes(answer: Comparison) -> Part:
    if not answer.changes:
        return Part("What differs", ["Nothing that is recorded differs between these runs."])
    numbers = [f"run {number}" for number in range(1, len(answer.runs) + 1)]
    rows = [[Cell(each.field), *(Cell(said_value(value)) for value in each.values)] for each in answer.changes]
    return Part(
        "What differs",
        ["Fields of the recipes and of what the runs stood on; all others are the same."],
        (),
        [Table(["field", *numbers], rows)],
    )


def _costs(answer: Comparison) -> Part:
    scores = [run.score for run in answer.runs]
    seconds = [run.cost.seconds.get("total", 0.0) for run in answer.runs]
    trained = [run.cost.trained_parameters for run in answer.runs]
    figures: list[Markup] = []
    if all(seconds):
        figures.append(cost_and_score("seconds", seconds, scores, ("seconds in all", answer.metric)))
    if all(trained):
        figures.append(
            cost_and_score("trained", [float(n or 0) for n in trained], scores, ("parameters trained", answer.metric))
        )
    rows = []
    for number, run in enumerate(answer.runs, 1):
        cost = run.cost
        spent = [
            Cell(f"{cost.seconds.get(k, 0):,.1f}", cost.seconds.get(k, 0.0)) for k in ("total", "extract", "train")
        ]
        parameters = Cell("–") if cost.trained_parameters is None else count_cell(cost.trained_parameters)
        features = [count_cell(cost.computed), count_cell(cost.reused)]
        rows.append([Cell(_name(answer, number), number), *spent, *features, parameters])
    heads = ["run", "seconds#", "extract#", "train#", "rows computed#", "rows reused#", "parameters trained#"]
    line = "Features that were stored already cost a run nothing: rows reused are not in its seconds."
    return Part("Cost", [line] if any(run.cost.reused for run in answer.runs) else [], figures, [Table(heads, rows)])


def _outputs(answer: Comparison) -> Part:
    what = answer.task.case(single_label="class", multi_label="label", regression="target", token_labels="type")
    score = "F1" if answer.task.unit.is_exclusive else answer.task.metric
    figures = []
    for number in range(2, len(answer.runs) + 1):
        drawn = [(each.name, each.against_first[number - 2]) for each in answer.outputs]
        drawn = sorted(drawn, key=lambda pair: -abs(pair[1].value))[:MOST_DRAWN]
        strong = [place for place, (_, gain) in enumerate(drawn) if gain.p < 1 - LEVEL]
        label = f"{score}: run {number} better than run 1 by"
        figures.append(whiskers(f"outputs-{number}", drawn, label, strong=strong, zero=True))
    rows = []
    for each in answer.outputs:
        scores = [Cell(f"{value:.3f}", value) for value in each.scores]
        gains = [with_sign(gain, stands_out=gain.p < 1 - LEVEL) for gain in each.against_first]
        rows.append([Cell(each.name), count_cell(each.rows), *scores, *gains])
    numbers = range(1, len(answer.runs) + 1)
    heads = [
        what,
        "entities#" if answer.task.of_words else "rows#",
        *(f"run {n}#" for n in numbers),
        *(f"{n} better than 1 by#" for n in numbers[1:]),
    ]
    beyond = sum(any(gain.p < 1 - LEVEL for gain in each.against_first) for each in answer.outputs)
    differ = f"{plural(beyond, what)} of {len(answer.outputs):,} {'differs' if beyond == 1 else 'differ'}"
    lines = [
        f"{score} of each {what}. {differ if beyond else 'None differs'} beyond noise; p is adjusted for all of them"
        f"{' and all runs' if len(answer.runs) > 2 else ''} (Holm). Where rows are few an interval is too narrow, "
        "and only p counts."
    ]
    if len(answer.outputs) > MOST_DRAWN:
        lines.append(f"The figures show the {MOST_DRAWN} that differ most.")
    return Part("Classes" if what == "class" else f"{what.capitalize()}s", lines, figures, [Table(heads, rows)])


def _rows(answer: Comparison) -> Part:
    kept = _kept_rows([Path(run.folder) for run in answer.runs])
    cards = []
    for each in answer.disagreements[:MOST_SHOWN]:
        label = said_value(each.label)
        said = []
        for place, prediction in enumerate(each.predictions):
            text = said_value(prediction)
            sure = f" {each.sure[place]:.3f}" if each.sure else ""
            said.append((f"run {place + 1}", f"{text}{sure}", answer.task.has_classes and text != label))
        row = kept.get(each.row) or ShownRow(split="test", name=each.row, label=label)
        cards.append(Card([row], said))
    if answer.task.has_classes:
        of_all = f"{answer.disagreeing:,} of {plural(answer.rows, answer.unit)}"
        line = f"The runs predict different things for {of_all}; these are"
    else:
        line = "These are the rows"
    return Part(
        f"{answer.unit.capitalize()}s on which they disagree",
        [f"{line} those on which they are furthest apart, at most {MOST_SHOWN}."],
        cards=cards,
    )


def _kept_rows(folders: Sequence[Path]) -> dict[str, ShownRow]:
    """Test rows by name that the runs kept for their own pages."""
    kept: dict[str, ShownRow] = {}
    for folder in folders:
        collected = Collected.read(folder)
        kept |= {row.name: row for row in (collected.rows if collected else []) if row.split == "test"}
    return kept
