"""space.json: what a space is, for people and programs, with a checksum over what it says."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hftl
from hftl.errors import StoreError
from hftl.features.identity import JSON, canonical_json, space_id
from hftl.features.shard import ColumnSpec

FORMAT = 1


def describe(
    identity: Mapping[str, JSON], label: str, info: Mapping[str, JSON], columns: Mapping[str, ColumnSpec]
) -> bytes:
    """The text of a space.json."""
    description: dict[str, Any] = {
        "format": FORMAT,
        "id": space_id(identity),
        "label": label,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "hftl": hftl.__version__,
        "identity": dict(identity),
        "info": dict(info),
        "columns": {name: spec.to_json() for name, spec in columns.items()},
    }
    description["checksum"] = _checksum(description)
    return (json.dumps(description, indent=2, ensure_ascii=True) + "\n").encode("ascii")


def parse_description(text: bytes, path: Path) -> dict[str, Any] | None:
    """What the space.json at ``path`` says, its columns as `ColumnSpec`; None where it is damaged.

    Raises:
        StoreError: it is whole, and of another version of the format.
    """
    try:
        description = json.loads(text)
        if description.pop("checksum") != _checksum(description):
            return None
        version = description["format"]
        if version == FORMAT and description["id"] == space_id(description["identity"]):
            description["columns"] = {
                name: ColumnSpec(spec["dtype"], tuple(spec["shape"]), spec["ragged"])
                for name, spec in description["columns"].items()
            }
            return dict(description)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    if version == FORMAT:
        return None
    raise StoreError(
        f"{path} has format {version}, this hftl knows {FORMAT}: update hftl or set another HFTL_CACHE folder"
    )


def read_description(path: Path) -> dict[str, Any] | None:
    """`parse_description` of the file at ``path``; None also where it cannot be read or understood."""
    try:
        return parse_description(path.read_bytes(), path)
    except (OSError, StoreError):
        return None


def _checksum(description: Mapping[str, JSON]) -> str:
    return hashlib.blake2b(canonical_json(dict(description)).encode("ascii"), digest_size=16).hexdigest()
