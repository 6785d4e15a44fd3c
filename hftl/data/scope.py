"""Rows of a label that says "none of these": no class, but what a model must tell from its classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from hftl.data.dataset import Files, Indices, Split, Texts
from hftl.data.raw import SplitName
from hftl.data.raw_labels import ReadLabels, Values, label_text
from hftl.errors import DataError
from hftl.tasks import Task
from hftl.wording import did_you_mean, listing, plural

OUTSIDE = "out_of_scope"


def rows_of_label(values: Values, label: str) -> Indices:
    """Positions of the values that are a label by itself, not one of several."""
    return np.array([at for at, value in enumerate(values) if label_text(value) == label], dtype=np.int64)


def without_label(read: ReadLabels, label: str) -> tuple[ReadLabels, dict[SplitName, Indices]]:
    """The labels without the rows of one, and these rows of each split's table.

    Raises:
        DataError: a split would have no row left.
    """
    splits, outside = {}, {}
    for split, raw in read.splits.items():
        has = rows_of_label(raw.values, label)
        if len(has) == len(raw.values):
            raise DataError(
                f"out_of_scope: every row of the {split} split has the label {label!r}, so that none is left to tell "
                "them from: name another label"
            )
        outside[split] = raw.rows[has]
        splits[split] = raw.without(has)
    names = read.class_names and [name for name in read.class_names if name != label]
    return replace(read, splits=splits, class_names=names), outside


def refuse_scope(task: Task) -> None:
    """See that a label of a row can be out of scope.

    Raises:
        DataError: rows have not one label each.
    """
    if not task.is_exclusive:
        raise DataError(f"out_of_scope is for data with one label a row, and this is {task.words}: leave it out")


def outside_split(
    rows: Mapping[SplitName, Texts | Files], label: str, tested: SplitName, names: Sequence[str]
) -> tuple[Split, str]:
    """The rows that a score for "none of these" is measured on, and a sentence about them.

    Args:
        rows: those with the label, of each split that the data bring.
        label: which.
        tested: the split of the data that the run reports on; ``train`` where rows of it are set aside for that, and
            then all rows of the label serve, for none is trained on.
        names: of the classes.

    Raises:
        DataError: there is no such row.
    """
    counts = {split: len(found) for split, found in rows.items() if len(found)}
    said = ", ".join(f"{split} {count:,}" for split, count in counts.items())
    if not counts:
        known = f"{did_you_mean(label, names)}; the labels are {listing(list(names))}"
        raise DataError(f"out_of_scope: no row has the label {label!r}{known}")
    if tested not in counts:
        raise DataError(
            f"out_of_scope: no row of the {tested} split has the label {label!r} ({said}), so that nothing can be "
            "measured: put some there, or leave it out"
        )
    inputs = rows[tested]
    left_out = sum(counts.values()) - len(inputs)
    more = f", {left_out:,} others left out" if left_out else ""
    note = f"label {label!r} is out of scope and no class: {plural(len(inputs), 'row')} with it measure how it is told"
    return Split(OUTSIDE, inputs, np.full(len(inputs), -1)), f"{note} from the others ({said}{more})"
