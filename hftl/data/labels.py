"""Decide what kind of task labels are, and turn them into numbers."""

import ast
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hftl.data.dataset import Labels
from hftl.data.raw import SplitName
from hftl.data.raw_labels import RawLabels, Values
from hftl.errors import DataError
from hftl.tasks import Task
from hftl.wording import listing, plural

MAX_INT_CLASSES_UNASKED = 50


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


def infer_task(values: Values, column_names: Sequence[str], named_classes: bool) -> tuple[Task, str]:
    """Decide from the training labels what kind of task they are.

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
        distinct = len(set(values))
        if len(values) >= 20 and distinct > 0.9 * len(values):
            raise DataError(
                f"label column {column}: {distinct:,} different texts in {plural(len(values), 'row')} are no "
                f"classes: state the label with --set label_columns=[…]"
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
) -> EncodedLabels:
    """Turn labels into arrays; the training split alone says which classes there are.

    Args:
        splits: labels of each split, ``train`` among them.
        task: what they are.
        column_names: names of the label columns.
        class_names: names of the classes whose numbers the column holds, if it says them.

    Raises:
        DataError: a label does not fit the task, training has a single class, or an evaluation split holds a
            label that training never saw.
    """
    for split, raw in splits.items():
        if not raw.values:
            raise DataError(f"{split} split: it has no rows")
    encode = task.case(single_label=_encode_classes, multi_label=_encode_multi, regression=_encode_targets)
    return encode(splits, column_names, class_names)


def _encode_classes(
    splits: Mapping[SplitName, RawLabels], column_names: Sequence[str], class_names: Sequence[str] | None
) -> EncodedLabels:
    keys = {split: _class_keys(raw, column_names) for split, raw in splits.items()}
    classes = _classes({split: [[key] for key in values] for split, values in keys.items()}, splits, class_names)
    if len(classes.names) < 2:
        raise DataError(
            f"training has a single class, {listing(classes.names)}, in label column "
            f"{listing(column_names)}: a classifier needs two or more"
        )
    numbers: dict[SplitName, Labels] = {
        split: np.array([classes.index[key] for key in values], dtype=np.int64) for split, values in keys.items()
    }
    return EncodedLabels(Task.SINGLE_LABEL, classes.names, numbers, classes.notes)


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
        raise DataError(f"labels mix {', '.join(sorted(kind.__name__ for kind in kinds))}: use one kind of value")
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
                    raise DataError(f"{raw.name(at)}: label {key!r} of only {plural(len(class_names), 'class')}")
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


def _encode_multi(
    splits: Mapping[SplitName, RawLabels], column_names: Sequence[str], class_names: Sequence[str] | None
) -> EncodedLabels:
    lists = {
        split: [_label_list(value, raw, at) for at, value in enumerate(raw.values)] for split, raw in splits.items()
    }
    if len(column_names) > 1:
        class_names = column_names
    if len(column_names) > 1 or _are_vectors(lists["train"]):
        lists = {split: _positions(rows, splits[split], len(lists["train"][0])) for split, rows in lists.items()}
    classes = _classes(lists, splits, class_names)
    if not classes.names:
        raise DataError(f"no training row has any label in column {listing(column_names)}")
    arrays: dict[SplitName, Labels] = {}
    for split, rows in lists.items():
        array = np.zeros((len(rows), len(classes.names)), dtype=np.float32)
        for at, row in enumerate(rows):
            array[at, [classes.index[key] for key in row]] = 1
        arrays[split] = array
    return EncodedLabels(Task.MULTI_LABEL, classes.names, arrays, classes.notes)


def _label_list(value: Any, raw: RawLabels, at: int) -> list[Hashable]:
    """Return a row's labels: of a list as it is, of ``"a, b"`` cut at commas (or ``|``, ``;``)."""
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
        isinstance(label, (str, bool, int)) or (isinstance(label, float) and label.is_integer()) for label in labels
    ):
        raise DataError(
            f"{raw.name(at)}: {value!r} is no list of labels: use words, whole numbers or a vector of 0 and 1"
        )
    return [int(label) if isinstance(label, (bool, float)) else label for label in labels]


def _are_vectors(rows: Sequence[Sequence[Hashable]]) -> bool:
    """Tell vectors of 0 and 1 from lists of class numbers, which are not all as long and of 0 and 1 only."""
    (length, *others) = {len(row) for row in rows}
    return not others and length >= 2 and all(key in (0, 1) for row in rows for key in row)


def _positions(rows: Sequence[Sequence[Hashable]], raw: RawLabels, length: int) -> list[list[Hashable]]:
    for at, row in enumerate(rows):
        if len(row) != length or not all(key in (0, 1) for key in row):
            raise DataError(f"{raw.name(at)}: {list(row)!r} is not {length} times 0 or 1, as in the first training row")
    return [[position for position, key in enumerate(row) if key] for row in rows]


def _encode_targets(
    splits: Mapping[SplitName, RawLabels], column_names: Sequence[str], class_names: Sequence[str] | None
) -> EncodedLabels:
    del class_names  # targets are numbers, whatever the column says of classes
    first = splits["train"].values[0]
    length = len(first) if isinstance(first, list) else 1
    arrays: dict[SplitName, Labels] = {}
    for split, raw in splits.items():
        for at, value in enumerate(raw.values):
            target = value if isinstance(value, list) else [value]
            if len(target) != length or not all(type(number) in (int, float, bool) for number in target):
                raise DataError(
                    f"{raw.name(at)}: {value!r} in column {listing(column_names)} is not "
                    f"{plural(length, 'number')}, as this regression needs"
                )
        arrays[split] = np.array(raw.values, dtype=np.float32).reshape(len(raw.values), length)
    names = list(column_names) if len(column_names) == length else [f"{column_names[0]}_{i}" for i in range(length)]
    return EncodedLabels(Task.REGRESSION, names, arrays)
