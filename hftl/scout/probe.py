"""How well a head on frozen features does on rows that it has not seen, with an interval; and how two such compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from hftl.criterion import Criterion, as_logits
from hftl.data.division import fold_count, folds_of
from hftl.errors import DataError
from hftl.frozen.head import LEAST_DEVIATION
from hftl.heads import cross_validate, neighbour_scores
from hftl.intervals import (
    LEVEL,
    SPREAD_OF_HEADS,
    Difference,
    holm,
)
from hftl.scored import Score, better_by, scored
from hftl.scout.stored import TrainingRows

# Of each fold. With five folds, heads that judge have seen 95 % of the rows, and score hardly less than the head on all
# of them, which is the one that a run exports.
PARTS = 4
# What is less is not shown, and no reason to prefer anything.
NOTHING = 0.0005 - 1e-9


def linear_probe(
    features: Tensor,
    labels: Tensor,
    *,
    criterion: Criterion,
    num_labels: int,
    folds: int,
    seed: int,
    parts: int = PARTS,
    dealt: Tensor | None = None,
    groups: np.ndarray | None = None,
) -> Score:
    """The exact linear head, cross-validated; see `hftl.heads.cross_validate`.

    A metric that a recipe names chooses the strength too; the held-out loss does otherwise. The interval is that of the
    head on all rows, which a run exports.

    Raises:
        DataError: there is one class only, or no two rows of any class.
    """
    held = cross_validate(
        features,
        labels,
        task=criterion.task,
        num_labels=num_labels,
        folds=folds,
        parts=parts,
        dealt=dealt,
        judge=criterion if criterion.is_stated else None,
        groups=None if groups is None else torch.from_numpy(groups),
        seed=seed,
    )
    rows, logits = held.rows.numpy(), held.logits.numpy()
    return scored(criterion, labels.numpy(), rows, logits, seed=seed, spread=SPREAD_OF_HEADS, groups=groups)


def probe_rows(known: TrainingRows, folds: int, parts: int = PARTS) -> Score:
    """`linear_probe` of training rows, in so many folds, or as many as there are groups where these are fewer.

    Of sentences whose words have labels `_probe_of_words`.
    """
    folds = fold_count(known.split, folds)
    labels, outputs = known.labels, len(known.data.label_names)
    dealt = folds_of(known.split, known.task, folds, known.seed)
    if known.task.of_words:
        return _probe_of_words(known, folds, parts, dealt)
    return linear_probe(
        known.features,
        labels,
        criterion=known.criterion,
        num_labels=outputs,
        folds=folds,
        seed=known.seed,
        parts=parts,
        dealt=None if dealt is None else torch.from_numpy(dealt),
        groups=known.split.marks.groups,
    )


def _probe_of_words(known: TrainingRows, folds: int, parts: int, dealt: np.ndarray | None) -> Score:
    """The exact linear head on words, cross-validated over sentences: folds and bootstrap samples part none.

    A tag all of whose words are in one fold is learnt by every head and judged by none; sentences that have it are not
    among those that are scored.
    """
    sentences, labels = known.rows_of_lines, known.split.labels
    held = cross_validate(
        known.features,
        known.labels,
        task=known.task.unit,
        num_labels=len(known.data.label_names),
        folds=folds,
        parts=parts,
        groups=sentences if dealt is None else None,
        dealt=None if dealt is None else torch.from_numpy(dealt)[sentences],
        least=LEAST_DEVIATION,
        seed=known.seed,
    )
    judged = torch.zeros(len(sentences), dtype=torch.bool)
    judged[held.rows] = True
    unjudged = torch.unique(sentences[~judged])
    whole = np.setdiff1d(np.arange(len(labels)), unjudged.numpy())
    if not len(whole):
        raise DataError("no sentence can be held out: each has a tag that no other has; label more sentences")
    logits = held.logits[~torch.isin(sentences[held.rows], unjudged)].numpy()
    return scored(
        known.criterion,
        labels,
        whole,
        logits,
        seed=known.seed,
        spread=SPREAD_OF_HEADS,
        groups=known.split.marks.groups,
        label_names=known.data.label_names,
    )


def neighbour_rows(known: TrainingRows) -> Score:
    """`neighbour_probe` of training rows; a word's neighbours are those of other sentences."""
    groups = known.split.marks.groups
    if not known.task.of_words:
        return neighbour_probe(
            known.features, known.labels, known.targets, criterion=known.criterion, seed=known.seed, groups=groups
        )
    shares = neighbour_scores(known.features, known.targets, known.features, own=True, groups=known.apart).numpy()
    return scored(
        known.criterion,
        known.split.labels,
        np.arange(len(known.split)),
        shares,
        seed=known.seed,
        spread=SPREAD_OF_HEADS,
        groups=groups,
        label_names=known.data.label_names,
    )


def neighbour_probe(
    features: Tensor,
    labels: Tensor,
    targets: Tensor,
    *,
    criterion: Criterion,
    seed: int,
    groups: np.ndarray | None = None,
) -> Score:
    """The 20 nearest rows by cosine, each row judged by all others; nothing is trained.

    Args:
        features: (n, d).
        labels: of the rows.
        targets: (n, C) float32, the labels as numbers to average.
        criterion: the metric.
        seed: of the bootstrap samples.
        groups: int64 (n,), of which a row's own group is no neighbour, and which samples draw whole; None for rows.
    """
    apart = None if groups is None else torch.from_numpy(groups)
    shares = neighbour_scores(features, targets, features, own=True, groups=apart).numpy()
    scores = as_logits(criterion.task, shares) if criterion.is_stated else shares
    every = np.arange(len(labels))
    return scored(criterion, labels.numpy(), every, scores, seed=seed, spread=SPREAD_OF_HEADS, groups=groups)


def ahead_by(one: Score, other: Score) -> Difference:
    """How much better one cross-validated head is than another on the same rows; see `unless_nothing`."""
    return unless_nothing(one.criterion, better_by(one, other, spread=SPREAD_OF_HEADS))


def unless_nothing(criterion: Criterion, gain: Difference) -> Difference:
    """The difference, of which p is 1 where it is a share's and three digits of it show nothing.

    Two regressions that predict every target alike differ in the seventh digit, and that beyond noise.
    """
    return replace(gain, p=1.0) if criterion.is_share and abs(gain.value) < NOTHING else gain


def tied_groups(scores: Sequence[Score]) -> list[int]:
    """Groups of scores that are the same within noise, numbered from 1, the best.

    All pairs are compared, with Holm's correction. From the best downwards, a score opens a new group where it differs
    from the first of the group before.

    Args:
        scores: from best to worst, of the same rows.
    """
    pairs = [(i, j) for i in range(len(scores)) for j in range(i + 1, len(scores))]
    adjusted = dict(zip(pairs, holm([ahead_by(scores[i], scores[j]).p for i, j in pairs]), strict=True))
    groups: list[int] = []
    leader = 0
    for place in range(len(scores)):
        if place and adjusted[leader, place] < 1 - LEVEL:
            leader = place
        # A leader opens its group; all others are in the one that was opened last.
        opens = place == leader
        groups.append((groups[-1] if groups else 0) + opens)
    return groups
