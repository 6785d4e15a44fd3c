"""Extraction, from rows to stored features: what is missing goes through the frozen part of the backbone.

The order of work: digests of all rows → which the space knows → the missing ones are encoded ahead by other threads or
processes, batched, run through the backbone, and committed every few seconds. Whatever is committed is never computed
again, by any run.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hftl.backbones.batching import batch_groups, on_device, row_counts
from hftl.backbones.protocol import Encoded, Target
from hftl.data import Files, Texts
from hftl.decoding import Change, decoder_of
from hftl.errors import BackboneError, BadRowError, CutError, HftlError, RecipeError, StoreError
from hftl.frozen.budget import Ramp, ramp_for, remember, within_budget
from hftl.frozen.depths import Keeping, Models
from hftl.frozen.recheck import AUTOCAST, OTHER_RUN, SAME_RUN, check_again
from hftl.frozen.rounding import rounded
from hftl.frozen.view import Content, View, equal_length_space
from hftl.parallel import Process
from hftl.progress import Progress
from hftl.store.digests import digest_texts
from hftl.store.shard import Digests
from hftl.store.space import NonFiniteError, Space
from hftl.store.stat_index import StatIndex, digest_files
from hftl.store.store import FeatureStore
from hftl.store.values import Ragged, rows_of_column
from hftl.wording import named_error

# Texts are tokenised and sorted by length in chunks: long enough to fill batches evenly, short enough to start soon.
TEXT_CHUNK = 20_000
# A kill costs at most what was computed since the last commit; a commit costs two fsyncs.
COMMIT_SECONDS = 20.0
COMMIT_BYTES = 64 << 20
# How long to measure before saying what the whole will cost, and from how many seconds on that is worth a line.
PREVIEW_AFTER, PREVIEW_FROM = 1.0, 10.0
# Decoded pictures that wait for the device, for each worker.
DECODED_AHEAD = 32


@dataclass
class ExtractReport:
    """What an extraction did.

    Attributes:
        computed: distinct rows that went through the backbone.
        bad: the rows that could not be decoded, by position.
        rounding: the largest relative error of a number that was rounded for the store.
    """

    computed: int = 0
    bad: dict[int, BadRowError] = field(default_factory=dict)
    rounding: float = 0.0


class Rows(Protocol):
    """Rows that can be read one by one."""

    def __getitem__(self, row: int, /) -> Any:
        """The row's content: encoded bytes, or strings."""

    def name(self, row: int, /) -> str:
        """The row's name for a person."""

    def change(self, row: int, /) -> Change | None:
        """What makes of that content the one to encode; None where it is that already."""


class Extractor(Protocol):
    """What sees to it that rows' features are stored, as `extract` does."""

    def __call__(
        self,
        target: Target,
        views: dict[View, Space],
        rows: ConcatRows,
        digests: Digests,
        process: Process,
        *,
        store: FeatureStore,
        beside: dict[View, Space] | None = None,
        quiet: bool = False,
        on_bad_row: str = "error",
        among: np.ndarray | None = None,
    ) -> ExtractReport:
        """See `extract`."""


class ConcatRows:
    """The rows of several splits, one after the other."""

    def __init__(self, parts: Sequence[Files | Texts]) -> None:
        self.parts = parts
        self.starts = [0, *itertools.accumulate(len(part) for part in parts)]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, row: int) -> Any:
        """The row's content: encoded bytes, read now, or strings."""
        part, inside = self.where(row)
        return part[inside]

    def name(self, row: int) -> str:
        """The row's name for a person."""
        part, inside = self.where(row)
        return part.name(inside)

    def change(self, row: int) -> None:
        """Rows are encoded as they are."""

    def where(self, row: int) -> tuple[Files | Texts, int]:
        """The part that has a row, and its place there."""
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.parts[number], row - self.starts[number]


def digest_rows(inputs: Files | Texts, index: StatIndex) -> tuple[Digests, dict[int, BadRowError]]:
    """Name rows by their content.

    Returns:
        uint8 (n, 16), zeros where a row cannot be read; and those rows, by position.
    """
    if isinstance(inputs, Texts):
        return digest_texts(inputs), {}
    bad: dict[int, BadRowError] = {}
    rows: list[Any] = []
    for i in range(len(inputs)):
        path = inputs.path(i)
        try:
            if (part := inputs.part(i)) is not None:
                rows.append(part)
            else:
                rows.append(path if path is not None and path.is_file() else inputs.read(i))
        except BadRowError as error:
            bad[i] = error
            rows.append(b"")
    digests = digest_files(rows, index).copy()
    digests[list(bad)] = 0
    return digests, bad


def extract(
    target: Target,
    views: dict[View, Space],
    rows: Rows,
    digests: Digests,
    process: Process,
    *,
    store: FeatureStore,
    beside: dict[View, Space] | None = None,
    quiet: bool = False,
    on_bad_row: str = "error",
    among: np.ndarray | None = None,
) -> ExtractReport:
    """Make sure that every row's features are stored; compute those that are not.

    Args:
        target: the pretrained network; its weights are read only if a row is missing.
        views: for each view where its features are kept; one pass computes all of them, so they share a precision.
            Where the model turns out to need batches of equal length, a new space is exchanged for one that says so.
        rows: the rows.
        digests: their names, uint8 (n, 16).
        process: where the backbone runs; processes take disjoint shares of the missing rows.
        store: where the spaces are, and what suits a device is remembered.
        beside: more views, for which no row is computed; what is computed anyway is stored for them too.
        quiet: print no progress.
        on_bad_row: ``"error"`` raises at the first row that cannot be decoded; ``"skip"`` lists it in the report.
        among: the rows to look at, bool (n,); None for all of them.

    Raises:
        BadRowError: a row cannot be decoded.
        CutError: the backbone cannot be cut exactly.
        RecipeError: a number is too large for the type that it is to be stored in.
        StoreError: features cannot be written, or a feature is NaN or Inf.
    """
    beside = beside or {}
    lacking = {view: ~space.known(digests) for view, space in (views | beside).items()}
    missing = rows_to_compute([lacking[view] for view in views], digests, among)[process.rank :: process.world]
    skip = on_bad_row == "skip"
    work = _Extraction(target, views, rows, digests, lacking, process.device, beside=beside, store=store, skip=skip)
    if len(missing) or any(space.info is None for space in views.values()):
        with Progress("features", len(missing), quiet=quiet or process.rank > 0) as progress:
            work.run(missing, progress)
    return work.report


def rows_to_compute(lacking: Sequence[np.ndarray], digests: Digests, among: np.ndarray | None = None) -> np.ndarray:
    """The rows to compute, int64, ascending: copies of a row share its digest and are computed once.

    Args:
        lacking: for each view, which rows its space lacks, bool (n,).
        digests: the rows' names, uint8 (n, 16).
        among: the rows to look at, bool (n,); None for all of them.
    """
    _, first = np.unique(digests, axis=0, return_index=True)
    wanted = np.logical_or.reduce(lacking)[first]
    if among is not None:
        wanted &= among[first]
    return np.sort(first[wanted])


class _Extraction:
    """One process's share of an extraction, from encoded rows to committed shards."""

    def __init__(
        self,
        target: Target,
        views: dict[View, Space],
        rows: Rows,
        digests: Digests,
        lacking: Mapping[View, np.ndarray],
        device: torch.device,
        *,
        beside: dict[View, Space],
        store: FeatureStore,
        skip: bool,
    ) -> None:
        self.target = target
        self.backbone = target.backbone
        self.decoder = decoder_of(target.backbone)
        self.views = views
        self.beside = beside
        # What is computed: the views that were asked for, and of the others those that the same pass gives.
        self.filled: dict[View, Space] = {}
        self.rows = rows
        self.digests = digests
        self.lacking = lacking
        self.device = device
        self.store = store
        self.memory = store.root / "batches.json"
        self.equal_lengths = False
        self.skip = skip
        self.report = ExtractReport()
        self.key = f"{next(iter(views.values())).id} {device_name(device)}"
        by_tokens = self.backbone.wants == "text"
        self.ramp: Ramp = ramp_for(device, by_tokens=by_tokens, key=self.key, memory=self.memory)
        # Rows that went through the model and are not committed yet, and what each view keeps of them.
        self.held: list[int] = []
        self.kept: dict[View, list[dict[str, Any]]] = {}
        self.bytes = 0
        self.committed = time.monotonic()

    def run(self, missing: np.ndarray, progress: Progress) -> None:
        batches = self._batches(missing, progress)
        # The first batch is encoded before the weights are read: nothing but bad rows must not cost a model.
        batch = next(batches, None)
        if batch is None and all(space.info is not None for space in self.views.values()):
            return
        capture = self._prepare()
        self._check_stored(capture)
        started, previewed, asked_again = time.monotonic(), False, False
        try:
            while batch is not None:
                held, encoded = batch
                before = time.monotonic()
                kept = self._kept(capture, held, encoded)
                good = [i for i, row in enumerate(held) if row not in self.report.bad]
                if good and not asked_again:
                    # Before anything is stored.
                    asked_again = True
                    self._check_same(capture, held[good[0]], encoded[good[0]], kept)
                self._hold([held[i] for i in good], [encoded[i] for i in good], kept)
                cost = sum(row.cost for row in encoded)
                self.ramp.saw(cost, time.monotonic() - before)
                progress.advance(len(held), work=cost)
                if not previewed and time.monotonic() - started > PREVIEW_AFTER:
                    previewed = True
                    self._preview(progress)
                batch = next(batches, None)
        finally:
            # An interrupt or a bad row must not cost what is already computed.
            self._commit()
        remember(self.ramp, self.key, self.memory)

    def _prepare(self) -> Keeping:
        """What runs the model on its device, cut as the spaces record (new cuts are made and proved now)."""
        new = {view: space for view, space in self.views.items() if space.info is None}
        new_beside = any(space.info is None for space in self.beside.values())
        models = Models(self.target, self.views | self.beside, new=bool(new) or new_beside)
        for view, space in new.items():
            # Proved before the space exists: no row is ever stored under a cut that does not replay the model.
            content = models.content(view, self.device)
            if content.equal_lengths:
                space = self.views[view] = equal_length_space(self.store, space)
            space.create(content.as_info(), content.columns(view.storage))
        contents = {view: Content.of(space) for view, space in self.views.items()}
        # One pass computes all views, so what one of them needs all get.
        self.equal_lengths = any(content.equal_lengths for content in contents.values())
        self.filled = self.views | self._joining(models)
        self.kept = {view: [] for view in self.filled}
        return models.captured({view: Content.of(space) for view, space in self.filled.items()}, self.device)

    def _joining(self, models: Models) -> dict[View, Space]:
        """What the same pass gives, in the same batches, beside what was asked for."""
        joining = {}
        for view, space in self.beside.items():
            try:
                content = Content.of(space) if space.info is not None else models.content(view, self.device)
            except CutError:
                # Nobody asked for it.
                continue
            if bool(content.equal_lengths) != self.equal_lengths:
                continue
            if space.info is None:
                space = equal_length_space(self.store, space) if self.equal_lengths else space
                space.create(content.as_info(), content.columns(view.storage))
            joining[view] = space
        return joining

    def _check_same(self, capture: Keeping, row: int, encoded: Encoded, kept: list[dict[str, Any]]) -> None:
        """Ask for the first good row of a batch again, alone."""
        # A row that the model refuses alone is bad, and has nothing that could be compared.
        for first, again in zip(kept, self._kept(capture, [row], [encoded]), strict=False):
            check_again(
                self.backbone.name,
                {name: value[:1] for name, value in first.items()},
                again,
                SAME_RUN if next(iter(self.views)).autocast is None else AUTOCAST,
                "a moment before",
            )

    def _check_stored(self, capture: Keeping) -> None:
        """Ask for one row again that an earlier run stored, where there is one."""
        for number, (view, space) in enumerate(self.filled.items()):
            # Not one of a lender's, whose rows a spot check has seen.
            known = np.flatnonzero(~self.lacking[view] & space.owned(self.digests) & self.digests.any(1))
            if not len(known):
                continue
            row = int(known[0])
            # A shard may turn out to be damaged, a file to be gone; both are found out where they matter.
            with suppress(StoreError, BadRowError):
                stored = space.gather(self.digests[row : row + 1])
                encoded = self._encoded(row)
                tolerance = OTHER_RUN if next(iter(self.views)).autocast is None else AUTOCAST
                for again in self._kept(capture, [row], encoded)[number : number + 1]:
                    check_again(self.backbone.name, stored, again, tolerance, f"an earlier run stored in {space.id}")
            return

    def _kept(self, capture: Keeping, held: Sequence[int], encoded: Sequence[Encoded]) -> list[dict[str, Any]]:
        """What each view keeps of rows, on the CPU; in batches without padding where the model needs that."""
        groups = batch_groups(encoded, equal_lengths=self.equal_lengths)
        parts = [self._forward(capture, [held[i] for i in group], [encoded[i] for i in group]) for group in groups]
        order = np.argsort([i for group in groups for i in group if held[i] not in self.report.bad])
        return [{name: _reordered(value, order) for name, value in columns.items()} for columns in _joined(parts)]

    def _forward(self, capture: Keeping, held: Sequence[int], encoded: Sequence[Encoded]) -> list[dict[str, Any]]:
        """Run a batch; halve it while the device is out of memory, or the model refuses it.

        Some models refuse a batch for one of its rows, or rows that cannot stand beside each other: what they say of a
        row alone is about that row.
        """
        batch: dict[str, Tensor] = {}
        try:
            batch = on_device(self.backbone.collate(encoded), self.device)
            if (made := row_counts(batch)) != {len(encoded)}:
                raise BackboneError(
                    f"{self.backbone.name}: collate made {max(made):,} rows of {len(encoded):,}; "
                    "it has to give one row for each"
                )
            return [{name: _to_cpu(value) for name, value in kept.items()} for kept in capture(batch)]
        except torch.OutOfMemoryError as error:
            if len(encoded) == 1:
                raise BackboneError(f"{self.backbone.name}: one row alone does not fit the device's memory") from error
            self.ramp.too_large(sum(row.cost for row in encoded))
        except HftlError:
            raise
        except Exception as error:
            if len(encoded) == 1:
                name = self.rows.name(held[0])
                bad = BadRowError(name, f"{self.backbone.name} cannot read it: {named_error(error)[:200]}")
                if not self.skip:
                    raise bad from error
                self.report.bad[held[0]] = bad
                return []
        del batch
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(encoded) // 2
        halves = (slice(half), slice(half, len(encoded)))
        return _joined([self._forward(capture, held[part], encoded[part]) for part in halves])

    def _hold(self, held: list[int], encoded: Sequence[Encoded], views: list[dict[str, Any]]) -> None:
        if not held:
            return
        truncated = torch.tensor([row.truncated for row in encoded], dtype=torch.uint8)
        # All of them first: where one cannot be stored, what is held stays whole.
        stored = [self._as_stored(view, held, kept) for view, kept in zip(self.kept, views, strict=True)]
        self.held += held
        for columns, short in zip(self.kept.values(), stored, strict=True):
            columns.append({**short, "truncated": truncated})
            self.bytes += sum(_nbytes(value) for value in short.values())
        if self.bytes >= COMMIT_BYTES or time.monotonic() - self.committed >= COMMIT_SECONDS:
            self._commit()

    def _as_stored(self, view: View, held: Sequence[int], kept: Mapping[str, Kept]) -> dict[str, Kept]:
        """What a view keeps of rows in the types of its space."""
        short: dict[str, Kept] = {}
        for name, value in kept.items():
            dtype = getattr(torch, self.filled[view].columns[name].dtype)
            if isinstance(value, Tensor):
                short[name], error = rounded(value, dtype)
            else:
                rows = [rounded(each, dtype) for each in value]
                short[name], error = [row for row, _ in rows], max(each for _, each in rows)
            if view in self.beside:
                # Nobody asked for it: what is too large for the type is not stored.
                continue
            if not math.isfinite(error):
                row = next(i for i, each in enumerate(value) if not math.isfinite(rounded(each[None], dtype)[1]))
                raise RecipeError(
                    f"{self.rows.name(held[row])}: its numbers reach {float(value[row].abs().max()):,.0f}, and "
                    f"{view.storage} holds {torch.finfo(dtype).max:,.0f} at most: take --storage bf16, or float32"
                )
            self.report.rounding = max(self.report.rounding, error)
        return short

    def _commit(self) -> None:
        if not self.held:
            return
        held, self.held, self.bytes = np.array(self.held), [], 0
        bad: set[int] = set()
        for view in self.filled:
            parts, self.kept[view] = self.kept[view], []
            columns = {name: _pack([part[name] for part in parts]) for name in parts[0]}
            bad |= self._commit_view(view, held, columns, np.flatnonzero(self.lacking[view][held]))
        self.report.computed += len(held) - len(bad)
        self.committed = time.monotonic()

    def _commit_view(
        self, view: View, held: np.ndarray, columns: dict[str, Tensor | Ragged], chosen: np.ndarray
    ) -> set[int]:
        """Commit the chosen ones of the held rows; returns those asked for whose features are not finite."""
        space = self.filled[view]
        names = [self.rows.name(int(row)) for row in held[chosen]]
        try:
            space.commit(self.digests[held[chosen]], {n: rows_of_column(v, chosen) for n, v in columns.items()}, names)
        except NonFiniteError as error:
            # The good rows are kept; the bad ones are named by the error.
            bad = {int(held[chosen[row]]): names[row] for row in error.rows}
            good = np.array([i for i in chosen if int(held[i]) not in bad], dtype=np.int64)
            space.commit(self.digests[held[good]], {n: rows_of_column(v, good) for n, v in columns.items()})
            if view in self.beside:
                return set()
            if not self.skip:
                plugin = space.identity.get("plugin")
                who = f" (plugin {plugin['name']!r})" if isinstance(plugin, dict) and "name" in plugin else ""
                raise NonFiniteError(f"{self.backbone.name}{who}: {error}", error.rows) from error
            for row, name in bad.items():
                self.report.bad[row] = BadRowError(name, "its features are NaN or infinite")
            return set(bad)
        return set()

    def _preview(self, progress: Progress) -> None:
        """Say what the whole will cost, before most of it is done."""
        left, total = progress.seconds_left, progress.total or 0
        if left is not None and left >= PREVIEW_FROM:
            size = self.bytes / progress.done * total / 1e6
            progress.say(f"features: {total:,} rows to compute, about {left:,.0f} s and {size:,.1f} MB")

    # ── batches ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _batches(self, missing: np.ndarray, progress: Progress) -> Iterator[tuple[list[int], list[Encoded]]]:
        """Encoded rows in batches: rows of like length together, as many as the budget allows."""
        cost = 0
        if self.backbone.wants == "text":
            for start in range(0, len(missing), TEXT_CHUNK):
                chosen = [int(row) for row in missing[start : start + TEXT_CHUNK]]
                encoded = self.backbone.encode([self.rows[row] for row in chosen], [self.rows.name(r) for r in chosen])
                # Later chunks are taken to be like the ones before.
                cost += sum(row.cost for row in encoded)
                progress.expect(cost / (start + len(chosen)) * len(missing))
                # Longest first: a batch that does not fit shows at once, not at the end.
                order = sorted(range(len(chosen)), key=lambda i: -encoded[i].cost)
                yield from self._filled((chosen[i], encoded[i]) for i in order)
        else:
            yield from self._filled(self._decoded(missing))

    def _filled(self, rows: Iterator[tuple[int, Encoded]]) -> Iterator[tuple[list[int], list[Encoded]]]:
        """Rows gathered until the budget is full, padding included."""
        for batch in within_budget(rows, lambda row: row[1].cost, self.ramp):
            yield _unzip(batch)

    def _decoded(self, missing: np.ndarray) -> Iterator[tuple[int, Encoded]]:
        """Files decoded and preprocessed elsewhere, a bounded number ahead; bad ones raised or reported."""
        rows = missing.tolist()
        # Closed here: an error would keep the threads until some thread collects garbage, and none of them can wait for
        # its own end.
        with closing(self.decoder.ahead(self._encode_file, rows, self.decoder.threads, DECODED_AHEAD)) as encoded:
            for row, done in zip(rows, encoded, strict=True):
                if isinstance(done, Encoded):
                    yield row, done
                elif self.skip:
                    self.report.bad[row] = done
                else:
                    raise done

    def _encode_file(self, row: int) -> Encoded | BadRowError:
        try:
            return self._encoded(row)[0]
        except BadRowError as error:
            return error

    def _encoded(self, row: int) -> list[Encoded]:
        return self.decoder([self.rows[row]], [self.rows.name(row)], [self.rows.change(row)])


def device_name(device: torch.device) -> str:
    """What a device is called where something that was measured on it is remembered."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _unzip(batch: Sequence[tuple[int, Encoded]]) -> tuple[list[int], list[Encoded]]:
    return [row for row, _ in batch], [encoded for _, encoded in batch]


# A kept column is a tensor (n, …), or while it is ragged a list of n tensors.
Kept = Tensor | list[Tensor]


def _to_cpu(value: Kept) -> Kept:
    return [v.cpu() for v in value] if isinstance(value, list) else value.cpu()


def _nbytes(value: Kept) -> int:
    return sum(v.nbytes for v in value) if isinstance(value, list) else value.nbytes


def _reordered(value: Kept, order: np.ndarray) -> Kept:
    return [value[i] for i in order] if isinstance(value, list) else value[torch.from_numpy(order)]


def _joined(parts: Sequence[list[dict[str, Kept]]]) -> list[dict[str, Kept]]:
    """What each view keeps of several batches; a batch whose only row was bad has nothing."""
    whole = [part for part in parts if part]
    return [
        {name: _join([part[view][name] for part in whole]) for name in columns}
        for view, columns in enumerate(whole[0] if whole else [])
    ]


def _join(parts: Sequence[Kept]) -> Kept:
    tensors = [part for part in parts if isinstance(part, Tensor)]
    return torch.cat(tensors) if tensors else [value for part in parts for value in part]


def _pack(parts: Sequence[Kept]) -> Tensor | Ragged:
    joined = _join(parts)
    if isinstance(joined, Tensor):
        return joined
    return Ragged(torch.cat(joined), torch.tensor([len(value) for value in joined], dtype=torch.int64))
