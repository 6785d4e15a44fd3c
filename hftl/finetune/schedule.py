"""The learning rate as a function of the step, so that a resumed run needs no state of a scheduler."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["cosine", "linear", "constant"]


def lr_factor(step: int, total: int, warmup: int, schedule: Schedule) -> float:
    """What the learning rates are multiplied with in one step.

    Args:
        step: 0 for the first.
        total: steps of the whole run.
        warmup: steps in which the factor rises linearly; the first of them already learns.
        schedule: how it falls afterwards: to 0 along half a cosine (Loshchilov & Hutter 2017, without restarts) or
            along a line, or not at all.
    """
    # The first step already learns: a rate of 0 would waste it.
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / max(total - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1 - done
