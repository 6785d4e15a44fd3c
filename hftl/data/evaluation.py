"""Data to evaluate a trained model on: the model says what classes and targets there are; nothing is inferred anew."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from hftl.data.cells import Cells
from hftl.data.columns import Kind
from hftl.data.dataset import Labels, Split
from hftl.data.folders import FILE_COLUMN
from hftl.data.labels import (
    are_vectors,
    class_keys,
    indicator_matrix,
    label_cutter,
    label_lists,
    target_matrix,
    vector_positions,
)
from hftl.data.load import choose_from, said_reference, split_inputs, stated_task
from hftl.data.raw import RawData, SplitName
from hftl.data.raw_labels import (
    IsMark,
    RawLabels,
    Values,
    compose,
    has_codebook,
    is_minus_one,
    keep_labelled,
    label_text,
    label_values,
    stated_mark,
)
from hftl.data.references import open_reference
from hftl.data.scope import rows_of_label
from hftl.data.sentences import sentences_of, tag_keys, tag_numbers, word_columns
from hftl.data.split_columns import SPLIT_COLUMNS, divide_by_column
from hftl.errors import DataError
from hftl.tasks import Task
from hftl.wording import close_matches, did_you_mean, listing, plural

# What is reported on first.
_PREFERRED: tuple[SplitName, ...] = ("test", "validation", "train")


@dataclass(frozen=True)
class EvaluationData:
    """What a model is evaluated on.

    Attributes:
        ref: the reference as given.
        split: the rows and their labels, numbered as the model numbers them: int64 ``(n,)``, float32 ``(n, C)`` of 0
            and 1, float32 ``(n, C)`` targets in the model's order, or the tags of each sentence's words. Its name is
            ``test``, ``validation`` or ``train``; ``all`` where the data are not divided.
        columns: the input and the label columns.
        notes: one sentence for each thing that was inferred, dropped or read otherwise than it stands there.
        identity: what the data were, as JSON.
    """

    ref: str
    split: Split
    columns: tuple[tuple[str, ...], tuple[str, ...]]
    notes: list[str]
    identity: dict[str, Any]

    @property
    def said(self) -> str:
        """Split and number of rows for a person: ``test split, 1,200 rows``."""
        rows = plural(len(self.split), "row")
        return f"all {rows}" if self.split.name == "all" else f"{self.split.name} split, {rows}"


@dataclass(frozen=True)
class KnownLabels:
    """What a model says of its labels.

    Attributes:
        task: what they are.
        names: of its classes or targets, in the order of its outputs.
        columns: the label columns of the data, if stated.
        separator: what stands between several labels in one cell, if stated.
        trained_on: the input and the label columns of the run that trained the model, where one recorded them.
        out_of_scope: the label that the run took for none of its classes.
    """

    task: Task
    names: Sequence[str]
    columns: Sequence[str] | None = None
    separator: str | None = None
    trained_on: tuple[Sequence[str], Sequence[str]] = ((), ())
    out_of_scope: str | None = None


def load_evaluation_data(
    ref: Any,
    *,
    wants: Literal["text", "file"],
    task: str,
    label_names: Sequence[str],
    suffixes: Collection[str] = (),
    input_columns: Sequence[str] | None = None,
    label_columns: Sequence[str] | None = None,
    label_separator: str | None = None,
    unlabelled: Sequence[object] | None = None,
    split: str | None = None,
    trained_on: tuple[Sequence[str], Sequence[str]] = ((), ()),
    out_of_scope: str | None = None,
) -> EvaluationData:
    """Load the rows to evaluate a model on: the test split, else the validation split, else all rows.

    Only that split is read. Labels are found among the model's by name, never by position; targets are columns of the
    model's names. No class is inferred, nothing is set aside, and few rows or a single class are enough.

    Args:
        ref: as in `hftl.data.load_data`.
        wants: what the backbone takes: ``text``, or ``file`` for images and sounds.
        task: the model's.
        label_names: names of the model's classes or targets, in the order of its outputs.
        suffixes: suffixes of the files wanted in class folders, such as ``.jpg``; any if empty.
        input_columns: the columns that the model reads; inferred if not given.
        label_columns: the label column, or the columns of labels or targets; by name or inferred if not given.
        label_separator: what stands between several labels in one cell; inferred if not given.
        unlabelled: values that mark rows without a label; -1 if not given, unless the model has a class of that name.
        split: ``train``, ``validation`` or ``test``, if not the first of them that there is.
        trained_on: the input and the label columns of the run that trained the model: taken where nothing is stated
            and they are there.
        out_of_scope: a label that is none of the model's classes by intent; its rows are left out.

    Raises:
        DataError: the reference leads nowhere, no row has a label, or a label or target is none of the model's.
    """
    known = KnownLabels(stated_task(task), list(label_names), label_columns, label_separator, trained_on, out_of_scope)
    source = open_reference(ref, wants, {suffix.lower() for suffix in suffixes})
    stated_columns = [*(input_columns or ()), *(label_columns or ())]
    problems: list[str] = []
    for name in _candidates(source, split):
        # A split that is not reached is never read.
        divided = divide_by_column(_one_split(source, name), stated_columns)
        if split is not None and split not in divided.parts:
            raise DataError(f"there is no {split} split; there is {listing(list(divided.parts))}")
        for own in _candidates(divided, split):
            try:
                read = _known_split(divided, own, known, wants, input_columns, unlabelled)
            except _NoLabelError as error:
                problems.append(str(error))
                continue
            undivided = split is None and len(source.parts) == len(divided.parts) == 1 and own == "train"
            title = "all" if undivided else own
            return EvaluationData(
                ref=said_reference(ref),
                split=replace(read.split, name=title),
                columns=read.columns,
                notes=[*divided.notes, *divided.parts[own].notes, *problems, *read.notes],
                identity={"ref": said_reference(ref), **source.identity, "split": title, "rows": len(read.split)},
            )
    raise DataError(f"{said_reference(ref)}: nothing to evaluate on: {'; '.join(problems) or 'there are no rows'}")


class _NoLabelError(DataError):
    """A split without any label, as the test splits of competitions, or without the columns; another may have them."""


def _candidates(source: RawData, split: str | None) -> list[SplitName]:
    """The splits to try, the most wanted first; what a model may have been trained on only if there is nothing else.

    Raises:
        DataError: there is no split of the name that is stated.
    """
    there = [name for name in _PREFERRED if name in source.parts]
    if split is None:
        return [name for name in there if name != "train"] or there
    if split in there:
        return [name for name in there if name == split]
    if there == ["train"] and any(name.strip().lower() in SPLIT_COLUMNS for name in source.parts["train"].columns):
        return there  # rows that a column may divide; asked again when it has
    raise DataError(f"there is no {split} split{did_you_mean(split, there)}; there is {listing(there)}")


def _one_split(source: RawData, split: SplitName) -> RawData:
    """A source of one split, so that no other one is looked at."""
    return replace(source, parts={split: source.parts[split]})


@dataclass(frozen=True)
class _ReadSplit:
    split: Split
    columns: tuple[tuple[str, ...], tuple[str, ...]]
    notes: list[str]


def _known_split(
    source: RawData,
    split: SplitName,
    known: KnownLabels,
    wants: Literal["text", "file"],
    input_columns: Sequence[str] | None,
    unlabelled: Sequence[object] | None,
) -> _ReadSplit:
    """One split's rows that have a label.

    Raises:
        _NoLabelError: none has one.
        DataError: the columns cannot be told, or a label or target is none of the model's.
    """
    part, cells = source.parts[split], Cells(source)
    there = [*part.columns, *part.unusable]
    if known.task.of_words:
        return _known_sentences(source, split, known, input_columns, unlabelled)
    if absent := [name for name in known.columns or () if name not in there and not close_matches(name, there)]:
        raise _NoLabelError(f"the {split} split has no label column {listing(absent)}")
    label_columns = _columns_by_name(cells.kinds(split), known)
    if input_columns is None:
        input_columns = _inputs_as_trained(there, known, split, wants)
    try:
        inputs, columns = choose_from(source, cells, split, wants, input_columns, label_columns)
    except DataError as error:
        raise _NoLabelError(str(error)) from error
    if not known.task.has_classes:
        columns = _target_columns(columns, known)
    # A class is found by its name as it stands: "1.50" and "007" are no numbers here.
    text = known.task.has_classes and len(columns) == 1
    values = label_values(source, Cells(source, as_they_stand=True) if text else cells, split, columns, known.task)
    values = [value.strip() or None if isinstance(value, str) else value for value in map(compose, values)]
    raw, notes = _rows_with_label(source, split, columns, values, known, unlabelled)
    if known.out_of_scope is not None and len(has := rows_of_label(raw.values, known.out_of_scope)):
        raw = raw.without(has)
        notes = [*notes, f"dropped {plural(len(has), 'row')} labelled {known.out_of_scope!r} (out of scope)"]
        if not raw.values:
            raise _NoLabelError(f"every row of the {split} split is out of scope")
    labels, said = _encode_known(raw, columns, known)
    read = f"columns: input <- {listing(inputs)}, label <- {listing(columns)}"
    rows = split_inputs(source, split, inputs, wants, raw.rows)
    return _ReadSplit(Split(split, rows, labels), (inputs, columns), [read, *notes, *said])


def _known_sentences(
    source: RawData,
    split: SplitName,
    known: KnownLabels,
    input_columns: Sequence[str] | None,
    unlabelled: Sequence[object] | None,
) -> _ReadSplit:
    """The sentences of a split that have tags, by the columns that are stated, or that the run read, or by name."""
    part, cells = source.parts[split], Cells(source)
    trained = [list(names) if names and set(names) <= set(part.columns) else None for names in known.trained_on]
    try:
        columns = word_columns(source, split, input_columns or trained[0], known.columns or trained[1], known.task)
    except DataError as error:
        raise _NoLabelError(str(error)) from error
    assert columns is not None  # the task is stated
    words, tags = columns
    values = [compose(value) for value in label_values(source, cells, split, [tags], known.task)]
    raw, notes = _rows_with_label(source, split, [tags], values, known, unlabelled)
    sentences = sentences_of(source, split, words, raw.rows)
    numbers = _Numbers(known, raw)
    keys = tag_keys(raw, sentences, columns)
    labels = tag_numbers([[numbers.of(key, at) for key in row] for at, row in enumerate(keys)])
    chosen = f"columns: words <- {words}, tags <- {tags}"
    return _ReadSplit(Split(split, sentences, labels), ((words,), (tags,)), [chosen, *notes])


def _rows_with_label(
    source: RawData,
    split: SplitName,
    columns: Sequence[str],
    values: Values,
    known: KnownLabels,
    unlabelled: Sequence[object] | None,
) -> tuple[RawLabels, list[str]]:
    """The rows that have a label, and a note on those that are marked as having none."""
    part, is_mark = source.parts[split], _mark(unlabelled, known, has_codebook(source, columns[0]))
    raw, notes = keep_labelled(RawLabels(values, part.own_rows, part.name), split, columns, is_mark)
    if raw is None or not raw.values:
        raise _NoLabelError(notes[0] if notes else f"the {split} split has no rows")
    return raw, notes


def _mark(unlabelled: Sequence[object] | None, known: KnownLabels, has_codebook: bool) -> IsMark:
    """What tells the values that mark rows without a label."""
    if unlabelled is not None:
        return stated_mark(tuple(map(label_text, unlabelled)))
    if has_codebook and known.task.has_classes:
        return is_minus_one  # whatever a class is called
    if "-1" in known.names or not known.task.has_classes:
        return stated_mark(())
    return stated_mark(("-1",))


# ── columns ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _inputs_as_trained(there: Sequence[str], known: KnownLabels, split: str, wants: str) -> Sequence[str] | None:
    """The columns that the model was trained on, if they are there; None where the rows are files of any name.

    Raises:
        DataError: the model read other columns of texts than there are, so that any choice would be a guess.
    """
    inputs, _ = known.trained_on
    absent = [name for name in inputs if name not in there]
    if inputs and not absent:
        return inputs
    if absent and wants == "text" and FILE_COLUMN not in (*there, *inputs):
        raise DataError(
            f"the {split} split has no column {listing(absent)}{did_you_mean(absent[0], there)}, which the model reads;"
            f" it has {listing(there)}: name the columns with --input-columns"
        )
    return None


def _columns_by_name(kinds: Mapping[str, Kind], known: KnownLabels) -> Sequence[str] | None:
    """The label columns: those stated, or those that are called as several labels or targets of the model are."""
    _, trained_on = known.trained_on
    if known.columns is None and known.task.is_exclusive and trained_on and all(name in kinds for name in trained_on):
        return list(trained_on)
    if known.columns is not None or known.task.is_exclusive:
        return known.columns
    if len(known.names) > 1 and all(name in kinds for name in known.names):
        return list(known.names)
    if not known.task.has_classes and len(known.names) == 1 and known.names[0] in kinds:
        return list(known.names)
    return None


def _target_columns(columns: tuple[str, ...], known: KnownLabels) -> tuple[str, ...]:
    """The columns of the model's targets, in its order."""
    names = tuple(known.names)
    if len(columns) == 1 and (len(names) == 1 or names == tuple(f"{columns[0]}_{i}" for i in range(len(names)))):
        return columns  # the only target, or one column of lists, which is how its targets got their names
    if set(columns) != set(names):
        absent = [name for name in names if name not in columns]
        raise DataError(
            f"the model's targets are {listing(names)}, and the label columns are {listing(columns)}: "
            f"{f'rename the columns of {listing(absent)}' if absent else 'leave the others out'}, since targets are "
            f"found by name"
        )
    return names


# ── labels by name ───────────────────────────────────────────────────────────────────────────────────────────────────


def _encode_known(raw: RawLabels, columns: tuple[str, ...], known: KnownLabels) -> tuple[Labels, list[str]]:
    """Labels as the model numbers them, and how they were read."""
    if not known.task.has_classes:
        return target_matrix(raw, len(known.names), columns), []
    if known.task.is_exclusive:
        numbers = _Numbers(known, raw)
        keys = class_keys(raw, columns)
        return np.array([numbers.of(key, at) for at, key in enumerate(keys)], dtype=np.int64), []
    return _encode_known_lists(raw, columns, known)


def _encode_known_lists(raw: RawLabels, columns: tuple[str, ...], known: KnownLabels) -> tuple[Labels, list[str]]:
    cutter, notes = label_cutter([raw.values], columns, known.separator)
    rows = label_lists(raw, cutter)
    count = len(known.names)
    if len(columns) > 1:
        names = list(columns)
        if absent := [name for name in known.names if name not in names]:
            raise DataError(
                f"the data have no column of the model's labels {listing(absent)}; they have {listing(names)}"
            )
    else:
        # Vectors are read by position, which is right only where positions are all the names there are.
        names = [str(position) for position in range(count)]
        if not are_vectors(rows) or len(rows[0]) != count or list(known.names) != names:
            names = []
    if names:
        positions = vector_positions(rows, raw, len(names))
        rows = [[names[position] for position in row] for row in positions]
    numbers = _Numbers(known, raw)
    lists = [[numbers.of(key, at) for key in row] for at, row in enumerate(rows)]
    return indicator_matrix(lists, {number: number for number in range(count)}), notes


class _Numbers:
    """The model's number of a label, by its name."""

    def __init__(self, known: KnownLabels, raw: RawLabels) -> None:
        self._names = known.names
        self._raw = raw
        self._index = {compose(name): number for number, name in enumerate(known.names)}

    def of(self, label: Any, at: int) -> int:
        """Return the number.

        Raises:
            DataError: the model has no such label.
        """
        for spelling in _label_spellings(label):
            if spelling in self._index:
                return self._index[spelling]
        known = listing(list(self._names))
        raise DataError(
            f"{self._raw.name(at)}: the model does not know the label {str(label)!r}"
            f"{did_you_mean(str(label), self._names)}; it knows {known}"
        )


def _label_spellings(label: Any) -> list[str]:
    """How a label may be called: as it stands, without blanks, and a whole number as training calls it."""
    text = label_text(label)
    spellings = [text, text.strip()]
    try:
        if float(text).is_integer():
            spellings.append(str(int(float(text))) if "." in text or "e" in text.lower() else str(int(text)))
    except (ValueError, OverflowError):
        pass
    return spellings
