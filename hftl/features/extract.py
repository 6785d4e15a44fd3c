"""From rows to stored features: find what is missing, run the frozen part of the backbone on it, commit it.

The order of work: digests of all rows → which the space knows → the missing ones are encoded ahead in worker threads,
batched, run through the backbone, and committed every few seconds. Whatever is committed is never computed again, by
any run.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hftl.backbones.capture import Capture
from hftl.backbones.protocol import Backbone, Encoded
from hftl.backbones.search import find_split, pooled_split
from hftl.backbones.split import Split
from hftl.backbones.weights import find_rule
from hftl.data import Files, Texts
from hftl.errors import BackboneError, BadRowError
from hftl.features.budget import Ramp, ramp_for, remember
from hftl.features.digests import digest_files, digest_texts
from hftl.features.shard import ColumnSpec, Digests
from hftl.features.space import NonFiniteError, Space
from hftl.features.stat_index import StatIndex
from hftl.features.store import FeatureStore
from hftl.features.values import Ragged
from hftl.matmul import speed_up
from hftl.progress import Progress

# Raised whenever a change here or in hftl.backbones can change a stored number.
EXTRACTOR_VERSION = 1

TEXT_CHUNK = 20_000
COMMIT_SECONDS = 20.0
COMMIT_BYTES = 64 << 20
# How long to measure before saying what the whole will cost, and from how many seconds on that is worth a line.
PREVIEW_AFTER, PREVIEW_FROM = 1.0, 10.0


@dataclass
class Report:
    """What an extraction did.

    Attributes:
        computed: distinct rows that went through the backbone.
        bad: the rows that could not be decoded, by position.
    """

    computed: int = 0
    bad: dict[int, BadRowError] = field(default_factory=dict)


class Rows:
    """The rows of several splits, one after the other."""

    def __init__(self, parts: Sequence[Files | Texts]) -> None:
        self.parts = parts
        self.starts = [0, *itertools.accumulate(len(part) for part in parts)]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, row: int) -> Any:
        """The row's content: encoded bytes, read now, or strings."""
        part, inside = self._where(row)
        return part[inside]

    def name(self, row: int) -> str:
        """The row's name for a person."""
        part, inside = self._where(row)
        return part.name(inside)

    def _where(self, row: int) -> tuple[Files | Texts, int]:
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.parts[number], row - self.starts[number]


def open_space(
    store: FeatureStore,
    backbone: Backbone,
    plugin: Mapping[str, str],
    pooling: str,
    index: StatIndex,
    precision: str = "no",
) -> Space:
    """The feature space of a backbone: named by everything that can change a number in it.

    Args:
        store: where features are kept.
        backbone: the pretrained network.
        plugin: name and version of the package that registered it.
        pooling: ``"native"``, ``"mean"`` or ``"cls"``.
        index: remembers the digests of weight files.
        precision: ``"no"`` for float32 throughout, ``"bf16"`` or ``"fp16"`` for autocast.
    """
    identity = {
        "extractor": EXTRACTOR_VERSION,
        "plugin": dict(plugin),
        **backbone.identity(),
        "weights": None,
        "pooling": pooling,
        "precision": precision,
        "storage": "float32",
        "view": "none",
    }
    if backbone.commit is None:
        files = sorted(set(backbone.weight_files().values()))
        identity["weights"] = [digest.tobytes().hex() for digest in digest_files(files, index)]
    return store.space(identity, backbone.name)


def digest_rows(inputs: Files | Texts, index: StatIndex) -> tuple[Digests, dict[int, BadRowError]]:
    """Name rows by their content.

    Returns:
        uint8 (n, 16), zeros where a row cannot be read; and those rows, by position.
    """
    if isinstance(inputs, Texts):
        return digest_texts(inputs.values), {}
    bad: dict[int, BadRowError] = {}
    rows: list[Any] = []
    for i in range(len(inputs)):
        path = inputs.path(i)
        try:
            rows.append(path if path is not None and path.is_file() else inputs.read(i))
        except BadRowError as error:
            bad[i] = error
            rows.append(b"")
    digests = digest_files(rows, index).copy()
    digests[list(bad)] = 0
    return digests, bad


def extract(
    backbone: Backbone,
    config: Any,
    views: Mapping[str, Space],
    rows: Rows,
    digests: Digests,
    *,
    device: torch.device,
    precision: str = "no",
    rank: int = 0,
    world: int = 1,
    quiet: bool = False,
    on_bad_row: str = "error",
) -> Report:
    """Make sure that every row's features are stored; compute those that are not.

    Args:
        backbone: the pretrained network; its weights are read only if a row is missing.
        config: the configuration to build it with.
        views: for each pooling (``"native"`` for what the model's own head reads, ``"mean"``, ``"cls"``) where its
            features are kept; one pass computes all of them.
        rows: the rows.
        digests: their names, uint8 (n, 16).
        device: where the backbone runs.
        precision: ``"no"`` for float32 throughout, ``"bf16"`` or ``"fp16"`` for autocast.
        rank: this process among ``world``, which take disjoint shares of the missing rows.
        world: number of processes.
        quiet: print no progress.
        on_bad_row: ``"error"`` raises at the first row that cannot be decoded; ``"skip"`` lists it in the report.

    Raises:
        BadRowError: a row cannot be decoded.
        SplitError: the backbone cannot be split exactly.
        StoreError: features cannot be written, or a feature is NaN or Inf.
    """
    lacking = {pooling: ~space.known(digests) for pooling, space in views.items()}
    _, first = np.unique(digests, axis=0, return_index=True)
    wanted = np.logical_or.reduce(list(lacking.values()))[first]
    missing = np.sort(first[wanted])[rank::world]
    work = _Extraction(backbone, config, views, rows, digests, lacking, device, precision, on_bad_row == "skip")
    if len(missing) or any(space.info is None for space in views.values()):
        with Progress("features", len(missing), quiet=quiet or rank > 0) as progress:
            work.run(missing, progress)
    return work.report


class _Extraction:
    """One process's share of an extraction, from encoded rows to committed shards."""

    def __init__(
        self,
        backbone: Backbone,
        config: Any,
        views: Mapping[str, Space],
        rows: Rows,
        digests: Digests,
        lacking: Mapping[str, np.ndarray],
        device: torch.device,
        precision: str,
        skip: bool,
    ) -> None:
        self.backbone = backbone
        self.config = config
        self.views = views
        self.rows = rows
        self.digests = digests
        self.lacking = lacking
        self.device = device
        self.autocast = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self.skip = skip
        self.report = Report()
        space = next(iter(views.values()))
        self.memory = space.path.parent.parent / "batches.json"
        self.key = f"{space.id} {_device_name(device)}"
        self.ramp: Ramp = ramp_for(device, by_tokens=backbone.wants == "text", key=self.key, memory=self.memory)
        self.held: list[int] = []
        self.kept: dict[str, list[dict[str, Any]]] = {pooling: [] for pooling in views}
        self.bytes = 0
        self.committed = time.monotonic()

    def run(self, missing: np.ndarray, progress: Progress) -> None:
        batches = self._batches(missing)
        # The first batch is encoded before the weights are read: nothing but bad rows must not cost a model.
        batch = next(batches, None)
        if batch is None and all(space.info is not None for space in self.views.values()):
            return
        capture = self._prepare()
        started, said = time.monotonic(), False
        try:
            while batch is not None:
                held, encoded = batch
                before = time.monotonic()
                self._hold(held, encoded, self._forward(capture, encoded))
                self.ramp.saw(sum(row.cost for row in encoded), time.monotonic() - before)
                progress.advance(len(held))
                if not said and time.monotonic() - started > PREVIEW_AFTER:
                    said = True
                    self._preview(progress, time.monotonic() - started)
                batch = next(batches, None)
        finally:
            # An interrupt or a bad row must not cost what is already computed.
            self._commit()
        remember(self.ramp, self.key, self.memory)

    def _prepare(self) -> Capture:
        """The model on its device, cut as the spaces record (the cuts are made and proved now where a space is new)."""
        model, head = self.backbone.build(self.config)
        speed_up(model)
        new = {pooling: space for pooling, space in self.views.items() if space.info is None}
        if new:
            probes = self.backbone.probes()
            rule = find_rule(model, head, self.backbone.weight_files())
            for pooling, space in new.items():
                split = _make_split(model, head, probes, pooling)
                columns = {name: _column(dtype, shape) for name, (dtype, shape) in split.kept().items()}
                columns["truncated"] = ColumnSpec("uint8", ())
                info = {
                    "architecture": type(model).__name__,
                    "split": split.to_json(),
                    "weights": rule.to_json() if rule else None,
                }
                space.create(info, columns)
        splits = [Split.from_json((space.info or {})["split"]) for space in self.views.values()]
        return Capture(model.to(self.device), splits, self.autocast)

    def _forward(self, capture: Capture, encoded: Sequence[Encoded]) -> list[dict[str, Any]]:
        """Run a batch and bring what is kept to the CPU; halve it while the device is out of memory."""
        batch = {name: value.to(self.device) for name, value in self.backbone.collate(encoded).items()}
        try:
            return [{name: _to_cpu(value) for name, value in kept.items()} for kept in capture(batch)]
        except torch.OutOfMemoryError as error:
            if len(encoded) == 1:
                raise BackboneError(f"{self.backbone.name}: one row alone does not fit the device's memory") from error
            self.ramp.too_large(sum(row.cost for row in encoded))
        del batch
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(encoded) // 2
        parts = [self._forward(capture, part) for part in (encoded[:half], encoded[half:])]
        return [{name: _join([one[name], other[name]]) for name in one} for one, other in zip(*parts, strict=True)]

    def _hold(self, held: list[int], encoded: Sequence[Encoded], views: list[dict[str, Any]]) -> None:
        truncated = torch.tensor([row.truncated for row in encoded], dtype=torch.uint8)
        self.held += held
        for columns, kept in zip(self.kept.values(), views, strict=True):
            columns.append({**kept, "truncated": truncated})
            self.bytes += sum(_nbytes(value) for value in kept.values())
        if self.bytes >= COMMIT_BYTES or time.monotonic() - self.committed >= COMMIT_SECONDS:
            self._commit()

    def _commit(self) -> None:
        if not self.held:
            return
        held, self.held, self.bytes = np.array(self.held), [], 0
        bad: set[int] = set()
        for pooling, space in self.views.items():
            parts, self.kept[pooling] = self.kept[pooling], []
            columns = {name: _pack([part[name] for part in parts]) for name in parts[0]}
            bad |= self._commit_view(space, held, columns, np.flatnonzero(self.lacking[pooling][held]))
        self.report.computed += len(held) - len(bad)
        self.committed = time.monotonic()

    def _commit_view(
        self, space: Space, held: np.ndarray, columns: dict[str, Tensor | Ragged], chosen: np.ndarray
    ) -> set[int]:
        """Commit the chosen ones of the held rows; returns those whose features are not finite."""
        names = [self.rows.name(int(row)) for row in held[chosen]]
        try:
            space.commit(self.digests[held[chosen]], {n: _take(v, chosen) for n, v in columns.items()}, names)
        except NonFiniteError as error:
            # The good rows are kept; the bad ones are named by the error.
            bad = {int(held[chosen[row]]): names[row] for row in error.rows}
            good = np.array([i for i in chosen if int(held[i]) not in bad], dtype=np.int64)
            space.commit(self.digests[held[good]], {n: _take(v, good) for n, v in columns.items()})
            if not self.skip:
                raise
            for row, name in bad.items():
                self.report.bad[row] = BadRowError(name, "its features are NaN or infinite")
            return set(bad)
        return set()

    def _preview(self, progress: Progress, seconds: float) -> None:
        """Say what the whole will cost, before most of it is done."""
        left = seconds / progress.done * (progress.total - progress.done)
        if left >= PREVIEW_FROM:
            size = self.bytes / progress.done * progress.total / 1e6
            progress.say(f"features: {progress.total:,} rows to compute, about {left:,.0f} s and {size:,.1f} MB")

    # ── batches ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _batches(self, missing: np.ndarray) -> Iterator[tuple[list[int], list[Encoded]]]:
        """Encoded rows in batches: rows of like length together, as many as the budget allows."""
        if self.backbone.wants == "text":
            for start in range(0, len(missing), TEXT_CHUNK):
                chosen = [int(row) for row in missing[start : start + TEXT_CHUNK]]
                encoded = self.backbone.encode([self.rows[row] for row in chosen], [self.rows.name(r) for r in chosen])
                # Longest first: a batch that does not fit shows at once, not at the end.
                order = sorted(range(len(chosen)), key=lambda i: -encoded[i].cost)
                yield from self._filled((chosen[i], encoded[i]) for i in order)
        else:
            yield from self._filled(self._decoded(missing))

    def _filled(self, rows: Iterator[tuple[int, Encoded]]) -> Iterator[tuple[list[int], list[Encoded]]]:
        """Rows gathered until the budget is full, padding included."""
        batch: list[tuple[int, Encoded]] = []
        longest = 0
        for row, encoded in rows:
            longest = max(longest, encoded.cost)
            if batch and longest * (len(batch) + 1) > self.ramp.budget:
                yield _unzip(batch)
                batch, longest = [], encoded.cost
            batch.append((row, encoded))
        if batch:
            yield _unzip(batch)

    def _decoded(self, missing: np.ndarray) -> Iterator[tuple[int, Encoded]]:
        """Files decoded and preprocessed in worker threads, a bounded number ahead; bad ones raised or reported."""
        for row, done in _ahead(self._encode_file, missing):
            if isinstance(done, Encoded):
                yield row, done
            elif self.skip:
                self.report.bad[row] = done
            else:
                raise done

    def _encode_file(self, row: int) -> Encoded | BadRowError:
        try:
            return self.backbone.encode([self.rows[row]], [self.rows.name(row)])[0]
        except BadRowError as error:
            return error


def _make_split(model: nn.Module, head: set[str], probes: Sequence[Mapping[str, Tensor]], pooling: str) -> Split:
    return find_split(model, head, probes) if pooling == "native" else pooled_split(model, head, probes, pooling)


def _ahead(work: Callable[[int], Any], rows: np.ndarray) -> Iterator[tuple[int, Any]]:
    """Do ``work`` on each row in worker threads, a bounded number of rows ahead; results in order."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[int, Future[Any]]] = deque()
        try:
            for row in rows:
                waiting.append((int(row), pool.submit(work, int(row))))
                if len(waiting) > 32 * workers:
                    done, future = waiting.popleft()
                    yield done, future.result()
            for done, future in waiting:
                yield done, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _unzip(batch: Sequence[tuple[int, Encoded]]) -> tuple[list[int], list[Encoded]]:
    return [row for row, _ in batch], [encoded for _, encoded in batch]


def _column(dtype: str, shape: Sequence[int]) -> ColumnSpec:
    ragged = bool(shape) and shape[0] == -1
    return ColumnSpec(dtype, tuple(shape[1:] if ragged else shape), ragged)


# A kept column is a tensor (n, …), or while it is ragged a list of n tensors.
Kept = Tensor | list[Tensor]


def _to_cpu(value: Kept) -> Kept:
    return [v.cpu() for v in value] if isinstance(value, list) else value.cpu()


def _nbytes(value: Kept) -> int:
    return sum(v.nbytes for v in value) if isinstance(value, list) else value.nbytes


def _join(parts: Sequence[Kept]) -> Kept:
    tensors = [part for part in parts if isinstance(part, Tensor)]
    return torch.cat(tensors) if tensors else [value for part in parts for value in part]


def _pack(parts: Sequence[Kept]) -> Tensor | Ragged:
    joined = _join(parts)
    if isinstance(joined, Tensor):
        return joined
    return Ragged(torch.cat(joined), torch.tensor([len(value) for value in joined], dtype=torch.int64))


def _take(value: Tensor | Ragged, rows: np.ndarray) -> Tensor | Ragged:
    if isinstance(value, Tensor):
        return value[torch.from_numpy(rows)]
    parts = torch.split(value.values, value.lengths.tolist())
    empty = value.values[:0]
    return Ragged(torch.cat([empty, *(parts[i] for i in rows)]), value.lengths[torch.from_numpy(rows)])
