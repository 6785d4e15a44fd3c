"""Entities of sentences, true and predicted: what became of each, which types are confused, and where each stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from hftl.report.numbers import Predictions
from hftl.tagging import Span, Tagging

NO_ENTITY = "no entity"


class Fate(Enum):
    """What became of an entity on the other side."""

    RIGHT = "right"
    TYPE = "other type"
    WORDS = "other words"
    BOTH = "other type and words"
    NOTHING = "nothing there"


@dataclass(frozen=True)
class Judged:
    """An entity and what the other side has in its place.

    Attributes:
        span: the entity.
        fate: what became of it.
        other: what stands there instead; None where nothing does.
    """

    span: Span
    fate: Fate
    other: Span | None


@dataclass(frozen=True)
class JudgedEntities:
    """The entities of one sentence.

    Attributes:
        true: those that are there, each beside what was predicted.
        said: those that were predicted, each beside what is there.
    """

    true: list[Judged]
    said: list[Judged]

    @property
    def is_right(self) -> bool:
        """Whether all that is there was found, and nothing else."""
        return all(each.fate is Fate.RIGHT for each in (*self.true, *self.said))

    @property
    def first_mistake(self) -> int:
        """The word at which the first one begins; 0 where there is none."""
        return min((each.span.start for each in (*self.true, *self.said) if each.fate is not Fate.RIGHT), default=0)


def judged_entities(tagging: Tagging, labels: Sequence[int], predicted: Sequence[int]) -> JudgedEntities:
    """Every entity of a sentence beside the one of the other side that it shares most words with, the first of equals.

    Args:
        tagging: the tags.
        labels: numbers of the words' tags.
        predicted: the same, as predicted.
    """
    true, said = list(tagging.spans(labels)), list(tagging.spans(predicted))
    return JudgedEntities([_beside(span, said) for span in true], [_beside(span, true) for span in said])


def _beside(span: Span, others: Sequence[Span]) -> Judged:
    shared = [min(span.end, other.end) - max(span.start, other.start) for other in others]
    if max(shared, default=0) <= 0:
        return Judged(span, Fate.NOTHING, None)
    # One with the same words shares as many as one that has more.
    same = next((other for other in others if (other.start, other.end) == (span.start, span.end)), None)
    other = same or others[int(np.argmax(shared))]
    if same is not None:
        return Judged(span, Fate.RIGHT if other.type == span.type else Fate.TYPE, other)
    return Judged(span, Fate.WORDS if other.type == span.type else Fate.BOTH, other)


def judged_rows(predictions: Predictions) -> list[JudgedEntities]:
    """The entities of every row of a test split."""
    pairs = zip(predictions.labels, predictions.predicted, strict=True)
    return [judged_entities(predictions.tagging, labels.tolist(), said.tolist()) for labels, said in pairs]


def words_loss(predictions: Predictions) -> np.ndarray:
    """The logarithmic loss of each sentence, summed over its words: float64 (n,)."""
    task, labels = predictions.task, predictions.labels
    lines = task.by_line(labels)
    own = predictions.scores[np.arange(len(lines)), lines].astype(np.float64)
    loss = -np.log(np.maximum(own, float(np.finfo(np.float32).tiny)))
    return np.array([each.sum() for each in task.by_row(loss, labels)])


def worst_sentences(predictions: Predictions, sentences: Sequence[JudgedEntities], most: int) -> list[int]:
    """The rows with a wrong entity, the one with the largest loss first."""
    wrong = np.flatnonzero([not sentence.is_right for sentence in sentences])
    order = wrong[np.argsort(-words_loss(predictions)[wrong], kind="stable")]
    found: list[int] = order[:most].tolist()
    return found


def fates_by_type(sentences: Sequence[JudgedEntities]) -> tuple[Counter[tuple[str, Fate]], Counter[str]]:
    """How many true entities of each type had which fate, and how many of each type were found where none is."""
    true = Counter((each.span.type, each.fate) for sentence in sentences for each in sentence.true)
    said = [each for sentence in sentences for each in sentence.said]
    return true, Counter(each.span.type for each in said if each.fate is Fate.NOTHING)


def confused_types(sentences: Sequence[JudgedEntities]) -> list[tuple[str, str, int]]:
    """True type, predicted type and count of entities that were taken for another type, the most frequent first."""
    pairs = Counter(
        (each.span.type, each.other.type)
        for sentence in sentences
        for each in sentence.true
        if each.other is not None and each.other.type != each.span.type
    )
    return [(true, said, count) for (true, said), count in pairs.most_common()]


# ── for a person ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Piece:
    """Some words of a sentence.

    Attributes:
        text: the words.
        type: of the entity that they are; empty where they are none.
        note: what is wrong with it; empty where it is right.
    """

    text: str
    type: str = ""
    note: str = ""


def pieces(words: Sequence[str], first: int, marked: Sequence[Judged], missing: str) -> list[Piece]:
    """A sentence, or a part of it, cut where entities begin and end.

    Args:
        words: those that are shown.
        first: the number of the first of them in the sentence.
        marked: entities of one side, in their order.
        missing: what is said of an entity that the other side has nothing for.
    """
    found, place, end = [], first, first + len(words)
    for each in marked:
        start, stop = max(each.span.start, place), min(each.span.end, end)
        if start >= stop:
            continue
        if start > place:
            found.append(Piece(" ".join(words[place - first : start - first])))
        note = missing if each.fate is Fate.NOTHING else "" if each.fate is Fate.RIGHT else each.fate.value
        found.append(Piece(" ".join(words[start - first : stop - first]), each.span.type, note))
        place = stop
    if place < end:
        found.append(Piece(" ".join(words[place - first :])))
    return found


def said_entities(spans: Iterator[Span], words: Sequence[str] = ()) -> str:
    """Entities as one text: with their words where these are known, else by the numbers of their words, from 1."""
    said = [f"{span.type}: {' '.join(words[span.start : span.end])}" if words else _numbered(span) for span in spans]
    return "; ".join(said) or NO_ENTITY


def _numbered(span: Span) -> str:
    if span.end - span.start == 1:
        return f"{span.type}: word {span.end:,}"
    return f"{span.type}: words {span.start + 1:,} to {span.end:,}"
