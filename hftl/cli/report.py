"""``hftl report``: the page of a run, made again from its folder."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from hftl.cli.output import print_json, say
from hftl.cli.questions import AsJson, Quiet


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Folders of finished runs.")],
    open_: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make report.html in the folder of each run again, from what the folder holds."""
    from hftl.report.page import write_report

    pages = []
    for folder in runs:
        pages.append(write_report(folder))
        if not (quiet or as_json):
            say(str(pages[-1]))
        if open_:
            webbrowser.open(pages[-1].absolute().as_uri())
    if as_json:
        print_json({"pages": [str(page) for page in pages]})
