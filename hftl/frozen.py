"""The frozen path: from data to the stored features of every split.

Only what is missing from the store is computed; when nothing is, the backbone's weights are never read into memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from hftl.backbones.protocol import Backbone
from hftl.backbones.split import Split
from hftl.data import Data
from hftl.data import Split as DataSplit
from hftl.errors import BadRowError, HftlError
from hftl.export.matrix import Matrix, flat
from hftl.features.compaction import compact
from hftl.features.extract import Report, Rows, digest_rows, extract, open_space
from hftl.features.shard import Digests
from hftl.features.space import MissingRowsError, Space
from hftl.features.stat_index import StatIndex
from hftl.features.store import FeatureStore, cache_root
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
        validation = self.parts.get("validation")
        return replace(
            data,
            train=self.parts["train"].split,
            validation=validation.split if validation else None,
            test=self.parts["test"].split,
        )


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
    rows = Rows([part.split.inputs for part in parts])
    digests = np.concatenate([part.digests for part in parts])
    share = partial(
        extract,
        backbone,
        config,
        views,
        rows,
        digests,
        device=state.device,
        precision=precision,
        rank=state.process_index,
        world=state.num_processes,
        quiet=quiet,
        on_bad_row=on_bad_row,
    )
    computed, met = _extracted(share)
    bad += [met[row] for row in sorted(met)]
    parts = _without_all(parts, met)
    try:
        _gather(space, parts)
    except MissingRowsError:
        # A shard proved damaged only now and was set aside: its rows are computed again, once.
        computed += _extracted(share)[0]
        _gather(space, parts)
    if state.is_main_process:
        for view in views.values():
            compact(view)
    truncated = sum(int(part.columns.pop("truncated").sum()) for part in parts)
    total = sum(len(part.digests) for part in parts)
    counts = {"rows": total, "computed": computed, "reused": total - computed, "truncated": truncated}
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


def _extracted(share: Callable[[], Report]) -> tuple[int, dict[int, BadRowError]]:
    """Do this process's share; how many rows all processes computed, and the bad rows that any of them met."""
    done = _together(share)
    # Each process met its own bad rows; all leave out all of them.
    met = {row: error for report in done for row, error in report.bad.items()}
    return sum(report.computed for report in done), met


def _gather(space: Space, parts: Sequence[Part]) -> None:
    for part in parts:
        part.columns = space.gather(part.digests)


def _together(work: Callable[[], Report]) -> list[Report]:
    """Do one process's share and learn of everybody's; an error of one is raised by all, so that none waits."""
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
    return Part(part.split.select(good), part.digests[good])
