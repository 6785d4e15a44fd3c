"""Seeded folds, for choosing a strength and calibrating on rows that a head has not seen."""

import torch
from torch import Tensor

from hftl.heads.fit import LinearOptions
from hftl.heads.objective import NO_FOLD
from hftl.tasks import Task


def task_folds(labels: Tensor, task: Task, folds: int, seed: int, groups: Tensor | None = None) -> Tensor:
    """The folds that heads of a task are held out on: (n,) int64, the fold of each row, or ``NO_FOLD``.

    A multiple of some folds parts each of them, so that a row's fold is ``f % folds`` for f of ``k * folds``.

    Args:
        labels: of the rows.
        task: what they are.
        folds: how many.
        seed: decides the shuffle.
        groups: (n,) int64, the group of each row; a group is never parted, and dealt by the labels of its first row.
    """
    deal = task.unit.case(
        single_label=stratified_folds,
        multi_label=rarest_label_folds,
        regression=random_folds,
        token_labels=stratified_folds,
    )
    if groups is None:
        return deal(labels, folds, seed)
    group = torch.unique(groups, return_inverse=True)[1]
    rows = torch.arange(len(group), device=group.device)
    first = torch.full_like(group[: int(group.max()) + 1], len(group)).scatter_reduce(0, group, rows, "amin")
    dealt = deal(labels[first], folds, seed)[group]
    return with_every_class_in_sight(dealt, labels, group) if task.is_exclusive else dealt


def folds_for(labels: Tensor, options: LinearOptions) -> Tensor:
    """The folds of a head's training rows: those that were dealt for it, or `task_folds`."""
    if options.dealt is None:
        return task_folds(labels, options.task, options.folds, options.seed, options.groups)
    dealt = options.dealt.to(labels.device)
    return with_every_class_in_sight(dealt, labels, options.groups) if options.task.is_exclusive else dealt


def with_every_class_in_sight(folds: Tensor, labels: Tensor, groups: Tensor | None) -> Tensor:
    """Folds without the rows that are all there is of their class, so that every head trains on every class.

    Rows of their groups stay out too: a group is trained on or held out, not both.
    """
    classes, count = torch.unique(labels, return_inverse=True)[1], int(folds.max()) + 1
    if count == 0:
        return folds
    rows = torch.bincount(classes)
    inside = torch.bincount(classes * (count + 1) + folds + 1, minlength=len(rows) * (count + 1)).view(len(rows), -1)
    alone = (inside[:, 1:] == rows[:, None]).any(1)
    out = alone[classes]
    if groups is not None:
        out = torch.isin(groups, groups[out])
    return torch.where(out, NO_FOLD, folds)


def stratified_folds(labels: Tensor, folds: int, seed: int) -> Tensor:
    """Deal the rows of each class to the folds in turn, after a seeded shuffle.

    Each fold gets each class in proportion, and fold sizes differ by at most one. A class with a single row
    stays out of the folds (``NO_FOLD``), so that every head trains on every class.

    Args:
        labels: (n,) int64 class indices.
        folds: how many.
        seed: decides the shuffle.

    Returns:
        (n,) int64 on the labels' device: the fold of each row, or ``NO_FOLD``.
    """
    # On the CPU, whose generator gives the same shuffle for every device that heads are solved on.
    on_cpu = labels.cpu()
    shuffled = torch.randperm(len(on_cpu), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[torch.argsort(on_cpu[shuffled], stable=True)]
    single = torch.bincount(on_cpu)[on_cpu[by_class]] == 1
    return _dealt(len(on_cpu), by_class[~single], folds).to(labels.device)


def rarest_label_folds(labels: Tensor, folds: int, seed: int) -> Tensor:
    """Deal rows that have several labels, stratified by the rarest label of each.

    What Sechidis et al., *On the stratification of multi-label data*, ECML 2011, deal first is dealt in proportion
    here: the labels of few rows, which chance would spread worst.

    Args:
        labels: (n, num_labels) zeros and ones.
        folds: how many.
        seed: decides the shuffle.

    Returns:
        As `stratified_folds`; a row that is the only one of its rarest label stays out.
    """
    # Chance spreads common labels well enough by itself; it is the rare ones that a fold may miss altogether.
    rows_of_label = labels.sum(0).expand_as(labels)
    rarest = rows_of_label.masked_fill(labels == 0, torch.inf).argmin(1)
    unlabelled = ~(labels != 0).any(1)
    return stratified_folds(rarest.masked_fill(unlabelled, labels.shape[1]), folds, seed)


def random_folds(labels: Tensor, folds: int, seed: int) -> Tensor:
    """Deal shuffled rows to the folds in turn, whatever their labels: (n,) int64 on the labels' device."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return _dealt(len(labels), order, folds).to(labels.device)


def _dealt(rows: int, order: Tensor, folds: int) -> Tensor:
    result = torch.full((rows,), NO_FOLD)
    result[order] = torch.arange(len(order)) % folds
    return result
