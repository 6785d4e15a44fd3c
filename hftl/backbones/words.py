"""Sentences whose words have labels: any model that ``AutoModelForTokenClassification`` can load.

A word is read at its first token, as is usual (Devlin et al. 2019, section 5.3). A sentence of more tokens than the
model reads goes through it in windows that overlap by half, and each word is read in the window that shows most of what
stands around it: no word is dropped, and none is cut that is not longer than half a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING, AutoModelForTokenClassification

from hftl.backbones.batching import WordBatch
from hftl.backbones.protocol import Encoded
from hftl.backbones.text import LONGEST_PROBE, TextBackbone, text_of
from hftl.errors import BackboneError, BadRowError

PROBES = [
    ("A", "short", "one", "."),
    ("A", "somewhat", "longer", "sentence", ",", "with", "a", "comma", "and", "extraordinarily", "many", "words", "."),
    ("Two", "words"),
    ("This", "one", "has", "about", "a", "dozen", "words", ",", "and", "it", "ends", "here", "."),
]


@dataclass(frozen=True)
class EncodedSentence(Encoded):
    """A sentence, ready to be put into a batch; ``inputs`` are those of its first window.

    Attributes:
        windows: the inputs of all windows, each as long as the first.
        words: of each word the window in which it is read, and the position of its first token there.
    """

    windows: tuple[dict[str, list[int]], ...] = ()
    words: tuple[tuple[int, int], ...] = ()

    @property
    def lines(self) -> int:
        """One for each word."""
        return len(self.words)


class WordBackbone(TextBackbone):
    """A token classification model of transformers with its tokenizer; a row is a tuple of words."""

    pipeline_tag = "token-classification"
    auto_class = AutoModelForTokenClassification

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer, which gives the first word of a sentence the blank before it that others have."""
        tokenizer = super().tokenizer
        if getattr(tokenizer, "add_prefix_space", None) is False:
            padding = tokenizer.pad_token
            tokenizer = self._read_tokenizer(add_prefix_space=True)
            tokenizer.pad_token = padding
        return tokenizer

    def processor_identity(self) -> dict[str, Any]:
        """As for texts, and how words are read."""
        return super().processor_identity() | {"words": "first token, windows that overlap by half"}

    @property
    def notes(self) -> list[str]:
        """As for texts, and how words are read."""
        unknown = self.tokenizer.unk_token
        empty = f"; one of which the tokenizer makes nothing as {unknown!r}" if unknown else ""
        return [
            *super().notes,
            f"words: read at their first token{empty}; sentences of more than {self.max_length:,} tokens in windows "
            "that overlap by half",
        ]

    def config(self, task: str, label_names: Sequence[str]) -> Any:
        """As for every model; the class says what the task is."""
        config = super().config(task, label_names)
        config.architectures = [MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING[type(config)].__name__]
        return config

    def encode(self, rows: Sequence[tuple[str, ...]], names: Sequence[str]) -> list[Encoded]:
        """Tokenise sentences.

        Raises:
            BadRowError: a sentence has no words, the tokenizer makes nothing of one and has no token for that, or a
                token has no embedding in the model.
        """
        if not rows:
            return []
        for row, name in zip(rows, names, strict=True):
            if not row:
                raise BadRowError(name, "an empty sentence: it has no word")
        encoded = self._tokenised(rows)
        return [self._sentence(encoded, at, row, name) for at, (row, name) in enumerate(zip(rows, names, strict=True))]

    def _tokenised(self, rows: Sequence[tuple[str, ...]]) -> Any:
        return self.tokenizer([list(row) for row in rows], is_split_into_words=True, truncation=False, padding=False)

    def _sentence(self, encoded: Any, at: int, row: tuple[str, ...], name: str) -> Encoded:
        word_of = encoded.word_ids(at)
        if len({word for word in word_of if word is not None}) < len(row):
            row = self._without_empty(row, name)
            encoded, at = self._tokenised([row]), 0
            word_of = encoded.word_ids(0)
        inputs = {key: encoded[key][at] for key in encoded}
        for key, limit in self._limits.items():
            if (ids := inputs.get(key)) and max(ids) >= limit:
                raise BadRowError(name, self._too_large(key, max(ids), limit))
        return in_windows(inputs, word_of, self.max_length)

    def _without_empty(self, row: tuple[str, ...], name: str) -> tuple[str, ...]:
        """A sentence with the unknown token in place of each word of which the tokenizer makes nothing.

        Raises:
            BadRowError: it has no such token.
        """
        kept = []
        for number, word in enumerate(row, start=1):
            if self.tokenizer([word], is_split_into_words=True, add_special_tokens=False)["input_ids"]:
                kept.append(word)
            elif self.tokenizer.unk_token is not None:
                kept.append(self.tokenizer.unk_token)
            else:
                raise BadRowError(
                    name,
                    f"word {number}, {word!r}, gives no token, and the tokenizer has none for what it does not know: "
                    "remove the word and its tag",
                )
        return tuple(kept)

    def is_plain(self, row: tuple[str, ...]) -> bool:
        """Whether a stranger's tokenizer gives of a sentence what is read: in one window, and a token for each word."""
        word_of = self._tokenised([row]).word_ids(0)
        return len(word_of) <= self.max_length and len({word for word in word_of if word is not None}) == len(row)

    def collate(self, rows: Sequence[Encoded]) -> WordBatch:
        """Pad windows to the longest: int64 (windows, tokens) each, with where each word is read."""
        return self._words_padded(rows, self.tokenizer.padding_side)

    def _words_padded(self, rows: Sequence[Encoded], side: str) -> WordBatch:
        windows: list[Encoded] = []
        words: list[tuple[int, int]] = []
        lengths = []
        for row in rows:
            assert isinstance(row, EncodedSentence)
            words += [(len(windows) + window, position) for window, position in row.words]
            lengths.append(len(row.words))
            windows += [Encoded(inputs, len(inputs["input_ids"])) for inputs in row.windows]
        longest = max(window.cost for window in windows)
        starts = [0 if side == "right" else longest - window.cost for window in windows]
        spans = [(start, start + window.cost) for start, window in zip(starts, windows, strict=True)]
        places = torch.tensor([(window, starts[window] + position) for window, position in words], dtype=torch.int64)
        return WordBatch(self._padded(windows, side), spans, places.view(-1, 2), lengths)

    def probes(self) -> list[dict[str, Tensor]]:
        """Ragged sentences padded on the own side and the other, and one that fills the model beside a short one."""
        rows = self.encode(PROBES, ["probe"] * len(PROBES))
        own_side = self.tokenizer.padding_side
        sides = (own_side, "left" if own_side == "right" else "right")
        words = tuple(text_of(min(self.max_length, LONGEST_PROBE)).split())
        full = self.encode([words], ["probe"])[0]
        return [*(self._words_padded(rows, side) for side in sides), self._words_padded([rows[0], full], own_side)]


def in_windows(inputs: dict[str, list[int]], word_of: Sequence[int | None], most: int) -> EncodedSentence:
    """A sentence in windows of equally many tokens, special ones included, that overlap by half.

    Args:
        inputs: of the whole sentence, by the model's names.
        word_of: of each token its word; None for special ones, which stand before and behind the words.
        most: tokens of a window.
    """
    own = [place for place, word in enumerate(word_of) if word is not None]
    first, behind = own[0], len(word_of) - 1 - own[-1]
    count = len(word_of) - first - behind
    room = most - first - behind
    if room < 1:
        raise BackboneError(f"max_length={most} leaves no room for a word: give more")
    if count <= room:
        starts = [0]
        room = count
    else:
        # The last one ends with the sentence, so that all are of one length, and padding is nobody's concern.
        starts = [*range(0, count - room, max(room // 2, 1)), count - room]
    windows = tuple(
        {
            name: values[:first] + values[first + start : first + start + room] + values[first + count :]
            for name, values in inputs.items()
        }
        for start in starts
    )
    begins: dict[int, int] = {}
    ends: dict[int, int] = {}
    for place, word in enumerate(word_of):
        if word is not None:
            begins.setdefault(word, place - first)
            ends[word] = place - first
    words = []
    for word in sorted(begins):
        # How much is seen on the side where less is; a tie is the earlier window's.
        seen = [
            min(begins[word] - start, start + room - 1 - ends[word]) if start <= begins[word] < start + room else -most
            for start in starts
        ]
        window = seen.index(max(seen))
        words.append((window, first + begins[word] - starts[window]))
    cost = len(windows[0]["input_ids"]) * len(windows)
    return EncodedSentence(dict(windows[0]), cost, len(windows) > 1, windows, tuple(words))
