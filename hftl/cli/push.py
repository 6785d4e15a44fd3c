"""``hftl push``: a run to the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hftl.cli.output import human_bytes, say, show

if TYPE_CHECKING:
    from hftl.hub.commit import Pushed


def push(
    run: Annotated[Path, typer.Argument(help="A run's folder, or a folder with a model or an adapter.")],
    repo_id: Annotated[str, typer.Argument(help="Where to: user/name.")],
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it; else only you do.")] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")] = False,
    revision: Annotated[str | None, typer.Option(help="The branch to commit to.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be pushed.")] = False,
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
        rows = [{"file": upload.path, "size": human_bytes(upload.size)} for upload in uploads]
        show(rows, ["file", "size"], as_json=False)
        for note in not_pushed(left):
            say(note)
        return
    print_pushed(do(run, repo_id, public=public, create_pr=create_pr, revision=revision))


def print_pushed(pushed: Pushed) -> None:
    """Print where a push went."""
    for note in pushed.notes:
        say(note)
    say(f"{'pushed   ' if pushed.changed else 'unchanged'} {pushed.url}")
