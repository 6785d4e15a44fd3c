"""`Description`, the content of space.json: what a space is, for people and programs, with a checksum over it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hftl._version import __version__
from hftl.errors import StoreError
from hftl.regular import OddFileError, read_bounded
from hftl.store.identity import JSON, canonical_json, space_id
from hftl.store.shard import ColumnSpec

T = TypeVar("T")

FORMAT = 1
"""Of space.json and of the shards beside it: raised for a change that would mislead who reads the format before it.
Fields may be added without that, since a reader passes over those that it does not know."""
LARGEST = 64 << 20
"""No description is larger, the longest graph of a cut model included: a file that is was not written by hftl."""


class OtherFormatError(StoreError):
    """A space is whole, and of a format that this hftl does not read.

    Attributes:
        format: what its space.json says.
    """

    def __init__(self, path: Path, version: object) -> None:
        super().__init__(
            f"{path} has format {version}, this hftl knows {FORMAT}: update hftl or set another HFTL_CACHE folder"
        )
        self.format = version


def now() -> str:
    """ISO time, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def same_record(
    info: Mapping[str, Any],
    columns: Mapping[str, ColumnSpec],
    other_info: Mapping[str, Any],
    other_columns: Mapping[str, ColumnSpec],
) -> bool:
    """Whether two spaces record the same of a model; the order of keys, which writers differ in, means nothing."""
    return canonical_json(dict(info)) == canonical_json(dict(other_info)) and dict(columns) == dict(other_columns)


@dataclass(frozen=True)
class Description:
    """What space.json says.

    Attributes:
        identity: everything that can change a number in the space.
        label: a name for people, usually the model's id.
        info: what whoever filled the space recorded for its readers; JSON.
        columns: the columns that every row has.
        created: ISO time, UTC.
        hftl: the version that created it.
    """

    identity: dict[str, Any]
    label: str
    info: dict[str, Any]
    columns: dict[str, ColumnSpec]
    created: str = field(default_factory=now)
    hftl: str = __version__

    @property
    def id(self) -> str:
        """The space's id, which its identity decides."""
        return space_id(self.identity)

    def encode(self) -> bytes:
        """The file's text."""
        content: dict[str, Any] = {
            "format": FORMAT,
            "id": self.id,
            "label": self.label,
            "created": self.created,
            "hftl": self.hftl,
            "identity": self.identity,
            "info": self.info,
            "columns": {name: {**asdict(spec), "shape": list(spec.shape)} for name, spec in self.columns.items()},
        }
        content["checksum"] = _checksum(content)
        return (json.dumps(content, indent=2, ensure_ascii=True) + "\n").encode("ascii")

    @classmethod
    def load(cls, path: Path) -> Description | None:
        """What the space.json at ``path`` says; None where it is damaged, or no file at all.

        Raises:
            FileNotFoundError, NotADirectoryError: nothing stands there.
            OSError: it cannot be read.
            OtherFormatError: it is whole, and of a format that this hftl does not read.
        """
        try:
            return cls._parse(read_bounded(path, LARGEST), path)
        except OddFileError:
            return None

    @classmethod
    def _parse(cls, text: bytes, path: Path) -> Description | None:
        try:
            content = json.loads(text)
            if content.pop("checksum") != _checksum(content):
                return None
            version = content["format"]
            if version == FORMAT and content["id"] == space_id(content["identity"]):
                columns = {name: _column_spec(spec) for name, spec in content["columns"].items()}
                texts = [_typed(content[name], str) for name in ("created", "hftl")]
                label, info = _typed(content["label"], str), _typed(content["info"], dict)
                return cls(_typed(content["identity"], dict), label, info, columns, *texts)
        # Any damage that JSON survives: other types, missing keys, an identity that is no longer JSON, deep nesting.
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return None
        if version == FORMAT:
            return None
        raise OtherFormatError(path, version)

    @classmethod
    def read(cls, path: Path) -> Description | None:
        """`load` for those who only look: None also where it is missing, cannot be read or is of another format."""
        try:
            return cls.load(path)
        except (OSError, OtherFormatError):
            return None


def other_format(path: Path) -> str | None:
    """What format the space.json at ``path`` has, where this hftl does not read it; else None."""
    try:
        Description.load(path)
    except OtherFormatError as error:
        return str(error.format)
    except OSError:
        pass
    return None


def _column_spec(spec: Mapping[str, Any]) -> ColumnSpec:
    return ColumnSpec(spec["dtype"], tuple(_typed(size, int) for size in spec["shape"]), _typed(spec["ragged"], bool))


def _typed(value: T, kind: type[T]) -> T:
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
    return value


def _checksum(content: Mapping[str, JSON]) -> str:
    return hashlib.blake2b(canonical_json(dict(content)).encode("ascii"), digest_size=16).hexdigest()
