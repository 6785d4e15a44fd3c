"""What a page tells of sentences whose words have labels: a table of the types, and the sentences that went wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hftl.report.collected import Collected
from hftl.report.numbers import Predictions
from hftl.report.spans import (
    Fate,
    Judged,
    JudgedEntities,
    confused_types,
    fates_by_type,
    pieces,
    said_entities,
    worst_sentences,
)

MOST_TYPES, MOST_CONFUSIONS, MOST_WITHOUT_WORDS = 1000, 15, 20
# Where each word is judged alone every word is an entity: only those that are wrong are marked.
ALONE = "plain"


def table_of_types(per_type: Mapping[str, Mapping[str, Any]], sentences: Sequence[JudgedEntities]) -> dict[str, Any]:
    """The rows of the table of types, the worst first, and the types that are confused most.

    Args:
        per_type: as ``metrics.json`` has it.
        sentences: of the test split.
    """
    true, invented = fates_by_type(sentences)
    rows = [
        {
            "name": name,
            **numbers,
            "right": true[name, Fate.RIGHT],
            "words": true[name, Fate.WORDS],
            "other": true[name, Fate.TYPE] + true[name, Fate.BOTH],
            "missed": true[name, Fate.NOTHING],
            "invented": invented[name],
        }
        for name, numbers in per_type.items()
    ]
    # A type without test entities has no F1 that means anything.
    rows.sort(key=lambda row: (row["support"] == 0, row["f1"], -row["support"]))
    confused = [
        {"type": name, "taken": taken, "count": count, "share": count / per_type[name]["support"]}
        for name, taken, count in confused_types(sentences)
    ]
    return {
        "rows": rows[:MOST_TYPES],
        "left_out": max(0, len(rows) - MOST_TYPES),
        "confused": confused[:MOST_CONFUSIONS],
        "pairs": len(confused),
    }


def worst_cards(predictions: Predictions, sentences: Sequence[JudgedEntities], collected: Collected) -> dict[str, Any]:
    """The worst sentences: where the run kept their words, these with their entities; else entities by place.

    Args:
        predictions: of the test split.
        sentences: of it.
        collected: what the run kept.
    """
    known = {each.row: collected.rows[each.shown] for each in collected.worst if each.row < len(predictions)}
    alone = predictions.tagging.scheme == ALONE
    cards = []
    for row in known or worst_sentences(predictions, sentences, MOST_WITHOUT_WORDS):
        sentence, shown = sentences[row], known.get(row)
        sides = [(_marked(sentence.true, alone), "missed"), (_marked(sentence.said, alone), "none there")]
        cards.append(
            {
                "name": predictions.rows[row],
                "shown": shown,
                "sides": [pieces(shown.words, shown.before, marked, missing) for marked, missing in sides]
                if shown
                else None,
                "said": [said_entities(each.span for each in marked) for marked, _ in sides],
            }
        )
    wrong = sum(not sentence.is_right for sentence in sentences)
    return {"cards": cards, "wrong": wrong, "alone": alone, "missing": collected.missing.get("rows")}


def _marked(side: Sequence[Judged], alone: bool) -> list[Judged]:
    return [each for each in side if not (alone and each.fate is Fate.RIGHT)]
