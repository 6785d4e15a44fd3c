"""Rows to encode, and encoding them, which is the same whichever process does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, NamedTuple, TypeAlias

from hftl.backbones.protocol import Backbone, Encoded

Change: TypeAlias = Callable[[bytes], bytes]
"""Makes of a file the one that is encoded in its place; it is pickled, so a partial of a module's function."""


class Request(NamedTuple):
    """Rows to encode.

    Attributes:
        contents: encoded files, or tuples of strings.
        names: what a person calls them.
        changes: what makes of each file the one to encode; None where they stay as they are.
    """

    contents: Sequence[Any]
    names: Sequence[str]
    changes: Sequence[Change | None] | None = None


class Unread(Enum):
    """Why a process that was asked hands rows back, for this one to read."""

    WARNED = "warned"
    """They can be read, and a warning of it is to be seen here."""
    REFUSED = "refused"
    """They cannot be read there."""


def encoded_rows(backbone: Backbone, request: Request) -> list[Encoded]:
    """Rows as the model reads them.

    Raises:
        BadRowError: a row cannot be decoded.
    """
    contents, names, changes = request
    if changes is None:
        return backbone.encode(contents, names)
    # One after the other, so that no more than one changed picture is in memory.
    return [
        backbone.encode([content if change is None else change(content)], [name])[0]
        for content, name, change in zip(contents, names, changes, strict=True)
    ]
