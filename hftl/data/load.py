"""The path from a reference to splits with inputs and labels, readable from top to bottom."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from hftl.data.columns import Kind, choose_columns, column_kind, numbers_from_text
from hftl.data.dataset import Data, Files, Texts
from hftl.data.holdout import make_splits, shared_rows
from hftl.data.labels import EncodedLabels, encode_labels, infer_task
from hftl.data.raw import RawData, SplitName, digest
from hftl.data.raw_labels import RawLabels, read_labels
from hftl.data.references import open_reference
from hftl.errors import DataError
from hftl.tasks import Task
from hftl.wording import did_you_mean, listing, plural

if TYPE_CHECKING:
    import datasets


def load_data(
    ref: str | datasets.DatasetDict | datasets.Dataset,
    *,
    wants: Literal["text", "file"],
    suffixes: Collection[str] = (),
    input_columns: Sequence[str] | None = None,
    label_columns: Sequence[str] | None = None,
    task: str | None = None,
    seed: int = 0,
    test_size: float = 0.2,
) -> Data:
    """Load data, infer columns and task, check the labels, and see that there is a split to report on.

    Args:
        ref: ``user/name``, ``user/name:config`` or ``user/name@revision`` (Hub); a folder
            (``split/class/file`` or ``class/file``); a ``.csv .tsv .jsonl .json .parquet`` file or a folder
            of them; ``sample:NAME``; or a data set of `datasets`.
        wants: what the backbone takes: ``text``, or ``file`` for images and sounds.
        suffixes: suffixes of the files wanted in class folders, such as ``.jpg``; any if empty.
        input_columns: the input column, or two for a pair of texts; inferred if not given.
        label_columns: the label column, or several targets; inferred if not given.
        task: ``single_label``, ``multi_label`` or ``regression``; inferred if not given.
        seed: of the evaluation split that is made if the data bring none.
        test_size: its share of the rows.

    Raises:
        DataError: the reference leads nowhere, or what is there cannot be used.
    """
    stated = None if task is None else _stated_task(task)
    said = ref if isinstance(ref, str) else f"<{type(ref).__name__}>"
    source = open_reference(ref, wants, {suffix.lower() for suffix in suffixes})
    cells = _Cells(source)
    inputs, labels = _choose_columns(source, cells, wants, input_columns, label_columns)
    raw, dropped = _read_labels(source, cells, labels, stated)
    encoded, why = _encode(raw, labels, cells.class_names(labels), stated)
    rows = {split: _inputs(source, split, inputs, wants).select(raw[split].rows) for split in raw}
    splits, made = make_splits(rows, encoded, seed, test_size)
    return Data(
        ref=said,
        task=encoded.task,
        label_names=encoded.names,
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits["test"],
        notes=[
            *source.notes,
            f"columns: input <- {listing(inputs)}, label <- {listing(labels)} ({why})",
            *dropped,
            *encoded.notes,
            *_null_texts(source, raw, inputs, wants),
            *made,
            *shared_rows(splits["train"], splits["test"]),
        ],
        identity={
            "ref": said,
            **source.identity,
            "splits": {name: len(split) for name, split in splits.items()},
            "columns": {"inputs": list(inputs), "labels": list(labels)},
            "labels_digest": digest(*(split.labels.tobytes() for split in splits.values())),
        },
        set_aside=not {"test", "validation"} & rows.keys(),
    )


def _stated_task(task: str) -> Task:
    known = [str(known) for known in Task]
    if task not in known:
        raise DataError(f"task {task!r}: there is only {listing(known)}{did_you_mean(task, known)}")
    return Task(task)


class _Cells:
    """The source's columns as labels see them: numbers read from text where that is how they are stored."""

    def __init__(self, source: RawData) -> None:
        self._source = source
        self._read: dict[tuple[SplitName, str], pa.ChunkedArray] = {}

    def __call__(self, split: SplitName, name: str) -> pa.ChunkedArray:
        if (split, name) not in self._read:
            column = _column(self._source, split, name)
            self._read[split, name] = numbers_from_text(column) if self._source.numbers_as_text else column
        return self._read[split, name]

    def kind(self, name: str) -> Kind:
        """Return what the training split's column holds."""
        return column_kind(self("train", name), name in self._source.class_names)

    def class_names(self, labels: Sequence[str]) -> list[str] | None:
        """Return the names of the classes, if there is one label column and the data name its classes."""
        return self._source.class_names.get(labels[0]) if len(labels) == 1 else None


def _column(source: RawData, split: SplitName, name: str) -> pa.ChunkedArray:
    table = source.parts[split].table
    if name not in table.column_names:
        columns = table.column_names
        raise DataError(f"{split} split: no column {name!r}{did_you_mean(name, columns)}; it has {listing(columns)}")
    return table[name]


def _choose_columns(
    source: RawData,
    cells: _Cells,
    wants: Literal["text", "file"],
    input_columns: Sequence[str] | None,
    label_columns: Sequence[str] | None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    train = source.parts["train"]
    where = "the training split" if train.names is None else train.names.source
    if not train.table.num_rows:
        raise DataError(f"{where}: the training split has no rows")
    return choose_columns(
        {name: cells.kind(name) for name in train.table.column_names},
        wants=wants,
        paths_allowed=not source.foreign,
        where=where,
        input_columns=input_columns,
        label_columns=label_columns,
    )


def _read_labels(
    source: RawData, cells: _Cells, labels: Sequence[str], task: Task | None
) -> tuple[dict[SplitName, RawLabels], list[str]]:
    columns = {split: [cells(split, name) for name in labels] for split in source.parts}
    row_names = {split: part.name for split, part in source.parts.items()}
    return read_labels(columns, row_names, labels, named_classes=cells.class_names(labels) is not None, task=task)


def _encode(
    raw: dict[SplitName, RawLabels], labels: Sequence[str], class_names: list[str] | None, task: Task | None
) -> tuple[EncodedLabels, str]:
    """Give labels their numbers; say in a few words what they are."""
    if task is None:
        kind, why = infer_task(raw["train"].values, labels, named_classes=class_names is not None)
    else:
        kind, why = task, "as stated"
    encoded = encode_labels(raw, kind, labels, class_names)
    noun = "class" if kind.has_classes else "target"
    return encoded, f"{plural(len(encoded.names), noun)}, task {kind}: {why}"


def _inputs(source: RawData, split: SplitName, columns: Sequence[str], wants: str) -> Texts | Files:
    part = source.parts[split]
    cells = [_column(source, split, name) for name in columns]
    if wants == "file":
        files = Files(cells[0], part.names, root=source.root, within=source.within)
        _check_some_exist(files, split)
        return files
    if part.names is None:  # a folder of text files
        files = Files(cells[0], root=source.root)
        return Texts([(_read_text(files, row),) for row in range(len(files))], cells[0].to_pylist())
    return Texts(list(zip(*map(_strings, cells), strict=True)), part.names)


def _strings(column: pa.ChunkedArray) -> list[str]:
    return ["" if value is None else str(value) for value in column.to_pylist()]


def _read_text(files: Files, row: int) -> str:
    try:
        return files.read(row).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{files.name(row)}: not UTF-8 text; save the file as UTF-8") from error


def _check_some_exist(files: Files, split: SplitName) -> None:
    """Refuse paths that all start from the wrong folder; a single missing file is met when it is read."""
    paths: list[Any] = [files.path(row) for row in range(min(len(files), 20))]
    if paths and all(path is not None and not path.is_file() for path in paths):
        raise DataError(
            f"{files.name(0)}: no file {paths[0]}, and none of the next ones in the {split} split: "
            f"paths must start from the folder of the data file"
        )


def _null_texts(source: RawData, raw: dict[SplitName, RawLabels], columns: Sequence[str], wants: str) -> list[str]:
    """Count null texts, which were read as empty ones."""
    if wants == "file":
        return []
    nulls = sum(source.parts[split].table[name].take(raw[split].rows).null_count for split in raw for name in columns)
    return [f"{plural(nulls, 'null text')} read as empty"] if nulls else []
