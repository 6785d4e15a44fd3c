"""CoNLL files: a word a line with its tag behind it, an empty line between two sentences."""

from __future__ import annotations

import pyarrow as pa

from hftl.errors import DataError
from hftl.wording import plural

CONLL_SUFFIXES = (".conll", ".bio", ".iob")
WORDS, TAGS = "tokens", "tags"
# What CoNLL-2003 writes where a document begins.
DOCUMENT = "-DOCSTART-"


def read_conll(text: str, name: str) -> dict[str, pa.ChunkedArray]:
    """Read sentences as columns of lists of texts, one list a sentence.

    Columns are separated by tabs if any line has one, else by blanks. The first is ``tokens``, the last ``tags``; what
    stands between is ``column_2`` and so on. A line that begins with ``#`` and has not as many columns as the first
    word's is a comment; lines that begin a document are left out.

    Args:
        text: the file's content.
        name: the file's name for a person.

    Raises:
        DataError: lines have different numbers of columns, or only one.
    """
    # Not splitlines(): a word may hold U+2028 or a form feed.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    separator = "\t" if "\t" in text else None
    sentences: list[list[list[str]]] = [[]]
    width = 0
    for number, line in enumerate(lines, start=1):
        cells = line.split(separator) if separator is None else [cell.strip() for cell in line.split(separator)]
        if not any(cells) or cells[0] == DOCUMENT:
            if sentences[-1]:
                sentences.append([])
            continue
        if line.startswith("#") and len(cells) != width:
            continue
        width = width or len(cells)
        if len(cells) != width or width < 2:
            raise DataError(
                f"{name} line {number}: {plural(len(cells), 'column')}, expected "
                f"{f'{width} as in the lines before' if width > 1 else 'a word and its tag'}, with a blank or tab "
                "between them and an empty line between sentences"
            )
        sentences[-1].append(cells)
    kept = [sentence for sentence in sentences if sentence]
    if not kept:
        raise DataError(f"{name}: no line holds a word and its tag")
    titles = [WORDS, *(f"column_{place}" for place in range(2, width)), TAGS]
    return {
        title: pa.chunked_array([[[word[place] for word in sentence] for sentence in kept]], pa.list_(pa.string()))
        for place, title in enumerate(titles)
    }
