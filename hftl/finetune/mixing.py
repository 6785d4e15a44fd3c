"""Random choices of training rows, each a function of (seed, epoch, row): a resumed run sees the same pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from hftl.backbones.protocol import Encoded

# What a random stream is for; streams of different purposes are independent.
MIXING, CHANGES, PARTNER = 0, 1, 2


def stream(seed: int, epoch: int, row: int, purpose: int) -> np.random.Generator:
    """The random numbers of one row in one epoch."""
    return np.random.default_rng([seed, epoch, row, purpose])


@dataclass(frozen=True)
class Mix:
    """How one row is mixed with another.

    Attributes:
        partner: the other row.
        share: what the row keeps of its target.
        box: the part of the picture that comes from the partner, as shares of height and width (top, left, bottom,
            right); None where the pictures are blended.
    """

    partner: int
    share: float
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Mixing:
    """Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019); where both are on, one of them by a coin.

    A row's partner is any training row, so that the result does not depend on how a batch is split.

    Attributes:
        mixup: both parameters of the Beta distribution of the share; 0 for off.
        cutmix: the same for CutMix.
    """

    mixup: float = 0.0
    cutmix: float = 0.0

    def __bool__(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def draw(self, seed: int, epoch: int, row: int, rows: int) -> Mix:
        """How ``row`` of ``rows`` is mixed in an epoch."""
        random = stream(seed, epoch, row, MIXING)
        kind: Literal["mixup", "cutmix"] = "cutmix" if random.random() < 0.5 else "mixup"
        if not self.mixup or not self.cutmix:
            kind = "mixup" if self.mixup else "cutmix"
        partner = int(random.integers(rows))
        if kind == "mixup":
            return Mix(partner, float(random.beta(self.mixup, self.mixup)))
        side = math.sqrt(1 - random.beta(self.cutmix, self.cutmix))
        y, x = random.random(), random.random()
        box = (max(y - side / 2, 0), max(x - side / 2, 0), min(y + side / 2, 1), min(x + side / 2, 1))
        return Mix(partner, 1 - (box[2] - box[0]) * (box[3] - box[1]), box)


def mixed(mine: Encoded, other: Encoded, mix: Mix) -> Encoded:
    """A row with part of another: tensors (…, height, width) are blended or pasted, everything else stays."""
    inputs: dict[str, Any] = dict(mine.inputs)
    for name, value in mine.inputs.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() < 3:
            continue
        if mix.box is None:
            inputs[name] = mix.share * value + (1 - mix.share) * other.inputs[name]
            continue
        height, width = value.shape[-2:]
        top, left, bottom, right = (
            round(share * size) for share, size in zip(mix.box, (height, width, height, width), strict=True)
        )
        pasted = value.clone()
        pasted[..., top:bottom, left:right] = other.inputs[name][..., top:bottom, left:right]
        inputs[name] = pasted
    return Encoded(inputs, mine.cost, mine.truncated)
