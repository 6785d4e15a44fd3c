"""``hftl export``: a run's model in a format that runs without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hftl.cli.output import answering, print_json, say
from hftl.cli.questions import AsJson, Offline, Quiet
from hftl.errors import UserError
from hftl.wording import human_bytes


def export(
    run: Annotated[Path, typer.Argument(help="A finished run's folder.")],
    onnx: Annotated[bool, typer.Option("--onnx", help="Write an ONNX folder.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Store its weights in 8 bits, and say what that costs.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to (default onnx or onnx-int8 in the run's).")
    ] = None,
    offline: Offline = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write a run's model as ONNX, and compare it with the model on the run's test rows.

    `hftl predict` and `hftl evaluate` take the folder. It needs the extra: pip install 'hftl[onnx]'.
    """
    if not onnx:
        raise UserError("say which format to export: --onnx (add --int8 for weights in 8 bits)")
    from hftl.convert import to_onnx

    with answering(as_json=as_json):
        made = to_onnx(run, int8=int8, out=out, offline=offline, quiet=quiet)
    if as_json:
        print_json(made.as_json())
    elif not quiet:
        say(f"onnx      {made.folder}, {human_bytes(made.bytes)} (the model: {human_bytes(made.bytes_before)})")
        say(f"compared  {made.rows:,} test rows, logits at most {made.largest_difference:.2g} apart")
        change = made.change
        say(f"{made.metric:<9} {made.after:.4f}, {change.value:+.4f} ({change.low:+.4f} to {change.high:+.4f})")
