"""The features of every split, from data to stored columns.

Only what is missing from the store is computed; when nothing is, the backbone's weights are never read into memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hftl.backbones.batching import pads_left
from hftl.backbones.cut.cut import Cut
from hftl.backbones.protocol import Target
from hftl.data import Data, Files, Split, Texts
from hftl.data.scope import OUTSIDE
from hftl.errors import BadRowError
from hftl.frozen.budget import keep_remembered, remembered
from hftl.frozen.extract import ConcatRows, Extractor, ExtractReport, digest_rows, extract
from hftl.frozen.rounding import as_computed
from hftl.frozen.trusted import Trusted, count_borrowed, lend, trusted_spaces
from hftl.frozen.view import Content, View, equal_length_space, open_space, side_by_side
from hftl.parallel import Process, met_everywhere, on_all
from hftl.progress import Progress
from hftl.store.compaction import compact
from hftl.store.shard import Digests
from hftl.store.space import MissingRowsError, Space
from hftl.store.stat_index import StatIndex
from hftl.store.store import FeatureStore
from hftl.store.values import rows_of_column

if TYPE_CHECKING:
    # It brings the heads, which whoever predicts needs not.
    from hftl.frozen.bounded import Memory

Columns = dict[str, Any]


@dataclass
class SplitFeatures:
    """One split of the data with its features.

    Attributes:
        split: the rows and labels, without those that could not be decoded.
        digests: the rows' names, uint8 (n, 16).
        columns: the stored features of the rows, in order; empty where they were left in the store.
        views: those of more views of them, by number from 1; see `hftl.frozen.augmented`.
    """

    split: Split
    digests: Digests
    columns: Columns = field(default_factory=dict)
    views: list[Columns] = field(default_factory=list)


@dataclass
class StoredFeatures:
    """The features of all splits, and what it took to have them.

    Attributes:
        spaces: where they are stored; several where a row's vector is made of as many.
        content: what the space records of the model: how it is cut, how its weights are named.
        splits: by name: ``train``, ``validation`` if there is one, ``test``.
        counts: rows asked for, computed now, reused; truncated rows, or sentences read in windows.
        bad: rows left out, with the reason.
        seconds: wall time.
        outside: of rows that are out of scope, where there are some.
        rounding: the largest relative error of a number that was rounded for the store now.
        trusted: foreign spaces that rows were read from.
        memory: bytes that features may take where they were left in the store, and are read in blocks; None where they
            are in memory.
    """

    spaces: list[Space]
    content: Content
    splits: dict[str, SplitFeatures]
    counts: dict[str, int]
    bad: list[BadRowError]
    seconds: float
    outside: SplitFeatures | None = None
    rounding: float = 0.0
    trusted: list[Trusted] = field(default_factory=list)
    memory: int | None = None

    @property
    def id(self) -> str:
        """What names the features: the space, or the spaces that they are made of."""
        return joined_id(self.spaces)

    @property
    def digests(self) -> dict[str, Digests]:
        """The names (n, 16) of each split's rows."""
        return {name: split.digests for name, split in self.splits.items()}

    def loaded(self, part: SplitFeatures) -> SplitFeatures:
        """A split, or some rows of one, with its columns in memory.

        Raises:
            MissingRowsError: rows are not in the store any more.
        """
        return part if part.columns else replace(part, columns=gathered(self.spaces, part.digests))

    def readable(self, data: Data) -> Data:
        """The data without the rows that could not be decoded."""
        validation = self.splits.get("validation")
        return replace(
            data,
            train=self.splits["train"].split,
            validation=validation.split if validation else None,
            test=self.splits["test"].split,
            outside=self.outside.split if self.outside else None,
        )


def features_of(
    store: FeatureStore,
    target: Target,
    origin: Mapping[str, str],
    data: Data,
    views: Sequence[View],
    *,
    on_bad_row: str = "error",
    quiet: bool = False,
    gather: bool = True,
    trust: Sequence[str] = (),
    memory: Memory | None = None,
    by: Extractor = extract,
) -> StoredFeatures:
    """The features of every row of every split, computed where missing; each process computes its share.

    Args:
        store: where features are kept.
        target: the pretrained network and the configuration to build it with.
        origin: who registered it, and the version of the features.
        data: the rows.
        views: what is kept of each row; the first is returned, the others are stored from the same pass. So are other
            poolings of the first, for the rows that are computed anyway.
        on_bad_row: ``"error"``, or ``"skip"`` to leave out rows that cannot be decoded.
        quiet: print no progress.
        gather: read the features into memory; else they are left in the store, for `StoredMatrix`.
        trust: origins of foreign spaces whose rows may be used, once a sample of them was computed here and agrees.
        memory: decides whether features that are to be gathered fit; they are left in the store where they do not.
        by: what computes missing rows: this process, or the workers of a cluster.

    Raises:
        UserError: nothing of an origin is here, or it holds features of something else; or what has to be in memory is
            more than may be.
        BadRowError: a row cannot be decoded and ``on_bad_row`` is ``"error"``.
        CutError: the backbone cannot be cut exactly.
        StoreError: features cannot be stored.
    """
    started = time.monotonic()
    with met_everywhere():
        trusted = trusted_spaces(store, trust)
    spaces = {part: open_space(store, target.backbone, origin, part) for view in views for part in view.parts}
    settle(store, target, spaces)
    beside = spaces_beside(store, target, origin, views[0], spaces)
    process = Process.current()
    if memory:
        _see_that_it_fits(memory, [spaces[part] for part in views[0].parts], target, data)
    bad: list[BadRowError] = []
    splits = []
    for split in (*data.splits(), *([data.outside] if data.outside else [])):
        features, unreadable = _digested(split, store.file_digests, on_bad_row)
        splits.append(features)
        bad += unreadable
    rows = ConcatRows([features.split.inputs for features in splits])
    digests = np.concatenate([features.digests for features in splits])
    share = partial(
        by,
        target,
        spaces,
        rows,
        digests,
        process,
        store=store,
        beside=beside,
        quiet=quiet,
        on_bad_row=on_bad_row,
    )
    reports: list[ExtractReport] = []
    if trusted:
        with met_everywhere():
            proof = _proved_on([features.split for features in splits], rows.starts)

            def compute(asked: np.ndarray) -> None:
                reports.append(computed_by_all(partial(share, among=asked)))

            lend(store, trusted, spaces, digests, proof, compute)
    with in_turn(store, (spaces | beside).values(), digests, process, quiet):
        reports.append(computed_by_all(share))
    report = summed(reports)
    computed, undecodable, recomputed = report.computed, report.bad, 0
    parts = [spaces[part] for part in views[0].parts]
    bad += [undecodable[row] for row in sorted(undecodable)]
    splits = _without_all(splits, undecodable)
    content = side_by_side([Content.of(space) for space in parts])
    kept_out = memory.in_blocks(content.cut, sum(len(each.digests) for each in splits)) if memory and gather else None
    columns = None if gather and kept_out is None else ["truncated"]
    try:
        _gather(parts, splits, columns)
    except MissingRowsError:
        # A shard proved damaged only now and was set aside, or somebody cleared the space: its rows are computed
        # again, once.
        recomputed = computed_by_all(share).computed
        _gather(parts, splits, columns)
    if process.rank == 0:
        for each in (spaces | beside).values():
            if each.info is not None:
                compact(each)
    truncated = sum(int(features.columns.pop("truncated").sum()) for features in splits)
    total = sum(len(features.digests) for features in splits)
    if recomputed:
        # A row that was computed before the space was cleared and again after it counts once.
        distinct = np.unique(np.concatenate([features.digests for features in splits]), axis=0)
        computed = min(computed + recomputed, len(distinct))
    # A sentence that is longer than the model reads at once is read in windows, and not cut.
    longer = "windowed" if data.task.of_words else "truncated"
    counts = {"rows": total, "computed": computed, "reused": total - computed, longer: truncated}
    by_name = {features.split.name: features for features in splits}
    outside = by_name.pop(OUTSIDE, None)
    if trusted:
        count_borrowed(trusted, parts, np.concatenate([features.digests for features in splits]))
    seconds = time.monotonic() - started
    return StoredFeatures(parts, content, by_name, counts, bad, seconds, outside, report.rounding, trusted, kept_out)


def _see_that_it_fits(memory: Memory, parts: Sequence[Space], target: Target, data: Data) -> None:
    """Refuse a bound before anything is computed, as far as is known by then.

    Raises:
        RecipeError: it does not hold the rows.
    """
    rows = sum(data.sizes().values())
    if all(space.info is not None for space in parts):
        memory.check(side_by_side([Content.of(space) for space in parts]).cut, rows)
    else:
        # How wide features are the cut will tell; most models say it themselves.
        memory.holds(rows, likely=len(parts) * int(getattr(target.config, "hidden_size", None) or 0))


def settle(store: FeatureStore, target: Target, spaces: dict[View, Space]) -> None:
    """Exchange spaces of the first release, which padded all batches, where padding changes the model's numbers.

    That takes the model, once for each such space; the answer is remembered.

    Raises:
        CutError: a row's numbers depend on its batch mates in any batch.
    """
    memory = store.root / "settled.json"
    for view, space in spaces.items():
        # Pictures are all of one size: there was no padding.
        if target.backbone.wants != "text" or space.info is None or Content.of(space).equal_lengths is not None:
            continue
        known = remembered(memory).get(space.id)
        if known is None:
            model, head = target.build()
            probes = target.backbone.probes()
            # Padded on the left, its first token was taken for the first of the text.
            known = view.find_cut(model, head, probes)[1] or (view.pooling == "cls" and pads_left(probes[0]))
            keep_remembered(memory, space.id, known)
        if known:
            spaces[view] = equal_length_space(store, space)


def spaces_beside(
    store: FeatureStore, target: Target, origin: Mapping[str, str], view: View, asked: Mapping[View, Space]
) -> dict[View, Space]:
    """The spaces of other poolings that a pass for a view may fill; none of the first release, which nobody asked."""
    spaces = {each: open_space(store, target.backbone, origin, each) for each in view.beside(target.backbone)}
    return {
        each: space
        for each, space in spaces.items()
        if each not in asked and (space.info is None or Content.of(space).equal_lengths is not None)
    }


def joined_id(spaces: Sequence[Space]) -> str:
    """What names features that are made of the rows of some spaces."""
    return "+".join(space.id for space in spaces)


def gathered(spaces: Sequence[Space], digests: Digests, only: Sequence[str] | None = None) -> Columns:
    """The columns of rows, or some of them; of several spaces their vectors behind each other.

    Raises:
        MissingRowsError: rows are not stored.
    """
    columns: list[Columns] = [as_computed(space.gather(digests, only), Content.of(space).cut) for space in spaces]
    if len(columns) == 1 or "features" not in columns[0]:
        return columns[0]
    return columns[0] | {"features": torch.cat([each["features"] for each in columns], dim=1)}


def line_columns(columns: Mapping[str, Any], cut: Cut) -> Mapping[str, Any]:
    """The columns of a split with a line for each word, where the cut keeps words; as they are elsewhere."""
    return {name: columns[name].values for name in cut.kept()} if cut.words else columns


def taken(whole: SplitFeatures, rows: np.ndarray, name: str | None = None) -> SplitFeatures:
    """Some rows of a split with their features.

    Under another ``name`` they are rows to be scored, which are looked at as they are: their other views stay behind.
    """

    def those(columns: Columns) -> Columns:
        return {column: rows_of_column(values, rows) for column, values in columns.items()}

    views = [those(columns) for columns in whole.views] if name is None else []
    return SplitFeatures(whole.split.select(rows, name), whole.digests[rows], those(whole.columns), views)


def known_rows(store: FeatureStore, spaces: Sequence[Space], inputs: Files | Texts) -> tuple[Digests, np.ndarray]:
    """The names (n, 16) of rows, and whether all spaces have each; one that cannot be read has no name of its own."""
    digests, unreadable = digest_rows(inputs, store.file_digests)
    known = np.logical_and.reduce([space.known(digests) for space in spaces])
    known[list(unreadable)] = False
    return digests, known


def in_turn(
    store: FeatureStore, spaces: Iterable[Space], digests: Digests, process: Process, quiet: bool
) -> AbstractContextManager[None]:
    """Six runs started together on an empty store compute its rows once; processes of one run share them anyway."""
    if process.world > 1:
        return nullcontext()
    say = Progress("features", len(digests), quiet=quiet).say
    # In one order, whichever of them was asked for.
    spaces = sorted(spaces, key=lambda space: space.id)
    return store.turn(spaces, digests, lambda other: say(f"features: {other} is computing these rows; waiting for it"))


def computed_by_all(share: Callable[[], ExtractReport]) -> ExtractReport:
    """Do this process's share; the report of all processes, with the bad rows that any of them met."""

    def work() -> dict[str, Any]:
        report = share()
        bad = [[row, e.row, e.why] for row, e in report.bad.items()]
        return {"computed": report.computed, "bad": bad, "rounding": report.rounding}

    # Each process met its own bad rows; all leave out all of them.
    return summed(
        [
            ExtractReport(
                each["computed"], {row: BadRowError(name, why) for row, name, why in each["bad"]}, each["rounding"]
            )
            for each in on_all(work)
        ]
    )


def summed(reports: Sequence[ExtractReport]) -> ExtractReport:
    """What several extractions did together; nothing where there was none."""
    bad = {row: error for report in reports for row, error in report.bad.items()}
    return ExtractReport(
        sum(each.computed for each in reports), bad, max((each.rounding for each in reports), default=0.0)
    )


def _proved_on(splits: Sequence[Split], starts: Sequence[int]) -> list[int]:
    """Numbers of the rows that an export will be proved on: of the test split, or of training where folds score it."""
    named = {split.name: (start, split) for start, split in zip(starts, splits, strict=False) if len(split)}
    start, split = named["test"] if "test" in named else named.get("train", (0, None))
    return [start + row for row in split.few_rows()] if split else []


def _gather(spaces: Sequence[Space], splits: Sequence[SplitFeatures], only: Sequence[str] | None) -> None:
    for features in splits:
        features.columns = gathered(spaces, features.digests, only)


def _digested(split: Split, index: StatIndex, on_bad_row: str) -> tuple[SplitFeatures, list[BadRowError]]:
    digests, unreadable = digest_rows(split.inputs, index)
    if unreadable and on_bad_row == "error":
        raise next(iter(unreadable.values()))
    return _without(SplitFeatures(split, digests), unreadable), list(unreadable.values())


def _without_all(splits: Sequence[SplitFeatures], bad: Mapping[int, BadRowError]) -> list[SplitFeatures]:
    """The splits without bad rows, which are numbered through all of them; copies of a bad row are as bad."""
    digests = np.concatenate([features.digests for features in splits])
    named = {digests[row].tobytes() for row in bad}
    if not named:
        return list(splits)
    return [_without(f, {i: None for i, row in enumerate(f.digests) if row.tobytes() in named}) for f in splits]


def _without(features: SplitFeatures, bad: Mapping[int, object]) -> SplitFeatures:
    if not bad:
        return features
    good = np.setdiff1d(np.arange(len(features.digests)), list(bad))
    return SplitFeatures(features.split.select(good), features.digests[good])
