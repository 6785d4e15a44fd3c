"""`write_report`: a run's folder becomes ``report.html``, one file that needs nothing but a browser."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from hftl.report.collected import in_words
from hftl.runs.folder import RunFolder, writing
from hftl.store.files import write_file
from hftl.wording import plain, plural, printable

REPORT = "report.html"


def write_report(folder: Path) -> Path:
    """Make, or make again, the page of a finished run from what its folder holds.

    Args:
        folder: the run's folder.

    Returns:
        Where the page is: ``report.html`` in the folder.

    Raises:
        UserError: no finished run is there.
        HftlError: the folder is damaged, or the page cannot be written.
    """
    # Brought only here: matplotlib takes more than half a second to import.
    from hftl.report.sections import RunPage

    run = RunFolder.open(folder)
    text = render("run.html.jinja", **RunPage(run).facts())
    with writing(folder / REPORT):
        write_file(folder / REPORT, text.encode())
    return folder / REPORT


def render(template: str, **facts: Any) -> str:
    """A page of this room's templates: style and script stand in it, and nothing else may be loaded or run.

    Args:
        template: its name; it extends ``page.html.jinja``.
        facts: what it tells. Text in it is escaped, and shown as the filter ``shown`` has it.
    """
    environment = _environment()
    style, script = (_part(environment, name) for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_allowed(style)}'; script-src '{_allowed(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return environment.get_template(template).render(style=Markup(style), script=Markup(script), policy=policy, **facts)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("hftl.report", "template"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "shown": printable,
        "name": breakable,
        "words": in_words,
        "plural": plural,
        "number": decimals,
        "share": share,
        "code": code,
    }
    return environment


def decimals(value: float | None, digits: int = 4) -> str:
    """A number with so many digits behind the point; what is undefined is said to be."""
    return "undefined" if value is None else f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:,.1f}"


def breakable(name: str) -> Markup:
    """A name that may be broken where its words end, so that narrow columns hold it."""
    return Markup(re.sub(r"([_/.|-]+)", r"\1<wbr>", str(escape(printable(name)))))


def share(value: float) -> str:
    """A probability with three digits; one that would be none of them is not said to be 0."""
    return f"{value:.3f}" if value >= 0.0005 or value == 0 else "< 0.001"


def code(lines: str) -> str:
    """Lines of code as they are, with a mark in place of what cannot be printed."""
    return "\n".join(map(plain, lines.splitlines()))


def _part(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _allowed(text: str) -> str:
    """What a content security policy knows an inline part by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
