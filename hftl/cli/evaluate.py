"""``hftl evaluate``: metrics of a model on other data."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from hftl.cli.output import show


def evaluate(
    model: Annotated[str, typer.Argument(help="A run's folder, a model's folder, or a Hub id.")],
    data: Annotated[str, typer.Option(help="Hub data set[:config], folder, file, or sample:NAME.")],
    input_columns: Annotated[str | None, typer.Option(help="One column, or two as a,b.")] = None,
    label_columns: Annotated[str | None, typer.Option(help="The column of labels, or several as a,b.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use only what is on this machine.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with each class's metrics.")] = False,
) -> None:
    """Metrics on other data: their test (or validation) split, or all rows where they bring none."""
    from hftl.predict import evaluate as do

    values = do(
        model,
        data,
        input_columns=input_columns.split(",") if input_columns else None,
        label_columns=label_columns.split(",") if label_columns else None,
        offline=offline,
    )
    if as_json:
        print(json.dumps(values))
        return
    rows = [{"metric": name, "value": f"{value:.4f}"} for name, value in values.items() if isinstance(value, float)]
    show(rows, ["metric", "value"], as_json=False)
