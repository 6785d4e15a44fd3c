"""Sentences of words that have tags: their columns, the words, and the tags' numbers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from hftl.data.columns import is_list, is_text
from hftl.data.dataset import Indices, Labels, RowNames, Texts
from hftl.data.labels import EncodedLabels, ordered_classes
from hftl.data.raw import RawData, RawSplit, SplitName
from hftl.data.raw_labels import RawLabels, label_text
from hftl.errors import DataError
from hftl.tagging import Tagging, said_scheme
from hftl.tasks import Task
from hftl.wording import did_you_mean, listing, plural

WORD_NAMES = ("tokens", "words", "token", "word")
TAG_NAMES = ("tags", "ner_tags", "ner", "labels", "label", "tag", "upos", "pos_tags", "pos", "chunk_tags")


def word_columns(
    source: RawData,
    split: SplitName,
    input_columns: Sequence[str] | None,
    label_columns: Sequence[str] | None,
    task: Task | None,
) -> tuple[str, str] | None:
    """The columns of words and of tags; None where rows are no sentences of tagged words.

    Where no task is stated, both must be columns of lists, called as such columns are or stated, and as long as each
    other in every row unless there is no text beside them.

    Raises:
        DataError: the task is stated as one of words, and a column is missing or holds something else.
    """
    part = source.parts[split]
    if task is not None and not task.of_words:
        return None
    lists = [name for name, column in part.columns.items() if is_list(column.type)]
    of_texts = [name for name in lists if is_text(part.columns[name].type.value_type)]
    words = list(input_columns) if input_columns is not None else _called(WORD_NAMES, of_texts)
    rest = [name for name in lists if name not in words]
    tags = list(label_columns) if label_columns is not None else _called(TAG_NAMES, rest)
    if task is not None:
        if not words and len(of_texts) == 1 + (tags == of_texts[-1:]):
            words = [name for name in of_texts if name not in tags]
        if not tags and len(rest) == 1:
            tags = rest
        return _stated_columns(part, split, words, tags, lists)
    if len(words) != 1 or len(tags) != 1 or words[0] not in of_texts or tags[0] not in lists:
        return None
    has_text = any(is_text(column.type) for column in part.columns.values())
    if has_text and input_columns is None and not _same_lengths(part, words[0], tags[0]):
        return None
    return words[0], tags[0]


def _stated_columns(
    part: RawSplit, split: str, words: list[str], tags: list[str], lists: Sequence[str]
) -> tuple[str, str]:
    there = [*part.columns, *part.unusable]
    where = part.names.source if part.names is not None else f"the {split} split"
    for chosen, noun, option in ((words, "words", "input_columns"), (tags, "tags", "label_columns")):
        if len(chosen) != 1:
            what = f"cannot tell the one column of {noun}" if chosen else f"no column of {noun}"
            raise DataError(
                f"{where}: {what} among {listing(there)}: task {Task.TOKEN_LABELS} needs a list of words and a list of "
                f"tags in each row; state it with --set {option}=NAME"
            )
        name = chosen[0]
        if name not in there:
            raise DataError(f"{where}: no column {name!r}{did_you_mean(name, there)}; columns: {listing(there)}")
        column = part.column(name, split)
        if name not in lists or (noun == "words" and not is_text(column.type.value_type)):
            raise DataError(
                f"{where}: column {name!r} holds no lists of {'texts' if noun == 'words' else 'tags'}, and task "
                f"{Task.TOKEN_LABELS} needs one in each row"
            )
    if words == tags:
        raise DataError(f"{where}: column {words[0]!r} is named both as words and as tags")
    return words[0], tags[0]


def _called(names: Sequence[str], columns: Sequence[str]) -> list[str]:
    lowered = {column.strip().lower(): column for column in columns}
    return [lowered[name] for name in names if name in lowered][:1]


def _same_lengths(part: RawSplit, words: str, tags: str) -> bool:
    lengths = (pc.list_value_length(part.columns[name]) for name in (words, tags))
    return bool(pc.all(pc.equal(*lengths)).as_py())


def sentences_of(source: RawData, split: SplitName, column: str, rows: Indices) -> Texts:
    """The words of some rows of a split, a tuple of them for each row.

    Raises:
        DataError: a row has no words, or a word is missing; or the column is.
    """
    part = source.parts[split]
    found = part.column(column, split)
    if not is_list(found.type) or not is_text(found.type.value_type):
        raise DataError(f"{split} split: column {column!r} holds no lists of words (it holds {found.type})")
    values = found.take(rows).to_pylist()
    for row, words in zip(rows.tolist(), values, strict=True):
        if not words:
            raise DataError(f"{part.name(row)}: an empty sentence: column {column!r} has no word; remove the row")
        if None in words:
            raise DataError(
                f"{part.name(row)}: word {words.index(None) + 1} in column {column!r} is missing; remove the row"
            )
    names = part.names if part.names is not None else [part.name(row) for row in range(part.table.num_rows)]
    return Texts([tuple(words) for words in values], _Picked(names, rows))


class _Picked(Sequence[str]):
    """Names of some rows."""

    def __init__(self, names: RowNames | Sequence[str], rows: Indices) -> None:
        self._names, self._rows = names, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: Any) -> Any:
        return self._names[int(self._rows[row])]


def encode_tags(
    splits: Mapping[SplitName, RawLabels],
    words: Mapping[SplitName, Texts],
    columns: tuple[str, str],
    class_names: Sequence[str] | None,
) -> tuple[EncodedLabels, str]:
    """Tags as numbers; the training split alone says which there are.

    Args:
        splits: the tags of each split, lists of texts or whole numbers.
        words: the words of the same rows.
        columns: of the words and of the tags.
        class_names: names of the tags in their order, where the data name them.

    Returns:
        The tags, and what they are in a few words.

    Raises:
        DataError: a row has more or fewer tags than words, a tag cannot be one, or an evaluation split holds a tag that
            training never saw.
    """
    keys = {split: tag_keys(raw, words[split], columns) for split, raw in splits.items()}
    classes = ordered_classes(keys, splits, class_names)
    if len(classes.names) < 2:
        raise DataError(f"training has a single tag, {listing(classes.names)}, in column {columns[1]!r}: needs two")
    arrays: dict[SplitName, Labels] = {
        split: tag_numbers([[classes.index[key] for key in row] for row in rows]) for split, rows in keys.items()
    }
    tagging = Tagging(tuple(classes.names))
    said = f"{plural(len(classes.names), 'tag')}, task {Task.TOKEN_LABELS}: {said_scheme(tagging)}"
    return EncodedLabels(Task.TOKEN_LABELS, classes.names, arrays, classes.notes), said


def tag_keys(raw: RawLabels, words: Texts, columns: tuple[str, str]) -> list[list[Hashable]]:
    """Each row's tags as texts, one for each of its words.

    Raises:
        DataError: there are more or fewer, or one is neither text nor whole number.
    """
    keys: list[list[Hashable]] = []
    for at, (tags, row) in enumerate(zip(raw.values, words, strict=True)):
        if not isinstance(tags, list):
            raise DataError(f"{raw.name(at)}: column {columns[1]!r} holds no list of tags")
        if len(tags) != len(row):
            raise DataError(
                f"{raw.name(at)}: {plural(len(row), 'word')} in column {columns[0]!r} and {plural(len(tags), 'tag')} "
                f"in column {columns[1]!r}: each word needs one tag; mend the row, or remove it"
            )
        if not all(isinstance(tag, (str, int)) and tag != "" for tag in tags):
            raise DataError(
                f"{raw.name(at)}: column {columns[1]!r} has a tag that is neither a word nor a whole number"
            )
        keys.append([label_text(tag) for tag in tags])
    return keys


def tag_numbers(rows: Sequence[Sequence[int] | Indices]) -> Labels:
    """Numbers of the tags of each row: (n,) objects, int64 (words,) each."""
    numbers = np.empty(len(rows), dtype=object)
    for at, row in enumerate(rows):
        # One by one: numpy would take rows of one length for a matrix.
        numbers[at] = np.array(row, dtype=np.int64)
    return numbers
