"""``hftl curve``: what more labels would bring."""

from __future__ import annotations

from typing import Annotated

import typer

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
    Subset,
    asked_recipe,
    print_answer,
)


def curve(
    context: typer.Context,
    recipe: RecipeArgument = None,
    subset: Subset = None,
    seeds: Annotated[int, typer.Option(min=2, help="Draws of held-out and training rows.")] = 5,
    change: Change = None,
    show: Show = False,
    on_bad_row: OnBadRow = "error",
    allow_pickle: AllowPickle = False,
    offline: Offline = False,
    quiet: Quiet = False,
    report: Report = None,
    as_json: AsJson = False,
) -> None:
    """Show how the score of the frozen head grows with the number of labels, and what twice as many would bring.

    Only training rows are used: for each seed a fifth of them is held out.
    """
    from hftl.scout.curve import curve as do

    asked = asked_recipe(context, recipe, change, show=show)
    answer = do(
        asked.recipe,
        seeds=seeds,
        subset=subset,
        offline=offline,
        allow_pickle=allow_pickle,
        on_bad_row=on_bad_row,
        quiet=quiet,
    )
    rows = [{"labels": f"{point.rows:,}", answer.metric: str(point.score)} for point in answer.points]
    print_answer(answer, rows, [answer.advice], as_json=as_json, report=report, recipe=asked.recipe)
