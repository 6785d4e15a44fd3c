"""Read label columns as they stand: refuse missing labels, leave out rows marked as unlabelled."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from hftl.data.dataset import Indices
from hftl.data.raw import SplitName
from hftl.errors import DataError
from hftl.tasks import Task
from hftl.wording import listing, plural

Values: TypeAlias = list[Any]

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


def read_labels(
    columns: Mapping[SplitName, Sequence[pa.ChunkedArray]],
    row_names: Mapping[SplitName, Callable[[int], str]],
    column_names: Sequence[str],
    *,
    named_classes: bool,
    task: Task | None,
) -> tuple[dict[SplitName, RawLabels], list[str]]:
    """Read the labels of every split that has any.

    Args:
        columns: for each split one column, or several (targets of a regression, a 0/1 column for each label).
        row_names: for each split a function that names a row.
        column_names: the columns' names.
        named_classes: whether the column numbers named classes, so that -1 means "unlabelled" beyond doubt.
        task: the task, if stated.

    Returns:
        The labels, without evaluation splits that have none at all, and notes on what was left out.

    Raises:
        DataError: some rows have no label, or NaN.
    """
    several = task is not None and task.has_classes and not task.is_exclusive
    values = {split: _cells_of(cells, blank_is_none=several) for split, cells in columns.items()}
    marked = (task is None or task.has_classes) and (named_classes or _minus_one_is_no_class(values))
    found: dict[SplitName, RawLabels] = {}
    notes: list[str] = []
    for split, rows in values.items():
        raw, said = _keep_labelled(rows, split, row_names[split], column_names, marked)
        notes += said
        if raw is not None:
            found[split] = raw
    return found, notes


def _cells_of(columns: Sequence[pa.ChunkedArray], *, blank_is_none: bool) -> Values:
    lists: list[Values] = [column.to_pylist() for column in columns]
    if pa.types.is_decimal(columns[0].type):
        lists = [[float(value) if isinstance(value, Decimal) else value for value in values] for values in lists]
    if len(lists) > 1:
        return [list(row) for row in zip(*lists, strict=True)]
    if blank_is_none and pa.types.is_string(columns[0].type):
        return [value or [] for value in lists[0]]  # a blank cell in a column of "a,b": none of the labels
    return lists[0]


def _minus_one_is_no_class(values: Mapping[SplitName, Values]) -> bool:
    """Say whether -1 marks rows without a label: it does beside class numbers.

    In ``{-1, 1}`` it is one of two classes, and beside fractions or other negative numbers a number like any
    other.
    """
    numbers = {value for rows in values.values() for value in rows if type(value) in (int, float)}
    others = {value for value in numbers if value == value and value != UNLABELLED}  # without NaN
    return others != {1} and all(float(value).is_integer() and value >= 0 for value in others)


def _keep_labelled(
    values: Values,
    split: SplitName,
    row_name: Callable[[int], str],
    column_names: Sequence[str],
    marked: bool,
) -> tuple[RawLabels | None, list[str]]:
    missing = [row for row, value in enumerate(values) if _is_missing(value)]
    unlabelled = [row for row, value in enumerate(values) if marked and _is_mark(value)]
    if values and len(missing) + len(unlabelled) == len(values):
        none = f"none of the {plural(len(values), 'row')} has a label in column {listing(column_names)}"
        if split == "train":
            raise DataError(f"{split} split: {none}")
        return None, [f"{split} split left out: {none}"]
    if missing:
        raise DataError(
            f"{row_name(missing[0])}: no label (empty, null or NaN) in column {listing(column_names)}, "
            f"as in {plural(len(missing), 'row')} of the {split} split: fill in or remove them"
        )
    rows = np.setdiff1d(np.arange(len(values)), unlabelled)
    note = f"dropped {plural(len(unlabelled), 'row')} of the {split} split labelled {UNLABELLED} (unlabelled)"
    return RawLabels([values[row] for row in rows], rows, row_name), [note] if unlabelled else []


def _is_missing(value: Any) -> bool:
    if isinstance(value, list):
        return any(_is_missing(element) for element in value)
    return value is None or value == "" or (isinstance(value, float) and not np.isfinite(value))


def _is_mark(value: Any) -> bool:
    return type(value) in (int, float) and value == UNLABELLED
