"""Augmented views of pictures: each a function of the row's content, its number and the augmentation, kept as a row is.

View 0 is the picture itself, whose features are those that everybody has. So views are shared by runs, and a run that
asks for more of them computes those alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from hftl.backbones.protocol import Target
from hftl.data import Files, Texts
from hftl.data.augment import Augmentation
from hftl.decoding import Change
from hftl.errors import RecipeError
from hftl.frozen.extract import ExtractReport, extract
from hftl.frozen.features import Columns, StoredFeatures, computed_by_all, gathered, in_turn, summed
from hftl.frozen.view import View, open_space
from hftl.methods import Full, Head, Method
from hftl.parallel import Process
from hftl.store.compaction import compact
from hftl.store.digests import stack_digests
from hftl.store.shard import Digests
from hftl.store.space import MissingRowsError
from hftl.store.store import FeatureStore


@dataclass(frozen=True)
class Views:
    """How many views there are of a picture, the plain one included, and how the others differ from it.

    Attributes:
        train: of each training picture.
        test: of each test picture.
        augmentation: what changes a picture.
    """

    train: int
    test: int
    augmentation: Augmentation

    @property
    def said(self) -> str:
        """The views in words."""
        counts = {"training": self.train, "test": self.test}
        each = [f"{count} of each {name} picture" for name, count in counts.items() if count > 1]
        return f"{' and '.join(each)}, the first as it is, the others by {self.augmentation}"


class ViewRows:
    """Views of pictures as rows: those of one number after those of the one before, each in the pictures' order.

    Args:
        inputs: the pictures.
        digests: their names, uint8 (n, 16).
        numbers: of the views, from 1.
        augmentation: what changes a picture.
    """

    def __init__(
        self, inputs: Files | Texts, digests: Digests, numbers: Sequence[int], augmentation: Augmentation
    ) -> None:
        self.inputs, self.row_digests = inputs, digests
        self.numbers, self.augmentation = numbers, augmentation

    @property
    def digests(self) -> Digests:
        """The views' names, uint8 (k n, 16)."""
        count = len(self.row_digests)
        return names_of_views(np.tile(self.row_digests, (len(self.numbers), 1)), np.repeat(self.numbers, count))

    def __len__(self) -> int:
        return len(self.numbers) * len(self.inputs)

    def __getitem__(self, place: int) -> bytes:
        """The picture's file, of which `change` makes the view.

        Raises:
            BadRowError: it cannot be read.
        """
        content: bytes = self.inputs[self._where(place)[1]]  # type: ignore[assignment]
        return content

    def change(self, place: int) -> Change:
        """What makes of a picture the view."""
        number, row = self._where(place)
        name, digest = self.inputs.name(row), self.row_digests[row].tobytes()
        return partial(view_of_picture, name=name, digest=digest, number=number, augmentation=self.augmentation)

    def name(self, place: int) -> str:
        """The view's name for a person."""
        number, row = self._where(place)
        return f"{self.inputs.name(row)} (view {number})"

    def _where(self, place: int) -> tuple[int, int]:
        of_numbers, row = divmod(place, len(self.inputs))
        return self.numbers[of_numbers], row


def view_of_picture(encoded: bytes, name: str, digest: bytes, number: int, augmentation: Augmentation) -> bytes:
    """A view of a picture as an image file; number 0 is the file as it is.

    Args:
        encoded: the picture's file.
        name: what a person calls it.
        digest: of the file, 16 bytes.
        number: of the view.
        augmentation: what changes it.

    Raises:
        BadRowError: the picture cannot be decoded.
    """
    if number == 0:
        return encoded
    return augmentation(encoded, name, np.random.default_rng([int.from_bytes(digest, "little"), number]))


def names_of_views(digests: Digests, numbers: Sequence[int] | np.ndarray) -> Digests:
    """The names (n, 16) of views of pictures, of each that of one number, from 1 on."""
    named = [
        hashlib.blake2b(row.tobytes() + int(number).to_bytes(4, "little"), digest_size=16, person=b"hftl-view").digest()
        for row, number in zip(digests, numbers, strict=True)
    ]
    return stack_digests(named)


def add_views(
    store: FeatureStore,
    target: Target,
    origin: Mapping[str, str],
    features: StoredFeatures,
    view: View,
    views: Views,
    *,
    gather: bool,
    quiet: bool,
) -> ExtractReport:
    """Bring the features of more views to those of training and test pictures; what was computed for it.

    Args:
        store: where they are kept.
        target: the pretrained network.
        origin: who registered it, and the version of the features.
        features: of the pictures; changed in place.
        view: what is kept of a picture.
        views: how many.
        gather: read them into memory; else they are only stored.
        quiet: print no progress.

    Raises:
        RecipeError: the head that is trained has no exact solution.
        StoreError: features cannot be stored.
    """
    if features.content.cut.kind == "replay":
        raise RecipeError(
            f"views are for a head that is solved, and that of {features.content.architecture} is more than one linear "
            "layer: leave views out, or fine-tune, which changes pictures in every epoch"
        )
    reports: list[ExtractReport] = []
    for name, count in (("train", views.train), ("test", views.test)):
        split = features.splits[name]
        if count > 1 and len(split.split):
            rows = ViewRows(split.split.inputs, split.digests, range(1, count), views.augmentation)
            split.views, done = _columns_of(store, target, origin, rows, view, gather=gather, quiet=quiet)
            reports.append(done)
    return summed(reports)


def _columns_of(
    store: FeatureStore,
    target: Target,
    origin: Mapping[str, str],
    rows: ViewRows,
    view: View,
    *,
    gather: bool,
    quiet: bool,
) -> tuple[list[Columns], ExtractReport]:
    """The stored columns of each number of views, computed where missing, and what was computed."""
    parts = [replace(part, augmentation=rows.augmentation) for part in view.parts]
    spaces = {part: open_space(store, target.backbone, origin, part) for part in parts}
    names, process = rows.digests, Process.current()
    share = partial(extract, target, spaces, rows, names, process, store=store, quiet=quiet)
    with in_turn(store, spaces.values(), names, process, quiet):
        report = computed_by_all(share)
    of_numbers = np.split(names, len(rows.numbers))

    def columns() -> list[Columns]:
        if not gather:
            return []
        return [gathered([spaces[part] for part in parts], own) for own in of_numbers]

    try:
        found = columns()
    except MissingRowsError:
        # A shard proved damaged only now and was set aside: its rows are computed again, once.
        report = summed([report, computed_by_all(share)])
        found = columns()
    if process.rank == 0:
        for space in spaces.values():
            compact(space)
    return found, report


def check_views(method: Method, modality: str, *, has_classes: bool) -> None:
    """See that there are views of what a model reads, where a method asks for some.

    Raises:
        RecipeError: there are none.
    """
    if isinstance(method, Full) or not (method.has_views if isinstance(method, Head) else method.views):
        return
    if modality != "image":
        raise RecipeError(f"views are of pictures, and there are none of {modality}s: leave them out")
    if isinstance(method, Head) and not has_classes:
        raise RecipeError(
            "views are for labels: a regression's strength is chosen by leaving out single rows; leave views out"
        )
