"""What an audit found, for its page: rows with their pictures or texts, both rows of a copy side by side."""

from __future__ import annotations

from collections.abc import Sequence

from hftl.intervals import Interval
from hftl.report.charts import whiskers
from hftl.report.collect import Shelf
from hftl.report.parts import Card, Cell, Part, Table
from hftl.scout.audit import Audit
from hftl.scout.findings import Finding

# Rows of each kind that are shown; `hftl audit --export` writes all.
MOST_CARDS = 24
TITLES = {
    "leak": "Leaks: rows that a later split has too",
    "copy": "Copies",
    "near copy": "Near copies",
    "wrong label": "Labels that look wrong",
    "outlier": "Outliers",
}


def audit_parts(answer: Audit) -> list[Part]:
    """The parts of an audit's page."""
    shelf = Shelf(answer.data, answer.modality)
    parts = [_counts_part(answer)]
    if leak := answer.leak:
        drawn: list[tuple[str, Interval]] = [("all test rows", leak.with_them), ("without them", leak.without_them)]
        parts.append(
            Part(
                "What leaks do to the score",
                [
                    f"Test rows that stand in training too, exactly or nearly: {leak.rows:,}. With them the score of "
                    f"the head solved on the training split differs by {leak.gain.signed()}, p {leak.gain.p:.3f}."
                ],
                [whiskers("leak", drawn, leak.metric, strong=[1])],
            )
        )
    if answer.class_pairs:
        rows = [[Cell(" and ".join(pair.classes)), Cell(pair.why)] for pair in answer.class_pairs]
        parts.append(Part("Classes that may be one", tables=[Table(["classes", "why"], rows)]))
    by_kind = {kind: [each for each in answer.findings if each.finding == kind] for kind in TITLES}
    return [*parts, *(_shown_findings(kind, found, shelf) for kind, found in by_kind.items() if found)]


def _counts_part(answer: Audit) -> Part:
    looked = ", ".join(f"{name} {rows:,}" for name, rows in answer.rows.items())
    lines = [f"Rows that were looked at: {looked}."]
    if wrong := answer.wrong_labels:
        lines.append(f"About {wrong.value:,.0f} labels are wrong ({wrong.low:,.0f} to {wrong.high:,.0f}).")
    rows = [[Cell(kind), Cell(f"{count:,}", count)] for kind, count in answer.counts.items()]
    return Part("What was found", lines, tables=[Table(["kind", "rows#"], rows)] if any(answer.counts.values()) else [])


def _shown_findings(kind: str, found: Sequence[Finding], shelf: Shelf) -> Part:
    lines = [f"The surest {MOST_CARDS} of {len(found):,}; `hftl audit --export FILE.csv` writes all."]
    if kind == "wrong label" and any(each.split != "train" for each in found):
        lines.append("Labels of the test split are to be corrected, not dropped: a test without hard rows flatters.")
    cards = []
    for each in found[:MOST_CARDS]:
        places = [shelf.put(each.split, each.at)]
        if each.other_at is not None:
            places.append(shelf.put(each.other_split, each.other_at))
        said = [("why", each.why, False)]
        if each.suggested:
            said.insert(0, ("rather", each.suggested, True))
        cards.append(Card([shelf.rows[place] for place in places], said))
    return Part(TITLES[kind], lines if len(found) > MOST_CARDS else lines[1:], cards=cards)
