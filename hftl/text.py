"""Other people's names, made fit to be printed: in a terminal, on a card, in an error."""

from __future__ import annotations

# Joiners that emoji and scripts are written with; everything else that cannot be seen is no part of a name.
JOINERS = "\u200c\u200d"


def printable(value: object) -> str:
    """Text on one line, with a mark in place of what cannot be printed: control characters, changes of direction."""
    text = " ".join(str(value).split())
    return "".join(c if c.isprintable() or c in JOINERS else "\ufffd" for c in text)
