"""``hftl recipes``: recipes registered by packages, and recipe files at hand."""

from __future__ import annotations

from hftl.cli.at_hand import known_recipes
from hftl.cli.output import show
from hftl.cli.questions import AsJson, Quiet


def recipes(as_json: AsJson = False, _quiet: Quiet = False) -> None:
    """List registered recipes, and the recipe files in this folder and in ./recipes."""
    show(known_recipes(), ["recipe", "what"], as_json=as_json)
