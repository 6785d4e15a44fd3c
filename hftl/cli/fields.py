"""What a command line says of a recipe's fields: flag, type, default, and the line that their docstring has."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from hftl.methods import METHODS, Head
from hftl.recipes import Recipe, is_boolean
from hftl.rowrefs import RowRef
from hftl.wording import printable

WORDS_OF_TYPES = {int: "INT", float: "FLOAT", str: "TEXT", bool: "BOOL", dict: "JSON", Any: "TEXT"}


@dataclass(frozen=True)
class FlagOfField:
    """A flag of the command line that sets one thing of a recipe.

    Attributes:
        name: the field, dotted: ``seed``, ``method.folds``; or a parameter of the recipe's function.
        flag: ``--folds``.
        panel: the group it stands in.
        type: for a person: ``INT``, ``no|bf16|fp16``.
        choices: the values that there are; empty where there are more.
        default: for a person; empty for None.
        text: one line about it.
        is_boolean: whether it has a ``--no-`` beside it.
    """

    name: str
    flag: str
    panel: str
    type: str
    choices: tuple[str, ...] = ()
    default: str = ""
    text: str = ""
    is_boolean: bool = False


def flag_of(name: str) -> str:
    """The flag of a parameter or a field."""
    return f"--{name.rpartition('.')[2].replace('_', '-')}"


@cache
def recipe_flags() -> tuple[FlagOfField, ...]:
    """The flags of all fields of recipes and methods, those of a recipe first, then of each group of methods."""
    texts = attribute_texts(Recipe)
    flags = [_flag(name, "Recipe", info.annotation, {"": info.default}, texts) for name, info in _fields(Recipe)]
    by_methods: dict[str, list[str]] = {}
    for method, model in METHODS.items():
        for name, _ in _fields(model):
            by_methods.setdefault(name, []).append(method)
    for name, methods in sorted(by_methods.items(), key=lambda each: _place(each[1])):
        defaults = {method: METHODS[method].model_fields[name].default for method in methods}
        panel = "All methods" if len(methods) == len(METHODS) else f"Method {', '.join(methods)}"
        annotation = METHODS[methods[0]].model_fields[name].annotation
        said = dict.fromkeys(attribute_texts(METHODS[method]).get(name, "") for method in methods)
        flags.append(_flag(f"method.{name}", panel, annotation, defaults, {name: " · ".join(said)}))
    return tuple(flags)


def parameter_flags(recipe: str, parameters: Mapping[str, tuple[Any, Any]]) -> list[FlagOfField]:
    """The flags of the parameters of a recipe's function.

    Args:
        recipe: its name.
        parameters: each parameter's annotation and default.
    """
    panel = f"Flags of the recipe {printable(recipe)}"
    return [_flag(name, panel, annotation, {"": default}, {}) for name, (annotation, default) in parameters.items()]


def attribute_texts(model: type[BaseModel]) -> dict[str, str]:
    """The first sentence that a class, or one it is derived from, says of each of its attributes in its docstring."""
    texts: dict[str, str] = {}
    for each in reversed(model.__mro__):
        _, _, attributes = (inspect.cleandoc(each.__doc__ or "")).partition("Attributes:\n")
        for name, text in re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", attributes, re.MULTILINE):
            # Who found it is for readers of the docstring.
            uncited = re.sub(r" \([^()]*(?:19|20)\d\d[^()]*\)", "", " ".join(text.split()))
            texts[name] = uncited.replace("`", "").partition(". ")[0].rstrip(".")
    return texts


def _fields(model: type[BaseModel]) -> list[tuple[str, Any]]:
    # Functions have no flag.
    return [(name, info) for name, info in model.model_fields.items() if name not in ("name", "metrics")]


def _place(methods: list[str]) -> tuple[int, list[int]]:
    """Fields that many methods have come first, but for those of all."""
    order = [list(METHODS).index(method) for method in methods]
    return (0 if methods == ["head"] else 1 if len(methods) < len(METHODS) else 2, [-len(order), *order])


def _flag(name: str, panel: str, annotation: Any, defaults: Mapping[str, Any], texts: Mapping[str, str]) -> FlagOfField:
    text, unstated = _without_default(texts.get(name.rpartition(".")[2], ""))
    choices = tuple(METHODS) if name == "method" else _choices(annotation)
    return FlagOfField(
        name,
        flag_of(name),
        panel,
        "|".join(choices) if name == "method" else _words_of_type(annotation),
        choices,
        _words_of_defaults(defaults) or unstated,
        text,
        is_boolean(annotation),
    )


def _without_default(text: str) -> tuple[str, str]:
    """A text without what it says of None, which is what happens by default, and that."""
    said, _, what = text.partition("; None ")
    what, _, more = what.partition(', "')
    how = "inferred" if what.startswith("to infer") else what.removeprefix("for ")
    return (f'{said}; "{more}' if more else said), how


def _words_of_defaults(defaults: Mapping[str, Any]) -> str:
    """The default of most methods, and beside it what others have."""
    spelt = {method: _words_of_default(value) for method, value in defaults.items()}
    first, *_ = spelt.values()
    others = [f"{method} {value or 'none'}" for method, value in spelt.items() if value != first]
    return "; ".join([first, *others]) if others else first


def _words_of_default(value: Any) -> str:
    if isinstance(value, Head):
        return value.name
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    # A required field has pydantic's mark, an empty collection nothing to show.
    return printable(value) if isinstance(value, (str, int, list, Enum)) else ""


def _choices(annotation: Any) -> tuple[str, ...]:
    """What a type allows, where these are a few words."""
    if get_origin(annotation) is Literal:
        return tuple(map(str, get_args(annotation)))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return tuple(str(each.value) for each in annotation)
    parts = [_choices(part) for part in _parts(annotation)]
    return tuple(choice for part in parts for choice in part)


def _words_of_type(annotation: Any) -> str:
    """A type for a person: ``INT|auto``."""
    if choices := _choices(annotation):
        others = [_words_of_type(part) for part in _parts(annotation) if not _choices(part)]
        return "|".join([*others, *choices])
    if get_origin(annotation) is Annotated:
        return _words_of_type(get_args(annotation)[0])
    if parts := _parts(annotation):
        return "|".join(dict.fromkeys(_words_of_type(part) for part in parts))
    if get_origin(annotation) is list:
        return "A,B,…"
    if get_args(annotation)[:1] == (RowRef,):
        # Rows are named in a file.
        return "FILE.csv"
    return WORDS_OF_TYPES.get(get_origin(annotation) or annotation, "VALUE")


def _parts(annotation: Any) -> list[Any]:
    """The members of a union but for None; none of any other type."""
    if get_origin(annotation) not in (Union, UnionType):
        return []
    return [part for part in get_args(annotation) if part is not type(None)]
