"""How rows are divided where columns say more of them than their labels: by group, by time, by stratum, by given folds.

Everything here is a function of the labels, the marks and a seed. Where nothing is marked, `hftl.data.holdout` and the
heads divide by label alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.sparse import csr_matrix, hstack  # type: ignore[import-untyped]

from hftl.data.dataset import Indices, Labels, Split, indicators
from hftl.data.holdout import hold_out
from hftl.data.marks import Division
from hftl.data.raw import SPLIT_NAMES, SplitName
from hftl.errors import DataError
from hftl.tasks import Task
from hftl.wording import listing, plural, printable

NAMED_GROUPS = 3


def deal(units: Indices, traits: csr_matrix, shares: np.ndarray, seed: int) -> Indices:
    """Deal rows to parts so that units stay whole and every part has its share of the rows and of each trait.

    Units are taken from the largest to the smallest, in random order where they are equal, and each goes to the part
    that it brings nearest to its shares, in squares, of all traits together. It is what scikit-learn's
    ``StratifiedGroupKFold`` does, but for parts of any size and for any traits.

    Args:
        units: int64 (n,), the unit of each row: its group, or the row itself.
        traits: (n, C) counts, such as one-hot labels.
        shares: float64 (k,), which add up to 1.
        seed: decides between equals.

    Returns:
        int64 (n,), the part of each row, from 0.
    """
    unit = np.unique(units, return_inverse=True)[1]
    rows, count = len(unit), int(unit.max()) + 1
    gather = csr_matrix((np.ones(rows), (unit, np.arange(rows))), (count, rows))
    of_units = (gather @ hstack([np.ones((rows, 1)), traits])).tocsr()
    totals = np.asarray(of_units.sum(0)).ravel()
    sizes = np.asarray(of_units[:, [0]].sum(1)).ravel()
    shuffled = np.random.default_rng(seed).permutation(count)
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    missing = np.repeat(shares[:, None], of_units.shape[1], axis=1)
    part = np.empty(count, dtype=np.int64)
    for each in order.tolist():
        span = slice(of_units.indptr[each], of_units.indptr[each + 1])
        columns, weights = of_units.indices[span], of_units.data[span]
        weights = weights / totals[columns]
        part[each] = chosen = int((missing[:, columns] @ weights).argmax())
        missing[chosen, columns] -= weights
    return part[unit]


def traits_of(split: Split, task: Task) -> csr_matrix:
    """What parts are to have in proportion: strata where there are some, else classes or labels; nothing of numbers."""
    rows, strata = len(split), split.marks.strata
    if strata is not None or task.is_exclusive:
        codes = strata if strata is not None else split.labels.astype(np.int64)
        return csr_matrix((np.ones(rows), (np.arange(rows), codes)), (rows, int(codes.max(initial=0)) + 1))
    if not task.has_classes:
        return csr_matrix((rows, 0))
    return csr_matrix(indicators(split.labels).astype(np.float64))


def hold_out_rows(
    split: Split, task: Task, share: float, seed: int, *, what: str = "test_size"
) -> tuple[Indices, Indices]:
    """Draw rows to evaluate on, as the columns that were named want it; `hftl.data.holdout.hold_out` where none were.

    Args:
        split: the rows.
        task: what the labels are.
        share: to draw, between 0 and 1.
        seed: the same seed draws the same rows.
        what: how the share is called, for the error.

    Returns:
        Row numbers that stay in training, and those drawn; both sorted. No group is in both; of times the drawn ones
        are all later than those that stay. But for times, every class keeps a row in training.

    Raises:
        DataError: there are too few rows, groups or times to draw any.
    """
    marks = split.marks
    if marks.times is not None:
        drawn = _newest(marks.times, share)
        return np.flatnonzero(~drawn), np.flatnonzero(drawn)
    if marks.groups is None and marks.strata is None:
        return hold_out(split.labels, task, share, seed, what=what)
    if not 0 < share < 1:
        raise DataError(f"{what} is {share}, but must lie between 0 and 1")
    units = np.arange(len(split)) if marks.groups is None else marks.groups
    if len(np.unique(units)) < 2:
        raise DataError(_too_few(split, f"{what} of them can be set aside"))
    drawn = _one_in_shares(units, traits_of(split, task), share, seed)
    _return_lost_classes(drawn, units, split.labels, task)
    if not drawn.any():
        # Where units are few and large none of them fits; then the smallest that can be spared is set aside.
        there, sizes = np.unique(units, return_counts=True)
        for unit in there[np.argsort(sizes, kind="stable")].tolist():
            drawn = units == unit
            _return_lost_classes(drawn, units, split.labels, task)
            if drawn.any():
                break
    if not drawn.any():
        raise DataError(
            f"no {'row' if marks.groups is None else 'group'} can be spared for an evaluation split of {share:.0%} "
            f"({what}): each has the only rows of a class; add some, or give a test split"
        )
    return np.flatnonzero(~drawn), np.flatnonzero(drawn)


def _one_in_shares(units: Indices, traits: csr_matrix, share: float, seed: int) -> np.ndarray:
    """Which rows are in the drawn share: bool (n,).

    Dealt in parts of about one size: of two parts the smaller one would get the small units, and what is reported on
    would be another kind of group than what is trained on.
    """
    size = min(share, 1 - share)
    drawn, kept = round(share / size), round((1 - share) / size)
    shares = np.array([share / drawn] * drawn + [(1 - share) / kept] * kept)
    # Which part the first unit goes to is left to chance.
    order = np.random.default_rng(seed).permutation(len(shares))
    chosen: np.ndarray = order[deal(units, traits, shares[order], seed)] < drawn
    return chosen


def _newest(times: np.ndarray, share: float) -> np.ndarray:
    """Which rows are the newest ones, about so many; rows of one time are not parted: bool (n,)."""
    distinct, counts = np.unique(times, return_counts=True)
    if len(distinct) < 2:
        raise DataError(
            f"all {plural(len(times), 'row')} are of one time, so that none is later than the others: name another "
            "column, or leave out time"
        )
    # Rows at or after each time but the first.
    later = np.cumsum(counts[::-1])[::-1][1:]
    first = distinct[1:][int(np.abs(later - share * len(times)).argmin())]
    newest: np.ndarray = times >= first
    return newest


def _return_lost_classes(drawn: np.ndarray, units: Indices, labels: Labels, task: Task) -> None:
    """Give training back the smallest unit of each class, or label, that it would have no row of; in place."""
    if not task.has_classes:
        return
    labels = indicators(labels)
    has = labels[:, None] == np.arange(int(labels.max()) + 1) if task.is_exclusive else labels > 0
    for label in range(has.shape[1]):
        own = has[:, label]
        if own.any() and not (own & ~drawn).any():
            there, sizes = np.unique(units[np.isin(units, units[own])], return_counts=True)
            drawn[units == there[sizes.argmin()]] = False


def fold_count(split: Split, folds: int) -> int:
    """How many folds can be made where so many are wished for: those given, or no more than there are groups."""
    marks = split.marks
    if marks.folds is not None:
        return len(np.unique(marks.folds))
    return folds if marks.groups is None else min(folds, max(2, len(np.unique(marks.groups))))


def folds_of(split: Split, task: Task, folds: int, seed: int, *, flag: str = "--folds") -> Indices | None:
    """The fold of each row, where columns decide about it: int64 (n,), from 0; None where labels alone do.

    Args:
        split: the rows.
        task: what the labels are.
        folds: how many; as many as the column of given folds has, where there is one.
        seed: decides between equals.
        flag: what takes the number of folds, for the error.

    Raises:
        DataError: there are fewer groups than folds, or only one given fold.
    """
    marks = split.marks
    if marks.folds is not None:
        given = np.unique(marks.folds, return_inverse=True)[1]
        if given.max(initial=0) == 0:
            raise DataError("all training rows are in one fold, so that none can be held out: name another column")
        return given.astype(np.int64)
    if marks.groups is None and marks.strata is None:
        return None
    units = np.arange(len(split)) if marks.groups is None else marks.groups
    if (count := len(np.unique(units))) < folds:
        raise DataError(
            _too_few(split, f"{folds} folds can be made of them")
            if count < 2
            else f"{plural(count, 'group')} of training rows are fewer than {folds} folds: give {flag} {count}"
        )
    return deal(units, traits_of(split, task), np.full(folds, 1 / folds), seed)


def _too_few(split: Split, wish: str) -> str:
    names, groups = split.marks.names, split.marks.groups
    one = f" ({printable(names[int(groups[0])])!r})" if groups is not None and names and len(groups) else ""
    return f"all {plural(len(split), 'training row')} are of one group{one}, so that no {wish}: name another column"


def how_drawn(split: Split, task: Task, seed: int) -> str:
    """How `hold_out_rows` draws, behind a comma."""
    marks = split.marks
    if marks.times is not None:
        return ", the newest"
    whole = ", groups whole" if marks.groups is not None else ""
    stratified = ", stratified" if task.is_exclusive or marks.strata is not None else ""
    return f"{whole}{stratified}, seed {seed}"


# ── what is said ─────────────────────────────────────────────────────────────────────────────────────────────────────


def said_of_division(division: Division, splits: Mapping[SplitName, Split]) -> list[str]:
    """What columns divided the rows, a sentence each, and where given splits leak."""
    said = []
    sizes = {name: splits[name].marks for name in SPLIT_NAMES if len(splits.get(name, ()))}
    if division.group is not None:
        counts = [f"{name} {plural(_distinct_in(m.groups), 'group')}" for name, m in sizes.items()]
        said.append(f"groups by column {division.group!r}: {', '.join(counts)}")
    if division.stratify is not None:
        said.append(
            f"stratified by column {division.stratify!r}: {plural(_distinct_in(splits['train'].marks.strata), 'value')}"
        )
    if division.fold is not None:
        said.append(f"folds by column {division.fold!r}: {_distinct_in(splits['train'].marks.folds)}")
    if division.time is not None:
        said.append(f"times by column {division.time!r}: training is older than what is tested")
    return said


def leaks(division: Division, splits: Mapping[SplitName, Split]) -> list[str]:
    """Where the past and the future, or one group, stand on both sides of splits or folds that were given."""
    found = []
    train, test = splits["train"], splits["test"]
    if division.group is not None:
        others = [split for name, split in splits.items() if name != "train"]
        found += [said for other in others if (said := _shared_groups(division.group, train, other))]
        folds = train.marks.folds
        if folds is not None and train.marks.groups is not None:
            pairs = np.unique(np.stack([train.marks.groups, folds]), axis=1)
            parted = int((np.unique(pairs[0], return_counts=True)[1] > 1).sum())
            if parted:
                found.append(
                    f"LEAK: {plural(parted, 'group')} of {division.group!r} stand in several folds of the column "
                    f"{division.fold!r}: what is chosen or scored on these folds has seen rows of the same groups"
                )
    times, later = train.marks.times, test.marks.times
    if times is not None and later is not None and len(later) and len(times) and times.max() >= later.min():
        count = int((times >= later.min()).sum())
        found.append(
            f"LEAK: {plural(count, 'training row')} are not older, by {division.time!r}, than the first test row: the "
            "score is not one of the future; take these rows out of training"
        )
    return found


def _shared_groups(column: str, train: Split, other: Split) -> str:
    ours, theirs = train.marks.groups, other.marks.groups
    if ours is None or theirs is None:
        return ""
    shared = np.intersect1d(ours, theirs)
    if not len(shared):
        return ""
    rows = int(np.isin(theirs, shared).sum())
    named = [train.marks.names[number] for number in shared[:NAMED_GROUPS]]
    return (
        f"LEAK: {plural(len(shared), 'group')} of {column!r} stand in train and in {other.name} ({rows:,} of "
        f"{plural(len(other), other.name + ' row')}), such as {listing(named)}: scores of their rows say nothing of "
        f"new groups; take them out of one of the two"
    )


def _distinct_in(values: Indices | None) -> int:
    return 0 if values is None else len(np.unique(values))
