"""What the commands of the scout share: a recipe with its flags, and an answer as a table or as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hftl.cli.flags import changes_of, read_flags
from hftl.cli.output import print_json, say, show

if TYPE_CHECKING:
    from hftl.recipes import Recipe
    from hftl.report.answers import ScoutAnswer

# A recipe's own flags follow it, and the fields of what it returns.
TAKES_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}

RecipeArgument = Annotated[
    str, typer.Argument(help="A Python file, FILE.py:FUNCTION, a name from `hftl recipes`, or a run.")
]
Change = Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Any field of the recipe.")]
Subset = Annotated[
    int | None, typer.Option("--subset", min=2, metavar="N", help="Use about N training rows, stratified by class.")
]
OnBadRow = Annotated[Literal["error", "skip"], typer.Option(help="What to do with a row that cannot be decoded.")]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read weights that are only a pickle, as nothing but tensors.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Use only what is on this machine.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but the answer and errors.")]
Report = Annotated[
    Path | None, typer.Option("--report", metavar="FILE.html", help="Also write the answer as a page with figures.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON.")]


def asked_recipe(context: typer.Context, ref: str, change: Sequence[str] | None) -> Recipe:
    """The recipe that a command line names, with the fields that its flags change.

    Raises:
        RecipeError: there is none, or a flag does not fit.
        Exit: ``--show`` was among the flags, and the recipe is printed.
    """
    from hftl.recipes import changed
    from hftl.runs.again import named_recipe

    named = named_recipe(ref)
    own, fields, wants_show = read_flags(named.parameters, context.args)
    made = changed(named(**own), fields | changes_of(change or []))
    if wants_show:
        say(str(made))
        raise typer.Exit
    return made


def print_answer(
    answer: ScoutAnswer,
    rows: Sequence[Mapping[str, Any]],
    lines: Sequence[str],
    *,
    as_json: bool,
    report: Path | None,
    recipe: Recipe,
) -> None:
    """Print an answer: all of it as JSON, or a table and lines below it; on the main process only.

    Args:
        answer: of the scout.
        rows: of the table.
        lines: below it.
        as_json: print JSON instead.
        report: a file to write the answer to as a page.
        recipe: what the question was asked of.

    Raises:
        HftlError: the page cannot be written; the answer is printed by then.
    """
    from hftl.cli.launch import is_first_process

    if not is_first_process():
        return
    if as_json:
        print_json(answer.as_json())
    else:
        show(rows, list(rows[0]) if rows else [], as_json=False)
        for line in lines:
            say(line)
    # Last: an answer that took long is not lost with a page that cannot be written.
    if report is not None:
        from hftl.data.load import said_reference
        from hftl.report.answers import write_answer

        page = write_answer(answer, report, about=f"{recipe.backbone} on {said_reference(recipe.data)}")
        say(f"report {page}", error=as_json)
