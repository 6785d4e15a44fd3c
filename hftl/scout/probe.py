"""How well a head on frozen features does on rows that it has not seen, with an interval; and how two such compare."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from hftl.heads import cross_validate, neighbour_scores
from hftl.intervals import LEVEL, Difference, difference, holm, spread_of_folds
from hftl.scored import Score, scored
from hftl.scout.stored import TrainingRows
from hftl.tasks import Task


def linear_probe(features: Tensor, labels: Tensor, *, task: Task, num_labels: int, folds: int, seed: int) -> Score:
    """The exact linear head, cross-validated; see `hftl.heads.cross_validate`.

    Raises:
        DataError: there is one class only, or no two rows of any class.
    """
    held = cross_validate(features, labels, task=task, num_labels=num_labels, folds=folds, seed=seed)
    return scored(task, labels.numpy(), held.rows.numpy(), held.logits.numpy(), seed=seed)


def probe_rows(known: TrainingRows, folds: int) -> Score:
    """`linear_probe` of training rows."""
    labels = len(known.data.label_names)
    return linear_probe(known.features, known.labels, task=known.task, num_labels=labels, folds=folds, seed=known.seed)


def neighbour_probe(features: Tensor, labels: Tensor, targets: Tensor, *, task: Task, seed: int) -> Score:
    """The 20 nearest rows by cosine, each row judged by all others; nothing is trained.

    Args:
        features: (n, d).
        labels: of the rows.
        targets: (n, C) float32, the labels as numbers to average.
        task: what they are.
        seed: of the bootstrap samples.
    """
    scores = neighbour_scores(features, targets, features, own=True)
    return scored(task, labels.numpy(), np.arange(len(labels)), scores.numpy(), seed=seed)


def ahead_by(one: Score, other: Score, folds: int) -> Difference:
    """How much better one cross-validated head is than another on the same rows."""
    value = one.interval.value - other.interval.value
    return difference(value, one.draws - other.draws, spread=spread_of_folds(folds))


def tied_groups(scores: Sequence[Score], folds: int) -> list[int]:
    """Groups of scores that are the same within noise, numbered from 1, the best.

    All pairs are compared, with Holm's correction. From the best downwards, a score opens a new group where it differs
    from the first of the group before.

    Args:
        scores: from best to worst, of the same rows.
        folds: of the cross-validation.
    """
    pairs = [(i, j) for i in range(len(scores)) for j in range(i + 1, len(scores))]
    adjusted = dict(zip(pairs, holm([ahead_by(scores[i], scores[j], folds).p for i, j in pairs]), strict=True))
    groups: list[int] = []
    leader = 0
    for place in range(len(scores)):
        if place and adjusted[leader, place] < 1 - LEVEL:
            leader = place
        # A leader opens its group; all others are in the one that was opened last.
        opens = place == leader
        groups.append((groups[-1] if groups else 0) + opens)
    return groups
