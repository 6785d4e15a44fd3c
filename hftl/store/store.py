"""The feature store: features that were computed once, kept by what they are features of.

    <root>/features/<label>-<first 16 digits of the id>/     one folder for each feature space
    <root>/foreign/<origin>-<16 digits>/                     one for each space that was made elsewhere

`docs/store.md` tells the format and what is guaranteed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

from hftl.errors import StoreError
from hftl.store.compaction import compact
from hftl.store.description import FORMAT, Description, OtherFormatError, other_format
from hftl.store.files import (
    FILE_CALLS,
    FileCalls,
    alive,
    mode_of,
    process_mark,
    remove_orphans,
    remove_tree,
    set_aside,
    store_errors,
)
from hftl.store.foreign import FOREIGN, Origin, foreign_folder
from hftl.store.identity import JSON, space_id
from hftl.store.lease import in_use
from hftl.store.merge import DifferentCutError, merge
from hftl.store.shard import ColumnSpec, Digests
from hftl.store.space import MissingRowsError, NonFiniteError, ShardGoneError, Space
from hftl.store.stat_index import StatIndex
from hftl.store.summary import MergeReport, SpaceSummary, StoreStats, VerifyReport, summarise
from hftl.store.turns import remove_stale_claims, turn
from hftl.store.values import Ragged

__all__ = [
    "ColumnSpec",
    "FeatureStore",
    "MissingRowsError",
    "NonFiniteError",
    "Ragged",
    "Space",
    "SpaceSummary",
    "StoreStats",
    "VerifyReport",
    "cache_root",
    "compact",
]

_TRASH = ".trash-"
# Nothing else that lies in the folder is ever listed, verified or removed.
_SPACE_FOLDER = re.compile(r".+-[0-9a-f]{16}")


def cache_root() -> Path:
    """Where hftl keeps what it computed: $HFTL_CACHE, else $XDG_CACHE_HOME/hftl, else ~/.cache/hftl.

    The folder is created at the first write, readable by its owner only (0700). One that exists keeps its
    mode, and everything in it follows: a folder with group permissions is a store that the group shares.
    """
    if value := os.environ.get("HFTL_CACHE"):
        return Path(value).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "hftl"


class FeatureStore:
    """All feature spaces under one folder.

    Args:
        root: the folder, usually `cache_root()`.
        files: the file calls that commits use.
    """

    def __init__(self, root: Path, files: FileCalls = FILE_CALLS) -> None:
        self.root = Path(root).absolute()
        self._files = files

    @cached_property
    def file_digests(self) -> StatIndex:
        """The digests of files that did not change since they were last read."""
        return StatIndex(self.root / "digests" / "files.safetensors")

    def space(self, identity: Mapping[str, JSON], label: str) -> Space:
        """Open the space of ``identity``, which need not exist yet; it is created by `Space.create`.

        Where a newer hftl keeps it in a format that this one does not read, it has a second folder beside that one.

        Args:
            identity: everything that can change a feature.
            label: a name for people, such as the model's id; part of the folder's name, not of the identity.

        Raises:
            StoreError: the space cannot be read.
        """
        digits = space_id(identity)[:16]
        existing = [path for path in self._space_folders() if path.name.endswith(f"-{digits}")]
        plain, apart = (self._folder / f"{_slug(label)}{part}-{digits}" for part in ("", f"-format{FORMAT}"))
        passed_over: list[Path] = []
        for path in existing or [plain]:
            try:
                space = Space(path, identity, label, self._files, mode_of(self.root))
                break
            except OtherFormatError:
                passed_over.append(path)
        else:
            space = Space(apart, identity, label, self._files, mode_of(self.root))
        space.passed_over = passed_over
        space.touch()
        return space

    def foreign(self, name: str) -> tuple[Origin, Space] | None:
        """The space that was made elsewhere and pulled from an origin; None where there is none.

        Raises:
            StoreError: the space cannot be read.
        """
        path = foreign_folder(self.root, name)
        origin, space = Origin.read(path), self._open(path)
        if origin is None or space is None:
            return None
        space.touch()
        return origin, space

    def spaces(self) -> list[SpaceSummary]:
        """What is stored, the last used first, foreign spaces included; reads the shards' headers only."""
        summaries = [summarise(path) for path in self._every_folder()]
        return sorted(summaries, key=lambda summary: -summary.last_used)

    @contextmanager
    def turn(self, spaces: Iterable[Space], digests: Digests, waiting: Callable[[str], None]) -> Iterator[None]:
        """Run a block that computes rows while no other process computes the very same ones.

        Args:
            spaces: where their features go.
            digests: the rows, uint8 (n, 16), those that are stored already included.
            waiting: called once if another process is waited for, with its name for a person.
        """
        what = hashlib.blake2b(digests.tobytes(), digest_size=16, person=b"hftl-turn")
        for space in spaces:
            what.update(space.id.encode())
        with turn(self.root / "claims" / what.hexdigest(), mode_of(self.root), waiting):
            yield

    def stats(self) -> StoreStats:
        """Totals over all spaces."""
        spaces = self.spaces()
        return StoreStats(
            root=self.root,
            spaces=len(spaces),
            rows=sum(space.rows for space in spaces),
            shards=sum(space.shards for space in spaces),
            bytes=sum(space.bytes for space in spaces),
            quarantined=sum(space.quarantined for space in spaces),
        )

    def verify(self) -> list[VerifyReport]:
        """Read every byte of every space; what is damaged is moved to its quarantine, to be computed again."""
        return [self._verify(path, summarise(path)) for path in self._every_folder()]

    def compact(self) -> int:
        """Merge the small shards of every space but foreign ones, whose shards keep the names that they came with.

        Returns how many were merged away.
        """
        return sum(compact(space, worthwhile=2) for path in self._space_folders() if (space := self._open(path)))

    def merge(self, other: FeatureStore) -> list[MergeReport]:
        """Take in what another store has and this one has not; again after a kill it goes on where it was.

        Raises:
            StoreError: there is no such store, or features cannot be written.
        """
        if other.root == self.root or not other._space_folders():
            raise StoreError(f"{other.root} is no other cache with features; hftl cache ls lists those of one")
        return [self._merge(path, other._open(path)) for path in other._space_folders()]

    def _merge(self, path: Path, source: Space | None) -> MergeReport:
        if source is None:
            other = other_format(path / "space.json")
            why = f"it has format {other}, which this hftl does not read" if other else "its space.json is damaged"
            return MergeReport(path.name, 0, refused=why)
        space = self.space(source.identity, source.label)
        source.only_read = True
        try:
            rows, damaged = merge(space, source)
        except DifferentCutError as error:
            return MergeReport(path.name, 0, refused=str(error))
        compact(space)
        return MergeReport(path.name, rows, damaged)

    def gc(self, max_bytes: int) -> list[SpaceSummary]:
        """Remove spaces until the store has at most ``max_bytes``: frozen blocks first, then the least recently used.

        Quarantined files go first. A space that a live process has open stays, even if too much is left then.

        Returns:
            The spaces that were removed.

        Raises:
            StoreError: a file cannot be removed.
        """
        self._tidy()
        # One that was taken into use since it was listed stays; no other goes in its place.
        return [space for space in self.surplus(max_bytes) if self._remove(space.path)]

    def surplus(self, max_bytes: int) -> list[SpaceSummary]:
        """The spaces that `gc` would remove now, in that order."""
        spaces = self.spaces()
        total = sum(space.bytes for space in spaces)
        chosen = []
        # What frozen blocks return takes hundreds of times the room of features, for one way of training.
        for space in sorted(spaces, key=lambda space: (space.blocks is None, space.last_used)):
            if total > max_bytes and not space.in_use:
                total -= space.bytes
                chosen.append(space)
        return chosen

    def clear(self, name: str | None = None, *, force: bool = False) -> list[SpaceSummary]:
        """Remove one space, or all.

        Args:
            name: the space's folder name, label, origin or id (its first 8 digits or more); None for all.
            force: remove also what a live process has open; it recomputes what it needs.

        Returns:
            The spaces that were removed.

        Raises:
            StoreError: no space has that name, or one is in use.
        """
        self._tidy()
        chosen = [space for space in self.spaces() if name is None or space.answers_to(name)]
        if name is not None and not chosen:
            raise StoreError(f"no feature space in {self.root} is called {name!r}; hftl cache ls lists them")
        removed = [space for space in chosen if self._remove(space.path, force=force)]
        if len(removed) < len(chosen):
            kept = ", ".join(space.name for space in chosen if space not in removed)
            raise StoreError(f"removed {len(removed)} spaces; in use: {kept}; stop those runs or use --force")
        return removed

    # -- helpers -------------------------------------------------------------------------------------------

    @property
    def _folder(self) -> Path:
        return self.root / "features"

    def _space_folders(self) -> list[Path]:
        """The folders of the store's own spaces."""
        return _folders_in(self._folder)

    def _every_folder(self) -> list[Path]:
        """The folders of all spaces, foreign ones included."""
        return [*self._space_folders(), *_folders_in(self.root / FOREIGN)]

    def at(self, path: Path, description: Description) -> Space:
        """The space that a folder holds, whatever it is called."""
        return Space(path, description.identity, description.label, self._files, mode_of(self.root))

    def _open(self, path: Path) -> Space | None:
        """The space at ``path``; None where its description is missing or damaged."""
        description = Description.read(path / "space.json")
        return self.at(path, description) if description else None

    def _verify(self, path: Path, summary: SpaceSummary) -> VerifyReport:
        orphans = remove_orphans(path, self._files) + remove_orphans(path / "shards", self._files)
        space = self._open(path)
        if space is None:
            bad = ["space.json"] if self._set_aside_description(path / "space.json") else []
            return VerifyReport(summary, rows=0, bad=bad, orphans=orphans)
        shards = path / "shards"
        if os.path.lexists(shards) and not shards.is_dir():
            set_aside(shards, self._files, mode_of(self.root))
            return VerifyReport(summary, rows=0, bad=["shards"], orphans=orphans)
        rows = {name: _verified_rows(space, name) for name in sorted(space.shard_sizes())}
        bad = [name for name, count in rows.items() if count is None]
        return VerifyReport(summary, rows=sum(count or 0 for count in rows.values()), bad=bad, orphans=orphans)

    def _set_aside_description(self, path: Path) -> bool:
        """Move a space.json that is damaged, not merely missing or of another format; the next run writes it."""
        try:
            damaged = Description.load(path) is None
        except (OSError, OtherFormatError):
            return False
        if damaged:
            set_aside(path, self._files, mode_of(self.root))
        return damaged

    def _remove(self, path: Path, *, force: bool = False) -> bool:
        """Remove a space's folder; False where it is in use."""
        if not force and in_use(path):
            return False
        trash = path.with_name(f"{_TRASH}{process_mark()}")
        with store_errors("remove", path):
            # By rename, so that a run that opens it meanwhile finds all of it or nothing.
            path.replace(trash)
            if not force and in_use(trash):
                trash.replace(path)
                return False
            remove_tree(trash)
        return True

    def _tidy(self) -> None:
        """Remove what crashed writers and removals left, and what is quarantined."""
        with store_errors("clean up", self.root):
            for path in self._every_folder():
                remove_orphans(path, self._files)
                remove_orphans(path / "shards", self._files)
                _remove_if_possible(path / "quarantine")
            remove_stale_claims(self.root / "claims")
            for trash in self._trash():
                if alive(trash.name.removeprefix(_TRASH)) is not True:
                    _remove_if_possible(trash)

    def _trash(self) -> Iterator[Path]:
        for folder in (self._folder, self.root / FOREIGN):
            yield from folder.glob(f"{_TRASH}*")


def _folders_in(folder: Path) -> list[Path]:
    """The folders in a folder that are named as a space's is."""
    try:
        return sorted(p for p in folder.iterdir() if _SPACE_FOLDER.fullmatch(p.name) and p.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StoreError(f"cannot read {folder}: {error.strerror}; check its permissions") from error


def _verified_rows(space: Space, name: str) -> int | None:
    """The rows of a shard whose every byte is right; None where it is damaged, 0 where it is gone."""
    try:
        return len(space.read_shard(name).digests)
    except ShardGoneError as error:
        return None if error.damaged else 0


def _remove_if_possible(path: Path) -> None:
    with suppress(OSError):
        remove_tree(path)


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", label).strip("-.")[:80].lower() or "space"
