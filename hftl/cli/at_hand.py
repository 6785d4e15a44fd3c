"""Recipes at hand: registered by packages, and files in this folder and in ./recipes."""

from __future__ import annotations

import ast
from pathlib import Path


def known_recipes() -> list[dict[str, str]]:
    """Each recipe that is registered or at hand, and a line about it."""
    from hftl.recipes import recipe_claims, recipe_conflict

    rows = [
        {"recipe": name, "what": recipe_conflict(name, values) or values[0]}
        for name, values in sorted(recipe_claims().items())
    ]
    for path in sorted([*Path().glob("*.py"), *Path("recipes").glob("*.py")]):
        text = path.read_text(encoding="utf-8", errors="replace")
        if "@recipe" in text:
            rows.append({"recipe": str(path), "what": _summary(text)})
    return rows


def _summary(text: str) -> str:
    """The first line of a file's docstring; the file is not run."""
    try:
        doc = ast.get_docstring(ast.parse(text)) or ""
    except SyntaxError as error:
        return f"(not valid Python: line {error.lineno})"
    return doc.splitlines()[0] if doc else ""
