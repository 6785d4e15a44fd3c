"""Read a folder whose subfolders are classes: ``split/class/file`` or ``class/file``."""

import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

import pyarrow as pa

from hftl.data.source import Part, Source, SplitName, assign_splits, digest, listing, plural, split_of
from hftl.data.tables import TABLE_SUFFIXES
from hftl.errors import DataError

FILE_COLUMN, LABEL_COLUMN = "file", "label"

_JUNK = {"thumbs.db", "desktop.ini", "__macosx", "__pycache__"}


def list_files(root: Path) -> list[PurePosixPath]:
    """Return all files below ``root``, relative and sorted; no hidden or junk files, links followed."""
    return sorted(_walk(root, PurePosixPath(), frozenset()))


def _walk(folder: Path, within: PurePosixPath, above: frozenset[str]) -> Iterator[PurePosixPath]:
    real = os.path.realpath(folder)
    if real in above:
        return  # a link to a folder that holds it
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in _JUNK:
                continue
            if entry.is_dir():
                yield from _walk(Path(entry.path), within / entry.name, above | {real})
            else:
                yield within / entry.name


def read_class_folders(
    root: Path, files: list[PurePosixPath], suffixes: Collection[str], *, beside_table: bool
) -> Source | None:
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
    labelled = [file for file in wanted if len(file.parts) > depth]
    classes = {file.parts[depth - 1] for file in labelled}
    if not labelled or (beside_table and len(classes) == 1):
        return None
    if not split_folders and all(split_of(name) for name in classes):
        return None  # a split folder with files directly in it has no classes; a table may name them
    if len(classes) == 1 and all(len(file.parts) > depth + 1 for file in labelled):
        raise DataError(
            f"{root}: only one class folder, {listing(sorted(classes))}, and it holds folders: give "
            f"the folder that holds the classes, such as {root / labelled[0].parent.parent}"
        )
    parts: dict[SplitName, Part] = {}
    used: list[PurePosixPath] = []
    for split, folder in (split_folders or {"train": None}).items():
        members = [file for file in labelled if folder is None or file.parts[0] == folder]
        names = [file.parts[depth - 1] for file in members]
        parts[split] = Part(pa.table({FILE_COLUMN: list(map(str, members)), LABEL_COLUMN: names}), None)
        used += members
    return Source(
        parts,
        root=root,
        notes=_ignored(files, used),
        identity={"files": {"count": len(used), "names": digest("\n".join(map(str, used)).encode())}},
    )


def _is_wanted(file: PurePosixPath, suffixes: Collection[str]) -> bool:
    suffix = file.suffix.lower()
    return suffix in suffixes if suffixes else suffix not in TABLE_SUFFIXES


def _split_folders(wanted: list[PurePosixPath]) -> dict[SplitName, str | None]:
    """Return the split folders, if any: they have classes inside, so a class called 'train' is no split."""
    with_classes = dict.fromkeys(f.parts[0] for f in wanted if len(f.parts) > 2)
    chosen, _ = assign_splits(with_classes)
    return {**chosen} if "train" in chosen else {}


def _ignored(files: list[PurePosixPath], used: list[PurePosixPath]) -> list[str]:
    left_out = sorted(set(files) - set(used))
    if not left_out:
        return []
    kinds = Counter(f.suffix.lower() or "no suffix" for f in left_out)
    shown = ", ".join(f"{kind}: {count:,}" for kind, count in kinds.most_common(5))
    return [f"ignored {plural(len(left_out), 'other file')} ({shown}; the first is {left_out[0]})"]
