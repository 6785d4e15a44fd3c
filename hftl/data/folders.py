"""Read a folder whose subfolders are classes: ``split/class/file`` or ``class/file``."""

import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa

from hftl.data.raw import RawData, RawSplit, SplitName, assign_splits, digest, split_of
from hftl.data.tables import TABLE_SUFFIXES
from hftl.errors import DataError
from hftl.wording import listing, plural

FILE_COLUMN, LABEL_COLUMN = "file", "label"

_JUNK = {"thumbs.db", "desktop.ini", "__macosx", "__pycache__"}


def list_files(root: Path) -> list[str]:
    """Return all files below ``root``, relative and sorted; no hidden or junk files, links followed.

    Raises:
        DataError: a folder cannot be listed, or a name is not UTF-8.
    """
    try:
        files = sorted(_walk(root, "", frozenset()))
    except OSError as error:
        raise DataError(f"{error.filename or root}: the folder cannot be listed: {error.strerror}") from error
    for file in files:
        if not file.isascii() and any("\udc80" <= letter <= "\udcff" for letter in file):
            raise DataError(f"{root}: the name of the file {os.fsencode(file)!r} is not UTF-8; rename it")
    return files


def _walk(folder: str | Path, within: str, above: frozenset[str]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in above:
        return  # a link to a folder that holds it
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in _JUNK:
                continue
            if entry.is_dir():
                yield from _walk(entry.path, f"{within}{entry.name}/", above | {real})
            else:
                yield within + entry.name


def read_class_folders(
    root: Path, files: list[str], suffixes: Collection[str], *, beside_table: bool
) -> RawData | None:
    """Understand files as ``split/class/file`` or ``class/file``.

    Args:
        root: the folder.
        files: what lies in it, relative and sorted.
        suffixes: lower-case suffixes of the files wanted; all but tables if empty.
        beside_table: whether a table lies there too, so that a single class folder is its folder of files.

    Returns:
        A source with the columns ``file`` (path relative to ``root``) and ``label`` (the class folder's
        name), or ``None`` if no wanted file lies in a class folder.

    Raises:
        DataError: the classes lie one folder deeper.
    """
    wanted = [file for file in files if _is_wanted(file, suffixes)]
    split_folders = _split_folders(wanted)
    depth = 2 if split_folders else 1  # folders above the file that mean something
    parts_of = {file: parts for file in wanted if len(parts := file.split("/")) > depth}
    classes = {parts[depth - 1] for parts in parts_of.values()}
    if not parts_of or (beside_table and len(classes) == 1):
        return None
    if not split_folders and all(split_of(name) for name in classes):
        return None  # a split folder with files directly in it has no classes; a table may name them
    if len(classes) == 1 and all(len(parts) > depth + 1 for parts in parts_of.values()):
        raise DataError(
            f"{root}: only one class folder, {listing(sorted(classes))}, and it holds folders: give "
            f"the folder that holds the classes, such as {root / Path(next(iter(parts_of))).parent.parent}"
        )
    found: dict[SplitName, RawSplit] = {}
    used: list[str] = []
    for split, folder in (split_folders or {"train": None}).items():
        members = [file for file, parts in parts_of.items() if folder is None or parts[0] == folder]
        names = [parts_of[file][depth - 1] for file in members]
        found[split] = RawSplit(pa.table({FILE_COLUMN: members, LABEL_COLUMN: names}), None)
        used += members
    return RawData(
        found,
        root=root,
        notes=_ignored(files, used),
        identity={"files": {"count": len(used), "names": digest("\n".join(used).encode())}},
    )


def suffix_of(file: str) -> str:
    """Return a file's suffix in lower case, such as ``.jpg``."""
    return os.path.splitext(file)[1].lower()  # noqa: PTH122  # a million paths, and pathlib takes ten times as long


def _is_wanted(file: str, suffixes: Collection[str]) -> bool:
    suffix = suffix_of(file)
    return suffix in suffixes if suffixes else suffix not in TABLE_SUFFIXES


def _split_folders(wanted: list[str]) -> dict[SplitName, str | None]:
    """Return the split folders, if any: they have classes inside, so a class called 'train' is no split."""
    with_classes = dict.fromkeys(file.split("/")[0] for file in wanted if file.count("/") > 1)
    chosen, _ = assign_splits(with_classes)
    return {**chosen} if "train" in chosen else {}


def _ignored(files: list[str], used: list[str]) -> list[str]:
    left_out = sorted(set(files) - set(used))
    if not left_out:
        return []
    kinds = Counter(suffix_of(file) or "no suffix" for file in left_out)
    shown = ", ".join(f"{kind}: {count:,}" for kind, count in kinds.most_common(5))
    return [f"ignored {plural(len(left_out), 'other file')} ({shown}; the first is {left_out[0]})"]
