"""``hftl features``: compute and hand over features, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hftl.cli.flags import changes_of, read_flags
from hftl.cli.output import say


def features(
    context: typer.Context,
    recipe: Annotated[
        str, typer.Argument(help="A Python file, FILE.py:FUNCTION, a name from `hftl recipes`, or a run to repeat.")
    ],
    export: Annotated[
        Path | None, typer.Option(help="Also write the matrix, ids and labels: FILE.parquet, .safetensors or .npy.")
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Any field of the recipe.")
    ] = None,
    pooling: Annotated[
        str | None, typer.Option(help="native, mean or cls; several as a,b are stored from one pass.")
    ] = None,
    on_bad_row: Annotated[
        Literal["error", "skip"], typer.Option(help="What to do with a row that cannot be decoded.")
    ] = "error",
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read weights that are only a pickle, as nothing but tensors.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Use only what is on this machine.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Compute the features of a recipe's data that are not stored yet.

    After RECIPE come its own flags and any field of a recipe, as for `hftl run` (--backbone, --data, …).
    """
    from hftl.recipes import changed
    from hftl.runs.again import named_recipe

    named = named_recipe(recipe)
    own, fields, show = read_flags(named.parameters, context.args)
    first, *also = _poolings(pooling) if pooling else (None,)
    made = changed(named(**own), fields | changes_of(change or []))
    if show:
        say(str(made))
        return

    from hftl.frozen.matrix import check_format
    from hftl.pipeline import features as do

    if export is not None:
        check_format(export)
    computed = do(
        made,
        pooling=first,
        also=also,
        offline=offline,
        allow_pickle=allow_pickle,
        quiet=quiet,
        on_bad_row=on_bad_row,
    )
    if export is not None:
        rows, width = computed.matrix.shape
        written = " and ".join(str(path) for path in computed.write(export))
        if not quiet:
            say(f"wrote     {rows:,} × {width:,} float32 to {written}")


def _poolings(text: str) -> list[Any]:
    from hftl.errors import RecipeError

    asked = [part.strip() for part in text.split(",")]
    wrong = [part for part in asked if part not in ("native", "mean", "cls")]
    if wrong:
        raise RecipeError(f"--pooling {wrong[0]!r}: the poolings are native, mean and cls")
    return list(dict.fromkeys(asked))
