"""What every kind of reference is first turned into: an Arrow table for each split, not yet understood."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from hftl.data.dataset import Files, RowNames
from hftl.errors import DataError
from hftl.wording import listing

SplitName = Literal["train", "validation", "test"]

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
    """

    table: pa.Table
    names: RowNames | None

    def name(self, row: int) -> str:
        """Return a row's name for a person."""
        return Files(self.table[0]).name(row) if self.names is None else self.names[row]


@dataclass(frozen=True)
class RawData:
    """What a reference led to.

    Attributes:
        parts: the splits found, ``train`` always among them.
        numbers_as_text: whether numbers still stand as text, as in csv files.
        class_names: names of the classes, for columns that say them (a `ClassLabel` of `datasets`).
        root: folder that relative paths of files start from.
        within: folders outside which no file is read; empty means any.
        foreign: whether somebody else wrote the data, so that no text cell is taken for a path on this
            machine.
        notes: what was chosen or left out on the way, one sentence each.
        identity: what the data were, as JSON.
    """

    parts: dict[SplitName, RawSplit]
    numbers_as_text: bool = False
    class_names: Mapping[str, list[str]] = field(default_factory=dict)
    root: Path = Path()
    within: tuple[Path, ...] = ()
    foreign: bool = False
    notes: list[str] = field(default_factory=list)
    identity: dict[str, Any] = field(default_factory=dict)


def split_of(name: str) -> SplitName | None:
    """Return the split that the name of a file or folder says, such as ``test`` for ``banking-test-v2``."""
    words = [name.lower(), *re.split(r"[^a-z]+", name.lower())]
    said: set[SplitName] = {split for split, names in SPLIT_NAMES.items() if any(word in names for word in words)}
    return said.pop() if len(said) == 1 else None


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


def require_train(chosen: Mapping[SplitName, object], names: Sequence[str], where: str) -> None:
    """Refuse data without a training split.

    Args:
        chosen: the splits found.
        names: names of everything that was there.
        where: the data's name for a person.

    Raises:
        DataError: there is no training split.
    """
    if "train" not in chosen:
        raise DataError(f"{where}: no training split among {listing(names)}: name one 'train'")
