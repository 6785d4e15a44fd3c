"""Resuming: the record of what a result depends on, and the checkpoint that a resumed run goes on from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hftl.backbones.protocol import Backbone
from hftl.criterion import Criterion
from hftl.data import Data, Labels, Split, Texts
from hftl.errors import UserError
from hftl.finetune.checkpoint import Checkpoint, Checkpoints, read_newest
from hftl.frozen.extract import digest_rows
from hftl.frozen.view import digest_weights
from hftl.methods import METHODS, FineTune, with_later_fields
from hftl.parallel import broadcast, broadcast_tensors, on_main
from hftl.store.shard import Digests
from hftl.store.stat_index import StatIndex
from hftl.store.store import FeatureStore, cache_root

# Settings that change neither a weight nor what is measured; a run may be resumed with others.
NOT_IN_RESULT = ("keep", "save_every", "micro_batch", "cache_blocks")
# How many differences a person is told.
NAMED_DIFFERENCES = 4
# Values that say something to a person; longer ones, and digests, are only said to be others.
LONGEST_VALUE = 60
_DIGEST = re.compile("[0-9a-f]{32,}")
_WORDS = {
    "backbone.identity.processor": "the preprocessing's ",
    "backbone.identity": "the backbone's ",
    "backbone": "the backbone's ",
}


def settings(
    method: FineTune,
    backbone: Backbone,
    data: Data,
    seed: int,
    known: Mapping[str, Digests] | None = None,
    criterion: Criterion | None = None,
) -> dict[str, Any]:
    """Everything that a result depends on, which a resumed run must have in common with the one that began.

    Args:
        method: how it trains.
        backbone: what it trains; its identity covers configuration and preprocessing, and local weights are hashed.
        data: rows and labels of all splits, before any are set aside.
        seed: of every random choice.
        known: by the name of a split the digests (n, 16) of its rows, where features brought them; others are
            computed, of files only where they are new or changed.
        criterion: the metric that chooses the epoch; None for the task's own.

    Raises:
        StoreError: a file of the weights cannot be read.
    """
    chosen = {name: value for name, value in method.model_dump().items() if name not in NOT_IN_RESULT}
    index = FeatureStore(cache_root()).file_digests
    known = known or {}
    weights = digest_weights(backbone, index)
    made_with: dict[str, Any] = {
        "method": chosen,
        "seed": seed,
        "backbone": {
            "name": backbone.name,
            "commit": backbone.commit,
            "max_length": backbone.max_length,
            "weights": None if weights is None else _digest(weights),
            "identity": backbone.identity(),
        },
        "task": data.task,
        "labels": data.label_names,
        "splits": {split.name: describe_rows(split, index, known.get(split.name)) for split in data.splits()},
    }
    marks = data.train.marks
    # They decide which rows are set aside for patience.
    if division := {
        name: _digest(values) for name in ("groups", "strata", "times") if (values := getattr(marks, name)) is not None
    }:
        made_with["division"] = division
    if criterion is not None and criterion.is_stated:
        made_with["metric"] = {"name": criterion.name, "greater_is_better": criterion.greater_is_better}
    # As a checkpoint gives it back, so that a tuple of a plugin's identity is not unlike its own list.
    as_read: dict[str, Any] = json.loads(json.dumps(made_with))
    return as_read


def describe_rows(split: Split, index: StatIndex, digests: Digests | None = None) -> dict[str, Any]:
    """A split's rows and labels in a few digests, from which it can be said how two splits differ.

    Args:
        split: the rows and labels.
        index: remembers the digests of unchanged files.
        digests: of the rows, uint8 (n, 16), if known.

    Returns:
        ``kind`` of the rows for people, ``rows`` (their number), digests of ``inputs`` and ``labels`` in order, and of
        ``pairs``, all rows with their labels in no order.
    """
    inputs = digest_rows(split.inputs, index)[0] if digests is None else digests
    labels = _label_bytes(split.labels)
    pairs = np.concatenate([inputs, labels], axis=1)
    return {
        "kind": "texts" if isinstance(split.inputs, Texts) else "files",
        "rows": len(split),
        "inputs": _digest(inputs),
        "labels": _digest(labels),
        "pairs": _digest(pairs[np.lexsort(pairs.T)]),
    }


def _label_bytes(labels: Labels) -> np.ndarray:
    """A row's labels as bytes of one length: uint8 (n, b)."""
    if labels.dtype == object:
        # Sentences have words, and tags, of any number.
        digests = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in labels]
        return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)
    return np.ascontiguousarray(labels).reshape(len(labels), -1).view(np.uint8)


def _digest(values: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(values).tobytes(), digest_size=16).hexdigest()


# ── the checkpoint to go on from ─────────────────────────────────────────────────────────────────────────────────────


def resumed(checkpoints: Checkpoints, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint, read by the main process and sent to all.

    Raises:
        UserError: all are damaged, or it was made with other settings or other data.
    """

    def read() -> Checkpoint | None:
        checkpoint, problems = read_newest(checkpoints.folder)
        for problem in problems:
            say(f"resume    {problem}")
        if checkpoint is None:
            say("resume    there is no checkpoint yet; starting anew")
            return None
        before = checkpoint.state["made_with"]
        if "splits" not in before:
            raise UserError(
                f"the checkpoints in {checkpoints.folder} are of an hftl that did not record its data, so that nobody "
                "can say whether these are the same; start anew, with another --out"
            )
        other = differences(before, checkpoints.made_with)
        if other:
            raise UserError(f"cannot resume, because the run began otherwise: {other}; use the same, or start anew")
        return checkpoint

    checkpoint = on_main(read)
    described = broadcast([checkpoint.step, checkpoint.state, list(checkpoint.tensors)] if checkpoint else None)
    if described is None:
        return None
    step, state, parts = described
    tensors = {part: broadcast_tensors(checkpoint.tensors[part] if checkpoint else None) for part in parts}
    return Checkpoint(step, state, tensors)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two settings, in a person's words; empty where nothing does."""
    before = _with_later_fields(before)
    old_splits, new_splits = before.get("splits", {}), now.get("splits", {})
    lines = []
    for name in dict.fromkeys([*old_splits, *new_splits]):
        lines += split_differences(name, old_splits.get(name), new_splits.get(name))
    old, new = flat_settings({**before, "splits": {}}), flat_settings({**now, "splits": {}})
    changes: dict[tuple[str, Any, Any], str] = {}
    for name in dict.fromkeys([*old, *new]):
        was, is_ = old.get(name), new.get(name)
        if was != is_:
            # A backbone's identity repeats what it is asked for by name, such as its max_length.
            changes.setdefault((name.rpartition(".")[2], was, is_), _in_words(name, was, is_))
    lines += changes.values()
    more = len(lines) - NAMED_DIFFERENCES
    return ", ".join(lines[:NAMED_DIFFERENCES]) + (f" and {more} more" if more > 0 else "")


def _with_later_fields(made_with: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings with the fields that methods got after they were written, which were what their defaults are."""
    method = made_with.get("method")
    if method is None or method.get("name") not in METHODS:
        return made_with
    return {**made_with, "method": with_later_fields(method, NOT_IN_RESULT)}


def split_differences(name: str, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> list[str]:
    """How a split's rows and labels differ from those that the run began with, as `describe_rows` describes both."""
    if old is None or new is None:
        return [
            f"there {'was no' if old is None else 'was a'} {name} split and now there is {'one' if new else 'none'}"
        ]
    if old["rows"] != new["rows"]:
        return [f"the {name} split had {old['rows']:,} rows and has {new['rows']:,}"]
    if old["pairs"] == new["pairs"]:
        # Order decides which rows share a step.
        ordered = all(old[part] == new[part] for part in ("inputs", "labels"))
        return [] if ordered else [f"the rows of the {name} split are in another order"]
    changed = [word for word, part in ((new["kind"], "inputs"), ("labels", "labels")) if old[part] != new[part]]
    return [f"the {' and '.join(changed)} of the {name} split are not the same"]


def _in_words(name: str, old: Any, new: Any) -> str:
    start = next((start for start in _WORDS if name.startswith(f"{start}.")), None)
    noun = name if start is None else _WORDS[start] + name.removeprefix(f"{start}.")
    values = [str(old), str(new)]
    if any(len(value) > LONGEST_VALUE or _DIGEST.fullmatch(value) for value in values):
        return f"{noun} changed"
    return f"{noun} was {values[0]} and is {values[1]}"


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, by names like ``method.lr``."""
    level: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            level |= flat_settings(value, f"{prefix}{name}.")
        else:
            level[prefix + name] = value if isinstance(value, (int, float, str)) else str(value)
    return level
