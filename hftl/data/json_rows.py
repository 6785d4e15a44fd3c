"""Json and jsonl files as columns of values, without guessing that a text might be a date."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from hftl.errors import DataError
from hftl.wording import one_line

# Python refuses to read integers of more than 4,300 digits; none of more than 19 fits into a column.
_MOST_DIGITS = 40


_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", list: "a list"}


class _LongInteger:
    """An integer with more digits than any column can hold."""


def read_json(text: str, name: str, *, lines: bool) -> tuple[dict[str, pa.Array], dict[str, str]]:
    """Read a list of objects, or one object a line.

    Args:
        text: the file's content.
        name: the file's name for a person.
        lines: whether each line is an object.

    Returns:
        The columns by name, and of those that no column can hold the reason, which matters only if one is used.

    Raises:
        DataError: it is no JSON, or not of that form.
    """
    rows = _json_rows(text, name, lines)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f'{name}: expected a list of objects, one for each row, such as [{{"text": …, "label": …}}, …]')
    return columns_of(rows, name)


def columns_of(rows: list[dict[str, Any]], name: str) -> tuple[dict[str, pa.Array], dict[str, str]]:
    """The columns of some objects, and of those that no column can hold the reason, as of `read_json`."""
    columns: dict[str, pa.Array] = {}
    unusable: dict[str, str] = {}
    for column in dict.fromkeys(column for row in rows for column in row):
        values = [row.get(column) for row in rows]
        try:
            column.encode()
            _refuse_nested(values)
            columns[column] = pa.array(values)
        except (pa.ArrowException, OverflowError, ValueError) as error:
            unusable[column] = f"{name}: column {column!r} {_why_no_column(values, error)}"
    return columns, unusable


def _json_rows(text: str, name: str, lines: bool) -> Any:
    if not lines:
        try:
            rows = _loads(text)
        except json.JSONDecodeError as error:
            lines = "Extra data" in error.msg  # one object a line, in a file called .json
            if not lines:
                raise DataError(f"{name} line {error.lineno}: not JSON: {error.msg}") from error
        except RecursionError as error:
            raise DataError(f"{name}: its lists and objects are nested too deep to be rows") from error
        else:
            if isinstance(rows, dict) and len(rows) == 1:
                (rows,) = rows.values()  # {"data": [...]}
            return rows
    return _json_lines(text, name)


def _json_lines(text: str, name: str) -> list[Any]:
    rows = []
    # Not splitlines(): a text may hold U+2028 or a form feed, which JSON allows inside a string. A CR can stand between
    # two objects only.
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1):
        if line.strip():
            try:
                rows.append(_loads(line))
            except json.JSONDecodeError as error:
                raise DataError(f"{name} line {number}: not JSON: {error.msg}") from error
            except RecursionError as error:
                raise DataError(
                    f"{name} line {number}: its lists and objects are nested too deep to be a row"
                ) from error
    return rows


def json_row(line: str) -> dict[str, Any] | str:
    """The object that one line holds; or why it is none."""
    try:
        # A number too long for any column is as good as its digits.
        row = json.loads(line, parse_int=lambda digits: int(digits) if len(digits) <= _MOST_DIGITS else digits)
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg}"
    except RecursionError:
        return "its lists and objects are nested too deep to be a row"
    return row if isinstance(row, dict) else "not an object with a value for each column"


def _loads(text: str) -> Any:
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) <= _MOST_DIGITS else _LongInteger())


def _refuse_nested(values: list[Any]) -> None:
    for value in values:
        if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, (list, dict)) for v in value)):
            raise ValueError


def _why_no_column(values: list[Any], error: Exception) -> str:
    """What is wrong with a column, and in which row."""
    kinds: dict[type, int] = {}
    for row, value in enumerate(values, start=1):
        elements = value if isinstance(value, list) else [value]
        for element in elements:
            if isinstance(element, (dict, list)):
                return f"holds nested objects or lists (row {row}), which are neither input nor label"
            if isinstance(element, str) and not _is_unicode(element):
                return f"holds half a character (a lone surrogate) in row {row}: {element[:40]!r}: repair this text"
            if isinstance(element, _LongInteger) or (isinstance(element, int) and not -(2**63) <= element < 2**64):
                return f"holds an integer that is too large in row {row}: write it as text, in quotes"
        if value is not None:
            kinds.setdefault(type(value), row)
    if len(kinds) > 1:
        places = " and ".join(f"{_WORDS.get(kind, kind.__name__)} (row {row})" for kind, row in kinds.items())
        return f"mixes kinds of values, {places}: write them all as text, in quotes"
    return f"mixes kinds of values: {one_line(error)}"


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
