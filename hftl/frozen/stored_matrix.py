"""The features of all splits as one matrix, in memory or a block at a time out of the store."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hftl.backbones.cut.cut import Cut
from hftl.data import Data
from hftl.data.dataset import rows_of_lines
from hftl.errors import RecipeError
from hftl.frozen.extract import ConcatRows
from hftl.frozen.features import StoredFeatures, gathered, line_columns
from hftl.frozen.formats import BLOCK_BYTES, About, Block, write_blocks
from hftl.frozen.matrix import NO_MATRIX, Features, flatten_columns


@dataclass(frozen=True)
class StoredMatrix:
    """All splits' features as one matrix that stays in the store, to be read a block at a time.

    Attributes:
        features: where they are.
        about: what the lines are.
    """

    features: StoredFeatures
    about: About

    @classmethod
    def of(cls, features: StoredFeatures, data: Data) -> StoredMatrix:
        """The matrix of some data's features."""
        return cls(features, _about_lines(features, data))

    @property
    def width(self) -> int | None:
        """How many numbers a line has; None where rows have features of different lengths."""
        cut = self.features.content.cut
        shapes = [shape for name, (_, shape) in cut.kept().items() if name not in cut.tokens]
        shapes = [shape[1:] for shape in shapes] if cut.words else shapes
        sizes = [math.prod(shape) for shape in shapes]
        return None if any(-1 in shape for shape in shapes) else sum(sizes)

    def blocks(self) -> Iterator[Block]:
        """The matrix (n, d) from top to bottom, in parts of about `BLOCK_BYTES`.

        Raises:
            RecipeError: rows have features of different lengths.
            MissingRowsError: rows are not in the store any more.
        """
        parts = self.features.splits.values()
        rows = sum(len(part.digests) for part in parts)
        line_bytes = 4 * (self.width or 1) * len(self.about) // max(rows, 1)
        step = max(1, BLOCK_BYTES // max(line_bytes, 1))
        for part in parts:
            for start in range(0, len(part.digests), step):
                columns = gathered(self.features.spaces, part.digests[start : start + step])
                yield _as_matrix(columns, self.features.content.cut).numpy()

    def in_memory(self) -> Features:
        """All of it at once.

        Raises:
            RecipeError: rows have features of different lengths.
            MissingRowsError: rows are not in the store any more.
        """
        about = self.about
        if self.width is None:
            raise RecipeError(NO_MATRIX)
        matrix, at = np.empty((len(about), self.width), dtype=np.float32), 0
        for block in self.blocks():
            matrix[at : (at := at + len(block))] = block
        return Features(matrix, about.labels, about.label_names, list(about.row_names), about.split)

    def write(self, path: Path) -> list[Path]:
        """Write it to a file; as `hftl.Features.write`, with a block in memory at a time."""
        if self.width is None:
            raise RecipeError(NO_MATRIX)
        return write_blocks(path, self.about, self.width, self.blocks())


def _about_lines(features: StoredFeatures, data: Data) -> About:
    """What the lines of all splits are: rows, or words of sentences."""
    words, parts = features.content.cut.words, features.splits
    of_lines = [rows_of_lines(part.split.labels) if words else np.arange(len(part.split)) for part in parts.values()]
    counts = [len(each) for each in of_lines]
    return About(
        labels=np.concatenate([data.task.by_line(part.split.labels) for part in parts.values()]),
        label_names=data.label_names,
        row_names=_NamesOfLines(ConcatRows([part.split.inputs for part in parts.values()]), of_lines),
        split=np.repeat(np.array(list(parts)), counts),
    )


class _NamesOfLines(Sequence[str]):
    """The name of each line's row, made when it is asked for: those of millions would be most of what is held."""

    def __init__(self, rows: ConcatRows, of_lines: Sequence[np.ndarray]) -> None:
        self._rows = rows
        self._of_lines = np.concatenate([each + start for each, start in zip(of_lines, rows.starts, strict=False)])

    def __len__(self) -> int:
        return len(self._of_lines)

    def __getitem__(self, line: Any) -> Any:
        if isinstance(line, slice):
            return [self._rows.name(row) for row in self._of_lines[line].tolist()]
        return self._rows.name(int(self._of_lines[line]))


def _as_matrix(columns: Mapping[str, Any], cut: Cut) -> torch.Tensor:
    """The columns of rows as a matrix, with a line for each word where the cut keeps words."""
    kept = [name for name in cut.kept() if name not in cut.tokens]
    return flatten_columns(line_columns(columns, cut), kept)
