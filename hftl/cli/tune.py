"""``hftl tune``: values of a recipe's fields, tried and chosen on validation rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hftl.cli.questions import (
    AllowPickle,
    AsJson,
    Change,
    Offline,
    OnBadRow,
    Quiet,
    RecipeArgument,
    Show,
    asked_recipe,
    print_table,
)

if TYPE_CHECKING:
    from hftl.tuning.tuned import TriedTrial, Tuned

# Trials in the table; the page and --json have all.
MOST_SHOWN = 10


def tune(
    context: typer.Context,
    recipe: RecipeArgument = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=RANGE", help="A field and what to try: 1e-5..1e-3:log, 4..12, 0..0.5:0.1, or choices 4,8,16."
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials in all.")] = 20,
    repeats: Annotated[int, typer.Option(min=0, help="Trainings of the chosen recipe with fresh seeds.")] = 5,
    change: Change = None,
    show: Show = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the study (default runs/RECIPE-tune).")] = None,
    on_bad_row: OnBadRow = "error",
    allow_pickle: AllowPickle = False,
    offline: Offline = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Try values of a recipe's fields by Optuna, choose on validation rows, and say what the choice is worth.

    Run again it goes on where it was; run in several terminals, these share the trials. What comes out is a recipe
    file, and a page that compares it with the recipe as it stands.
    """
    from hftl.tuning.search import searched

    asked = asked_recipe(context, recipe, change, show=show)
    ranges = searched(search or [])
    from hftl.tuning.tune import tune as do

    answer = do(
        asked.recipe,
        ranges,
        trials=trials,
        repeats=repeats,
        name=asked.name,
        out=out,
        offline=offline,
        allow_pickle=allow_pickle,
        quiet=quiet,
        on_bad_row=on_bad_row,
    )
    ordered = answer.from_the_best()
    rows = [_row(trial, answer) for trial in ordered[:MOST_SHOWN]]
    more = len(ordered) - MOST_SHOWN
    lines = [
        *([f"and {more:,} more in {answer.report}"] if more > 0 else []),
        *(*answer.notes, answer.advice),
        *(f"recipe    {answer.recipe}", f"report    {answer.report}", f"run       {answer.run}"),
    ]
    print_table(answer, rows, lines, as_json=as_json)


def _row(trial: TriedTrial, answer: Tuned) -> dict[str, Any]:
    values = {field: f"{value:.3g}" if isinstance(value, float) else value for field, value in trial.values.items()}
    return {
        "trial": f"{trial.number}{', chosen' if trial.number == answer.best else ''}",
        **values,
        answer.metric: "" if trial.score is None else f"{trial.score:.4f}",
        "ended": trial.ended,
        "seconds": f"{trial.seconds:.1f}",
    }
