"""The flags that only a recipe can name: its function's parameters, and the fields of what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from hftl.errors import RecipeError


def read_flags(
    parameters: dict[str, tuple[Any, Any]], arguments: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """Read what stands after RECIPE on the command line.

    Args:
        parameters: the recipe's parameters, each with its annotation and default.
        arguments: the flags.

    Returns:
        Values of the recipe's parameters; changes of fields by dotted name (``--folds 3`` is ``method.folds``); and
        whether the resolved recipe is only to be shown.

    Raises:
        RecipeError: a flag is unknown or its value does not fit; the message names the right ones.
    """
    from hftl.recipes import field_names, read_as

    fields = {name.rpartition(".")[2]: name for name in field_names()}
    fields = {flag: name for flag, name in fields.items() if flag not in parameters}
    options: list[click.Parameter] = [click.Option(["--show"], is_flag=True)]
    for name in (*parameters, *fields):
        flag = f"--{name.replace('_', '-')}"
        boolean = name in parameters and parameters[name][0] is bool
        options.append(click.Option([f"{flag}/--no-{flag[2:]}" if boolean else flag, name], default=None))
    try:
        read = click.Command("recipe", params=options).make_context("hftl run RECIPE", list(arguments)).params
    except click.UsageError as error:
        known = ", ".join(option.opts[0] for option in options)
        raise RecipeError(f"{error.format_message()} Flags of this recipe: {known}; see `hftl run --help`") from error
    own = {
        name: read[name] if annotation is bool else read_as(annotation, read[name], f"--{name}")
        for name, (annotation, _) in parameters.items()
        if read[name] is not None
    }
    return own, {name: read[flag] for flag, name in fields.items() if read[flag] is not None}, bool(read["show"])


def changes_of(assignments: Sequence[str]) -> dict[str, str]:
    """``--set FIELD=VALUE`` as changes by dotted name.

    Raises:
        RecipeError: there is no ``=``.
    """
    changes = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise RecipeError(f"--set {assignment!r}: write FIELD=VALUE, such as --set method.folds=10")
        changes[name.strip()] = value
    return changes
