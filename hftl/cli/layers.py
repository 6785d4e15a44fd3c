"""``hftl layers``: how deep does the backbone have to be?"""

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

if TYPE_CHECKING:
    from hftl.scout.layers import Layers


def layers(
    context: typer.Context,
    recipe: RecipeArgument = None,
    together: Annotated[
        str | None, typer.Option("--layers", metavar="K,L,M", help="Also probe these depths side by side.")
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
    """Probe every depth of a recipe's backbone: how many of its blocks the data need, and how many can stay frozen.

    One pass of the backbone serves all depths. Features are kept: `hftl run RECIPE --depth k` computes none again.
    """
    from hftl.scout.layers import layers as do

    asked = asked_recipe(context, recipe, change, show=show)
    answer = do(
        asked.recipe,
        together=_depths(together or ""),
        subset=subset,
        name=asked.command("depth", "method"),
        offline=offline,
        allow_pickle=allow_pickle,
        on_bad_row=on_bad_row,
        quiet=quiet,
    )
    lines = [f"--pooling {pooling}, at depth {answer.chosen}: {score}" for pooling, score in answer.pooled.items()]
    if side := answer.together:
        named = ", ".join(map(str, side.depths))
        lines.append(f"depths {named} side by side: {side.probe}, ahead of the best by {side.gain}; not exportable")
    print_answer(
        answer,
        _table(answer),
        [*lines, answer.advice, *answer.commands],
        as_json=as_json,
        report=report,
        recipe=asked.recipe,
    )


def _table(answer: Layers) -> list[dict[str, Any]]:
    return [
        {
            "depth": each.depth,
            answer.metric: str(each.probe),
            "parameters": f"{each.parameters / 1e6:,.1f} M",
            "as good as the best": ("yes" if each.same else "no") + (", chosen" if each.depth == answer.chosen else ""),
        }
        for each in answer.depths
    ]


def _depths(text: str) -> list[int]:
    from hftl.errors import RecipeError

    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise RecipeError(f"--layers {text!r}: write depths separated by commas, such as 4,8,12") from error
