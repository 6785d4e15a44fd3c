"""The words of a command line as sources of rows: files, folders, patterns, texts, and ``-`` for standard input."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from hftl.data.remote import KINDS, is_address
from hftl.data.tables import TABLE_SUFFIXES
from hftl.data.tar_shards import PACKED, SHARD_SUFFIX
from hftl.errors import DataError
from hftl.inputs.rows import InputRow
from hftl.inputs.sources import LINES_SUFFIX, RowSource, RowSources, is_pattern, lying_beside, matching, refuse_data
from hftl.wording import did_you_mean

STDIN_WORD = "-"


def sources_of(opened: RowSources, words: Sequence[str], stdin: IO[bytes], kind: str | None) -> list[RowSource]:
    """What each word stands for, in their order; two texts together are the pair of a model of pairs.

    Args:
        opened: opens files for the model that is asked.
        words: as typed.
        stdin: what ``-`` reads.
        kind: how standard input is written; None to see.

    Raises:
        DataError: a word is not there, or is not what the model was trained on.
    """
    if kind is not None and STDIN_WORD not in words:
        raise DataError(f"--input-format {kind} says how stdin is written: give - as the input to read it")
    if words.count(STDIN_WORD) > 1:
        raise DataError("stdin (-) is given twice, and can be read once")
    sources: list[RowSource] = []
    texts: list[str] = []
    # Rows of several files are told apart by their paths.
    several = len(words) > 1
    for word in words:
        if word == STDIN_WORD:
            sources.append(opened.stdin(stdin, kind))
        elif opened.reader.wants == "file":
            sources += opened.named(word, word if several else None)
        elif _names_data(word):
            refuse_data(word)
        elif (path := _file_of(word)) is not None:
            sources += opened.path(path, word if several else None)
        elif is_pattern(word) and (_looks_like_file(word) or _matches(word)):
            sources += opened.pattern(word)
        else:
            texts.append(word)
            if opened.reader.width != 2:
                sources.append(_of_texts(opened, [(word,)]))
            elif len(texts) == 2:
                sources.append(_of_texts(opened, [(texts[0], word)]))
    if opened.reader.width == 2 and texts and len(texts) != 2:
        raise DataError(
            f"the model reads {opened.reader.kind}, and {len(texts)} texts were given: give two, or a table with these "
            f"columns"
        )
    return sources


def _of_texts(opened: RowSources, rows: Sequence[tuple[str, ...]]) -> RowSource:
    if opened.keep:
        raise DataError(f"--keep {','.join(opened.keep)}: a text has no columns; leave out --keep")

    def read() -> Iterator[InputRow]:
        for row in rows:
            yield opened.reader.row(" | ".join(row), row)

    return RowSource(read, len(rows))


def _matches(word: str) -> bool:
    """Whether a text is a pattern of files: texts hold * and ? too, but hardly match."""
    return not any(c.isspace() for c in word) and next(matching(word), None) is not None


def _looks_like_file(word: str) -> bool:
    suffixes = (*TABLE_SUFFIXES, LINES_SUFFIX)
    return Path(word).suffix.lower() in suffixes and not any(c.isspace() for c in word)


def _names_data(word: str) -> bool:
    """Whether a text is a reference to shards, or to files at an address; that of a web page may be a text."""
    if any(c.isspace() for c in word):
        return False
    if is_address(word):
        return word.lower().endswith(KINDS) and not word.lower().startswith("http")
    return word.lower().endswith((SHARD_SUFFIX, *PACKED))


def _file_of(word: str) -> Path | None:
    """The file or folder that a text names; None where it is a text.

    Raises:
        DataError: it can only be meant as a file, and there is none.
    """
    try:
        path = Path(word).expanduser() if word.startswith("~") else Path(word)
        looks_like_file = _looks_like_file(word)
        if word.strip() and path.exists():
            return path
    except (OSError, ValueError, RuntimeError):
        # Longer than a file name can be, with a null character, in nobody's home folder: whatever it is, it is no file.
        return None
    if looks_like_file and not glob.has_magic(word):
        raise DataError(
            f"no file {word!r}{did_you_mean(path.name, lying_beside(path))}; a text like that goes into a file"
        )
    return None
