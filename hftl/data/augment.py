"""Random changes of pictures, each a function of the random numbers that it is given."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from hftl.data.images import decode_image
from hftl.methods import FineTune, Head

ATTEMPTS = 10
RATIOS = (3 / 4, 4 / 3)


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

    @classmethod
    def of(cls, method: Head | FineTune) -> Augmentation:
        """What a method asks for."""
        return cls(method.flip, method.crop, method.trivial_augment)

    def __bool__(self) -> bool:
        return self.flip or self.crop is not None or self.trivial

    def __str__(self) -> str:
        crop = [] if self.crop is None else [f"crop {self.crop:g}"]
        return ", ".join([*(["flip"] if self.flip else []), *crop, *(["trivial_augment"] if self.trivial else [])])

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
