"""``hftl predict``: label and score for files, folders and texts."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import typer

from hftl.cli.output import show


def predict(
    model: Annotated[str, typer.Argument(help="A run's folder, a model's folder, or a Hub id.")],
    inputs: Annotated[list[str], typer.Argument(help="Image files or folders; texts, or files of texts; tables.")],
    input_columns: Annotated[
        str | None, typer.Option(help="What to read of a table, one column or two as a,b; else what the run read.")
    ] = None,
    on_bad_row: Annotated[
        Literal["error", "skip"], typer.Option(help="What to do with an image that cannot be decoded.")
    ] = "error",
    offline: Annotated[bool, typer.Option("--offline", help="Use only what is on this machine.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line, with every score.")] = False,
) -> None:
    """Predict label and score for each input."""
    from hftl.predict import predictions as do

    columns = input_columns.split(",") if input_columns else None
    rows: list[dict[str, Any]] = do(model, inputs, input_columns=columns, on_bad_row=on_bad_row, offline=offline)
    if as_json:
        for row in rows:
            print(json.dumps(row))
        return
    for row in rows:
        row["score"] = None if row["score"] is None else f"{row['score']:.4f}"
    show(rows, ["input", "label", "score"], as_json=False)
