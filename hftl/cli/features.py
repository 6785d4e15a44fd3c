"""``hftl features``: compute and hand over features, without training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from hftl.cli.launch import is_first_process
from hftl.cli.output import print_json, say, show
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
)
from hftl.errors import RecipeError, StoreError

if TYPE_CHECKING:
    from hftl.recipes import Recipe


def features(
    context: typer.Context,
    recipe: RecipeArgument = None,
    export: Annotated[
        Path | None, typer.Option(help="Also write the matrix, ids and labels: FILE.parquet, .safetensors or .npy.")
    ] = None,
    change: Change = None,
    show: Show = False,
    pooling: Annotated[str | None, typer.Option(help="As of a run; several as a,b are stored from one pass.")] = None,
    part: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Only every N-th row from the I-th on, as one machine of N."),
    ] = None,
    status: Annotated[
        bool, typer.Option("--status", help="Compute nothing; say which rows are stored. Exit status 1 if not all are.")
    ] = False,
    on: Annotated[
        Literal["ray"] | None,
        typer.Option("--on", help="Where: ray for workers of a Ray cluster, or of this machine if there is none."),
    ] = None,
    on_bad_row: OnBadRow = "error",
    allow_pickle: AllowPickle = False,
    offline: Offline = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compute the features of a recipe's data that are not stored yet.

    Flags change the recipe as they do for `hftl run`.
    """
    asked = asked_recipe(context, recipe, change, show=show)
    first, *also = _poolings(pooling) if pooling else (None,)
    if status:
        if on is not None:
            raise RecipeError("--status computes nothing: leave out --on")
        _say_status(asked.recipe, [first, *also], export, part=part, offline=offline, quiet=quiet, as_json=as_json)
        return

    from hftl.extraction import stored_matrix
    from hftl.frozen.formats import check_format

    if export is not None:
        export = export.expanduser()
        check_format(export)
    stored = stored_matrix(
        asked.recipe,
        pooling=first,
        also=also,
        offline=offline,
        allow_pickle=allow_pickle,
        quiet=quiet,
        on_bad_row=on_bad_row,
        part=part,
        on=on,
    )
    written = stored.write(export) if export is not None and is_first_process() else []
    rows, width = len(stored.about), stored.width
    if written and not quiet:
        say(f"wrote     {rows:,} × {width:,} float32 to {' and '.join(map(str, written))}")
    if as_json and is_first_process():
        splits = dict(Counter(map(str, stored.about.split)))
        print_json({"rows": rows, "width": width, "splits": splits, "files": [str(path) for path in written]})


def _say_status(
    recipe: Recipe,
    poolings: Sequence[Any],
    export: Path | None,
    *,
    part: str | None,
    offline: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Say how many rows of each split are stored.

    Raises:
        StoreError: some are not.
    """
    from hftl.extraction import missing_features

    if export is not None or len(poolings) > 1:
        raise RecipeError("--status looks at the rows of one pooling and writes nothing: leave out the others")
    found = missing_features(recipe, pooling=poolings[0], part=part, offline=offline, quiet=quiet or as_json)
    rows = [
        {"split": split, "rows": rows, "stored": found.stored[split], "missing": rows - found.stored[split]}
        for split, rows in found.rows.items()
    ]
    if as_json:
        print_json({"splits": rows, "missing": found.missing})
    else:
        show(rows, ["split", "rows", "stored", "missing"], as_json=False)
    if found.missing:
        total = sum(found.rows.values())
        raise StoreError(
            f"{len(found.missing):,} of {total:,} rows are not stored, such as {found.missing[0]}; the same command "
            "without --status computes them"
        )


def _poolings(text: str) -> list[Any]:
    from hftl.methods import Pooling

    asked = [part.strip() for part in text.split(",")]
    wrong = [part for part in asked if part not in get_args(Pooling)]
    if wrong:
        raise RecipeError(f"--pooling {wrong[0]!r}: the poolings are {', '.join(get_args(Pooling))}")
    return list(dict.fromkeys(asked))
