"""Stored features as a matrix for other tools: Parquet, safetensors, NumPy."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import Tensor

from hftl.errors import RecipeError

FORMATS = (".parquet", ".safetensors", ".npy")
PARQUET_ROWS = 65_536


@dataclass(frozen=True)
class FeatureMatrix:
    """The features of a data set.

    Attributes:
        features: (n, d) float32.
        labels: int64 (n,) class numbers, or float32 (n, k) for several labels and regressions.
        rows: the rows' names.
        splits: the split of each row.
        label_names: names of the classes, or of the targets.
    """

    features: Tensor
    labels: Tensor
    rows: list[str]
    splits: list[str]
    label_names: list[str]

    def of(self, split: str) -> tuple[Tensor, Tensor]:
        """Features and labels of one split."""
        chosen = torch.tensor([name == split for name in self.splits])
        return self.features[chosen], self.labels[chosen]


def check_format(path: Path) -> None:
    """Refuse a file name that says no known format.

    Raises:
        RecipeError: its ending is none of .parquet, .safetensors and .npy.
    """
    if path.suffix not in FORMATS:
        raise RecipeError(f"cannot write features as {path.name!r}; its name ends in one of {', '.join(FORMATS)}")


def write_features(matrix: FeatureMatrix, path: Path) -> list[Path]:
    """Write features, labels and row names; an ``.npy`` holds the features alone, the rest stands beside it as
    ``.json``.

    Returns:
        The files written.

    Raises:
        RecipeError: the file name says no known format.
    """
    check_format(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        _write_parquet(matrix, path)
        return [path]
    facts = {"rows": matrix.rows, "splits": matrix.splits, "label_names": matrix.label_names}
    if path.suffix == ".safetensors":
        metadata = {name: json.dumps(value) for name, value in facts.items()}
        save_file({"features": matrix.features, "labels": matrix.labels}, path, metadata)
        return [path]
    beside = path.with_suffix(".json")
    np.save(path, matrix.features.numpy())
    beside.write_text(json.dumps({"labels": matrix.labels.tolist(), **facts}) + "\n", encoding="utf-8")
    return [path, beside]


def _write_parquet(matrix: FeatureMatrix, path: Path) -> None:
    width = matrix.features.shape[1]
    kind = pa.list_(pa.float32(), width)
    schema = pa.schema(
        [("row", pa.string()), ("split", pa.string()), ("label", _label_type(matrix)), ("features", kind)],
        metadata={"label_names": json.dumps(matrix.label_names)},
    )
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(matrix.rows), PARQUET_ROWS):
            part = slice(start, start + PARQUET_ROWS)
            values = pa.array(matrix.features[part].reshape(-1).numpy())
            columns = [
                pa.array(matrix.rows[part]),
                pa.array(matrix.splits[part]),
                pa.array(matrix.labels[part].tolist(), _label_type(matrix)),
                pa.FixedSizeListArray.from_arrays(values, type=kind),
            ]
            writer.write_table(pa.table(columns, schema=schema))


def _label_type(matrix: FeatureMatrix) -> pa.DataType:
    return pa.int64() if matrix.labels.dim() == 1 else pa.list_(pa.float32())


def flatten_columns(columns: dict[str, object], features: Sequence[str]) -> Tensor:
    """The kept columns of a split, (n, …) each, side by side: (n, d) float32.

    Raises:
        RecipeError: rows have features of different lengths.
    """
    parts = []
    for name in features:
        value = columns[name]
        if not isinstance(value, Tensor):
            raise RecipeError("this backbone's head reads every token, which is no matrix; ask for --pooling mean")
        parts.append(value.reshape(len(value), math.prod(value.shape[1:])).float())
    return torch.cat(parts, 1)
