"""``hftl report``: the page of a run, made again from its folder; or of several runs, side by side."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from hftl.cli.output import print_json, say
from hftl.cli.questions import AsJson, Quiet


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Folders of finished runs.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Where the page of several runs goes. [default: comparison.html]"),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make report.html in the folder of a run again; of several runs, one page that compares them with the first.

    The page is one file that needs no network. What it compares, and how, is what `hftl compare` prints.
    """
    from hftl.errors import UserError

    if len(runs) > 1:
        from hftl.report.compared import page_of
        from hftl.report.comparison import compare
        from hftl.report.parts import write_page

        page = write_page(page_of(compare(runs)), out or Path("comparison.html"))
    elif out is None:
        from hftl.report.page import write_report

        page = write_report(runs[0])
    else:
        raise UserError(
            "--out is for the page of several runs; that of one is report.html in its folder, so leave it out"
        )
    if as_json:
        print_json({"page": str(page)})
    elif not quiet:
        say(str(page))
    if open_:
        webbrowser.open(page.absolute().as_uri())
