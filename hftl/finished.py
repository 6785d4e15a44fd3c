"""`Run`: a finished run as Python has it: what came out of it, its model, its predictions, its report."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from hftl.errors import HftlError
from hftl.notebook import html_table
from hftl.predict import Model, load
from hftl.report.page import REPORT, write_report
from hftl.runs.folder import RunFolder
from hftl.runs.record import RunRecord
from hftl.wording import one_line

if TYPE_CHECKING:
    import pandas as pd


class Run(os.PathLike[str]):
    """A finished run. It is the path of its folder too, so it stands wherever a run's folder may stand.

    Args:
        folder: the run's folder.

    Attributes:
        folder: where everything is.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Run:
        """A finished run of any day, read from its folder.

        Raises:
            UserError: no run is there, or it did not finish.
        """
        return cls(RunFolder.open(Path(folder).expanduser()).path)

    def __fspath__(self) -> str:
        return str(self.folder)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """What ``metrics.json`` holds: ``metrics["eval"]`` are those on the test split.

        Raises:
            HftlError: the file is damaged.
        """
        return RunFolder(self.folder).metrics().as_json()

    @cached_property
    def record(self) -> RunRecord:
        """What it was made of; the content of ``recipe.json``.

        Raises:
            HftlError: the file is damaged.
        """
        return RunFolder(self.folder).record()

    @property
    def predictions(self) -> pd.DataFrame:
        """A line for each row of the test split: ``row``, ``label``, ``prediction``, and for classes ``scores``.

        Raises:
            HftlError: the file is missing or damaged.
        """
        file = self.folder / "predictions.parquet"
        try:
            frame: pd.DataFrame = pq.read_table(file).to_pandas()
        except (OSError, pa.ArrowException) as error:
            raise HftlError(f"{file} is damaged ({one_line(error, 100)}); run it again") from error
        return frame

    @cached_property
    def model(self) -> Model:
        """The trained model, as `hftl.load` gives it.

        Raises:
            BackboneError: it is only an adapter, which plain transformers cannot load.
            HftlError: its files are not those that the run wrote.
        """
        return load(self.folder)

    def report(self) -> Path:
        """The page about the run, ``report.html`` in its folder, made if it is missing.

        Raises:
            HftlError: the folder is damaged, or the page cannot be written.
        """
        page = self.folder / REPORT
        return page if page.is_file() else write_report(self.folder)

    @property
    def scores(self) -> dict[str, float]:
        """The metrics on the test split that are one number each."""
        return {name: value for name, value in self.metrics["eval"].items() if isinstance(value, float)}

    def __repr__(self) -> str:
        first = [f", {name} {value:.4f}" for name, value in self.scores.items()][:1]
        return f"Run({str(self.folder)!r}{''.join(first)})"

    def _repr_html_(self) -> str:
        record, metrics = self.record, self.metrics
        rows = [{"metric": name, "value": value} for name, value in self.scores.items()]
        about = f"{record.backbone.name} on {record.recipe['data']}, method {record.method['name']}"
        counts = ", ".join(f"{name} {rows:,}" for name, rows in metrics["rows"].items())
        seconds = f"{metrics['seconds'].get('total', 0):.1f} s"
        return html_table(rows, about, [f"rows: {counts}; {seconds}", str(self.folder)])
