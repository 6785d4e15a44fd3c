"""Words for people: other people's names made fit to print, exceptions on one line, counts, lists, close matches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

# Joiners that emoji and scripts are written with; everything else that cannot be seen is no part of a name.
JOINERS = "\u200c\u200d"
# What a person still reads of a message that another library wrote.
LONGEST_MESSAGE = 300


def printable(value: object) -> str:
    """Text on one line, with a mark in place of what cannot be printed: control characters, changes of direction."""
    text = " ".join(str(value).split())
    return "".join(c if c.isprintable() or c in JOINERS else "\ufffd" for c in text)


def one_line(error: object, longest: int = LONGEST_MESSAGE) -> str:
    """An exception's message (or any text) on one line, cut after ``longest`` characters; its type if it is empty."""
    return printable(error)[:longest] or type(error).__name__


def named_error(error: BaseException) -> str:
    """An exception of somebody else's code as one line: its type, then its message."""
    message = printable(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


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
