"""``hftl new``: scaffolds of a plugin and of a recipe that work as they are, and a run as a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from hftl.cli.complete import run_folders
from hftl.cli.output import print_json, say
from hftl.cli.questions import AsJson, Quiet
from hftl.errors import UserError

app = typer.Typer(help="Start a plugin or a recipe that works as it is.", no_args_is_help=True)


@app.command("plugin")
def plugin(
    name: Annotated[str, typer.Argument(help="The backbone's name, such as my-vit; the package is hftl-my-vit.")],
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write an installable package in this folder: one backbone, its conformance test, a README."""
    from hftl.scaffold import new_plugin

    folder = new_plugin(name, Path())
    lines = [
        f"{folder}: put your model into {next(folder.glob('hftl_*'))}/__init__.py, then",
        f"    pip install -e '{folder}[test]' && pytest {folder} && hftl plugins",
    ]
    _print(sorted(path for path in folder.rglob("*") if path.is_file()), lines, as_json=as_json, quiet=quiet)


@app.command("recipe")
def recipe(
    name: Annotated[
        str | None, typer.Argument(help="The recipe's name, such as my-flowers; by default that of the run.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="RUN", help="Write the recipe of this run, commits pinned.", autocompletion=run_folders
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write a recipe file in this folder: one to begin with and its test, or that of a run."""
    from hftl.scaffold import new_recipe
    from hftl.scaffold.of_run import recipe_of_run

    if run is not None:
        files, missing = recipe_of_run(run, name, Path())
        lines = [f"{files[0]}: the recipe of {run}", *missing, f"    hftl run {files[0]}"]
        _print(files, lines, as_json=as_json, quiet=quiet)
        return
    if name is None:
        raise UserError("give the recipe a NAME, or name a run with --from")
    file = new_recipe(name, Path())
    lines = [f"{file}: say what it is to do, then", f"    hftl run {file}"]
    _print([file, file.with_name(f"test_{file.name}")], lines, as_json=as_json, quiet=quiet)


def _print(files: Sequence[Path], lines: Sequence[str], *, as_json: bool, quiet: bool) -> None:
    if as_json:
        print_json({"files": [str(file) for file in files], "said": [line.strip() for line in lines]})
    elif not quiet:
        for line in lines:
            say(line)
