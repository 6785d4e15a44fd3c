"""A space handed on: its shards as they are, its description, and a card that says what they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from hftl.errors import HftlError, StoreError, UserError
from hftl.hub.commit import Pushed, Upload
from hftl.progress import Progress
from hftl.store.description import FORMAT, LARGEST, Description, OtherFormatError, same_record
from hftl.store.space import ShardGoneError, Space
from hftl.store.store import FeatureStore
from hftl.travel.card import features_card
from hftl.travel.place import HubPlace, Place, State, place_of
from hftl.wording import listing, plural

DESCRIPTION, CARD = "space.json", "README.md"
LARGEST_CARD = 1 << 20
_LICENSE = r"[a-z0-9][a-z0-9.-]*"
SHARD = re.compile(r"shards/([0-9a-f]{32}\.safetensors)")
# What begins with the root of a file system, a drive or a home, and goes on; "/" alone is a token.
_OF_A_MACHINE = re.compile(r"(/|~/|[A-Za-z]:[\\/]|file:)[^/\\]+[/\\]")


@dataclass(frozen=True)
class Handed:
    """What is to be handed on.

    Attributes:
        uploads: the files that the place lacks, the card among them.
        damaged: shards that were set aside, because their bytes were wrong.
        elsewhere: shards that are there and not here: older ones that were merged since, or somebody else's.
    """

    uploads: list[Upload]
    damaged: list[str]
    elsewhere: int


def push_space(
    store: FeatureStore,
    name: str,
    target: str,
    *,
    public: bool = False,
    license: str | None = None,
    quiet: bool = True,
) -> Pushed:
    """Hand a space on: to a data set repository of the Hub, a folder, or an address that fsspec knows.

    Shards that are there already are not sent again, and nothing that is there is removed.

    Args:
        store: where the space is.
        name: the space's folder name, label or id.
        target: ``user/name``, a folder (``./features``) or an address (``s3://bucket/features``).
        public: make a repository public, if it is made; else only its owner sees it.
        license: the Hub's id of a licence, for the card.
        quiet: show no progress.

    Raises:
        UserError: there is no such space, or the target holds something else or cannot be written.
        StoreError: the store cannot be read, or shards were merged meanwhile.
        HubError: the Hub cannot be reached or goes on failing.
    """
    place = place_of(target)
    if public and not isinstance(place, HubPlace):
        raise UserError(f"--public is for repositories of the Hub, and {place.name} is none: leave it out")
    place.check()
    handed = to_hand_on(store, name, place, license=license)
    size = sum(upload.size for upload in handed.uploads)
    with Progress("push", size, quiet=quiet, unit="bytes") as progress:
        try:
            pushed = place.put(handed.uploads, public=public, sent=progress.advance)
        except (HftlError, OSError, ValueError) as error:
            if all(upload.content.exists() for upload in handed.uploads if isinstance(upload.content, Path)):
                raise
            raise StoreError(
                f"{name}: shards were merged while they were sent: push again, what arrived stays"
            ) from error
    return replace(pushed, notes=[*pushed.notes, *_said_of_shards(handed)])


def to_hand_on(store: FeatureStore, name: str, place: Place, *, license: str | None = None) -> Handed:
    """What of a space a place lacks; nothing is written.

    Raises:
        UserError: there is no such space, the place holds something else, or the space tells of this machine.
        StoreError: the store cannot be read, or the space has no rows.
    """
    if license is not None and not re.fullmatch(_LICENSE, license):
        raise UserError(f"--license {license!r}: write the Hub's id of a licence, such as cc-by-4.0")
    space = _space(store, name)
    description = Description.load(space.path / DESCRIPTION)
    if description is None:
        raise StoreError(f"{space.path / DESCRIPTION} is damaged: hftl cache verify sets it aside")
    told = {"identity": description.identity, "info": description.info, "label": description.label}
    if found := next(_of_this_machine(told, DESCRIPTION), None):
        raise UserError(f"{space.path.name} is not pushed: its {found} names a file of this machine")
    state = place.look() or State({})
    is_new = _check_theirs(place, state, description)
    shards, rows, damaged = _good_shards(space)
    if not shards:
        raise StoreError(f"{space.path} has no rows to push")
    elsewhere = len({match[1] for path in state.files if (match := SHARD.fullmatch(path))} - shards.keys())
    uploads = [
        Upload(f"shards/{shard}", space.path / "shards" / shard, size)
        for shard, size in shards.items()
        if state.files.get(f"shards/{shard}") != size
    ]
    if is_new:
        text = description.encode()
        uploads.append(Upload(DESCRIPTION, text, len(text), new=True))
    license = license or _license_there(place, state)
    text = features_card(
        description,
        place.name,
        on_the_hub=isinstance(place, HubPlace),
        rows=rows,
        shards=len(shards),
        elsewhere=elsewhere,
        license=license,
    ).encode()
    uploads.append(Upload(CARD, text, len(text)))
    return Handed(uploads, damaged, elsewhere)


def _space(store: FeatureStore, name: str) -> Space:
    """The store's own space that a person names."""
    named = [summary for summary in store.spaces() if summary.answers_to(name)]
    own = [summary for summary in named if summary.origin is None and summary.id]
    if len(own) > 1:
        names = listing([summary.name for summary in own])
        raise UserError(f"{len(own)} spaces are called {name!r}: say which of {names}")
    if not own:
        why = (
            "was made elsewhere, and is not this store's to push" if named else "is not there; hftl cache ls lists them"
        )
        raise UserError(f"the feature space {name!r} {why}")
    return store.space(own[0].identity, own[0].label)


def _good_shards(space: Space) -> tuple[dict[str, int], int, list[str]]:
    """Bytes of the shards whose every byte is right, how many distinct rows they hold, and the shards set aside."""
    sizes, digests, damaged = {}, [np.zeros((0, 16), dtype=np.uint8)], []
    for shard, size in sorted(space.shard_sizes().items()):
        try:
            digests.append(np.array(space.read_shard(shard).digests))
            sizes[shard] = size
        except ShardGoneError as error:
            damaged += [shard] if error.damaged else []
    return sizes, len(np.unique(np.concatenate(digests), axis=0)), damaged


def _check_theirs(place: Place, state: State, ours: Description) -> bool:
    """Whether the place has no description yet; refuse one of something else.

    Raises:
        UserError: it holds another space, or no space at all.
    """
    if DESCRIPTION not in state.files:
        strange = [path for path in state.files if not _is_ours(path)]
        if strange:
            raise UserError(
                f"{place.name} holds something else ({listing(strange, 3)}): push features to a place of their own"
            )
        return True
    with TemporaryDirectory() as folder:
        theirs, _ = description_at(place, state, Path(folder))
    if theirs.id != ours.id:
        raise UserError(f"{place.name} holds another space ({theirs.label}): push each space to a place of its own")
    if not same_record(theirs.info, theirs.columns, ours.info, ours.columns):
        raise UserError(f"{place.name} records another cut of the model: push to another place")
    return False


def description_at(place: Place, state: State, folder: Path) -> tuple[Description, Path]:
    """What a place holds, and the file that says it, in a folder here.

    Raises:
        UserError: the file is damaged, too large, or of a format that this hftl does not read.
    """
    if state.files[DESCRIPTION] > LARGEST:
        raise UserError(f"{place.name}: its {DESCRIPTION} is larger than any that hftl writes: take another place")
    file = place.fetch(DESCRIPTION, folder, state)
    try:
        description = Description.load(file)
    except OtherFormatError as error:
        raise UserError(f"{place.name} has format {error.format}, this hftl knows {FORMAT}: update hftl") from error
    if description is None:
        raise UserError(f"{place.name}: its {DESCRIPTION} is damaged: remove it there and push again")
    return description, file


def _license_there(place: Place, state: State) -> str | None:
    """The licence that an earlier push stated, which stays until another is stated."""
    if state.files.get(CARD, LARGEST_CARD + 1) > LARGEST_CARD:
        return None
    with TemporaryDirectory() as folder:
        text = place.fetch(CARD, Path(folder), state).read_text(encoding="utf-8", errors="replace")
    stated = re.search(rf"^license: ({_LICENSE})$", text.partition("\n---\n")[0], re.MULTILINE)
    return stated[1] if stated else None


def _is_ours(path: str) -> bool:
    name = path.rpartition("/")[2]
    return path in (CARD, DESCRIPTION, ".gitattributes") or bool(SHARD.fullmatch(path)) or name.startswith(".tmp-")


def _of_this_machine(value: Any, where: str) -> Iterator[str]:
    """Where in a space's identity a path of this machine stands; plugins may put anything there."""
    if isinstance(value, str):
        home = str(Path.home())
        if _OF_A_MACHINE.match(value) or (len(home) > 1 and home in value):
            yield where
    elif isinstance(value, list | dict):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _of_this_machine(item, f"{where}.{key}")


def _said_of_shards(handed: Handed) -> list[str]:
    notes = []
    if handed.damaged:
        notes.append(f"{plural(len(handed.damaged), 'damaged shard')} set aside and not pushed")
    if handed.elsewhere:
        notes.append(f"{plural(handed.elsewhere, 'shard')} that this store does not have stay there")
    return notes
