"""Lines that a run prints: what it read and inferred first, the table of results and where everything is last."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.table import Table
from rich.text import Text

from hftl.backbones.protocol import Backbone
from hftl.data import Data
from hftl.errors import BadRowError
from hftl.runs.judgement import among_rows
from hftl.runs.record import Metrics
from hftl.scored import FEW_UNITS
from hftl.terminal import Terminal
from hftl.wording import is_debugging, plural, printable

# Rows that are named where no file lists them.
NAMED = 3
NOISY = (
    "accelerate",
    "datasets",
    "evaluate",
    "huggingface_hub",
    "peft",
    "sentence_transformers",
    "torch",
    "transformers",
)


def print_inputs(say: Terminal, backbone: Backbone, data: Data) -> None:
    """Print what was found and inferred before any long work."""
    commit = f" at {backbone.commit[:12]}" if backbone.commit else ""
    say.print(f"backbone  {backbone.name}{commit} ({backbone.modality})")
    counts = ", ".join(f"{name} {rows:,}" for name, rows in data.sizes().items() if rows)
    classes = f", {len(data.label_names):,} labels" if data.task.has_classes else ""
    say.print(f"data      {data.ref}: {counts} rows; {data.task.words}{classes}")
    for note in data.notes:
        say.print(f"          {note}")


def print_features(say: Terminal, counts: Mapping[str, int]) -> None:
    """Print how many rows were computed, and how many were known or cut."""
    say.print(f"features  {counts['computed']:,} computed, {counts['reused']:,} reused")
    if counts.get("windowed"):
        say.print(f"          {counts['windowed']:,} sentences were longer than the model reads at once: in windows")
    if counts.get("truncated"):
        say.print(
            f"          {counts['truncated']:,} texts were longer than the model reads and were cut (--max-length)"
        )


def print_bad_rows(say: Terminal, bad: Sequence[BadRowError], where: str = "") -> None:
    """Print how many rows are left out, if any.

    Args:
        say: where.
        bad: the rows.
        where: the file that lists all of them; without one, the first few are named here.
    """
    if not bad:
        return
    which = f"{where} lists them" if where else "; ".join(f"{row.row}: {row.why}" for row in bad[:NAMED])
    more = f"; and {len(bad) - NAMED:,} more" if not where and len(bad) > NAMED else ""
    say.print(f"          {plural(len(bad), 'row')} could not be decoded and were left out; {which}{more}")


def print_results(say: Terminal, metrics: Metrics, folder: Path, page: Path | None) -> None:
    """Print the table of results and where everything is; of the page only if there is one."""
    table = Table()
    table.add_column("metric")
    table.add_column("value", justify="right")
    known, scope = metrics.known_intervals(), metrics.scope_scores()
    if known:
        table.add_column("95 % interval", justify="right")
    for name, value in metrics.eval.items():
        if isinstance(value, float):
            # A plugin's metric may have any name.
            ends = f"{known[name].low:.4f} to {known[name].high:.4f}" if name in known else ""
            table.add_row(Text(printable(name)), f"{value:.4f}", *([ends] if known else []))
    for name, value in metrics.training.get("baselines", {}).items():
        # What costs nothing, to read the result by.
        of = "f1" if "per_type" in metrics.eval else "accuracy"
        what = f"{of} of {printable(name)}{among_rows(name, metrics.training)}"
        table.add_row(Text(what), f"{value:.4f}", style="dim")
    for name, each in scope.items():
        table.add_row(Text(name), f"{each.value:.4f}", *([f"{each.low:.4f} to {each.high:.4f}"] if known else []))
    say.print(table)
    for line in _said_of_folds(metrics):
        say.print(line)
    if told := metrics.test_views:
        chosen = metrics.chosen_by["metric"]
        name = chosen if chosen in told["eval"] else next(iter(told["eval"]))
        say.print(
            f"views     mean probabilities of {told['views']} views of each test picture: {name} "
            f"{told['eval'][name]:.4f}; as it is {metrics.eval[name]:.4f}"
        )
    seconds = metrics.seconds
    say.print(f"seconds   extract {seconds['extract']:.1f}, train {seconds['train']:.1f}, total {seconds['total']:.1f}")
    if page:
        say.print(f"report    {page}")
    say.print(f"run       {folder}")


def _said_of_folds(metrics: Metrics) -> list[str]:
    """Which number is what, where cross-validation scored rows; and where few rows or groups make it rough."""
    said = []
    crossed, drawn = metrics.cross_validation, metrics.intervals
    if crossed and crossed["in_place_of_a_test_split"]:
        said.append(
            f"cv        each of {crossed['rows']:,} rows is scored by models that have not seen it; what is exported "
            "is trained on all of them, and measured on none"
        )
    elif crossed:
        values = (f"{printable(n)} {v:.4f}" for n, v in crossed["eval"].items() if v is not None)
        said.append(f"cv        of the {crossed['rows']:,} training rows: {', '.join(values)}")
        said.append("          the table is of the test split, by the model that is exported")
    if drawn and drawn["units"] < FEW_UNITS:
        said.append(f"          {drawn['units']} {drawn['drawn']} make wide intervals, and rough ones")
    return said


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence what other libraries report (warnings in their logs, progress bars) while a run speaks for itself.

    Errors are shown. With ``--debug`` everything is.
    """
    if is_debugging():
        yield
        return
    # Not imported for this: who predicts from files does without it for a second of CPU time.
    datasets = sys.modules.get("datasets")
    from huggingface_hub import utils as hub
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    bars = transformers_logging.is_progress_bar_enabled()
    data_bars = datasets and not datasets.are_progress_bars_disabled()
    # Downloads are long, and a bar tells of them; in a log file it would be many lines.
    downloads = not (sys.stderr.isatty() or hub.are_progress_bars_disabled())  # type: ignore[attr-defined]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    if datasets and data_bars:
        datasets.disable_progress_bars()
    if downloads:
        hub.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
        if datasets and data_bars:
            datasets.enable_progress_bars()
        if downloads:
            hub.enable_progress_bars()  # type: ignore[attr-defined]
