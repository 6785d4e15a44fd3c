"""Decide which columns of a table are the input and which the labels."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from hftl.errors import DataError
from hftl.wording import did_you_mean, listing

Kind: TypeAlias = Literal["text", "file", "class", "flag", "int", "float", "list", "other"]
"""What a column holds; ``flag``: true or false, or only the numbers 0 and 1; ``class``: named classes."""

LABEL_NAMES = (
    *(
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
    ),
    *("emotions", "topic", "topics", "genre", "tags", "gold_label", "score", "stars", "rating", "y"),
)
TEXT_NAMES = (
    *(
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
    ),
    *("body", "article", "abstract", "title", "headline", "input"),
)
PAIR_NAMES = (
    *(
        ("sentence1", "sentence2"),
        ("premise", "hypothesis"),
        ("text_a", "text_b"),
        ("question1", "question2"),
    ),
    *(
        ("sentence_a", "sentence_b"),
        ("sentence_1", "sentence_2"),
        ("text1", "text2"),
        ("text_1", "text_2"),
        ("texta", "textb"),
    ),
    *(
        ("question", "sentence"),
        ("question", "passage"),
        ("query", "passage"),
        ("query", "document"),
        ("claim", "evidence"),
    ),
)
FILE_NAMES = (
    *(
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
    ),
    *("filepath", "image_path", "audio_path", "image_file", "audio_file"),
)
_ROW_NUMBER_NAMES = ("", "id", "idx", "index", "unnamed: 0", "__index_level_0__", "row", "row_id")

# No leading zeros: "007" is a code, and would lose them.
_INTEGER = r"^\s*[+-]?(0|[1-9][0-9]*)\s*$"
_NUMBER = r"^\s*[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?\s*$"
_MISSING = r"^\s*(|nan|NaN|NAN|NA|N/A|n/a|null|NULL|None|[+-]?[iI]nf)\s*$"


def numbers_from_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Turn a text column into integers or floats if every cell is a number or a usual word for a missing one.

    A missing number becomes null. A column with any other word in it stays text, with surrounding blanks cut
    and blank cells null.
    """
    present = column.filter(pc.invert(pc.match_substring_regex(column, _MISSING)))
    for pattern, kind in ((_INTEGER, pa.int64()), (_NUMBER, pa.float64())):
        if len(present) and pc.all(pc.match_substring_regex(present, pattern)).as_py():
            missing = pc.match_substring_regex(column, _MISSING)
            try:
                numbers = pc.if_else(missing, pa.scalar(None, pa.string()), pc.utf8_trim_whitespace(column))
                return pc.replace_substring(numbers, "+", "", max_replacements=1).cast(kind)
            except pa.ArrowInvalid:  # more digits than an int64 holds: no number to compute with
                break
    trimmed = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)


def column_kind(column: pa.ChunkedArray, named_classes: bool) -> Kind:
    """Return what a column holds, numbers that stood as text already turned into numbers."""
    t = column.type
    if pa.types.is_list(t) or pa.types.is_large_list(t) or pa.types.is_fixed_size_list(t):
        return "list"
    if named_classes:
        return "class"
    if pa.types.is_string(t) or pa.types.is_large_string(t):
        return "text"
    if pa.types.is_boolean(t):
        return "flag"
    if pa.types.is_integer(t) or pa.types.is_floating(t) or pa.types.is_decimal(t):
        if pc.all(pc.is_in(column.drop_null().cast(pa.float64()), pa.array([0.0, 1.0]))).as_py() and len(
            column.drop_null()
        ):
            return "flag"
        return "int" if pa.types.is_integer(t) else "float"
    is_file = pa.types.is_struct(t) and {f.name for f in t} == {"bytes", "path"}
    return "file" if is_file or pa.types.is_binary(t) or pa.types.is_large_binary(t) else "other"


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
        if kinds[column] not in usable and not (wants == "text" and kinds[column] in ("int", "float", "flag")):
            raise DataError(f"{where}: column {column!r} holds no {wants}s (it holds: {kinds[column]})")
    return inputs


def _by_name(names: Sequence[str], columns: Iterable[str]) -> str | None:
    lowered = {column.lower(): column for column in columns}
    return next((lowered[name] for name in names if name in lowered), None)


def _named_label(kinds: Mapping[str, Kind]) -> tuple[str, ...]:
    candidates = [c for c, kind in kinds.items() if kind not in ("file", "other")]
    if named := _by_name(LABEL_NAMES, candidates):
        return (named,)
    suffixed = [c for c in candidates if re.search(r"(^|[_ ])(label|class|category)$", c.lower())]
    named_classes = [c for c in candidates if kinds[c] == "class"]
    return next((tuple(found) for found in (named_classes, suffixed) if len(found) == 1), ())


def _infer_labels(kinds: Mapping[str, Kind], inputs: tuple[str, ...], where: str) -> tuple[str, ...]:
    left = {c: k for c, k in kinds.items() if c not in inputs and k not in ("file", "other")}
    if named := _named_label(left):
        return named
    left = {c: k for c, k in left.items() if c.lower() not in _ROW_NUMBER_NAMES}
    if len(left) == 1 or (left and set(left.values()) in ({"float"}, {"flag"})):
        return tuple(left)
    problem = (
        f"cannot tell which of {listing(list(left))} is the label"
        if left
        else f"no label among the columns {listing(list(kinds))}"
    )
    raise DataError(f"{where}: {problem}: state it with --set label_columns=[…]")


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
        lowered = {c.lower(): c for c in candidates}
        for first, second in PAIR_NAMES:
            if first in lowered and second in lowered:
                return lowered[first], lowered[second]
        if named := _by_name(TEXT_NAMES, candidates):
            return (named,)
    if len(candidates) == 1:
        return (candidates[0],)
    noun = "text" if wants == "text" else "image or audio file"
    if candidates:
        raise DataError(
            f"{where}: cannot tell which of {listing(candidates)} is the {noun}: state it with --set input_columns=[…]"
        )
    raise DataError(f"{where}: no {noun} column; found {', '.join(f'{c} ({kind})' for c, kind in kinds.items())}")
