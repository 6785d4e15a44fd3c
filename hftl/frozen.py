"""The frozen path: data → stored features → a solved head → predictions and an exported model.

Only what is missing from the store is computed; when nothing is, the backbone's weights are never read into memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from hftl.backbones.protocol import Backbone
from hftl.backbones.split import Split
from hftl.data import Data
from hftl.data import Split as DataSplit
from hftl.errors import BadRowError, HftlError, SplitError
from hftl.export.model import export_model, export_sentence_transformer, fold
from hftl.export.matrix import Matrix, flat
from hftl.features.extract import Report, Rows, digest_rows, extract, open_space
from hftl.features.shard import Digests
from hftl.features.space import Space
from hftl.features.stat_index import StatIndex
from hftl.features.store import FeatureStore, cache_root
from hftl.heads import fit_linear
from hftl.methods import Head
from hftl.registry import BackboneSpec

Columns = dict[str, Any]


@dataclass
class Part:
    """One split of the data with its features.

    Attributes:
        split: the rows and labels, without those that could not be decoded.
        digests: the rows' names, uint8 (n, 16).
        columns: the stored features of the rows, in order.
    """

    split: DataSplit
    digests: Digests
    columns: Columns = field(default_factory=dict)


@dataclass
class Features:
    """The features of all splits, and what it took to have them.

    Attributes:
        space: where they are stored.
        split: how the backbone is cut.
        parts: by split name: ``train``, ``validation`` if there is one, ``test``.
        counts: rows asked for, computed now, reused; truncated rows.
        bad: rows left out, with the reason.
        seconds: wall time.
    """

    space: Space
    split: Split
    parts: dict[str, Part]
    counts: dict[str, int]
    bad: list[BadRowError]
    seconds: float

    def of(self, data: Data) -> Data:
        """The data without the rows that could not be decoded."""
        return replace(data, **{name: part.split for name, part in self.parts.items()})


def features_of(
    spec: BackboneSpec,
    backbone: Backbone,
    config: Any,
    data: Data,
    *,
    pooling: str = "native",
    also: Sequence[str] = (),
    precision: str = "no",
    on_bad_row: str = "error",
    quiet: bool = False,
) -> Features:
    """The features of every row of every split, computed where missing; each process computes its share.

    Args:
        spec: who registered the backbone.
        backbone: the pretrained network.
        config: the configuration to build it with.
        data: the rows.
        pooling: which features: ``"native"`` for what the model's own head reads, ``"mean"`` or ``"cls"``.
        also: other poolings to store from the same pass.
        precision: ``"no"`` for float32 throughout, ``"bf16"`` or ``"fp16"`` for autocast.
        on_bad_row: ``"error"``, or ``"skip"`` to leave out rows that cannot be decoded.
        quiet: print no progress.

    Raises:
        BadRowError: a row cannot be decoded and ``on_bad_row`` is ``"error"``.
        SplitError: the backbone cannot be split exactly.
        StoreError: features cannot be stored.
    """
    store, index = FeatureStore(cache_root()), StatIndex(cache_root() / "digests" / "files.safetensors")
    plugin = {"name": spec.plugin, "version": spec.plugin_version}
    views = {view: open_space(store, backbone, plugin, view, index, precision) for view in (pooling, *also)}
    space = views[pooling]
    state = PartialState()
    started = time.monotonic()
    bad: list[BadRowError] = []
    parts = []
    for split in (data.train, data.validation, data.test):
        if split is not None:
            part, unread = _digested(split, index, on_bad_row)
            parts.append(part)
            bad += unread
    done = _together(
        partial(
            extract,
            backbone,
            config,
            views,
            Rows([part.split.inputs for part in parts]),
            np.concatenate([part.digests for part in parts]),
            device=state.device,
            precision=precision,
            rank=state.process_index,
            world=state.num_processes,
            quiet=quiet,
            on_bad_row=on_bad_row,
        )
    )
    # Each process met its own bad rows; all leave out all of them.
    met = {row: error for report in done for row, error in report.bad.items()}
    bad += [met[row] for row in sorted(met)]
    computed = sum(report.computed for report in done)
    parts = _without_all(parts, met)
    truncated = 0
    for part in parts:
        part.columns = space.gather(part.digests)
        truncated += int(part.columns.pop("truncated").sum())
    rows = sum(len(part.digests) for part in parts)
    counts = {"rows": rows, "computed": computed, "reused": rows - computed, "truncated": truncated}
    return Features(
        space,
        Split.from_json((space.info or {})["split"]),
        {part.split.name: part for part in parts},
        counts,
        bad,
        time.monotonic() - started,
    )


def matrix_of(features: Features, data: Data) -> Matrix:
    """All splits' features as one matrix with labels and row names.

    Raises:
        RecipeError: rows have features of different lengths.
    """
    kept = [name for name in features.split.kept() if name not in features.split.tokens]
    parts = list(features.parts.values())
    return Matrix(
        torch.cat([flat(part.columns, kept) for part in parts]),
        torch.cat([torch.from_numpy(part.split.labels) for part in parts]),
        [part.split.inputs.name(i) for part in parts for i in range(len(part.split))],
        [name for name, part in features.parts.items() for _ in range(len(part.split))],
        data.label_names,
    )


def _together(work: Callable[[], Report]) -> list[Report]:
    """Do one process's share and learn of everybody's; an error of one is raised by all, so that none waits for ever."""
    try:
        mine: Report | HftlError = work()
    except HftlError as error:
        mine = error
    everybody: list[Report | HftlError] = gather_object([mine]) if PartialState().num_processes > 1 else [mine]
    for theirs in everybody:
        if isinstance(theirs, HftlError):
            raise theirs
    return [report for report in everybody if isinstance(report, Report)]


def _digested(split: DataSplit, index: StatIndex, on_bad_row: str) -> tuple[Part, list[BadRowError]]:
    digests, unread = digest_rows(split.inputs, index)
    if unread and on_bad_row == "error":
        raise next(iter(unread.values()))
    return _without(Part(split, digests), unread), list(unread.values())


def _without_all(parts: Sequence[Part], bad: Mapping[int, BadRowError]) -> list[Part]:
    """The parts without bad rows, which are numbered through all of them; copies of a bad row are as bad."""
    digests = np.concatenate([part.digests for part in parts])
    named = {digests[row].tobytes() for row in bad}
    if not named:
        return list(parts)
    return [_without(part, {i: None for i, row in enumerate(part.digests) if row.tobytes() in named}) for part in parts]


def _without(part: Part, bad: Mapping[int, object]) -> Part:
    if not bad:
        return part
    good = np.setdiff1d(np.arange(len(part.digests)), list(bad))
    split = DataSplit(part.split.name, part.split.inputs.select(good), part.split.labels[good])
    return Part(split, part.digests[good])


# ── the head ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class TrainedHead:
    """A trained head.

    Attributes:
        logits: (n, C) float32 of the test split.
        export: writes the model folder.
        report: for ``metrics.json``.
        parameters: the head's parameters by the model's names, for fine-tuning to start from; empty for a pooled head.
    """

    logits: Tensor
    export: Callable[[Path], None]
    report: dict[str, Any]
    parameters: dict[str, Tensor] = field(default_factory=dict)


def train_head(
    method: Head,
    backbone: Backbone,
    config: Any,
    features: Features,
    data: Data,
    seed: int,
    device: torch.device,
) -> TrainedHead:
    """Solve the head on stored features.

    Raises:
        SplitError: the head cannot be solved on what this backbone's split keeps.
        ConvergenceError: the objective is not finite.
    """
    split, info = features.split, features.space.info or {}
    if split.kind == "replay":
        raise SplitError(f"{backbone.name}: the head of {info['architecture']} is not linear")
    train = features.parts["train"]
    validation = features.parts.get("validation")
    fit = fit_linear(
        train.columns["features"].to(device),
        torch.from_numpy(train.split.labels).to(device),
        task=data.task,
        num_labels=len(data.label_names),
        strengths=method.strengths,
        folds=method.folds,
        rule=method.rule,
        class_weight=method.class_weight,
        calibrate=method.calibrate,
        validation=_pair(validation, device) if validation else None,
        seed=seed,
    )

    def export(folder: Path) -> None:
        if split.kind == "pooled":
            export_sentence_transformer(backbone, config, split.pooling or "", fit.weight.cpu(), fit.bias.cpu(), folder)
        else:
            export_model(backbone, config, info, parameters, folder)

    parameters = {} if split.kind == "pooled" else fold(split, fit.weight.cpu(), fit.bias.cpu())
    logits = fit.logits(features.parts["test"].columns["features"].to(device)).cpu()
    return TrainedHead(logits, export, fit.report, parameters)


def _pair(part: Part, device: torch.device) -> tuple[Tensor, Tensor]:
    return part.columns["features"].to(device), torch.from_numpy(part.split.labels).to(device)
