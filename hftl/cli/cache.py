"""``hftl cache``: look after the stored features."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hftl.cli.output import human_bytes, show
from hftl.errors import StoreError, UserError

if TYPE_CHECKING:
    from hftl.store.store import FeatureStore
    from hftl.store.summary import SpaceSummary

app = typer.Typer(help="Look after the stored features.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@app.command()
def ls(as_json: Json = False) -> None:
    """List feature spaces, the last used first."""
    show([_row(space) for space in _store().spaces()], COLUMNS, as_json=as_json)


@app.command()
def stats(as_json: Json = False) -> None:
    """Totals over all spaces."""
    totals = asdict(_store().stats())
    rows = [totals] if as_json else [{"what": name, "value": _human(name, value)} for name, value in totals.items()]
    show(rows, ["what", "value"], as_json=as_json)


@app.command()
def verify(as_json: Json = False) -> None:
    """Read every byte; what is damaged is set aside, to be computed again. Exit status 1 if anything was."""
    reports = _store().verify()
    rows = [
        {"name": r.space.name, "rows": r.rows, "damaged": ", ".join(r.bad) or None, "orphans removed": r.orphans}
        for r in reports
    ]
    show(rows, ["name", "rows", "damaged", "orphans removed"], as_json=as_json)
    damaged = sum(len(report.bad) for report in reports)
    if damaged:
        raise StoreError(
            f"{damaged} damaged files were set aside; their rows are computed again when they are next needed"
        )


@app.command()
def gc(max_size: Annotated[str, typer.Argument(help="What may stay, such as 20G.")], as_json: Json = False) -> None:
    """Remove spaces, the least recently used first, until the store is no larger; never one in use."""
    show([_row(space) for space in _store().gc(_bytes(max_size))], COLUMNS, as_json=as_json)


@app.command()
def compact() -> None:
    """Merge small shards into larger ones."""
    print(f"{_store().compact()} small shards merged")


@app.command()
def clear(
    name: Annotated[str | None, typer.Argument(help="A space's name, label or id, from `hftl cache ls`.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Remove all spaces.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Even what a running process uses.")] = False,
    as_json: Json = False,
) -> None:
    """Remove one space, or all."""
    if (name is None) != every:
        raise UserError("name one space (`hftl cache ls` lists them), or say --all")
    show([_row(space) for space in _store().clear(name, force=force)], COLUMNS, as_json=as_json)


COLUMNS = ["name", "modality", "commit", "pooling", "rows", "size", "last used"]


def _store() -> FeatureStore:
    from hftl.store.store import FeatureStore, cache_root

    return FeatureStore(cache_root())


def _row(space: SpaceSummary) -> dict[str, Any]:
    fields = space.to_json()
    return {
        **fields,
        "commit": (fields["commit"] or "local files")[:12],
        "pooling": space.identity.get("pooling"),
        "size": human_bytes(space.bytes),
        "last used": time.strftime("%Y-%m-%d %H:%M", time.localtime(space.last_used)),
    }


def _human(name: str, value: Any) -> str:
    return human_bytes(value) if name == "bytes" else str(value)


def _bytes(text: str) -> int:
    number, unit = text.strip().upper().removesuffix("B"), ""
    if number and number[-1] in UNITS:
        number, unit = number[:-1], number[-1]
    try:
        size = int(float(number) * UNITS[unit])
    except ValueError:
        raise UserError(f"{text!r} is no size; write 500M, 20G or a number of bytes") from None
    if size < 0:
        raise UserError(f"{text!r} is negative")
    return size
