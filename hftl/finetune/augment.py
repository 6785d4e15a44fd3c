"""Random changes of training rows, each a function of (seed, epoch, row): a resumed run sees the same pictures."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from hftl.backbones.protocol import Encoded
from hftl.data.images import decode_image

ATTEMPTS = 10
RATIOS = (3 / 4, 4 / 3)
# What a random stream is for; streams of different purposes are independent.
MIXING, CHANGES, PARTNER = 0, 1, 2


def stream(seed: int, epoch: int, row: int, purpose: int) -> np.random.Generator:
    """The random numbers of one row in one epoch."""
    return np.random.default_rng([seed, epoch, row, purpose])


@dataclass(frozen=True)
class Augmentation:
    """Changes of a picture before the backbone's own preprocessing.

    Attributes:
        flip: mirror it left to right, half of the time.
        crop: smallest share of its area that a random resized crop keeps (Szegedy et al. 2015); None for the whole.
        trivial: whether one random operation of random strength follows, see `trivial_augment`.
    """

    flip: bool = False
    crop: float | None = None
    trivial: bool = False

    def __bool__(self) -> bool:
        return self.flip or self.crop is not None or self.trivial

    def __call__(self, encoded: bytes, name: str, random: np.random.Generator) -> bytes:
        """An image file, changed; returned as PPM, which costs a copy and loses nothing.

        Raises:
            BadRowError: it cannot be decoded.
        """
        image = decode_image(encoded, name)
        if self.crop is not None:
            image = image.crop(crop_box(*image.size, self.crop, random))
        if self.flip and random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.trivial:
            image = trivial_augment(image, random)
        buffer = io.BytesIO()
        image.save(buffer, format="PPM")
        return buffer.getvalue()


def crop_box(width: int, height: int, smallest: float, random: np.random.Generator) -> tuple[int, int, int, int]:
    """A random part of a picture (left, upper, right, lower): its area uniform, its aspect log-uniform in 3/4 … 4/3."""
    for _ in range(ATTEMPTS):
        area = width * height * random.uniform(smallest, 1)
        ratio = math.exp(random.uniform(math.log(RATIOS[0]), math.log(RATIOS[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(random.integers(0, width - w + 1)), int(random.integers(0, height - h + 1))
            return left, upper, left + w, upper + h
    return 0, 0, width, height


# Each takes a picture and a strength in -1 … 1; the ranges are the paper's "wide" ones, in shares of the picture.
OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, _: image,
    "shear_x": lambda image, s: _affine(image, (1, 0.99 * s, 0, 0, 1, 0)),
    "shear_y": lambda image, s: _affine(image, (1, 0, 0, 0.99 * s, 1, 0)),
    "translate_x": lambda image, s: _affine(image, (1, 0, image.width * s / 7, 0, 1, 0)),
    "translate_y": lambda image, s: _affine(image, (1, 0, 0, 0, 1, image.height * s / 7)),
    "rotate": lambda image, s: image.rotate(135 * s),
    "brightness": lambda image, s: ImageEnhance.Brightness(image).enhance(1 + 0.99 * s),
    "color": lambda image, s: ImageEnhance.Color(image).enhance(1 + 0.99 * s),
    "contrast": lambda image, s: ImageEnhance.Contrast(image).enhance(1 + 0.99 * s),
    "sharpness": lambda image, s: ImageEnhance.Sharpness(image).enhance(1 + 0.99 * s),
    "posterize": lambda image, s: ImageOps.posterize(image, 8 - round(6 * abs(s))),
    "solarize": lambda image, s: ImageOps.solarize(image, round(255 * (1 - abs(s)))),
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
}


def trivial_augment(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """One operation of Pillow, strength and sign by chance (TrivialAugment, Müller & Hutter 2021, "wide").

    As good as RandAugment in the paper's comparison, and without its two parameters.
    """
    operation = list(OPERATIONS.values())[random.integers(len(OPERATIONS))]
    return operation(image, random.integers(31) / 30 * random.choice((-1, 1)))


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


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
