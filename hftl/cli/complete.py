"""What a shell offers where a value is due: recipes, runs, backbones, methods; from what is at hand, without torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hftl.cli.at_hand import known_recipes
from hftl.wording import shortened

if TYPE_CHECKING:
    from hftl.cli.fields import FlagOfField

RUNS = "runs"
# Newest first; who wants an older one types its folder.
MOST_RUNS = 20
LONGEST = 60


def recipe_names(incomplete: str) -> list[tuple[str, str]]:
    """Recipe files at hand, registered recipes, and runs to do again."""
    named = [(row["recipe"], row["what"]) for row in known_recipes()]
    return _starting([*named, *run_folders("")], incomplete)


def run_folders(incomplete: str) -> list[tuple[str, str]]:
    """Folders of runs under ``runs``, the newest first, each with its backbone and its method."""
    begun = sorted(Path(RUNS).glob("*/*/recipe.json"), key=lambda file: file.parent.name, reverse=True)
    begun += sorted(Path(RUNS).glob("*/recipe.json"))
    return _starting([(str(file.parent), _what(file)) for file in begun[:MOST_RUNS]], incomplete)


def backbone_names(incomplete: str) -> list[tuple[str, str]]:
    """Registered backbones."""
    from hftl.plugins.registry import backbone_claims

    return _starting([(name, claims[0].description) for name, claims in backbone_claims().items()], incomplete)


def several_backbones(incomplete: str) -> list[tuple[str, str]]:
    """``A,B,`` and the next backbone."""
    before, comma, last = incomplete.rpartition(",")
    return [(f"{before}{comma}{name}", what) for name, what in backbone_names(last)]


def sample_names(incomplete: str) -> list[tuple[str, str]]:
    """Data that ship with hftl, and files and folders here."""
    offered = [("sample:digits", "handwritten digits that ship with hftl")]
    offered += [(path, "") for path in _paths(incomplete)]
    return _starting(offered, incomplete)


def values_of(flag: FlagOfField) -> Callable[[str], list[tuple[str, str]]] | None:
    """What completes the value of a recipe's flag; None where it may be anything."""
    if flag.name in ("backbone", "data"):
        return backbone_names if flag.name == "backbone" else sample_names
    if flag.choices:
        return lambda incomplete: _starting([(choice, "") for choice in flag.choices], incomplete)
    return None


ModelArgument = Annotated[
    str, typer.Argument(help="A run's folder, a model's folder, or a Hub id.", autocompletion=run_folders)
]
DataOption = Annotated[
    str, typer.Option(help="Hub data set[:config], folder, file, or sample:NAME.", autocompletion=sample_names)
]


def _starting(offered: list[tuple[str, str]], incomplete: str) -> list[tuple[str, str]]:
    return [(name, shortened(what, LONGEST)) for name, what in offered if name.startswith(incomplete)]


def _paths(incomplete: str) -> Iterator[str]:
    folder = Path(incomplete).parent if not incomplete.endswith("/") else Path(incomplete)
    if folder.is_dir():
        yield from sorted(f"{path}/" if path.is_dir() else str(path) for path in folder.iterdir())


def _what(record: Path) -> str:
    """The backbone and the method of a run."""
    try:
        recipe = json.loads(record.read_text(encoding="utf-8"))["recipe"]
        return f"{recipe['backbone']}, {recipe['method']['name']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "damaged"
