"""``hftl advise``: what to do with some data, within a budget of minutes."""

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


def advise(
    context: typer.Context,
    recipe: RecipeArgument = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="The budget; a question that has begun is finished.")] = 10.0,
    backbones: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Backbones to rank beside the recipe's own.")
    ] = None,
    subset: Subset = None,
    change: Change = None,
    show: Show = False,
    on_bad_row: OnBadRow = "error",
    allow_pickle: AllowPickle = False,
    offline: Offline = False,
    quiet: Quiet = False,
    report: Report = None,
    as_json: AsJson = False,
) -> None:
    """Ask the scout's questions and try methods briefly, as far as the minutes suffice; end with one command to run."""
    from hftl.scout.advise import advise as do

    asked = asked_recipe(context, recipe, change, show=show)
    answer = do(
        asked.recipe,
        minutes=minutes,
        backbones=[name.strip() for name in (backbones or "").split(",") if name.strip()],
        subset=subset,
        name=asked.command("backbone", "method", "depth"),
        offline=offline,
        allow_pickle=allow_pickle,
        on_bad_row=on_bad_row,
        quiet=quiet,
    )
    rows = [
        {
            "method": each.method,
            answer.metric: str(each.score),
            "over the head": str(each.gain or ""),
            "seconds": f"{each.seconds:.1f}",
        }
        for each in answer.trials
    ]
    lines = [*answer.evidence, *(f"not asked: {each}" for each in answer.skipped), answer.advice, answer.command]
    print_answer(answer, rows, lines, as_json=as_json, report=report, recipe=asked.recipe)
