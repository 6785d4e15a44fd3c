"""Files that came from the Hub, compared once with the hashes that the Hub names for them.

huggingface_hub checks the size of what it downloads. A file of the right size that a proxy, a disk or memory garbled
would pass, and features of damaged weights would be stored under the name of the good commit.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Sequence
from hashlib import sha1, sha256
from pathlib import Path

from huggingface_hub import cached_assets_path
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

from hftl.errors import HubError

BLOCK = 1 << 20
# Smaller files are read each time, because remembering them would cost as much.
REMEMBERED_BYTES = 1 << 20


def verify_snapshot(repo: str, folder: Path, wanted: Sequence[str], unwanted: Sequence[str]) -> None:
    """Compare the files of a commit with their hashes; a large one is read once, until it changes.

    Args:
        repo: the repository, for messages.
        folder: a snapshot in huggingface_hub's cache. There, each file is a link to a blob that is called after the
            hash that the Hub names: SHA-256 for large files, git's for others. What is no such link (a system without
            links, a folder that somebody copied) has no hash to be compared with, and is left as it is.
        wanted: patterns of the files to compare, as `snapshot_download` takes them.
        unwanted: patterns of those to leave out; another program may have fetched them, and nothing reads them here.

    Raises:
        HubError: a file is not what the Hub has.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for name in filter_repo_objects(names, allow_patterns=list(wanted), ignore_patterns=list(unwanted)):
        blob = (folder / name).resolve()
        if blob.parent.name != "blobs" or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
            continue
        if _is_remembered(blob):
            continue
        if _hash(blob, len(blob.name)) != blob.name:
            again = shlex.join(["hf", "download", repo, name, "--revision", folder.name, "--force-download"])
            raise HubError(
                f"{repo}: {name} in the Hub's cache is damaged, because it is not what the Hub has; "
                f"fetch it again: {again}"
            )
        _remember(blob)


def _hash(blob: Path, digits: int) -> str:
    size = blob.stat().st_size
    state = sha256() if digits == 64 else sha1(b"blob %d\0" % size)
    with blob.open("rb") as file:
        for block in iter(lambda: file.read(BLOCK), b""):
            state.update(block)
    return state.hexdigest()


def _is_remembered(blob: Path) -> bool:
    try:
        known = json.loads(_note(blob).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(known == _state_of(blob))


def _remember(blob: Path) -> None:
    if blob.stat().st_size < REMEMBERED_BYTES:
        return
    # A cache that cannot be written to costs time, nothing else.
    with contextlib.suppress(OSError):
        _note(blob).write_text(json.dumps(_state_of(blob)), encoding="utf-8")


def _note(blob: Path) -> Path:
    """Where it is noted that a blob was found to be good."""
    return cached_assets_path("hftl", namespace="verified", subfolder=blob.parents[1].name) / f"{blob.name}.json"


def _state_of(blob: Path) -> dict[str, str | int]:
    stat = blob.stat()
    return {"blob": str(blob), "size": stat.st_size, "changed": stat.st_mtime_ns}
