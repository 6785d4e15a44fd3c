"""Data at an address (``s3://``, ``hf://`` and what else fsspec reaches): files are brought here once, and read as any.

    <cache>/remote/<32 hex digits>/NAME              a file that lies below an address; the folder is the address's
    <cache>/remote/<32 hex digits>/.brought/…        what the file's own file system says it was: size, date, ETag
    <cache>/remote/<32 hex digits>/.list             which files were there when somebody last looked, with the same

A file whose file system says something else by now is brought again. Offline, all of the list must be here.
"""

from __future__ import annotations

import glob
import json
import posixpath
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from hftl.data.folders import is_junk
from hftl.data.raw import RawData, digest
from hftl.data.tables import TABLE_SUFFIXES, read_tables
from hftl.data.tar_shards import SHARD_SUFFIX, expanded, read_shards
from hftl.errors import DataError, HubError
from hftl.hub.client import offline
from hftl.progress import Progress
from hftl.regular import read_bounded
from hftl.store.files import FILE_CALLS, make_folders, mode_of, remove_orphans, write_atomically
from hftl.store.store import cache_root
from hftl.store.turns import turn
from hftl.travel.place import without_password
from hftl.wording import named_error, one_line, plural

PIECE = 4 << 20
STAMPS, LIST = ".brought", ".list"
KINDS = (*TABLE_SUFFIXES, SHARD_SUFFIX)
_STAMP_BYTES = 1 << 10
_LIST_BYTES = 1 << 28


def is_address(ref: str) -> bool:
    """Whether a reference is an address that fsspec is asked about."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", ref) is not None and not ref.startswith("file://")


def open_address(url: str, suffixes: Collection[str]) -> RawData:
    """Bring the files at an address here, where they are not, and open them.

    Args:
        url: of a table or a tar file, or of a folder of such files; braces and patterns stand for several, as in
            `hftl.data.tar_shards.shard_files`.
        suffixes: as of `read_shards`.

    Raises:
        DataError: nothing that is read is there, or, offline, not all of it was brought.
        HubError: it cannot be reached, or broke off.
    """
    shown = without_password(url)
    if shown != url:
        # It would stand in the record of every run.
        raise DataError(f"{shown}: leave the name and the password out: fsspec reads them from its configuration")
    if url.lower().startswith(("http://", "https://")):
        # fsspec takes them for files that never change.
        raise DataError(f"{shown}: nothing says reliably when a web page changes: fetch the file, and give that")
    root = cache_root() / "remote" / digest(url.encode())
    if offline():
        names = _brought(root, shown)
        notes = ["from the cache, because this is offline"]
    else:
        names = _bring_all(_files_at(url, shown), root, shown)
        notes = []
    paths = [root / name for name in names]
    read = read_shards(paths, suffixes) if _is_tar(names[0]) else read_tables(paths, root)
    # What stands in somebody else's table must not make us read this machine's files.
    return replace(read, foreign=True, within=(root.resolve(),), notes=[*notes, *read.notes])


def _is_tar(name: str) -> bool:
    return name.lower().endswith(SHARD_SUFFIX)


@dataclass(frozen=True)
class _Remote:
    """A file at an address.

    Attributes:
        filesystem: fsspec's.
        path: of the file in it.
    """

    filesystem: Any
    path: str


def _files_at(url: str, shown: str) -> Mapping[str, _Remote]:
    """The files that an address stands for, by their names below what all of them have in common.

    Raises:
        DataError: there are none, or tables beside tar files, or a file has an odd name.
        HubError: they cannot be listed.
    """
    from fsspec.core import url_to_fs

    found: list[_Remote] = []
    with _Reaching(shown):
        for each in expanded(url):
            filesystem, path = url_to_fs(each.rstrip("/"))
            if glob.has_magic(path):
                paths = _not_hidden(filesystem.glob(path), below=re.split(r"[*?[]", path)[0])
            elif filesystem.isdir(path):
                paths = _not_hidden(filesystem.find(path), below=path)
            else:
                paths = [path]
            found += [_Remote(filesystem, path) for path in paths if PurePosixPath(path).suffix.lower() in KINDS]
    kinds = {_is_tar(file.path) for file in found}
    if len(kinds) != 1:
        what = "tables and tar files side by side" if kinds else "nothing that is read is there"
        raise DataError(
            f"{shown}: {what}; give a file that ends in {', '.join(KINDS)}, several by a pattern such as "
            f"*{SHARD_SUFFIX}, or a folder of one kind; pictures are packed into tar files or a parquet file"
        )
    folders = {posixpath.dirname(file.path) for file in found}
    above = posixpath.commonpath(folders)
    names = {posixpath.relpath(file.path, above or "."): file for file in found}
    if odd := [
        name for name in names if ".." in name.split("/") or not name.isprintable() or name.startswith(("/", "."))
    ]:
        raise DataError(f"{shown}: a file has a name that is none here: {odd[0]!r}: rename it")
    return names


def _not_hidden(paths: Iterable[str], below: str) -> list[str]:
    """Sorted paths, as `list_files` lists those of a folder here."""
    return sorted(path for path in paths if not any(map(is_junk, path.removeprefix(below).split("/"))))


class _Reaching:
    """Tells in one line what could not be reached: each file system raises errors of its own."""

    def __init__(self, shown: str) -> None:
        self.shown = shown

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, DataError | HubError):
            return
        why = one_line(without_password(named_error(error)), 300)
        # A package that is missing, an address that is none, a file that is not there: others would be asked in vain.
        known = isinstance(error, ImportError | ValueError | FileNotFoundError | PermissionError)
        raise (DataError if known else HubError)(f"{self.shown}: cannot be read: {why}") from error


def _bring_all(files: Mapping[str, _Remote], root: Path, shown: str) -> list[str]:
    """Bring the files that are not here as their file system says that they are, and remove others; their names."""
    mode = mode_of(cache_root())
    # Of the processes of one run, and of runs started together, one brings what the others find here.
    waiting = Progress(shown, quiet=not sys.stderr.isatty()).say
    claim = cache_root() / "claims" / root.name
    with turn(claim, mode, lambda other: waiting(f"{shown}: {other} is bringing it here; waiting")):
        with _Reaching(shown):
            # Size, date and tag: whatever a file system tells of a file.
            wanted = {name: digest(str(file.filesystem.ukey(file.path)).encode()) for name, file in files.items()}
            if wanted != _last_seen(root):
                make_folders(FILE_CALLS, root, mode)
                # Before the first file, so that what is lacking is known when this breaks off.
                write_atomically(FILE_CALLS, root / LIST, [json.dumps(wanted).encode()], mode & 0o666)
        known = _stamps(root)
        for name, file in files.items():
            if known.get(name) != wanted[name] or not (root / name).is_file():
                _bring(file, root, name, wanted[name], shown)
        for gone in known.keys() - files.keys():
            (root / STAMPS / gone).unlink(missing_ok=True)
            (root / gone).unlink(missing_ok=True)
    return sorted(files)


def _brought(root: Path, shown: str) -> list[str]:
    """The names of the files that were brought here.

    Raises:
        DataError: none were, or not all of them.
    """
    wanted = _last_seen(root)
    if not wanted:
        raise DataError(f"{shown}: it was not brought here while there was a network: run once with one")
    known = _stamps(root)
    here = sum(known.get(name) == said and (root / name).is_file() for name, said in wanted.items())
    if here < len(wanted):
        raise DataError(f"{shown}: {here:,} of {plural(len(wanted), 'file')} were brought; run once with a network")
    return sorted(wanted)


def _bring(file: _Remote, root: Path, name: str, said: str, shown: str) -> None:
    """Copy a file here, of which its file system said ``said``."""
    target, stamp = root / name, root / STAMPS / name
    with _Reaching(shown):
        size = int(file.filesystem.size(file.path))
        mode = mode_of(cache_root())
        for folder in (target.parent, stamp.parent):
            make_folders(FILE_CALLS, folder, mode)
            remove_orphans(folder)
        stamp.unlink(missing_ok=True)
        # As the Hub's own downloads are shown.
        quiet = not sys.stderr.isatty()
        with (
            file.filesystem.open(file.path, "rb") as source,
            Progress(name, size, unit="bytes", quiet=quiet) as progress,
        ):
            write_atomically(FILE_CALLS, target, _arriving(source, progress, size), mode & 0o666)
        write_atomically(FILE_CALLS, stamp, [said.encode()], mode & 0o666)


def _arriving(source: Any, progress: Progress, size: int) -> Iterator[bytes]:
    while piece := source.read(PIECE):
        progress.advance(len(piece))
        yield piece
    if progress.done != size:
        raise ConnectionError(f"it broke off at {progress.done:,} of {size:,} bytes: run the same command again")


def _last_seen(root: Path) -> dict[str, str]:
    """What the files were, by their names, when somebody last looked; nothing where nobody has, or it is damaged."""
    with suppress(OSError, ValueError):
        listed = json.loads(read_bounded(root / LIST, _LIST_BYTES))
        if isinstance(listed, dict):
            return listed
    return {}


def _stamps(root: Path) -> dict[str, str]:
    """What the files were that are here, by their names."""
    folder = root / STAMPS
    stamps = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith(".tmp-"):
            # Another process may bring the file again at this moment.
            with suppress(FileNotFoundError):
                said = read_bounded(path, _STAMP_BYTES)
                stamps[path.relative_to(folder).as_posix()] = said.decode("ascii", "replace")
    return stamps
