"""Columns of a table: what each holds, and which are the input and which the labels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from hftl.errors import DataError
from hftl.wording import did_you_mean, listing, printable

Kind: TypeAlias = Literal["text", "file", "class", "flag", "int", "float", "list", "other", "mixed", "empty"]
"""What a column holds; ``flag``: true or false, or only the numbers 0 and 1; ``class``: named classes; ``mixed``: what
no column can hold, which is an error if it is used; ``empty``: nothing in any row."""

# Kinds that nobody would choose, unless the column is called like one to be used: then its reader says what is wrong.
_ONLY_BY_NAME: tuple[Kind, ...] = ("mixed", "empty")

LABEL_NAMES = (
    "label",
    "labels",
    "class",
    "classes",
    "category",
    "categories",
    "intent",
    "target",
    "targets",
    "sentiment",
    "emotion",
    "emotions",
    "topic",
    "topics",
    "genre",
    "tags",
    "gold_label",
    "score",
    "stars",
    "rating",
    "y",
    "cls",
)
TEXT_NAMES = (
    "text",
    "texts",
    "sentence",
    "content",
    "review",
    "utterance",
    "query",
    "question",
    "document",
    "comment",
    "tweet",
    "message",
    "body",
    "article",
    "abstract",
    "title",
    "headline",
    "input",
    "txt",
)
PAIR_NAMES = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("text_a", "text_b"),
    ("question1", "question2"),
    ("sentence_a", "sentence_b"),
    ("sentence_1", "sentence_2"),
    ("text1", "text2"),
    ("text_1", "text_2"),
    ("texta", "textb"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "passage"),
    ("query", "document"),
    ("claim", "evidence"),
)
FILE_NAMES = (
    "image",
    "img",
    "images",
    "picture",
    "photo",
    "audio",
    "sound",
    "file_name",
    "filename",
    "file",
    "path",
    "file_path",
    "filepath",
    "image_path",
    "audio_path",
    "image_file",
    "audio_file",
)
_ROW_NUMBER_NAMES = ("", "id", "idx", "index", "unnamed: 0", "__index_level_0__", "row", "row_id")
_FILE_FIELDS = ({"bytes", "path"}, {"bytes"}, {"path"}, {"path", "offset", "size", "state"})


def is_list(kind: pa.DataType) -> bool:
    """Whether each cell is a list."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_text(kind: pa.DataType) -> bool:
    """Whether each cell is a text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def column_kind(column: pa.ChunkedArray, named_classes: bool) -> Kind:
    """Return what a column holds, numbers that stood as text already turned into numbers."""
    kind = column.type
    if len(column) and column.null_count == len(column):
        return "empty"
    if is_list(kind):
        return "list"
    if named_classes:
        return "class"
    if is_text(kind):
        return "text"
    if pa.types.is_boolean(kind):
        return "flag"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        if _is_zero_or_one(column):
            return "flag"
        return "int" if pa.types.is_integer(kind) else "float"
    is_file = pa.types.is_struct(kind) and {field.name for field in kind} in _FILE_FIELDS
    return "file" if is_file or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else "other"


def _is_zero_or_one(column: pa.ChunkedArray) -> bool:
    """Whether a column of numbers holds nothing but 0 and 1, whole numbers beyond 2**53 compared exactly."""
    present = column.drop_null()
    if pa.types.is_float16(present.type):
        present = present.cast(pa.float32())  # pyarrow has no minimum of the other
    if not len(present):
        return False
    ends = pc.min_max(present).as_py()
    if not 0 <= ends["min"] <= ends["max"] <= 1:
        return False
    if pa.types.is_integer(column.type):
        return True
    return bool(pc.all(pc.is_in(present.cast(pa.float64(), safe=False), pa.array([0.0, 1.0]))).as_py())


def choose_columns(
    kinds: Mapping[str, Kind],
    *,
    wants: Literal["text", "file"],
    paths_allowed: bool,
    where: str,
    input_columns: Sequence[str] | None,
    label_columns: Sequence[str] | None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Choose input and label columns, by what was stated, then by usual names, then by what is left over.

    Args:
        kinds: what each column holds.
        wants: whether the input is text (one or two columns) or files (one column).
        paths_allowed: whether a text column may name files.
        where: the table's name for a person.
        input_columns: the input columns, if stated.
        label_columns: the label columns, if stated.

    Raises:
        DataError: a stated column does not exist, or the choice is ambiguous.
    """
    for stated in (input_columns or (), label_columns or ()):
        _check_present(stated, kinds, where)
    usable: tuple[Kind, ...] = ("file", "text") if wants == "file" and paths_allowed else (wants,)
    if input_columns is not None:
        inputs = _check_inputs(tuple(input_columns), kinds, wants, usable, where)
        labels = tuple(label_columns or ()) or _infer_labels(kinds, inputs, where)
    else:
        labels = tuple(label_columns or ()) or _named_label(kinds)
        inputs = _infer_inputs({c: k for c, k in kinds.items() if c not in labels}, wants, usable, kinds, where)
        labels = labels or _infer_labels(kinds, inputs, where)
    if shared := set(inputs) & set(labels):
        raise DataError(f"{where}: column {listing(sorted(shared))} is named both as input and as label")
    return inputs, labels


def _check_present(stated: Iterable[str], kinds: Mapping[str, Kind], where: str) -> None:
    for column in stated:
        if column not in kinds:
            raise DataError(
                f"{where}: no column {column!r}{did_you_mean(column, kinds)}; columns: {listing(list(kinds))}"
            )


def _check_inputs(
    inputs: tuple[str, ...], kinds: Mapping[str, Kind], wants: str, usable: Sequence[Kind], where: str
) -> tuple[str, ...]:
    most = 2 if wants == "text" else 1
    if not 1 <= len(inputs) <= most:
        raise DataError(
            f"{where}: {len(inputs)} input columns stated; {'one or two' if most == 2 else 'one'} can be used"
        )
    for column in inputs:
        # In a csv file numbers may well be meant as text.
        is_number = wants == "text" and kinds[column] in ("int", "float", "flag")
        # What is wrong with a column that no kind describes is said where it is read.
        if kinds[column] not in usable and kinds[column] not in _ONLY_BY_NAME and not is_number:
            raise DataError(f"{where}: column {column!r} holds no {wants}s (it holds: {kinds[column]})")
    return inputs


def _by_name(names: Sequence[str], columns: Iterable[str]) -> str | None:
    lowered = {column.strip().lower(): column for column in columns}
    return next((lowered[name] for name in names if name in lowered), None)


def _named_label(kinds: Mapping[str, Kind]) -> tuple[str, ...]:
    candidates = [c for c, kind in kinds.items() if kind not in ("file", "other")]
    if named := _by_name(LABEL_NAMES, candidates):
        return (named,)
    suffixed = [c for c in candidates if re.search(r"(^|[_ ])(label|class|category)$", c.lower())]
    named_classes = [c for c in candidates if kinds[c] == "class"]
    return next((tuple(columns) for columns in (named_classes, suffixed) if len(columns) == 1), ())


def _infer_labels(kinds: Mapping[str, Kind], inputs: tuple[str, ...], where: str) -> tuple[str, ...]:
    left = {c: k for c, k in kinds.items() if c not in inputs and k not in ("file", "other")}
    if named := _named_label(left):
        return named
    useful = {c: k for c, k in left.items() if c.lower() not in _ROW_NUMBER_NAMES}
    # Where nothing better is left, the one column that cannot be used is chosen, and its reader says why.
    left = {c: k for c, k in useful.items() if k not in _ONLY_BY_NAME} or useful
    if len(left) == 1 or (left and set(left.values()) in ({"float"}, {"flag"})):
        return tuple(left)
    problem = (
        f"cannot tell which of {listing(list(left))} is the label"
        if left
        else f"no label among the columns {listing(list(kinds))}"
    )
    raise DataError(f"{where}: {problem}: state it with --set label_columns=NAME")


def _infer_inputs(
    left: Mapping[str, Kind], wants: str, usable: Sequence[Kind], kinds: Mapping[str, Kind], where: str
) -> tuple[str, ...]:
    candidates = [c for c, kind in left.items() if kind in usable]
    if wants == "file":
        files = [c for c in candidates if left[c] == "file"]
        candidates = files or candidates
        if named := _by_name(FILE_NAMES, candidates):
            return (named,)
    else:
        lowered = {c.strip().lower(): c for c in candidates}
        for first, second in PAIR_NAMES:
            if first in lowered and second in lowered:
                return lowered[first], lowered[second]
        if named := _by_name(TEXT_NAMES, candidates):
            return (named,)
    if len(candidates) == 1:
        return (candidates[0],)
    noun = "text" if wants == "text" else "image or audio file"
    if not candidates and (named := _by_name(TEXT_NAMES if wants == "text" else FILE_NAMES, _unusable(left))):
        return (named,)
    if candidates:
        raise DataError(
            f"{where}: cannot tell which of {listing(candidates)} is the {noun}: state it with --set input_columns=NAME"
        )
    held = [f"{printable(column)} ({kind})" for column, kind in kinds.items()]
    shown = ", ".join(held[:20]) + (f" and {len(held) - 20:,} more" if len(held) > 20 else "")
    raise DataError(
        f"{where}: no {noun} column; found {shown}: give data that have one, or state it with --set input_columns=NAME"
    )


def _unusable(kinds: Mapping[str, Kind]) -> list[str]:
    return [column for column, kind in kinds.items() if kind in _ONLY_BY_NAME]
