"""Precision, recall and F1 of entities, as seqeval counts them, and the accuracy of single words.

Written here because seqeval is published as source alone and has had no release since 2020; a test holds the numbers to
it. An entity is right where its type, its first word and its last word are.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hftl.metrics.values import LEAST, Array, Result, ratio
from hftl.tagging import Tagging
from hftl.tasks import Task


def entity_counts(tagging: Tagging, labels: Iterable[Array], predicted: Iterable[Array]) -> Array:
    """How many entities of each type were found right, predicted, and there, in each sentence.

    Args:
        tagging: the tags.
        labels: of each sentence the numbers of its words' tags.
        predicted: the same, as predicted.

    Returns:
        float64 (n, types, 3), in the order of ``tagging.types``.
    """
    place = {kind: number for number, kind in enumerate(tagging.types)}
    pairs = list(zip(labels, predicted, strict=True))
    counts = np.zeros((len(pairs), len(place), 3))
    for at, (true, said) in enumerate(pairs):
        there, found = set(tagging.spans(true.tolist())), set(tagging.spans(said.tolist()))
        for column, spans in enumerate((there & found, found, there)):
            for span in spans:
                counts[at, place[span.type], column] += 1
    return counts


def entity_scores(scores: Array, labels: Array, label_names: Sequence[str]) -> Result:
    """What is reported of tagged words.

    Args:
        scores: (words, C) probabilities.
        labels: (n,) objects, the tags of each sentence's words.
        label_names: names of the C tags.
    """
    tagging = Tagging(tuple(label_names))
    words = Task.TOKEN_LABELS.by_line(labels)
    predicted = scores.argmax(1)
    hits, said, there = entity_counts(tagging, labels, Task.TOKEN_LABELS.by_row(predicted, labels)).sum(0).T
    f1 = ratio(2 * hits, said + there)
    occurs = said + there > 0
    columns = {"precision": ratio(hits, said), "recall": ratio(hits, there), "f1": f1, "support": there.astype(int)}
    return {
        "f1": float(ratio(2 * hits.sum(), said.sum() + there.sum())),
        "precision": float(ratio(hits.sum(), said.sum())),
        "recall": float(ratio(hits.sum(), there.sum())),
        "f1_macro": float(f1[occurs].mean()) if occurs.any() else 0.0,
        "accuracy": float((predicted == words).mean()),
        "log_loss": float(-_log_of_truth(scores, words).mean()),
        "scheme": tagging.scheme,
        "per_type": {
            kind: {name: values[number] for name, values in columns.items()}
            for number, kind in enumerate(tagging.types)
        },
    }


@dataclass(frozen=True)
class SentenceSums:
    """What each sentence adds to the numbers of `entity_scores`, counted once for any sample of sentences.

    Attributes:
        entities: float64 (n, types, 3), as `entity_counts` gives them.
        words: float64 (n,).
        summed: by name float64 (n,), the sums over a sentence's words of what is averaged over words.
    """

    entities: Array
    words: Array
    summed: dict[str, Array]

    @classmethod
    def of(cls, scores: Array, labels: Array, label_names: Sequence[str]) -> "SentenceSums":
        """Count.

        Args:
            scores: (words, C) probabilities.
            labels: (n,) objects, the tags of each sentence's words.
            label_names: names of the C tags.
        """
        task, tagging = Task.TOKEN_LABELS, Tagging(tuple(label_names))
        words, predicted = task.by_line(labels), scores.argmax(1)
        of_words = {"accuracy": predicted == words, "log_loss": -_log_of_truth(scores, words)}
        summed = {
            name: np.array([values.sum() for values in task.by_row(each.astype(np.float64), labels)])
            for name, each in of_words.items()
        }
        found = entity_counts(tagging, labels, task.by_row(predicted, labels))
        return cls(found, np.array([len(row) for row in labels], dtype=np.float64), summed)

    def at(self, counts: Array) -> dict[str, Array]:
        """The numbers, float64 (b,) each, on samples in which each sentence stands so many times, (b, n)."""
        drawn = (counts @ self.entities.reshape(len(self.words), -1)).reshape(len(counts), *self.entities.shape[1:])
        hits, said, there = np.moveaxis(drawn, -1, 0)
        f1, occurs = ratio(2 * hits, said + there), said + there > 0
        return {
            "f1": ratio(2 * hits.sum(1), (said + there).sum(1)),
            "precision": ratio(hits.sum(1), said.sum(1)),
            "recall": ratio(hits.sum(1), there.sum(1)),
            "f1_macro": ratio(f1.sum(1), occurs.sum(1)),
            **{name: counts @ values / (counts @ self.words) for name, values in self.summed.items()},
        }


def _log_of_truth(scores: Array, words: Array) -> Array:
    logs: Array = np.log(np.maximum(scores[np.arange(len(words)), words].astype(np.float64), LEAST))
    return logs
