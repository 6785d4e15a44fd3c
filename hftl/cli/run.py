"""``hftl run``: do what a recipe says."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from hftl.cli.launch import is_first_process, launch, line_to_resume
from hftl.cli.output import print_json, say
from hftl.cli.questions import (
    AllowPickle,
    AsJson,
    Change,
    Offline,
    OnBadRow,
    Quiet,
    RecipeArgument,
    Show,
    asked_recipe,
)
from hftl.errors import HftlError, Interrupted, RecipeError
from hftl.wording import printable


def run(
    context: typer.Context,
    recipe: RecipeArgument = None,
    change: Change = None,
    show: Show = False,
    out: Annotated[Path | None, typer.Option(help="Folder to write to (default runs/RECIPE/TIME).")] = None,
    on_bad_row: OnBadRow = "error",
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with fine-tuning where the newest unfinished run (or --out) stopped."),
    ] = False,
    track: Annotated[
        list[str] | None, typer.Option(help="Also log fine-tuning to tensorboard, trackio, wandb or mlflow.")
    ] = None,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write report.html into the run's folder.")
    ] = True,
    cv: Annotated[
        str | None,
        typer.Option(
            metavar="KxR",
            help="Score by cross-validation: 5x3 for 5 folds dealt 3 times; what is exported is trained on all rows. A "
            "run that is done again is scored as it was; none for no cross-validation.",
        ),
    ] = None,
    trust_features: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Use features that `hftl cache pull ORIGIN` brought, once a sample was computed here and agrees.",
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(metavar="N", help="Run with N seeds, from the recipe's upwards, and report mean and spread."),
    ] = None,
    num_processes: Annotated[int, typer.Option(min=1, help="Processes to start.")] = 1,
    push: Annotated[
        str | None, typer.Option(metavar="REPO_ID", help="Push what comes out to the Hub: user/name.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see what is pushed.")] = False,
    allow_pickle: AllowPickle = False,
    offline: Offline = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Do what a recipe says: features, head or fine-tuning, evaluation, export.

    Every field of the recipe and of its method is a flag, and so is every parameter of the recipe's function, which
    `hftl run RECIPE --help` lists too. A first try needs no recipe: `hftl run --backbone minilm-l6 --data reviews.csv`.
    """
    asked = asked_recipe(context, recipe, change, show=show)
    if num_processes > 1 and "WORLD_SIZE" not in os.environ:
        raise typer.Exit(launch(num_processes))
    if push is not None and seeds is not None:
        raise RecipeError("--push publishes one model, and --seeds makes several: push the run that you choose")
    if push is not None:
        from hftl.hub.client import staying_offline
        from hftl.hub.commit import check_can_push

        with staying_offline(offline):
            check_can_push(push)

    from hftl.plugins.registry import find
    from hftl.runs.again import cv_of_run

    # A name that nobody knows is said at once, not after seconds of importing.
    find(asked.recipe.backbone)
    if asked.reference is None and out is None and not quiet and is_first_process():
        say(f"recipe    none is named: the flags say what to do, and the run goes to runs/{asked.name}/")
    if cv is None and (cv := cv_of_run(asked.reference)) and not quiet and is_first_process():
        say(f"cv        {printable(cv)}, as the run that is done again had it (--cv none draws a test split)")
    how: dict[str, Any] = {
        "name": asked.name,
        "out": out,
        "offline": offline,
        "allow_pickle": allow_pickle,
        "quiet": quiet,
        "on_bad_row": on_bad_row,
        "resume": resume,
        "track": track or [],
        "report": report,
        "cv": cv,
        "trust_features": trust_features or [],
    }
    try:
        if seeds is not None:
            from hftl.seeds import run_seeds

            together = run_seeds(asked.recipe, seeds, **how)
            if together and as_json:
                print_json({"folder": str(together.folder), **together.as_json()})
            return
        from hftl.pipeline import run as do

        done = do(asked.recipe, **how)
    except Interrupted as stopped:
        if not is_first_process():
            raise typer.Exit(stopped.exit_code) from stopped
        raise Interrupted(f"{stopped}; to go on: {line_to_resume()}") from stopped
    if done is None:
        return
    url = _push(done.folder, push, public, quiet=quiet) if push is not None else None
    if as_json:
        print_json(_answer(done.folder, url))


def _answer(folder: Path, url: str | None) -> dict[str, Any]:
    """A finished run for programs: where it is, what came out, what a person is told of it, where it was pushed."""
    from hftl.runs.folder import RunFolder
    from hftl.runs.judgement import judgements

    run = RunFolder.open(folder)
    metrics = run.metrics()
    said = [" ".join(line.split()) for line in judgements(metrics, run.record().criterion)]
    return {"folder": str(folder), "metrics": metrics.as_json(), "said": said, "pushed": url}


def _push(folder: Path, repo_id: str, public: bool, *, quiet: bool) -> str:
    """Push a finished run; if that fails, say that the run is there. Where it went."""
    from hftl.cli.push import print_pushed
    from hftl.export.push import push

    try:
        pushed = push(folder, repo_id, public=public, quiet=quiet)
    except HftlError as error:
        later = shlex.join(["hftl", "push", str(folder), repo_id, *(["--public"] if public else [])])
        raise type(error)(f"{error} (the run is finished; to push it later: {later})") from error
    if not quiet:
        print_pushed(pushed)
    return pushed.url
