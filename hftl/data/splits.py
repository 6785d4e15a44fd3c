"""The split to report on: the data's own, or one set aside."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from hftl.data.dataset import Files, Split, Texts
from hftl.data.division import hold_out_rows, how_drawn, leaks, said_of_division
from hftl.data.labels import EncodedLabels
from hftl.data.marks import Division, Marks
from hftl.data.raw import SPLIT_NAMES, SplitName
from hftl.errors import DataError
from hftl.tasks import Task
from hftl.wording import plural


def make_splits(
    rows: Mapping[SplitName, Texts | Files],
    encoded: EncodedLabels,
    seed: int,
    test_size: float | None,
    validation_size: float | None = None,
    *,
    division: Division,
    marks: Mapping[SplitName, Marks],
) -> tuple[dict[SplitName, Split], list[str]]:
    """Put inputs and labels together, and see that there is a split ``test``, the one that is reported on.

    The data's own test split is taken, or else their validation split, or else rows are set aside from
    training.

    Args:
        rows: inputs of each split, ``train`` among them.
        encoded: their labels.
        seed: of the draw.
        test_size: share of the rows to draw where the data bring no test split; None to draw none, so that it is empty.
        validation_size: share of what is left in training to draw as the validation split; None for none.
        division: the columns that say more of how rows are divided.
        marks: what these say of each split's rows.

    Returns:
        The splits, and notes on where ``test`` and a drawn validation split come from.

    Raises:
        DataError: a validation split is asked for, and the data bring one; or there are too few rows to draw from.
    """
    there = {name: Split(name, rows[name], encoded.arrays[name], marks[name]) for name in SPLIT_NAMES if name in rows}
    splits, notes = _with_test(there, encoded.task, seed, test_size)
    splits, more = _with_drawn_validation(splits, encoded.task, seed, validation_size)
    return splits, [*notes, *more, *said_of_division(division, splits), *leaks(division, splits)]


def _with_drawn_validation(
    splits: dict[SplitName, Split], task: Task, seed: int, validation_size: float | None
) -> tuple[dict[SplitName, Split], list[str]]:
    if validation_size is None:
        return splits, []
    if "validation" in splits:
        raise DataError(
            f"the data bring a validation split of {plural(len(splits['validation']), 'row')}: leave out "
            "--validation-size, or give data without it"
        )
    whole = splits["train"]
    stays, drawn = hold_out_rows(whole, task, validation_size, seed, what="validation_size")
    how = how_drawn(whole, task, seed)
    note = f"validation split: {len(drawn):,} of {plural(len(whole), 'training row')} set aside{how}"
    return {**splits, "train": whole.select(stays), "validation": whole.select(drawn, "validation")}, [note]


def _with_test(
    splits: dict[SplitName, Split], task: Task, seed: int, test_size: float | None
) -> tuple[dict[SplitName, Split], list[str]]:
    sizes = "splits: " + ", ".join(f"{name} {len(split):,}" for name, split in splits.items())
    if "test" in splits:
        return splits, [sizes]
    if "validation" in splits:
        given = splits.pop("validation")
        splits["test"] = replace(given, name="test")
        return splits, [f"{sizes}; no test split, so the run reports on the validation split"]
    whole = splits["train"]
    if test_size is None:
        return {"train": whole, "test": whole.select(np.arange(0), "test")}, []
    stays, drawn = hold_out_rows(whole, task, test_size, seed)
    share = f"{len(drawn) / len(whole):.0%} of {plural(len(whole), 'row')} ({len(drawn):,})"
    note = f"no evaluation split: {share} set aside{how_drawn(whole, task, seed)}"
    return {"train": whole.select(stays, "train"), "test": whole.select(drawn, "test")}, [note]
