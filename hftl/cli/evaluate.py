"""``hftl evaluate``: metrics of a model on other data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hftl.cli.complete import DataOption, ModelArgument
from hftl.cli.output import answering, print_json, show
from hftl.cli.questions import AsJson, Offline, Quiet


def evaluate(
    model: ModelArgument,
    data: DataOption,
    input_columns: Annotated[str | None, typer.Option(help="One column, or two as a,b.")] = None,
    label_columns: Annotated[str | None, typer.Option(help="The column of labels, or several as a,b.")] = None,
    split: Annotated[str | None, typer.Option(help="train, validation or test, if not the test split.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the metrics to this file, as JSON.")] = None,
    offline: Offline = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Metrics on other data: their test (else validation) split, or all rows where they bring none."""
    from hftl.predict import evaluate as do
    from hftl.store.files import write_file

    with answering(as_json=as_json):
        values = do(
            model,
            data,
            input_columns=input_columns.split(",") if input_columns else None,
            label_columns=label_columns.split(",") if label_columns else None,
            split=split,
            offline=offline,
            quiet=quiet,
        )
    if out is not None:
        write_file(out, (json.dumps(values, indent=2) + "\n").encode())
    if as_json:
        print_json(values)
        return
    ends, sure = values.get("intervals", {}), "95 % interval"
    rows = [
        {"metric": name, "value": f"{value:.4f}", sure: "{:.4f} to {:.4f}".format(*ends[name]) if name in ends else ""}
        for name, value in values.items()
        if isinstance(value, float)
    ]
    show(rows, ["metric", "value", *([sure] if ends else [])], as_json=False)
