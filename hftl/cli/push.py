"""``hftl push``: a run to the Hub."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hftl.cli.complete import run_folders
from hftl.cli.output import answering, print_json, say, show
from hftl.cli.questions import AsJson, Quiet
from hftl.wording import human_bytes

if TYPE_CHECKING:
    from hftl.hub.commit import Pushed


def push(
    run: Annotated[
        Path, typer.Argument(help="A run's folder, or a folder with a model or an adapter.", autocompletion=run_folders)
    ],
    repo_id: Annotated[str, typer.Argument(help="Where to: user/name.")],
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it; else only you do.")] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")] = False,
    revision: Annotated[str | None, typer.Option(help="The branch to commit to.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be pushed.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Push a run's model (or its adapter) and card to the Hub, in one commit.

    The token is the one of `hf auth login` or HF_TOKEN. Only files that a model is made of are pushed.
    """
    from hftl.export.push import not_pushed, uploads_of
    from hftl.export.push import push as do
    from hftl.hub.commit import check_repo_id

    if dry_run:
        check_repo_id(repo_id)
        uploads, left = uploads_of(run, repo_id)
        if as_json:
            print_json({"files": [{"file": upload.path, "size": upload.size} for upload in uploads], "left": left})
            return
        rows = [{"file": upload.path, "size": human_bytes(upload.size)} for upload in uploads]
        show(rows, ["file", "size"], as_json=False)
        for note in not_pushed(left):
            say(note)
        return
    with answering(as_json=as_json):
        pushed = do(run, repo_id, public=public, create_pr=create_pr, revision=revision, quiet=quiet)
    if as_json:
        print_json(asdict(pushed))
    elif not quiet:
        print_pushed(pushed)


def print_pushed(pushed: Pushed) -> None:
    """Print where a push went."""
    for note in pushed.notes:
        say(note)
    say(f"{'pushed   ' if pushed.changed else 'unchanged'} {pushed.url}")
