"""``hftl cache``: look after the stored features."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hftl.cli.output import human_bytes, print_json, say, show
from hftl.cli.questions import AsJson, Quiet
from hftl.errors import StoreError, UserError
from hftl.wording import plural

if TYPE_CHECKING:
    from hftl.store.store import FeatureStore
    from hftl.store.summary import SpaceSummary

app = typer.Typer(help="Look after the stored features.", no_args_is_help=True)
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask before most of what is stored is removed.")]
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
# Days of computing may be in it, so removing a larger share of the store is asked for twice.
ASKED_ABOVE = 0.5


@app.command()
def ls(as_json: AsJson = False, _quiet: Quiet = False) -> None:
    """List feature spaces, the last used first."""
    show([_shown(space) for space in _store().spaces()], COLUMNS, as_json=as_json)


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
            f"{damaged} damaged files were set aside; their rows are computed again when they are next needed"
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
    store, most = _store(), _size(max_size)
    if not yes:
        _ask_before_removing(store, store.surplus(most))
    show([_shown(space) for space in store.gc(most)], COLUMNS, as_json=as_json)


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
    show([_shown(space) for space in store.clear(name, force=force)], COLUMNS, as_json=as_json)


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


def _shown(space: SpaceSummary) -> dict[str, Any]:
    fields = space.to_json()
    return {
        **fields,
        "commit": _said_of_format(space) or (fields["commit"] or "local files")[:12],
        "pooling": space.identity.get("pooling") if space.blocks is None else f"{space.blocks} blocks",
        "size": human_bytes(space.bytes),
        "last used": time.strftime("%Y-%m-%d %H:%M", time.localtime(space.last_used)),
    }


def _said_of_format(space: SpaceSummary) -> str | None:
    """What a person is told of a space that a newer hftl wrote."""
    return space.unread and f"format {space.unread}"


def _human(name: str, value: Any) -> str:
    return human_bytes(value) if name == "bytes" else str(value)


def _size(text: str) -> int:
    """The bytes of a size such as ``20G``; a bare ``20`` is 20 bytes to a program and 20 GB to a person."""
    given = text.strip().upper()
    size = re.fullmatch(r"(\d{1,15}(?:\.\d*)?) ?(?:([KMGT])B?|B)", given, re.ASCII)
    if size is None and re.fullmatch(r"\d{1,15}(\.\d*)?", given, re.ASCII):
        raise UserError(f"{text!r} has no unit; write {given}G, or {given}B if bytes are meant")
    if size is None:
        raise UserError(f"{text!r} is no size; write a number and its unit, such as 500M or 20G")
    return int(float(size[1]) * UNITS[size[2] or ""])
