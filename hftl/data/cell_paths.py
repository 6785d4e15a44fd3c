"""Cells that mean files: people's ways of writing paths, and pictures that stand in the cell itself."""

from __future__ import annotations

import base64
import binascii
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

_DATA_URI = re.compile(r"data:[\w.+/-]*(;[\w=.+-]+)*;base64,", re.IGNORECASE)
# The first bytes of PNG, JPEG, GIF, WEBP and WAV, BMP and TIFF files in base64. "/9j/" could begin a path too.
_BASE64_STARTS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk", "SUkqAA", "TU0AK")
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
# Shorter than any file; longer than most names.
_SHORTEST_BASE64 = 80


def embedded_file(cell: str) -> bytes | None:
    """The bytes of a file that a cell holds as base64, also as a ``data:`` URI; None if it is a path."""
    if uri := _DATA_URI.match(cell):
        cell = cell[uri.end() :]
    elif len(cell) < _SHORTEST_BASE64 or not cell.startswith(_BASE64_STARTS) or not _BASE64.fullmatch(cell):
        return None
    try:
        return base64.b64decode(cell)
    except (binascii.Error, ValueError):
        return None


def find_file(cell: str, folders: Sequence[Path]) -> Path:
    """The file that a cell names; the plain reading of the path if there is none.

    A path as it stands comes first; where nothing is there, it is read without blanks around it, without ``file://``,
    with ``/`` in place of ``\\``, and with letters composed or decomposed as a file system may have stored them.

    Args:
        cell: the path.
        folders: what relative paths may start from, the likeliest first.
    """
    for spelling in _spellings(cell):
        for folder in folders:
            # os.path, because a million cells are looked up; it takes names that are too long or hold a null for
            # missing.
            file = os.path.join(folder, spelling)  # noqa: PTH118
            if os.path.exists(file):  # noqa: PTH110
                return Path(file)
    return folders[0] / cell


def _spellings(cell: str) -> Iterator[str]:
    yield cell
    plain = cell.strip()
    if plain.startswith("file:"):
        plain = unquote(re.sub(r"^file:(//(localhost)?(?=/))?", "", plain))
    slashed = plain.replace("\\", "/")
    for spelling in dict.fromkeys((plain, slashed)):
        yield spelling
        if not spelling.isascii():
            yield unicodedata.normalize("NFC", spelling)
            yield unicodedata.normalize("NFD", spelling)
