"""`tune`: try values of a recipe's fields, choose on validation rows, and say what the choice is worth."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from hftl.backbones.loading import load_backbone
from hftl.errors import RecipeError, UserError
from hftl.frozen.recipe import inputs_of
from hftl.hub.client import staying_offline
from hftl.parallel import start_processes
from hftl.pipeline import run, with_depth
from hftl.plugins.registry import find
from hftl.plugins.spec import BackboneOptions
from hftl.recipes import Recipe, changed
from hftl.report.parts import write_page
from hftl.runs.again import RecipeLike, as_recipe
from hftl.runs.console import quiet_libraries
from hftl.runs.folder import METRICS, writing
from hftl.scaffold.of_run import module_name, recipe_of_run
from hftl.store.files import write_file
from hftl.terminal import Terminal
from hftl.tuning.answer import PAGE, answer_of
from hftl.tuning.bench import Bench
from hftl.tuning.job import Job
from hftl.tuning.search import Search, search_of
from hftl.tuning.study import check_optuna
from hftl.tuning.tuned import Tuned

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

ANSWER, BEFORE = "tune.json", "before"
# The share of the training rows that chooses where the data bring no validation split, and none is asked for.
VALIDATION_SIZE = 0.2


def tune(
    recipe: RecipeLike,
    search: Mapping[str, str | Sequence[Any]],
    *,
    trials: int = 20,
    repeats: int = 5,
    name: str | None = None,
    out: str | Path | None = None,
    offline: bool = False,
    allow_pickle: bool = False,
    quiet: bool = False,
    on_bad_row: str = "error",
) -> Tuned:
    """Try values of a recipe's fields, choose by the metric on validation rows, and repeat the choice with fresh seeds.

    Every trial begins with the same stored features and the same solved head. Fine-tuning whose epochs are worse than
    the median of the other trials' is ended. Called again with the same recipe, search and folder it goes on where it
    was, and several processes of one machine that call it share the trials.

    Args:
        recipe: what to tune; as of `hftl.run`.
        search: by field, a range (``"1e-5..1e-3:log"``, ``"4..12"``, ``"0..0.5:0.1"``), choices (``"4,8,16"``), or a
            list of values.
        trials: how many to try in all; where there are fewer combinations, each is tried.
        repeats: how often to train the chosen recipe with fresh seeds; 0 for never.
        name: the recipe's name; None for its own.
        out: the folder of the study; None for ``runs/<name>-tune``.
        offline: use only what is on this machine.
        allow_pickle: read a backbone's weights that are there only as a pickle, as nothing but tensors.
        quiet: print nothing but errors.
        on_bad_row: ``"error"``, or ``"skip"`` to leave out rows that cannot be decoded.

    Raises:
        UserError: optuna is not installed; the recipe, its data or what to search cannot be used; or every trial
            failed.
        HftlError: something cannot be written.
        Interrupted: it was asked to stop; trials that ended are kept.
    """
    check_optuna()
    if trials < 1 or repeats < 0 or repeats == 1:
        raise UserError("--trials is at least 1, and --repeats 0 or at least 2, because one number has no interval")
    if start_processes().num_processes > 1:
        raise UserError("each trial runs in one process: start `hftl tune` several times instead, in the same folder")
    recipe, own_name = as_recipe(recipe)
    name = name or own_name
    space = search_of(search, recipe)
    folder = Path(out or Path("runs") / f"{name}-tune").expanduser()
    say = Terminal(quiet=quiet)
    given: dict[str, Any] = {"offline": offline, "allow_pickle": allow_pickle, "on_bad_row": on_bad_row}
    with quiet_libraries(), staying_offline(offline):
        if recipe.depth == "auto":
            recipe = with_depth(recipe, say, **given)
        options = BackboneOptions(recipe.max_length, offline, allow_pickle)
        _check_backbones(space, recipe, options)
        recipe = _with_rows_to_choose_on(recipe, options, say)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        job = Job(name, recipe, space, Bench(say, **given), folder, say)
        job.search(trials)
        best = job.best()
        again = job.repeat(best, repeats)
        runs, file = _runs_on_test_rows(job, best, partial(run, name=name, quiet=True, **given))
    answer, page = answer_of(job, best, again, runs, file)
    write_page(page, folder / PAGE)
    with writing(folder):
        write_file(folder / ANSWER, f"{json.dumps(answer.as_json(), indent=2, default=str)}\n".encode())
    return answer


def _check_backbones(space: Search, recipe: Recipe, options: BackboneOptions) -> None:
    """See that every backbone is there, and has the depths that are to be tried.

    Raises:
        UserError: it is not, or has not.
    """
    depths: list[Any] = [*space.ends("depth")] or [recipe.depth]
    backbones = space.ends("backbone") or [recipe.backbone]
    for backbone, depth in product(backbones, depths):
        tried = changed(recipe, {"backbone": backbone, "depth": depth})
        if isinstance(tried.depth, str):
            raise RecipeError("--search depth: 'auto' is for `hftl run`, which chooses one; give numbers")
        load_backbone(find(tried.backbone), options, tried.depth)


def _with_rows_to_choose_on(recipe: Recipe, options: BackboneOptions, say: Terminal) -> Recipe:
    """The recipe, with a validation split to be drawn where neither it nor its data bring one."""
    if recipe.validation_size is not None or inputs_of(recipe, Terminal(quiet=True), options)[2].validation is not None:
        return recipe
    say.print(
        f"choose    on {VALIDATION_SIZE:.0%} of the training rows, which are set aside in every run (--validation-size)"
    )
    return recipe.model_copy(update={"validation_size": VALIDATION_SIZE})


def _runs_on_test_rows(job: Job, best: FrozenTrial, do: Callable[..., object]) -> tuple[list[Path], Path]:
    """The runs on the test rows, the recipe as it stands first unless it is what was chosen; the chosen recipe's file.

    Of several processes one makes them, and the others wait for it.
    """
    chosen = changed(job.recipe, best.params)
    wanted = {job.folder / f"trial-{best.number}": chosen}
    if job.space.own(job.recipe) != best.params:
        wanted = {job.folder / BEFORE: job.recipe, **wanted}
    file = job.folder / f"{module_name(job.name)}_trial_{best.number}.py"
    with FileLock(job.folder / "runs.lock"):
        for place, recipe in wanted.items():
            if not (place / METRICS).is_file():
                job.say.print(f"run       {place}")
                do(recipe, out=place, resume=any(place.glob("checkpoints/step-*")))
        if not file.is_file():
            for line in recipe_of_run([*wanted][-1], file.stem, job.folder)[1]:
                job.say.print(f"          {line}")
    return [*wanted], file
