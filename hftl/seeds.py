"""Several seeds as one result: the same recipe run with each of them, and what varies between them."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from hftl.errors import HftlError, UserError
from hftl.methods import Head
from hftl.parallel import broadcast, on_main, start_processes
from hftl.pipeline import run
from hftl.recipes import Recipe, fields_of_result
from hftl.runs.folder import RunFolder, writing
from hftl.store.files import write_file
from hftl.terminal import Terminal
from hftl.wording import one_line, plural, printable

FILE = "seeds.json"


@dataclass(frozen=True)
class OverSeeds:
    """What runs with several seeds gave.

    Attributes:
        folder: the folder that holds them, one folder ``seed-N`` each, and ``seeds.json``.
        seeds: in order.
        metrics: of each metric that all runs have: ``mean``, ``sd`` (with n - 1), ``low``, ``high``, and ``values`` in
            the order of the seeds.
    """

    folder: Path
    seeds: list[int]
    metrics: dict[str, dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """What ``seeds.json`` has."""
        return {"seeds": self.seeds, "metrics": self.metrics}


def run_seeds(
    recipe: Recipe, count: int, *, name: str, out: Path | None, resume: bool, quiet: bool, **options: Any
) -> OverSeeds | None:
    """Run a recipe with so many seeds, from its own upwards, and say what came out of all of them.

    Args:
        recipe: what to do.
        count: how many seeds.
        name: the recipe's name, for the folder ``runs/<name>/<time>``.
        out: another folder to write to.
        resume: go on where such a result was stopped: finished runs are taken as they are.
        quiet: print nothing but errors.
        options: others of `hftl.pipeline.run`.

    Returns:
        None on every process but the main one.

    Raises:
        UserError: there are fewer than two seeds; the folder holds something else; or the recipe cannot be used.
    """
    if count < 2:
        raise UserError(f"--seeds {count}: give at least 2, or leave it out")
    say = Terminal(quiet=quiet or not start_processes().is_main_process)
    seeds = list(range(recipe.seed, recipe.seed + count))
    folder = Path(broadcast(on_main(lambda: str(_folder(name, out, seeds, resume=resume)))))
    for place, seed in enumerate(seeds, 1):
        where = folder / f"seed-{seed}"
        made = recipe.model_copy(update={"seed": seed})
        cv = options.get("cv")
        state = broadcast(on_main(lambda where=where, made=made, cv=cv: _state_of_seed(where, made, cv)))  # type: ignore[misc]
        if state == "finished":
            say.print(f"seed {seed}    {place} of {count}, done before: {where}")
            continue
        say.print(f"seed {seed}    {place} of {count}")
        goes_on = state == "begun" and not isinstance(recipe.method, Head)
        run(made, name=name, out=where, resume=goes_on, quiet=quiet, **options)
    together: OverSeeds | None = on_main(lambda: _over_seeds(folder, seeds, say))
    return together


def _folder(name: str, out: Path | None, seeds: list[int], *, resume: bool) -> Path:
    """The folder to write to: the one asked for, the newest unfinished one, or a new one."""
    if out is None and resume:
        begun = [file.parent for file in sorted(Path("runs", name).glob(f"*/{FILE}")) if not _read(file).get("metrics")]
        if not begun:
            raise UserError(
                f"runs/{name} holds no unfinished seeds; leave out --resume, or give their folder with --out"
            )
        out = begun[-1]
    if out is None:
        out = Path("runs", name, time.strftime("%Y%m%d-%H%M%S"))
    out = out.expanduser()
    file = out / FILE
    if file.is_file():
        if (there := _read(file).get("seeds")) != seeds:
            raise UserError(f"{out} holds the seeds {there}, not {seeds}; give another folder with --out")
        if not resume:
            raise UserError(f"{out} holds runs with several seeds; add --resume to go on, or give another --out")
        return out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and holds something else; give another folder with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to the folder {out}: {error.strerror}; give another with --out") from error
    _write_seeds(file, {"seeds": seeds})
    return out


def _state_of_seed(where: Path, made: Recipe, cv: str | None) -> str:
    """Whether a seed's run is finished, begun, or not there.

    Raises:
        UserError: it was made of another recipe.
    """
    if not RunFolder.is_run(where):
        return "missing"
    kept = RunFolder(where).record()
    record = fields_of_result(kept.recipe)
    wanted = fields_of_result(made.model_dump(mode="json", exclude={"data", "metrics", "drop"}))
    # A record has the direction resolved, so that it is told without the function.
    for name in ("metrics", "drop", "greater_is_better"):
        wanted.pop(name)
    if made.depth == "auto":
        # A record has the depth that was chosen.
        wanted.pop("depth")
    others = [name for name, value in wanted.items() if name in record and record[name] != value]
    if kept.cv != (None if cv == "none" else cv):
        others.append("cv")
    if others:
        raise UserError(
            f"{where} was run with another {others[0]}: give another folder with --out, or the recipe as it was"
        )
    return "finished" if RunFolder.is_finished(where) else "begun"


def _over_seeds(folder: Path, seeds: list[int], say: Terminal) -> OverSeeds:
    each = [RunFolder(folder / f"seed-{seed}").metrics().eval for seed in seeds]
    metrics: dict[str, dict[str, Any]] = {}
    for name in each[0]:
        values = [found.get(name) for found in each]
        numbers = [value for value in values if isinstance(value, float)]
        if len(numbers) == len(values):
            metrics[name] = {
                "mean": statistics.fmean(numbers),
                "sd": statistics.stdev(numbers),
                "low": min(numbers),
                "high": max(numbers),
                "values": numbers,
            }
    made = OverSeeds(folder, seeds, metrics)
    _write_seeds(folder / FILE, made.as_json())
    table = Table()
    for column in ("metric", "mean", "standard deviation", "least", "most"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name, found in metrics.items():
        table.add_row(Text(printable(name)), *(f"{found[key]:.4f}" for key in ("mean", "sd", "low", "high")))
    say.print(table)
    notes = RunFolder(folder / f"seed-{seeds[0]}").record().data.notes
    if any(note.startswith("no evaluation split: ") for note in notes):
        say.print("          each seed draws its own test split, so that the spread is that of test rows too")
    say.print(f"seeds     {plural(len(seeds), 'run')} in {folder}")
    return made


def _read(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HftlError(f"{file} is damaged ({one_line(error, 100)}); remove it, or give another --out") from error
    return content


def _write_seeds(file: Path, content: dict[str, Any]) -> None:
    with writing(file):
        write_file(file, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
