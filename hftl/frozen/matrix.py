"""`Features`: stored features as a matrix for other tools, NumPy, pandas, Parquet and safetensors among them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hftl.data import Labels
from hftl.errors import DataError, RecipeError
from hftl.frozen.formats import BLOCK_BYTES, About, write_blocks
from hftl.wording import did_you_mean, plural

if TYPE_CHECKING:
    import pandas as pd


NO_MATRIX = 'this backbone\'s head reads every token, which is no matrix; ask for --pooling mean (pooling="mean")'


@dataclass(frozen=True, repr=False, eq=False)
class Features:
    """The features of a data set, and what its rows are.

    Attributes:
        matrix: float32 (n, d).
        labels: int64 (n,) class numbers; float32 (n, k) of 0 and 1 for several labels, or of targets.
        label_names: names of the classes, labels or targets.
        row_names: what a person calls each row.
        split: the split of each row, an array (n,) of ``"train"``, ``"validation"`` and ``"test"``.
    """

    matrix: npt.NDArray[np.float32]
    labels: Labels
    label_names: list[str]
    row_names: list[str]
    split: npt.NDArray[np.str_]

    def __repr__(self) -> str:
        rows, width = self.matrix.shape
        counts = ", ".join(f"{name} {(self.split == name).sum():,}" for name in dict.fromkeys(self.split.tolist()))
        return f"Features({rows:,} × {width:,} float32; {counts}; {plural(len(self.label_names), 'label')})"

    def __len__(self) -> int:
        return len(self.matrix)

    def of(self, split: str) -> tuple[npt.NDArray[np.float32], Labels]:
        """The matrix (m, d) and the labels of one split: the ``X, y`` of scikit-learn.

        Raises:
            DataError: there is no such split.
        """
        chosen = self.split == split
        if not chosen.any():
            there = list(dict.fromkeys(self.split.tolist()))
            raise DataError(f"no split {split!r}{did_you_mean(split, there)}; there is {', '.join(there)}")
        return self.matrix[chosen], self.labels[chosen]

    def to_pandas(self) -> pd.DataFrame:
        """A line for each row, named by the row: ``split``, the label, and a column for each number.

        The label is the class's name in a column ``label``; several labels, and targets, have a column each, called
        ``label: NAME``. The numbers' columns are ``0`` to ``d - 1``, as integers, so that
        ``frame.loc[:, 0:]`` is the matrix.
        """
        import pandas as pd

        if self.labels.ndim == 1:
            labels: dict[str, Any] = {"label": np.array(self.label_names, dtype=object)[self.labels]}
        else:
            labels = {f"label: {name}": self.labels[:, k] for k, name in enumerate(self.label_names)}
        index = pd.Index(self.row_names, name="row")
        about = pd.DataFrame({"split": self.split, **labels}, index=index)
        return pd.concat([about, pd.DataFrame(self.matrix, index=index)], axis=1)

    def write(self, path: str | Path) -> list[Path]:
        """Write all of it to a file; an ``.npy`` holds the matrix alone, the rest stands beside it as ``.json``.

        Args:
            path: its name ends in ``.parquet``, ``.safetensors`` or ``.npy``.

        Returns:
            The files written, each of them whole and on the disk.

        Raises:
            RecipeError: the file name says no known format, or that format has no room for so many names.
            HftlError: the file cannot be written.
        """
        about = About(self.labels, self.label_names, self.row_names, self.split)
        width = self.matrix.shape[1]
        step = max(1, BLOCK_BYTES // (4 * max(width, 1)))
        blocks = (self.matrix[start : start + step] for start in range(0, len(self), step))
        return write_blocks(Path(path).expanduser(), about, width, blocks)


def flatten_columns(columns: Mapping[str, object], features: Sequence[str]) -> Tensor:
    """The kept columns of a split, (n, …) each, side by side: (n, d) float32.

    Raises:
        RecipeError: rows have features of different lengths.
    """
    parts = []
    for name in features:
        value = columns[name]
        if not isinstance(value, Tensor):
            raise RecipeError(NO_MATRIX)
        parts.append(value.reshape(len(value), math.prod(value.shape[1:])).float())
    return torch.cat(parts, 1)
