"""Folders whose subfolders are classes: ``split/class/file``, ``class/split/file`` or ``class/file``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa

from hftl.data.raw import SPLIT_NAMES, RawData, RawSplit, SplitName, assign_splits, digest, plain_split_of, split_of
from hftl.data.tables import TABLE_SUFFIXES
from hftl.errors import DataError
from hftl.wording import listing, plural

FILE_COLUMN, LABEL_COLUMN = "file", "label"

# What systems, storage boxes and tools leave behind: thumbnails, recycle bins, caches.
_JUNK = {
    "thumbs.db",
    "desktop.ini",
    "__macosx",
    "__pycache__",
    "@eadir",
    "#recycle",
    "@recycle",
    "@recently-snapshot",
    "$recycle.bin",
    "recycler",
    "system volume information",
    "lost+found",
}
_MOST_FOLDERS_AROUND = 3

Parts: TypeAlias = tuple[str, ...]
"""A relative path, cut at its slashes."""


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


def is_junk(name: str) -> bool:
    """Whether a file or folder is hidden, or one that systems leave behind."""
    return name.startswith(".") or name.lower() in _JUNK


def _walk(folder: str | Path, within: str, above: frozenset[str]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in above:
        return  # a link to a folder that holds it
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_junk(entry.name):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, f"{within}{entry.name}/", above | {real})
            else:
                yield within + entry.name


def read_class_folders(
    root: Path, files: list[str], suffixes: Collection[str], *, beside_table: bool
) -> RawData | None:
    """Understand files as ``split/class/file``, ``class/split/file`` or ``class/file``.

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
    wanted = {file: tuple(file.split("/")) for file in files if _is_wanted(file, suffixes)}
    layout = _layout(list(wanted.values()))
    places = {file: place for file, parts in wanted.items() if (place := layout.place(parts)) is not None}
    classes = {name for _, name in places.values()}
    if not places or (beside_table and len(classes) == 1):
        return None
    if not layout.split_folders and not layout.split_in_class and all(map(split_of, classes)):
        return None  # a split folder with files directly in it has no classes; a table may name them
    if len(classes) == 1 and not layout.split_folders and all(len(wanted[file]) > 2 for file in places):
        deeper = root / Path(next(iter(places))).parent.parent
        raise DataError(
            f"{root}: only one class folder, {listing(sorted(classes))}, and it holds folders: give the folder that "
            f"holds the classes, such as {deeper}"
        )
    rows: dict[SplitName, list[str]] = {split: [] for split in SPLIT_NAMES}
    for file, (split, _) in places.items():
        rows[split].append(file)
    splits = {
        split: RawSplit(pa.table({FILE_COLUMN: own, LABEL_COLUMN: [places[file][1] for file in own]}), None)
        for split, own in rows.items()
        if own
    }
    notes = [*layout.notes, *_not_classes(root, files, layout, classes), *_ignored(files, places)]
    return RawData(
        splits,
        root=root,
        notes=notes,
        names=sorted({parts[0] for parts in wanted.values()}),
        is_class_folder=True,
        identity={"files": {"count": len(places), "names": digest("\n".join(places).encode())}},
    )


# ── what the folders mean ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Layout:
    """What the folders above a file mean.

    Attributes:
        split_folders: for each split the folder that holds its class folders; empty if folders say no split.
        split_in_class: whether each class folder is divided into splits.
        unlabelled: folders that are called like a split and hold files without a class folder.
        notes: what was understood, one sentence each.
    """

    split_folders: Mapping[SplitName, Parts] = field(default_factory=dict)
    split_in_class: bool = False
    unlabelled: Collection[str] = ()
    notes: Sequence[str] = ()

    def place(self, parts: Parts) -> tuple[SplitName, str] | None:
        """The split and the class of a file, or None if its folders say none."""
        if self.split_in_class:
            split = plain_split_of(parts[1])
            return None if split is None else (split, parts[0])
        if not self.split_folders:
            return ("train", parts[0]) if len(parts) > 1 and parts[0] not in self.unlabelled else None
        for split, folder in self.split_folders.items():
            depth = len(folder)
            if len(parts) > depth + 1 and parts[:depth] == folder:
                return split, parts[depth]
        return None


def _layout(paths: list[Parts]) -> _Layout:
    above, tops = _split_folders(paths)
    if tops:
        folders = _unwrapped(paths, {split: (*above, top) for split, top in tops.items()})
        bare = [p for p in paths if len(p) == len(above) + 2 and p[:-2] == above and plain_split_of(p[-2])]
        notes = [f"splits are read from the folder {'/'.join(above)!r}"] if above else []
        if names := sorted({"/".join(p[:-1]) for p in bare} - {"/".join(folder) for folder in folders.values()}):
            notes.append(f"not used, as it holds files without class folders: {listing(names)}")
        return _Layout(folders, notes=notes)
    inside = [p for p in paths if len(p) > 2 and plain_split_of(p[1])]
    if inside and len(inside) == len(paths) and "train" in {plain_split_of(p[1]) for p in inside}:
        return _Layout(split_in_class=True, notes=["splits are read from the folders inside the class folders"])
    notes = []
    if inside and len({p[0] for p in paths}) > 1:
        notes.append(
            f"folders inside class folders, such as {'/'.join(inside[0][:2])!r}, are not read as splits, because not "
            f"every file lies in one"
        )
    # A class may be called train, but hardly test or validation.
    direct = {p[0] for p in paths if len(p) == 2} - {p[0] for p in paths if len(p) > 2}
    unlabelled = {name for name in direct if plain_split_of(name) not in (None, "train")}
    if unlabelled and any(len(p) > 1 and p[0] not in unlabelled and not split_of(p[0]) for p in paths):
        notes.append(f"no class, as it is called like a split: {listing(sorted(unlabelled))}; if it is one, rename it")
        return _Layout(unlabelled=unlabelled, notes=notes)
    return _Layout(notes=notes)


def _split_folders(paths: list[Parts]) -> tuple[Parts, dict[SplitName, str]]:
    """The folder that holds the split folders, and these, if any.

    Split folders have classes inside, so a class called 'train' is none. One folder around all of them (``data/train``,
    ``data/val``) is walked into.
    """
    above: Parts = ()
    for _ in range(_MOST_FOLDERS_AROUND + 1):
        inner = [path[len(above) :] for path in paths]
        with_classes = dict.fromkeys(path[0] for path in inner if len(path) > 2)
        chosen, others = assign_splits(with_classes)
        # Without a training split only data to evaluate on: folders that are called like splits, and nothing else.
        if "train" in chosen or (chosen and not others and all(map(plain_split_of, with_classes))):
            return above, chosen
        if len({path[0] for path in inner}) != 1 or any(len(path) < 4 for path in inner):
            break
        above = (*above, inner[0][0])
    return (), {}


def _unwrapped(paths: list[Parts], folders: Mapping[SplitName, Parts]) -> dict[SplitName, Parts]:
    """Split folders, or the single folder inside each: ``seg_train/seg_train/class`` as archives are unpacked."""
    inner: dict[SplitName, Parts] = {}
    for split, folder in folders.items():
        depth = len(folder)
        below = [path for path in paths if path[:depth] == folder]
        names = {path[depth] for path in below}
        if len(names) > 1 or any(len(path) < depth + 3 for path in below):
            return dict(folders)
        inner[split] = (*folder, names.pop())
    # In a split of one class, that class's folder stands alone too.
    alike = len({folder[-1] for folder in inner.values()}) == 1 and len(inner) > 1
    named = all(split_of(folder[-1]) == split for split, folder in inner.items())
    return inner if alike or named else dict(folders)


def _not_classes(root: Path, files: list[str], layout: _Layout, classes: Collection[str]) -> list[str]:
    """Name the folders that stand where classes stand and hold no file that is read."""
    held: dict[str, Counter[str]] = {}
    folders = list(layout.split_folders.values()) or [()]
    for folder in folders:
        with os.scandir(root.joinpath(*folder)) as entries:
            names = [entry.name for entry in entries if entry.is_dir() and not is_junk(entry.name)]
        unread = [name for name in names if name not in classes and name not in layout.unlabelled]
        held.update({"/".join((*folder, name)): Counter() for name in unread})
    if not held:
        return []
    depths = {len(folder) + 1 for folder in folders}
    for file in files:
        parts = file.split("/")
        for depth in depths:
            if (place := "/".join(parts[:depth])) in held and len(parts) > depth:
                held[place][suffix_of(file) or "no suffix"] += 1
    shown = [f"{name!r} ({_counted(held[name]) or 'empty'})" for name in sorted(held)[:10]]
    more = f" and {len(held) - 10:,} more" if len(held) > 10 else ""
    return [f"no class, as no file in it is read: {', '.join(shown)}{more}"]


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{kind}: {count:,}" for kind, count in kinds.most_common(5))


def suffix_of(file: str) -> str:
    """Return a file's suffix in lower case, such as ``.jpg``."""
    return os.path.splitext(file)[1].lower()  # noqa: PTH122  # a million paths, and pathlib takes ten times as long


def _is_wanted(file: str, suffixes: Collection[str]) -> bool:
    suffix = suffix_of(file)
    return suffix in suffixes if suffixes else suffix not in TABLE_SUFFIXES


def _ignored(files: list[str], used: Collection[str]) -> list[str]:
    left_out = sorted(set(files) - set(used))
    if not left_out:
        return []
    kinds = Counter(suffix_of(file) or "no suffix" for file in left_out)
    return [f"ignored {plural(len(left_out), 'other file')} ({_counted(kinds)}; the first is {left_out[0]})"]
