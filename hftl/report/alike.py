"""Which runs can be compared: those of one task, of the same classes, and with test rows in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hftl.data.sentences import tag_numbers
from hftl.errors import UserError
from hftl.report.numbers import Predictions, said
from hftl.runs.folder import PREDICTIONS, RunFolder
from hftl.runs.record import Metrics, RunRecord
from hftl.wording import listing, plural, shortened

LONGEST_LABEL = 200


@dataclass(frozen=True)
class OpenedRun:
    """A finished run, read whole.

    Attributes:
        folder: where it is.
        record: what it was made of.
        metrics: what came out of it.
        tested: what it predicted for its test rows.
    """

    folder: RunFolder
    record: RunRecord
    metrics: Metrics
    tested: Predictions

    @classmethod
    def of(cls, path: Path) -> OpenedRun:
        """Read a run's folder.

        Raises:
            UserError: no finished run is there.
            HftlError: the folder is damaged.
        """
        folder = RunFolder.open(path)
        record, metrics = folder.record(), folder.metrics()
        data, thresholds = record.data, metrics.training.get("thresholds")
        file, by_folds = path / PREDICTIONS, metrics.is_by_folds
        tested = Predictions.read(file, data.task, data.label_names, thresholds, by_folds=by_folds)
        return cls(folder, record, metrics, tested)

    def at(self, place: np.ndarray, first: OpenedRun) -> Predictions:
        """Some rows, int64 (m,), with classes or targets in the order that they have in the first run.

        Raises:
            UserError: they have another order, and some share a name.
        """
        tested, names = self.tested, first.tested.names
        chosen = replace(
            tested,
            rows=[tested.rows[i] for i in place.tolist()],
            labels=tested.labels[place],
            scores=tested.scores_of(place),
            groups=None if tested.groups is None else tested.groups[place],
            thresholds=tested.thresholds[place] if np.ndim(tested.thresholds) == 2 else tested.thresholds,
        )
        if tested.names == names:
            return chosen
        if len(set(names)) < len(names):
            raise UserError(
                f"{self.folder.path} cannot be compared with {first.folder.path}: classes stand in another order, and "
                "some have one name, so that they cannot be told apart; leave it out"
            )
        column = np.array([tested.names.index(name) for name in names])
        number = np.argsort(column)
        renamed: Callable[[], np.ndarray] = tested.task.case(
            single_label=lambda: number[chosen.labels],
            multi_label=lambda: chosen.labels[:, column],
            regression=lambda: chosen.labels[:, column],
            token_labels=lambda: tag_numbers([number[row] for row in chosen.labels]),
        )
        labels = renamed()
        thresholds = None if chosen.thresholds is None else np.asarray(chosen.thresholds)[..., column]
        return replace(chosen, names=names, labels=labels, scores=chosen.scores[:, column], thresholds=thresholds)


def refuse_other_tasks(opened: Sequence[OpenedRun]) -> None:
    """See that all runs are of the first one's task and know the same classes or targets.

    Raises:
        UserError: one is not, or does not.
    """
    first = opened[0]
    for run in opened[1:]:
        one, other = first.record.data, run.record.data
        if one.task is not other.task:
            raise UserError(
                f"{run.folder.path} cannot be compared with {first.folder.path}: its task is {other.task.words}, not "
                f"{one.task.words}; leave it out"
            )
        if strange := sorted(set(one.label_names) ^ set(other.label_names)):
            raise UserError(
                f"{run.folder.path} cannot be compared with {first.folder.path}: only one of them knows "
                f"{listing(strange, 3)}; leave it out"
            )


def rows_in_common(opened: Sequence[OpenedRun]) -> tuple[list[np.ndarray], list[str]]:
    """For each run the places of the rows that all were tested on, int64 (m,), and what is to be said of other rows.

    Raises:
        UserError: there are none, or rows cannot be told apart.
    """
    names = [run.tested.rows for run in opened]
    if all(each == names[0] for each in names):
        return [np.arange(len(each)) for each in names], []
    for run in opened:
        if len(set(run.tested.rows)) < len(run.tested.rows):
            raise UserError(
                f"{run.folder.path} cannot be compared: its test rows are not those of the other runs, and some of "
                "them have one name, so that they cannot be told apart"
            )
    of_all = set(names[0]).intersection(*names[1:])
    if not of_all:
        raise UserError(
            f"{len(opened)} runs share no test row: compare runs of the same data, --test-size and --seed, or judge "
            "their models on the same rows with `hftl evaluate`"
        )
    shared = [name for name in names[0] if name in of_all]
    places = []
    for each in names:
        place = {name: number for number, name in enumerate(each)}
        places.append(np.array([place[name] for name in shared], dtype=np.int64))
    notes = [
        f"{run.folder.path} was tested on {plural(len(each) - len(shared), 'row')} that are left out, because not all "
        "runs were tested on them"
        for run, each in zip(opened, names, strict=True)
        if len(each) > len(shared)
    ]
    return places, notes


def other_data(opened: Sequence[OpenedRun]) -> list[str]:
    """What is to be said where runs name different data: a row's name and label agree, its content is not recorded."""
    first = opened[0].record
    return [
        f"{run.folder.path} is of the data {run.record.recipe['data']}, not {first.recipe['data']}: names and labels "
        "of the test rows agree, and whether their content does is not recorded"
        for run in opened[1:]
        if run.record.data_reference != first.data_reference
    ]


def refuse_other_labels(opened: Sequence[OpenedRun], together: Sequence[Predictions]) -> None:
    """See that the rows that all runs were tested on have one label in all of them.

    Args:
        opened: the runs.
        together: those rows, of each run.

    Raises:
        UserError: labels differ.
    """
    first = together[0]
    for run, rows in zip(opened[1:], together[1:], strict=True):
        # Of classes that share a name the file of predictions does not say which; see `Predictions.read`.
        same = np.array([first.names.index(name) for name in first.names])
        labels, expected = (same[each.labels] if each.task.is_exclusive else each.labels for each in (rows, first))
        pairs = zip(labels, expected, strict=True)
        other = np.array([not np.array_equal(one, another) for one, another in pairs], dtype=bool)
        if other.any():
            at = int(np.flatnonzero(other)[0])
            raise UserError(
                f"{run.folder.path} cannot be compared with {opened[0].folder.path}: {int(other.sum()):,} of "
                f"{len(first):,} test rows have other labels, such as {first.rows[at]}: "
                f"{_short(said(rows, at)[0])}, not {_short(said(first, at)[0])}; run it again on the same data"
            )


def _short(label: object) -> str:
    """A label as it is; of many, as of the words of a sentence, the first ones."""
    return shortened(str(label), LONGEST_LABEL)
