"""Words for people: other people's names made fit to print, exceptions on one line, counts, lists, close matches."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from hftl.errors import UserError

# Joiners that emoji and scripts are written with; everything else that cannot be seen is no part of a name.
JOINERS = "\u200c\u200d"
# What a person still reads of a message that another library wrote.
LONGEST_MESSAGE = 300
NOT_FOR_PEOPLE = (
    # A signed address lets whoever reads it download; without its query it still says which host was asked.
    (re.compile(r"(https?://[^\s'\"?#<>]+)[?#][^\s'\"<>]*"), r"\1"),
    # transformers prints a report before it raises; hftl keeps it quiet, so there is nothing above.
    (re.compile(r"[^.;:]*\b(?:above|following) report\b[^.;]*[.;!]?\s*", re.IGNORECASE), ""),
    (
        re.compile(r"You set `?ignore_mismatched_sizes`? to `?False`?, thus raising an error\.?"),
        "some weights have another shape than config.json says",
    ),
    # huggingface_hub's pointer to a page about status codes.
    (re.compile(r"\s*For more information check: \S+"), ""),
)

# Where the command line says that nothing is to be silent.
DEBUG = "HFTL_DEBUG"

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def is_debugging() -> bool:
    """Whether what other libraries say is to be shown, as ``--debug`` asks."""
    return bool(os.environ.get(DEBUG))


def plain(text: str) -> str:
    """Text with its blanks as they are, and a mark in place of what cannot be printed."""
    return "".join(c if c.isprintable() or c in JOINERS else "\ufffd" for c in text)


def printable(value: object) -> str:
    """Text on one line, with a mark in place of what cannot be printed: control characters, changes of direction."""
    return plain(" ".join(str(value).split()))


def shortened(text: str, longest: int) -> str:
    """Text of at most ``longest`` characters: cut at the last word that fits, and an ellipsis says so."""
    if len(text) <= longest:
        return text
    # One character more, because the text may be cut just where a word ends.
    words, blank, _ = text[:longest].rpartition(" ")
    # A word so long that little else would be left is cut itself.
    return f"{words if blank and len(words) > longest // 2 else text[: longest - 1]}…"


def one_line(error: object, longest: int = LONGEST_MESSAGE) -> str:
    """An exception's message (or any text) on one line for a person; its type if it is empty.

    What leads nowhere from one line is left out: signatures of addresses, and sentences that point at text around it.
    """
    message = printable(error)
    for pattern, instead in NOT_FOR_PEOPLE:
        message = pattern.sub(instead, message)
    return shortened(message.strip(), longest) or type(error).__name__


def named_error(error: BaseException) -> str:
    """An exception of somebody else's code as one line: its type, then its message."""
    name = type(error).__name__
    message = one_line(error)
    return name if message == name else f"{name}: {message}"


def plural(count: int, noun: str) -> str:
    """``1 row``, ``1,200 rows``, ``2 classes``."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def listing(items: Sequence[object], most: int = 10) -> str:
    """The items in quotes, cut after ``most``."""
    shown = ", ".join(repr(item) for item in items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most:,} more"


def close_matches(name: str, known: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """Up to three known names that look like ``name``, the closest first."""
    return get_close_matches(name, list(known), n=3, cutoff=cutoff)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x' or 'y'?)`` with the closest known names, or nothing."""
    return suggest(close_matches(name, known))


def suggest(names: Sequence[str]) -> str:
    """`` (did you mean 'x' or 'y'?)`` with these names, or nothing."""
    return f" (did you mean {' or '.join(map(repr, names))}?)" if names else ""


def human_bytes(count: float) -> str:
    """Bytes for a person: ``1.5 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def size_in_bytes(text: str) -> int:
    """The bytes of a size such as ``20G``; a bare ``20`` is 20 bytes to a program and 20 GB to a person.

    Raises:
        UserError: it is no size, or has no unit.
    """
    given = text.strip().upper()
    size = re.fullmatch(r"(\d{1,15}(?:\.\d*)?) ?(?:([KMGT])B?|B)", given, re.ASCII)
    if size is None and re.fullmatch(r"\d{1,15}(\.\d*)?", given, re.ASCII):
        raise UserError(f"{text!r} has no unit; write {given}G, or {given}B if bytes are meant")
    if size is None:
        raise UserError(f"{text!r} is no size; write a number and its unit, such as 500M or 20G")
    return int(float(size[1]) * UNITS[size[2] or ""])
