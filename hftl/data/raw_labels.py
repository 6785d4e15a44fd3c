"""Label columns as they stand: numbers become names by their own codebook, rows marked as unlabelled are left out."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hftl.data.cells import Cells
from hftl.data.dataset import Indices
from hftl.data.raw import RawData, RawSplit, SplitName
from hftl.errors import DataError
from hftl.tasks import Task
from hftl.wording import listing, plural

Values: TypeAlias = list[Any]
IsMark: TypeAlias = Callable[[Any], bool]
"""Tells a value that marks a row as unlabelled."""

UNLABELLED = -1
"""What `datasets` and most benchmarks write where a row has no label."""


@dataclass(frozen=True)
class RawLabels:
    """One split's labels before they are numbers.

    Attributes:
        values: one value for each kept row: a str, bool, int or float, or a list of them.
        rows: positions of the kept rows in the split's table.
        row_name: names a row of the table for a person.
    """

    values: Values
    rows: Indices
    row_name: Callable[[int], str]

    def name(self, at: int) -> str:
        """Return the name of the ``at``-th kept row."""
        return self.row_name(int(self.rows[at]))

    def without(self, at: Sequence[int] | Indices) -> RawLabels:
        """Return the other labels than those at some positions."""
        kept = np.setdiff1d(np.arange(len(self.values)), at)
        return RawLabels([self.values[i] for i in kept.tolist()], self.rows[kept], self.row_name)


@dataclass(frozen=True)
class Stated:
    """What the user says of the labels.

    Attributes:
        task: what they are; None to infer.
        unlabelled: values that mark rows without a label, as text, the empty text for a missing value; None to infer.
        separator: what stands between several labels in one cell; None to infer.
    """

    task: Task | None = None
    unlabelled: tuple[str, ...] | None = None
    separator: str | None = None


@dataclass(frozen=True)
class ReadLabels:
    """The labels of every split that has any.

    Attributes:
        splits: by split.
        class_names: names of the classes in the order of the data's codebooks; None where numbers have no names.
        notes: what was left out or decided, one sentence each.
    """

    splits: dict[SplitName, RawLabels]
    class_names: list[str] | None
    notes: list[str]


def read_labels(source: RawData, cells: Cells, columns: Sequence[str], stated: Stated) -> ReadLabels:
    """Read the labels of every split that has any.

    Args:
        source: the splits.
        cells: their columns.
        columns: the label columns: one, or several (targets of a regression, a 0/1 column for each label).
        stated: what the user says of them.

    Raises:
        DataError: a number has no name in its own codebook, some rows have no label, or NaN.
    """
    values = {split: label_values(source, cells, split, columns, stated.task) for split in source.parts}
    class_names = _class_order(source, columns) if takes_names(stated.task) else None
    notes = _as_one_spelling(values)
    if class_names is None:
        notes += _as_one_type(values)
    is_mark, guess = _unlabelled_mark(values, columns, stated, class_names is not None)
    splits: dict[SplitName, RawLabels] = {}
    for split, rows in values.items():
        labels = RawLabels(rows, source.parts[split].own_rows, source.parts[split].name)
        kept, said = keep_labelled(labels, split, columns, is_mark)
        notes += said
        if kept is not None:
            splits[split] = kept
    if guess and any(note.startswith("dropped") for note in notes):
        notes.append(guess)
    if "train" not in splits:
        raise DataError(
            f"train split: none of the {plural(len(values['train']), 'row')} has a label in column {listing(columns)}"
        )
    return ReadLabels(splits, class_names, notes)


def takes_names(task: Task | None) -> bool:
    """Whether numbers with names stand for their names: not where the numbers are what is predicted."""
    return task is None or task.has_classes


# ── values ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def label_values(
    source: RawData,
    cells: Callable[[SplitName, str], pa.ChunkedArray],
    split: SplitName,
    columns: Sequence[str],
    task: Task | None,
) -> Values:
    """The values of a split's label columns, one for each of its own rows; of several columns a list for each row.

    Raises:
        DataError: a column is missing or unusable, or a number has no name in its own codebook.
    """
    part = source.parts[split]
    lists = [_plain_values(cells(split, column), part) for column in columns]
    if len(lists) > 1:
        return [list(row) for row in zip(*lists, strict=True)]
    (values,) = lists
    if has_codebook(source, columns[0]):
        values = (
            _named_values(part, columns[0], values) if takes_names(task) else _raw_numbers(source, columns[0], values)
        )
    several = task is not None and task.has_classes and not task.is_exclusive
    if several and all(value is None or isinstance(value, str) for value in values):
        return [value or [] for value in values]  # a blank cell in a column of "a,b": none of the labels
    return values


def _plain_values(column: pa.ChunkedArray, part: RawSplit) -> Values:
    if part.rows is not None:
        column = column.take(part.rows)
    if pa.types.is_string(column.type):
        # One object for each class, not for each row.
        distinct = column.unique()
        names = distinct.to_pylist()
        places = pc.index_in(column, value_set=distinct)
        return [names[place] for chunk in places.chunks for place in chunk.to_pylist()]
    values: Values = column.to_pylist()
    if pa.types.is_decimal(column.type):
        return [float(value) if isinstance(value, Decimal) else value for value in values]
    return values


def has_codebook(source: RawData, column: str) -> bool:
    """Whether any file of any split names the classes that a column's numbers stand for."""
    return any(part.class_names(column) for part in source.parts.values())


def _class_order(source: RawData, columns: Sequence[str]) -> list[str] | None:
    """The classes in the order of the codebooks, the training split's first; None if there is no codebook."""
    if len(columns) > 1 or not has_codebook(source, columns[0]):
        return None
    parts = sorted(source.parts.items(), key=lambda item: item[0] != "train")
    books = [book for _, part in parts for book in part.class_names(columns[0]) if book is not None]
    return list(dict.fromkeys(_composed(name) for book in books for name in book))


def _named_values(part: RawSplit, column: str, values: Values) -> Values:
    """Each number as the name that its own file gives it."""
    books = part.class_names(column) or [None] * max(len(part.codebooks), 1)
    for book in books:
        if book is not None and (twice := [name for name, count in Counter(book).items() if count > 1]):
            raise DataError(
                f"{part.name(0)}: column {column!r} has two classes of the name {listing(twice)}: rename one of each"
            )
    named = []
    for row, value in zip(part.own_rows.tolist(), values, strict=True):
        book = books[part.names.source_of(row) if part.names is not None else 0]
        named.append(_named(value, book, partial(part.name, row), column))
    return named


def _named(value: Any, book: Sequence[str] | None, row_name: Callable[[], str], column: str) -> Any:
    if isinstance(value, list):
        return [_named(element, book, row_name, column) for element in value]
    if type(value) not in (int, float) or value != value or is_minus_one(value):
        return value
    if book is None:
        raise DataError(
            f"{row_name()}: {value} in column {column!r} has no name, while other files name the classes of their "
            f"numbers: write names in place of the numbers, or give this file the same features"
        )
    if (isinstance(value, float) and not value.is_integer()) or not 0 <= value < len(book):
        raise DataError(f"{row_name()}: label {value!r} of only {plural(len(book), 'class')}")
    return book[int(value)]


def _raw_numbers(source: RawData, column: str, values: Values) -> Values:
    """The numbers themselves, if they mean the same in all files."""
    books = {tuple(book or ()) for part in source.parts.values() for book in part.class_names(column)}
    if len(books) > 1:
        raise DataError(
            f"column {column!r}: files give the numbers different names, so they are no targets of a regression: "
            f"write plain numbers"
        )
    return values


def _as_one_type(values: Mapping[SplitName, Values]) -> list[str]:
    """Where a label is a word in one split and a number in another, make all of them words."""
    kinds = {type(value) for rows in values.values() for value in rows if value is not None}
    if str not in kinds or not kinds & {int, float, bool} or list in kinds:
        return []
    for rows in values.values():
        rows[:] = [value if value is None or value != value else label_text(value) for value in rows]
    return ["labels are words in some splits and numbers in others: all of them are read as words"]


def label_text(value: Any) -> str:
    """A label as the name of its class: whole numbers without a fraction."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def _as_one_spelling(values: Mapping[SplitName, Values]) -> list[str]:
    """Give letters with accents one form (Unicode NFC), so that what looks the same is the same class."""
    before: set[str] = set()
    for rows in values.values():
        for at, value in enumerate(rows):
            composed = compose(value)
            if composed != value:
                before.update(value if isinstance(value, list) else [value])
                rows[at] = composed
    return (
        [f"labels with accents are read in their composed form (Unicode NFC): {listing(sorted(map(str, before)), 3)}"]
        if before
        else []
    )


def compose(value: Any) -> Any:
    """A label, or a list of labels, with accents composed to one letter where there is one (Unicode NFC)."""
    if isinstance(value, list):
        return [compose(element) for element in value]
    return _composed(value) if isinstance(value, str) else value


def _composed(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)


# ── rows without a label ─────────────────────────────────────────────────────────────────────────────────────────────


def _unlabelled_mark(
    values: Mapping[SplitName, Values], columns: Sequence[str], stated: Stated, named_classes: bool
) -> tuple[IsMark, str]:
    """What tells values that mark rows without a label, and a sentence about it if it is a guess.

    Raises:
        DataError: -1 may be a class as well as a mark.
    """
    if stated.unlabelled is not None:
        return stated_mark(stated.unlabelled), ""
    if named_classes:
        return is_minus_one, ""
    if stated.task is not None:
        # A number that training has is one of its classes; one that it never has cannot be.
        is_class = not stated.task.has_classes or any(map(is_minus_one, values["train"]))
        return stated_mark(()) if is_class else is_minus_one, ""
    if not _minus_one_is_no_class(values):
        return stated_mark(()), ""
    counts = Counter(value for value in values["train"] if type(value) in (int, float))
    if set(counts) == {UNLABELLED, 0, 1} and counts[UNLABELLED] >= min(counts[0], counts[1]):
        raise DataError(
            f"label column {listing(columns)} holds -1, 0 and 1, and -1 may be a class or mark rows without a label: "
            f"state --set task={Task.SINGLE_LABEL} if it is a class, --set unlabelled=-1 if it is not"
        )
    return is_minus_one, "-1 beside class numbers is taken for 'no label'; if it is a class, state --set unlabelled=[]"


def stated_mark(unlabelled: Sequence[str]) -> IsMark:
    """What tells the values that the user says mark rows without a label."""

    def is_mark(value: Any) -> bool:
        if isinstance(value, list):
            # One without any label is a row with none of them; one that lacks one is not labelled.
            return "" in unlabelled and any(map(_is_missing, value))
        return ("" if _is_missing(value) else label_text(value)) in unlabelled

    return is_mark


def is_minus_one(value: Any) -> bool:
    """Whether a value is the number -1; a class may well have the name ``-1``."""
    return type(value) in (int, float) and bool(value == UNLABELLED)


def _minus_one_is_no_class(values: Mapping[SplitName, Values]) -> bool:
    """Say whether -1 marks rows without a label: it does beside class numbers.

    In ``{-1, 1}`` it is one of two classes, and beside fractions or other negative numbers a number like any
    other.
    """
    numbers = {value for rows in values.values() for value in rows if type(value) in (int, float)}
    others = {value for value in numbers if value == value and value != UNLABELLED}  # without NaN
    return others != {1} and all(float(value).is_integer() and value >= 0 for value in others)


def keep_labelled(
    labels: RawLabels, split: SplitName, columns: Sequence[str], is_mark: IsMark
) -> tuple[RawLabels | None, list[str]]:
    """Leave out the rows that are marked as unlabelled.

    Args:
        labels: of all rows of a split.
        split: its name.
        columns: the label columns.
        is_mark: tells the values that mark them.

    Returns:
        The labels, or None if no row has any; and what was left out.

    Raises:
        DataError: some rows have no label, and are not marked either.
    """
    marked = [at for at, value in enumerate(labels.values) if is_mark(value)]
    missing = [at for at, value in enumerate(labels.values) if _is_missing(value) and not is_mark(value)]
    rows = plural(len(labels.values), "row")
    if labels.values and len(missing) + len(marked) == len(labels.values):
        return None, [f"{split} split left out: none of the {rows} has a label in column {listing(columns)}"]
    if missing:
        raise DataError(
            f"{labels.name(missing[0])}: no label (empty, null or NaN) in column {listing(columns)}, as in "
            f"{plural(len(missing), 'row')} of the {split} split: fill in or remove them, or leave such rows out with "
            f"--set 'unlabelled=[\"\"]'"
        )
    if not marked:
        return labels, []
    values = sorted(
        {label_text(labels.values[at]) if not _is_missing(labels.values[at]) else "nothing" for at in marked}
    )
    note = f"dropped {plural(len(marked), 'row')} of the {split} split labelled {', '.join(values)} (unlabelled)"
    return labels.without(marked), [note]


def _is_missing(value: Any) -> bool:
    if isinstance(value, list):
        return any(_is_missing(element) for element in value)
    return value is None or value == "" or (isinstance(value, float) and not np.isfinite(value))
