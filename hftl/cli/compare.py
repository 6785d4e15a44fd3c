"""``hftl compare``: runs side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hftl.cli.output import print_json, say, show
from hftl.cli.questions import AsJson, Quiet
from hftl.wording import plural

if TYPE_CHECKING:
    from hftl.report.comparison import ComparedRun, Comparison

# Rows and classes that are printed; --json has more.
SHOWN = 10


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN…", help="Folders of finished runs; two or more.")],
    as_json: AsJson = False,
    _quiet: Quiet = False,
) -> None:
    """Compare runs with the first of them on the test rows that all predicted: scores, differences, recipes, cost.

    Differences have 95 % intervals of a paired bootstrap; p is adjusted for all runs that are compared (Holm).
    """
    from hftl.report.comparison import compare as do

    answer = do(runs)
    if as_json:
        print_json(answer.as_json())
        return
    for number, run in enumerate(answer.runs, 1):
        say(f"{number}  {run.folder}")
    for note in answer.notes:
        say(f"   {note}")
    _table(_score(answer, number, run) for number, run in enumerate(answer.runs, 1))
    for number, run in enumerate(answer.runs[1:], 2):
        say(_verdict(answer, number, run))
    _table(_cost(number, run) for number, run in enumerate(answer.runs, 1))
    _table(_changes(answer))
    _table(_outputs(answer))
    if answer.task.has_classes:
        say(f"the runs disagree on {answer.disagreeing:,} of {plural(answer.rows, answer.unit)}")
        _table(_rows(answer))


def _table(rows: Iterable[dict[str, Any]]) -> None:
    listed = list(rows)
    if listed:
        show(listed, list(listed[0]), as_json=False)


def _score(answer: Comparison, number: int, run: ComparedRun) -> dict[str, Any]:
    gain = run.against_first
    return {
        "run": number,
        f"{answer.metric} on {plural(answer.rows, answer.unit)}": str(run.score),
        "against 1": "" if gain is None else gain.signed(),
        "p": "" if gain is None else f"{gain.p:.3f}",
    }


def _verdict(answer: Comparison, number: int, run: ComparedRun) -> str:
    said = f"{number} is {run.verdict} {'as' if run.verdict.startswith('the same') else 'than'} 1"
    if run.only_it is None:
        return said
    return (
        f"{said}: right where 1 is wrong on {plural(run.only_it, answer.unit)}, other way round on {run.only_first:,}"
    )


def _cost(number: int, run: ComparedRun) -> dict[str, Any]:
    cost = run.cost
    return {
        "run": number,
        "method": run.method,
        "seconds": f"{cost.seconds.get('total', 0):,.1f}",
        "extract": f"{cost.seconds.get('extract', 0):,.1f}",
        "train": f"{cost.seconds.get('train', 0):,.1f}",
        "rows computed": f"{cost.computed:,} of {cost.computed + cost.reused:,}",
        "trained": "" if cost.trained_parameters is None else f"{cost.trained_parameters:,}",
    }


def _changes(answer: Comparison) -> Iterator[dict[str, Any]]:
    from hftl.report.changes import said_value

    for each in answer.changes:
        said = {str(number): said_value(value) for number, value in enumerate(each.values, 1)}
        yield {"what differs": each.field, **said}


def _outputs(answer: Comparison) -> Iterator[dict[str, Any]]:
    """Classes, labels, targets or types in which a run differs from the first beyond noise."""
    from hftl.intervals import LEVEL

    beyond = [each for each in answer.outputs if any(gain.p < 1 - LEVEL for gain in each.against_first)]
    for each in beyond[:SHOWN]:
        scores = {str(number): f"{score:.3f}" for number, score in enumerate(each.scores, 1)}
        yield {
            "differs beyond noise": each.name,
            "entities" if answer.task.of_words else "rows": f"{each.rows:,}",
            **scores,
        }


def _rows(answer: Comparison) -> Iterator[dict[str, Any]]:
    from hftl.report.changes import said_value

    for each in answer.disagreements[:SHOWN]:
        said = {str(number): said_value(value) for number, value in enumerate(each.predictions, 1)}
        yield {"row": each.row, "label": said_value(each.label), **said}
