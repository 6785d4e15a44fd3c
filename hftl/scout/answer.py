"""What every answer of the scout can do: become JSON."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any


class Answer:
    """A typed result, whose fields that `repr` shows are its JSON."""

    def as_json(self) -> dict[str, Any]:
        """Plain values by field."""
        made: dict[str, Any] = _plain(self)
        return made


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value) if each.repr}
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value
