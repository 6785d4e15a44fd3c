"""What a backbone's first blocks return, in the store: a view of rows that training reads in place of running them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from hftl.backbones.cut.cut import Cut
from hftl.backbones.protocol import Target
from hftl.data import Split
from hftl.errors import StoreError
from hftl.frozen.augmented import ViewRows, Views
from hftl.frozen.extract import ConcatRows, ExtractReport, Rows, digest_rows, extract
from hftl.frozen.features import computed_by_all, in_turn
from hftl.frozen.rounding import stored_dtype
from hftl.frozen.view import Content, View, open_space
from hftl.methods import Storage
from hftl.parallel import Process
from hftl.store.shard import Digests
from hftl.store.space import Space
from hftl.store.store import FeatureStore


@dataclass(frozen=True)
class BlockRows:
    """Rows of which the store has what the first blocks return.

    Attributes:
        space: where it is.
        cut: what it is, of kind ``blocks``.
        digests: the rows' names by their split's, uint8 (n, 16).
        computed: rows, or views of them, that went through the blocks now.
        storage: of numbers on the disk.
        rounding: the largest relative error of one that was rounded now.
        views: where what they return of further views of training pictures is; None where there are none.
    """

    space: Space
    cut: Cut
    digests: dict[str, Digests]
    computed: int
    storage: Storage
    rounding: float
    views: Space | None = None

    @property
    def is_exact(self) -> bool:
        """Whether training gets each number as the blocks returned it."""
        return all(stored_dtype(dtype, self.storage) == dtype for dtype, _ in self.cut.kept().values())


def digests_of(store: FeatureStore, splits: Sequence[Split]) -> dict[str, Digests]:
    """The names of the rows of each split, uint8 (n, 16), by the split's name."""
    return {split.name: digest_rows(split.inputs, store.file_digests)[0] for split in splits}


def further_views(train: Split, digests: Digests, views: Views) -> ViewRows:
    """The training pictures' views but the first."""
    return ViewRows(train.inputs, digests, range(1, views.train), views.augmentation)


def block_rows(
    store: FeatureStore,
    target: Target,
    origin: Mapping[str, str],
    view: View,
    splits: Sequence[Split],
    *,
    quiet: bool,
    views: Views | None = None,
) -> BlockRows:
    """Have the store keep what the first blocks return; each process computes its share of the missing rows.

    Args:
        store: where it is kept.
        target: the pretrained network; its weights are read only if a row is missing.
        origin: who registered it, and the version of the features.
        view: which blocks, in which precision.
        splits: the rows, all of them decodable; the first are those of training.
        quiet: print no progress.
        views: of training pictures, where there are some beside the pictures as they are.

    Raises:
        CutError: the blocks cannot be told from what stands behind them; nothing is stored.
        StoreError: it cannot be stored; what was committed stays.
    """
    digests = digests_of(store, splits)
    keep = partial(_keep, store, target, origin, quiet=quiet)
    space, report = keep(view, ConcatRows([split.inputs for split in splits]), np.concatenate(list(digests.values())))
    cut, computed, rounding = Content.of(space).cut, report.computed, report.rounding
    changed = None
    if views and len(splits[0]):
        rows = further_views(splits[0], digests[splits[0].name], views)
        changed, report = keep(replace(view, augmentation=views.augmentation), rows, rows.digests)
        computed, rounding = computed + report.computed, max(rounding, report.rounding)
    return BlockRows(space, cut, digests, computed, view.storage, rounding, changed)


def _keep(
    store: FeatureStore,
    target: Target,
    origin: Mapping[str, str],
    view: View,
    rows: Rows,
    digests: Digests,
    *,
    quiet: bool,
) -> tuple[Space, ExtractReport]:
    views, process = {view: open_space(store, target.backbone, origin, view)}, Process.current()
    share = partial(extract, target, views, rows, digests, process, store=store, quiet=quiet)
    try:
        with in_turn(store, views.values(), digests, process, quiet):
            report = computed_by_all(share)
    except StoreError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise StoreError(f"{error}; or run the frozen blocks in every epoch: --cache-blocks never") from error
    # Whoever had nothing to compute has the space by its first name still.
    return open_space(store, target.backbone, origin, view), report
