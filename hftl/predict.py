"""Labels, scores and metrics for new inputs, by any exported model: a run's, a folder's, or one of the Hub."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hftl.backbones.protocol import Encoded
from hftl.data import Split, Texts, load_evaluation_data
from hftl.errors import BadRowError
from hftl.export.loaded import LoadedModel
from hftl.frozen.asked import stored_logits
from hftl.hub.client import staying_offline
from hftl.inputs import InputRow, read_inputs
from hftl.metrics import evaluate_predictions
from hftl.progress import Progress
from hftl.runs.console import quiet_libraries
from hftl.store.store import FeatureStore, cache_root
from hftl.terminal import Terminal

BATCH_ROWS = 32


def predictions(
    model: str | Path | LoadedModel,
    inputs: Sequence[str | tuple[str, ...]],
    *,
    input_columns: Sequence[str] | None = None,
    on_bad_row: str = "error",
    offline: bool = False,
) -> list[dict[str, Any]]:
    """Predict label and score for inputs.

    Args:
        model: a run's folder, a model's folder, a Hub id, or what `load` gave for one.
        inputs: for images, files, folders and tables of paths; for texts, the texts themselves (a tuple of two for a
            pair), or files of them: one text a line in ``.txt``, tables in csv, tsv, jsonl and parquet.
        input_columns: what to read of a table; None for the columns that the run was trained on.
        on_bad_row: ``"error"``, or ``"skip"`` to give a row that cannot be decoded the label None and an ``error``.
        offline: use only what is on this machine.

    Returns:
        For each row ``input``, ``label`` (a list of labels for several at once; a number, or a list of them, for a
        regression), ``score`` of the label, and ``scores`` by label name.

    Raises:
        UserError: the model or an input cannot be used, or an input is not what the model was trained on.
    """
    with quiet_libraries(), staying_offline(offline):
        loaded = _loaded(model, offline)
        rows = read_inputs(loaded, inputs, input_columns)
        answers: list[dict[str, Any]] = []
        for start in range(0, len(rows), BATCH_ROWS):
            answers += _predict_rows(loaded, rows[start : start + BATCH_ROWS], on_bad_row)
    return answers


def evaluate(
    model: str | Path | LoadedModel,
    data: Any,
    *,
    input_columns: Sequence[str] | None = None,
    label_columns: Sequence[str] | None = None,
    split: str | None = None,
    offline: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Metrics of a model on other data: their test split, else their validation split, else all rows.

    The model says what the classes and targets are, and they are matched by name: nothing is inferred about them, and
    only the split that is evaluated is read. Rows whose features a run stored are not computed again.

    Args:
        model: a run's folder, a model's folder, a Hub id, or what `load` gave for one.
        data: a data reference as of a recipe.
        input_columns: one column, or two for pairs of texts; None for those of the run, or to infer where it has none.
        label_columns: the column (or columns) of labels; None to find them by the model's names, or to infer.
        split: ``train``, ``validation`` or ``test``, in place of the first of test, validation and train.
        offline: use only what is on this machine.
        quiet: print neither what is evaluated nor progress.

    Returns:
        What ``metrics.json`` holds under ``eval``.

    Raises:
        UserError: the model or the data cannot be used, or the data have a label that the model does not know.
    """
    say = Terminal(quiet=quiet, file=sys.stderr)
    with quiet_libraries(), staying_offline(offline):
        loaded = _loaded(model, offline)
        read = load_evaluation_data(
            data,
            wants=loaded.backbone.wants,
            suffixes=loaded.backbone.suffixes,
            task=loaded.task,
            label_names=loaded.label_names,
            input_columns=input_columns,
            label_columns=label_columns,
            split=split,
            **loaded.trained_on(),
        )
        say.print(f"evaluate  {read.ref}: {read.said}")
        for note in read.notes:
            say.print(f"          {note}")
        logits = _split_logits(loaded, read.split, quiet)
    labels = read.split.labels
    return evaluate_predictions(loaded.task, logits.numpy(), labels, loaded.label_names, loaded.thresholds)


def load(model: str | Path, *, offline: bool = False) -> LoadedModel:
    """Load a model once, to predict or evaluate with it several times.

    Args:
        model: a run's folder, a model's folder, or a Hub id.
        offline: use only what is on this machine.

    Raises:
        BackboneError: there is no such model, or it has no trained head.
    """
    with quiet_libraries():
        return LoadedModel.load(model, offline=offline)


def _loaded(model: str | Path | LoadedModel, offline: bool) -> LoadedModel:
    return model if isinstance(model, LoadedModel) else LoadedModel.load(model, offline=offline)


def _split_logits(model: LoadedModel, split: Split, quiet: bool) -> torch.Tensor:
    """Logits (n, C) of a split's rows: of stored features where the run's head has seen them, else of the model."""
    rows, known = stored_logits(model, split.inputs, FeatureStore(cache_root()))
    logits = torch.empty(len(split), len(model.label_names))
    model.check(known)
    logits[torch.from_numpy(rows)] = known
    missing = np.setdiff1d(np.arange(len(split)), rows)
    if isinstance(split.inputs, Texts):
        # Texts of like length together, so that little of a batch is padding.
        missing = missing[np.argsort(-split.inputs.lengths()[missing], kind="stable")]
    with Progress("evaluate", len(split), quiet=quiet) as progress:
        progress.advance(len(rows))
        for start in range(0, len(missing), BATCH_ROWS):
            batch = missing[start : start + BATCH_ROWS].tolist()
            names = [split.inputs.name(i) for i in batch]
            logits[batch] = model.logits(model.backbone.encode([split.inputs[i] for i in batch], names))
            progress.advance(len(batch))
    return logits


def _predict_rows(model: LoadedModel, rows: Sequence[InputRow], on_bad_row: str) -> Iterator[dict[str, Any]]:
    encoded: list[Encoded | BadRowError] = []
    for row in rows:
        try:
            encoded += model.backbone.encode([row.read()], [row.name])
        except BadRowError as error:
            if on_bad_row == "error":
                raise
            encoded.append(error)
    good = [row for row in encoded if isinstance(row, Encoded)]
    named = iter(_answers(model, model.scores(good).numpy()) if good else ())
    for row, result in zip(rows, encoded, strict=True):
        if isinstance(result, BadRowError):
            yield {"input": row.name, "label": None, "score": None, "scores": None, "error": result.why}
        else:
            yield {"input": row.name, **next(named)}


def _answers(model: LoadedModel, scores: np.ndarray) -> Iterator[dict[str, Any]]:
    """What is said of each row of scores (n, C)."""
    task = model.task
    for label, row in zip(task.predicted(scores, model.label_names, model.thresholds), scores.tolist(), strict=True):
        # One target is a number, not a list of one.
        plain = label[0] if not task.has_classes and len(label) == 1 else label
        named = dict(zip(model.label_names, row, strict=True))
        yield {"label": plain, "score": max(row) if task.has_classes else None, "scores": named}
