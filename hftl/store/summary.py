"""`SpaceSummary`: what a person wants to know about a space, from its description and its shards' headers.

Nothing here fails: a summary of a damaged space tells what can be seen, so that it can be listed and removed.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hftl.store.description import Description, OtherFormatError
from hftl.store.foreign import Origin
from hftl.store.identity import blocks_kept
from hftl.store.lease import in_use
from hftl.store.shard import SUFFIX, header_rows


@dataclass(frozen=True)
class SpaceSummary:
    """One feature space.

    Attributes:
        path: its folder.
        name: the folder's name.
        label: the name it was given, usually the model's id.
        id: 32 hex digits; empty where space.json is missing or damaged: the next run writes it anew.
        identity: everything that names the space.
        created: ISO time of its creation, UTC.
        rows: rows in its shards, as their headers state; a row that two runs computed at once counts twice.
        shards: number of shards.
        bytes: all files of the folder.
        quarantined: number of files in quarantine.
        last_used: seconds since the epoch.
        in_use: whether a live process has it open.
        origin: where it was pulled from, if it was made elsewhere.
        origin_commit: the commit that was pulled, of a repository of the Hub.
        unread: the format of its space.json, where this hftl does not read that; rows and damage are not known then.
    """

    path: Path
    name: str
    label: str
    id: str
    identity: dict[str, Any]
    created: str
    rows: int
    shards: int
    bytes: int
    quarantined: int
    last_used: float
    in_use: bool
    origin: str | None = None
    origin_commit: str | None = None
    unread: str | None = None

    @property
    def commit(self) -> str | None:
        """The model's resolved commit; None for local weights."""
        commit = self.identity.get("commit")
        return commit if isinstance(commit, str) else None

    @property
    def modality(self) -> str | None:
        """``"text"`` or ``"image"``, as the backbone says."""
        modality = self.identity.get("modality")
        return modality if isinstance(modality, str) else None

    @property
    def blocks(self) -> int | None:
        """Of how many of the first blocks everything that they return is kept, which is bulky; None for features."""
        return blocks_kept(self.identity)

    def answers_to(self, name: str) -> bool:
        """Whether a person who says ``name`` means this space."""
        return name in (self.name, self.label, self.origin) or (len(name) >= 8 and self.id.startswith(name))

    def to_json(self) -> dict[str, Any]:
        """The fields, for ``--json``."""
        last_used = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.last_used))
        return {
            **asdict(self),
            "path": str(self.path),
            "commit": self.commit,
            "modality": self.modality,
            "last_used": last_used,
        }


@dataclass(frozen=True)
class StoreStats:
    """Totals of a store."""

    root: Path
    spaces: int
    rows: int
    shards: int
    bytes: int
    quarantined: int


@dataclass(frozen=True)
class VerifyReport:
    """What the verification of one space showed.

    Attributes:
        space: the space.
        rows: rows whose checksum is right.
        bad: damaged files, now in quarantine.
        orphans: temporary files of dead writers that were removed.
    """

    space: SpaceSummary
    rows: int
    bad: list[str] = field(default_factory=list)
    orphans: int = 0


@dataclass(frozen=True)
class MergeReport:
    """What was taken in of one space of another store.

    Attributes:
        name: the space's folder there.
        rows: rows that this store did not have.
        damaged: shards there whose bytes are wrong; their rows were left out.
        refused: why nothing was taken in; None where it was.
    """

    name: str
    rows: int
    damaged: int = 0
    refused: str | None = None


def summarise(path: Path) -> SpaceSummary:
    """Look at the space in the folder ``path``."""
    description, unread, origin = None, None, Origin.read(path)
    with suppress(OSError):  # a summary tells what can be seen
        try:
            description = Description.load(path / "space.json")
        except OtherFormatError as error:
            unread = str(error.format)
    shards = [file for file in _names(path / "shards") if file.name.endswith(SUFFIX)]
    return SpaceSummary(
        path=path,
        name=path.name,
        label=description.label if description else path.name,
        id=description.id if description else "",
        identity=description.identity if description else {},
        created=description.created if description else "",
        rows=sum(header_rows(shard) for shard in shards),
        shards=len(shards),
        bytes=_folder_bytes(path),
        quarantined=len(_names(path / "quarantine")),
        last_used=_last_used(path),
        in_use=in_use(path),
        origin=origin.name if origin else None,
        origin_commit=origin.commit if origin else None,
        unread=unread,
    )


def _names(folder: Path) -> list[Path]:
    with suppress(OSError):  # none, or not a folder: a summary tells what can be seen
        return list(folder.iterdir())
    return []


def _folder_bytes(folder: Path) -> int:
    """The bytes of all regular files under ``folder``; links count nothing, since what they lead to stays."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                status = os.lstat(os.path.join(place, name))  # noqa: PTH118 - a Path for each of many files is slow
                total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def _last_used(path: Path) -> float:
    for file in (path / "last_used", path / "space.json", path):
        with suppress(OSError):
            return file.lstat().st_mtime
    return 0.0
