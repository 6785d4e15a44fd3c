"""``hftl cache``: look after the stored features."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hftl.cli.output import answering, print_json, say, show
from hftl.cli.questions import AsJson, Quiet
from hftl.errors import StoreError, UserError
from hftl.store.identity import is_of_views, short_storage
from hftl.wording import human_bytes, plural, size_in_bytes

if TYPE_CHECKING:
    from hftl.store.store import FeatureStore
    from hftl.store.summary import SpaceSummary

app = typer.Typer(help="Look after the stored features.", no_args_is_help=True)
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask before most of what is stored is removed.")]
# Days of computing may be in it, so removing a larger share of the store is asked for twice.
ASKED_ABOVE = 0.5


@app.command()
def ls(as_json: AsJson = False, _quiet: Quiet = False) -> None:
    """List feature spaces, the last used first."""
    _show_spaces(_store().spaces(), as_json=as_json)


@app.command()
def stats(as_json: AsJson = False, _quiet: Quiet = False) -> None:
    """Totals over all spaces."""
    totals = asdict(_store().stats())
    rows = [totals] if as_json else [{"what": name, "value": _human(name, value)} for name, value in totals.items()]
    show(rows, ["what", "value"], as_json=as_json)


@app.command()
def verify(as_json: AsJson = False, _quiet: Quiet = False) -> None:
    """Read every byte; what is damaged is set aside, to be computed again. Exit status 1 if anything was."""
    reports = _store().verify()
    rows = [
        {
            "name": r.space.name,
            "rows": r.rows,
            "damaged": ", ".join(r.bad) or None,
            "orphans removed": r.orphans,
            "not read": _said_of_format(r.space),
        }
        for r in reports
    ]
    columns = ["name", "rows", "damaged", "orphans removed"]
    show(rows, columns + ["not read"] * any(row["not read"] for row in rows), as_json=as_json)
    damaged = sum(len(report.bad) for report in reports)
    if damaged:
        raise StoreError(
            f"{damaged} damaged files were set aside; their rows are computed again when they are next needed, or "
            "pulled again where they are of another origin"
        )


@app.command()
def gc(
    max_size: Annotated[str, typer.Argument(help="What may stay, such as 20G.")],
    yes: Yes = False,
    as_json: AsJson = False,
    _quiet: Quiet = False,
) -> None:
    """Remove spaces until the store is no larger: what frozen blocks returned first, then the least recently used.

    One in use stays.
    """
    store, most = _store(), size_in_bytes(max_size)
    if not yes:
        _ask_before_removing(store, store.surplus(most))
    _show_spaces(store.gc(most), as_json=as_json)


@app.command("compact")
def compact_all(as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Merge small shards into larger ones."""
    merged = _store().compact()
    if as_json:
        print_json({"merged": merged})
    elif not quiet:
        say(f"{plural(merged, 'small shard')} merged")


@app.command()
def merge(
    other: Annotated[Path, typer.Argument(help="The folder of another cache.")],
    as_json: AsJson = False,
    _quiet: Quiet = False,
) -> None:
    """Take in the features of another cache, such as one that came from another machine; it stays as it is."""
    from hftl.store.store import FeatureStore

    reports = _store().merge(FeatureStore(other.expanduser()))
    show([asdict(report) for report in reports], ["name", "rows", "damaged", "refused"], as_json=as_json)
    if left := [report.name for report in reports if report.damaged or report.refused]:
        raise StoreError(f"not all was taken in of {', '.join(left)}: the table says why")


@app.command()
def push(
    space: Annotated[str, typer.Argument(help="A space's name, label or id, from `hftl cache ls`.")],
    target: Annotated[
        str, typer.Argument(help="user/name of a data set repository on the Hub, a folder as ./name, or s3://….")
    ],
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it; else only you do.")] = False,
    license: Annotated[str | None, typer.Option(metavar="ID", help="For the card, such as cc-by-4.0.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be pushed.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Hand a space on: its shards as they are, those that are there already left out, and a card, in one commit.

    What is there is never removed. The card says what rows reveal of what they were computed from.
    """
    from hftl.cli.push import print_pushed
    from hftl.travel.place import place_of
    from hftl.travel.push import push_space, to_hand_on

    if dry_run:
        handed = to_hand_on(_store(), space, place_of(target), license=license)
        sized = [(upload.path, upload.size if as_json else human_bytes(upload.size)) for upload in handed.uploads]
        show([{"file": path, "size": size} for path, size in sized], ["file", "size"], as_json=as_json)
        return
    with answering(as_json=as_json):
        pushed = push_space(_store(), space, target, public=public, license=license, quiet=quiet)
    if as_json:
        print_json(asdict(pushed))
    elif not quiet:
        print_pushed(pushed)


@app.command()
def pull(
    source: Annotated[
        str, typer.Argument(help="user/name of a data set repository on the Hub, a folder as ./name, or s3://….")
    ],
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Take in a space that somebody pushed, verified shard by shard and kept apart: nothing uses it unnamed.

    Again, it brings what is new and drops what is gone there; after a kill it goes on.
    """
    from hftl.travel.pull import pull_space

    with answering(as_json=as_json):
        pulled = pull_space(_store(), source, quiet=quiet)
    if as_json:
        print_json({**asdict(pulled), "space": pulled.space.to_json()})
    elif not quiet:
        space = pulled.space
        arrived = f"{plural(pulled.fetched, 'shard')} arrived" + (
            f", {pulled.removed:,} went" if pulled.removed else ""
        )
        say(f"pulled    {pulled.origin}: {space.rows:,} rows of {space.label}; {arrived}")
        say(f"          use them: hftl run RECIPE --trust-features {pulled.origin.name}")
    if pulled.refused:
        name, why = next(iter(pulled.refused.items()))
        raise StoreError(
            f"{plural(len(pulled.refused), 'shard')} of {pulled.origin.name} were left out, such as {name}: {why}"
        )


@app.command()
def clear(
    name: Annotated[str | None, typer.Argument(help="A space's name, label or id, from `hftl cache ls`.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Remove all spaces.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Even what a running process uses.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
    _quiet: Quiet = False,
) -> None:
    """Remove one space, or all."""
    if (name is None) != every:
        raise UserError("name one space (`hftl cache ls` lists them), or say --all")
    store = _store()
    if every and not yes:
        _ask_before_removing(store, store.spaces())
    _show_spaces(store.clear(name, force=force), as_json=as_json)


COLUMNS = ["name", "modality", "commit", "pooling", "rows", "size", "last used"]


def _store() -> FeatureStore:
    from hftl.store.store import FeatureStore, cache_root

    return FeatureStore(cache_root())


def _ask_before_removing(store: FeatureStore, spaces: Sequence[SpaceSummary]) -> None:
    """Ask the person at the terminal, where there is one, before more than half of what is stored goes."""
    going, stored = sum(space.bytes for space in spaces), store.stats().bytes
    if going <= ASKED_ABOVE * stored:
        return
    what = f"this removes {plural(len(spaces), 'space')}, {human_bytes(going)} of {human_bytes(stored)}"
    if not (sys.stdin and sys.stdin.isatty()):
        raise UserError(f"{what}, from {store.root}: say --yes if that is meant")
    typer.confirm(f"{what}; go on?", abort=True, err=True)


def _show_spaces(spaces: Sequence[SpaceSummary], *, as_json: bool) -> None:
    """Print spaces; of those that were made elsewhere also where."""
    columns = COLUMNS + ["origin"] * any(space.origin for space in spaces)
    show([_shown(space) for space in spaces], columns, as_json=as_json)


def _shown(space: SpaceSummary) -> dict[str, Any]:
    fields = space.to_json()
    pooling = space.identity.get("pooling") if space.blocks is None else f"{space.blocks} blocks"
    if is_of_views(space.identity):
        pooling = f"{pooling}, views"
    short = short_storage(space.identity)
    return {
        **fields,
        "commit": _said_of_format(space) or (fields["commit"] or "local files")[:12],
        "pooling": f"{pooling} in {short}" if short else pooling,
        "size": human_bytes(space.bytes),
        "last used": time.strftime("%Y-%m-%d %H:%M", time.localtime(space.last_used)),
    }


def _said_of_format(space: SpaceSummary) -> str | None:
    """What a person is told of a space that a newer hftl wrote."""
    return space.unread and f"format {space.unread}"


def _human(name: str, value: Any) -> str:
    return human_bytes(value) if name == "bytes" else str(value)
