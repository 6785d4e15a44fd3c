"""A part of the data for a quick try: a few rows of each split, every class among them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hftl.data.dataset import Data, Indices, Split, indicators, labels_as_bytes
from hftl.data.raw import digest
from hftl.errors import DataError
from hftl.wording import plural


def limited(data: Data, most: int, seed: int) -> Data:
    """The data with at most so many rows of each split, and a note that says how many were left out.

    Args:
        data: all rows.
        most: rows of each split.
        seed: the same seed draws the same rows.

    Raises:
        DataError: not every class or label could keep a row in training.
    """
    there = {split.name: split for split in data.splits()}
    kept = {name: split.select(_drawn(data, split, most, seed)) for name, split in there.items()}
    outside = data.outside
    if outside is not None and len(outside) > most:
        there, drawn = there | {outside.name: outside}, np.random.default_rng(seed).permutation(len(outside))[:most]
        outside = kept[outside.name] = outside.select(np.sort(drawn))
    cut = [f"{name} {len(kept[name]):,} of {len(split):,}" for name, split in there.items() if len(split) > most]
    if not cut:
        return data
    return replace(
        data,
        train=kept["train"],
        validation=kept.get("validation"),
        test=kept["test"],
        outside=outside,
        notes=[*data.notes, f"limited to {plural(most, 'row')} of each split, seed {seed}: {', '.join(cut)}"],
        identity={
            **data.identity,
            "splits": {split.name: len(kept[split.name]) for split in data.splits()},
            "labels_digest": digest(*(labels_as_bytes(kept[split.name].labels) for split in data.splits())),
            "limit": most,
        },
    )


def _drawn(data: Data, split: Split, most: int, seed: int) -> Indices:
    """Which rows of a split stay, sorted: one of each class or label first, then every class by its share."""
    rows = len(split)
    if rows <= most:
        return np.arange(rows)
    order = np.random.default_rng(seed).permutation(rows)
    if not data.task.has_classes:
        return np.sort(order[:most])
    labels = indicators(split.labels[order])
    first = _one_of_each(labels)
    if len(first) > most and split.name == "train":
        raise DataError(
            f"limit is {most}, and {plural(len(first), 'row')} of training are needed to show every class: give a "
            f"limit of at least {len(first)}"
        )
    places = _by_share(labels) if data.task.is_exclusive else np.arange(rows)
    chosen = np.concatenate([first, places[~np.isin(places, first)]])[:most]
    return np.sort(order[chosen])


def _one_of_each(labels: np.ndarray) -> Indices:
    """Places of the first row of each class, or of rows that show every label between them."""
    if labels.ndim == 1:
        return np.sort(np.unique(labels, return_index=True)[1])
    shown = np.zeros(labels.shape[1], dtype=bool)
    first = []
    for label in range(labels.shape[1]):
        has = np.flatnonzero(labels[:, label] > 0)
        if len(has) and not shown[label]:
            first.append(int(has[0]))
            shown |= labels[has[0]] > 0
    return np.array(sorted(first), dtype=np.int64)


def _by_share(labels: np.ndarray) -> Indices:
    """Places of rows in an order whose every beginning has each class in about its share of all rows."""
    counts = np.bincount(labels)
    # The k-th row of a class of n stands at (k - 1/2) / n of the way.
    at = np.zeros(len(labels))
    for label in np.flatnonzero(counts):
        at[labels == label] = (np.arange(counts[label]) + 0.5) / counts[label]
    return np.argsort(at, kind="stable")
