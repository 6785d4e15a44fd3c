"""Commands that take a recipe: its fields, its method's, and the parameters of its own function are flags of theirs."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from hftl.cli.output import answering
from hftl.errors import HftlError, RecipeError

if TYPE_CHECKING:
    from hftl.cli.fields import FlagOfField
    from hftl.recipes import RecipeFunction

TRUE, FALSE = ("true", "yes", "on", "1", "y", "t"), ("false", "no", "off", "0", "n", "f")
WORDS = dict.fromkeys(TRUE, True) | dict.fromkeys(FALSE, False)
# Where a context keeps what its command line named.
NAMED, REFERENCE, OPTIONS, GIVEN = "hftl.named", "hftl.reference", "hftl.options", "hftl.given"
# How the parameters that typer sees are called, so that none is called what a command's own is.
FIELD, OWN = "field__", "own__"


class RecipeCommand(TyperCommand):
    """A command with the argument RECIPE, which stands anywhere among the flags that it brings."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The command's own parameters, then those of the recipe that was named, then all fields."""
        own = super().get_params(ctx)
        if OPTIONS not in ctx.meta:
            # Only where a command is looked at: the list of all commands does not need pydantic.
            from hftl.cli.fields import parameter_flags, recipe_flags

            named: RecipeFunction[...] | None = ctx.meta.get(NAMED)
            taken = {opt for parameter in own for opt in parameter.opts}
            mine = [f for f in (parameter_flags(named.name, named.parameters) if named else ()) if f.flag not in taken]
            taken |= {flag.flag for flag in mine}
            fields = [flag for flag in recipe_flags() if flag.flag not in taken]
            ctx.meta[OPTIONS] = [*_options(OWN, mine), *_options(FIELD, fields)]
        return [*own, *ctx.meta[OPTIONS]]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Find the recipe first: what may stand beside it is known only then."""
        if not ctx.resilient_parsing:
            # Completion does not run what a recipe's file says.
            ctx.meta[NAMED] = self._named(ctx, args)
        ctx.meta.pop(OPTIONS, None)
        booleans = {p.opts[0] for p in self.get_params(ctx) if p.secondary_opts}
        return super().parse_args(ctx, one_spelling(args, booleans, ctx.meta.get(REFERENCE)))

    def invoke(self, ctx: Any) -> Any:
        """Run the command; what its flags say of the recipe is kept for `named_values`."""
        read = {name: ctx.params.pop(name) for name in [*ctx.params] if name.startswith((FIELD, OWN))}
        ctx.meta[GIVEN] = {name: value for name, value in read.items() if value is not None}
        with answering(as_json=ctx.params.get("as_json", False)):
            return super().invoke(ctx)

    def _named(self, ctx: Any, args: list[str]) -> RecipeFunction[...] | None:
        """The recipe that a command line names; None where it names none, or asks for help on one that is not there."""
        from hftl.cli.fields import recipe_flags
        from hftl.runs.again import named_recipe

        spelt = one_spelling(args, {flag.flag for flag in recipe_flags() if flag.is_boolean})
        with type(ctx)(self, parent=ctx.parent, info_name=ctx.info_name, resilient_parsing=True) as probe:
            probe.meta.pop(OPTIONS, None)
            probe.ignore_unknown_options = probe.allow_extra_args = True
            super().parse_args(probe, list(spelt))
            # Flags that only the recipe knows are taken for words here.
            words = [word for word in (probe.params.get("recipe"), *probe.args) if word and not word.startswith("-")]
        ctx.meta[REFERENCE] = words[0] if words else ""
        try:
            return named_recipe(words[0]) if words else None
        except HftlError:
            if {"--help", "--show"} & set(args) == {"--help"}:
                return None
            raise


def named_values(context: typer.Context) -> tuple[RecipeFunction[...] | None, dict[str, Any], dict[str, Any]]:
    """The recipe that a command line names, values of its parameters, and changes of fields by dotted name.

    Raises:
        RecipeError: a value does not fit its parameter.
    """
    from hftl.cli.fields import flag_of
    from hftl.recipes import is_boolean, read_as

    named: RecipeFunction[...] | None = context.meta[NAMED]
    given: dict[str, Any] = context.meta[GIVEN]
    own: dict[str, Any] = {}
    for name, (annotation, _) in (named.parameters if named else {}).items():
        if (value := given.get(f"{OWN}{name}")) is not None:
            own[name] = value if is_boolean(annotation) else read_as(annotation, value, flag_of(name))
    fields = {_field_name(name): value for name, value in given.items() if name.startswith(FIELD)}
    return named, own, fields


def words_of(name: str, value: Any) -> list[str]:
    """The flag that gives a field or a parameter its value, as a person writes it."""
    from hftl.cli.fields import flag_of

    flag = flag_of(name)
    return [flag, str(value)] if not isinstance(value, bool) else [flag if value else f"--no-{flag[2:]}"]


def _field_name(parameter: str) -> str:
    return parameter.removeprefix(FIELD).replace("__", ".", 1)


def _options(prefix: str, flags: Sequence[FlagOfField]) -> list[Any]:
    """typer's options for flags; None is the value of one that is not given."""
    from rich.markup import escape

    from hftl.cli.complete import values_of

    parameters = []
    for flag in flags:
        said = f"{flag.text} [default: {flag.default}]" if flag.default else flag.text
        option = typer.Option(
            f"{flag.flag}/--no-{flag.flag[2:]}" if flag.is_boolean else flag.flag,
            help=escape(said.strip()),
            metavar="" if flag.is_boolean else flag.type,
            rich_help_panel=flag.panel,
            show_default=False,
            autocompletion=values_of(flag),
        )
        kind = bool | None if flag.is_boolean else str | None
        name = f"{prefix}{flag.name.replace('.', '__')}"
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(name, keyword, default=None, annotation=Annotated[kind, option]))

    def command(**_: Any) -> None:
        """What typer makes options of."""

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False)
    app.command()(command)
    return list(typer.main.get_command(app).params)


def one_spelling(arguments: Sequence[str], flags: Collection[str], recipe: str | None = None) -> list[str]:
    """Arguments in which ``--x true``, ``--x=no`` and the like are ``--x`` and ``--no-x``, as typer reads booleans.

    Args:
        arguments: of the command line.
        flags: those that are true or false.
        recipe: the word that names the recipe, which may stand behind such a flag; None while it is not known.

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
        follows = rest[0] if rest and not equals and not rest[0].startswith("-") else ""
        if follows.lower() in WORDS or (follows and recipe is not None and follows != recipe):
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
