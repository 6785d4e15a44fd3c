"""`RawData`: what every kind of reference is first turned into, an Arrow table for each split, not yet understood."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa

from hftl.data.dataset import Files, Indices, RowNames
from hftl.errors import DataError
from hftl.wording import did_you_mean, listing

SplitName = Literal["train", "validation", "test"]
Codebooks: TypeAlias = dict[str, list[str]]
"""Names of the classes that a column's numbers stand for, by column."""

SPLIT_NAMES: dict[SplitName, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev", "development"),
    "test": ("test", "testing", "eval", "evaluation"),
}


@dataclass(frozen=True)
class RawSplit:
    """One split as it lies there.

    Attributes:
        table: its rows.
        names: rows' names, or ``None`` where the path of a file, in the table's first column, names it.
        unusable: columns that no Arrow column can hold, or that stand twice, with the reason. It is an error only if
            such a column is used.
        codebooks: for each source of ``names``, its own names of the classes that numbers stand for; a number means
            nothing without the codebook of its own file.
        folders: for each source of ``names``, the folder that it lies in; empty where there is none.
        notes: what was read otherwise than it stands there, one sentence each.
        rows: the rows of ``table`` that belong to the split; None for all.
        numbers_as_text: columns in which numbers still stand as text, as all columns of a csv file.
        hint: what to say beside it where no columns can be chosen.
    """

    table: pa.Table
    names: RowNames | None
    unusable: Mapping[str, str] = field(default_factory=dict)
    codebooks: Sequence[Codebooks] = ()
    folders: Sequence[Path] = ()
    notes: Sequence[str] = ()
    rows: Indices | None = None
    numbers_as_text: Collection[str] = ()
    hint: str = ""

    @property
    def own_rows(self) -> Indices:
        """Positions in the table of the split's rows."""
        return np.arange(self.table.num_rows) if self.rows is None else self.rows

    def name(self, row: int) -> str:
        """Return the name of a row of the table for a person."""
        return Files(self.table[0]).name(row) if self.names is None else self.names[row]

    @cached_property
    def columns(self) -> dict[str, pa.ChunkedArray]:
        """The usable columns by name: a table looks for a name among all of them each time."""
        return dict(zip(self.table.column_names, self.table.columns, strict=True))

    def column(self, name: str, split: str) -> pa.ChunkedArray:
        """Return a column.

        Raises:
            DataError: there is none, or it cannot be used.
        """
        if name in self.unusable:
            raise DataError(self.unusable[name])
        if name not in self.columns:
            there = [*self.columns, *self.unusable]
            raise DataError(f"{split} split: no column {name!r}{did_you_mean(name, there)}; it has {listing(there)}")
        return self.columns[name]

    def class_names(self, column: str) -> list[list[str] | None]:
        """For each source the names of a column's classes, None where it has none; empty if no source has any."""
        books = [book.get(column) for book in self.codebooks]
        return books if any(book is not None for book in books) else []


class LazySplits(Mapping[SplitName, RawSplit]):
    """Splits that are read when they are asked for, so that a split nobody needs may be damaged or large.

    Args:
        readers: for each split what reads it.
    """

    def __init__(self, readers: Mapping[SplitName, Callable[[], RawSplit]]) -> None:
        self._readers = readers
        self._read: dict[SplitName, RawSplit] = {}

    def __getitem__(self, split: SplitName) -> RawSplit:
        if split not in self._read:
            self._read[split] = self._readers[split]()
        return self._read[split]

    def __contains__(self, split: object) -> bool:
        return split in self._readers  # a Mapping's own would read it

    def __iter__(self) -> Iterator[SplitName]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


@dataclass(frozen=True)
class RawData:
    """What a reference led to.

    Attributes:
        parts: the splits found; the only one of data that say no split is ``train``.
        root: folder that relative paths of files start from.
        within: folders outside which no file is read; empty means any.
        foreign: whether somebody else wrote the data, so that no text cell is taken for a path on this
            machine.
        notes: what was chosen or left out on the way, one sentence each.
        names: everything that was there and could have named a split.
        is_class_folder: whether folders are the labels, so that nothing had to be guessed.
        identity: what the data were, as JSON.
    """

    parts: Mapping[SplitName, RawSplit]
    root: Path = Path()
    within: tuple[Path, ...] = ()
    foreign: bool = False
    notes: list[str] = field(default_factory=list)
    names: Sequence[str] = ()
    is_class_folder: bool = False
    identity: dict[str, Any] = field(default_factory=dict)


def split_of(name: str) -> SplitName | None:
    """Return the split that the name of a file or folder says, such as ``test`` for ``banking-test-v2``."""
    words = [name.lower(), *re.split(r"[^a-z]+", name.lower())]
    said: set[SplitName] = {split for split, names in SPLIT_NAMES.items() if any(word in names for word in words)}
    return said.pop() if len(said) == 1 else None


def plain_split_of(name: object) -> SplitName | None:
    """Return the split that a word is the plain name of: ``validation`` for ``Val``, none for ``test-v2``."""
    word = str(name).strip().lower()
    return next((split for split, names in SPLIT_NAMES.items() if word in names), None)


def assign_splits(names: Iterable[str]) -> tuple[dict[SplitName, str], list[str]]:
    """Choose for each split the name that stands for it.

    A plain name comes before a longer one (``train`` before ``train_extra``), then the order given counts.

    Returns:
        The chosen names, and those left over.
    """
    names = list(names)
    chosen: dict[SplitName, str] = {}
    for split, plain in SPLIT_NAMES.items():
        candidates = [name for name in names if split_of(name) == split]
        candidates.sort(key=lambda name: plain.index(name.lower()) if name.lower() in plain else len(plain))
        if candidates:
            chosen[split] = candidates[0]
    return chosen, [name for name in names if name not in chosen.values()]


def digest(*contents: bytes) -> str:
    """Return a 128-bit digest of byte strings in their order, in hexadecimal."""
    state = hashlib.blake2b(digest_size=16)
    for content in contents:
        state.update(content)
    return state.hexdigest()
