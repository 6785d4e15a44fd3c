"""``hftl audit``: what is wrong with the data."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hftl.cli.launch import is_first_process
from hftl.cli.questions import (
    AllowPickle,
    AsJson,
    Change,
    Offline,
    OnBadRow,
    Quiet,
    RecipeArgument,
    Report,
    Show,
    asked_recipe,
    print_answer,
)

if TYPE_CHECKING:
    from hftl.scout.audit import Audit

# Rows of each kind that are printed; --export and --json have all.
SHOWN = 10


def audit(
    context: typer.Context,
    recipe: RecipeArgument = None,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Also write all findings, to edit for `hftl run --drop`.")
    ] = None,
    change: Change = None,
    show: Show = False,
    on_bad_row: OnBadRow = "error",
    allow_pickle: AllowPickle = False,
    offline: Offline = False,
    quiet: Quiet = False,
    report: Report = None,
    as_json: AsJson = False,
) -> None:
    """Find copies, leaks between splits, likely wrong labels, outliers, and classes under two names.

    The first of each kind are printed. Features are kept: a run computes nothing again.
    """
    from hftl.scout.audit import audit as do
    from hftl.scout.findings import write_findings

    asked = asked_recipe(context, recipe, change, show=show)
    answer = do(
        asked.recipe,
        offline=offline,
        allow_pickle=allow_pickle,
        on_bad_row=on_bad_row,
        quiet=quiet,
    )
    lines = _said(answer)
    if export is not None and is_first_process():
        write_findings(answer.findings, export)
        lines.append(f"wrote {len(answer.findings):,} findings to {export}")
    print_answer(
        answer, _first_of_each(answer), [*lines, answer.advice], as_json=as_json, report=report, recipe=asked.recipe
    )


def _first_of_each(answer: Audit) -> list[dict[str, Any]]:
    shown: Counter[str] = Counter()
    rows = []
    for each in answer.findings:
        shown[each.finding] += 1
        if shown[each.finding] <= SHOWN:
            rows.append(
                {
                    "finding": each.finding,
                    "split": each.split,
                    "row": each.row,
                    "label": each.label,
                    "rather": each.suggested,
                    "why": each.why,
                }
            )
    return rows


def _said(answer: Audit) -> list[str]:
    found = ", ".join(f"{kind} {count:,}" for kind, count in answer.counts.items())
    lines = [f"found: {found}" if any(answer.counts.values()) else "found: nothing"]
    if answer.wrong_labels is not None:
        wrong = answer.wrong_labels
        lines.append(f"wrong labels: about {wrong.value:,.0f} ({wrong.low:,.0f} to {wrong.high:,.0f})")
    if answer.leak is not None:
        leak = answer.leak
        lines.append(
            f"leaks: {leak.metric} {leak.with_them} on all test rows, {leak.without_them} without the {leak.rows:,} "
            f"that stand in training; difference {leak.gain}"
        )
    if any(each.finding == "wrong label" and each.split != "train" for each in answer.findings):
        lines.append("labels of the test split are to be corrected, not dropped: a test without hard rows flatters")
    lines += [f"classes {pair.classes[0]} and {pair.classes[1]}: {pair.why}" for pair in answer.class_pairs]
    return [*lines, *answer.notes]
