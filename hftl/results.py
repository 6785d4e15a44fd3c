"""`Results`: what is said of rows, and files of it for people and programs, written whole or not at all."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from hftl.data.labels import SEPARATORS
from hftl.errors import DataError, UserError
from hftl.export.loaded import LoadedModel
from hftl.inputs.sentences import Sentence
from hftl.inputs.sources import RowSource
from hftl.rowrefs import inert
from hftl.scoring import Scored
from hftl.store.files import alive, bring_to_disk, is_mark, process_mark
from hftl.tagging import Span, Tagging
from hftl.tasks import Task
from hftl.wording import one_line

Result = dict[str, Any]

OWN_COLUMNS = ("input", "label", "score", "scores", "top", "entities", "tags", "abstains", "error")
# Rows of a parquet file that are written at once.
PARQUET_ROWS = 10_000


@dataclass
class Results:
    """How one model's answers are said.

    Attributes:
        task: what its outputs are.
        label_names: their names.
        thresholds: of several labels, one each, above which a label is predicted; None for 0.5.
        top_k: how many of the highest scores are said; None for all.
        kept: types of the columns that rows bring along.
        separator: what stands between several labels in a cell; None to choose one that no label holds.
        abstain_below: of one label a row, the highest score below which none is predicted; None to answer always.
    """

    task: Task
    label_names: Sequence[str]
    thresholds: Sequence[float] | None = None
    top_k: int | None = None
    kept: Mapping[str, pa.DataType] = field(default_factory=dict)
    separator: str | None = None
    abstain_below: float | None = None

    @classmethod
    def of(cls, model: LoadedModel, top_k: int | None, kept: Mapping[str, pa.DataType] | None = None) -> Results:
        """Those of a model.

        Raises:
            UserError: there are no scores to choose from, or a column that is kept is called like one of the results.
        """
        if top_k is not None and not model.task.has_classes:
            raise UserError("top_k: a regression has no labels to choose from; leave it out")
        if top_k is not None and model.task.of_words:
            raise UserError("top_k: of a sentence the entities are said, not labels to choose from; leave it out")
        if top_k is not None and top_k < 1:
            raise UserError(f"top_k: expected 1 or more, got {top_k}")
        if taken := [name for name in kept or () if name in OWN_COLUMNS]:
            raise UserError(
                f"--keep {taken[0]}: the results have a column of that name themselves ({', '.join(OWN_COLUMNS)}); "
                "rename it in the table"
            )
        separator = model.record.recipe.get("label_separator") if model.record else None
        return cls(model.task, model.label_names, model.thresholds, top_k, kept or {}, separator, model.abstain_below)

    def of_rows(self, scored: Scored) -> Iterator[Result]:
        """What is said of each row: ``input``, what it brought along, ``label``, ``score``, and ``scores`` or ``top``.

        Of a model that may abstain ``abstains`` too: where that is true, ``label`` is None and the scores stay. Of a
        sentence ``entities`` and ``tags`` instead. A row that could not be read has None for all of them and an
        ``error`` instead.
        """
        if self.task.of_words:
            yield from self._of_sentences(scored)
            return
        scores = self.task.scores(scored.logits).numpy()
        labels = self.task.predicted(scores, self.label_names, self.thresholds)
        for i, row in enumerate(scored.rows):
            result: Result = {"input": row.name, **{name: row.kept.get(name) for name in self.kept}}
            error = scored.bad.get(i)
            said = None if error else self._scores(scores[i])
            result["label"] = None if error else self._plain(labels[i])
            result["score"] = float(scores[i].max()) if self.task.has_classes and not error else None
            if self.abstain_below is not None:
                result["abstains"] = None if error else result["score"] < self.abstain_below
                if result["abstains"]:
                    result["label"] = None
            result["scores" if self.top_k is None else "top"] = said
            yield {**result, "error": error.why} if error else result

    def _of_sentences(self, scored: Scored) -> Iterator[Result]:
        tagging = Tagging(tuple(self.label_names))
        scores = np.split(self.task.scores(scored.logits).numpy(), np.cumsum(scored.lines)[:-1])
        for i, row in enumerate(scored.rows):
            result: Result = {"input": row.name, **{name: row.kept.get(name) for name in self.kept}}
            if error := scored.bad.get(i):
                yield {**result, "entities": None, "tags": None, "error": error.why}
                continue
            numbers = scores[i].argmax(1)
            entities = [_entity(row.read(), span, scores[i].max(1)) for span in tagging.spans(numbers.tolist())]
            yield {**result, "entities": entities, "tags": [self.label_names[number] for number in numbers]}

    def _plain(self, label: Any) -> Any:
        # One target is a number, not a list of one.
        return label[0] if not self.task.has_classes and len(label) == 1 else label

    def _scores(self, row: np.ndarray) -> Any:
        if self.top_k is None:
            return dict(zip(self.label_names, row.tolist(), strict=True))
        best = np.argsort(-row, kind="stable")[: self.top_k]
        return [{"label": self.label_names[j], "score": float(row[j])} for j in best]


def _entity(sentence: Sentence, span: Span, sure: np.ndarray) -> Result:
    """One entity: its type, the mean score of its words' tags, and where it stands in the text."""
    start, end = sentence.places[span.start][0], sentence.places[span.end - 1][1]
    score = float(sure[span.start : span.end].mean())
    return {"label": span.type, "score": score, "start": start, "end": end, "text": sentence.text[start:end]}


def kept_types(sources: Sequence[RowSource]) -> dict[str, pa.DataType]:
    """The types of the columns that rows of several sources bring along: text where they do not agree."""
    types: dict[str, pa.DataType] = {}
    for source in sources:
        for name, kind in source.kept.items():
            types[name] = kind if types.get(name, kind) == kind else pa.string()
    return types


def as_line(result: Result) -> str:
    """A result as one line of JSON, in which what a terminal could obey is escaped."""
    return json.dumps({name: _of_json(value) for name, value in result.items()}, default=str)


def _of_json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class ResultFile:
    """A file of results that appears when it is whole; what an error or an interrupt cuts off has another name.

    Args:
        path: ``.csv``, ``.jsonl`` or ``.parquet``; what stands there is replaced.
        results: what is said of a row.

    Attributes:
        rows: written so far.
        partial: the file that holds the rows before an error; None where there is none.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, results: Results) -> None:
        self.path = path
        self.results = results
        self.rows = 0
        self.partial: Path | None = None
        self._temp = path.with_name(f".{path.name}.{process_mark()}")

    def __enter__(self) -> ResultFile:
        self._remove_stale()
        self._writer = WRITERS[self.path.suffix.lower()](self._temp, self.results)
        return self

    def write(self, result: Result) -> None:
        """Add one row."""
        self._writer.write(result)
        self.rows += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._writer.close()
            bring_to_disk(self._temp)
            target = self.path if kind is None else self.path.with_name(f"{self.path.stem}.partial{self.path.suffix}")
            if kind is None or self.rows:
                self._temp.replace(target)
                self.partial = None if kind is None else target
        except (OSError, pa.ArrowException):
            if kind is None:
                raise
        finally:
            self._temp.unlink(missing_ok=True)

    def _remove_stale(self) -> None:
        """Remove what killed processes left of this file."""
        start = f".{self.path.name}."
        for name in os.listdir(self.path.parent):  # noqa: PTH208 - a folder may hold a million files
            mark = name.removeprefix(start)
            if name.startswith(start) and is_mark(mark) and alive(mark) is False:
                self.path.with_name(name).unlink(missing_ok=True)


def check_out(path: Path) -> None:
    """See that results can be written to a file, before anything is computed.

    Raises:
        UserError: its name says no kind of file, or its folder is not there.
    """
    if path.suffix.lower() not in WRITERS:
        raise UserError(f"--out {path}: results are written to files that end in {', '.join(WRITERS)}")
    if path.is_dir():
        raise UserError(f"--out {path}: a folder stands there; give another name")
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: no folder {str(path.parent)!r}; make it first")


class _Writer(Protocol):
    def __init__(self, path: Path, results: Results) -> None: ...
    def write(self, result: Result) -> None: ...
    def close(self) -> None: ...


class _TextWriter:
    """What csv and jsonl have in common."""

    def __init__(self, path: Path, results: Results) -> None:
        self.results = results
        self.file = path.open("x", encoding="utf-8", newline="")

    def close(self) -> None:
        self.file.close()


class _JsonLines(_TextWriter):
    def write(self, result: Result) -> None:
        self.file.write(as_line(result) + "\n")


class _Csv(_TextWriter):
    def __init__(self, path: Path, results: Results) -> None:
        super().__init__(path, results)
        self.separator = _separator(results)
        self.table = csv.writer(self.file, lineterminator="\n")
        self.table.writerow(map(inert, self._header()))

    def _header(self) -> list[str]:
        r = self.results
        if r.task.of_words:
            own = ["entities", "tags"]
        elif not r.task.has_classes:
            own = ["label"] if len(r.label_names) == 1 else list(r.label_names)
        else:
            own = ["label", "score"] if r.abstain_below is None else ["label", "score", "abstains"]
            for k in range(1, min(r.top_k or 0, len(r.label_names)) + 1):
                own += [f"label_{k}", f"score_{k}"]
        return ["input", *r.kept, *own, "error"]

    def write(self, result: Result) -> None:
        r = self.results
        row = [result["input"], *(result[name] for name in r.kept)]
        if r.task.of_words:
            row += [
                result["entities"] and json.dumps(result["entities"]),
                result["tags"] and json.dumps(result["tags"]),
            ]
        elif not r.task.has_classes:
            values = result["label"] if isinstance(result["label"], list) else [result["label"]]
            row += map(_score, values if result["label"] is not None else [None] * len(r.label_names))
        else:
            row += [result["label"], _score(result["score"])]
            if r.abstain_below is not None:
                # As JSON has it, not as Python does.
                row.append(result["abstains"] if result["abstains"] is None else json.dumps(result["abstains"]))
            best = result.get("top") or []
            for k in range(min(r.top_k or 0, len(r.label_names))):
                row += [best[k]["label"], _score(best[k]["score"])] if best else [None, None]
        self.table.writerow([self._cell(value) for value in [*row, result.get("error")]])

    def _cell(self, value: Any) -> Any:
        if isinstance(value, list):
            value = json.dumps(value) if self.separator is None else self.separator.join(map(str, value))
        return inert(value) if isinstance(value, str) else value


def _score(value: float | None) -> np.float32 | None:
    # A float32 is written with its own digits; those of a Python float would say more than is known.
    return None if value is None else np.float32(value)


def _separator(results: Results) -> str | None:
    """What stands between several labels in a cell: what the run read, or the first that no label holds."""
    for mark in (results.separator, *SEPARATORS):
        if mark and not any(mark in name for name in results.label_names):
            return mark
    return None


class _Parquet:
    def __init__(self, path: Path, results: Results) -> None:
        self.schema = _schema(results)
        self.held: list[pa.RecordBatch] = []
        self.rows: list[Result] = []
        self.file = pa.parquet.ParquetWriter(path, self.schema)

    def write(self, result: Result) -> None:
        self.rows.append(result)
        # Python objects weigh many times what a column of numbers does.
        if len(self.rows) >= 256:
            self._pack()
        if sum(map(len, self.held)) >= PARQUET_ROWS:
            self._flush()

    def _pack(self) -> None:
        columns = []
        for column in self.schema:
            values = [row.get(column.name) for row in self.rows]
            try:
                columns.append(pa.array(_strings(values) if column.type == pa.string() else values, column.type))
            except (pa.ArrowException, OverflowError) as error:
                raise DataError(
                    f"--keep {column.name}: not all cells are of one kind ({one_line(error, 80)}); write to .csv or "
                    ".jsonl, or leave it out"
                ) from error
        self.held.append(pa.record_batch(columns, schema=self.schema))
        self.rows = []

    def _flush(self) -> None:
        if self.held:
            self.file.write_table(pa.Table.from_batches(self.held))
            self.held = []

    def close(self) -> None:
        try:
            if self.rows:
                self._pack()
            self._flush()
        finally:
            self.file.close()


def _schema(results: Results) -> pa.Schema:
    score = pa.float32()
    several = pa.list_(pa.string())
    kept = [pa.field("input", pa.string()), *(pa.field(name, kind) for name, kind in results.kept.items())]
    if results.task.of_words:
        places = [("start", pa.int64()), ("end", pa.int64()), ("text", pa.string())]
        entity = pa.struct([("label", pa.string()), ("score", score), *places])
        own = [pa.field("entities", pa.list_(entity)), pa.field("tags", several)]
        return pa.schema([*kept, *own, pa.field("error", pa.string())])
    label = results.task.case(single_label=pa.string(), multi_label=several, regression=score, token_labels=several)
    if not results.task.has_classes and len(results.label_names) > 1:
        label = pa.list_(score)
    fields = [*kept, pa.field("label", label), pa.field("score", score)]
    if results.abstain_below is not None:
        fields.append(pa.field("abstains", pa.bool_()))
    if results.top_k is None:
        fields.append(pa.field("scores", pa.struct([pa.field(name, score) for name in results.label_names])))
    else:
        fields.append(pa.field("top", pa.list_(pa.struct([("label", pa.string()), ("score", score)]))))
    return pa.schema([*fields, pa.field("error", pa.string())])


def _strings(values: Sequence[Any]) -> list[str | None]:
    return [None if value is None else str(value) for value in values]


WRITERS: dict[str, type[_Writer]] = {".csv": _Csv, ".jsonl": _JsonLines, ".parquet": _Parquet}
