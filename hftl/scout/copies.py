"""Rows that are the same, or nearly: candidates by neighbours in the features, confirmed by what the rows hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_matrix  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]
from torch import Tensor

from hftl.data import Files, Texts
from hftl.data.images import grey_thumbnail
from hftl.errors import BadRowError
from hftl.scout.pictures import SIDE, picture_similarity
from hftl.scout.texts import text_similarity, texts_of_one_word_apart
from hftl.store.shard import Digests

NEIGHBOURS = 10
# Cosine from which a neighbour may be a copy: of planted copies, cropped ones included, 99 % were above.
CANDIDATE = 0.65
# Agreement of details from which pictures are one. Set on trashnet, where planted copies reached 0.95, and photos of
# other things in one composition 0.95 at most, mostly below 0.92.
SAME_PICTURE = 0.93
_BLOCK_NUMBERS = 1 << 21


@dataclass(frozen=True)
class Neighbours:
    """The nearest other rows of n rows, by cosine of centred features.

    Attributes:
        index: int64 (n, k), nearest first.
        cosine: float32 (n, k).
    """

    index: np.ndarray
    cosine: np.ndarray


@dataclass(frozen=True)
class Copies:
    """Which of n rows hold the same, and which nearly the same.

    Attributes:
        content: int64 (n,), a number for each different content.
        first: int64 (c,), the first row of each content.
        pairs: int64 (p, 2), contents that are near copies, each pair once.
        similarity: float32 (p,).
    """

    content: np.ndarray
    first: np.ndarray
    pairs: np.ndarray
    similarity: np.ndarray


@dataclass(frozen=True)
class CopyOf:
    """A row that another row has, or nearly.

    Attributes:
        row: its number.
        other: the other's.
        similarity: 1 where they are the same.
        exact: whether they are.
    """

    row: int
    other: int
    similarity: float
    exact: bool


def nearest(features: Tensor, k: int = NEIGHBOURS) -> Neighbours:
    """The k nearest other rows of each row; fewer where there are fewer.

    Beside the features one copy of them is held, and a block of products.

    Args:
        features: (n, d) float32, n at least 2.
        k: how many.
    """
    unit = features - features.mean(0)
    unit /= unit.norm(dim=1, keepdim=True).clamp_min(1e-12)
    k, rows = min(k, len(unit) - 1), max(1, _BLOCK_NUMBERS // len(unit))
    # Made once: what is freed between blocks lies scattered, and the process would grow by each of them.
    index = torch.empty(len(unit), k, dtype=torch.int64)
    cosine, block = torch.empty(len(unit), k), torch.empty(rows, len(unit))
    for start in range(0, len(unit), rows):
        some = slice(start, min(start + rows, len(unit)))
        products = torch.mm(unit[some], unit.T, out=block[: some.stop - start])
        products.diagonal(start).fill_(-torch.inf)
        torch.topk(products, k, dim=1, out=(cosine[some], index[some]))
    return Neighbours(index.numpy(), cosine.numpy())


def find_copies(
    parts: Sequence[Files | Texts], digests: Digests, neighbours: Neighbours, classes: np.ndarray | None = None
) -> Copies:
    """All copies and near copies.

    Texts are near copies where they differ in case, punctuation and blanks only, in a few letters, or in one word where
    there are at least five, unless their classes differ as well: then the word carries the meaning. Pictures are where
    one, encoded again, is the other or most of it; those of fewer than 32 pixels a side hold too little for that, and
    other files are compared by their bytes alone.

    Args:
        parts: the rows, one part after the other.
        digests: uint8 (n, 16), of their content.
        neighbours: of all rows.
        classes: int64 (n,), of all rows; None where labels are no classes.
    """
    _, first, content = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    content = content.ravel()
    # Of several rows of one content the first stands for all of them.
    row, place = np.nonzero(neighbours.cosine >= CANDIDATE)
    candidates = _each_once(first[content[np.stack([row, neighbours.index[row, place]], axis=1)]])
    texts = [text for part in parts if isinstance(part, Texts) for text in part]
    if texts:
        pairs, similarity = _near_texts(texts, candidates, np.sort(first), classes)
    else:
        pairs, similarity = _near_pictures(parts, candidates)
    return Copies(content, first, content[pairs], similarity)


def copies_by_split(copies: Copies, splits: np.ndarray) -> dict[int, dict[int, CopyOf]]:
    """For each row with copies, by split, the one there that is most like it.

    Args:
        copies: of n rows.
        splits: int64 (n,), the split of each row.
    """
    first: dict[tuple[int, int], int] = {}
    for row, key in enumerate(zip(copies.content.tolist(), splits.tolist(), strict=True)):
        first.setdefault(key, row)
    links: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for (one, other), similarity in zip(copies.pairs.tolist(), copies.similarity.tolist(), strict=True):
        links[one].append((other, similarity))
        links[other].append((one, similarity))
    repeated = np.bincount(copies.content) > 1
    found: dict[int, dict[int, CopyOf]] = {}
    for row in np.flatnonzero(repeated[copies.content] | np.isin(copies.content, copies.pairs)).tolist():
        content = int(copies.content[row])
        # The most alike last, because it is the one that stays.
        ordered = [*sorted(links[content], key=lambda link: link[1]), (content, 1.0)]
        found[row] = {
            split: CopyOf(row, first[other, split], similarity, other == content)
            for other, similarity in ordered
            for split in np.unique(splits).tolist()
            if first.get((other, split), row) != row
        }
    return found


def groups_of_copies(copies: Copies) -> np.ndarray:
    """A number for each group of rows that are copies or near copies of one another: int64 (n,)."""
    contents = len(copies.first)
    links = coo_matrix((np.ones(len(copies.pairs)), copies.pairs.T), shape=(contents, contents))
    group: np.ndarray = connected_components(links, directed=False)[1][copies.content].astype(np.int64)
    return group


def joined_groups(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The finest groups that part neither those of the one nor those of the other: int64 (n,).

    Args:
        one: int64 (n,), the group of each row.
        other: int64 (n,), likewise.
    """
    left, right = (np.unique(each, return_inverse=True)[1] for each in (one, other))
    count = int(left.max(initial=0)) + 1
    size = count + int(right.max(initial=0)) + 1
    links = coo_matrix((np.ones(len(left)), (left, count + right)), shape=(size, size))
    group: np.ndarray = connected_components(links, directed=False)[1][left].astype(np.int64)
    return group


def _each_once(pairs: np.ndarray) -> np.ndarray:
    """Each pair of different rows once, the smaller number first."""
    ordered = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
    return np.unique(ordered, axis=0).reshape(-1, 2)


def _near_texts(
    texts: list[tuple[str, ...]], candidates: np.ndarray, distinct: np.ndarray, classes: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    words, apart = (distinct[found] for found in texts_of_one_word_apart([texts[i] for i in distinct]))
    of_one_class = np.ones(len(apart), dtype=bool) if classes is None else classes[apart[:, 0]] == classes[apart[:, 1]]
    certain = np.concatenate([words, apart[of_one_class]])
    pairs = _each_once(np.concatenate([certain, apart, candidates]))
    similarity, same = text_similarity(texts, pairs)
    chosen = same | np.isin(_as_numbers(pairs, len(texts)), _as_numbers(_each_once(certain), len(texts)))
    return pairs[chosen], similarity[chosen]


def _as_numbers(pairs: np.ndarray, rows: int) -> np.ndarray:
    """One number for each pair of row numbers: int64 (p,)."""
    numbers: np.ndarray = pairs[:, 0] * rows + pairs[:, 1]
    return numbers


def _near_pictures(parts: Sequence[Files | Texts], candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    starts = np.cumsum([0, *map(len, parts)])

    def thumbnail(row: int) -> np.ndarray | None:
        part = int(np.searchsorted(starts, row, side="right")) - 1
        files, inside = parts[part], int(row - starts[part])
        assert isinstance(files, Files)
        try:
            return grey_thumbnail(files.read(inside), files.name(inside), SIDE)
        except BadRowError:
            return None  # a sound, or a picture too small to be told from others like this

    wanted = np.unique(candidates)
    with ThreadPoolExecutor() as threads:
        drawn = list(threads.map(thumbnail, wanted))
    there = np.array([picture is not None for picture in drawn], dtype=bool)
    usable = wanted[there]
    candidates = candidates[np.isin(candidates, usable).all(1)]
    if not len(candidates):
        return candidates, np.zeros(0, dtype=np.float32)
    pictures = np.stack([picture for picture in drawn if picture is not None])
    similarity = picture_similarity(pictures, np.searchsorted(usable, candidates))
    same = similarity >= SAME_PICTURE
    return candidates[same], similarity[same]
