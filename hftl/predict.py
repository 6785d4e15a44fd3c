"""Labels, scores and metrics for new inputs, by any exported model: a run's, a folder's, or one of the Hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState

from hftl.backbones.pretrained import PretrainedBackbone
from hftl.backbones.protocol import Backbone, Encoded
from hftl.console import quiet_libraries
from hftl.data import Files, load_data
from hftl.data.columns import TEXT_NAMES
from hftl.data.folders import list_files
from hftl.data.tables import read_tables
from hftl.errors import BackboneError, BadRowError, DataError
from hftl.matmul import speed_up
from hftl.metrics import evaluate_predictions
from hftl.registry import BackboneOptions, find, load

TABLES = {".csv", ".tsv", ".jsonl", ".json", ".parquet"}
BATCH_ROWS = 32


@dataclass(frozen=True)
class Model:
    """An exported model that can be asked.

    Attributes:
        backbone: its preprocessing.
        network: the classification model in eval mode, on ``device``.
        label_names: names of its outputs.
        task: ``"single_label"``, ``"multi_label"`` or ``"regression"``.
        device: where it runs.
    """

    backbone: Backbone
    network: Any
    label_names: list[str]
    task: str
    device: torch.device

    @classmethod
    def load(cls, ref: str, *, offline: bool = False) -> Model:
        """Load a run's folder, a model's folder, or a Hub id, with its trained head.

        Raises:
            BackboneError: there is no such model, or it has no trained head.
        """
        folder = Path(ref).expanduser() / "model"
        where = str(folder) if folder.is_dir() else ref
        backbone = load(find(where), BackboneOptions(offline=offline))
        if not isinstance(backbone, PretrainedBackbone):
            raise BackboneError(f"{where} is no model that hftl can ask; load it with its own library")
        if (backbone.source.folder / "modules.json").exists():
            raise BackboneError(
                f"{where} is a sentence-transformers model: "
                f"SentenceTransformer({where!r}).encode(texts) gives its logits"
            )
        network, untrained = backbone.load_trained()
        if untrained:
            raise BackboneError(
                f"{where} has no trained head ({', '.join(sorted(untrained))} missing): run a recipe first"
            )
        speed_up(network)
        device = PartialState().device
        config = network.config
        names = [config.id2label[i] for i in range(config.num_labels)]
        task = {"multi_label_classification": "multi_label", "regression": "regression"}.get(
            config.problem_type, "single_label"
        )
        return cls(backbone, network.to(device), names, task, device)

    def logits(self, encoded: Sequence[Encoded]) -> torch.Tensor:
        """Logits (n, C) of encoded rows, float32 on the CPU."""
        batch = {name: value.to(self.device) for name, value in self.backbone.collate(encoded).items()}
        with torch.inference_mode():
            logits: torch.Tensor = self.network(**batch).logits.float().cpu()
        return logits

    def scores(self, encoded: Sequence[Encoded]) -> torch.Tensor:
        """Probabilities (n, C) of encoded rows, or targets for a regression; float32 on the CPU."""
        logits = self.logits(encoded)
        if self.task == "single_label":
            return logits.softmax(1)
        return logits.sigmoid() if self.task == "multi_label" else logits


def predictions(
    ref: str, inputs: Sequence[str], *, on_bad_row: str = "error", offline: bool = False
) -> list[dict[str, Any]]:
    """Predict label and score for inputs.

    Args:
        ref: a run's folder, a model's folder, or a Hub id.
        inputs: for images, files and folders; for texts, the texts themselves, or files of them (one a line in
            ``.txt``; a column named like a text in csv, tsv, jsonl and parquet).
        on_bad_row: ``"error"``, or ``"skip"`` to give a row that cannot be decoded the label None and an ``error``.
        offline: use only what is on this machine.

    Returns:
        For each row ``input``, ``label`` (a list of labels for several at once; targets for a regression), ``score``
        of the label, and
        ``scores`` by label name.

    Raises:
        UserError: the model or an input cannot be used.
    """
    with quiet_libraries():
        model = Model.load(ref, offline=offline)
        rows = _rows(model.backbone, inputs)
        found: list[dict[str, Any]] = []
        for start in range(0, len(rows), BATCH_ROWS):
            found += _predict(model, rows[start : start + BATCH_ROWS], on_bad_row)
    return found


def evaluate(
    ref: str,
    data: Any,
    *,
    input_columns: Sequence[str] | None = None,
    label_columns: Sequence[str] | None = None,
    offline: bool = False,
) -> dict[str, Any]:
    """Metrics of a model on other data: their test (or validation) split, or all rows where they bring none.

    Args:
        ref: a run's folder, a model's folder, or a Hub id.
        data: a data reference as of a recipe.
        input_columns: one column, or two for pairs of texts; None to infer.
        label_columns: the column (or columns) of labels; None to infer.
        offline: use only what is on this machine.

    Returns:
        What ``metrics.json`` holds under ``eval``.

    Raises:
        UserError: the model or the data cannot be used, or the data have a label that the model does not know.
    """
    with quiet_libraries():
        model = Model.load(ref, offline=offline)
        backbone = model.backbone
        found = load_data(
            data,
            wants=backbone.wants,
            suffixes=backbone.suffixes,
            input_columns=input_columns,
            label_columns=label_columns,
            task=model.task,
        )
        splits = [found.train, found.test] if found.set_aside else [found.test]
        logits = [
            model.logits(backbone.encode([split.inputs[i] for i in rows], [split.inputs.name(i) for i in rows]))
            for split in splits
            for rows in _batches(len(split))
        ]
    labels = np.concatenate([split.labels for split in splits])
    if model.task == "regression":
        if labels.shape[1] != len(model.label_names):
            raise DataError(f"the model gives {len(model.label_names)} targets, the data have {labels.shape[1]}")
    else:
        labels = _as_known(labels, found.label_names, model)
    return evaluate_predictions(model.task, torch.cat(logits).numpy(), labels, model.label_names)


def _batches(rows: int) -> Iterator[range]:
    for start in range(0, rows, BATCH_ROWS):
        yield range(start, min(start + BATCH_ROWS, rows))


def _as_known(labels: np.ndarray, names: Sequence[str], model: Model) -> np.ndarray:
    """Labels of the data, numbered as the model numbers them."""
    unknown = sorted(set(names) - set(model.label_names))
    if unknown:
        known = ", ".join(model.label_names[:10])
        raise DataError(f"the model does not know the label {unknown[0]!r} of the data; it knows: {known}")
    numbers: np.ndarray = np.array([model.label_names.index(name) for name in names])
    if labels.ndim == 1:
        return np.asarray(numbers[labels])
    placed = np.zeros((len(labels), len(model.label_names)), labels.dtype)
    placed[:, numbers] = labels
    return placed


def _predict(model: Model, rows: Sequence[tuple[Any, str]], on_bad_row: str) -> Iterator[dict[str, Any]]:
    encoded: list[Encoded | BadRowError] = []
    for row, name in rows:
        try:
            encoded += model.backbone.encode([row() if callable(row) else row], [name])
        except BadRowError as error:
            if on_bad_row == "error":
                raise
            encoded.append(error)
    good = [row for row in encoded if isinstance(row, Encoded)]
    scores = iter(model.scores(good).tolist() if good else ())
    for (_, name), row in zip(rows, encoded, strict=True):
        if isinstance(row, BadRowError):
            yield {"input": name, "label": None, "score": None, "scores": None, "error": row.why}
        else:
            yield {"input": name, **_named(model, next(scores))}


def _named(model: Model, scores: list[float]) -> dict[str, Any]:
    named = dict(zip(model.label_names, scores, strict=True))
    if model.task == "regression":
        return {"label": scores if len(scores) > 1 else scores[0], "score": None, "scores": named}
    if model.task == "multi_label":
        return {
            "label": [name for name, score in named.items() if score > 0.5],
            "score": max(scores),
            "scores": named,
        }
    label = max(named, key=named.__getitem__)
    return {"label": label, "score": named[label], "scores": named}


def _rows(backbone: Backbone, inputs: Sequence[str]) -> list[tuple[Any, str]]:
    """Each row, or a function that reads it, and its name."""
    if backbone.wants == "text":
        return [row for text in inputs for row in _texts(text)]
    paths: list[str] = []
    for given in inputs:
        path = Path(given).expanduser()
        if path.is_dir():
            found = [path / file for file in list_files(path) if PurePath(file).suffix.lower() in backbone.suffixes]
            if not found:
                raise DataError(
                    f"folder {given!r} holds no file that {backbone.name} reads "
                    f"({', '.join(sorted(backbone.suffixes))})"
                )
            paths += [str(file) for file in found]
        elif path.exists():
            paths.append(str(path))
        else:
            raise DataError(f"no file or folder {given!r}")
    files = Files(pa.chunked_array([paths]))
    return [((lambda i=i: files.read(i)), files.name(i)) for i in range(len(files))]


def _texts(given: str) -> Iterator[tuple[tuple[str, ...], str]]:
    path = Path(given)
    if path.suffix.lower() in TABLES and path.is_file():
        table = read_tables([path], path.parent).parts["train"].table
        column = next((name for name in (*TEXT_NAMES, *table.column_names) if name in table.column_names), None)
        if column is None:
            raise DataError(f"{given} has no columns")
        for i, value in enumerate(table[column].to_pylist(), 1):
            yield (str(value or ""),), f"{path.name} row {i}"
    elif path.suffix.lower() == ".txt" and path.is_file():
        for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            yield (line,), f"{path.name} line {i}"
    else:
        yield (given,), given
