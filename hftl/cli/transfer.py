"""``hftl transfer``: is the transfer positive?"""

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

# Classes that a table shows; JSON has all of them.
MOST_OUTPUTS = 10


def transfer(
    context: typer.Context,
    recipe: RecipeArgument = None,
    subset: Subset = None,
    seeds: Annotated[int, typer.Option(min=1, help="Twins with random weights.")] = 3,
    change: Change = None,
    show: Show = False,
    on_bad_row: OnBadRow = "error",
    allow_pickle: AllowPickle = False,
    offline: Offline = False,
    quiet: Quiet = False,
    report: Report = None,
    as_json: AsJson = False,
) -> None:
    """Compare a pretrained backbone with random weights, with no network at all, and with the most frequent class.

    The same head on the same folds of the training rows; `positive` means better than all of them beyond noise.
    """
    from hftl.scout.transfer import transfer as do

    asked = asked_recipe(context, recipe, change, show=show)
    answer = do(
        asked.recipe,
        subset=subset,
        seeds=seeds,
        offline=offline,
        allow_pickle=allow_pickle,
        on_bad_row=on_bad_row,
        quiet=quiet,
    )
    rows = [{"model": answer.backbone, answer.metric: str(answer.pretrained), "pretrained is ahead by": ""}]
    rows += [
        {
            "model": each.name,
            answer.metric: str(each.score),
            "pretrained is ahead by": f"{each.gain} p={each.gain.p:.3f}",
        }
        for each in answer.rivals
    ]
    worst = [each for each in answer.outputs if each.name in answer.hurt][:MOST_OUTPUTS]
    lines = [f"worse for {each.name}: {each.pretrained:.3f} against {each.rival:.3f}, {each.gain}" for each in worst]
    print_answer(
        answer, rows, [*answer.notes, *lines, answer.advice], as_json=as_json, report=report, recipe=asked.recipe
    )
