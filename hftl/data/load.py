"""Load data from any kind of reference: the path from a reference to splits with inputs and labels, read top to bottom."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyarrow as pa

from hftl import samples
from hftl.data.columns import Kind, choose_columns, column_kind, numbers_from_text
from hftl.data.folders import list_files, read_class_folders
from hftl.data.labels import EncodedLabels, RawLabels, encode_labels, infer_task, raw_labels
from hftl.data.rows import Data, Files, Split, Task, Texts
from hftl.data.source import Part, Source, SplitName, did_you_mean, digest, listing, plural
from hftl.data.splits import hold_out
from hftl.data.tables import TABLE_SUFFIXES, read_tables
from hftl.errors import DataError

if TYPE_CHECKING:
    import datasets

TEXT_SUFFIXES = (".txt",)

_SMALL_ENOUGH_TO_COMPARE = (
    256 << 20
)  # bytes of files held in memory that are hashed to find rows shared by two splits


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
    """Load data, infer its columns and task, and check it.

    Args:
        ref: ``user/name``, ``user/name:config``, ``user/name@revision`` (Hub); a folder (``split/class/file`` or ``class/file``);
            a ``.csv .tsv .jsonl .json .parquet`` file or a folder of them; ``sample:NAME``; or a data set in Python.
        wants: what the backbone takes: ``text``, or ``file`` for images and sounds.
        suffixes: suffixes of the files wanted in a folder, such as ``.jpg``; any if empty.
        input_columns: the input column, or two for a pair of texts; inferred if not given.
        label_columns: the label column, or several targets; inferred if not given.
        task: ``single_label``, ``multi_label`` or ``regression``; inferred if not given.
        seed: of the evaluation split that is made if there is none.
        test_size: its share of the rows.

    Raises:
        DataError: the reference leads nowhere, or what it leads to cannot be used; says what, where, and what to do.
    """
    if task is not None and task not in get_args(Task):
        raise DataError(
            f"task {task!r} is none of {listing(get_args(Task))}{did_you_mean(task, get_args(Task))}"
        )
    source = _open(ref, wants, {suffix.lower() for suffix in suffixes})
    train = source.parts["train"].table
    if not train.num_rows:
        raise DataError(f"{_said(ref)}: the training split has no rows")
    columns = _Columns(source)
    inputs, labels = choose_columns(
        {name: columns.kind(name) for name in train.column_names},
        wants=wants,
        paths_allowed=not source.foreign,
        where=_where(source),
        input_columns=input_columns,
        label_columns=label_columns,
    )
    raw, notes = _read_labels(source, columns, labels)
    named = columns.named_classes(labels)
    stated: Any = task
    kind, why = (
        (stated, "as stated") if stated else infer_task(raw["train"].values, labels, named is not None)
    )
    encoded = encode_labels(raw, kind, labels, named)

    rows = {split: _inputs(source, split, inputs, wants).select(raw[split].rows) for split in raw}
    notes = [*source.notes, _columns_note(inputs, labels, encoded, why), *notes, *encoded.notes]
    notes += _blank_texts(source, raw, inputs, wants)
    splits, made = _three_splits(rows, encoded, seed, test_size)
    notes += made + _shared_rows(splits)
    identity = {
        "ref": _said(ref),
        **source.identity,
        "splits": {name: len(split) for name, split in splits.items()},
        "columns": {"inputs": list(inputs), "labels": list(labels)},
        "labels_digest": digest(
            b"".join(split.labels.tobytes() for split in splits.values()) + "\n".join(encoded.names).encode()
        ),
    }
    return Data(
        _said(ref),
        encoded.task,
        encoded.names,
        splits["train"],
        splits.get("validation"),
        splits["test"],
        notes,
        identity,
    )


# Opening -------------------------------------------------------------------------------------------------------------


def _said(ref: object) -> str:
    return ref if isinstance(ref, str) else f"<{type(ref).__name__}>"


def _open(ref: str | datasets.DatasetDict | datasets.Dataset, wants: str, suffixes: set[str]) -> Source:
    if not isinstance(ref, str):
        from hftl.data.hub import from_datasets

        return from_datasets(ref)
    if ref.startswith("sample:"):
        return _open_sample(ref.removeprefix("sample:"))
    path = Path(ref).expanduser()
    if path.is_dir():
        return _open_folder(path, wants, suffixes)
    if path.exists():
        if path.suffix.lower() not in TABLE_SUFFIXES:
            raise DataError(f"{ref}: a data file must end in {', '.join(TABLE_SUFFIXES)}")
        return read_tables([path], path.parent)
    if (
        re.fullmatch(r"[\w.-]+/[\w.-]+(:[^@]+)?(@.+)?", ref)
        and not ref.startswith(".")
        and path.suffix not in TABLE_SUFFIXES
    ):
        from hftl.data.hub import from_hub

        return from_hub(ref, hint=_near(path))
    raise DataError(f"{ref}: no such file or folder{_near(path)}; a data set on the Hub is written user/name")


def _near(path: Path) -> str:
    """Suggest files beside a path that does not exist."""
    folder = path.parent
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return did_you_mean(path.name, names)


def _open_sample(name: str) -> Source:
    if name not in samples.DATASETS:
        raise DataError(
            f"sample:{name}: no such sample{did_you_mean(name, samples.DATASETS)}; there are {listing(sorted(samples.DATASETS))}"
        )
    parts: dict[SplitName, Part] = {}
    for split, rows in samples.DATASETS[name]().items():
        files = pa.array([{"bytes": row.encoded, "path": row.name} for row in rows])
        table = pa.table({"image": files, "label": [row.label for row in rows]})
        parts[split] = Part(table, None)  # type: ignore[index]
    return Source(parts, identity={"sample": name})


def _open_folder(root: Path, wants: str, suffixes: set[str]) -> Source:
    files = list_files(root)
    tables = [root / file for file in files if file.suffix.lower() in TABLE_SUFFIXES]
    if wants == "text" and tables:
        return read_tables(tables, root)
    source = read_class_folders(root, files, suffixes if wants == "file" else TEXT_SUFFIXES)
    if source is not None:
        return source
    if tables:
        return read_tables(tables, root)
    kinds = (
        ", ".join(sorted(suffixes))
        if wants == "file" and suffixes
        else "files"
        if wants == "file"
        else ".txt"
    )
    raise DataError(
        f"{root}: neither class folders with {kinds} in them (split/class/file or class/file) nor a table ({', '.join(TABLE_SUFFIXES)}); "
        f"it holds {plural(len(files), 'file')}"
    )


# Columns and labels --------------------------------------------------------------------------------------------------


class _Columns:
    """The source's columns by use: numbers read from text where that is how they are stored."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._cells: dict[tuple[str, str], pa.ChunkedArray] = {}

    def cells(self, split: SplitName, name: str) -> pa.ChunkedArray:
        """Return a column as labels see it."""
        key = (split, name)
        if key not in self._cells:
            column = self._source.parts[split].table[name]
            self._cells[key] = numbers_from_text(column) if self._source.numbers_as_text else column
        return self._cells[key]

    def kind(self, name: str) -> Kind:
        """Return what the training split's column holds."""
        return column_kind(self.cells("train", name), name in self._source.class_names)

    def named_classes(self, labels: Sequence[str]) -> list[str] | None:
        """Return the names of the classes, if there is one label column and it says them."""
        return self._source.class_names.get(labels[0]) if len(labels) == 1 else None


def _read_labels(
    source: Source, columns: _Columns, labels: Sequence[str]
) -> tuple[dict[SplitName, RawLabels], list[str]]:
    found: dict[SplitName, RawLabels] = {}
    notes: list[str] = []
    for split, part in source.parts.items():
        for name in labels:
            if name not in part.table.column_names:
                raise DataError(
                    f"{split} split: no column {name!r}; columns: {listing(part.table.column_names)}"
                )
        cells = [columns.cells(split, name) for name in labels]
        raw, said = raw_labels(
            cells, split, _row_namer(source, split), labels, columns.named_classes(labels) is not None
        )
        notes += said
        if raw is not None:
            found[split] = raw
    return found, notes


def _where(source: Source) -> str:
    names = source.parts["train"].names
    return "the training split" if names is None else names[0].rsplit(" row ", 1)[0]


def _row_namer(source: Source, split: SplitName) -> Callable[[int], str]:
    part = source.parts[split]
    if part.names is not None:
        return part.names.__getitem__
    return Files(part.table[0]).name


# Inputs --------------------------------------------------------------------------------------------------------------


def _inputs(source: Source, split: SplitName, columns: Sequence[str], wants: str) -> Texts | Files:
    part = source.parts[split]
    for name in columns:
        if name not in part.table.column_names:
            raise DataError(f"{split} split: no column {name!r}; columns: {listing(part.table.column_names)}")
    if wants == "file":
        files = Files(part.table[columns[0]], part.names, root=source.root, within=source.within)
        _check_some_exist(files, split)
        return files
    if part.names is None:  # a folder of texts
        paths = Files(part.table[columns[0]], root=source.root)
        return Texts(
            [(_read_text(paths, row),) for row in range(len(paths))],
            [paths.name(row) for row in range(len(paths))],
        )
    cells = [_strings(part.table[name]) for name in columns]
    return Texts(list(zip(*cells, strict=True)), part.names)


def _strings(column: pa.ChunkedArray) -> list[str]:
    return ["" if value is None else str(value) for value in column.to_pylist()]


def _read_text(files: Files, row: int) -> str:
    try:
        return files.read(row).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{files.name(row)}: not UTF-8 text; save the file as UTF-8") from error


def _check_some_exist(files: Files, split: SplitName) -> None:
    """Refuse paths that all start from the wrong folder; a single missing file is a bad row, met when it is read."""
    first = [files.path(row) for row in range(min(len(files), 20))]
    missing = [path for path in first if path is not None and not path.is_file()]
    if first and len(missing) == len(first):
        raise DataError(
            f"{files.name(0)}: no file {missing[0]}, nor any of the next rows' in the {split} split; paths start from the table's folder"
        )


def _blank_texts(
    source: Source, raw: dict[SplitName, RawLabels], columns: Sequence[str], wants: str
) -> list[str]:
    """Count null texts, which became empty ones."""
    if wants == "file":
        return []
    nulls = sum(
        source.parts[split].table[name].take(raw[split].rows).null_count for split in raw for name in columns
    )
    return [f"{plural(nulls, 'null text')} read as empty"] if nulls else []


# Splits --------------------------------------------------------------------------------------------------------------


def _three_splits(
    rows: dict[SplitName, Texts | Files], encoded: EncodedLabels, seed: int, test_size: float
) -> tuple[dict[SplitName, Split], list[str]]:
    splits = {split: Split(split, rows[split], encoded.arrays[split]) for split in rows}
    sizes = ", ".join(f"{plural(len(split), 'row')} in {name}" for name, split in splits.items())
    if "test" in splits:
        return splits, [f"splits: {sizes}"]
    if "validation" in splits:
        test = Split("test", splits["validation"].inputs, splits["validation"].labels)
        return {"train": splits["train"], "test": test}, [
            f"splits: {sizes}; no test split: the validation split is reported on"
        ]
    whole = splits["train"]
    stays, drawn = hold_out(whole.labels, encoded.task, test_size, seed)
    how = ", stratified" if encoded.task == "single_label" else ""
    note = f"no evaluation split: {len(drawn):,} of {plural(len(whole), 'row')} set aside{how}, seed {seed}"
    return {
        "train": Split("train", whole.inputs.select(stays), whole.labels[stays]),
        "test": Split("test", whole.inputs.select(drawn), whole.labels[drawn]),
    }, [note]


def _shared_rows(splits: dict[SplitName, Split]) -> list[str]:
    """Count rows of the test split whose content training holds too."""
    train, test = (_contents(splits[name].inputs) for name in ("train", "test"))
    if train is None or test is None:
        return []
    known = set(train)
    shared = sum(row in known for row in test)
    return (
        [f"{shared:,} of {plural(len(test), 'test row')} stand in the training split too"] if shared else []
    )


def _contents(inputs: Texts | Files) -> Sequence[object] | None:
    if isinstance(inputs, Texts):
        return inputs.values
    if inputs.nbytes_in_memory is None or inputs.nbytes_in_memory > _SMALL_ENOUGH_TO_COMPARE:
        return None
    return [inputs.read(row) for row in range(len(inputs))]


def _columns_note(inputs: Sequence[str], labels: Sequence[str], encoded: EncodedLabels, why: str) -> str:
    noun = "target" if encoded.task == "regression" else "class"
    return (
        f"columns: input <- {listing(inputs)}, label <- {listing(labels)}; task: {encoded.task} "
        f"({plural(len(encoded.names), noun)}; {why})"
    )
