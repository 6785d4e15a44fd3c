"""``hftl run``: do what a recipe says."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hftl.cli.flags import changes_of, read_flags
from hftl.cli.launch import is_first_process, launch, line_to_resume
from hftl.cli.output import say
from hftl.errors import HftlError, Interrupted


def run(
    context: typer.Context,
    recipe: Annotated[
        str, typer.Argument(help="A Python file, FILE.py:FUNCTION, a name from `hftl recipes`, or a run to repeat.")
    ],
    backbone: Annotated[str | None, typer.Option(help="Registered name, Hub id[@revision], or folder.")] = None,
    data: Annotated[str | None, typer.Option(help="Hub data set[:config], folder, file, or sample:NAME.")] = None,
    method: Annotated[str | None, typer.Option(help="head, full, lora or partial.")] = None,
    task: Annotated[str | None, typer.Option(help="single_label, multi_label or regression.")] = None,
    input_columns: Annotated[str | None, typer.Option(help="One column, or two as a,b.")] = None,
    label_columns: Annotated[str | None, typer.Option(help="The column of labels, or several as a,b.")] = None,
    max_length: Annotated[str | None, typer.Option(help="Tokens kept of a text.")] = None,
    depth: Annotated[
        str | None, typer.Option(help="The backbone's first blocks only: how many, or auto for as many as it takes.")
    ] = None,
    test_size: Annotated[str | None, typer.Option(help="Share set aside where the data bring no test split.")] = None,
    seed: Annotated[str | None, typer.Option(help="Seed of every random choice.")] = None,
    drop: Annotated[
        str | None, typer.Option(metavar="FILE.csv", help="Rows to leave out, as `hftl audit --export` writes them.")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Any field, such as method.folds=10."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to (default runs/RECIPE/TIME).")] = None,
    on_bad_row: Annotated[
        Literal["error", "skip"], typer.Option(help="What to do with a row that cannot be decoded.")
    ] = "error",
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
    num_processes: Annotated[int, typer.Option(min=1, help="Processes to start.")] = 1,
    push: Annotated[
        str | None, typer.Option(metavar="REPO_ID", help="Push what comes out to the Hub: user/name.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see what is pushed.")] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read weights that are only a pickle, as nothing but tensors.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Use only what is on this machine.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Do what a recipe says: features, head or fine-tuning, evaluation, export.

    After RECIPE come the recipe's own flags, one for each parameter of its function, and the fields of its method
    (--pooling, --folds, …). `hftl run RECIPE --show` prints the resolved recipe and its flags, and runs nothing.
    """
    from hftl.recipes import changed
    from hftl.runs.again import named_recipe

    named = named_recipe(recipe)
    own, fields, show = read_flags(named.parameters, context.args)
    made = named(**own)
    flags = {
        "backbone": backbone,
        "data": data,
        "method": method,
        "task": task,
        "input_columns": input_columns,
        "label_columns": label_columns,
        "max_length": max_length,
        "depth": depth,
        "test_size": test_size,
        "seed": seed,
        "drop": drop,
    }
    changes: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    made = changed(made, changes | fields | changes_of(change or []))
    if show:
        say(str(made))
        return
    if num_processes > 1 and "WORLD_SIZE" not in os.environ:
        raise typer.Exit(launch(num_processes))
    if push is not None:
        from hftl.hub.client import staying_offline
        from hftl.hub.commit import check_can_push

        with staying_offline(offline):
            check_can_push(push)

    from hftl.plugins.registry import find

    # A name that nobody knows is said at once, not after seconds of importing.
    find(made.backbone)
    from hftl.pipeline import run as do

    try:
        done = do(
            made,
            name=named.name,
            out=out,
            offline=offline,
            allow_pickle=allow_pickle,
            quiet=quiet,
            on_bad_row=on_bad_row,
            resume=resume,
            track=track or [],
            report=report,
        )
    except Interrupted as stopped:
        if not is_first_process():
            raise typer.Exit(stopped.exit_code) from stopped
        raise Interrupted(f"{stopped}; to go on: {line_to_resume()}") from stopped
    if push is not None and done is not None:
        _push(done.folder, push, public, quiet)


def _push(folder: Path, repo_id: str, public: bool, quiet: bool) -> None:
    """Push a finished run; if that fails, say that the run is there."""
    from hftl.cli.push import print_pushed
    from hftl.export.push import push

    try:
        pushed = push(folder, repo_id, public=public)
    except HftlError as error:
        later = shlex.join(["hftl", "push", str(folder), repo_id, *(["--public"] if public else [])])
        raise type(error)(f"{error} (the run is finished; to push it later: {later})") from error
    if not quiet:
        print_pushed(pushed)
