"""A run's record as a recipe, which does the same again: the commits of the Hub that it names are those of the run."""

from __future__ import annotations

import glob
import os
import sys
from pathlib import Path
from typing import TypeAlias

from pydantic import ValidationError

from hftl.errors import DataError, HftlError, RecipeError
from hftl.recipes import Recipe, RecipeFunction, find_recipe, first_problem
from hftl.runs.record import RECORD, RunRecord
from hftl.terminal import Terminal
from hftl.wording import printable

RecipeLike: TypeAlias = Recipe | RecipeFunction[...] | str | os.PathLike[str]
"""What Python takes for a recipe: one, a function with `@recipe`, or what `named_recipe` finds."""


def as_recipe(given: RecipeLike) -> tuple[Recipe, str]:
    """A recipe, however it was given, and its name.

    Raises:
        RecipeError: there is none, or it cannot be made.
    """
    if isinstance(given, Recipe):
        return given, "recipe"
    if isinstance(given, RecipeFunction):
        return given(), given.name
    if not isinstance(given, (str, os.PathLike)):
        raise RecipeError(
            f"a recipe is due, and this is a {type(given).__name__}: give a Recipe, a function with @recipe, a Python "
            "file, a name from `hftl recipes`, or a run's folder"
        )
    function = named_recipe(os.fspath(given))
    return function(), function.name


def reference_of(given: RecipeLike) -> str:
    """What a command line would name a recipe by; ``RECIPE`` where only Python has it."""
    return os.fspath(given) if isinstance(given, (str, os.PathLike)) else "RECIPE"


def named_recipe(ref: str) -> RecipeFunction[...]:
    """The recipe that a person names: a Python file, a registered name, or a run to do again.

    Args:
        ref: as for `hftl.recipes.find_recipe`; or a run's folder, or the ``recipe.json`` in it.

    Raises:
        RecipeError: there is none, or it cannot be loaded.
    """
    path = Path(ref).expanduser()
    if path.suffix == ".json":
        return _of_run(path)
    return _of_run(path / RECORD) if (path / RECORD).is_file() else find_recipe(ref)


def cv_of_run(given: object) -> str | None:
    """How rows are dealt in a run that is named to be done again; None where a test split was scored, or for no run."""
    if not isinstance(given, (str, os.PathLike)):
        return None
    path = Path(given).expanduser()
    file = path if path.suffix == ".json" else path / RECORD
    return _record_in(file).cv if file.is_file() else None


def _of_run(file: Path) -> RecipeFunction[...]:
    if not file.is_file():
        raise RecipeError(f"no file {str(file)!r}: give a run's folder, as `hftl run` prints it, or its {RECORD}")
    record = _record_in(file)
    backbone, data = record.backbone_reference, record.data_reference
    # Imported by name they might be other functions by now, or another person's.
    lost = record.recipe.get("metrics", [])
    fields = {name: value for name, value in record.recipe.items() if name != "metrics"} | {
        "backbone": backbone if record.backbone.commit else _where_it_was(record, backbone),
        "data": data if record.data_on_hub else _where_it_was(record, data),
    }
    try:
        made = Recipe.model_validate(fields)
    except ValidationError as error:
        raise RecipeError(f"{file}: {first_problem(error)}") from error

    def again() -> Recipe:
        for metric in lost:
            Terminal(file=sys.stderr).print(f"metric {metric!r} of that run is left out: only its Python recipe has it")
        for origin in record.trust_features:
            said = f"features of {printable(origin)}, which that run trusted, are used if --trust-features names them"
            Terminal(file=sys.stderr).print(said)
        return made

    # Its folder among the runs is that of the recipe.
    again.__name__ = record.name
    return RecipeFunction(again)


def _record_in(file: Path) -> RunRecord:
    # Brought only here: a recipe's file is read without pyarrow.
    from hftl.runs.folder import RunFolder

    try:
        return RunFolder(file.parent).record(file.name)
    except HftlError as error:
        raise RecipeError(f"{file} is no run's record: {error}") from error


def _where_it_was(record: RunRecord, reference: str) -> str:
    """A path as the run meant it; what is no path, or is no longer there, as it is, so that flags can replace it."""
    path = Path(reference).expanduser()
    if Path(record.started_in, path).exists():
        return str(Path(record.started_in, path))
    pattern = str(Path(glob.escape(record.started_in), path))
    return pattern if _is_of_shards(pattern) else reference


def _is_of_shards(pattern: str) -> bool:
    from hftl.data.tar_shards import shard_files

    try:
        return shard_files(pattern) is not None
    except DataError:
        return False
