"""``hftl new``: scaffolds of a plugin and of a recipe that work as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hftl.cli.output import say

app = typer.Typer(help="Start a plugin or a recipe that works as it is.", no_args_is_help=True)


@app.command("plugin")
def plugin(
    name: Annotated[str, typer.Argument(help="The backbone's name, such as my-vit; the package is hftl-my-vit.")],
) -> None:
    """Write an installable package in this folder: one backbone, its conformance test, a README."""
    from hftl.scaffold import new_plugin

    folder = new_plugin(name, Path())
    say(f"{folder}: put your model into {next(folder.glob('hftl_*'))}/__init__.py, then")
    say(f"    pip install -e '{folder}[test]' && pytest {folder} && hftl plugins")


@app.command("recipe")
def recipe(name: Annotated[str, typer.Argument(help="The recipe's name, such as my-flowers.")]) -> None:
    """Write a recipe file and its test in this folder."""
    from hftl.scaffold import new_recipe

    file = new_recipe(name, Path())
    say(f"{file}: say what it is to do, then")
    say(f"    hftl run {file}")
