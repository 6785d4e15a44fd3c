"""Lines that a run prints: what it read and inferred first, the table of results and where everything is last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.table import Table
from rich.text import Text

from hftl.backbones.protocol import Backbone
from hftl.data import Data
from hftl.errors import BadRowError
from hftl.runs.record import Metrics
from hftl.terminal import Terminal
from hftl.wording import printable


def print_inputs(say: Terminal, backbone: Backbone, data: Data) -> None:
    """Print what was found and inferred before any long work."""
    commit = f" at {backbone.commit[:12]}" if backbone.commit else ""
    say.print(f"backbone  {backbone.name}{commit} ({backbone.modality})")
    counts = ", ".join(f"{name} {rows:,}" for name, rows in data.sizes().items())
    classes = f", {len(data.label_names):,} labels" if data.task.has_classes else ""
    say.print(f"data      {data.ref}: {counts} rows; {data.task.words}{classes}")
    for note in data.notes:
        say.print(f"          {note}")


def print_features(say: Terminal, counts: Mapping[str, int]) -> None:
    """Print how many rows were computed, and how many were known or cut."""
    say.print(f"features  {counts['computed']:,} computed, {counts['reused']:,} reused")
    if counts["truncated"]:
        say.print(
            f"          {counts['truncated']:,} texts were longer than the model reads and were cut (--max-length)"
        )


def print_bad_rows(say: Terminal, bad: Sequence[BadRowError]) -> None:
    """Print how many rows are left out, if any."""
    if bad:
        say.print(f"          {len(bad):,} rows could not be decoded and were left out; skipped.json lists them")


def print_results(say: Terminal, metrics: Metrics, folder: Path, page: Path | None) -> None:
    """Print the table of results and where everything is; of the page only if there is one."""
    table = Table()
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.eval.items():
        if isinstance(value, float):
            # A plugin's metric may have any name.
            table.add_row(Text(printable(name)), f"{value:.4f}")
    for name, value in (metrics.head or metrics.finetune or {}).get("baselines", {}).items():
        # What costs nothing, to read the result by.
        table.add_row(Text(f"accuracy of {printable(name)}"), f"{value:.4f}", style="dim")
    say.print(table)
    seconds = metrics.seconds
    say.print(f"seconds   extract {seconds['extract']:.1f}, train {seconds['train']:.1f}, total {seconds['total']:.1f}")
    if page:
        say.print(f"report    {page}")
    say.print(f"run       {folder}")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the chatter of transformers and datasets (load reports, progress bars) while a run speaks for itself."""
    import datasets
    from transformers.utils import logging

    level, bars, data_bars = (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        datasets.are_progress_bars_disabled(),
    )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        if not data_bars:
            datasets.enable_progress_bars()
