"""What every answer of the scout can do: become JSON, a DataFrame, a line, a table in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hftl.intervals import Interval
from hftl.notebook import html_table
from hftl.wording import printable, shortened

if TYPE_CHECKING:
    import pandas as pd

# Rows of a table that a notebook shows; `Answer.to_pandas` has all of them.
SHOWN_ROWS = 20


class Answer:
    """A typed result, whose fields that `repr` shows are its JSON.

    Attributes:
        advice: one sentence.
        table: the field that holds the rows of its table.
    """

    advice: str
    table: ClassVar[str]

    def as_json(self) -> dict[str, Any]:
        """Plain values by field."""
        made: dict[str, Any] = _plain_value(self)
        return made

    def to_pandas(self) -> pd.DataFrame:
        """Its table; a number with an interval has the columns ``NAME``, ``NAME_low`` and ``NAME_high``."""
        import pandas as pd

        return pd.DataFrame([_flat(row) for row in self._rows()])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._rows())} {self.table}: {shortened(printable(self.advice), 200)!r})"

    def _repr_html_(self) -> str:
        rows = self._rows()
        more = [f"and {len(rows) - SHOWN_ROWS:,} more: to_pandas() has all"] if len(rows) > SHOWN_ROWS else []
        shown = [_spelt(row) for row in rows[:SHOWN_ROWS]]
        return html_table(shown, below=[*more, self.advice, getattr(self, "command", "")])

    def _rows(self) -> Sequence[Any]:
        rows: Sequence[Any] = getattr(self, self.table)
        return rows


def _flat(row: Any) -> dict[str, Any]:
    """A row's fields, those of its parts beside them."""
    made: dict[str, Any] = {}
    for name, value in _shown_fields(row):
        if isinstance(value, Interval):
            rest = {f"{name}_{key}": each for key, each in _shown_fields(value) if key != "value"}
            made |= {name: value.value, **rest}
        elif is_dataclass(value):
            made |= {f"{name}_{key}": each for key, each in _flat(value).items()}
        else:
            made[name] = value
    return made


def _spelt(row: Any) -> dict[str, Any]:
    """A row's fields for a person: an interval in one cell, no digests."""
    made: dict[str, Any] = {}
    for name, value in _shown_fields(row):
        if isinstance(value, Interval):
            made[name] = str(value)
        elif is_dataclass(value):
            made |= {f"{name} {key}": each for key, each in _spelt(value).items()}
        elif not isinstance(value, (list, dict)) and name != "digest":
            made[name] = value
    return {name.replace("_", " "): value for name, value in made.items()}


def _shown_fields(row: Any) -> list[tuple[str, Any]]:
    return [(each.name, getattr(row, each.name)) for each in fields(row) if each.repr]


def _plain_value(value: Any) -> Any:
    if is_dataclass(value):
        return {name: _plain_value(each) for name, each in _shown_fields(value)}
    if isinstance(value, dict):
        return {key: _plain_value(each) for key, each in value.items()}
    return [_plain_value(each) for each in value] if isinstance(value, (list, tuple)) else value
