"""Sentences to predict: a text cut into words, or words that somebody else has cut."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

# Runs of letters, digits and underscores; any other character that is no blank is a word of its own, as in most data
# sets of tagged words, and as BERT's tokenizers cut.
_WORD = re.compile(r"\w+|[^\w\s]")


class Sentence(tuple[str, ...]):
    """The words of a sentence, and where they stand in its text.

    Attributes:
        text: as it was given; of words alone, these with a blank between.
        places: of each word its first character and the one behind its last, in the text.
    """

    text: str
    places: list[tuple[int, int]]

    @classmethod
    def of_text(cls, text: str) -> Sentence:
        """A text, cut into words."""
        found = list(_WORD.finditer(text))
        made = cls(match[0] for match in found)
        made.text, made.places = text, [match.span() for match in found]
        return made

    @classmethod
    def of_words(cls, words: Sequence[Any]) -> Sentence:
        """Words as they are.

        Raises:
            ValueError: one is no text.
        """
        if not all(isinstance(word, str) for word in words):
            raise ValueError("a list of words holds something that is no text")
        made = cls(words)
        made.text, made.places, start = " ".join(words), [], 0
        for word in words:
            made.places.append((start, start + len(word)))
            start += len(word) + 1
        return made
