"""Reading the columns that a person names for how rows are divided; see `hftl.data.marks`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pyarrow as pa

from hftl.data.cells import Cells
from hftl.data.dataset import Indices
from hftl.data.marks import Division, Marks
from hftl.data.raw import RawData, SplitName
from hftl.errors import DataError
from hftl.wording import printable

MICROSECONDS = 1e6


def read_marks(
    source: RawData, cells: Cells, division: Division, rows: Mapping[SplitName, Indices]
) -> dict[SplitName, Marks]:
    """Read the columns of some rows of each split.

    Args:
        source: the splits.
        cells: its columns.
        division: the columns.
        rows: positions in each split's table.

    Raises:
        DataError: a split lacks a column that it needs, a cell is empty, or a time cannot be read; the message
            names row and column.
    """
    values: dict[str, dict[SplitName, list[Any]]] = {}
    for what, column in division.columns().items():
        # Strata and folds divide training rows only: another split that is given may do without them.
        asked: Mapping[SplitName, Indices] = rows if what in ("group", "time") else {"train": rows["train"]}
        values[what] = {split: _values(source, cells, split, column, chosen, what) for split, chosen in asked.items()}
    numbers: dict[str, dict[SplitName, np.ndarray]] = {}
    names: tuple[str, ...] = ()
    for what, by_split in values.items():
        if what == "time":
            numbers[what] = {split: np.array(each) for split, each in by_split.items()}
            continue
        distinct = sorted({value for each in by_split.values() for value in each}, key=_order)
        number = {value: place for place, value in enumerate(distinct)}
        numbers[what] = {
            split: np.array([number[value] for value in each], dtype=np.int64) for split, each in by_split.items()
        }
        names = tuple(str(value) for value in distinct) if what == "group" else names
    return {
        split: Marks(
            groups=numbers.get("group", {}).get(split),
            strata=numbers.get("stratify", {}).get(split),
            folds=numbers.get("fold", {}).get(split),
            times=numbers.get("time", {}).get(split),
            names=names,
        )
        for split in rows
    }


def _order(value: Any) -> tuple[bool, float, str]:
    """Numbers by their size, before words."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (not is_number, float(value) if is_number else 0.0, str(value))


def _values(source: RawData, cells: Cells, split: SplitName, column: str, rows: Indices, what: str) -> list[Any]:
    part = source.parts[split]
    taken = cells(split, column).take(pa.array(rows))
    is_moment = what == "time" and (pa.types.is_timestamp(taken.type) or pa.types.is_date(taken.type))
    if what == "time" and (pa.types.is_duration(taken.type) or pa.types.is_interval(taken.type)):
        raise DataError(
            f"{split}: the column {printable(column)!r} holds spans of time ({taken.type}), and no dates: give dates, "
            "or numbers"
        )
    if is_moment:
        # Digits behind the microsecond are cut off: only the order of rows counts.
        taken = taken.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
    values: list[Any] = []
    for row, value in zip(rows.tolist(), taken.to_pylist(), strict=True):
        where = f"{part.name(row)}: the column {printable(column)!r}"
        if _is_empty(value):
            raise DataError(f"{where}, which is the {what} of rows, is empty: fill it in, or leave the row out")
        if isinstance(value, (list, dict, bytes)):
            raise DataError(f"{where} holds no single value, which the {what} of a row is; name another column")
        if what != "time":
            values.append(value)
        elif is_moment:
            # In seconds, as a date in text is: splits may write them in either way.
            values.append(value / MICROSECONDS)
        else:
            values.append(_moment(value, where))
    return values


def _is_empty(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _moment(value: Any, where: str) -> float:
    """A time as a number: a number as it is, text as the seconds of a date that may have a time of day (ISO 8601)."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    text = str(value).strip()
    try:
        # What Python 3.10 does not read yet: a Z for UTC.
        moment = datetime.fromisoformat(re.sub(r"[Zz]$", "+00:00", text))
    except ValueError as error:
        raise DataError(
            f"{where} holds {printable(text)!r}, which is no date: write dates as 2024-01-31 or 2024-01-31T18:30, or "
            "give numbers"
        ) from error
    # One without a zone is read as UTC: only the order counts.
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
