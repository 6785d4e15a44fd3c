"""A run's record as a recipe, which does the same again: the commits of the Hub that it names are those of the run."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from hftl.errors import HftlError, RecipeError
from hftl.recipes import Recipe, RecipeFunction, find_recipe, first_problem
from hftl.runs.record import RECORD, RunRecord


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


def _of_run(file: Path) -> RecipeFunction[...]:
    if not file.is_file():
        raise RecipeError(f"no file {str(file)!r}: give a run's folder, as `hftl run` prints it, or its {RECORD}")
    # Brought only here: a recipe's file is read without pyarrow.
    from hftl.runs.folder import RunFolder

    try:
        record = RunFolder(file.parent).record(file.name)
    except HftlError as error:
        raise RecipeError(f"{file} is no run's record: {error}") from error
    backbone, data = record.backbone_reference, record.data_reference
    fields = dict(record.recipe) | {
        "backbone": backbone if record.backbone.commit else _where_it_was(record, backbone),
        "data": data if record.data_on_hub else _where_it_was(record, data),
    }
    try:
        made = Recipe.model_validate(fields)
    except ValidationError as error:
        raise RecipeError(f"{file}: {first_problem(error)}") from error

    def again() -> Recipe:
        return made

    # Its folder among the runs is that of the recipe.
    again.__name__ = record.name
    return RecipeFunction(again)


def _where_it_was(record: RunRecord, reference: str) -> str:
    """A path as the run meant it; what is no path, or is no longer there, as it is, so that flags can replace it."""
    there = Path(record.started_in, Path(reference).expanduser())
    return str(there) if there.exists() else reference
