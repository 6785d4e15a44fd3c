"""`collect`: what only the living run knows of its rows, kept for its page before features and data are gone.

Its cost is bounded: where there are many rows, neighbours are looked for among a sample, and what a person cannot look
through is counted, not shown.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor

from hftl.criterion import Criterion
from hftl.data import Data, Files, Split, Texts
from hftl.data.images import thumbnail
from hftl.errors import BadRowError
from hftl.export.trained import Trained
from hftl.finetune.memory import peak_memory_bytes
from hftl.frozen.features import SplitFeatures, StoredFeatures, taken
from hftl.frozen.outside import nearest_rows
from hftl.heads import lexicon, neighbour_scores
from hftl.intervals import of_draws, resamples, units_of
from hftl.metrics.resampled import resampled_metric
from hftl.report.collected import (
    Collected,
    CopiesAcross,
    Copy,
    FeatureMap,
    FreeScore,
    LikelyWrong,
    NearRow,
    ShownRow,
    Suspect,
    WorstRow,
    in_words,
)
from hftl.report.numbers import Predictions, worst_rows
from hftl.report.plane import on_a_plane
from hftl.report.spans import judged_rows, said_entities, worst_sentences
from hftl.scored import scored
from hftl.scout.copies import CANDIDATE, Neighbours, copies_by_split, find_copies
from hftl.scout.stored import split_matrix
from hftl.scout.suspects import large_residuals, likely_wrong
from hftl.tagging import Tagging
from hftl.tasks import for_whole_rows
from hftl.wording import shortened

MOST_WORST, NEAR = 20, 4
MOST_SUSPECTS, MOST_COPIES = 12, 12
MOST_POINTS = 1500
# Training rows among which the nearest ones are looked for, and products of numbers that this may take for copies.
MOST_REFERENCE = 50_000
MOST_PRODUCTS = 30_000_000_000
# Of these rows, what is in memory at once.
_COPIES = 8
# Pairs of a test row and its nearest training row that are compared in full: pictures are decoded for it.
MOST_COMPARED = 200
SIDE = 112
LONGEST_TEXT = 400
# Of a long sentence so many words are shown, from a few before its first mistake on.
MOST_WORDS, WORDS_BEFORE, LONGEST_WORD = 200, 20, 60

OF_WORDS = "each word has a label, and this is told of whole rows"
NO_FEATURES = "the run computed no features: its fine-tuning did not start from a solved head"


def collect(data: Data, features: StoredFeatures | None, trained: Trained, modality: str, seed: int) -> Collected:
    """Gather what the page shows of rows.

    Args:
        data: the splits, without bad rows.
        features: of them; None where there are none.
        trained: the model, with its logits of the test split.
        modality: of the backbone; rows of ``image`` are shown as pictures.
        seed: of samples of rows.
    """
    predictions = Predictions(
        data.task,
        data.label_names,
        [data.test.inputs.name(i) for i in range(len(data.test))],
        data.test.labels,
        data.task.scores(trained.logits).numpy(),
        trained.report.get("thresholds"),
    )
    gathered = _Gathering(data, Shelf(data, modality), predictions, trained, seed)
    if data.task.of_words:
        return _of_sentences(gathered, features)
    worst = worst_rows(predictions, MOST_WORST)
    missing: dict[str, str] = {}
    if features is None:
        found = _Found(near=[[] for _ in worst])
        missing = {"near": NO_FEATURES, "map": NO_FEATURES, "copies": NO_FEATURES}
    else:
        found = _from_features(gathered, features, worst)
    return Collected(
        worst=[
            WorstRow(row=row, shown=gathered.shelf.put("test", row), near=near)
            for row, near in zip(worst, found.near, strict=True)
        ],
        neighbours_of=found.reference,
        suspects=gathered.suspects(),
        copies=found.copies,
        map=found.map,
        free=found.free,
        peak_memory_bytes=peak_memory_bytes(PartialState().device),
        missing=missing,
        # Last, because everything above puts rows there.
        rows=gathered.shelf.rows,
    )


def _of_sentences(gathered: _Gathering, features: StoredFeatures | None) -> Collected:
    """What the page shows of sentences whose words have labels."""
    shelf, predictions = gathered.shelf, gathered.predictions
    missing = dict.fromkeys(("near", "map", "suspects"), OF_WORDS)
    copies = None
    if features is None:
        missing["copies"] = NO_FEATURES
    else:
        exact, first = _exact_copies(shelf, features)
        copies = CopiesAcross(exact=exact, near=0, compared=0, first=first[:MOST_COPIES])
    sentences = judged_rows(predictions)
    worst = [
        WorstRow(row=row, shown=shelf.put("test", row, sentences[row].first_mistake), near=[])
        for row in worst_sentences(predictions, sentences, MOST_WORST)
    ]
    return Collected(
        worst=worst,
        copies=copies,
        free=[_words_by_heart(gathered)],
        peak_memory_bytes=peak_memory_bytes(PartialState().device),
        missing=missing,
        rows=shelf.rows,
    )


def lexicon_scores(data: Data) -> np.ndarray:
    """What the lexicon says of the test split's words, as scores (words, C) of 0 and 1; see `hftl.heads.lexicon`."""
    train, test = data.train, data.test
    assert isinstance(train.inputs, Texts)
    assert isinstance(test.inputs, Texts)
    said = lexicon(train.inputs, train.labels, test.inputs)
    scores: np.ndarray = np.eye(len(data.label_names), dtype=np.float32)[said]
    return scores


def _words_by_heart(gathered: _Gathering) -> FreeScore:
    data = gathered.data
    found = scored(
        Criterion.of_task(data.task),
        data.test.labels,
        np.arange(len(data.test)),
        lexicon_scores(data),
        seed=gathered.seed,
        groups=data.test.marks.groups,
        label_names=data.label_names,
    ).interval
    return FreeScore(what="words by heart", value=found.value, low=found.low, high=found.high)


class Shelf:
    """Every row that is shown, once, read when it is first put there."""

    def __init__(self, data: Data, modality: str) -> None:
        self.rows: list[ShownRow] = []
        self._data, self._is_picture = data, modality == "image"
        self._splits = {split.name: split for split in data.splits()}
        self._modality = modality
        self._places: dict[tuple[str, int], int] = {}

    def put(self, split: str, row: int, at: int = 0) -> int:
        """The place of a row of a split; of a long sentence the words about the word ``at`` are kept."""
        if (split, row) not in self._places:
            self._places[split, row] = len(self.rows)
            self.rows.append(self._shown(self._splits[split], row, at))
        return self._places[split, row]

    def _shown(self, split: Split, row: int, at: int) -> ShownRow:
        inputs = split.inputs
        if self._data.task.of_words:
            return self._sentence(split, row, at)
        shown = ShownRow(split=split.name, name=inputs.name(row), label=self._label(split.labels[row : row + 1]))
        if not isinstance(inputs, Files):
            return shown.model_copy(update={"texts": [shortened(text, LONGEST_TEXT) for text in inputs[row]]})
        if not self._is_picture:
            return shown.model_copy(update={"missing": f"rows of {self._modality} cannot be shown on a page"})
        try:
            return shown.model_copy(update={"picture": _as_address(thumbnail(inputs.read(row), shown.name, SIDE))})
        except BadRowError as error:  # the file has gone since its features were computed
            return shown.model_copy(update={"missing": error.why})

    def _sentence(self, split: Split, row: int, at: int) -> ShownRow:
        assert isinstance(split.inputs, Texts)
        words = [shortened(word, LONGEST_WORD) for word in split.inputs[row]]
        start = max(0, min(at - WORDS_BEFORE, len(words) - MOST_WORDS))
        shown = words[start : start + MOST_WORDS]
        spans = Tagging(tuple(self._data.label_names)).spans(split.labels[row].tolist())
        return ShownRow(
            split=split.name,
            name=split.inputs.name(row),
            label=shortened(said_entities(spans, words), LONGEST_TEXT),
            words=shown,
            before=start,
            after=len(words) - start - len(shown),
        )

    def _label(self, labels: np.ndarray) -> str:
        return in_words(self._data.task.truth(labels, self._data.label_names)[0])


def _as_address(picture: Image.Image) -> str:
    """A small picture as a ``data:`` address; a very small one as it is, because JPEG blurs it."""
    kind = "PNG" if max(picture.size) < SIDE // 2 else "JPEG"
    file = io.BytesIO()
    picture.save(file, kind, quality=80, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


@dataclass(frozen=True)
class _Gathering:
    data: Data
    shelf: Shelf
    predictions: Predictions
    trained: Trained
    seed: int

    def suspects(self) -> LikelyWrong:
        """Likely wrong labels of test rows and, where folds judged these, of training rows."""
        pools = [("test", np.arange(len(self.data.test)), self.predictions.scores)]
        if held := self.trained.held_out:
            pools.append(("train", held.rows.cpu().numpy(), self.data.task.scores(held.logits.cpu()).numpy()))
        listed: list[tuple[float, str, int, str, str]] = []
        for split, rows, scores in pools:
            labels = next(each.labels for each in self.data.splits() if each.name == split)[rows]
            judge: Callable[..., Any] = self.data.task.case(
                single_label=_wrong_classes,
                multi_label=_wrong_sets,
                regression=_far_off,
                token_labels=lambda *_: for_whole_rows(),
            )
            found = judge(scores, labels, self.data.label_names)
            listed += [(sure, split, int(rows[i]), rather, why) for sure, i, rather, why in found]
        listed.sort(key=lambda each: -each[0])
        return LikelyWrong(
            judged={split: len(rows) for split, rows, _ in pools},
            listed={split: len({row for _, of, row, *_ in listed if of == split}) for split, *_ in pools},
            first=[
                Suspect(shown=self.shelf.put(split, row), suggested=rather, why=why)
                for _, split, row, rather, why in listed[:MOST_SUSPECTS]
            ],
        )


def _wrong_classes(scores: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> list[tuple[float, int, str, str]]:
    own, suggested, listed = likely_wrong(scores, labels)
    return [
        (
            1 - float(own[i]),
            i,
            names[suggested[i]],
            f"{own[i]:.2f} for its label, {scores[i, suggested[i]]:.2f} for this",
        )
        for i in np.flatnonzero(listed).tolist()
    ]


def _wrong_sets(scores: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> list[tuple[float, int, str, str]]:
    found = []
    for k, name in enumerate(names):
        own, _, listed = likely_wrong(
            np.stack([1 - scores[:, k], scores[:, k]], 1), (labels[:, k] > 0).astype(np.int64)
        )
        for i in np.flatnonzero(listed).tolist():
            rather = f"{'without' if labels[i, k] > 0 else 'with'} {name}"
            found.append((1 - float(own[i]), i, rather, f"{scores[i, k]:.2f} for {name}"))
    return found


def _far_off(scores: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> list[tuple[float, int, str, str]]:
    residuals, listed = large_residuals(scores, labels)
    return [
        (
            size := abs(float(residuals[i, k])),
            i,
            f"{names[k]} about {scores[i, k]:.4g}",
            f"{size:.1f} times the usual error",
        )
        for i, k in np.argwhere(listed).tolist()
    ]


# ── from features ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Found:
    near: list[list[NearRow]]
    reference: int = 0
    copies: CopiesAcross | None = None
    map: FeatureMap | None = None
    free: list[FreeScore] = field(default_factory=list)


def _from_features(gathered: _Gathering, features: StoredFeatures, worst: Sequence[int]) -> _Found:
    generator = np.random.default_rng(gathered.seed)
    shelf, cut = gathered.shelf, features.content.cut
    train, test = features.splits["train"], features.splits["test"]
    reference = _sample(len(train.split), _most_reference(features), generator)
    known = _chosen_rows(features, train, reference)
    matrix = split_matrix(known, cut)[0]
    near: list[list[NearRow]] = [[] for _ in worst]
    if worst:
        cosine, index = nearest_rows(split_matrix(_chosen_rows(features, test, np.array(worst)), cut)[0], matrix, NEAR)
        near = [
            [
                NearRow(shown=shelf.put("train", int(reference[i])), cosine=round(c, 4))
                for c, i in zip(*row, strict=True)
            ]
            for row in zip(cosine.tolist(), index.tolist(), strict=True)
        ]
    looked_at = _sample(len(test.split), max(1, int(MOST_PRODUCTS / max(matrix.numel(), 1))), generator)
    asked = _chosen_rows(features, test, looked_at)
    queries = split_matrix(asked, cut)[0]
    drawn = np.sort(generator.permutation(len(looked_at))[:MOST_POINTS])
    return _Found(
        near,
        len(reference),
        _copies(gathered, features, (reference, known, matrix), (looked_at, asked, queries)),
        on_a_plane(queries[torch.from_numpy(drawn)], looked_at[drawn], gathered.seed),
        _free_scores(gathered, known.split, matrix, asked.split, queries),
    )


def _sample(count: int, most: int, generator: np.random.Generator) -> np.ndarray:
    """Numbers of rows: all of them, or so many at random, in order."""
    return np.arange(count) if count <= most else np.sort(generator.choice(count, most, replace=False))


def _most_reference(features: StoredFeatures) -> int:
    """Training rows that are compared with at most: fewer where features have to be read for it."""
    if features.memory is None:
        return MOST_REFERENCE
    # As they are, centred, normalised, and as much again for the test rows.
    return max(1, min(MOST_REFERENCE, features.memory // (_COPIES * 4 * features.content.cut.width)))


def _chosen_rows(features: StoredFeatures, part: SplitFeatures, rows: np.ndarray) -> SplitFeatures:
    if len(rows) == len(part.split) and np.array_equal(rows, np.arange(len(rows))):
        return features.loaded(part)
    # Under its name, because other views of them are of no use here.
    return features.loaded(taken(part, rows, part.split.name))


Part = tuple[np.ndarray, SplitFeatures, Tensor]


def _copies(gathered: _Gathering, features: StoredFeatures, known: Part, asked: Part) -> CopiesAcross:
    """Exact copies among all rows of all splits; near ones among the test rows that are most like a training row."""
    exact, first = _exact_copies(gathered.shelf, features)
    near, compared = _near_copies(known, asked)
    first += [
        Copy(
            shown=gathered.shelf.put("test", row),
            other=gathered.shelf.put("train", other),
            similarity=round(similarity, 4),
            exact=False,
        )
        for similarity, row, other in near[: MOST_COPIES - len(first)]
    ]
    return CopiesAcross(exact=exact, near=len(near), compared=compared, first=first[:MOST_COPIES])


def _exact_copies(shelf: Shelf, features: StoredFeatures) -> tuple[dict[str, int], list[Copy]]:
    """How many rows of a later split stand in an earlier one, by the two's names, and the first of them."""
    parts = list(features.splits.values())
    exact: dict[str, int] = {}
    first: list[Copy] = []
    for at, later in enumerate(parts):
        for earlier in parts[:at]:
            pairs = _same_content(later.digests, earlier.digests)
            if len(pairs):
                exact[f"{later.split.name} in {earlier.split.name}"] = len(pairs)
            first += [
                Copy(
                    shown=shelf.put(later.split.name, row),
                    other=shelf.put(earlier.split.name, other),
                    similarity=1.0,
                    exact=True,
                )
                for row, other in pairs[: MOST_COPIES // 2].tolist()
            ]
    return exact, first


def _same_content(later: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    """Rows of one split and the first row of another that holds the same: int64 (p, 2)."""
    ours, theirs = (np.ascontiguousarray(each).view("V16").ravel() for each in (later, earlier))
    distinct, first = np.unique(theirs, return_index=True)
    place = np.minimum(np.searchsorted(distinct, ours), len(distinct) - 1)
    same = np.flatnonzero(distinct[place] == ours) if len(distinct) else np.zeros(0, dtype=np.int64)
    return np.stack([same, first[place[same]]], axis=1)


def _near_copies(known: Part, asked: Part) -> tuple[list[tuple[float, int, int]], int]:
    """Similarity, test row and training row of near copies, the surest first; and how many pairs were compared."""
    (reference, train, matrix), (looked_at, test, queries) = known, asked
    cosine, index = (each[:, 0].numpy() for each in nearest_rows(queries, matrix, 1))
    differs = (test.digests != train.digests[index]).any(1)
    promising = np.flatnonzero(differs & (cosine >= CANDIDATE))
    promising = promising[np.argsort(-cosine[promising], kind="stable")][:MOST_COMPARED]
    pairs, count = index[promising], len(promising)
    if not count:
        return [], 0
    # Each of the test rows, which come first, is a candidate with its training row, and with no other.
    place = np.concatenate([np.arange(count) + count, np.arange(count)])[:, None]
    alike = np.concatenate([cosine[promising], np.full(count, -1, dtype=np.float32)])[:, None]
    found = copies_by_split(
        find_copies(
            [test.split.inputs.select(promising), train.split.inputs.select(pairs)],
            np.concatenate([test.digests[promising], train.digests[pairs]]),
            Neighbours(place, alike),
        ),
        np.repeat([0, 1], count),
    )
    near = [
        (copy.similarity, int(looked_at[promising[row]]), int(reference[pairs[copy.other - count]]))
        for row, of_split in found.items()
        if row < count and (copy := of_split.get(1)) is not None and not copy.exact
    ]
    return sorted(near, reverse=True), count


def _free_scores(gathered: _Gathering, train: Split, known: Tensor, test: Split, queries: Tensor) -> list[FreeScore]:
    """For several labels and for targets: always the mean of the training labels, and the nearest neighbours."""
    task = gathered.data.task
    if task.is_exclusive:
        return []  # the head's own report has them
    targets = torch.from_numpy(train.labels).float()
    said = {
        "mean of the labels": targets.mean(0).expand(len(queries), -1),
        "nearest neighbours": neighbour_scores(known, targets, queries),
    }
    groups, found = test.marks.groups, []
    units = units_of(len(test), groups)
    for what, scores in said.items():
        plain = scores.numpy()
        value = float(resampled_metric(task, plain, test.labels, np.ones((1, len(test))))[0])
        draws = np.concatenate(
            [
                resampled_metric(task, plain, test.labels, counts)
                for counts in resamples(len(test), groups=groups, seed=gathered.seed)
            ]
        )
        draws = draws[np.isfinite(draws)]
        if math.isfinite(value) and len(draws):
            interval = of_draws(value, draws, units)
            found.append(FreeScore(what=what, value=value, low=interval.low, high=interval.high))
    return found
