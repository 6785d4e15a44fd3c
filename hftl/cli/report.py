"""``hftl report``: the page of a run, made again from its folder."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from hftl.cli.output import say


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Folders of finished runs.")],
    open_: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
) -> None:
    """Make report.html in the folder of each run again, from what the folder holds."""
    from hftl.report.page import write_report

    for folder in runs:
        page = write_report(folder)
        say(str(page))
        if open_:
            webbrowser.open(page.absolute().as_uri())
