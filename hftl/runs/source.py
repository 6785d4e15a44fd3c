"""A recipe as the Python file that makes it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from hftl.methods import Options
from hftl.recipes import Recipe
from hftl.rowrefs import RowRef

LINE = 120
STEP = "    "


class Verbatim(str):
    """Source in place of a value."""


def recipe_source(
    made: Recipe,
    name: str,
    *,
    summary: str = "",
    imports: str = "",
    instead: Mapping[str, Verbatim] | None = None,
    comments: Mapping[str, str] | None = None,
    every_field: bool = False,
) -> str:
    """A Python file whose one recipe is this one; what has its default value is left out.

    Args:
        made: the recipe.
        name: of its function, if it can be one.
        summary: what the file begins with, as a docstring.
        imports: lines before hftl's own import.
        instead: source for fields whose values are not to stand there.
        comments: behind fields, by name.
        every_field: write what has its default value too, so that a person sees all there is.
    """
    kind = type(made.method).__name__
    head = [f'"""{summary}"""', ""] if summary else []
    head += [*imports.splitlines(), ""] if imports else []
    fields = {field: getattr(made, field) for field in Recipe.model_fields if every_field or _is_stated(made, field)}
    # What trains is worth a line, whether it is the default or not.
    ordered = {"backbone": made.backbone, "data": made.data, "method": made.method} | fields | dict(instead or {})
    lines = [f"{STEP}return Recipe("]
    for field, value in ordered.items():
        comment = f"  # {comments[field]}" if comments and field in comments else ""
        lines.append(f"{STEP * 2}{field}={spelt(value, 2, len(field) + 2, every_field=every_field)},{comment}")
    return "\n".join(
        [
            *head,
            f"from hftl import {', '.join(sorted([kind, 'Recipe'], key=str.lower))}, recipe",
            "",
            "",
            "@recipe",
            f"def {name if name.isidentifier() else 'made'}() -> Recipe:",
            *lines,
            f"{STEP})",
        ]
    )


def spelt(value: Any, depth: int = 0, before: int = 0, *, every_field: bool = False) -> str:
    """A value as Python source, on one line where it fits, else one line for each of its parts.

    Args:
        value: text, numbers, lists and mappings of them, options, names of rows.
        depth: steps that its line is indented by.
        before: characters that stand before it on its line.
        every_field: write fields of options that have their default too.
    """
    if isinstance(value, RowRef):
        value = {"split": value.split, "row": value.row, "digest": value.digest}
    deeper = partial(spelt, depth=depth + 1, every_field=every_field)
    if isinstance(value, Options):
        names = [name for name in type(value).model_fields if name != "name"]
        names = [name for name in names if every_field or _is_stated(value, name)]
        parts = [f"{name}={deeper(getattr(value, name), before=len(name) + 2)}" for name in names]
        opening, closing = f"{type(value).__name__}(", ")"
    elif isinstance(value, (list, tuple)):
        parts, opening, closing = [deeper(each) for each in value], "[", "]"
    # Not a data set of `datasets`, which is a dict too.
    elif type(value) is dict:
        parts = [f"{spelt(key)}: {deeper(each)}" for key, each in value.items()]
        opening, closing = "{", "}"
    else:
        return _word(value)
    line = f"{opening}{', '.join(parts)}{closing}"
    if len(STEP) * depth + before + len(line) <= LINE and "\n" not in line:
        return line
    return "\n".join([opening, *(f"{STEP * (depth + 1)}{part}," for part in parts), f"{STEP * depth}{closing}"])


def _word(value: object) -> str:
    """A value without parts, with the quotes that formatters prefer; what only Python has by its type."""
    if isinstance(value, Verbatim):
        return str(value)
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    if not isinstance(value, str):
        return f'"<{type(value).__name__}>"'
    text = repr(str(value))
    return f'"{text[1:-1]}"' if text[0] == "'" and not set("\"'") & set(value) else text


def _is_stated(options: Options, field: str) -> bool:
    default = type(options).model_fields[field].get_default(call_default_factory=True)
    return bool(getattr(options, field) != default)
