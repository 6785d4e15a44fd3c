"""Labels: what kind of task they are, and their numbers."""

from __future__ import annotations

import ast
from array import array
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from hftl.data.dataset import Labels
from hftl.data.raw import SplitName
from hftl.data.raw_labels import RawLabels, Values, compose
from hftl.errors import DataError
from hftl.tasks import Task
from hftl.wording import listing, one_line, plural

MAX_INT_CLASSES_UNASKED = 50
SEPARATORS = ("|", ";", ",")
_LARGEST_TARGET = float(np.finfo(np.float32).max)


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


def infer_task(
    values: Values, column_names: Sequence[str], *, named_classes: bool, column_is_certain: bool
) -> tuple[Task, str]:
    """Decide from the training labels what kind of task they are.

    Args:
        values: one value for each row.
        column_names: the label columns.
        named_classes: whether the data name the classes.
        column_is_certain: whether the column was stated, or cannot be another one.

    Returns:
        The task, and the reason in a few words.

    Raises:
        DataError: the values are of mixed kinds or cannot be labels.
    """
    kinds = {type(value) for value in values}
    if kinds == {list}:
        return _task_of_lists(values, column_names)
    column = listing(column_names)
    if named_classes or kinds == {bool}:
        return Task.SINGLE_LABEL, "named classes" if named_classes else "true or false"
    if kinds == {str}:
        if all(map(_is_bracketed, values)) and all(_parsed_list(value) is not None for value in set(values)):
            return Task.MULTI_LABEL, "lists in brackets"
        distinct = len(set(values))
        if not column_is_certain and len(values) >= 20 and distinct > 0.9 * len(values):
            raise DataError(
                f"label column {column}: {distinct:,} different texts in {plural(len(values), 'row')} are no "
                f"classes: state another column with --set label_columns=NAME, or this one if they are classes"
            )
        return Task.SINGLE_LABEL, "words"
    if kinds <= {int, float, bool}:
        if any(not float(value).is_integer() for value in values):
            return Task.REGRESSION, "numbers with a fraction"
        return _task_of_whole_numbers({int(value) for value in values}, len(values))
    raise DataError(f"label column {column} mixes {_kinds(kinds)}: use one kind of value")


def _task_of_lists(values: Values, column_names: Sequence[str]) -> tuple[Task, str]:
    """Tell lists of labels from lists of numbers; values of several columns come as lists too."""
    flat = [element for value in values for element in value]
    if len(column_names) == 1:
        fraction = any(isinstance(element, float) and not element.is_integer() for element in flat)
        return (Task.REGRESSION, "lists of numbers") if fraction else (Task.MULTI_LABEL, "lists of labels")
    if not all(type(element) in (int, float, bool) for element in flat):
        raise DataError(f"label columns {listing(column_names)}: several columns must hold numbers, or only 0 and 1")
    if set(flat) <= {0, 1}:
        return Task.MULTI_LABEL, "columns of 0 and 1"
    return Task.REGRESSION, "columns of numbers"


def _kinds(kinds: set[type]) -> str:
    return " and ".join(sorted(kind.__name__ for kind in kinds))


def _task_of_whole_numbers(distinct: set[int], rows: int) -> tuple[Task, str]:
    """Class numbers are few, or count up from 0 or 1 without a gap; prices, ages and years do neither."""
    contiguous = min(distinct) in (0, 1) and max(distinct) - min(distinct) + 1 == len(distinct)
    if len(distinct) <= MAX_INT_CLASSES_UNASKED or contiguous or len(distinct) <= 0.1 * rows:
        return Task.SINGLE_LABEL, "whole numbers"
    return (
        Task.REGRESSION,
        f"{len(distinct):,} different whole numbers in {plural(rows, 'row')}; classes if stated by task=",
    )


def encode_labels(
    splits: Mapping[SplitName, RawLabels],
    task: Task,
    column_names: Sequence[str],
    class_names: Sequence[str] | None,
    separator: str | None = None,
) -> EncodedLabels:
    """Turn labels into arrays; the training split alone says which classes there are.

    Args:
        splits: labels of each split, ``train`` among them.
        task: what they are.
        column_names: names of the label columns.
        class_names: names of the classes in their order, where the data name them.
        separator: what stands between several labels in one cell; None to infer it from all splits.

    Raises:
        DataError: a label does not fit the task, training has a single class, or an evaluation split holds a
            label that training never saw.
    """
    for split, raw in splits.items():
        if not raw.values:
            raise DataError(f"{split} split: it has no rows")
    if not task.has_classes:
        return _encode_targets(splits, column_names)
    if task.is_exclusive:
        return _encode_classes(splits, column_names, class_names)
    return _encode_multi(splits, column_names, class_names, separator)


# ── one class a row ──────────────────────────────────────────────────────────────────────────────────────────────────


def _encode_classes(
    splits: Mapping[SplitName, RawLabels], column_names: Sequence[str], class_names: Sequence[str] | None
) -> EncodedLabels:
    keys = {split: class_keys(raw, column_names) for split, raw in splits.items()}
    # One object for each class, not for each row; 1 and True are equal, and of two kinds.
    alone = {(type(key), key): (key,) for values in keys.values() for key in values}
    rows = {split: [alone[type(key), key] for key in values] for split, values in keys.items()}
    classes = ordered_classes(rows, splits, class_names)
    del rows
    if len(classes.names) < 2:
        raise DataError(
            f"training has a single class, {listing(classes.names)}, in label column "
            f"{listing(column_names)}: a classifier needs two or more"
        )
    numbers: dict[SplitName, Labels] = {
        split: np.fromiter((classes.index[key] for key in values), np.int64, len(values))
        for split, values in keys.items()
    }
    notes = [*classes.notes, *_look_like_several(splits["train"].values, column_names)]
    return EncodedLabels(Task.SINGLE_LABEL, classes.names, numbers, notes)


@dataclass(frozen=True)
class Classes:
    """Classes in their order: the number of each, their names, and what was left out.

    Attributes:
        index: number by class.
        names: in the order of the numbers.
        notes: one sentence each.
    """

    index: dict[Hashable, int]
    names: list[str]
    notes: list[str]


def ordered_classes(
    keys: Mapping[SplitName, Sequence[Sequence[Hashable]]],
    splits: Mapping[SplitName, RawLabels],
    class_names: Sequence[str] | None,
) -> Classes:
    """Order the classes that training holds, and refuse those that it does not."""
    seen = {key for row in keys["train"] for key in row}
    if len(kinds := {type(key) for key in seen}) > 1:
        raise DataError(f"labels mix {', '.join(sorted(kind.__name__ for kind in kinds))}: use one kind of value")
    for split, rows in keys.items():
        _refuse_unseen(split, rows, splits[split], seen)
    if class_names is None:
        order = sorted(seen)  # type: ignore[type-var]
        return Classes({key: number for number, key in enumerate(order)}, [str(key) for key in order], [])
    # Words of a file without codebook come after the names of the others.
    places = {name: place for place, name in enumerate(class_names)}
    order = sorted(seen, key=lambda name: (places.get(str(name), len(places)), str(name)))
    absent = [name for name in class_names if name not in seen]
    notes = (
        [f"left out, as no training row has them: {plural(len(absent), 'class')} {listing(absent)}"] if absent else []
    )
    return Classes({key: number for number, key in enumerate(order)}, [str(key) for key in order], notes)


def _refuse_unseen(split: SplitName, rows: Sequence[Sequence[Hashable]], raw: RawLabels, seen: set[Hashable]) -> None:
    unseen: dict[Hashable, int] = {}
    for at, row in enumerate(rows):
        for key in row:
            if key not in seen:
                unseen.setdefault(key, at)
    if unseen:
        names = sorted(map(str, unseen))
        raise DataError(
            f"{split} split: {plural(len(names), 'label')} that training never saw: {listing(names)} (first: "
            f"{raw.name(min(unseen.values()))}): remove these rows, or add such rows to the training split"
        )


def class_keys(raw: RawLabels, column_names: Sequence[str]) -> list[Hashable]:
    """Return each row's class as a str, bool or int.

    Raises:
        DataError: a value is not one class.
    """
    keys: list[Hashable] = []
    for at, value in enumerate(raw.values):
        if isinstance(value, float):
            if not value.is_integer():
                raise DataError(
                    f"{raw.name(at)}: {value} in column {listing(column_names)} has a fraction and is no "
                    f"class: use words or whole numbers, or state task=regression"
                )
            value = int(value)
        if not isinstance(value, (str, bool, int)):
            kind = "a list" if isinstance(value, list) else f"a {type(value).__name__}"
            raise DataError(
                f"{raw.name(at)}: {kind} in column {listing(column_names)} is not one class: "
                f"state task=multi_label, or choose another column"
            )
        keys.append(value)
    return keys


def _look_like_several(values: Values, column_names: Sequence[str]) -> list[str]:
    """Say where single labels look like several in one cell: ``a|b``, ``['a', 'b']``."""
    cells = {value for value in values if isinstance(value, str)}
    several = sorted(cell for cell in cells if _is_bracketed(cell))
    for separator in () if several else SEPARATORS:
        torn = sorted(cell for cell in cells if len(cut(cell, separator)) > 1)
        parts = [part for cell in torn for part in cut(cell, separator)]
        # A comma may belong to a name, so it counts only where a part is a label of another cell too.
        if torn and (separator != "," or len(set(parts)) < len(parts) or set(parts) & cells):
            several = torn
            break
    if not several:
        return []
    return [
        f"labels such as {listing(several, 2)} in column {listing(column_names)} are read as one class each; if they "
        f"are several labels, state task={Task.MULTI_LABEL}"
    ]


# ── several labels a row ─────────────────────────────────────────────────────────────────────────────────────────────


def _encode_multi(
    splits: Mapping[SplitName, RawLabels],
    column_names: Sequence[str],
    class_names: Sequence[str] | None,
    separator: str | None,
) -> EncodedLabels:
    cutter, notes = label_cutter([raw.values for raw in splits.values()], column_names, separator)
    lists = {split: label_lists(raw, cutter) for split, raw in splits.items()}
    if len(column_names) > 1 or are_vectors(lists["train"]):
        width = len(lists["train"][0])
        names = list(column_names) if len(column_names) > 1 else [str(position) for position in range(width)]
        positions = {split: vector_positions(rows, splits[split], width) for split, rows in lists.items()}
        classes, lists = _named_positions(positions, splits, names)
        if len(column_names) == 1:
            classes = replace(classes, notes=[])  # positions have no names that could be missed
    else:
        classes = ordered_classes(lists, splits, class_names)
    if not classes.names:
        raise DataError(f"no training row has any label in column {listing(column_names)}")
    arrays: dict[SplitName, Labels] = {split: indicator_matrix(rows, classes.index) for split, rows in lists.items()}
    return EncodedLabels(Task.MULTI_LABEL, classes.names, arrays, list(dict.fromkeys([*notes, *classes.notes])))


def _named_positions(
    positions: Mapping[SplitName, Sequence[Sequence[int]]], splits: Mapping[SplitName, RawLabels], names: Sequence[str]
) -> tuple[Classes, dict[SplitName, list[list[Hashable]]]]:
    """Classes and lists of names, in the order of the positions."""
    lists: dict[SplitName, list[list[Hashable]]] = {
        split: [[names[position] for position in row] for row in rows] for split, rows in positions.items()
    }
    return ordered_classes(lists, splits, names), lists


def indicator_matrix(rows: Sequence[Sequence[Hashable]], index: Mapping[Hashable, int]) -> Labels:
    """Lists of labels as float32 ``(n, C)`` of 0 and 1."""
    array = np.zeros((len(rows), len(index)), dtype=np.float32)
    for at, row in enumerate(rows):
        array[at, [index[key] for key in row]] = 1
    return array


Cutter: TypeAlias = Callable[[str], "list[Any] | None"]
"""Turns a cell of text into its labels, or None if it is no list of labels."""


def label_cutter(
    columns: Sequence[Values], column_names: Sequence[str], separator: str | None
) -> tuple[Cutter, list[str]]:
    """Decide once for a column how several labels stand in a cell.

    Args:
        columns: the values of each split.
        column_names: the label columns.
        separator: what the user says stands between two labels; None to decide by all cells: lists in brackets if
            all are such, else the first of ``|``, ``;`` and ``,`` that occurs. A name may hold a comma more easily
            than one of the others.

    Returns:
        How to cut a cell, and a sentence about it where it was decided here.
    """
    cells = [value for values in columns for value in values if isinstance(value, str) and value]
    if separator is not None:
        return partial(cut, separator=separator), []
    if cells and all(map(_is_bracketed, cells)):
        return _parsed_list, []
    present = [mark for mark in SEPARATORS if any(mark in cell for cell in cells)]
    if not present:
        return partial(cut, separator=","), []
    others = f" ({' and '.join(map(repr, present[1:]))} stand in names)" if len(present) > 1 else ""
    note = (
        f"labels of column {listing(column_names)} are separated by {present[0]!r}{others}; state another separator "
        f"with --set label_separator=TEXT"
    )
    return partial(cut, separator=present[0]), [note]


def cut(cell: str, separator: str) -> list[str]:
    """The labels of one cell, blanks around them cut."""
    return [label.strip() for label in cell.split(separator) if label.strip()]


def _is_bracketed(cell: str) -> bool:
    return cell.startswith("[") and cell.endswith("]")


def _parsed_list(cell: str) -> list[Any] | None:
    try:
        labels = ast.literal_eval(cell)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None  # the latter two where brackets stand thousands deep
    return labels if isinstance(labels, list) else None


def label_lists(raw: RawLabels, cutter: Cutter) -> list[list[Hashable]]:
    """Return each row's labels: of a list as it is, of a text as it is cut.

    Raises:
        DataError: a value is no list of labels.
    """
    return [_label_list(value, raw, at, cutter) for at, value in enumerate(raw.values)]


def _label_list(value: Any, raw: RawLabels, at: int, cutter: Cutter) -> list[Hashable]:
    if isinstance(value, str):
        labels = cutter(value)
        if labels is None:
            raise DataError(f"{raw.name(at)}: {one_line(repr(value), 80)} is not a list of labels")
    else:
        labels = value if isinstance(value, list) else [value]
    if not all(
        isinstance(label, (str, bool, int)) or (isinstance(label, float) and label.is_integer()) for label in labels
    ):
        raise DataError(
            f"{raw.name(at)}: {one_line(repr(value), 80)} is no list of labels: use words, whole numbers or a vector "
            f"of 0 and 1"
        )
    return [int(label) if isinstance(label, (bool, float)) else compose(label) for label in labels]


def are_vectors(rows: Sequence[Sequence[Hashable]]) -> bool:
    """Tell vectors of 0 and 1 from lists of class numbers, which are not all as long and of 0 and 1 only."""
    lengths = {len(row) for row in rows}
    return len(lengths) == 1 and lengths.pop() >= 2 and all(key in (0, 1) for row in rows for key in row)


def vector_positions(rows: Sequence[Sequence[Hashable]], raw: RawLabels, length: int) -> list[list[int]]:
    """The positions at which each row's vector has a 1.

    Raises:
        DataError: a row is no vector of 0 and 1 of that length.
    """
    for at, row in enumerate(rows):
        if len(row) != length or not all(key in (0, 1) for key in row):
            raise DataError(f"{raw.name(at)}: {list(row)!r} is not {length} times 0 or 1, as in the first training row")
    return [[position for position, key in enumerate(row) if key] for row in rows]


# ── targets ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _encode_targets(splits: Mapping[SplitName, RawLabels], column_names: Sequence[str]) -> EncodedLabels:
    first = splits["train"].values[0]
    length = len(first) if isinstance(first, list) else 1
    arrays: dict[SplitName, Labels] = {split: target_matrix(raw, length, column_names) for split, raw in splits.items()}
    names = list(column_names) if len(column_names) == length else [f"{column_names[0]}_{i}" for i in range(length)]
    return EncodedLabels(Task.REGRESSION, names, arrays)


def target_matrix(raw: RawLabels, length: int, column_names: Sequence[str]) -> Labels:
    """Targets as float32 ``(n, length)``.

    Raises:
        DataError: a row has another number of targets, or one that is no number or too large for a float32.
    """
    numbers = array("f")
    for at, value in enumerate(raw.values):
        targets = [_as_target(target) for target in (value if isinstance(value, list) else [value])]
        if len(targets) != length or None in targets:
            raise DataError(
                f"{raw.name(at)}: {one_line(repr(value), 80)} in column {listing(column_names)} is not "
                f"{plural(length, 'number')}, as this regression needs"
            )
        if any(abs(target) > _LARGEST_TARGET for target in targets if target is not None):
            raise DataError(f"{raw.name(at)}: {value!r} in column {listing(column_names)} is too large for a target")
        numbers.extend(targets)  # type: ignore[arg-type]
    return np.array(numbers, dtype=np.float32).reshape(-1, length)


def _as_target(value: Any) -> int | float | None:
    """A number; a number written as text too, which a column with a few other words is read as."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
        return value if np.isfinite(value) else None
    return value if type(value) in (int, float, bool) else None
