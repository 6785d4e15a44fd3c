"""How a row is named in a file that people edit: by split, name and content, in cells that spreadsheets leave alone."""

from __future__ import annotations

from dataclasses import dataclass

# A spreadsheet computes a cell that begins like this; a quote before it makes it text.
FORMULA = ("=", "+", "-", "@", "\t", "\r")
# Before the hexadecimal digits, because a spreadsheet takes digits with an e in them for a number.
KIND = "blake2b:"


@dataclass(frozen=True)
class RowRef:
    """One row of the data, as a file of rows to drop names it.

    Attributes:
        split: ``train``, ``validation`` or ``test``.
        row: the row's name, as hftl prints it.
        digest: of the row's content, ``blake2b:`` and 32 hexadecimal digits; empty where the file does not say.
    """

    split: str
    row: str
    digest: str = ""


def inert(cell: str) -> str:
    """Text that no spreadsheet takes for a formula; `as_named` gives it back."""
    return f"'{cell}" if cell.startswith((*FORMULA, "'")) else cell


def as_named(cell: str) -> str:
    """What `inert` was given."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith((*FORMULA, "'")) else cell


def said_digest(content: bytes) -> str:
    """A digest of 16 bytes as `RowRef` has it."""
    return KIND + content.hex()
