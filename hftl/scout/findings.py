"""What an audit finds of single rows, and the csv file that a person edits before rows are dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from hftl.errors import HftlError
from hftl.rowrefs import inert


@dataclass(frozen=True)
class Finding:
    """One row and what is odd about it.

    Attributes:
        finding: ``leak`` (a copy in a later split), ``copy``, ``near copy``, ``wrong label`` or ``outlier``.
        split: the row's split.
        row: its name.
        label: its label.
        why: the reason in words.
        other_split: the split of the row that it is a copy of; empty where there is none.
        other_row: that row's name.
        suggested: the label that it rather has; empty where nothing says so.
        score: how sure this is, within one kind of finding the higher the surer.
        digest: of the row's content, as ``--drop`` compares it.
        at: its place in its split.
        other_at: that row's place in its split; None where there is none.
    """

    finding: str
    split: str
    row: str
    label: str
    why: str
    other_split: str
    other_row: str
    suggested: str
    score: float
    digest: str
    at: int = field(default=-1, repr=False)
    other_at: int | None = field(default=None, repr=False)


def write_findings(findings: Sequence[Finding], path: Path) -> None:
    """Write findings as csv, one line each, for ``hftl run --drop``; no cell is a formula to a spreadsheet.

    Raises:
        HftlError: the file cannot be written.
    """
    columns = {
        name: [inert(getattr(each, field)) for each in findings]
        for name, field in (
            ("row", "row"),
            ("split", "split"),
            ("label", "label"),
            ("finding", "finding"),
            ("other row", "other_row"),
            ("suggested label", "suggested"),
        )
    }
    table = pa.table(
        {name: pa.array(values, pa.string()) for name, values in columns.items()}
        | {
            "score": pa.array([each.score for each in findings], pa.float64()),
            "why": pa.array([inert(each.why) for each in findings], pa.string()),
            "digest": pa.array([each.digest for each in findings], pa.string()),
        }
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pa.csv.write_csv(table, path)
    except OSError as error:
        raise HftlError(f"cannot write {path}: {error.strerror or error}; give another file with --export") from error
