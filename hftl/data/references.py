"""References: from what a user writes to what lies there."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa

from hftl import samples
from hftl.data.conll import DOCUMENT
from hftl.data.folders import list_files, read_class_folders, suffix_of
from hftl.data.objects import from_objects, kind_of
from hftl.data.opening import as_path, existing_path
from hftl.data.raw import RawData, RawSplit, SplitName
from hftl.data.remote import is_address, open_address
from hftl.data.tables import TABLE_SUFFIXES, read_tables
from hftl.data.tar_shards import SHARD_SUFFIX, read_shards, shard_files
from hftl.errors import DataError
from hftl.regular import open_regular
from hftl.wording import did_you_mean, listing, one_line, plural

TEXT_SUFFIXES = (".txt",)
# Bytes of a .txt file that tell whether it holds tagged words.
_LOOKED_AT = 64 << 10

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[^@:]+)?(@[^@]+)?")


def open_reference(ref: Any, wants: str, suffixes: Collection[str]) -> RawData:
    """Open a reference of any kind.

    Args:
        ref: as in `hftl.data.load_data`.
        wants: ``text`` or ``file``; a folder may hold both tables and class folders.
        suffixes: lower-case suffixes of the files wanted in class folders; any if empty.

    Raises:
        DataError: nothing is there, or nothing that can be read.
    """
    if not isinstance(ref, str):
        return _open_object(ref)
    if re.fullmatch(r"<[\w ]+>", ref):
        raise DataError(
            f"the data were a {ref.strip('<>')} given in Python, which the run's record does not hold: give them "
            "again, with --data, or as the data of a Recipe in Python"
        )
    if ref.startswith("sample:"):
        return _open_sample(ref.removeprefix("sample:"))
    if is_address(ref):
        return open_address(ref, suffixes)
    if (shards := shard_files(ref)) is not None:
        return read_shards(shards, suffixes)
    path = existing_path(ref)
    if path is not None and path.is_dir():
        return _open_folder(path, wants, suffixes)
    if path is not None:
        # Sentences of tagged words often end so; a file of texts alone has no labels.
        if path.suffix.lower() not in TABLE_SUFFIXES and not _is_conll(path):
            raise DataError(f"{ref}: a data file must end in {', '.join(TABLE_SUFFIXES)}{_better_form(path)}")
        return read_tables([path], path.parent)
    path = as_path(ref)
    if _HUB_ID.fullmatch(ref) and path.suffix.lower() not in TABLE_SUFFIXES:
        from hftl.data.hub import load_hub_data

        return load_hub_data(ref, beside=_near(path))
    raise DataError(
        f"{one_line(ref, 200)}: no such file or folder{_near(path)}; a data set on the Hub is written user/name"
    )


def _open_object(data: Any) -> RawData:
    kind = kind_of(data)
    if kind == "reference":
        raise DataError(f"a reference is text, and this is a {type(data).__name__}")
    if kind == "datasets":
        from hftl.data.hub import from_datasets  # imports datasets, which the other kinds do without

        return from_datasets(data)
    return from_objects(data)


def _better_form(path: Path) -> str:
    """What to do with a file of another kind."""
    advice = {
        ".xlsx": "; save the sheet as csv",
        ".xls": "; save the sheet as csv",
        ".zip": "; unpack it and give the folder",
        ".gz": "; unpack it",
        ".arrow": "; give the folder that save_to_disk wrote",
        ".txt": "; give one folder of .txt files for each class",
    }
    return advice.get(path.suffix.lower(), "")


def _is_conll(path: Path) -> bool:
    """Whether a .txt file begins with words that have something behind each, and an empty line ends a sentence."""
    if path.suffix.lower() not in TEXT_SUFFIXES:
        return False
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            beginning = file.read(_LOOKED_AT)
    except OSError:
        return False
    # Whatever stands behind the last end of a line may be cut.
    lines = [line.split() for line in beginning.decode("utf-8", errors="replace").splitlines(keepends=True)]
    if len(beginning) == _LOOKED_AT:
        lines = lines[:-1]
    widths = {len(line) for line in lines if line and line[0] != DOCUMENT}
    return [] in lines and len(widths) == 1 and widths.pop() > 1


def _near(path: Path) -> str:
    """Suggest files beside a path that does not exist."""
    try:
        return did_you_mean(path.name, [entry.name for entry in path.parent.iterdir()])
    except OSError:  # no such folder, or one that may not be listed
        return ""


def _open_sample(name: str) -> RawData:
    if name not in samples.DATASETS:
        known = sorted(samples.DATASETS)
        raise DataError(f"sample:{name}: no such sample{did_you_mean(name, known)}; there is {listing(known)}")
    parts: dict[SplitName, RawSplit] = {}
    rows_of = samples.DATASETS[name]()
    for split in ("train", "test"):
        files = pa.array([{"bytes": row.encoded, "path": row.name} for row in rows_of[split]])
        parts[split] = RawSplit(pa.table({"image": files, "label": [row.label for row in rows_of[split]]}), None)
    return RawData(parts, identity={"sample": name})


def _is_saved_by_datasets(folder: Path) -> bool:
    """Whether a folder is what ``save_to_disk`` of `datasets` writes."""
    one = ("state.json", "dataset_info.json")
    return (folder / "dataset_dict.json").is_file() or all((folder / name).is_file() for name in one)


def _open_folder(root: Path, wants: str, suffixes: Collection[str]) -> RawData:
    if _is_saved_by_datasets(root):
        from hftl.data.hub import read_saved

        return read_saved(root)
    files = list_files(root)
    tables = [root / file for file in files if suffix_of(file) in TABLE_SUFFIXES]
    wanted = suffixes if wants == "file" else TEXT_SUFFIXES
    # For text a table comes first; for files, a table beside class folders is most likely a list of them.
    if not (wants == "text" and tables):
        source = read_class_folders(root, files, wanted, beside_table=bool(tables))
        if source is not None:
            return source
    shards = [root / file for file in files if suffix_of(file) == SHARD_SUFFIX]
    if tables and shards:
        # Such as what img2dataset writes beside each shard.
        deep = "" if all(shard.parent == root for shard in shards) else "**/"
        raise DataError(
            f"{root}: tar files and tables lie side by side: give '{glob.escape(str(root))}/{deep}*{SHARD_SUFFIX}' for "
            "the tar files; move the tables into a folder of their own to read them"
        )
    if tables:
        return read_tables(tables, root)
    if shards:
        return read_shards(shards, suffixes)
    kinds = f"{', '.join(sorted(wanted))} files" if wanted else "files"
    raise DataError(
        f"{root}: no {kinds} in class folders (split/class/file or class/file), no table "
        f"({', '.join(TABLE_SUFFIXES)}) and no {SHARD_SUFFIX} file; it holds {plural(len(files), 'file')}"
    )
