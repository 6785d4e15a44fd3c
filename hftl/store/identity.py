"""What a feature space is called: a hash of everything that can change a number in it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"


def canonical_json(obj: object) -> str:
    """The one JSON text of ``obj``: keys sorted, no white space, ASCII only, floats in shortest exact form.

    Raises:
        TypeError: something in ``obj`` is not JSON. Tuples and keys that are not strings are refused too:
            JSON would turn them into something else, and two different objects would get one text.
        ValueError: a float is NaN or infinite.
    """
    _check(obj, "$")
    return json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def space_id(identity: Mapping[str, JSON]) -> str:
    """Name the feature space of ``identity``.

    Args:
        identity: every input that can change a feature: plugin and version, model and resolved commit (or the
            digest of local weights), processor, lengths, pooling, dtypes, view, code version.

    Returns:
        32 hex digits, the BLAKE2b-128 of the canonical JSON: the same in every process and on every machine.
    """
    text = canonical_json(dict(identity))
    return hashlib.blake2b(text.encode("ascii"), digest_size=16, person=b"hftl-space").hexdigest()


def blocks_kept(identity: Mapping[str, Any]) -> int | None:
    """Of how many of the first blocks everything that they return is kept, which is bulky; None for features."""
    view = identity.get("view")
    count = view.get("blocks") if isinstance(view, dict) else None
    return count if isinstance(count, int) else None


def is_of_views(identity: Mapping[str, Any]) -> bool:
    """Whether rows are augmented views of pictures, which have names of their own."""
    view = identity.get("view")
    return isinstance(view, dict) and "augmentation" in view


def short_storage(identity: Mapping[str, Any]) -> str | None:
    """The type of 16 bits that numbers were rounded to; None for those that are kept as they were computed."""
    storage = identity.get("storage")
    return storage if storage in ("bf16", "fp16") else None


def _check(obj: object, where: str) -> None:
    if obj is None or isinstance(obj, str | bool | int):
        return
    if isinstance(obj, float):
        if not math.isfinite(obj):
            raise ValueError(f"{where} is {obj}, which JSON cannot say")
    elif isinstance(obj, list):
        for i, item in enumerate(obj):
            _check(item, f"{where}[{i}]")
    elif isinstance(obj, dict):
        for key, item in obj.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}, which is not a string")
            _check(item, f"{where}.{key}")
    else:
        raise TypeError(f"{where} is a {type(obj).__name__}, which is not JSON")
