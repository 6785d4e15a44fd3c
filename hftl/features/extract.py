"""From rows to stored features: find what is missing, run the frozen part of the backbone on it, commit it.

The order of work: digests of all rows → which the space knows → the missing ones are encoded ahead in worker threads,
batched, run through the backbone, and committed every few seconds. Whatever is committed is never computed again, by any run.
"""

from __future__ import annotations

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

from hftl.backbones.protocol import Backbone, Encoded
from hftl.backbones.split import Split, capture, find_split, pooled_split
from hftl.backbones.weights import find_rule
from hftl.data import Files, Texts
from hftl.errors import BackboneError, BadRowError, StoreError
from hftl.features.digests import digest_files, digest_texts
from hftl.features.shard import ColumnSpec, Digests
from hftl.features.space import NonFiniteError, Space
from hftl.features.stat_index import StatIndex
from hftl.features.store import FeatureStore
from hftl.features.values import Ragged
from hftl.progress import Progress

# Raised whenever a change here or in hftl.backbones.split can change a stored number.
EXTRACTOR_VERSION = 1

TEXT_CHUNK = 20_000
COMMIT_SECONDS = 20.0
COMMIT_BYTES = 64 << 20


@dataclass(frozen=True)
class Budget:
    """How much goes into one batch on a device: tokens where rows differ in length, else rows."""

    tokens: int
    rows: int

    @classmethod
    def of(cls, device: torch.device) -> Budget:
        """Batches that fit a CPU's caches, or keep an accelerator busy."""
        return cls(1024, 16) if device.type == "cpu" else cls(32_768, 128)


@dataclass
class Report:
    """What an extraction did.

    Attributes:
        rows: rows asked for.
        computed: distinct rows that went through the backbone.
        truncated: rows that were longer than the model reads (all rows asked for, computed now or before).
        bad: names of the rows that could not be decoded, and why, by position.
    """

    rows: int = 0
    computed: int = 0
    truncated: int = 0
    bad: dict[int, BadRowError] = field(default_factory=dict)


def open_space(
    store: FeatureStore, backbone: Backbone, plugin: Mapping[str, str], pooling: str, index: StatIndex
) -> Space:
    """The feature space of a backbone: named by everything that can change a number in it."""
    identity = {
        "extractor": EXTRACTOR_VERSION,
        "plugin": dict(plugin),
        **backbone.identity(),
        "weights": None,
        "pooling": pooling,
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
    space: Space,
    inputs: Files | Texts,
    digests: Digests,
    *,
    pooling: str = "native",
    device: torch.device,
    rank: int = 0,
    world: int = 1,
    quiet: bool = False,
    on_bad_row: str = "error",
) -> Report:
    """Make sure that every row's features are stored; compute those that are not.

    Args:
        backbone: the pretrained network; its weights are read only if a row is missing.
        config: the configuration to build it with.
        space: where features are kept.
        inputs: the rows.
        digests: their names, uint8 (n, 16).
        pooling: ``"native"`` for what the model's own head reads, ``"mean"`` or ``"cls"``.
        device: where the backbone runs.
        rank: this process among ``world``, which take disjoint shares of the missing rows.
        world: number of processes.
        quiet: print no progress.
        on_bad_row: ``"error"`` raises at the first row that cannot be decoded; ``"skip"`` lists it in the report.

    Raises:
        BadRowError: a row cannot be decoded.
        SplitError: the backbone cannot be split exactly.
        StoreError: features cannot be written, or a feature is NaN or Inf.
    """
    report = Report(rows=len(inputs))
    known = space.known(digests)
    _, first = np.unique(digests, axis=0, return_index=True)
    missing = np.sort(first[~known[first]])[rank::world]
    if space.info is None or len(missing):
        with Progress("features", len(missing), quiet=quiet or rank > 0) as progress:
            _Extraction(backbone, config, space, inputs, digests, pooling, device, on_bad_row, report).run(
                missing, progress
            )
    return report


class _Extraction:
    """One process's share of an extraction, from encoded rows to committed shards."""

    def __init__(
        self,
        backbone: Backbone,
        config: Any,
        space: Space,
        inputs: Files | Texts,
        digests: Digests,
        pooling: str,
        device: torch.device,
        on_bad_row: str,
        report: Report,
    ) -> None:
        self.backbone = backbone
        self.config = config
        self.space = space
        self.inputs = inputs
        self.digests = digests
        self.pooling = pooling
        self.device = device
        self.skip = on_bad_row == "skip"
        self.report = report
        self.budget = Budget.of(device)
        self.rows: list[int] = []
        self.kept: list[dict[str, Any]] = []
        self.bytes = 0
        self.committed = time.monotonic()

    def run(self, missing: Sequence[int] | np.ndarray, progress: Progress) -> None:
        batches = self._batches(missing)
        # The first batch is encoded before the weights are read: nothing but bad rows must not cost a model.
        first = next(batches, None)
        if first is None and self.space.info is not None:
            return
        model, split = self._prepare()
        try:
            while first is not None:
                rows, encoded = first
                self._add(rows, encoded, self._forward(model, split, encoded))
                progress.advance(len(rows))
                first = next(batches, None)
        finally:
            # An interrupt or a bad row must not cost what is already computed.
            self._commit(split)

    def _prepare(self) -> tuple[nn.Module, Split]:
        """The model on its device, and the split that the space records (made and proved now if the space is new)."""
        model, head = self.backbone.build(self.config)
        if self.space.info is None:
            probes = self.backbone.probes()
            if self.pooling == "native":
                split = find_split(model, head, probes)
            else:
                split = pooled_split(model, head, probes, self.pooling)
            columns = {name: _column(dtype, shape) for name, (dtype, shape) in split.kept().items()}
            columns["truncated"] = ColumnSpec("uint8", ())
            rule = find_rule(model, head, self.backbone.weight_files())
            info = {
                "architecture": type(model).__name__,
                "split": split.to_json(),
                "weights": rule.to_json() if rule else None,
            }
            self.space.create(info, columns)
        split = Split.from_json((self.space.info or {})["split"])
        return model.to(self.device), split

    def _forward(self, model: nn.Module, split: Split, encoded: Sequence[Encoded]) -> dict[str, Any]:
        """Run a batch; halve it while the device is out of memory."""
        batch = {name: value.to(self.device) for name, value in self.backbone.collate(encoded).items()}
        try:
            return {name: _to_cpu(value) for name, value in capture(model, split, batch).items()}
        except torch.OutOfMemoryError as error:
            if len(encoded) == 1:
                raise BackboneError(
                    f"{self.backbone.name}: one row alone does not fit the device's memory"
                ) from error
            del batch
            torch.cuda.empty_cache()
            half = len(encoded) // 2
            self.budget = Budget(max(self.budget.tokens // 2, 1), max(self.budget.rows // 2, 1))
        parts = [self._forward(model, split, part) for part in (encoded[:half], encoded[half:])]
        return {name: _join([part[name] for part in parts]) for name in parts[0]}

    def _add(self, rows: list[int], encoded: Sequence[Encoded], kept: dict[str, Any]) -> None:
        kept["truncated"] = torch.tensor([row.truncated for row in encoded], dtype=torch.uint8)
        self.rows += rows
        self.kept.append(kept)
        self.bytes += sum(_nbytes(value) for value in kept.values())
        if self.bytes >= COMMIT_BYTES or time.monotonic() - self.committed >= COMMIT_SECONDS:
            self._commit(None)

    def _commit(self, _split: Split | None) -> None:
        if not self.rows:
            return
        columns = {name: _pack([kept[name] for kept in self.kept]) for name in self.kept[0]}
        names = [self.inputs.name(row) for row in self.rows]
        digests = self.digests[self.rows]
        rows, self.rows, self.kept, self.bytes = self.rows, [], [], 0
        try:
            self.space.commit(digests, columns, names)
        except NonFiniteError as error:
            # Keep the good rows; the bad one is named by the error.
            good = np.setdiff1d(np.arange(len(rows)), error.rows)
            self.space.commit(
                digests[good], {name: _take(value, good) for name, value in columns.items()}, None
            )
            if not self.skip:
                raise
            for row in error.rows:
                self.report.bad[rows[row]] = BadRowError(names[row], "its features are NaN or infinite")
            rows = [rows[i] for i in good]
        self.report.computed += len(rows)
        self.committed = time.monotonic()

    # ── batches ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _batches(self, missing: Sequence[int] | np.ndarray) -> Iterator[tuple[list[int], list[Encoded]]]:
        """Encoded rows in batches: rows of like length together, as many as the budget allows."""
        if isinstance(self.inputs, Texts):
            for start in range(0, len(missing), TEXT_CHUNK):
                rows = [int(row) for row in missing[start : start + TEXT_CHUNK]]
                encoded = self.backbone.encode(
                    [self.inputs[row] for row in rows], [self.inputs.name(r) for r in rows]
                )
                # Longest first: a batch that does not fit shows at once, not at the end.
                order = sorted(range(len(rows)), key=lambda i: -encoded[i].cost)
                yield from self._by_tokens([(rows[i], encoded[i]) for i in order])
            return
        batch: list[tuple[int, Encoded]] = []
        for row, done in _ahead(self._encode_file, missing):
            if isinstance(done, BadRowError):
                self._bad(row, done)
                continue
            batch.append((row, done))
            if len(batch) >= self.budget.rows:
                yield _unzip(batch)
                batch = []
        if batch:
            yield _unzip(batch)

    def _by_tokens(self, rows: Sequence[tuple[int, Encoded]]) -> Iterator[tuple[list[int], list[Encoded]]]:
        start = 0
        while start < len(rows):
            longest = max(rows[start][1].cost, 1)
            stop = start + max(self.budget.tokens // longest, 1)
            yield _unzip(rows[start:stop])
            start = stop

    def _encode_file(self, row: int) -> Encoded | BadRowError:
        try:
            return self.backbone.encode([self.inputs.read(row)], [self.inputs.name(row)])[0]  # type: ignore[union-attr]
        except BadRowError as error:
            return error

    def _bad(self, row: int, error: BadRowError) -> None:
        if not self.skip:
            raise error
        self.report.bad[row] = error


def _ahead(work: Callable[[int], Any], rows: Sequence[int] | np.ndarray) -> Iterator[tuple[int, Any]]:
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


def _unzip(batch: Sequence[tuple[int, Encoded]]) -> tuple[list[int], list[Encoded]]:
    return [row for row, _ in batch], [encoded for _, encoded in batch]


def _column(dtype: str, shape: Sequence[int]) -> ColumnSpec:
    ragged = bool(shape) and shape[0] == -1
    return ColumnSpec(dtype, tuple(shape[1:] if ragged else shape), ragged)


def _to_cpu(value: Any) -> Any:
    return [v.cpu() for v in value] if isinstance(value, list) else value.cpu()


def _join(parts: Sequence[Any]) -> Any:
    return sum(parts, []) if isinstance(parts[0], list) else torch.cat(list(parts))


def _nbytes(value: Any) -> int:
    return sum(v.nbytes for v in value) if isinstance(value, list) else value.nbytes


def _pack(parts: Sequence[Any]) -> Tensor | Ragged:
    joined = _join(parts)
    if not isinstance(joined, list):
        return joined
    return Ragged(torch.cat(joined), torch.tensor([len(v) for v in joined], dtype=torch.int64))


def _take(value: Tensor | Ragged, rows: np.ndarray) -> Tensor | Ragged:
    if isinstance(value, Ragged):
        parts = value.values.split(value.lengths.tolist())
        return Ragged(torch.cat([parts[i] for i in rows]), value.lengths[rows])
    return value[torch.from_numpy(rows)]
