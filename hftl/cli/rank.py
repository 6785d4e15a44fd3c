"""``hftl rank``: which backbone suits the data."""

from __future__ import annotations

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
    Report,
    Show,
    Subset,
    asked_recipe,
    print_answer,
)
from hftl.wording import human_bytes

if TYPE_CHECKING:
    from hftl.scout.rank import Ranking


def rank(
    context: typer.Context,
    recipe: RecipeArgument = None,
    backbones: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Registered names, Hub ids or folders, separated by commas.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="All registered backbones that read what the recipe's backbone reads.")
    ] = False,
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
    """Rank backbones on a recipe's training rows: a linear probe with its interval, and what each costs.

    Backbones of one group are the same within noise. Features are kept: running the winner computes nothing again.
    """
    from hftl.errors import RecipeError
    from hftl.scout.rank import rank as do
    from hftl.scout.rank import registered_alike

    asked = asked_recipe(context, recipe, change, show=show)
    if every == (backbones is not None):
        raise RecipeError("say which backbones to rank: --backbones A,B,C, or --all")
    named = [name.strip() for name in (backbones or "").split(",") if name.strip()]
    answer = do(
        asked.recipe,
        registered_alike(asked.recipe) if every else named,
        subset=subset,
        name=asked.command("backbone"),
        offline=offline,
        allow_pickle=allow_pickle,
        on_bad_row=on_bad_row,
        quiet=quiet,
    )
    failed = [f"failed: {each.backbone}: {each.why}" for each in answer.failed]
    print_answer(
        answer,
        _table(answer),
        [*failed, answer.advice, answer.command],
        as_json=as_json,
        report=report,
        recipe=asked.recipe,
    )


def _table(answer: Ranking) -> list[dict[str, Any]]:
    return [
        {
            "backbone": each.backbone,
            "group": each.group,
            answer.metric: str(each.probe),
            "k-NN": f"{each.knn.value:.3f}",
            "LogME": f"{each.log_evidence:.3f}",
            "H-score/null": f"{each.h_score.value:.1f}/{each.h_score.null:.1f}" if each.h_score else "",
            "parameters": f"{each.parameters / 1e6:,.1f} M",
            "rows/s": f"{each.rows_per_second:,.0f}",
            "a row": human_bytes(each.bytes_per_row),
        }
        for each in answer.backbones
    ]
