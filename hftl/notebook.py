"""HTML for notebooks: tables that suit light and dark themes, in which text that others wrote can do nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from hftl.wording import printable

# Inherited colours alone, so that a dark notebook stays dark; Jupyter, Colab and VS Code all keep inline styles.
_CELL = "padding:0.15em 1em 0.15em 0;text-align:"
_FAINT = "opacity:0.8"
# Characters of a cell that are not folded: an interval, a name.
_NARROW = 30


def as_html(text: object) -> str:
    """Text as HTML that shows it and does nothing else."""
    return escape(printable(text))


def html_table(rows: Sequence[Mapping[str, Any]], title: str = "", below: Sequence[str] = ()) -> str:
    """A table as HTML.

    Args:
        rows: cells by column; the first row names the columns. Columns of numbers stand to the right, and one without
            anything in it is left out.
        title: a line above it.
        below: lines below it.
    """
    columns = [name for name in (rows[0] if rows else ()) if any(row[name] not in (None, "") for row in rows)]
    sides = {name: "right" if all(_is_number(row[name]) for row in rows) else "left" for name in columns}
    head = _line("th", {name: name for name in columns}, sides)
    body = "".join(_line("td", {name: _shown(row[name]) for name in columns}, sides) for row in rows)
    parts = [f"<div><b>{as_html(title)}</b></div>"] if title else []
    if rows:
        parts.append(f"<table><thead>{head}</thead><tbody>{body}</tbody></table>")
    parts += [f'<div style="{_FAINT}">{as_html(line)}</div>' for line in below if line]
    return f"<div>{''.join(parts)}</div>"


def _line(kind: str, cells: Mapping[str, object], sides: Mapping[str, str]) -> str:
    shown = []
    for name, cell in cells.items():
        keep = ";white-space:nowrap" if len(str(cell)) <= _NARROW else ""
        shown.append(f'<{kind} style="{_CELL}{sides[name]}{keep}">{as_html(cell)}</{kind}>')
    return f"<tr>{''.join(shown)}</tr>"


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _shown(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else f"{value:,}" if _is_number(value) else value
