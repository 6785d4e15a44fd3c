"""``hftl predict``: label and score for files, folders, tables, texts and standard input."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hftl.cli.output import say
from hftl.errors import DataError, HftlError, Interrupted

if TYPE_CHECKING:
    from hftl.inputs.sources import RowSource
    from hftl.results import ResultFile

# Rows of the table that are printed at once, the first of them to say how wide its columns are.
BLOCK = 50
WIDEST_LABEL = 40
# A pipe has no width; lines must not be folded where a program reads them.
WIDTH_OF_PIPE = 200


def predict(
    model: Annotated[str, typer.Argument(help="A run's folder, a model's folder, or a Hub id.")],
    inputs: Annotated[list[str], typer.Argument(help="Files, folders, patterns, texts, tables, or - for stdin.")],
    input_columns: Annotated[
        str | None, typer.Option(help="What to read of a table, one column or two as a,b; else what the run read.")
    ] = None,
    input_format: Annotated[
        Literal["lines", "csv", "tsv", "jsonl"] | None,
        typer.Option(help="How stdin is written: a row a line (pairs with a tab between), or a table."),
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="Columns of input tables to carry to the results, such as id or id,text.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the results to this .csv, .jsonl or .parquet file.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Say so many of the highest scores.")] = None,
    views: Annotated[
        int, typer.Option(min=1, help="Mean probabilities of so many views of a picture, changed as in training.")
    ] = 1,
    on_bad_row: Annotated[
        Literal["skip", "error"],
        typer.Option(help="A row that cannot be read has an error in place of a label, or stops the command."),
    ] = "skip",
    offline: Annotated[bool, typer.Option("--offline", help="Use only what is on this machine.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, with every score; with --out, one about the file.")
    ] = False,
) -> None:
    """Predict label and score for each input.

    Inputs are read as the model was trained: pictures, folders of them and patterns ("photos/**/*.jpg"); texts, or .txt
    files with a text a line; csv, tsv, jsonl and parquet tables, of which the run's columns are read.
    """
    from hftl.inputs.sources import RowSources
    from hftl.inputs.words import sources_of
    from hftl.predict import answers, load
    from hftl.progress import Progress
    from hftl.results import ResultFile, Results, check_out, kept_types

    if out is not None:
        check_out(out)
    loaded = load(model, offline=offline).loaded
    opened = RowSources(loaded, _names(input_columns), _names(keep) or ())
    sources = sources_of(opened, inputs, sys.stdin.buffer, input_format)
    results = Results.of(loaded, top_k, kept_types(sources))
    file = ResultFile(out, results) if out is not None else None
    count = _Count()
    # Where rows pass by, these are the progress, and a bar would stand among them.
    shown = file is None and not _goes_to_file()
    try:
        with file or nullcontext(), Progress("predict", _total(sources), quiet=quiet or shown) as progress:
            rows = (row for source in sources for row in source.rows())
            said = count.over(answers(loaded, rows, results, on_bad_row, views), progress.advance)
            if file is not None:
                for result in said:
                    file.write(result)
            elif as_json:
                _print_lines(said)
            else:
                _print_table(said)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted after {count.rows:,} rows{_kept_in(file)}") from None
    except HftlError:
        if file and file.partial:
            say(f"predict: {count.rows:,} rows were done before{_kept_in(file)}", error=True)
        raise
    if not quiet:
        for note in (note for source in sources for note in source.notes):
            say(f"predict: {note}", error=True)
        if file:
            say(f"predict: {count.rows:,} rows in {out}", error=True)
    if as_json and file:
        print(json.dumps({"out": str(out), "rows": count.rows, "bad": count.bad}))
    count.judge()


def _goes_to_file() -> bool:
    """Whether what is printed lands in a file, out of sight."""
    try:
        return stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode)
    except (OSError, ValueError):
        return False


def _names(given: str | None) -> list[str] | None:
    return given.split(",") if given else None


def _total(sources: list[RowSource]) -> int | None:
    totals = [source.total for source in sources]
    return None if None in totals else sum(total for total in totals if total is not None)


def _kept_in(file: ResultFile | None) -> str:
    return f"; they are in {file.partial}" if file and file.partial else ""


@dataclass
class _Count:
    """How many results passed by, and how many of them are errors."""

    rows: int = 0
    bad: int = 0
    first: str = ""

    def over(self, results: Iterable[dict[str, Any]], advance: Any) -> Iterator[dict[str, Any]]:
        for result in results:
            self.rows += 1
            if "error" in result:
                self.bad += 1
                self.first = self.first or f"{result['input']}: {result['error']}"
            yield result
            advance(1)

    def judge(self) -> None:
        """Say how many rows are bad.

        Raises:
            DataError: all of them.
        """
        if self.rows and self.bad == self.rows:
            how = f"none of {self.rows:,} rows could be read; the first is " if self.rows > 1 else ""
            raise DataError(f"{how}{self.first}")
        if self.bad:
            say(f"predict: {self.bad:,} of {self.rows:,} rows could not be read; the first is {self.first}", error=True)


def _print_lines(results: Iterable[dict[str, Any]]) -> None:
    from hftl.results import as_line

    for result in results:
        # Whoever reads the other end of a pipe need not wait until a buffer is full.
        print(as_line(result), flush=True)


def _print_table(results: Iterator[dict[str, Any]]) -> None:
    """Print a table for people, block by block, all as wide as the first."""
    from rich.table import Table
    from rich.text import Text

    from hftl.terminal import Terminal

    terminal, widths = Terminal(), None
    if not terminal.is_terminal:
        terminal.width = WIDTH_OF_PIPE
    while block := [_cells(result) for result in islice(results, BLOCK)]:
        first = widths is None
        widths = widths or _widths(block, terminal.width)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=first)
        for column, width in zip(("input", "label", "score"), widths, strict=True):
            table.add_column(column, width=width, overflow="fold")
        for row in block:
            table.add_row(*map(Text, row))
        terminal.print(table)


def _cells(result: dict[str, Any]) -> tuple[str, str, str]:
    """Input, label and score as they are printed; of several scores one a line."""
    from hftl.wording import printable

    name = printable(result["input"])
    if "error" in result:
        return name, f"error: {printable(result['error'])}", ""
    if "entities" in result:
        found = result["entities"]
        places = [
            f"{printable(each['label'])}: {printable(each['text'])} ({each['start']}-{each['end']})" for each in found
        ]
        return name, "\n".join(places) or "no entity", "\n".join(f"{each['score']:.4f}" for each in found)
    if top := result.get("top"):
        first = [("abstains", "")] if result.get("abstains") else []
        lines = [*first, *((printable(each["label"]), f"{each['score']:.4f}") for each in top)]
        return name, "\n".join(label for label, _ in lines), "\n".join(score for _, score in lines)
    label, score = "abstains" if result.get("abstains") else result["label"], result["score"]
    if isinstance(label, list):
        label = ", ".join(f"{each:.4f}" if isinstance(each, float) else str(each) for each in label)
    return (
        name,
        printable(f"{label:.4f}" if isinstance(label, float) else label),
        "" if score is None else f"{score:.4f}",
    )


def _widths(block: list[tuple[str, str, str]], room: int) -> tuple[int, int, int]:
    from rich.cells import cell_len

    longest = [max(cell_len(line) for row in block for line in row[i].split("\n")) for i in (0, 1)]
    label = max(5, min(longest[1], WIDEST_LABEL))
    return max(5, min(longest[0], room - label - len("score") - 1 - 4)), label, 6
