"""``hftl cache``: look after the feature store."""

from __future__ import annotations

import typer

app = typer.Typer(help="Look after the stored features.", no_args_is_help=True)
