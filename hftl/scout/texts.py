"""Are two texts one, but for a word, a few letters, case, punctuation or blanks?"""

from __future__ import annotations

import re
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer

# In shorter texts one word is much of the text: "change my card" is no copy of "activate my card".
FEWEST_WORDS = 5
# Cosine of counts of three letters from which longer texts differ in a few letters only.
SAME_LETTERS = 0.95
# Of so many texts with one gap all pairs are named.
LARGE = 30
_WORD = re.compile(r"\w+")
# Inside a word, which "don't" and "dont" are.
_APOSTROPHE = re.compile("['’]")
_PAIRS_AT_ONCE = 4096


def words_of(texts: Sequence[str]) -> tuple[str, ...]:
    """The words of a row without case and punctuation; a pair of texts keeps its seam."""
    plain = [_WORD.findall(_APOSTROPHE.sub("", text.casefold())) for text in texts]
    return tuple(word for words in plain for word in (*words, "\0"))[:-1]


def texts_of_one_word_apart(texts: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of texts of the same words, and pairs that one changed, missing or added word makes the same.

    Each text is filed under what it is without one of its words, for every word (Bocek, Hunt & Stiller, *Fast
    similarity search in large dictionaries*, 2007), so that no two texts are compared that have nothing in common.

    Args:
        texts: n rows of one text or two.

    Returns:
        int64 (p, 2) each.
    """
    words = [words_of(text) for text in texts]
    whole: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, each in enumerate(words):
        whole[each].append(i)
    # Texts without a word, such as smileys, are only compared as they are.
    same = _pairs_within(found for key, found in whole.items() if key)
    long = [found[0] for key, found in whole.items() if len(key) >= FEWEST_WORDS]
    # What stands before and after each word in turn, and between any two, as numbers: there are ten times as many as
    # texts, and a list of texts for each would outweigh the features.
    without, between = array("q"), array("q")
    of_without, of_between = array("q"), array("q")
    for i in long:
        starts, ends = _running(words[i]), _running(words[i][::-1])[::-1]
        gaps = {hash(around) for around in zip(starts[:-1], ends[1:], strict=True)}
        without.extend(gaps)
        of_without.extend([i] * len(gaps))
        between.extend(hash(around) for around in zip(starts, ends, strict=True))
        of_between.extend([i] * len(starts))
    filed = _Filed(np.array(without), np.array(of_without))
    one_more = [
        (i, j)
        for place, i in filed.met_by(np.array(between), np.array(of_between))
        for j in filed.texts_at(place)
        if len(words[j]) == len(words[i]) + 1
    ]
    apart = np.concatenate([_pairs_within(filed.shared()), _as_array(one_more)])
    # Each found text stands for all of the same words.
    members = [(whole[words[i]][:LARGE], whole[words[j]][:LARGE]) for i, j in np.unique(apart, axis=0).tolist()]
    return same, _as_array([(i, j) for one, other in members for i in one for j in other])


def text_similarity(texts: Sequence[Sequence[str]], pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much of their letters two texts have in common, and whether only a few differ.

    Args:
        texts: rows of one text or two.
        pairs: int64 (p, 2).

    Returns:
        float32 (p,), the cosine of counts of three letters, and bool (p,).
    """
    letters = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 3), alternate_sign=False, dtype=np.float32)
    numbers, inverse = np.unique(pairs, return_inverse=True)
    if not len(numbers):
        return np.zeros(0, dtype=np.float32), np.zeros(0, dtype=bool)
    counts = letters.transform([" ".join(" ".join(texts[i]).split()) for i in numbers])
    places = inverse.reshape(-1, 2)
    similarity = np.concatenate(
        [
            np.asarray(counts[block[:, 0]].multiply(counts[block[:, 1]]).sum(1)).ravel()
            for block in np.split(places, range(_PAIRS_AT_ONCE, len(places), _PAIRS_AT_ONCE))
        ]
    ).astype(np.float32)
    long = np.array([len(words_of(texts[i])) >= FEWEST_WORDS for i in numbers])[places].all(1)
    return similarity, (similarity >= SAME_LETTERS) & long


class _Filed:
    """Texts under numbers.

    Args:
        numbers: int64 (e,).
        texts: int64 (e,), the text that is filed under each.
    """

    def __init__(self, numbers: np.ndarray, texts: np.ndarray) -> None:
        order = np.argsort(numbers, kind="stable")
        self.texts = texts[order].astype(np.int64)
        self.numbers, self.starts = np.unique(numbers[order], return_index=True)
        self.ends = np.append(self.starts[1:], len(numbers))

    def texts_at(self, place: int) -> list[int]:
        """The texts under the number at a place."""
        found: list[int] = self.texts[self.starts[place] : self.ends[place]].tolist()
        return found

    def shared(self) -> Iterator[list[int]]:
        """The texts under each number that has several."""
        return (self.texts_at(place) for place in np.flatnonzero(self.ends - self.starts > 1).tolist())

    def met_by(self, numbers: np.ndarray, texts: np.ndarray) -> list[tuple[int, int]]:
        """Where other texts' numbers (e,) are filed: the place, and the text."""
        place = np.minimum(np.searchsorted(self.numbers, numbers), len(self.numbers) - 1)
        met = self.numbers[place] == numbers
        return list(zip(place[met].tolist(), texts[met].tolist(), strict=True))


def _running(words: Sequence[str]) -> list[int]:
    """For each number of first words, a hash of these: one more than there are words."""
    running = [0]
    for word in words:
        running.append(hash((running[-1], word)))
    return running


def _pairs_within(groups: Iterable[Sequence[int]]) -> np.ndarray:
    """All pairs of each group; of a large one, such as a phrase with a name in it, each row with the first."""
    return _as_array(
        [pair for group in groups for pair in (combinations(group, 2) if len(group) <= LARGE else _star(group))]
    )


def _star(group: Sequence[int]) -> Iterator[tuple[int, int]]:
    return ((group[0], other) for other in group[1:])


def _as_array(pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)
