"""WebDataset shards: tar files whose members ``key.ext`` of one key are a row. They are never unpacked.

Of pictures and the like only the place in the file is kept, and what is small and says something of a row (``cls``,
``txt``, ``json``) is read while the members are listed.
"""

from __future__ import annotations

import glob
import os
import re
import tarfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from hftl.data.dataset import KeyNames
from hftl.data.folders import FILE_COLUMN
from hftl.data.json_rows import columns_of, json_row
from hftl.data.opening import as_path, decode_text, why_unreadable
from hftl.data.raw import LazySplits, RawData, RawSplit
from hftl.data.tables import FileContent, by_split, identity_of, join_files, table_of
from hftl.errors import DataError
from hftl.regular import open_regular
from hftl.store.digests import FilePart, state_of
from hftl.wording import listing, plural, printable

SHARD_SUFFIX = ".tar"
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
CLASS, TEXT, JSON = "cls", "txt", "json"
_KEY_RULE = "a key ends at the first dot of the file name"
# What all rows of a shard have in common stands once.
_SHARED = pa.dictionary(pa.int32(), pa.string())
_PLACE = pa.struct([("path", _SHARED), ("offset", pa.int64()), ("size", pa.int64()), ("state", _SHARED)])
_BLOCK = tarfile.BLOCKSIZE
# More files than anybody means by one pattern.
_MOST_FILES = 1_000_000


def shard_files(ref: str) -> list[Path] | None:
    """The tar files that a reference stands for, sorted; None where it stands for none.

    Args:
        ref: a path that ends in ``.tar``, in which ``{000..127}``, ``{train,val}``, ``*``, ``?`` and ``[…]`` stand for
            several.

    Raises:
        DataError: a file is not there, or no file matches.
    """
    if ref.lower().endswith(PACKED):
        raise DataError(
            f"{ref}: rows are found by their places in a tar file, which a packed one has not: unpack it to .tar"
        )
    if not ref.lower().endswith(SHARD_SUFFIX):
        return None
    try:
        whole = as_path(ref)
        if whole.is_file():
            return [whole]
        named = list(expanded(str(whole)))
        files = [Path(file) for name in named for file in (_matching(name) if glob.has_magic(name) else [name])]
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{ref}: no file can be looked for there: {why_unreadable(error)}") from error
    missing = [file for file in files if not file.exists()]
    if missing or not files:
        which = f"{missing[0]} is not there" if missing else "no file matches"
        more = f", nor are {len(missing) - 1:,} others" if len(missing) > 1 else ""
        raise DataError(f"{ref}: {which}{more}")
    return sorted(dict.fromkeys(files))


def _matching(pattern: str) -> list[str]:
    return glob.glob(pattern, recursive=True)  # noqa: PTH207 - a Path's own takes no pattern from the root


def expanded(text: str) -> Iterator[str]:
    """A text for each choice of its braces: ``{000..127}`` counts with as many digits, ``{a,b}`` names."""
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", text)
    if found is None:
        yield text
        return
    first, last, names = found.groups()
    if names is None:
        if not 0 <= int(last) - int(first) < _MOST_FILES:
            raise ValueError(f"{found[0]} counts from the lower to the higher number")
        choices = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    else:
        choices = names.split(",")
    for choice in choices:
        yield from expanded(text[: found.start()] + choice + text[found.end() :])


def read_shards(files: Sequence[Path], suffixes: Collection[str]) -> RawData:
    """Read tar files as a source; each split is listed when it is asked for.

    One file, or files whose names say no split, are the training split; else names say it, as those of tables do.

    Args:
        files: the files, sorted.
        suffixes: lower-case suffixes of the members that are inputs, such as ``.jpg``, whose column is `FILE_COLUMN`;
            the column of another member is called by its ending.

    Raises:
        DataError: asked for a split: a file is damaged, or its members are no rows.
    """
    files = [file.absolute() for file in files]
    root = Path(os.path.commonpath([file.parent for file in files]))
    grouped, notes = by_split(files, root)
    used = [file for members in grouped.values() for file in members]
    return RawData(
        LazySplits({split: partial(_list_split, own, root, suffixes) for split, own in grouped.items()}),
        root=root,
        notes=notes,
        names=[file.name for file in files],
        identity=identity_of(used, root),
    )


def _list_split(files: Sequence[Path], root: Path, suffixes: Collection[str]) -> RawSplit:
    names = [file.relative_to(root).as_posix() for file in files]
    shards = [_Shard(name) for name in names]
    for file, shard in zip(files, shards, strict=True):
        shard.list(file, suffixes)
    contents = [shard.content() for shard in shards]
    columns, unusable = join_files(contents, names)
    sizes = [len(shard.keys) for shard in shards]
    keys = pa.chunked_array([pa.array(shard.keys, pa.string()) for shard in shards])
    members = dict.fromkeys(name for shard in shards for name in shard.columns)
    dotted = [name for name in members if "." in name and _is_known(name.rpartition(".")[2], suffixes)]
    skipped = sum(shard.skipped for shard in shards)
    return RawSplit(
        table_of(columns, sum(sizes)),
        KeyNames(zip(names, sizes, strict=True), keys),
        unusable=unusable,
        # A json entry of that name says itself what it is.
        numbers_as_text=[CLASS] if CLASS in members else [],
        hint=f"{_KEY_RULE}, and what follows, such as {listing(dotted, 4)}, is the ending" if len(dotted) > 1 else "",
        notes=[f"passed over {plural(skipped, 'member')} (no plain file, or of no row)"] if skipped else [],
    )


@dataclass
class _Shard:
    """The rows of one tar file, as far as its members were listed.

    Attributes:
        name: of the file, for a person.
        keys: of the rows.
        columns: by name a value for each row, None where it has none.
        skipped: members that are no part of a row: links, devices, hidden files.
        state: of the file when its members were listed.
    """

    name: str
    keys: list[str] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=dict)
    skipped: int = 0
    state: str = ""

    def list(self, path: Path, suffixes: Collection[str]) -> None:
        """List the members.

        Raises:
            DataError: the file is damaged, or a member is odd.
        """
        try:
            with os.fdopen(open_regular(path), "rb") as file:
                self.state = state_of(os.fstat(file.fileno()))
                seen: set[str] = set()
                for member in self._members(file):
                    self._take(member, file, suffixes, seen)
        except tarfile.TarError as error:
            raise DataError(
                f"{self.name}: {self._where()}: damaged tar file: {error}: fetch or write it again"
            ) from error
        except (OSError, ValueError) as error:
            raise DataError(f"{self.name}: cannot be read: {why_unreadable(error)}") from error
        if not self.keys:
            raise DataError(f"{self.name}: no rows: members are called key.ext, such as 000017.jpg and 000017.cls")

    def _members(self, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
        size = os.fstat(file.fileno()).st_size
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                # Else it keeps all of them.
                tar.members.clear()  # type: ignore[attr-defined]
                # Not the member's size, which of a sparse one is that of its holes too.
                if tar.offset > size:
                    raise tarfile.ReadError(f"member {printable(member.name)} is cut off")
                yield member
            # What tarfile takes for the end may be a header that was overwritten, or where somebody stopped copying.
            file.seek(tar.offset)
            end = file.read(_BLOCK)
            if len(end) < _BLOCK:
                raise tarfile.ReadError("it ends without the mark of an end")
            while end:
                if end.strip(b"\0"):
                    raise tarfile.ReadError("what follows is no member")
                end = file.read(_BLOCK << 8)

    def _where(self) -> str:
        return f"after {printable(self.keys[-1])}" if self.keys else "at its beginning"

    def _take(self, member: tarfile.TarInfo, file: BinaryIO, suffixes: Collection[str], seen: set[str]) -> None:
        folder, _, last = member.name.rpartition("/")
        base, dot, ending = last.partition(".")
        ending = ending.lower()
        said = f"{self.name}:{member.name}"
        if member.isdir():
            return
        is_row = member.isreg() and dot and base and not base.startswith("__")
        if is_row and member.sparse is not None and _is_known(ending, suffixes):
            raise DataError(f"{printable(said)}: a sparse member, which is not read: pack it without --sparse")
        if not is_row or member.sparse is not None:
            self.skipped += 1
            return
        if not member.name.isprintable() or ".." in folder.split("/") or member.name.startswith("/"):
            why = "an unsafe name (it leads out of the archive, or is not printable): rename it"
            raise DataError(f"{printable(said)}: {why}")
        key = f"{folder}/{base}" if folder else base
        if not self.keys or self.keys[-1] != key:
            if key in seen:
                why = f"members of a row follow one another, and {_KEY_RULE}"
                raise DataError(f"{said}: the key {key!r} stands in two places: {why}")
            seen.add(key)
            self.keys.append(key)
        self._put(said, *self._cell(said, member, ending, file, suffixes))

    def _cell(
        self, said: str, member: tarfile.TarInfo, ending: str, file: BinaryIO, suffixes: Collection[str]
    ) -> tuple[str, Any]:
        """The column that a member belongs to, and what stands there."""
        if ending in (CLASS, TEXT, JSON):
            file.seek(member.offset_data)
            text = decode_text(file.read(member.size), said)
            if ending != JSON:
                return ending, text.strip() if ending == CLASS else text.removesuffix("\n")
            row = json_row(text)
            if isinstance(row, str):
                raise DataError(f"{said}: {row}")
            return JSON, row
        wanted = f".{ending}" in suffixes
        return FILE_COLUMN if wanted else ending, FilePart(self.name, member.offset_data, member.size, self.state)

    def _put(self, said: str, column: str, value: Any) -> None:
        values = self.columns.setdefault(column, [])
        if len(values) == len(self.keys):
            what = "input" if column == FILE_COLUMN else f".{column}"
            raise DataError(f"{said}: the row has a second {what}: a row has one of each kind")
        values += [None] * (len(self.keys) - 1 - len(values))
        values.append(value)

    def content(self) -> FileContent:
        """The columns, those that `json` members spell out among them, under another name where a member has theirs."""
        for values in self.columns.values():
            values += [None] * (len(self.keys) - len(values))
        found = {name: _cells_of(values) for name, values in self.columns.items() if name != JSON}
        spelt, unusable = columns_of([row or {} for row in self.columns.get(JSON, ())], f"{self.name} ({JSON})")
        for name, array in spelt.items():
            found[f"{JSON}.{name}" if name in found else name] = pa.chunked_array([array])
        return FileContent(found, unusable, {}, ())


def _is_known(ending: str, suffixes: Collection[str]) -> bool:
    """Whether members of that ending are inputs, or say something of a row."""
    return ending in (CLASS, TEXT, JSON) or f".{ending}" in suffixes


def _cells_of(values: Sequence[Any]) -> pa.ChunkedArray:
    """What members hold as a column: texts, or places in the file."""
    first = next(value for value in values if value is not None)
    if isinstance(first, FilePart):
        places = [None if part is None else part._asdict() for part in values]
        return pa.chunked_array([pa.array(places, _PLACE)])
    return pa.chunked_array([pa.array(values, pa.string())])
