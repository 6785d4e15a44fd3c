"""`TestedRows`: what a finished run predicted for its test rows, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hftl.errors import HftlError
from hftl.runs.folder import PREDICTIONS, RunFolder
from hftl.runs.record import DataRecord, RunRecord
from hftl.wording import one_line


@dataclass(frozen=True)
class TestedRows:
    """The test rows of a run, in the order of its data.

    Attributes:
        names: of the rows.
        labels: (n,) int64 class numbers, or float32 (n, C).
        scores: float32 (n, C): probabilities of classes or labels, or predicted targets.
        truth: labels for a person: a name, a list of names, or a list of numbers.
        predicted: predictions, likewise.
    """

    # Not a test, whatever its name begins with.
    __test__ = False

    names: list[str]
    labels: np.ndarray
    scores: np.ndarray
    truth: list[Any]
    predicted: list[Any]

    @classmethod
    def of(cls, run: RunFolder, record: RunRecord) -> TestedRows:
        """The rows of a run's ``predictions.parquet``.

        Raises:
            HftlError: the file is missing or damaged.
        """
        path = run.path / PREDICTIONS
        try:
            table = pq.read_table(path)
            return cls._read({name: table.column(name) for name in table.column_names}, record)
        except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
            raise HftlError(f"{path} is damaged ({one_line(error, 100)}); run it again") from error

    @classmethod
    def _read(cls, columns: dict[str, pa.ChunkedArray], record: RunRecord) -> TestedRows:
        task, known = record.data.task, record.data.label_names
        names, truth = columns["row"].to_pylist(), columns["label"].to_pylist()
        scores = _matrix(columns["scores" if task.has_classes else "prediction"], len(known))
        place = {name: number for number, name in enumerate(known)}
        if task.is_exclusive:
            labels = np.array([place[name] for name in truth], dtype=np.int64)
        elif task.has_classes:
            labels = np.zeros(scores.shape, dtype=np.float32)
            for row, has in enumerate(truth):
                labels[row, [place[name] for name in has]] = 1
        else:
            labels = _matrix(columns["label"], len(known))
        return cls(names, labels, scores, truth, columns["prediction"].to_pylist())

    def select(self, places: np.ndarray) -> TestedRows:
        """Some of the rows, int64 (m,), in that order."""
        at = places.tolist()
        return TestedRows(
            [self.names[i] for i in at],
            self.labels[places],
            self.scores[places],
            [self.truth[i] for i in at],
            [self.predicted[i] for i in at],
        )

    def with_outputs(self, data: DataRecord, names: Sequence[str]) -> TestedRows:
        """The same rows with classes or targets in another order.

        Args:
            data: what they were trained on, with the order that they have.
            names: the same names in the order that they are to have.
        """
        if data.label_names == names:
            return self
        column = np.array([data.label_names.index(name) for name in names])
        labels = np.argsort(column)[self.labels] if data.task.is_exclusive else self.labels[:, column]
        return replace(self, labels=labels, scores=self.scores[:, column])

    def __len__(self) -> int:
        return len(self.names)


def _matrix(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """A column of lists of ``width`` finite numbers as float32 (n, width)."""
    lists = column.combine_chunks()
    if not (lists.value_lengths().to_numpy(zero_copy_only=False) == width).all():
        raise ValueError(f"a row has not {width} numbers")
    numbers: np.ndarray = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, width)
    if not np.isfinite(numbers).all():
        raise ValueError("a score is no finite number")
    return numbers
