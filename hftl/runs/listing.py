"""The runs below a folder, each in a line: what it was made of, what came out of it, or why that cannot be told."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from hftl.errors import HftlError, UserError
from hftl.runs.folder import EVENTS, METRICS, RunFolder
from hftl.runs.record import RECORD

State = Literal["finished", "unfinished", "damaged"]


@dataclass(frozen=True)
class ListedRun:
    """One run.

    Attributes:
        folder: its folder, as it is given to other commands.
        state: ``finished``, ``unfinished`` (it was stopped, or still goes on) or ``damaged``.
        why: what is damaged; empty otherwise.
        started: when, local time.
        recipe: the recipe's name.
        backbone: the backbone's name.
        data: the data as the recipe names them.
        method: ``head``, ``partial``, ``lora`` or ``full``.
        metric: the one that chooses for the run's task.
        score: its value on the test split; None for a run without one.
        seconds: of the whole run; None where it did not finish.
    """

    folder: Path
    state: State
    why: str
    started: datetime
    recipe: str = ""
    backbone: str = ""
    data: str = ""
    method: str = ""
    metric: str = ""
    score: float | None = None
    seconds: float | None = None


def list_runs(root: Path) -> list[ListedRun]:
    """All runs in a folder and below it, the newest last.

    Args:
        root: the folder. Links to folders are not followed, because they may lead in a circle.

    Raises:
        UserError: there is no such folder.
    """
    if not root.is_dir():
        raise UserError(f"no folder {str(root)!r}: give one that holds runs; `hftl run` writes them below runs/")
    return sorted(_runs_below(root), key=lambda run: (run.started, run.folder))


def _runs_below(root: Path) -> Iterator[ListedRun]:
    closed: list[OSError] = []
    for here, folders, files in os.walk(root, onerror=closed.append):
        folder = Path(here)
        # A record that was lost leaves what the run wrote beside it.
        if RECORD in files or {METRICS, EVENTS} <= set(files):
            yield _listed(folder)
            # Its model is no place for another run.
            folders.clear()
    for error in closed:
        folder = Path(error.filename)
        yield ListedRun(folder, "damaged", f"{folder} cannot be read: {error.strerror}", _changed(folder))


def _listed(folder: Path) -> ListedRun:
    run = RunFolder(folder)
    try:
        record = run.record()
        metrics = run.metrics() if (folder / METRICS).exists() else None
        started = datetime.fromisoformat(record.started) if record.started else _changed(folder / RECORD)
    except (HftlError, ValueError) as error:
        return ListedRun(folder, "damaged", str(error), _changed(folder))
    metric = record.criterion.name
    score = metrics.eval.get(metric) if metrics else None
    return ListedRun(
        folder,
        "finished" if metrics else "unfinished",
        "",
        started.astimezone(),
        record.name,
        record.backbone.name,
        str(record.recipe["data"]),
        str(record.method["name"]),
        metric,
        score if isinstance(score, float) and math.isfinite(score) else None,
        metrics.seconds.get("total") if metrics else None,
    )


def _changed(path: Path) -> datetime:
    """When a file was last written; the beginning of time where even that cannot be told."""
    try:
        return datetime.fromtimestamp(path.stat().st_mtime).astimezone()
    except OSError:
        return datetime.fromtimestamp(0).astimezone()
