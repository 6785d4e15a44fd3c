"""``audit``: which rows are copies, leaks, wrongly labelled or strange, and which classes are one under two names."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from hftl.criterion import Criterion
from hftl.data import Data, Split
from hftl.errors import DataError
from hftl.frozen.features import StoredFeatures
from hftl.frozen.recipe import chooses, probe_of, stored_features, view_of
from hftl.heads import cross_validate, fit_linear
from hftl.intervals import Difference, Interval, difference, resamples
from hftl.progress import Progress
from hftl.recipes import Recipe
from hftl.rowrefs import said_digest
from hftl.runs.again import RecipeLike, as_recipe
from hftl.scored import scored
from hftl.scout.answer import Answer
from hftl.scout.copies import Copies, CopyOf, copies_by_split, find_copies, groups_of_copies, joined_groups, nearest
from hftl.scout.findings import Finding
from hftl.scout.oddities import ClassPair, far_rows, one_class_in_two_names, pairs_of_one_name
from hftl.scout.stored import reading, split_matrix
from hftl.scout.suspects import confident_learning, large_residuals, wrong_in_each_label
from hftl.tasks import for_whole_rows
from hftl.wording import plural

T = TypeVar("T")

FOLDS = 5


@dataclass(frozen=True)
class LeakEffect:
    """What copies of training rows do to the score on the test split.

    Attributes:
        rows: test rows that are copies or near copies of training rows.
        metric: ``accuracy``, ``map`` or ``r2``, of the exact head solved on the training split.
        with_them: on all test rows.
        without_them: on the others.
        gain: how much better the score is with them.
    """

    rows: int
    metric: str
    with_them: Interval
    without_them: Interval
    gain: Difference


@dataclass(frozen=True, repr=False)
class Audit(Answer):
    """What was found in the data.

    Attributes:
        rows: of each split.
        findings: single rows, those of one kind together, the surest first.
        counts: findings of each kind, and copies whose labels disagree.
        wrong_labels: how many labels are wrong; None where that cannot be said.
        leak: what leaks do to the test score; None where there are none.
        class_pairs: classes that may be one.
        suspicion: for each split the name of each row and the rank of its label, 1 the most suspicious of all; None
            where no head judged it.
        notes: what could not be asked, and why.
        advice: one sentence.
        seconds: after features were there.
        data: the rows, for whoever shows them.
        modality: what they are: ``image``, ``text``, …
    """

    table: ClassVar[str] = "findings"

    rows: dict[str, int]
    findings: list[Finding]
    counts: dict[str, int]
    wrong_labels: Interval | None
    leak: LeakEffect | None
    class_pairs: list[ClassPair]
    suspicion: dict[str, list[tuple[str, int | None]]]
    notes: list[str]
    advice: str
    seconds: float = field(compare=False)
    data: Data = field(repr=False, compare=False)
    modality: str = field(repr=False, compare=False)


def audit(
    recipe: RecipeLike,
    *,
    offline: bool = False,
    allow_pickle: bool = False,
    on_bad_row: str = "error",
    quiet: bool = False,
) -> Audit:
    """Look for faults in a recipe's data: copies, leaks, wrong labels, outliers, classes under two names.

    Labels of all splits are judged by heads that have not seen them. A test row that such a head finds wrong is to be
    looked at and corrected: a test without the rows that are hard for a head flatters it.

    Args:
        recipe: the data, and the backbone whose features are compared; as of `hftl.run`.
        offline: use only what is on this machine.
        allow_pickle: read weights that are there only as a pickle, as nothing but tensors.
        on_bad_row: ``"error"``, or ``"skip"`` to leave out rows that cannot be decoded.
        quiet: print nothing but errors.

    Raises:
        UserError: the recipe, its data or its backbone cannot be used.
        StoreError: features cannot be stored.
    """
    recipe, _ = as_recipe(recipe)
    with reading(offline=offline, allow_pickle=allow_pickle, on_bad_row=on_bad_row, quiet=quiet) as reader:
        spec, target, data = reader.inputs(recipe)
        features = stored_features(
            spec,
            target,
            data,
            [view_of(recipe, target.backbone)],
            reader.say,
            on_bad_row=on_bad_row,
            quiet=reader.quiet,
        )
    started = time.monotonic()
    rows = _Rows.of(features, features.readable(data))
    neighbours = nearest(rows.features)
    classes = rows.labels if rows.data.task.is_exclusive else None
    found = find_copies([s.inputs for s in rows.splits], rows.digests, neighbours, classes)
    copies = copies_by_split(found, rows.split_of)
    far, is_far = far_rows(neighbours.cosine)
    notes: list[str] = []
    with Progress("labels", quiet=reader.quiet):
        judged = _judged(notes, "labels were not judged", lambda: _judge_labels(rows, recipe, found))
        labels = judged or _Judged.nothing(rows)
    with Progress("leaks", quiet=reader.quiet):
        leak = _judged(notes, "the test score without leaks is unknown", lambda: _leak_effect(rows, recipe, copies))
    findings = [
        *_copy_findings(rows, copies),
        *sorted(labels.findings, key=lambda each: -each.score),
        *(
            rows.finding("outlier", i, "far from all other rows", score=float(far[i]))
            for i in np.flatnonzero(is_far)[np.argsort(-far[is_far])].tolist()
        ),
    ]
    counts = dict(Counter(each.finding for each in findings))
    counts["labels of copies disagree"] = sum(bool(e.suggested) for e in findings if e.other_row)
    return Audit(
        {split.name: len(split) for split in rows.splits},
        findings,
        counts,
        labels.wrong,
        leak,
        labels.class_pairs,
        {split.name: rows.ranked(labels.ranks, code) for code, split in enumerate(rows.splits)},
        notes,
        _first_thing(findings, labels, leak),
        round(time.monotonic() - started, 3),
        rows.data,
        target.backbone.modality,
    )


@dataclass(frozen=True)
class _Rows:
    """All rows of all splits, one after the other.

    Attributes:
        data: what the labels mean.
        splits: the splits, in order.
        split_of: int64 (n,), which split each row is of.
        features: (n, d) float32.
        digests: uint8 (n, 16).
        labels: as `hftl.data.Split` describes them.
    """

    data: Data
    splits: list[Split]
    split_of: np.ndarray
    features: Tensor
    digests: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, features: StoredFeatures, data: Data) -> _Rows:
        parts = list(features.splits.values())
        matrices = []
        for part in parts:
            matrices.append(split_matrix(part, features.content.cut)[0])
            part.columns.clear()  # or all features would be held twice
        return cls(
            data,
            [part.split for part in parts],
            np.repeat(np.arange(len(parts)), [len(part.split) for part in parts]),
            torch.cat(matrices),
            np.concatenate([part.digests for part in parts]),
            np.concatenate([part.split.labels for part in parts]),
        )

    def of_split(self, name: str) -> np.ndarray:
        """Numbers of the rows of a split; none where there is no such split."""
        codes = [code for code, split in enumerate(self.splits) if split.name == name]
        return np.flatnonzero(np.isin(self.split_of, codes))

    def ranked(self, ranks: Sequence[int | None], code: int) -> list[tuple[str, int | None]]:
        """Names and ranks of a split's rows."""
        return [(self.name(i)[1], ranks[i]) for i in np.flatnonzero(self.split_of == code).tolist()]

    def name(self, row: int) -> tuple[str, str]:
        """Split and name of a row."""
        split = self.splits[int(self.split_of[row])]
        return split.name, split.inputs.name(self.place(row))

    def place(self, row: int) -> int:
        """A row's place in its split."""
        return row - int(np.searchsorted(self.split_of, self.split_of[row]))

    def label(self, row: int) -> str:
        """A row's label for a person."""
        said = self.data.task.truth(self.labels[row : row + 1], self.data.label_names)[0]
        if isinstance(said, str):
            return said
        return "|".join(each if isinstance(each, str) else f"{each:.6g}" for each in said)

    def finding(
        self, kind: str, row: int, why: str, *, score: float, other: int | None = None, suggested: str = ""
    ) -> Finding:
        split, name = self.name(row)
        other_split, other_row = ("", "") if other is None else self.name(other)
        digest = said_digest(self.digests[row].tobytes())
        at, other_at = self.place(row), None if other is None else self.place(other)
        label = self.label(row)
        return Finding(kind, split, name, label, why, other_split, other_row, suggested, score, digest, at, other_at)


def _judged(notes: list[str], what: str, ask: Callable[[], T]) -> T | None:
    """An answer; None where the data cannot give it, and a note that says why."""
    try:
        return ask()
    except DataError as error:
        notes.append(f"{what}: {error}")
        return None


# ── copies and leaks ─────────────────────────────────────────────────────────────────────────────────────────────────


def _copy_findings(rows: _Rows, copies: dict[int, dict[int, CopyOf]]) -> list[Finding]:
    """Of each group of copies all rows but one, so that dropping them leaves no two; of leaks those to train on."""
    found: list[Finding] = []
    for row, by_split in copies.items():
        own = int(rows.split_of[row])
        later = [copy for split, copy in by_split.items() if split > own]
        if later:
            found.append(_copy_finding(rows, "leak", max(later, key=lambda copy: copy.similarity)))
        elif own in by_split and by_split[own].other < row:
            kind = "copy" if by_split[own].exact else "near copy"
            found.append(_copy_finding(rows, kind, by_split[own]))
    order = ("leak", "copy", "near copy")
    return sorted(found, key=lambda each: (order.index(each.finding), -each.score))


def _copy_finding(rows: _Rows, kind: str, copy: CopyOf) -> Finding:
    own, other = rows.label(copy.row), rows.label(copy.other)
    how = "the same content" if copy.exact else "nearly the same content"
    split, name = rows.name(copy.other)
    why = f"{how} as {name} in {split}" + (f", which is labelled {other}" if own != other else "")
    suggested = other if own != other else ""
    return rows.finding(kind, copy.row, why, score=copy.similarity, other=copy.other, suggested=suggested)


def _leak_effect(rows: _Rows, recipe: Recipe, copies: dict[int, dict[int, CopyOf]]) -> LeakEffect | None:
    """The test score of a head solved on the training split, with and without test rows that it has seen."""
    task, names = rows.data.task, rows.data.label_names
    train, test, held = rows.of_split("train"), rows.of_split("test"), rows.of_split("validation")
    seen = np.array([int(rows.split_of[train[0]]) in copies.get(row, {}) for row in test.tolist()])
    if not seen.any():
        return None
    criterion = chooses(recipe, task)
    head = fit_linear(
        rows.features[train],
        torch.from_numpy(rows.labels[train]),
        task=task,
        num_labels=len(names),
        class_weight=probe_of(recipe).class_weight,
        validation=(rows.features[held], torch.from_numpy(rows.labels[held])) if len(held) else None,
        judge=criterion if criterion.is_stated else None,
        # No prediction of a row changes by less than this.
        tolerance=1e-7,
        seed=recipe.seed,
    )
    scores, labels = head.logits(rows.features[test]).numpy(), rows.labels[test]
    everything = scored(criterion, labels, np.arange(len(test)), scores, seed=recipe.seed)
    unseen = np.flatnonzero(~seen)
    if not len(unseen):
        raise DataError("every test row is a copy of a training row; give a test split of other rows")
    rest = scored(criterion, labels, unseen, scores[unseen], seed=recipe.seed)
    # The same samples of test rows, with and without those that were seen.
    gains = everything.draws - _draws_without(criterion, scores, labels, seen, recipe.seed, rest.interval.value)
    gain = difference(everything.interval.value - rest.interval.value, gains, everything.units)
    return LeakEffect(int(seen.sum()), criterion.name, everything.interval, rest.interval, gain)


def _draws_without(
    criterion: Criterion, scores: np.ndarray, labels: np.ndarray, left_out: np.ndarray, seed: int, otherwise: float
) -> np.ndarray:
    """The metric on bootstrap samples of all rows, from which those left out are taken: as many as `scored` takes."""
    samples = resamples(len(labels), seed=seed, most=criterion.samples)
    draws = np.concatenate([criterion.at(scores, labels, times * ~left_out) for times in samples])
    return np.where(np.isfinite(draws), draws, otherwise)


# ── labels ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Judged:
    """What heads that have not seen the rows say of their labels.

    Attributes:
        findings: rows that are likely labelled wrongly.
        wrong: how many are.
        class_pairs: classes that may be one.
        ranks: of each row, 1 the most suspicious; None where it was not judged.
    """

    findings: list[Finding]
    wrong: Interval | None
    class_pairs: list[ClassPair]
    ranks: list[int | None]

    @classmethod
    def nothing(cls, rows: _Rows) -> _Judged:
        return cls([], None, _pairs_by_name(rows), [None] * len(rows.labels))


def _judge_labels(rows: _Rows, recipe: Recipe, copies: Copies) -> _Judged:
    """Cross-validate the exact head over the rows of all splits and compare with their labels.

    Copies and near copies of a row are held out with it, or its label would be learnt from them; rows of its group too.

    Raises:
        DataError: the labels cannot be learnt: one class only, or no two rows of any class.
    """
    task, groups = rows.data.task, groups_of_copies(copies)
    marked = [split.marks.groups for split in rows.splits if split.marks.groups is not None]
    if len(marked) == len(rows.splits):
        groups = joined_groups(groups, np.concatenate(marked))
    # A head of numbers is chosen by leaving out one group more.
    if (apart := len(np.unique(groups))) < (2 if task.has_classes else 3):
        raise DataError(f"{apart:,} rows or groups are left where copies and near copies are one, too few to hold out")
    held = cross_validate(
        rows.features,
        torch.from_numpy(rows.labels),
        task=task,
        num_labels=len(rows.data.label_names),
        folds=FOLDS,
        groups=torch.from_numpy(groups),
        seed=recipe.seed,
    )
    judged, scores = held.rows.numpy(), task.scores(held.logits).numpy()
    judge: Callable[[], _Judged] = task.case(
        single_label=lambda: _judge_classes(rows, judged, scores, recipe.seed),
        multi_label=lambda: _judge_label_sets(rows, judged, scores),
        regression=lambda: _judge_targets(rows, judged, scores),
        token_labels=for_whole_rows,
    )
    return judge()


def _judge_classes(rows: _Rows, judged: np.ndarray, scores: np.ndarray, seed: int) -> _Judged:
    names, labels = rows.data.label_names, rows.labels[judged]
    suspects = confident_learning(scores, labels)
    findings = []
    for i in np.flatnonzero(suspects.listed).tolist():
        rather = int(suspects.suggested[i])
        why = _gives(suspects.score[i], scores[i, rather], f"to {names[rather]}")
        score = 1 - float(suspects.score[i])
        findings.append(rows.finding("wrong label", int(judged[i]), why, score=score, suggested=names[rather]))
    pairs = one_class_in_two_names(names, scores, labels, seed=seed)
    return _Judged(findings, suspects.wrong, pairs, _ranks(suspects.score, judged, len(rows.labels)))


def _judge_label_sets(rows: _Rows, judged: np.ndarray, scores: np.ndarray) -> _Judged:
    names, labels = rows.data.label_names, rows.labels[judged]
    of_label, wrong = wrong_in_each_label(scores, labels)
    findings = []
    for k, suspects in enumerate(of_label):
        for i in np.flatnonzero(suspects.listed).tolist():
            has = labels[i, k] > 0
            why = _gives(suspects.score[i], 1 - suspects.score[i], f"to the row {'without' if has else 'with'} it")
            suggested = f"{'without' if has else 'with'} {names[k]}"
            score = 1 - float(suspects.score[i])
            why = f"{names[k]}: {why}"
            findings.append(rows.finding("wrong label", int(judged[i]), why, score=score, suggested=suggested))
    least = np.min([suspects.score for suspects in of_label], axis=0)
    return _Judged(findings, wrong, _pairs_by_name(rows), _ranks(least, judged, len(rows.labels)))


def _judge_targets(rows: _Rows, judged: np.ndarray, predicted: np.ndarray) -> _Judged:
    names, targets = rows.data.label_names, rows.labels[judged]
    residuals, listed = large_residuals(predicted, targets)
    findings = []
    for i, k in np.argwhere(listed).tolist():
        size = abs(float(residuals[i, k]))
        why = f"{names[k]}: {size:.1f} times the usual distance from what a head that has not seen it predicts"
        suggested = f"{names[k]} about {predicted[i, k]:.6g}"
        findings.append(rows.finding("wrong label", int(judged[i]), why, score=size, suggested=suggested))
    return _Judged(findings, None, [], _ranks(-np.abs(residuals).max(1), judged, len(rows.labels)))


def _gives(own: float, other: float, what: str) -> str:
    return f"a head that has not seen it gives {own:.2f} to its label and {other:.2f} {what}"


def _ranks(score: np.ndarray, judged: np.ndarray, rows: int) -> list[int | None]:
    ranks: list[int | None] = [None] * rows
    for rank, place in enumerate(np.argsort(score, kind="stable").tolist(), 1):
        ranks[int(judged[place])] = rank
    return ranks


def _pairs_by_name(rows: _Rows) -> list[ClassPair]:
    if not rows.data.task.has_classes:
        return []
    names = rows.data.label_names
    why = "the names differ in spelling only"
    return [ClassPair((names[a], names[b]), True, None, why) for a, b in pairs_of_one_name(names)]


# ── advice ───────────────────────────────────────────────────────────────────────────────────────────────────────────

HOW = "write them with --export FILE.csv, delete the lines of rows to keep, and train with hftl run … --drop FILE.csv"


def _first_thing(findings: Sequence[Finding], labels: _Judged, leak: LeakEffect | None) -> str:
    """The one thing to do first."""
    kinds = Counter(each.finding for each in findings)
    labelled_wrong = kinds["wrong label"]
    if leak is not None:
        score = f"{leak.metric} is {leak.without_them} without them and {leak.with_them} with them"
        return f"Test rows that stand in training too, exactly or nearly: {leak.rows:,}; {score}; {HOW}."
    if kinds["leak"]:
        return f"Rows that stand in a later split too, exactly or nearly: {kinds['leak']:,}; {HOW}."
    if labels.class_pairs:
        one, other = labels.class_pairs[0].classes
        return f"The classes {one} and {other} may be one under two names: give them one name in the data."
    if labelled_wrong:
        about = f", of about {labels.wrong.value:,.0f} that are wrong" if labels.wrong else ""
        return f"Labels that look wrong: {labelled_wrong:,}{about}; correct them in the data, or leave them out: {HOW}."
    if findings:
        return f"Nothing leaks and no label looks wrong, but {plural(len(findings), 'row')} could be left out; {HOW}."
    return "Nothing was found that should be changed before training."
