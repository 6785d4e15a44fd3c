"""``hftl evaluate``: metrics of a model on other data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hftl.cli.output import show


def evaluate(
    model: Annotated[str, typer.Argument(help="A run's folder, a model's folder, or a Hub id.")],
    data: Annotated[str, typer.Option(help="Hub data set[:config], folder, file, or sample:NAME.")],
    input_columns: Annotated[str | None, typer.Option(help="One column, or two as a,b.")] = None,
    label_columns: Annotated[str | None, typer.Option(help="The column of labels, or several as a,b.")] = None,
    split: Annotated[str | None, typer.Option(help="train, validation or test, if not the test split.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the metrics to this file, as JSON.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use only what is on this machine.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with each class's metrics.")] = False,
) -> None:
    """Metrics on other data: their test (else validation) split, or all rows where they bring none."""
    from hftl.predict import evaluate as do
    from hftl.store.files import write_file

    values = do(
        model,
        data,
        input_columns=input_columns.split(",") if input_columns else None,
        label_columns=label_columns.split(",") if label_columns else None,
        split=split,
        offline=offline,
    )
    if out is not None:
        write_file(out, (json.dumps(values, indent=2) + "\n").encode())
    if as_json:
        print(json.dumps(values))
        return
    rows = [{"metric": name, "value": f"{value:.4f}"} for name, value in values.items() if isinstance(value, float)]
    show(rows, ["metric", "value"], as_json=False)
