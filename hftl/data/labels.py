"""Understand label columns: drop unlabelled rows, decide the task, give every class its number."""

import ast
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from hftl.data.rows import Indices, Labels, Task
from hftl.data.source import SplitName, listing, plural
from hftl.errors import DataError

Values: TypeAlias = list[Any]

UNLABELLED = -1
"""What `datasets` and most benchmarks write where a row has no label."""

MAX_INT_CLASSES_UNASKED = 50


@dataclass(frozen=True)
class RawLabels:
    """One split's labels before they are numbers.

    Attributes:
        values: one value for each kept row: a str, bool, int or float, or a list of them.
        rows: positions of the kept rows in the split's table.
        where: names a row of the table for a person.
    """

    values: Values
    rows: Indices
    where: Any

    def name(self, at: int) -> str:
        """Return the name of the ``at``-th kept row."""
        return str(self.where(int(self.rows[at])))


@dataclass(frozen=True)
class EncodedLabels:
    """Labels as numbers.

    Attributes:
        task: what they are.
        names: names of the classes or targets.
        arrays: for each split the labels, as `hftl.data.Split` describes them.
        notes: what was decided, one sentence each.
    """

    task: Task
    names: list[str]
    arrays: dict[SplitName, Labels]
    notes: list[str] = field(default_factory=list)


def raw_labels(
    columns: Sequence[pa.ChunkedArray],
    split: SplitName,
    where: Any,
    column_names: Sequence[str],
    binary_names: bool,
) -> tuple[RawLabels | None, list[str]]:
    """Read a split's label columns and leave out unlabelled rows.

    Args:
        columns: one column, or several (targets of a regression, or a 0/1 column for each label).
        split: the split's name.
        where: gives a row's name.
        column_names: the columns' names.
        binary_names: whether -1 means "unlabelled" beyond doubt, as in a column with named classes.

    Returns:
        The labels, or ``None`` for an evaluation split that has none at all; and notes.

    Raises:
        DataError: some rows have no label, or NaN.
    """
    lists = [[_plain(value) for value in column.to_pylist()] for column in columns]
    values = lists[0] if len(lists) == 1 else [list(row) for row in zip(*lists, strict=True)]
    missing = [row for row, value in enumerate(values) if _is_missing(value)]
    unlabelled = _unlabelled(values, binary_names)
    column = listing(column_names)
    if values and len(missing) + len(unlabelled) == len(values):
        if split == "train":
            raise DataError(
                f"{split} split: column {column} holds no label in any of {plural(len(values), 'row')}"
            )
        return None, [f"{split} split left out: none of its {plural(len(values), 'row')} is labelled"]
    if missing:
        what = plural(len(missing), "row") + (" has" if len(missing) == 1 else " have")
        raise DataError(
            f"{where(missing[0])}: {what} no label (empty, null or NaN) in column {column}; this is the first: fill in or remove them"
        )
    if not unlabelled:
        return RawLabels(values, np.arange(len(values)), where), []
    rows = np.setdiff1d(np.arange(len(values)), unlabelled)
    note = f"dropped {plural(len(unlabelled), 'row')} of the {split} split labelled {UNLABELLED} (unlabelled)"
    return RawLabels([values[i] for i in rows], rows, where), [note]


def _plain(value: Any) -> Any:
    """Reduce a decimal to a float; everything else is a plain value already."""
    return float(value) if type(value).__name__ == "Decimal" else value


def _is_missing(value: Any) -> bool:
    if isinstance(value, list):
        return any(_is_missing(element) for element in value)
    return value is None or value == "" or (isinstance(value, float) and not np.isfinite(value))


def _unlabelled(values: Values, named_classes: bool) -> list[int]:
    """Return the rows labelled -1, where -1 stands beside class numbers.

    In ``{-1, 1}`` it is one of two classes, and beside fractions or other negative numbers it is a number like any other.
    """
    at = [row for row, value in enumerate(values) if type(value) in (int, float) and value == UNLABELLED]
    if not at or named_classes:
        return at
    others = {value for value in values if type(value) in (int, float)} - {UNLABELLED}
    is_class = all(float(value).is_integer() and value >= 0 for value in others)
    return at if is_class and others != {1} else []


def infer_task(values: Values, column_names: Sequence[str], named_classes: bool) -> tuple[Task, str]:
    """Decide from the training labels what kind of task they are.

    Returns:
        The task, and the reason in a few words.

    Raises:
        DataError: the values are of mixed kinds or cannot be labels.
    """
    kinds = {type(value) for value in values}
    if kinds == {list}:
        flat = [element for value in values for element in value]
        if len({len(value) for value in values}) == 1 and any(
            isinstance(e, float) and not e.is_integer() for e in flat
        ):
            return "regression", "lists of numbers"
        if len(column_names) > 1 and not set(flat) <= {0, 1}:
            if all(type(element) in (int, float) for element in flat):
                return "regression", "several columns of numbers"
            raise DataError(
                f"label columns {listing(column_names)}: several columns must be numbers, or only 0 and 1"
            )
        return "multi_label", "lists of labels" if len(column_names) == 1 else "columns of 0 and 1"
    column = listing(column_names)
    if named_classes or kinds == {bool}:
        return "single_label", "named classes" if named_classes else "true or false"
    if kinds == {str}:
        distinct = len(set(values))
        if len(values) >= 20 and distinct > 0.9 * len(values):
            raise DataError(
                f"label column {column}: {distinct:,} different texts in {plural(len(values), 'row')} are no classes: "
                f"state the label with --set label_columns=[…]"
            )
        return "single_label", "words"
    if kinds <= {int, float, bool}:
        if any(not float(value).is_integer() for value in values):
            return "regression", "numbers with a fraction"
        return _task_of_whole_numbers({int(value) for value in values}, len(values))
    raise DataError(
        f"label column {column} mixes {', '.join(sorted(kind.__name__ for kind in kinds))}: use one kind of value"
    )


def _task_of_whole_numbers(distinct: set[int], rows: int) -> tuple[Task, str]:
    """Class numbers are few, or count up from 0 or 1 without a gap; prices, ages and years do neither."""
    contiguous = min(distinct) in (0, 1) and max(distinct) - min(distinct) + 1 == len(distinct)
    if len(distinct) <= MAX_INT_CLASSES_UNASKED or contiguous or len(distinct) <= 0.1 * rows:
        return "single_label", "whole numbers"
    return (
        "regression",
        f"{len(distinct):,} different whole numbers in {plural(rows, 'row')}; task=single_label makes them classes",
    )


def encode_labels(
    splits: Mapping[SplitName, RawLabels],
    task: Task,
    column_names: Sequence[str],
    class_names: Sequence[str] | None,
) -> EncodedLabels:
    """Turn labels into arrays; the training split alone says which classes there are.

    Args:
        splits: labels of each split, ``train`` among them.
        task: what they are.
        column_names: names of the label columns.
        class_names: names of the classes whose numbers the column holds, if it says them.

    Raises:
        DataError: a label does not fit the task, training has a single class, or an evaluation split holds a label that
            training never saw.
    """
    for split, raw in splits.items():
        if not raw.values:
            raise DataError(f"{split} split: it has no rows")
    if task == "regression":
        return _encode_targets(splits, column_names)
    if task == "single_label":
        keys = {split: _class_keys(raw, column_names) for split, raw in splits.items()}
        classes = _classes(
            {split: [[key] for key in values] for split, values in keys.items()}, splits, class_names
        )
        if len(classes.names) < 2:
            raise DataError(
                f"training has a single class, {listing(classes.names)}, in label column {listing(column_names)}: "
                f"a classifier needs two or more"
            )
        numbers: dict[SplitName, Labels] = {
            split: np.array([classes.index[key] for key in values], dtype=np.int64)
            for split, values in keys.items()
        }
        return EncodedLabels(task, classes.names, numbers, classes.notes)
    return _encode_multi(splits, column_names, class_names)


@dataclass(frozen=True)
class _Classes:
    index: dict[Hashable, int]
    names: list[str]
    notes: list[str]


def _classes(
    keys: Mapping[SplitName, Sequence[Sequence[Hashable]]],
    splits: Mapping[SplitName, RawLabels],
    class_names: Sequence[str] | None,
) -> _Classes:
    """Order the classes that training holds, and refuse those that it does not."""
    seen = {key for row in keys["train"] for key in row}
    if len(kinds := {type(key) for key in seen}) > 1:
        raise DataError(
            f"labels mix {', '.join(sorted(kind.__name__ for kind in kinds))}: use one kind of value"
        )
    for split, rows in keys.items():
        _check_known(split, rows, splits[split], seen, class_names)
    order = sorted(seen)  # type: ignore[type-var]
    notes = []
    if class_names and (absent := [name for number, name in enumerate(class_names) if number not in seen]):
        notes = [f"left out, as no training row has them: {plural(len(absent), 'class')} {listing(absent)}"]
    return _Classes(
        {key: number for number, key in enumerate(order)},
        [_class_name(key, class_names) for key in order],
        notes,
    )


def _class_name(key: Hashable, class_names: Sequence[str] | None) -> str:
    return class_names[key] if class_names and isinstance(key, int) else str(key)


def _check_known(
    split: SplitName,
    rows: Sequence[Sequence[Hashable]],
    raw: RawLabels,
    seen: set[Hashable],
    class_names: Sequence[str] | None,
) -> None:
    if class_names is not None:
        for at, row in enumerate(rows):
            for key in row:
                if not (isinstance(key, int) and 0 <= key < len(class_names)):
                    raise DataError(
                        f"{raw.name(at)}: label {key!r}, but the data name only {plural(len(class_names), 'class')}"
                    )
    unseen = {key: at for at, row in reversed(list(enumerate(rows))) for key in row if key not in seen}
    if unseen:
        names = sorted(_class_name(key, class_names) for key in unseen)
        raise DataError(
            f"{split} split: {plural(len(names), 'label')} that training never saw: {listing(names)} (first: "
            f"{raw.name(min(unseen.values()))}): remove these rows, or add such rows to the training split"
        )


def _class_keys(raw: RawLabels, column_names: Sequence[str]) -> list[Hashable]:
    """Return each row's class as a str, bool or int."""
    keys: list[Hashable] = []
    for at, value in enumerate(raw.values):
        if isinstance(value, float):
            if not value.is_integer():
                raise DataError(
                    f"{raw.name(at)}: {value} in column {listing(column_names)} has a fraction and is no class: use words or whole numbers, "
                    f"or state task=regression"
                )
            value = int(value)
        if not isinstance(value, (str, bool, int)):
            kind = "a list" if isinstance(value, list) else f"a {type(value).__name__}"
            raise DataError(
                f"{raw.name(at)}: {kind} in column {listing(column_names)} is not one class: state task=multi_label?"
            )
        keys.append(value)
    return keys


def _encode_multi(
    splits: Mapping[SplitName, RawLabels], column_names: Sequence[str], class_names: Sequence[str] | None
) -> EncodedLabels:
    lists = {
        split: [_label_list(value, raw, at) for at, value in enumerate(raw.values)]
        for split, raw in splits.items()
    }
    if len(column_names) > 1:
        class_names = column_names
    if len(column_names) > 1 or _are_vectors(lists["train"]):
        lists = {
            split: _positions(rows, splits[split], len(lists["train"][0])) for split, rows in lists.items()
        }
    classes = _classes(lists, splits, class_names)
    if not classes.names:
        raise DataError(f"no training row has any label in column {listing(column_names)}")
    arrays: dict[SplitName, Labels] = {}
    for split, rows in lists.items():
        array = np.zeros((len(rows), len(classes.names)), dtype=np.float32)
        for at, row in enumerate(rows):
            array[at, [classes.index[key] for key in row]] = 1
        arrays[split] = array
    return EncodedLabels("multi_label", classes.names, arrays, classes.notes)


def _label_list(value: Any, raw: RawLabels, at: int) -> list[Hashable]:
    """Return a row's labels: a list as it is, ``"a, b"`` cut at its commas (or ``|`` or ``;``), ``"['a', 'b']"`` read as a list."""
    if isinstance(value, str):
        if value.startswith("[") and value.endswith("]"):
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError) as error:
                raise DataError(f"{raw.name(at)}: {value!r} is not a list of labels") from error
        else:
            separator = next((s for s in ",|;" if s in value), ",")
            value = [label.strip() for label in value.split(separator) if label.strip()]
    labels = value if isinstance(value, list) else [value]
    if not all(
        isinstance(label, (str, bool, int)) or (isinstance(label, float) and label.is_integer())
        for label in labels
    ):
        raise DataError(
            f"{raw.name(at)}: {value!r} is not a list of labels: use words, whole numbers, or a vector of 0 and 1"
        )
    return [int(label) if isinstance(label, (bool, float)) else label for label in labels]


def _are_vectors(rows: Sequence[Sequence[Hashable]]) -> bool:
    """Tell vectors of 0 and 1 from lists of class numbers: these never have one length, only 0 and 1, and repetitions."""
    (length, *others) = {len(row) for row in rows}
    return not others and length >= 2 and all(key in (0, 1) for row in rows for key in row)


def _positions(rows: Sequence[Sequence[Hashable]], raw: RawLabels, length: int) -> list[list[Hashable]]:
    for at, row in enumerate(rows):
        if len(row) != length or not all(key in (0, 1) for key in row):
            raise DataError(
                f"{raw.name(at)}: {list(row)!r} is not a vector of {length} times 0 or 1, as in the first training row"
            )
    return [[position for position, key in enumerate(row) if key] for row in rows]


def _encode_targets(splits: Mapping[SplitName, RawLabels], column_names: Sequence[str]) -> EncodedLabels:
    first = splits["train"].values[0]
    length = len(first) if isinstance(first, list) else 1
    arrays: dict[SplitName, Labels] = {}
    for split, raw in splits.items():
        for at, value in enumerate(raw.values):
            target = value if isinstance(value, list) else [value]
            if len(target) != length or not all(type(number) in (int, float, bool) for number in target):
                raise DataError(
                    f"{raw.name(at)}: {value!r} in column {listing(column_names)} is not {plural(length, 'number')}, as a regression needs"
                )
        arrays[split] = np.array(raw.values, dtype=np.float32).reshape(len(raw.values), length)
    names = (
        list(column_names)
        if len(column_names) == length
        else [f"{column_names[0]}_{i}" for i in range(length)]
    )
    return EncodedLabels("regression", names, arrays)


def class_counts(labels: Labels, names: Sequence[str]) -> Counter[str]:
    """Return how many rows each class has."""
    if labels.ndim == 1:
        return Counter(
            {name: int(n) for name, n in zip(names, np.bincount(labels, minlength=len(names)), strict=True)}
        )
    return Counter({name: int(n) for name, n in zip(names, labels.sum(axis=0), strict=True)})
