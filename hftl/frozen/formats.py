"""Features in files for other tools, written block by block: Parquet, safetensors and NumPy's own format."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from hftl.data import Labels
from hftl.errors import RecipeError
from hftl.runs.folder import writing
from hftl.store.files import FILE_CALLS, remove_orphans, write_atomically, write_file
from hftl.store.shard import LARGEST_METADATA, file_header

Block: TypeAlias = "npt.NDArray[np.float32]"

BLOCK_BYTES = 32 << 20
"""Of a matrix as much is in memory at a time, whatever its size."""


@dataclass(frozen=True)
class About:
    """What the n lines of a matrix are.

    Attributes:
        labels: int64 (n,) class numbers; float32 (n, k) of 0 and 1 for several labels, or of targets.
        label_names: names of the classes, labels or targets.
        row_names: what a person calls each row.
        split: the split of each row, (n,).
    """

    labels: Labels
    label_names: list[str]
    row_names: Sequence[str]
    split: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.labels)


def check_format(path: Path) -> None:
    """Refuse a file name that says no known format.

    Raises:
        RecipeError: its ending is none of .parquet, .safetensors and .npy.
    """
    if path.suffix not in WRITERS:
        raise RecipeError(f"cannot write features as {path.name!r}; its name ends in one of {', '.join(WRITERS)}")


def write_blocks(path: Path, about: About, width: int, blocks: Iterator[Block]) -> list[Path]:
    """Write a matrix that comes in blocks; a file appears whole, on the disk, or not at all.

    Args:
        path: its name ends in ``.parquet``, ``.safetensors`` or ``.npy``. An ``.npy`` holds the matrix alone, the rest
            stands beside it as ``.json``.
        about: what the n lines are.
        width: d, how many numbers each has.
        blocks: float32 (m, d) each, n lines together.

    Returns:
        The files written.

    Raises:
        RecipeError: the file name says no known format, or that format has no room for so many names.
        HftlError: the file cannot be written.
    """
    check_format(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # What a process left that was killed while it wrote here.
        remove_orphans(path.parent)
        return WRITERS[path.suffix](path, about, width, blocks)


def _write_parquet(path: Path, about: About, width: int, blocks: Iterator[Block]) -> list[Path]:
    write_atomically(FILE_CALLS, path, _parquet(about, width, blocks), None)
    return [path]


def _parquet(about: About, width: int, blocks: Iterator[Block]) -> Iterator[bytes]:
    """The bytes of a Parquet file, of which each block is a row group."""
    schema, sink, at = _parquet_schema(about, width), _Sink(), 0
    label_names = _as_texts(about.label_names)
    with pq.ParquetWriter(pa.PythonFile(sink, mode="w"), schema) as writer:
        for block in blocks:
            part = slice(at, at := at + len(block))
            columns: dict[str, object] = {
                "row": _as_texts(about.row_names[part]),
                "split": about.split[part].tolist(),
                "label": about.labels[part].tolist(),
                "features": pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), width),
            }
            if "label_name" in schema.names:
                columns["label_name"] = [label_names[label] for label in about.labels[part]]
            writer.write_table(pa.table({name: columns[name] for name in schema.names}, schema=schema))
            yield sink.taken()
    yield sink.taken()


def _parquet_schema(about: About, width: int) -> pa.Schema:
    """The columns, told to `datasets` and the Hub's viewer too; other readers find the classes' names in a column."""
    # Brought only here: it takes a second to import.
    from datasets import ClassLabel, Features, List, Value

    text, numbers = Value("string"), List(Value("float32"))
    label_names = _as_texts(about.label_names)
    labels = {"label": ClassLabel(names=label_names), "label_name": text}
    columns = {"row": text, "split": text, **(labels if about.labels.ndim == 1 else {"label": numbers})}
    schema = Features({**columns, "features": List(Value("float32"), length=width)}).arrow_schema
    return schema.with_metadata({**schema.metadata, "label_names": json.dumps(label_names)})


class _Sink(io.RawIOBase):
    """Takes what is written, to be fetched from time to time."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._at = 0

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        part = bytes(data)  # type: ignore[call-overload]
        self._parts.append(part)
        self._at += len(part)
        return len(part)

    def tell(self) -> int:
        return self._at

    def taken(self) -> bytes:
        """What was written since this was asked last."""
        parts, self._parts = self._parts, []
        return b"".join(parts)


def _write_safetensors(path: Path, about: About, width: int, blocks: Iterator[Block]) -> list[Path]:
    metadata = {name: json.dumps(value) for name, value in _said_of_rows(about).items()}
    labels = np.ascontiguousarray(about.labels)
    arrays = [
        ("labels", "I64" if labels.dtype == np.int64 else "F32", labels.shape, labels.nbytes),
        ("features", "F32", (len(about), width), 4 * len(about) * width),
    ]
    header = file_header(arrays, metadata)
    if len(header) > LARGEST_METADATA:
        raise RecipeError(
            f"{path.name}: the names of {len(about):,} rows do not fit a safetensors header: write .parquet or .npy"
        )
    write_atomically(FILE_CALLS, path, _chained([header, labels.data], blocks), None)
    return [path]


def _write_npy(path: Path, about: About, width: int, blocks: Iterator[Block]) -> list[Path]:
    beside, header = path.with_suffix(".json"), io.BytesIO()
    described = {"descr": "<f4", "fortran_order": False, "shape": (len(about), width)}
    np.lib.format.write_array_header_1_0(header, described)
    facts = json.dumps({"labels": about.labels.tolist(), **_said_of_rows(about)}) + "\n"
    # The matrix is the last to appear: where it stands, what is beside it is of the same rows.
    path.unlink(missing_ok=True)
    write_file(beside, facts.encode("ascii"))
    write_atomically(FILE_CALLS, path, _chained([header.getvalue()], blocks), None)
    return [path, beside]


def _said_of_rows(about: About) -> dict[str, list[str]]:
    label_names = _as_texts(about.label_names)
    return {"rows": _as_texts(about.row_names), "splits": about.split.tolist(), "label_names": label_names}


def _as_texts(names: Sequence[str]) -> list[str]:
    """Names as text: those of files need not be, and what is none in them stands as ``\\udcff``."""
    return [name.encode("utf-8", "backslashreplace").decode() for name in names]


def _chained(first: Sequence[bytes | memoryview], blocks: Iterator[Block]) -> Iterator[bytes | memoryview]:
    yield from first
    for block in blocks:
        # An empty array has no memory that could be cast to bytes.
        if block.size:
            yield np.ascontiguousarray(block).data


WRITERS: dict[str, Callable[[Path, About, int, Iterator[Block]], list[Path]]] = {
    ".parquet": _write_parquet,
    ".safetensors": _write_safetensors,
    ".npy": _write_npy,
}
