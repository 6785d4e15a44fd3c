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


def read_class_folders(root: Path, files: list[PurePosixPath], suffixes: Collection[str]) -> Source | None:
    """Understand files as ``split/class/file`` or ``class/file``.

    Args:
        root: the folder.
        files: what lies in it, relative and sorted.
        suffixes: lower-case suffixes of the files wanted; all but tables if empty.

    Returns:
        A source with the columns ``file`` (path relative to ``root``) and ``label`` (the class folder's
        name), or ``None`` if no wanted file lies in a class folder.
    """
    wanted = [
        f
        for f in files
        if (f.suffix.lower() in suffixes if suffixes else f.suffix.lower() not in TABLE_SUFFIXES)
    ]
    chosen = _split_folders(wanted)
    depth = 2 if chosen else 1  # folders above the file that mean something
    labelled = [f for f in wanted if len(f.parts) > depth]
    if not labelled or (not chosen and all(split_of(f.parts[0]) for f in labelled)):
        return None  # a split folder with files directly in it has no classes; a table may name them

    parts: dict[SplitName, Part] = {}
    used: list[PurePosixPath] = []
    folders: dict[SplitName, str | None] = {**chosen} if chosen else {"train": None}
    for split, folder in folders.items():
        members = [f for f in labelled if folder is None or f.parts[0] == folder]
        table = pa.table(
            {FILE_COLUMN: [str(f) for f in members], LABEL_COLUMN: [f.parts[depth - 1] for f in members]}
        )
        parts[split] = Part(table, None)
        used += members
    _check_depth(root, used, depth)
    return Source(
        parts,
        root=root,
        notes=_ignored(files, used),
        identity={"files": {"count": len(used), "names": digest("\n".join(map(str, used)).encode())}},
    )


def _split_folders(wanted: list[PurePosixPath]) -> dict[SplitName, str]:
    """Return the split folders, if any: they have classes inside, so a class called 'train' is no split."""
    with_classes = dict.fromkeys(f.parts[0] for f in wanted if len(f.parts) > 2)
    chosen, _ = assign_splits(with_classes)
    return chosen if "train" in chosen else {}


def _check_depth(root: Path, used: list[PurePosixPath], depth: int) -> None:
    """Say so if the classes lie one folder deeper than they should."""
    classes = {f.parts[depth - 1] for f in used}
    if len(classes) == 1 and all(len(f.parts) > depth + 1 for f in used):
        raise DataError(
            f"{root}: only one class folder, {listing(sorted(classes))}, and it holds folders: give "
            f"the folder that holds the classes, such as {root / used[0].parent.parent}"
        )


def _ignored(files: list[PurePosixPath], used: list[PurePosixPath]) -> list[str]:
    left_out = sorted(set(files) - set(used))
    if not left_out:
        return []
    kinds = Counter(f.suffix.lower() or "no suffix" for f in left_out)
    shown = ", ".join(f"{kind}: {count:,}" for kind, count in kinds.most_common(5))
    return [f"ignored {plural(len(left_out), 'other file')} ({shown}; the first is {left_out[0]})"]
