"""A space taken in from elsewhere: verified file by file, and kept apart from what this store computed itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from hftl.errors import UserError
from hftl.progress import Progress
from hftl.store.description import Description
from hftl.store.files import FILE_CALLS, make_folders, mode_of, remove_tree, store_errors, write_atomically
from hftl.store.foreign import Origin, foreign_folder, receive
from hftl.store.space import Space
from hftl.store.store import FeatureStore
from hftl.store.summary import SpaceSummary, summarise
from hftl.travel.place import place_of
from hftl.travel.push import DESCRIPTION, SHARD, description_at

LEVELS = 3


@dataclass(frozen=True)
class Pulled:
    """What a pull brought.

    Attributes:
        origin: where it is from.
        space: what is there now.
        fetched: shards that arrived now.
        removed: shards that are not there any more, and went here too.
        refused: shards that were left out, and why.
    """

    origin: Origin
    space: SpaceSummary
    fetched: int = 0
    removed: int = 0
    refused: dict[str, str] = field(default_factory=dict)


def pull_space(store: FeatureStore, source: str, *, quiet: bool = True) -> Pulled:
    """Take in the space that somebody pushed; again, it brings what is new, and after a kill it goes on.

    Every shard is compared with its checksum before it is taken in. The space is kept apart, as a mirror of what is
    there, and nothing uses it that does not name it.

    Args:
        store: where it is kept.
        source: ``user/name`` of a data set repository on the Hub, a folder, or an address that fsspec knows.
        quiet: show no progress.

    Raises:
        UserError: there is no such place, or no space in it that this hftl reads.
        StoreError: the store cannot be written.
        HubError: the Hub cannot be reached or goes on failing.
    """
    place = place_of(source)
    state = place.look()
    if state is None:
        raise UserError(f"{place.name} is not there, or not for you to see")
    if DESCRIPTION not in state.files:
        raise UserError(f"{place.name} holds no features that hftl pushed: it has no {DESCRIPTION}")
    folder, mode = foreign_folder(store.root, place.name), mode_of(store.root)
    incoming = folder / "incoming"
    wanted = {match[1]: path for path in sorted(state.files) if (match := SHARD.fullmatch(path))}
    # First, because where nothing arrives what is here stays of use.
    with TemporaryDirectory() as fresh:
        description, file = description_at(place, state, Path(fresh))
        text = file.read_bytes()
    with store_errors("write", folder):
        make_folders(FILE_CALLS, folder, mode, levels=LEVELS)
        # Until all of it is there it is of no commit, and nothing may use it.
        Origin.now(place.name, state.commit, complete=False).write(folder, mode)
    space = _space_there(description, text, store, folder)
    there, fetched, refused = space.shard_sizes(), 0, {}
    lacking = [name for name, path in wanted.items() if there.get(name) != state.files[path]]
    with Progress("pull", sum(state.files[wanted[name]] for name in lacking), quiet=quiet, unit="bytes") as progress:
        for name in lacking:
            why = receive(space, place.fetch(wanted[name], incoming, state), name)
            if why is None:
                fetched += 1
            else:
                refused[name] = why
            progress.advance(state.files[wanted[name]])
    gone = there.keys() - wanted.keys()
    for name in gone:
        space.remove_shard(name)
    origin = Origin.now(place.name, state.commit, complete=True)
    with store_errors("write", folder):
        if incoming.exists():
            remove_tree(incoming)
        origin.write(folder, mode)
    return Pulled(origin, summarise(folder), fetched, len(gone), refused)


def _space_there(description: Description, text: bytes, store: FeatureStore, folder: Path) -> Space:
    """The space that the folder holds, by the description that arrived; of another one nothing is kept."""
    before = Description.read(folder / DESCRIPTION)
    with store_errors("write", folder):
        if before is not None and before.id != description.id:
            for stale in (folder / "shards", folder / "checked"):
                if stale.exists():
                    remove_tree(stale)
        write_atomically(FILE_CALLS, folder / DESCRIPTION, [text], mode_of(store.root) & 0o666)
    return store.at(folder, description)
