"""Parts of the pages that are made from the code and from LOG.md: `python docs/generate.py` writes them anew.

A part stands between two comments, of which the first says what it is made from::

    <!-- generated: help run -->         what `hftl run --help` prints
    <!-- generated: fields Head -->      the fields of a class of options, with their docstrings
    <!-- generated: log Words -->        the table of LOG.md below the line that begins with these words
    <!-- end -->
"""

from __future__ import annotations

import inspect
import io
import os
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

from pydantic import BaseModel

DOCS = Path(__file__).parent
PART = re.compile(r"(^<!-- generated: (\w+)(?: (.*?))? -->\n)(.*?)(^<!-- end -->$)", re.MULTILINE | re.DOTALL)


def generated(page: str) -> str:
    """A page with its generated parts as they ought to be."""
    return PART.sub(lambda part: f"{part[1]}\n{MAKERS[part[2]](part[3] or '')}\n\n{part[5]}", page)


# ── help ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


FIELDS = re.compile(r"^╭─ (?:Recipe|All methods|Method [^─]*) ─+╮\n(?:│.*\n)*╰─+╯\n?", re.MULTILINE)


def help_page(command: str) -> str:
    """What a command's ``--help`` prints on a terminal of 80 columns, without colours.

    The fields of recipes, which many commands list, stand with `hftl run` only.
    """
    from hftl.cli import invoke

    printed = io.StringIO()
    with patch.dict(os.environ, COLUMNS="80", TERM="dumb", NO_COLOR="1"), redirect_stdout(printed):
        invoke([*command.split(), "--help"])
    text = "".join(f"{line.rstrip()}\n" for line in printed.getvalue().splitlines())
    own = text if command == "run" else FIELDS.sub("", text)
    more = (
        ""
        if own == text
        else "\n\nThe fields of the recipe and of its method are flags too, as for [hftl run](#hftl-run)."
    )
    return "```text\n" + own.strip("\n") + f"\n```{more}"


# ── fields ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def fields_table(name: str) -> str:
    """The fields that a class of options adds to those it is derived from: name, default, meaning."""
    from hftl import methods, recipes

    model: Any = getattr(recipes, name, None) or getattr(methods, name)
    own = inspect.get_annotations(model).keys() - {"name"}
    texts = documented(model)
    rows = [
        f"| `{field}` | {default_of(info)} | {texts.get(field) or texts_above(model, field)} |"
        for field, info in model.model_fields.items()
        if field in own
    ]
    return "\n".join(["| field | default | what it is |", "|---|---|---|", *rows])


def documented(model: type) -> dict[str, str]:
    """What a class's docstring says of each attribute, in Markdown."""
    _, _, attributes = inspect.cleandoc(model.__doc__ or "").partition("Attributes:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", attributes, re.MULTILINE)
    return {name: as_markdown(" ".join(text.split())) for name, text in found}


def texts_above(model: Any, field: str) -> str:
    """What the nearest class above says of a field whose default alone is another one here."""
    return next((texts[field] for above in model.__mro__[1:] if field in (texts := documented(above))), "")


def as_markdown(text: str) -> str:
    """A docstring's text: one kind of code span, and no bar that would end a table's cell."""
    return re.sub(r"``(.+?)``", r"`\1`", text).replace("|", "\\|")


def default_of(info: Any) -> str:
    """A field's default as a reader writes it."""
    if info.is_required():
        return "needed"
    default = info.get_default(call_default_factory=True)
    if default is None:
        return ""
    return f"`{type(default).__name__}()`" if isinstance(default, BaseModel) else f"`{default!r}`".replace("'", '"')


# ── the log ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def log_table(begins: str) -> str:
    """The table of LOG.md that follows the line which begins so."""
    lines = iter((DOCS.parent / "LOG.md").read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line.lstrip("- *").startswith(begins):
            return "\n".join(_table(lines))
    raise SystemExit(f"LOG.md has no line that begins with {begins!r}")


def _table(lines: Iterator[str]) -> Iterator[str]:
    begun = False
    for line in lines:
        if line.strip().startswith("|"):
            begun = True
            yield line.strip()
        elif begun:
            return


MAKERS = {"help": help_page, "fields": fields_table, "log": log_table}


def main() -> None:
    """Write the generated parts of all pages."""
    for path in sorted(DOCS.glob("*.md")):
        before = path.read_text(encoding="utf-8")
        after = generated(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"wrote docs/{path.name}")


if __name__ == "__main__":
    main()
