"""``hftl zero-shot``: what does the backbone know without a label?"""

from __future__ import annotations

from pathlib import Path
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
    Show,
    asked_recipe,
    print_table,
)

# Labels that a table shows; JSON has all of them.
MOST_LABELS = 10


def zero_shot(
    context: typer.Context,
    recipe: RecipeArgument = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help='What is said of a label, such as "a photo of a {label}"; several are averaged.'),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the classifier to this folder, as a model that predict reads.")
    ] = None,
    change: Change = None,
    show: Show = False,
    on_bad_row: OnBadRow = "error",
    allow_pickle: AllowPickle = False,
    offline: Offline = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Score the test rows by the names of the labels alone, where the backbone has a text tower (CLIP, SigLIP)."""
    from hftl.methods import PROMPT
    from hftl.scout.zero_shot import zero_shot as do

    asked = asked_recipe(context, recipe, change, show=show)
    answer = do(
        asked.recipe,
        prompts=prompt or [PROMPT],
        out=out,
        offline=offline,
        allow_pickle=allow_pickle,
        on_bad_row=on_bad_row,
        quiet=quiet,
    )
    worst = sorted(answer.labels, key=lambda each: each.found)[:MOST_LABELS]
    rows = [
        {"label": each.label, "said": each.said, "rows": f"{each.rows:,}", "found": f"{each.found:.3f}"}
        for each in worst
    ]
    hidden = len(answer.labels) - len(worst)
    lines = [f"and {hidden:,} labels that were found more often (--json has all)"] if hidden else []
    if answer.folder:
        lines.append(f"model     {answer.folder}")
    print_table(answer, rows, [*lines, answer.advice], as_json=as_json)
