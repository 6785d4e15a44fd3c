"""What commands share: a recipe with its flags, options that many have, and an answer as a table or as JSON."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hftl.cli.complete import recipe_names
from hftl.cli.flags import changes_of, named_values, words_of
from hftl.cli.launch import is_first_process
from hftl.cli.output import print_json, say, show

if TYPE_CHECKING:
    from hftl.recipes import Recipe
    from hftl.report.answers import ScoutAnswer
    from hftl.scout.answer import Answer

RecipeArgument = Annotated[
    str | None,
    typer.Argument(
        help="A Python file, FILE.py:FUNCTION, a name from `hftl recipes`, or a run; none where --backbone and --data "
        "say what to do.",
        metavar="RECIPE",
        autocompletion=recipe_names,
        show_default=False,
    ),
]
Change = Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Any field of the recipe.")]
Show = Annotated[bool, typer.Option("--show", help="Print the resolved recipe, which is a recipe file, and end.")]
Subset = Annotated[
    int | None, typer.Option("--subset", min=2, metavar="N", help="Use about N training rows, stratified by class.")
]
OnBadRow = Annotated[Literal["error", "skip"], typer.Option(help="What to do with a row that cannot be decoded.")]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read weights that are only a pickle, as nothing but tensors.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Use only what is on this machine.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the answer and errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON, and all else on standard error.")]
Report = Annotated[
    Path | None, typer.Option("--report", metavar="FILE.html", help="Also write the answer as a page with figures.")
]


@dataclass(frozen=True)
class Asked:
    """What a command line asks for.

    Attributes:
        recipe: with the fields that flags change.
        name: of the recipe, and of the folder that its runs go to.
        reference: how it was named; None where the command line alone says what to do.
        flags: the flags that change it, as a person writes them, by the field's name.
    """

    recipe: Recipe
    name: str
    reference: str | None
    flags: Mapping[str, Sequence[str]]

    def command(self, *without: str) -> str:
        """What to write behind ``hftl run`` for this recipe, but for some of its fields."""
        kept = [words for name, words in self.flags.items() if name.partition(".")[0] not in without]
        words = [word for flag in kept for word in flag]
        return shlex.join([*([self.reference] if self.reference else []), *words])


def asked_recipe(context: typer.Context, ref: str | None, change: Sequence[str] | None, *, show: bool = False) -> Asked:
    """The recipe that a command line names, with the fields that its flags change.

    Raises:
        RecipeError: there is none, or a flag does not fit.
        Exit: the recipe was only to be shown, and is printed.
    """
    from hftl.recipes import changed

    named, own, flagged = named_values(context)
    stated = changes_of(change or [])
    fields = flagged | stated
    if named is None:
        made, name = _of_flags(fields), _name_of(str(fields["data"]), str(fields["backbone"]))
    else:
        made, name = named(**own), named.name
    made = changed(made, fields)
    if show:
        from hftl.runs.source import recipe_source

        for line in recipe_source(made, name, every_field=True).splitlines():
            say(line)
        raise typer.Exit
    flags = {name: words_of(name, value) for name, value in {**own, **flagged}.items()}
    flags |= {name: ["--set", f"{name}={value}"] for name, value in stated.items()}
    return Asked(made, name, ref, flags)


def _of_flags(fields: Mapping[str, Any]) -> Recipe:
    """A recipe that the command line alone says.

    Raises:
        RecipeError: a field that has no default is missing.
    """
    from hftl.errors import RecipeError
    from hftl.recipes import Recipe

    missing = [f"--{name}" for name in ("backbone", "data") if name not in fields]
    if missing:
        raise RecipeError(
            f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing: name a recipe, or say with "
            "--backbone and --data what to do"
        )
    return Recipe(backbone=fields["backbone"], data=fields["data"])


def _name_of(data: str, backbone: str) -> str:
    """A name for the folder of runs of some data on a backbone: ``reviews-minilm-l6``."""
    parts = [PurePath(ref.removeprefix("sample:").partition("@")[0]).name for ref in (data, backbone)]
    bare = [re.sub(r"\.(csv|tsv|jsonl?|parquet)$", "", part) for part in parts]
    return re.sub(r"[^\w.-]+", "-", "-".join(bare)).strip("-.") or "recipe"


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
    print_table(answer, rows, lines, as_json=as_json)
    # Last: an answer that took long is not lost with a page that cannot be written.
    if report is not None and is_first_process():
        from hftl.data.load import said_reference
        from hftl.report.answers import write_answer

        page = write_answer(answer, report, about=f"{recipe.backbone} on {said_reference(recipe.data)}")
        say(f"report {page}", error=as_json)


def print_table(answer: Answer, rows: Sequence[Mapping[str, Any]], lines: Sequence[str], *, as_json: bool) -> None:
    """Print an answer that has no page of its own; as of `print_answer`."""
    if not is_first_process():
        return
    if as_json:
        print_json(answer.as_json())
        return
    show(rows, list(rows[0]) if rows else [], as_json=False)
    for line in lines:
        say(line)
