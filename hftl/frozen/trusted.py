"""Features that were made elsewhere, used because somebody named them: looked at before, and named afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hftl.errors import StoreError, UserError
from hftl.frozen.recheck import AUTOCAST, OTHER_RUN, gap_between
from hftl.frozen.view import View, equal_length_id
from hftl.parallel import broadcast
from hftl.store.description import same_record
from hftl.store.files import mode_of
from hftl.store.foreign import Origin, check_name, remember_check
from hftl.store.shard import Digests
from hftl.store.space import Space
from hftl.store.store import FeatureStore
from hftl.travel.place import place_name

SAMPLE = 16

Compute = Callable[[np.ndarray], None]
"""Computes the chosen ones of all rows, bool (n,), and stores them."""


@dataclass
class Trusted:
    """A foreign space that a run may use.

    Attributes:
        origin: where it is from.
        space: its rows.
        checked: rows that were computed again now, and agree; none where these rows were found right before.
        rows: rows of the data whose features were read from it.
    """

    origin: Origin
    space: Space
    checked: int = 0
    rows: int = 0

    def said(self) -> str:
        """What a person is told."""
        if not self.rows:
            return f"nothing was read from {self.origin}: what it has of these rows is here too"
        agree = f"{self.checked} others of it were computed here and agree" if self.checked else "found right before"
        return f"{self.rows:,} rows were read from {self.origin}; {agree}"

    def as_json(self) -> dict[str, Any]:
        """What ``metrics.json`` has."""
        named = {"origin": self.origin.name, "commit": self.origin.commit, "space": self.space.id}
        return {**named, "rows": self.rows, "checked": self.checked}


def trusted_spaces(store: FeatureStore, names: Sequence[str]) -> list[Trusted]:
    """The foreign spaces that somebody named.

    Raises:
        UserError: one was not pulled, or not to its end.
        StoreError: one cannot be read.
    """
    return [_trusted(store, name) for name in dict.fromkeys(place_name(name) for name in names)]


def _trusted(store: FeatureStore, name: str) -> Trusted:
    found = store.foreign(name)
    if found is None:
        raise UserError(f"--trust-features {name}: nothing of it is here; get it with: hftl cache pull {name}")
    origin, space = found
    if not origin.complete:
        raise UserError(f"--trust-features {name}: not all of it has arrived; go on with: hftl cache pull {name}")
    return Trusted(origin, space)


def lend(
    store: FeatureStore,
    trusted: Sequence[Trusted],
    spaces: dict[View, Space],
    digests: Digests,
    own_rows: Sequence[int],
    compute: Compute,
) -> None:
    """Let spaces read from foreign ones what they lack, once a random sample of that was computed here and agrees.

    Args:
        store: where all of them are.
        trusted: the foreign spaces; what was checked is noted there.
        spaces: the spaces of the run's views. Where it turns out that rows need batches of equal length, `compute`
            exchanges one.
        digests: the rows, uint8 (n, 16).
        own_rows: positions of rows that are computed here in any case: an export is proved on them, more closely than
            two machines agree.
        compute: computes rows here.

    Raises:
        UserError: a foreign space is of other features than the run's.
        StoreError: its rows are not what the backbone gives here.
    """
    for each in trusted:
        view = next((v for v, s in spaces.items() if each.space.id in (s.id, equal_length_id(s))), None)
        if view is None:
            raise UserError(_of_others(each, next(iter(spaces.values()))))
        held = each.space.known(digests)
        lacking = held & ~spaces[view].known(digests)
        if not lacking.any():
            continue
        checked, own = check_name(each.space, digests[held]), spaces[view]
        # What a space that was cleared recorded is gone with it: rows that are computed record it anew.
        known = own.id == each.space.id and own.info is not None and checked.exists()
        sampled = not broadcast(known)
        asked = _to_compute_of(digests, lacking, own_rows, SAMPLE if sampled else 0)
        if asked.any():
            compute(asked)
        if sampled:
            each.checked = _compare(each, spaces[view], view, digests[asked])
            remember_check(checked, mode_of(store.root))
        _check_same_cut(each, spaces[view])
        spaces[view].lenders.append(each.space)


def count_borrowed(trusted: Sequence[Trusted], spaces: Sequence[Space], digests: Digests) -> None:
    """Note how many rows were read from each of the foreign spaces."""
    for space in spaces:
        left = digests[~space.owned(digests)]
        for lender in space.lenders:
            has = lender.known(left)
            left = left[~has]
            for each in trusted:
                if each.space is lender:
                    each.rows += int(has.sum())


def _to_compute_of(digests: Digests, lacking: np.ndarray, own_rows: Sequence[int], sample: int) -> np.ndarray:
    """Of the rows that are to be read from elsewhere those to compute, bool (n,): nobody could know the sample."""
    _, first, copy_of = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    asked = np.zeros(len(digests), dtype=bool)
    # Of copies the first one is computed.
    asked[first[copy_of.reshape(-1)[list(own_rows)]]] = True
    asked &= lacking
    there = np.sort(first[(lacking & ~asked)[first]])
    drawn = np.random.default_rng().permutation(len(there))[:sample]
    asked[there[broadcast(drawn.tolist())]] = True
    return asked


def _compare(each: Trusted, own: Space, view: View, digests: Digests) -> int:
    """Compare rows that were just computed with the foreign ones; how many.

    Raises:
        StoreError: one differs, or none could be computed.
    """
    _check_same_cut(each, own)
    digests = digests[own.owned(digests)]
    allowed = OTHER_RUN if view.autocast is None else AUTOCAST
    rows = [digests[row : row + 1] for row in range(len(digests))]
    gaps = np.array([gap_between(own.gather(row), each.space.gather(row)) for row in rows])
    # Not the other way round: what is no number is no agreement.
    wrong = int((~(gaps <= allowed)).sum())
    why = "none of its rows could be computed again" if not rows else ""
    if wrong:
        why = f"{wrong} of {len(rows)} rows differ (by up to {gaps.max():.2g} of the largest number)"
    if why:
        raise StoreError(
            f"{each.origin} is not used: {why}; leave out --trust-features, and remove it with: hftl cache clear "
            f"{each.space.path.name}"
        )
    return len(rows)


def _check_same_cut(each: Trusted, own: Space) -> None:
    """See that a foreign space records what this one does of the model: an identity says nothing of the cut.

    Raises:
        StoreError: it does not.
    """
    # Whether padding counts, which the first release did not ask, is part of the id.
    mine, theirs = (
        {name: value for name, value in (s.info or {}).items() if name != "equal_lengths"} for s in (own, each.space)
    )
    if own.id != each.space.id or not same_record(mine, own.columns, theirs, each.space.columns):
        raise StoreError(f"{each.origin} is not used: it records another cut of the model than this hftl makes")


def _of_others(each: Trusted, own: Space) -> str:
    theirs, ours = each.space.identity, own.identity
    keys = [key for key in sorted({*theirs, *ours} - {"batches"}) if theirs.get(key) != ours.get(key)]
    return (
        f"--trust-features {each.origin.name}: its features are of something else than this recipe's (another "
        f"{', '.join(keys)}): leave it out"
    )
