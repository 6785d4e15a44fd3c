"""What changed between runs: the fields of their records that are not the same in all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticUndefined

from hftl.methods import METHODS
from hftl.recipes import fields_of_result
from hftl.runs.record import RunRecord

# Shown for a field that a run's method does not have.
ABSENT = "–"


@dataclass(frozen=True)
class Change:
    """A field that is not the same in all runs.

    Attributes:
        field: its name: as ``--set`` takes it where it is one of the recipe's, else in words.
        values: of each run; ``"–"`` where its method has no such field.
    """

    field: str
    values: list[Any]


def changes_between(records: Sequence[RunRecord]) -> list[Change]:
    """The fields that differ: of the recipes, and of what the same reference stood for, library versions, hardware.

    A field that only some methods have is left out where it has its default: the method's name says as much.

    Args:
        records: of the runs, in their order.
    """
    described = [_fields_of(record) for record in records]
    names = dict.fromkeys(name for fields in described for name in fields)
    changes = []
    for name in names:
        values = [fields.get(name, ABSENT) for fields in described]
        if all(value == values[0] for value in values):
            continue
        having = [(record, fields[name]) for record, fields in zip(records, described, strict=True) if name in fields]
        if len(having) < len(records) and all(value == _default_of(record, name) for record, value in having):
            continue
        changes.append(Change(name, values))
    fixed = {change.field for change in changes}
    return [change for change in changes if not (_follows_from(change.field) & fixed)]


def _fields_of(record: RunRecord) -> dict[str, Any]:
    recipe = {name: value for name, value in fields_of_result(record.recipe).items() if name != "method"}
    method = {f"method.{name}": value for name, value in record.method.items() if name != "name"}
    identity = {name: value for name, value in record.data.identity.items() if name not in ("ref", "columns")}
    return {
        **recipe,
        "method": record.method["name"],
        **method,
        **{f"content of data: {name}": value for name, value in identity.items()},
        "rows": record.data.rows,
        "commit of the backbone": record.backbone.commit,
        "model of the backbone": record.backbone.identity.get("model"),
        "plugin of the backbone": f"{record.backbone.plugin} {record.backbone.plugin_version}".strip(),
        **{f"version of {name}": value for name, value in record.versions.items()},
        "hardware": record.hardware,
    }


def _default_of(record: RunRecord, field: str) -> Any:
    method = METHODS.get(str(record.method["name"]))
    name = field.removeprefix("method.")
    fields: Mapping[str, Any] = method.model_fields if method else {}
    if name not in fields:
        return ABSENT
    default = fields[name].get_default(call_default_factory=True)
    return ABSENT if default is PydanticUndefined else default


def _follows_from(field: str) -> set[str]:
    """Fields of which another value explains that this one differs."""
    if field.startswith("content of data"):
        return {"data"}
    if field == "rows":
        return {"data", "test_size", "drop"}
    if field.endswith("of the backbone"):
        return {"backbone"}
    return set()


def said_value(value: Any) -> str:
    """A value of a record, a label or a prediction for a person: words as they are, the rest as JSON on one line."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(f"{each:.4g}" if isinstance(each, float) else said_value(each) for each in value) or "none"
    return json.dumps(value, ensure_ascii=False, default=str)
