"""``hftl runs``: which runs there are, and what came out of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hftl.cli.output import print_json, say, show
from hftl.cli.questions import AsJson, Quiet

if TYPE_CHECKING:
    from hftl.runs.listing import ListedRun


def runs(
    folder: Annotated[Path, typer.Argument(help="Where to look, at any depth.")] = Path("runs"),
    as_json: AsJson = False,
    _quiet: Quiet = False,
) -> None:
    """List runs, the newest last: recipe, backbone, method, score, when, and how long it took.

    A run that did not finish, or still goes on, has no score. Damaged folders are named with the reason.
    """
    from hftl.runs.listing import list_runs

    found = list_runs(folder.expanduser())
    if as_json:
        print_json([_as_json(run) for run in found])
        return
    if not found:
        say(f"no run in {folder} or below it")
    _print_lines([_line(run) for run in found if run.state != "damaged"])
    for run in found:
        if run.state == "damaged":
            say(f"damaged: {run.why}")


def _line(run: ListedRun) -> dict[str, str]:
    score = run.state if run.score is None else f"{run.score:.4f} {run.metric}"
    return {
        "run": str(run.folder),
        "recipe": run.recipe,
        "score": score,
        "seconds": "" if run.seconds is None else f"{run.seconds:,.1f} s",
        "when": f"{run.started:%Y-%m-%d %H:%M}",
        "method": run.method,
        "backbone": run.backbone,
    }


def _print_lines(rows: Sequence[dict[str, str]]) -> None:
    """A table where it fits; on a narrower terminal each folder on a line of its own, to be copied whole."""
    from rich.cells import cell_len

    from hftl.terminal import Terminal
    from hftl.wording import printable

    if not rows:
        return
    rows = [{name: printable(value) for name, value in row.items()} for row in rows]
    widths = {name: max(len(name), *(cell_len(row[name]) for row in rows)) for name in rows[0]}
    terminal = Terminal()
    if not terminal.is_terminal or sum(widths.values()) + 3 * len(widths) <= terminal.width:
        show(rows, list(widths), as_json=False)
        return
    for row in rows:
        say(row["run"])
        # The backbone is last: what is long after it may end where it likes. The recipe's name is in the folder's.
        cells = [row[name] + " " * (widths[name] - cell_len(row[name])) for name in ("score", "seconds", "when")]
        say("  ".join(["  ", *cells, f"{row['method']} on {row['backbone']}"]))


def _as_json(run: ListedRun) -> dict[str, Any]:
    return vars(run) | {"folder": str(run.folder), "started": run.started.isoformat()}
