"""`Model`: labels, scores and metrics for new inputs, by any exported model: a run's, a folder's, or one of the Hub."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch

from hftl.data import Split, load_evaluation_data
from hftl.data.columns import TEXT_NAMES
from hftl.data.dataset import lines_of
from hftl.errors import BadRowError, DataError, UserError
from hftl.export.loaded import LoadedModel
from hftl.frozen.asked import stored_logits
from hftl.hub.client import staying_offline
from hftl.inputs.rows import InputReader, InputRow
from hftl.inputs.sources import RowSources, is_one_file
from hftl.metrics import evaluate_predictions
from hftl.progress import Progress
from hftl.results import Result, Results
from hftl.runs.console import quiet_libraries
from hftl.scoring import Scored, augmentation_of, score_rows, scored_by_views
from hftl.store.store import FeatureStore, cache_root
from hftl.tasks import Task
from hftl.terminal import Terminal


def load(model: str | Path, *, offline: bool = False) -> Model:
    """Load a model once, to predict or evaluate with it several times.

    Args:
        model: a run's folder, a model's folder, or a Hub id.
        offline: use only what is on this machine.

    Raises:
        BackboneError: there is no such model, or it has no trained head.
    """
    with quiet_libraries():
        return Model(LoadedModel.load(model, offline=offline), str(model))


def evaluate(model: str | Path | Model, data: Any, **options: Any) -> dict[str, Any]:
    """Metrics of a model on other data; see `Model.evaluate`, which has the options.

    Args:
        model: a run's folder, a model's folder, a Hub id, or what `load` gave for one.
        data: a data reference as of a recipe.
        options: as of `Model.evaluate`.
    """
    loaded = model if isinstance(model, Model) else load(model, offline=options.get("offline", False))
    return loaded.evaluate(data, **options)


class Model:
    """A trained model that can be asked, as `load` gives it.

    Args:
        loaded: the model.
        name: what a person calls it.

    Attributes:
        label_names: names of its C outputs.
        task: what its outputs are: one label, several, or numbers.
        network: the transformers model, a ``torch.nn.Module`` in eval mode.
    """

    def __init__(self, loaded: LoadedModel, name: str) -> None:
        self.loaded = loaded
        self.name = name
        self.label_names: list[str] = loaded.label_names
        self.task: Task = loaded.task
        self.network: Any = loaded.network

    def __repr__(self) -> str:
        what = "labels" if self.task.has_classes else "targets"
        names = ", ".join(self.label_names[:3]) + (", …" if len(self.label_names) > 3 else "")
        return f"<hftl.Model {self.name!r}: {self.task.words}, {len(self.label_names):,} {what} ({names})>"

    def predict(
        self,
        rows: Any,
        *,
        input_columns: Sequence[str] | None = None,
        top_k: int | None = None,
        on_bad_row: str = "error",
        views: int = 1,
    ) -> Result | list[Result] | Iterator[Result]:
        """Label and score of rows.

        Args:
            rows: one row: a text, a tuple of two for a pair, a tuple of the words of a sentence; a picture's path,
                bytes or PIL image. Or many: a list or a column of such rows, a pandas or polars DataFrame or a
                `datasets.Dataset` with the model's columns; a `Path` to a table, a ``.txt`` file or a folder. Or an
                iterator of rows, which is taken from as its answers are asked for. A str is a text to a model of texts;
                to others it is a path or a pattern.
            input_columns: what to read of a table or DataFrame; None for the columns that the run was trained on.
            top_k: say only the so many highest scores, under ``top``.
            on_bad_row: ``"error"`` raises at a row that cannot be read; ``"skip"`` gives it the label None and an
                ``error``.
            views: of each picture, the first as it is and the others changed as pictures were in the run's training:
                scores are then the mean of their probabilities (of a regression, of its numbers).

        Returns:
            For one row a dict, for many a list of them, for an iterator an iterator: ``input``, ``label`` (a list of
            labels for several at once; a number, or a list of them, for a regression), ``score`` of the best label,
            and ``scores`` by label name, or ``top``, a list of ``{"label", "score"}`` with the highest first; of a
            model that may abstain ``abstains``, with the label None where it does. Of a sentence ``entities``, a list
            of ``{"label", "score", "start", "end", "text"}`` with places of characters, and ``tags``, one for each
            word.

        Raises:
            BadRowError: a row cannot be read.
            UserError: rows or options are not what the model was trained for.
        """
        results = Results.of(self.loaded, top_k)
        reader = InputReader(self.loaded, input_columns)

        def said(given: Iterable[InputRow]) -> Iterator[Result]:
            return answers(self.loaded, given, results, on_bad_row, views)

        if isinstance(rows, Iterator):
            return said(reader.values(rows))
        if isinstance(rows, PurePath) or (isinstance(rows, str) and reader.wants == "file"):
            sources = RowSources(self.loaded, input_columns).named(str(rows))
            found = list(said(row for source in sources for row in source.rows()))
            return found[0] if is_one_file(str(rows)) and reader.wants == "file" else found
        if isinstance(rows, (str, bytes, tuple, Mapping)) or hasattr(rows, "getexif"):
            return next(said(reader.values([rows])))
        return list(said(reader.values(_rows_in(rows, reader))))

    def evaluate(
        self,
        data: Any,
        *,
        input_columns: Sequence[str] | None = None,
        label_columns: Sequence[str] | None = None,
        split: str | None = None,
        offline: bool = False,
        quiet: bool = False,
    ) -> dict[str, Any]:
        """Metrics on other data: their test split, else their validation split, else all rows.

        The model says what the classes and targets are, and they are matched by name: nothing is inferred about them,
        and only the split that is evaluated is read. Rows whose features a run stored are not computed again.

        Args:
            data: a data reference as of a recipe.
            input_columns: one column, or two for pairs of texts; None for those of the run, or to infer where it has
                none.
            label_columns: the column (or columns) of labels; None to find them by the model's names, or to infer.
            split: ``train``, ``validation`` or ``test``, in place of the first of test, validation and train.
            offline: use only what is on this machine.
            quiet: print neither what is evaluated nor progress.

        Returns:
            What ``metrics.json`` holds under ``eval``; of a model that may abstain ``accuracy_answered``, ``coverage``
            and their ``intervals`` too.

        Raises:
            UserError: the data cannot be used, or have a label that the model does not know.
        """
        say, model = Terminal(quiet=quiet, file=sys.stderr), self.loaded
        with quiet_libraries(), staying_offline(offline):
            read = load_evaluation_data(
                data,
                wants=model.backbone.wants,
                suffixes=model.backbone.suffixes,
                task=model.task,
                label_names=model.label_names,
                input_columns=input_columns,
                label_columns=label_columns,
                split=split,
                **model.trained_on(),
            )
            say.print(f"evaluate  {read.ref}: {read.said}")
            for note in read.notes:
                say.print(f"          {note}")
            logits = _split_logits(model, read.split, quiet)
        labels = read.split.labels
        values = evaluate_predictions(model.task, logits.numpy(), labels, model.label_names, model.thresholds)
        if model.abstain_below is not None:
            # Brought only here: who predicts does without scipy's statistics.
            from hftl.scored import answered_scores

            answered = answered_scores(model.task.scores(logits).numpy(), labels, model.abstain_below)
            values |= {name: each and each.value for name, each in answered.items()}
            values["intervals"] = {name: [each.low, each.high] for name, each in answered.items() if each}
        return values


def answers(
    model: LoadedModel, rows: Iterable[InputRow], results: Results, on_bad_row: str, views: int = 1
) -> Iterator[Result]:
    """What is said of rows that stream by, in their order.

    Args:
        model: who is asked.
        rows: taken from a few windows ahead of the answers.
        results: how it is said.
        on_bad_row: ``"error"`` or ``"skip"``, as in `Model.predict`.
        views: of each picture, as in `Model.predict`.

    Raises:
        BadRowError: a row cannot be read; all rows before it are answered.
        UserError: ``on_bad_row`` is neither, or there are no views.
    """
    if on_bad_row not in ("error", "skip"):
        raise UserError(f"on_bad_row: expected 'error' or 'skip', got {on_bad_row!r}")
    if views < 1:
        raise UserError(f"views: expected 1 or more, got {views}")
    scored = score_rows(model, rows) if views == 1 else scored_by_views(model, rows, views, augmentation_of(model))
    return _answers(scored, results, stops=on_bad_row == "error")


def _answers(scored: Iterable[Scored], results: Results, *, stops: bool) -> Iterator[Result]:
    for part in scored:
        for number, result in enumerate(results.of_rows(part)):
            if stops and number in part.bad:
                raise BadRowError(part.rows[number].name, part.bad[number].why)
            yield result


def _rows_in(rows: Any, reader: InputReader) -> Iterable[Any]:
    """The rows of a list, a column or a table in memory.

    Raises:
        DataError: it is none, or the table has not the model's columns.
    """
    names = getattr(rows, "column_names", None) or getattr(rows, "columns", None)
    if names is not None:
        columns = [rows[name] for name in reader.chosen("the table", list(names), TEXT_NAMES)]
        values: Iterable[Any] = columns[0] if len(columns) == 1 else zip(*columns, strict=True)
        return values
    if isinstance(rows, Iterable):
        return rows
    raise DataError(f"a {type(rows).__name__} is no row and no list of rows")


def _split_logits(model: LoadedModel, split: Split, quiet: bool) -> torch.Tensor:
    """Logits (n, C), or (words, C), of a split: of stored features where the run's head has them, else of the model."""
    rows, known = stored_logits(model, split.inputs, FeatureStore(cache_root()))
    lines = lines_of(split.labels)
    logits: list[torch.Tensor] = [known[:0]] * len(split)
    model.check(known)
    for row, own in zip(rows.tolist(), torch.split(known, [lines[row] for row in rows.tolist()]), strict=True):
        logits[row] = own
    missing = np.setdiff1d(np.arange(len(split)), rows).tolist()
    asked = (InputRow(split.inputs.name(i), partial(split.inputs.__getitem__, i)) for i in missing)
    with Progress("evaluate", len(split), quiet=quiet) as progress:
        progress.advance(len(rows))
        done = 0
        for part in score_rows(model, asked):
            for bad in part.bad.values():
                raise bad
            for row, own in zip(missing[done:], torch.split(part.logits, part.lines), strict=False):
                logits[row] = own
            done += len(part.rows)
            progress.advance(len(part.rows))
    return torch.cat(logits)
