"""Flags that only a recipe can name: its function's parameters, and the fields of what it returns."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import click

from hftl.errors import RecipeError

TRUE, FALSE = ("true", "yes", "on", "1", "y", "t"), ("false", "no", "off", "0", "n", "f")
WORDS = dict.fromkeys(TRUE, True) | dict.fromkeys(FALSE, False)


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
    from hftl.recipes import boolean_fields, field_names, is_boolean, read_as

    fields = {name.rpartition(".")[2]: name for name in field_names()}
    fields = {flag: name for flag, name in fields.items() if flag not in parameters}
    booleans = {name for name, (annotation, _) in parameters.items() if is_boolean(annotation)}
    booleans |= {flag for flag, name in fields.items() if name in boolean_fields()}
    options: list[click.Parameter] = [click.Option(["--show"], is_flag=True)]
    for name in (*parameters, *fields):
        flag = flag_of(name)
        options.append(click.Option([f"{flag}/--no-{flag[2:]}" if name in booleans else flag, name], default=None))
    spelt = one_spelling(arguments, {flag_of(name) for name in booleans})
    try:
        read = click.Command("recipe", params=options).make_context("hftl run RECIPE", spelt).params
    except click.UsageError as error:
        known = ", ".join(option.opts[0] for option in options)
        raise RecipeError(f"{error.format_message()} Flags of this recipe: {known}; see `hftl run --help`") from error
    own = {
        name: read[name] if name in booleans else read_as(annotation, read[name], flag_of(name))
        for name, (annotation, _) in parameters.items()
        if read[name] is not None
    }
    return own, {name: read[flag] for flag, name in fields.items() if read[flag] is not None}, bool(read["show"])


def flag_of(name: str) -> str:
    """The flag of a parameter or a field."""
    return f"--{name.replace('_', '-')}"


def one_spelling(arguments: Sequence[str], flags: Collection[str]) -> list[str]:
    """Arguments in which ``--x true``, ``--x=no`` and the like are ``--x`` and ``--no-x``, as click reads booleans.

    Args:
        arguments: of the command line.
        flags: those that are true or false.

    Raises:
        RecipeError: a value is neither.
    """
    spelt: list[str] = []
    rest = list(arguments)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        positive = flag if flag in flags else f"--{flag.removeprefix('--no-')}"
        if positive not in flags:
            spelt.append(f"{flag}{equals}{value}")
            continue
        # Only the values of flags stand after RECIPE, so a word that is no flag belongs to the one before it.
        if not equals and rest and not rest[0].startswith("-"):
            value, equals = rest.pop(0), "="
        truth = WORDS.get(value.lower()) if equals else True
        if truth is None:
            raise RecipeError(f"{flag} {value!r}: write true or false, or {positive} or --no-{positive[2:]}")
        spelt.append(positive if truth == (flag == positive) else f"--no-{positive[2:]}")
    return spelt


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
