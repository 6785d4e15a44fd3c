"""Rows that a person wants left out: read from a csv file, found again in the data by name and content, dropped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hftl.data.csv_text import read_csv
from hftl.data.dataset import Data, Files, Split, Texts, labels_as_bytes
from hftl.data.holdout import shared_rows
from hftl.data.opening import decode_text, read_regular, why_unreadable
from hftl.data.raw import digest
from hftl.errors import DataError
from hftl.rowrefs import RowRef, as_named, said_digest
from hftl.store.digests import digest_bytes, digest_texts
from hftl.wording import listing, plural

COLUMNS = ("row", "split", "digest")


def read_row_refs(path: Path) -> tuple[RowRef, ...]:
    """The rows that a csv file names, each once, as ``hftl audit --export`` writes them.

    Args:
        path: the file; it has the columns ``row`` and ``split``, and may have ``digest`` and others.

    Raises:
        DataError: it cannot be read, lacks a column, or names no row.
    """
    try:
        text = decode_text(read_regular(path), path.name)
    except (OSError, ValueError) as error:
        raise DataError(f"drop: {path} cannot be read: {why_unreadable(error)}; give a csv of rows to drop") from error
    if not text.strip():
        raise DataError(f"drop: {path} is empty; write it with hftl audit --export, or leave out --drop")
    table = read_csv(text, path.name, tab=path.suffix == ".tsv")
    columns = {name: column.to_pylist() for name, column in zip(table.names, table.columns, strict=True)}
    lacking = [name for name in COLUMNS[:2] if name not in columns]
    if lacking:
        raise DataError(
            f"drop: {path} has no column {lacking[0]!r}, only {listing(table.names)}; a file of rows to drop has "
            f"the columns row and split, as hftl audit --export writes them"
        )
    if not columns["row"]:
        raise DataError(f"drop: {path} names no row; leave out --drop to train on all rows")
    digests = columns.get("digest", [""] * len(columns["row"]))
    named = zip(columns["split"], map(as_named, columns["row"]), digests, strict=True)
    return tuple(dict.fromkeys(RowRef(split.strip(), row, digest.strip()) for split, row, digest in named))


def without_rows(data: Data, dropped: Sequence[RowRef]) -> Data:
    """The data without some rows, and a note that says how many were left out.

    A row is found by its name. Where its digest is given, its content must be that; where several rows of a split have
    one name, the digest says which is meant.

    Args:
        data: all rows.
        dropped: those to leave out.

    Raises:
        DataError: a row is not there, has other content than when it was named, or is one of several that nothing tells
            apart; or no row of a split, or of a class in training, would be left.
    """
    wanted: dict[str, list[RowRef]] = defaultdict(list)
    for ref in dropped:
        wanted[ref.split].append(ref)
    there = {split.name: split for split in data.splits()}
    unknown = [ref for ref in dropped if ref.split not in there]
    if unknown:
        raise DataError(
            f"drop: row {unknown[0].row!r} is named in the split {unknown[0].split!r}, but the data have only "
            f"{listing(list(there))}; name one of these"
        )
    kept = {name: _kept(split, wanted[name]) if name in wanted else split for name, split in there.items()}
    for name, split in kept.items():
        # A split that was empty before, as the test split is under --cv, loses nothing.
        if not len(split) and len(there[name]):
            raise DataError(f"drop: every row of the {name} split would be left out; keep some of them")
    _require_classes(data, kept["train"])
    counts = {name: len(there[name]) - len(split) for name, split in kept.items() if len(there[name]) > len(split)}
    total, parts = sum(counts.values()), ", ".join(f"{name} {count:,}" for name, count in counts.items())
    before = shared_rows(data.train, data.test)
    return replace(
        data,
        train=kept["train"],
        validation=kept.get("validation"),
        test=kept["test"],
        notes=[
            *(note for note in data.notes if note not in before),
            f"dropped {plural(total, 'row')} as asked: {parts}",
            *shared_rows(kept["train"], kept["test"]),
        ],
        identity={
            **data.identity,
            "splits": {name: len(split) for name, split in kept.items()},
            "labels_digest": digest(*(labels_as_bytes(split.labels) for split in kept.values())),
            "dropped": total,
        },
    )


def _kept(split: Split, refs: Sequence[RowRef]) -> Split:
    asked = {ref.row for ref in refs}
    places: dict[str, list[int]] = defaultdict(list)
    for i in range(len(split)):
        if (name := split.inputs.name(i)) in asked:
            places[name].append(i)
    gone = {_place(split, ref, places[ref.row]) for ref in refs}
    return split.select(np.setdiff1d(np.arange(len(split)), list(gone)))


def _place(split: Split, ref: RowRef, places: Sequence[int]) -> int:
    """Where in a split the row is that is meant, among those of its name."""
    if not places:
        raise DataError(
            f"drop: the {split.name} split has no row {ref.row!r}; see that data, seed and test_size are those that "
            f"the file was written of, or delete the row's line"
        )
    same = [i for i in places if _digest_of(split.inputs, i) == ref.digest] if ref.digest else list(places)
    if not same:
        raise DataError(
            f"drop: row {ref.row!r} of the {split.name} split holds other content than when the file was written; run "
            f"hftl audit --export again"
        )
    if len(same) > 1:
        how = "and content" if ref.digest else "and the file has no column digest to tell them apart"
        raise DataError(
            f"drop: {plural(len(same), 'row')} of the {split.name} split have the name {ref.row!r} {how}; remove all "
            f"but one from the data themselves"
        )
    return same[0]


def _digest_of(inputs: Texts | Files, row: int) -> str:
    content = digest_texts([inputs[row]])[0].tobytes() if isinstance(inputs, Texts) else digest_bytes(inputs.read(row))
    return said_digest(content)


def _require_classes(data: Data, train: Split) -> None:
    if not data.task.has_classes:
        return
    before, after = _counts(data.train, len(data.label_names)), _counts(train, len(data.label_names))
    lost = np.flatnonzero((after == 0) & (before > 0))
    if len(lost):
        name = data.label_names[lost[0]]
        raise DataError(f"drop: no training row of the class {name!r} would be left; keep one of its rows")


def _counts(split: Split, classes: int) -> np.ndarray:
    labels = split.labels
    if labels.dtype == object:
        return np.bincount(np.concatenate(labels), minlength=classes)
    return np.bincount(labels, minlength=classes) if labels.ndim == 1 else (labels > 0).sum(0)
