"""What a page is made of: parts with text, figures, tables and cards of rows; `write_page` makes one file of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from hftl.intervals import Difference, Interval
from hftl.report.collected import ShownRow
from hftl.report.page import render
from hftl.runs.folder import writing
from hftl.store.files import write_file


@dataclass(frozen=True)
class Cell:
    """What stands in a table.

    Attributes:
        text: for a person.
        value: what a table is sorted by; None where it is the text.
        stands_out: whether it is marked.
    """

    text: str
    value: float | None = None
    stands_out: bool = False


@dataclass(frozen=True)
class Table:
    """Rows with a name each.

    Attributes:
        columns: the heads; numbers stand below those that end with ``#``, which is not shown.
        rows: cells by row, the first of each being its name.
        caption: what it shows.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""

    @property
    def heads(self) -> list[tuple[str, bool]]:
        """Each head and whether numbers stand below it."""
        return [(column.removesuffix("#"), column.endswith("#")) for column in self.columns]


@dataclass(frozen=True)
class Card:
    """One row of the data, or two that belong together, and what is said of it.

    Attributes:
        rows: as a page shows them.
        said: names and texts, and whether a text is marked.
    """

    rows: Sequence[ShownRow]
    said: Sequence[tuple[str, str, bool]]


@dataclass(frozen=True)
class Part:
    """A part of a page, with a title and whatever of the rest there is.

    Attributes:
        title: its name.
        lines: sentences.
        figures: drawings.
        tables: of numbers and names.
        cards: rows of the data.
        code: what to run.
    """

    title: str
    lines: Sequence[str] = ()
    figures: Sequence[Markup] = ()
    tables: Sequence[Table] = ()
    cards: Sequence[Card] = ()
    code: str = ""

    @property
    def is_narrow(self) -> bool:
        """Whether its one table has room beside its one figure."""
        return len(self.figures) == len(self.tables) == 1 and len(self.tables[0].columns) <= 4


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        over: what made it.
        title: what it is about.
        lead: the answer in a sentence or two.
        warnings: what a person should know before the numbers are believed.
        parts: the rest.
    """

    over: str
    title: str
    lead: str
    warnings: Sequence[str] = ()
    parts: Sequence[Part] = field(default_factory=list)


def write_page(page: Page, path: Path) -> Path:
    """Write a page as one HTML file, whole or not at all.

    Raises:
        HftlError: the file cannot be written.
    """
    text = render("parts_page.html.jinja", page=page)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, text.encode())
    return path


def with_interval(number: Interval) -> Cell:
    """A score with its interval."""
    return Cell(str(number), number.value)


def with_sign(number: Difference, *, stands_out: bool = False) -> Cell:
    """A difference with its interval."""
    return Cell(number.signed(), number.value, stands_out)


def count_cell(number: int) -> Cell:
    """A count."""
    return Cell(f"{number:,}", number)
