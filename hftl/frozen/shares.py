"""Shares of the rows for machines that know nothing of one another, and which rows are stored."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from hftl.backbones.protocol import Target
from hftl.data import Data
from hftl.errors import RecipeError
from hftl.frozen.features import known_rows
from hftl.frozen.view import View, open_space
from hftl.plugins.spec import BackboneSpec
from hftl.store.store import FeatureStore


@dataclass(frozen=True)
class Share:
    """One of ``of`` shares of the rows: every ``of``-th, counted through all splits.

    A share is a function of the data alone, so that any of them may be computed anywhere, killed and computed again.

    Attributes:
        number: which, from 1.
        of: how many there are.
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """The share that is written ``3/64``.

        Raises:
            RecipeError: it is none.
        """
        written = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip(), re.ASCII)
        share = cls(int(written[1]), int(written[2])) if written else None
        if share is None or not 1 <= share.number <= share.of:
            raise RecipeError(f"part {text!r}: write which of how many, from 1/64 to 64/64")
        return share

    def of_data(self, data: Data) -> Data:
        """The rows of this share."""
        shares, start = [], 0
        for split in data.splits():
            shares.append(split.select(np.arange((self.number - 1 - start) % self.of, len(split), self.of)))
            start += len(split)
        train, *validation, test = shares
        # Rows out of scope are no part of training, and left to the run that measures them.
        return replace(data, train=train, validation=validation[0] if validation else None, test=test, outside=None)


@dataclass(frozen=True)
class StoredRows:
    """Which rows of some data have features in the store.

    Attributes:
        rows: how many there are, by split.
        stored: how many of them are stored, by split.
        missing: names of those that are not, through all splits in order.
    """

    rows: dict[str, int]
    stored: dict[str, int]
    missing: list[str]


def stored_rows(store: FeatureStore, spec: BackboneSpec, target: Target, data: Data, view: View) -> StoredRows:
    """Look up which rows are stored; nothing is computed, and no weights are read.

    Args:
        store: where features are kept.
        spec: the backbone as it is registered.
        target: the backbone.
        data: the rows; one that cannot be read is not stored.
        view: what is kept of a row.

    Raises:
        StoreError: the store cannot be read.
    """
    spaces = [open_space(store, target.backbone, spec.origin, part) for part in view.parts]
    stored, missing = {}, []
    for split in data.splits():
        _, known = known_rows(store, spaces, split.inputs)
        stored[split.name] = int(known.sum())
        missing += [split.inputs.name(int(row)) for row in np.flatnonzero(~known)]
    return StoredRows(data.sizes(), stored, missing)
