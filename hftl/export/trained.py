"""`Trained`: what training returns, whatever the method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hftl.errors import HftlError
from hftl.heads import HeldOutLogits
from hftl.methods import Storage


@dataclass(frozen=True)
class Exported:
    """A folder that an export wrote.

    Attributes:
        folder: where it is.
        library: the Hub's name of the library that loads it, such as ``"transformers"`` or ``"peft"``.
    """

    folder: Path
    library: str


def not_kept(_: Path) -> list[Exported]:
    """The export of a model of which only what it said is kept.

    Raises:
        HftlError: always.
    """
    raise HftlError("the model of a fold is not kept")


@dataclass
class Trained:
    """A trained model, before it is written.

    Attributes:
        logits: (n, C) float32 of the test split, on the CPU.
        section: where ``metrics.json`` tells about the training: ``"head"`` or ``"finetune"``.
        report: what it tells there; plain JSON values.
        export: writes the model into a folder, and whatever belongs beside it; says what it wrote and who loads it.
            To be called once, on the main process.
        parameters: the head's parameters by the model's names, for fine-tuning to start from; empty where the model's
            own class has no place for them.
        held_out: what heads that had not seen them say of the training rows, where folds chose a linear head.
        free: by the name of what costs nothing, which test rows it gets right: bool (n,); empty where nobody asked.
        outside: (m, C) float32 logits of rows that are out of scope, on the CPU; None where there are none.
        storage: what the numbers were rounded to that the logits were computed of; ``"float32"`` where none was.
        slack: (n, C) how far that has moved each logit at most; None where nothing was rounded, or nobody can tell.
        by_views: (n, C) float32 logits whose scores are the mean of those of several views of each test row; None where
            there is only one.
    """

    logits: Tensor
    section: str
    report: dict[str, Any]
    export: Callable[[Path], list[Exported]]
    parameters: dict[str, Tensor] = field(default_factory=dict)
    held_out: HeldOutLogits | None = None
    outside: Tensor | None = None
    storage: Storage = "float32"
    slack: Tensor | None = None
    by_views: Tensor | None = None
    free: dict[str, np.ndarray] = field(default_factory=dict)
