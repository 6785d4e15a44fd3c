"""The ``hftl`` command line: one thin file for each command, heavy imports inside their functions.

Exit status: 0 done, 1 failed, 2 the input is wrong, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from hftl._version import __version__
from hftl.cli import backbones, cache, doctor, evaluate, features, new, plugins, predict, push, recipes, run
from hftl.errors import HftlError
from hftl.wording import printable

HELP = """Transfer learning with Hugging Face models: features of the frozen backbone are computed once and kept,
heads are solved exactly, and what comes out loads with plain transformers."""


def build_app() -> typer.Typer:
    """The command line with the commands of all loaded plugins."""
    app = typer.Typer(
        name="hftl", help=HELP, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
    )
    app.callback()(options)
    app.command("run", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(run.run)
    app.command("features", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
        features.features
    )
    app.command("predict")(predict.predict)
    app.command("evaluate")(evaluate.evaluate)
    app.command("push")(push.push)
    app.command("backbones")(backbones.backbones)
    app.command("recipes")(recipes.recipes)
    app.command("plugins")(plugins.plugins)
    app.add_typer(cache.app, name="cache")
    app.add_typer(new.app, name="new")
    app.command("doctor")(doctor.doctor)
    plugins.add_commands(app)
    return app


def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Options of every command."""
    # `main` has already read it: an error shows its traceback wherever on the line the flag stands.
    del debug
    if version:
        print(f"hftl {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line and exit with its status."""
    # A repository without safetensors may else be served from a pull request of the Hub's conversion bot, unseen.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    try:
        build_app()(arguments)
    except HftlError as error:
        if debug:
            raise
        print(f"hftl: {printable(error)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        # A full disk or a forbidden folder, met outside the rooms that expect it.
        if debug:
            raise
        print(f"hftl: {error.strerror or error}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as stop:
        # Typer turns an interrupt into an exit with this cause; a child's status comes without it.
        if isinstance(getattr(stop.__context__, "__cause__", None), KeyboardInterrupt):
            print(
                "\nhftl: interrupted; what was computed so far is kept: run the same command again to go on",
                file=sys.stderr,
            )
        raise
