"""``hftl plugins``: what is loaded and what failed and why; and the commands that plugins add."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

import typer

from hftl.cli.output import say, show
from hftl.cli.questions import AsJson, Quiet
from hftl.errors import HftlError, PluginError
from hftl.plugins.manager import BUILT_IN
from hftl.plugins.manager import plugins as loaded_plugins
from hftl.plugins.spec import Plugin
from hftl.wording import named_error, printable

# Seconds of an import that a person notices in each command.
SLOW = 0.3


def plugins(
    every: Annotated[bool, typer.Option("--all", help="Built-in ones too.")] = False,
    as_json: AsJson = False,
    _quiet: Quiet = False,
) -> None:
    """List plugins with their version, hooks, what they give, and the error of one that failed."""
    gives = _registered()
    rows: list[dict[str, Any]] = [
        {
            "plugin": plugin.name,
            "package": plugin.package,
            "version": plugin.version,
            "hooks": list(plugin.hooks),
            "gives": gives.get(plugin.package, []),
            "error": plugin.error or _problem(plugin),
            "loaded": plugin.error is None,
        }
        for plugin in loaded_plugins().loaded
        if every or plugin.name not in BUILT_IN
    ]
    if as_json:
        show(rows, [], as_json=True)
        return
    short = [row | {"hooks": ", ".join(row["hooks"]), "gives": _short(row["gives"])} for row in rows]
    show(short, ["plugin", "package", "version", "hooks", "gives", "error"], as_json=False)


def add_commands(app: typer.Typer) -> None:
    """Add the commands of all plugins to the command line; a plugin whose commands do not work is left out.

    Each plugin adds to a `typer.Typer` of its own, so that it can neither replace a command nor break another's.
    """
    loaded = loaded_plugins()
    taken = {known.name for known in app.registered_commands} | {known.name for known in app.registered_groups}
    theirs = typer.Typer()
    for owner, _ in loaded.each("hftl_register_commands", app=theirs):
        try:
            # Typer looks at a command's parameters only when it is built.
            names = set(typer.main.get_group(theirs).commands)
            if names & taken:
                raise PluginError(f"hftl has a command {', '.join(sorted(names & taken))} already")
            taken |= names
            app.registered_commands += theirs.registered_commands
            app.registered_groups += theirs.registered_groups
        except Exception as error:
            loaded.reject(owner, f"its commands do not work: {named_error(error)}")
        theirs.registered_commands, theirs.registered_groups = [], []


def _registered() -> dict[str, list[str]]:
    """What each package registered; asking for it also finds the plugins whose registration fails."""
    from hftl.plugins.registry import backbone_claims, metrics
    from hftl.recipes import recipe_claims

    gives: dict[str, list[str]] = {}
    for name, claims in backbone_claims().items():
        for spec in claims:
            gives.setdefault(spec.plugin, []).append(f"backbone {name}")
    try:
        recipe_claims()
        for metric in metrics():
            gives.setdefault(metric.plugin.package, []).append(f"metric {metric.name}")
    except HftlError as error:
        say(f"hftl: {printable(error)}", error=True)
    return gives


def _short(gives: list[str]) -> str:
    """Names, or how many there are of a kind if there are many."""
    kinds = Counter(text.split(" ", 1)[0] for text in gives)
    if len(gives) <= 4:
        return ", ".join(gives)
    return ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in kinds.items())


def _problem(plugin: Plugin) -> str | None:
    """What is wrong with a plugin that is loaded all the same."""
    from hftl.plugins.registry import backbone_claims

    problems = [
        f"backbone {name!r} is also claimed by {', '.join(s.plugin for s in claims if s.plugin != plugin.package)}"
        for name, claims in backbone_claims().items()
        if len(claims) > 1 and plugin.package in {spec.plugin for spec in claims}
    ]
    if plugin.heavy:
        problems.append(f"slow: imports {', '.join(plugin.heavy)} when it registers; import it inside functions")
    elif plugin.seconds > SLOW:
        problems.append(f"slow: every command waits {plugin.seconds:.1f} s for its import; import less at its top")
    return "; ".join(problems) or None
