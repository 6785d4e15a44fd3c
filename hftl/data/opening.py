"""The guarded way to files that somebody else wrote: regular files only, and text in a known encoding."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

from hftl.errors import DataError
from hftl.regular import open_regular
from hftl.wording import one_line

# Longest first: the mark of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def existing_path(ref: str) -> Path | None:
    """The file or folder that a reference names.

    Args:
        ref: what the user wrote; ``~`` and ``~name`` stand for home folders, ``file://`` may stand before it.

    Returns:
        The path, or None if nothing is there. It need not be a regular file.

    Raises:
        DataError: it cannot be a path, or may not be looked at.
    """
    try:
        path = as_path(ref)
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError) as error:
        # Longer than a name can be, a null character, the home folder of nobody, a folder without permission.
        raise DataError(f"{one_line(ref, 80)}: no file can be looked for there: {why_unreadable(error)}") from error


def as_path(ref: str) -> Path:
    """A reference as a path, its home folder filled in.

    Raises:
        RuntimeError: there is no such home folder.
    """
    return Path(ref.removeprefix("file://") if ref.startswith("file:///") else ref).expanduser()


def read_regular(path: Path) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: it cannot be read, or is no regular file.
        ValueError: no file can have that name.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        return file.read()


def why_unreadable(error: Exception) -> str:
    """What the operating system says, without the path that a message names anyway."""
    return (error.strerror if isinstance(error, OSError) else None) or one_line(error)


def encoding_of(head: bytes, name: str) -> str:
    """The encoding of a text, by how it begins: UTF-8, or UTF-16 and UTF-32 that begin with a byte-order mark.

    Args:
        head: its first bytes, 200 if it has so many.
        name: the file's name for a person.

    Raises:
        DataError: it is UTF-16 without a mark.
    """
    encoding = next((encoding for mark, encoding in _MARKS if head.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in head[:200] and head[:200].count(b"\0") >= len(head[:200]) // 4:
        # Plain letters in UTF-16 are UTF-8 with a null before or after each, so nothing else would tell.
        raise DataError(f"{name}: looks like UTF-16 without a byte-order mark: save it as UTF-8")
    return encoding


def decode_text(content: bytes, name: str) -> str:
    """Decode UTF-8, or UTF-16 and UTF-32 that begin with a byte-order mark.

    Raises:
        DataError: it is text in another encoding, or no text.
    """
    try:
        return content.decode(encoding_of(content, name))
    except UnicodeDecodeError as error:
        lines = content.count(b"\n", 0, error.start) + 1
        raise not_decodable(f"{name} line {lines}" if b"\n" in content else name, error) from error


def not_decodable(where: str, error: UnicodeDecodeError) -> DataError:
    """The error to raise of bytes that are not the text they should be."""
    if error.encoding != "utf-8":
        # The codec's name has the order of bytes behind it.
        return DataError(f"{where}: damaged {error.encoding[:6].upper()} text: save it as UTF-8")
    return DataError(
        f"{where}: not UTF-8 text (byte 0x{error.object[error.start]:02x}); save it as UTF-8, "
        f"for example with 'iconv -f latin1 -t utf-8'"
    )
