"""Features of the training rows, as matrices: what every question of the scout is asked of.

The scout never looks at the test split, except to find leaks: that split is for the number that a run reports.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from hftl.backbones.cut.cut import Cut
from hftl.backbones.protocol import Target
from hftl.criterion import Criterion
from hftl.data import Data, Split
from hftl.data.dataset import rows_of_lines
from hftl.data.holdout import hold_out
from hftl.errors import DataError, UserError
from hftl.frozen.features import SplitFeatures, StoredFeatures, line_columns
from hftl.frozen.matrix import flatten_columns
from hftl.frozen.recipe import chooses, inputs_of, stored_features, view_of, views_of
from hftl.hub.client import staying_offline
from hftl.parallel import start_processes
from hftl.plugins.spec import BackboneOptions, BackboneSpec
from hftl.recipes import Recipe
from hftl.runs.console import quiet_libraries
from hftl.store.values import Ragged
from hftl.tasks import Task
from hftl.terminal import Terminal


@dataclass(frozen=True)
class TrainingRows:
    """The training rows of a recipe, and what its backbone gives for them.

    Attributes:
        features: (n, d) float32 on the CPU. Where the model's own head reads every token, their mean. Of sentences
            whose words have labels those of all words, (words, d).
        split: the rows, with their labels.
        data: what the labels mean.
        target: the backbone.
        stored: where the features are, and what it took to have them.
        averaged: whether tokens were averaged.
        seed: of folds and samples.
        criterion: the metric that chooses.
    """

    features: Tensor
    split: Split
    data: Data
    target: Target
    stored: StoredFeatures
    averaged: bool
    seed: int
    criterion: Criterion

    @property
    def task(self) -> Task:
        """What the labels are."""
        return self.data.task

    @property
    def labels(self) -> Tensor:
        """Labels of the rows, see `hftl.data.Split`; of sentences those of all words, as features are."""
        return torch.from_numpy(self.task.by_line(self.split.labels))

    @property
    def targets(self) -> Tensor:
        """Labels as float32 (n, C): one-hot classes, labels of 0 and 1, or numbers."""
        if self.task.unit.is_exclusive:
            return nn.functional.one_hot(self.labels, len(self.data.label_names)).float()
        return self.labels.float()

    @cached_property
    def rows_of_lines(self) -> Tensor:
        """The row of each line of features, int64: of each word its sentence."""
        return torch.from_numpy(rows_of_lines(self.split.labels))

    @cached_property
    def apart(self) -> Tensor | None:
        """What each line stands in, int64: its row's group, else its sentence; None where rows stand alone."""
        groups = self.split.marks.groups
        if groups is not None:
            return torch.from_numpy(groups)[self.rows_of_lines]
        return self.rows_of_lines if self.task.of_words else None

    def lines_of(self, rows: np.ndarray) -> Tensor:
        """The lines of features of some rows, int64: of a sentence those of its words; of another row its number."""
        if not self.task.of_words:
            return torch.from_numpy(rows)
        lengths = torch.bincount(self.rows_of_lines, minlength=len(self.split))
        of_each = torch.split(torch.arange(len(self.rows_of_lines)), lengths.tolist())
        return torch.cat([of_each[row] for row in rows.tolist()])

    @property
    def bytes_per_row(self) -> int:
        """What one row takes in the store."""
        numbers, total = self.stored.splits["train"].columns, 0
        for name, column in numbers.items():
            values = column.values if isinstance(column, Ragged) else column
            # In memory they are of the type that they were computed in.
            total += values.numel() * self.stored.spaces[0].columns[name].storage.itemsize
        return round(total / max(len(self.split), 1))


@dataclass(frozen=True)
class Reader:
    """How recipes are read while a question is answered; narration goes to standard error.

    Attributes:
        say: where what was found is said.
        offline: use only what is on this machine.
        allow_pickle: read weights that are there only as a pickle, as nothing but tensors.
        on_bad_row: ``"error"``, or ``"skip"`` to leave out rows that cannot be decoded.
        quiet: print nothing but errors.
        of_words: whether the question is answered of sentences whose words have labels, too.
    """

    say: Terminal
    offline: bool
    allow_pickle: bool
    on_bad_row: str
    quiet: bool
    of_words: bool

    def inputs(self, recipe: Recipe) -> tuple[BackboneSpec, Target, Data]:
        """The backbone and the data that a recipe names.

        Raises:
            UserError: one of them cannot be used, or rows are sentences whose words have labels, and the question is
                not for these; or memory is bounded.
        """
        if recipe.memory is not None:
            raise UserError(
                "memory: questions, depth='auto' among them, are answered from all features in memory, which no bound "
                "is kept for: leave it out, and give --subset N where there are many rows"
            )
        spec, target, data = inputs_of(
            recipe, self.say, BackboneOptions(recipe.max_length, self.offline, self.allow_pickle)
        )
        if views_of(recipe):
            self.say.print("views     left out: this question is asked of pictures as they are")
        if not self.of_words:
            refuse_words(data)
        return spec, target, data

    def silent(self) -> Reader:
        """The same, for what is read once more and was said before."""
        return replace(self, say=Terminal(quiet=True), quiet=True)

    def training(self, recipe: Recipe, subset: int | None = None) -> TrainingRows:
        """The features of a recipe's training rows, computed where they are missing.

        Args:
            recipe: the backbone and the data.
            subset: take only about so many rows, stratified; the same ones for every backbone.

        Raises:
            UserError: the recipe, its data or its backbone cannot be used.
            CutError: the backbone cannot be cut exactly.
            StoreError: features cannot be stored.
        """
        spec, target, data = self.inputs(recipe)
        return self.rows(recipe, spec, target, training_part(data, subset, recipe.seed))

    def rows(self, recipe: Recipe, spec: BackboneSpec, target: Target, data: Data) -> TrainingRows:
        """The features of all training rows of some data; as `training`."""
        views = [view_of(recipe, target.backbone)]
        features = stored_features(spec, target, data, views, self.say, on_bad_row=self.on_bad_row, quiet=self.quiet)
        split = features.splits["train"]
        matrix, averaged = split_matrix(split, features.content.cut)
        return TrainingRows(
            features=matrix,
            split=split.split,
            data=features.readable(data),
            target=target,
            stored=features,
            averaged=averaged,
            seed=recipe.seed,
            criterion=chooses(recipe, data.task),
        )


@contextmanager
def reading(
    *, offline: bool, allow_pickle: bool, on_bad_row: str, quiet: bool, of_words: bool = False
) -> Iterator[Reader]:
    """Read recipes with quiet libraries, and without the network where that is asked."""
    quiet = quiet or not start_processes().is_main_process
    with quiet_libraries(), staying_offline(offline):
        yield Reader(Terminal(quiet=quiet, file=sys.stderr), offline, allow_pickle, on_bad_row, quiet, of_words)


def refuse_words(data: Data) -> None:
    """Refuse sentences whose words have labels.

    Raises:
        UserError: they are such.
    """
    if data.task.of_words:
        raise UserError(f"{data.ref}: each word has a label, and this question is answered for whole rows only")


def training_part(data: Data, subset: int | None, seed: int) -> Data:
    """The data's training rows alone, or about so many of them, stratified by class.

    Raises:
        DataError: the number of rows cannot be drawn.
    """
    train = data.train
    if subset is not None and subset < len(train):
        if subset < 2:
            raise DataError(f"a subset of {subset} says nothing: give at least 2 rows for each class")
        train = train.select(hold_out(train.labels, data.task, subset / len(train), seed)[1])
    # The other splits stay unread: what the scout sees of them, a run could no longer report honestly.
    return replace(data, train=train, validation=None, test=data.test.select(np.zeros(0, dtype=np.int64)))


def split_matrix(part: SplitFeatures, cut: Cut) -> tuple[Tensor, bool]:
    """A split's features, (n, d) float32 on the CPU, and whether tokens were averaged to have them.

    Of a cut that keeps words those of all words, (words, d).

    Args:
        part: the split.
        cut: of the space that its features are stored in.
    """
    if cut.words:
        return flatten_columns(dict(line_columns(part.columns, cut)), list(cut.kept())), False
    columns = {name: _averaged(part.columns[name]) for name in cut.kept() if name not in cut.tokens}
    averaged = any(isinstance(part.columns[name], Ragged) for name in columns)
    return flatten_columns(dict(columns), list(columns)), averaged


def _averaged(column: Tensor | Ragged) -> Tensor:
    """A column with one vector a row: the mean of a row's tokens where rows have lengths of their own."""
    if isinstance(column, Tensor):
        return column
    rows = torch.repeat_interleave(torch.arange(len(column.lengths)), column.lengths)
    shape = (len(column.lengths), *column.values.shape[1:])
    sums = torch.zeros(shape, dtype=torch.float32).index_add_(0, rows, column.values.float())
    return sums / column.lengths.clamp_min(1).view(-1, *[1] * (len(shape) - 1))
