"""``hftl plugins``: which are loaded, what they hook into, and which failed and why."""

from __future__ import annotations

from typing import Annotated

import typer

from hftl.cli.output import show


def plugins(
    every: Annotated[bool, typer.Option("--all", help="Built-in ones too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List plugins with their version, hooks, and the error of one that failed."""
    from hftl.plugins import BUILT_IN
    from hftl.plugins import plugins as loaded

    rows = [
        {
            "plugin": plugin.name,
            "package": plugin.package,
            "version": plugin.version,
            "hooks": ", ".join(plugin.hooks),
            "error": plugin.error,
        }
        for plugin in loaded().loaded
        if every or plugin.name not in BUILT_IN
    ]
    show(rows, ["plugin", "package", "version", "hooks", "error"], as_json=as_json)
