"""The path from a reference to splits with inputs and labels, readable from top to bottom."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from hftl.data.cells import Cells
from hftl.data.columns import choose_columns
from hftl.data.dataset import Data, Files, Indices, Split, TextColumns, Texts, labels_as_bytes
from hftl.data.holdout import shared_rows
from hftl.data.labels import EncodedLabels, encode_labels, infer_task
from hftl.data.mark_columns import read_marks
from hftl.data.marks import Division
from hftl.data.objects import said_of
from hftl.data.opening import decode_text
from hftl.data.raw import RawData, SplitName, digest
from hftl.data.raw_labels import RawLabels, ReadLabels, Stated, label_text, read_labels
from hftl.data.references import open_reference
from hftl.data.scope import outside_split, refuse_scope, without_label
from hftl.data.sentences import encode_tags, sentences_of, word_columns
from hftl.data.split_columns import divide_by_column
from hftl.data.splits import make_splits
from hftl.errors import BadRowError, DataError
from hftl.store.digests import digest_texts
from hftl.tasks import Task
from hftl.wording import close_matches, did_you_mean, listing, plural


def load_data(
    ref: Any,
    *,
    wants: Literal["text", "file"],
    suffixes: Collection[str] = (),
    input_columns: Sequence[str] | None = None,
    label_columns: Sequence[str] | None = None,
    task: str | None = None,
    unlabelled: Sequence[object] | None = None,
    label_separator: str | None = None,
    seed: int = 0,
    test_size: float = 0.2,
    validation_size: float | None = None,
    division: Division | None = None,
    set_aside: bool = True,
    out_of_scope: str | None = None,
) -> Data:
    """Load data, infer columns and task, check the labels, and see that there is a split to report on.

    Args:
        ref: ``user/name``, ``user/name:config`` or ``user/name@revision`` (Hub); a folder (``split/class/file``,
            ``class/split/file`` or ``class/file``); a ``.csv .tsv .jsonl .json .parquet .conll .bio .iob`` file, tar
            shards of WebDataset by a pattern, or a folder of them, also at an address that fsspec reaches; a folder
            that `datasets` saved; ``sample:NAME``; a `datasets.Dataset` or ``DatasetDict``; a pandas or polars
            ``DataFrame``; a list of pairs (input, label); or a dict of splits of these, or of files.
        wants: what the backbone takes: ``text``, or ``file`` for images and sounds.
        suffixes: suffixes of the files wanted in class folders, such as ``.jpg``; any if empty.
        input_columns: the input column, or two for a pair of texts; inferred if not given.
        label_columns: the label column, or several targets; inferred if not given.
        task: ``single_label``, ``multi_label``, ``regression`` or ``token_labels``; inferred if not given.
        unlabelled: values of the label column that mark rows without a label, which are left out; ``""`` for a
            missing value. If not given, -1 where the data name their classes, or where it stands beside class numbers
            and no task is given.
        label_separator: what stands between several labels in one cell; inferred from all cells if not given.
        seed: of the evaluation split that is made if the data bring none.
        test_size: its share of the rows.
        validation_size: share of the training rows to set aside as the validation split; None for the data's own alone.
        division: columns that say more of how rows are divided; None where only labels do.
        set_aside: whether rows are drawn where the data bring no test split; if not, the test split has no rows.
        out_of_scope: a label that is no class: its rows are `Data.outside`, or left out where they are not tested.

    Raises:
        DataError: the reference leads nowhere, or what is there cannot be used.
    """
    stated = Stated(
        None if task is None else stated_task(task),
        None if unlabelled is None else tuple(map(label_text, unlabelled)),
        label_separator,
    )
    said = said_reference(ref)
    source = open_reference(ref, wants, {suffix.lower() for suffix in suffixes})
    division = division or Division()
    marking = division.columns()
    source = divide_by_column(source, [*(input_columns or ()), *(label_columns or ()), *marking.values()])
    _require_train(source, said)
    cells = Cells(source)
    # A column that divides rows is neither read nor learnt, unless somebody says so.
    others = [column for what, column in marking.items() if what != "stratify"]
    tagged = word_columns(source, "train", input_columns, label_columns, stated.task) if wants == "text" else None
    inputs: tuple[str, ...]
    labels: tuple[str, ...]
    if tagged:
        inputs, labels = tagged[:1], tagged[1:]
    else:
        inputs, labels = choose_from(source, cells, "train", wants, input_columns, label_columns, leave_out=others)
    source, missing = _without_unlabelled_splits(source, labels)
    read = read_labels(source, cells, labels, stated)
    outside: dict[SplitName, Indices] = {}
    if out_of_scope is not None and not tagged:
        read, outside = without_label(read, out_of_scope)
    if tagged:
        words = {split: sentences_of(source, split, tagged[0], raw.rows) for split, raw in read.splits.items()}
        encoded, why = encode_tags(read.splits, words, tagged, read.class_names)
        rows: dict[SplitName, Texts | Files] = dict(words)
    else:
        encoded, why = _encode(read, labels, stated, column_is_certain=bool(label_columns) or source.is_class_folder)
        rows = {split: split_inputs(source, split, inputs, wants, raw.rows) for split, raw in read.splits.items()}
    beyond, told = None, []
    if out_of_scope is not None:
        refuse_scope(encoded.task)
        there = {split: split_inputs(source, split, inputs, wants, rows) for split, rows in outside.items()}
        tested: SplitName = next((split for split in ("test", "validation") if split in outside), "train")
        beyond, note = outside_split(there, out_of_scope, tested, encoded.names)
        told = [note]
    marks = read_marks(source, cells, division, {split: raw.rows for split, raw in read.splits.items()})
    splits, made = make_splits(
        rows, encoded, seed, test_size if set_aside else None, validation_size, division=division, marks=marks
    )
    return Data(
        ref=said,
        task=encoded.task,
        label_names=encoded.names,
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits["test"],
        notes=[
            *source.notes,
            *(note for split in source.parts.values() for note in split.notes),
            f"columns: input <- {listing(inputs)}, label <- {listing(labels)} ({why})",
            *missing,
            *read.notes,
            *encoded.notes,
            *([] if tagged else _null_texts(source, read.splits, inputs, wants)),
            *told,
            *made,
            *shared_rows(splits["train"], splits["test"]),
        ],
        identity={
            "ref": said,
            **source.identity,
            **({"division": marking} if marking else {}),
            **({} if beyond is None else {"out_of_scope": {"label": out_of_scope, "rows": len(beyond)}}),
            "splits": {name: len(split) for name, split in splits.items()},
            "columns": {"inputs": list(inputs), "labels": list(labels)},
            "labels_digest": digest(*(labels_as_bytes(split.labels) for split in splits.values())),
            **({} if isinstance(ref, str) else {"inputs_digest": _inputs_digest(splits.values())}),
        },
        set_aside=not {"test", "validation"} & rows.keys(),
        outside=beyond,
    )


def said_reference(ref: object) -> str:
    """A reference for a person."""
    return ref if isinstance(ref, str) else said_of(ref)


def _inputs_digest(splits: Iterable[Split]) -> str:
    """A digest of all inputs of data that nobody can find again by a name; paths count as they are written."""
    parts: list[bytes] = []
    for split in splits:
        inputs = split.inputs
        if isinstance(inputs, Texts):
            parts.append(digest_texts(inputs).tobytes())
        else:
            parts += [digest(_named_content(inputs, row)).encode() for row in range(len(inputs))]
    return digest(*parts)


def _named_content(files: Files, row: int) -> bytes:
    """A row's path, or its bytes where it has none; nothing of a row that cannot be read, which is met later."""
    path = files.path(row)
    try:
        return files[row] if path is None else str(path).encode()
    except BadRowError:
        return b""


def stated_task(task: str) -> Task:
    """The task of that name.

    Raises:
        DataError: there is none.
    """
    known = [str(known) for known in Task]
    if task not in known:
        raise DataError(f"task {task!r}: there is only {listing(known)}{did_you_mean(task, known)}")
    return Task(task)


def _require_train(source: RawData, ref: str) -> None:
    if "train" not in source.parts:
        raise DataError(
            f"{ref or 'data set'}: no training split among {listing(source.names or list(source.parts))}: name one "
            f"'train', or give the split to train on alone"
        )
    if not len(source.parts["train"].own_rows):
        train = source.parts["train"]
        where = "the training split" if train.names is None else train.names.source
        raise DataError(f"{where}: the training split has no rows")


def choose_from(
    source: RawData,
    cells: Cells,
    split: SplitName,
    wants: Literal["text", "file"],
    input_columns: Sequence[str] | None,
    label_columns: Sequence[str] | None,
    *,
    leave_out: Collection[str] = (),
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Choose input and label columns by what one split holds.

    Raises:
        DataError: a stated column does not exist, or the choice is ambiguous.
    """
    part = source.parts[split]
    stated = {*(input_columns or ()), *(label_columns or ())}
    kinds = {
        name: kind
        for name, kind in cells.kinds(split).items()
        if (name or len(part.table)) and (name not in leave_out or name in stated)
    }
    try:
        return choose_columns(
            kinds,
            wants=wants,
            paths_allowed=not source.foreign,
            where=f"the {split} split" if part.names is None else part.names.source,
            input_columns=input_columns,
            label_columns=label_columns,
        )
    except DataError as error:
        if not part.hint:
            raise
        raise DataError(f"{error}; {part.hint}") from error


def _without_unlabelled_splits(source: RawData, labels: Sequence[str]) -> tuple[RawData, list[str]]:
    """Leave out evaluation splits that have no label column at all, as the test files of competitions."""
    notes = []
    parts = {split: source.parts[split] for split in source.parts}
    for split, part in source.parts.items():
        there = [*part.columns, *part.unusable]
        absent = [name for name in labels if name not in there]
        # A column of nearly that name is a slip that must be said.
        if split != "train" and absent and not any(close_matches(name, there) for name in absent):
            notes.append(f"{split} split left out: it has no label column {listing(absent)}")
            del parts[split]
    return replace(source, parts=parts), notes


def _encode(
    read: ReadLabels, labels: Sequence[str], stated: Stated, *, column_is_certain: bool
) -> tuple[EncodedLabels, str]:
    """Give labels their numbers; say in a few words what they are."""
    if stated.task is None:
        task, why = infer_task(
            read.splits["train"].values,
            labels,
            named_classes=read.class_names is not None,
            column_is_certain=column_is_certain,
        )
    else:
        task, why = stated.task, "as stated"
    encoded = encode_labels(read.splits, task, labels, read.class_names, stated.separator)
    noun = "class" if task.has_classes else "target"
    return encoded, f"{plural(len(encoded.names), noun)}, task {task}: {why}"


def split_inputs(source: RawData, split: SplitName, columns: Sequence[str], wants: str, rows: Indices) -> Texts | Files:
    """The inputs of some rows of a split.

    Args:
        source: the splits.
        split: which.
        columns: the input columns.
        wants: ``text`` or ``file``.
        rows: positions in the split's table.

    Raises:
        DataError: a column is missing, or no path leads to a file, or a text file is not in UTF-8.
    """
    part = source.parts[split]
    cells = [part.column(name, split) for name in columns]
    if wants == "file":
        files = Files(cells[0], part.names, root=source.root, folders=part.folders, within=source.within, index=rows)
        start = "the working folder" if source.root == Path() else "the folder of the data file"
        _check_some_exist(files, split, start)
        return files
    if part.names is None:  # a folder of text files
        files = Files(cells[0], root=source.root, index=rows)
        return Texts(
            [(_read_text(files, row),) for row in range(len(files))], [files.name(row) for row in range(len(files))]
        )
    return Texts(TextColumns([_text_column(column) for column in cells]), part.names, rows)


def _text_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column's values as texts, in Arrow."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column
    return pa.chunked_array(
        [pa.array(strings_of(pa.chunked_array([chunk])), pa.string()) for chunk in column.chunks], pa.string()
    )


def strings_of(column: pa.ChunkedArray) -> list[str]:
    """A column's values as texts; a missing one as an empty text."""
    return ["" if value is None else str(value) for value in column.to_pylist()]


def _read_text(files: Files, row: int) -> str:
    return decode_text(files.read(row), files.name(row))


def _check_some_exist(files: Files, split: SplitName, start: str) -> None:
    """Refuse paths that all start from the wrong folder; a single missing file is met when it is read."""
    paths: list[Any] = [files.path(row) for row in range(min(len(files), 20))]
    if paths and all(path is not None and not path.is_file() for path in paths):
        raise DataError(
            f"{files.name(0)}: no file {paths[0]}, and none of the next ones in the {split} split: "
            f"paths must start from {start}"
        )


def _null_texts(source: RawData, raw: Mapping[SplitName, RawLabels], columns: Sequence[str], wants: str) -> list[str]:
    """Count null texts, which were read as empty ones."""
    if wants == "file":
        return []
    # Not of the texts that are taken: Arrow would join all of them, and cannot beyond 2 GB.
    missing = [source.parts[split].columns[name].is_null().take(raw[split].rows) for split in raw for name in columns]
    nulls = sum(pc.sum(each).as_py() or 0 for each in missing)
    return [f"{plural(nulls, 'null text')} read as empty"] if nulls else []
