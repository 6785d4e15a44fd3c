"""A run's recipe as a file: what ``hftl new recipe --from RUN`` writes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from hftl.errors import HftlError, UserError
from hftl.recipes import find_recipe
from hftl.rowrefs import RowRef, inert
from hftl.runs.again import named_recipe
from hftl.runs.folder import RunFolder
from hftl.runs.record import RECORD, RunRecord
from hftl.runs.source import Verbatim, recipe_source
from hftl.wording import plural, printable


def recipe_of_run(run: Path, name: str | None, into: Path) -> tuple[list[Path], list[str]]:
    """Write a recipe file that makes the recipe of a run again, field by field, with the commits that it read.

    Args:
        run: the run's folder.
        name: of the recipe; None for the run's own.
        into: the folder to write to.

    Returns:
        The files, the recipe's first; and what a person has to fill in.

    Raises:
        UserError: there is no such run, or a file is there already.
        HftlError: what was written does not give the run's recipe.
    """
    if not RunFolder.is_run(run):
        raise UserError(f"{str(run)!r} is no run: give a run's folder, as `hftl run` prints it")
    record, made = RunFolder(run).record(), named_recipe(str(run / RECORD))()
    module = module_name(name or record.name)
    file, dropped = into / f"{module}.py", into / f"{module}_drop.csv"
    files = [file, *([dropped] if made.drop else [])]
    if there := next((path for path in files if path.exists()), None):
        raise UserError(f"{there} is there already; give another NAME, or move it away")
    comments, missing = _comments(record)
    source = recipe_source(
        made,
        module,
        summary=_summary(record, module),
        imports="from pathlib import Path\n" if made.drop else "",
        # Thousands of rows are no recipe.
        instead={"drop": Verbatim(f'Path(__file__).with_name("{dropped.name}")')} if made.drop else {},
        comments=comments,
    )
    if made.drop:
        _write_rows(made.drop, dropped)
    file.write_text(f"{source}\n", encoding="utf-8")
    if find_recipe(str(file))() != made:
        raise HftlError(f"{file} does not give the recipe of {run}; look at both, and report what differs")
    return files, missing


def module_name(name: str) -> str:
    """A name as one of a module; that of a run may be any."""
    module = "".join(c if c.isalnum() and c.isascii() else "_" for c in name).strip("_").lower()
    return module if module.isidentifier() else f"recipe_{module}".rstrip("_")


def _summary(record: RunRecord, module: str) -> str:
    """The first line of the file, in which nothing that others wrote can end a docstring."""
    said = printable(f"{record.recipe['backbone']} on {record.recipe['data']}, as a run had it.")
    scored = printable(f" --cv {record.cv}") if record.cv else ""
    return said.replace("\\", "/").replace('"', "'") + f"   hftl run {module}.py{scored}".replace('"', "'")


def _comments(record: RunRecord) -> tuple[dict[str, str], list[str]]:
    """Comments beside fields that do not say everything, and what has to be filled in."""
    comments: dict[str, str] = {}
    missing = []
    backbone, data = record.backbone, str(record.recipe["data"])
    if backbone.plugin not in ("", "hftl"):
        comments["backbone"] = f"needs the package {printable(f'{backbone.plugin} {backbone.plugin_version}')}"
    if data.startswith("<"):
        comments["data"] = "fill in: the run had them from Python"
        missing.append(f"data: the run was given {printable(data)} in Python, which a file cannot name: fill it in")
    if metrics := record.recipe.get("metrics"):
        missing.append(f"metrics: {printable(', '.join(metrics))}: only the Python recipe of that run has them")
    if dropped := record.recipe.get("drop"):
        comments["drop"] = plural(len(dropped), "row")
    return comments, missing


def _write_rows(rows: Sequence[RowRef], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "row", "digest"])
        writer.writerows([row.split, inert(row.row), row.digest] for row in rows)
