"""The guarded way to files that somebody else wrote: regular files only, and text in a known encoding."""

from __future__ import annotations

import codecs
import os
import re
from pathlib import Path

from hftl.errors import DataError
from hftl.regular import open_regular
from hftl.wording import one_line, printable

# Longest first: the mark of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LINE_END = re.compile(r"\r\n|\n|\r")


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


def decode_text(content: bytes, name: str) -> str:
    """Decode UTF-8, or UTF-16 and UTF-32 that begin with a byte-order mark.

    Raises:
        DataError: it is text in another encoding, or no text.
    """
    encoding = next((encoding for mark, encoding in _MARKS if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in content[:200] and content[:200].count(b"\0") >= len(content[:200]) // 4:
        # Plain letters in UTF-16 are UTF-8 with a null before or after each, so nothing else would tell.
        raise DataError(f"{name}: looks like UTF-16 without a byte-order mark: save it as UTF-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise DataError(
                f"{name}: damaged {encoding.removesuffix('-sig').upper()} text: save it as UTF-8"
            ) from error
        lines = content.count(b"\n", 0, error.start) + 1
        line = f" line {lines}" if b"\n" in content else ""
        raise DataError(
            f"{name}{line}: not UTF-8 text (byte 0x{content[error.start]:02x}); save it as UTF-8, "
            f"for example with 'iconv -f latin1 -t utf-8'"
        ) from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, one row each.

    A line ends with LF, CR LF or CR only: U+2028, a form feed and the like stand inside a row. Blank lines are rows
    too; the end of the last line begins no further one.

    Args:
        path: UTF-8, or UTF-16 with a byte-order mark.

    Raises:
        DataError: it cannot be read, or is in another encoding.
    """
    try:
        content = read_regular(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{printable(path)}: cannot be read: {why_unreadable(error)}") from error
    lines = _LINE_END.split(decode_text(content, path.name))
    return lines[:-1] if not lines[-1] else lines
