"""Going on with a run: what its result depends on, and the checkpoint that fits it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hftl.backbones.protocol import Backbone
from hftl.data import Data
from hftl.errors import UserError
from hftl.finetune.checkpoint import Checkpoint, Checkpoints, read_newest
from hftl.methods import FineTune
from hftl.parallel import broadcast, broadcast_tensors, on_main

# Settings that change neither a weight nor what is measured; a run may be resumed with others.
NOT_IN_RESULT = ("keep", "save_every", "micro_batch")


def settings(method: FineTune, backbone: Backbone, data: Data, seed: int) -> dict[str, Any]:
    """Everything that a result depends on, which a resumed run must have in common with the one that began."""
    chosen = {name: value for name, value in method.model_dump().items() if name not in NOT_IN_RESULT}
    return {
        "method": chosen,
        "seed": seed,
        "backbone": {"name": backbone.name, "commit": backbone.commit},
        "task": data.task,
        "labels": data.label_names,
        "rows": [len(data.train), len(data.validation) if data.validation else 0],
    }


def resumed(checkpoints: Checkpoints, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint, read by the main process and told to all.

    Raises:
        UserError: all are damaged, or it was made with other settings.
    """

    def read() -> Checkpoint | None:
        checkpoint, problems = read_newest(checkpoints.folder)
        for problem in problems:
            say(f"resume    {problem}")
        if checkpoint is None:
            say("resume    there is no checkpoint yet; starting anew")
            return None
        other = differences(checkpoint.state["made_with"], checkpoints.made_with)
        if other:
            raise UserError(f"the checkpoint was made with other settings ({other}); use the same, or start anew")
        return checkpoint

    checkpoint = on_main(read)
    described = broadcast([checkpoint.step, checkpoint.state, list(checkpoint.tensors)] if checkpoint else None)
    if described is None:
        return None
    step, state, parts = described
    tensors = {part: broadcast_tensors(checkpoint.tensors[part] if checkpoint else None) for part in parts}
    return Checkpoint(step, state, tensors)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two settings, for a person."""
    old, new = flat_settings(before), flat_settings(now)
    names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    return ", ".join(f"{name} was {old.get(name)} and is {new.get(name)}" for name in names)


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, by names like ``method.lr``."""
    level: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            level |= flat_settings(value, f"{prefix}{name}.")
        else:
            level[prefix + name] = value if isinstance(value, (int, float, str)) else str(value)
    return level
