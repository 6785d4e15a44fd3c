"""A column of a table that says which split a row belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hftl.data.columns import is_text
from hftl.data.raw import SPLIT_NAMES, RawData, RawSplit, plain_split_of
from hftl.wording import listing, plural

SPLIT_COLUMNS = ("split", "subset", "partition", "set", "data_split", "dataset_split")


def divide_by_column(source: RawData, used: Sequence[str]) -> RawData:
    """Use a column such as ``split``, whose cells say train, validation or test, as the split, and say so.

    Args:
        source: what a reference led to.
        used: columns that were stated as input or label, which therefore say no split.

    Returns:
        The source, divided where its rows are not divided yet; where they are, with a note if the column disagrees.
    """
    if set(source.parts) != {"train"}:
        return replace(source, notes=[*source.notes, *_disagreements(source, used)])
    whole = source.parts["train"]
    column = _split_column(whole, used)
    if column is None:
        return source
    cells = whole.columns[column].to_pylist()
    said = [plain_split_of(cell) for cell in cells]
    known = set(said) - {None}
    if known == {"train"} and None not in said:
        return source
    words = listing(sorted({str(cell) for cell, split in zip(cells, said, strict=True) if split is None}), 5)
    if len(known) < 2:
        # Whatever a column called "set" means, only one that speaks of splits is worth a word.
        if not known and column.strip().lower() != "split":
            return source
        note = f"column {column!r} is not read as splits, which are called train, validation and test: it holds {words}"
        return replace(source, notes=[*source.notes, note])
    rows = {split: np.array([at for at, each in enumerate(said) if each == split]) for split in SPLIT_NAMES}
    note = f"splits by column {column!r}: " + ", ".join(f"{split} {len(own):,}" for split, own in rows.items())
    if left := sum(split is None for split in said):
        note += f"; left out: {plural(left, 'row')} called {words}"
    parts = {split: replace(whole, rows=own) for split, own in rows.items() if len(own)}
    return replace(source, parts=parts, notes=[*source.notes, note])


def _split_column(part: RawSplit, used: Sequence[str]) -> str | None:
    """The first column that is called like one of splits and holds words."""
    for name, column in part.columns.items():
        if name.strip().lower() in SPLIT_COLUMNS and name not in used and is_text(column.type):
            return name
    return None


def _disagreements(source: RawData, used: Sequence[str]) -> list[str]:
    """Where the column contradicts the split that a row's file or folder says."""
    notes = []
    for split, part in source.parts.items():
        if (column := _split_column(part, used)) is None:
            continue
        others = sum(plain_split_of(cell) not in (None, split) for cell in part.columns[column].to_pylist())
        if others:
            notes.append(
                f"column {column!r} is not used, because files say the split; it disagrees in {plural(others, 'row')} "
                f"of the {split} split"
            )
    return notes
