"""`Cells`: a source's columns as labels see them, each read in one way in all splits and files."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from hftl.data.columns import Kind, column_kind
from hftl.data.raw import RawData, SplitName

# No leading zeros: "007" is a code, and would lose them.
_INTEGER = r"^\s*[+-]?(0|[1-9][0-9]*)\s*$"
_NUMBER = r"^\s*[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?\s*$"
_MISSING = r"^\s*(|nan|NaN|NAN|NA|N/A|n/a|null|NULL|None|[+-]?[iI]nf)\s*$"


class Cells:
    """The columns of a source; where numbers stand as text, they are numbers if they are so in every split.

    Args:
        source: the splits.
        as_they_stand: read no number from text.
    """

    def __init__(self, source: RawData, *, as_they_stand: bool = False) -> None:
        self._source = source
        self._as_they_stand = as_they_stand
        self._read: dict[str, dict[SplitName, pa.ChunkedArray]] = {}

    def __call__(self, split: SplitName, name: str) -> pa.ChunkedArray:
        """Return a column of one split, all rows of its table.

        Raises:
            DataError: the split has no such column, or it cannot be used.
        """
        part = self._source.parts[split]
        part.column(name, split)
        if name not in self._read:
            parts = {each: part.columns[name] for each, part in self._source.parts.items() if name in part.columns}
            as_text = [each for each in parts if name in self._source.parts[each].numbers_as_text]
            if as_text and not self._as_they_stand:
                numbers = _numbers_from_text([parts[each] for each in as_text])
                parts.update(zip(as_text, numbers, strict=True))
            self._read[name] = parts
        return self._read[name][split]

    def kinds(self, split: SplitName) -> dict[str, Kind]:
        """Return what each column of a split holds."""
        part = self._source.parts[split]
        kinds: dict[str, Kind] = {
            name: column_kind(self(split, name), bool(part.class_names(name))) for name in part.columns
        }
        return {**kinds, **dict.fromkeys(part.unusable, "mixed")}


def _numbers_from_text(columns: Sequence[pa.ChunkedArray]) -> list[pa.ChunkedArray]:
    """Turn text columns of one name into integers or floats if every cell is a number or a word for a missing one.

    One decision for all of them, because ``1`` must not be a number in one split and a word in another. A missing
    number becomes null. Columns with any other word in them stay text, with surrounding blanks cut and blank cells
    null.
    """
    present = [column.filter(pc.invert(pc.match_substring_regex(column, _MISSING))) for column in columns]
    for pattern, kind in ((_INTEGER, pa.int64()), (_NUMBER, pa.float64())):
        if any(map(len, present)) and all(
            pc.all(pc.match_substring_regex(c, pattern)).as_py() is not False for c in present
        ):
            try:
                return [_cast(column, kind) for column in columns]
            except pa.ArrowInvalid:  # more digits than an int64 holds: no number to compute with
                break
    return [_trimmed(column) for column in columns]


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    missing = pc.match_substring_regex(column, _MISSING)
    numbers = pc.if_else(missing, pa.scalar(None, pa.string()), pc.utf8_trim_whitespace(column))
    return pc.replace_substring(numbers, "+", "", max_replacements=1).cast(kind)


def _trimmed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    trimmed = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)
