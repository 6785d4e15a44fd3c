"""What `hftl audit` finds of faults that are planted in real data, what it flags besides, and its seconds.

python benchmarks/audit.py [--data FOLDER] [--only NAME,…]

Digits ship with hftl; FOLDER (../shared/data by default) may hold trashnet, clothing_small, banking77 and
deit-tiny-patch16-224. Planted, each in rows of its own: exact copies and near copies of training rows in the test split
(pictures re-encoded, cropped, made smaller; texts with one word, case and punctuation, or blanks changed), and wrong
labels in 5 % of all rows. Rows that are flagged in the data as they came are counted beside: some of them are copies.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

from PIL import Image

PLANTED = 100
WRONG = 0.05


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def re_encoded(image: Image.Image, rng: random.Random) -> bytes:
    return encoded(image, quality=rng.randint(40, 70))


def cropped(image: Image.Image, rng: random.Random) -> bytes:
    """Up to 5 % off each side, as large as before."""
    width, height = image.size
    left, top, right, bottom = (rng.uniform(0, 0.05) for _ in range(4))
    box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
    return encoded(image.resize(image.size, Image.Resampling.BICUBIC, box), quality=85)


def smaller(image: Image.Image, rng: random.Random) -> bytes:
    scale = rng.uniform(0.5, 0.8)
    width, height = image.size
    return encoded(image.resize((int(scale * width), int(scale * height))), quality=85)


def encoded(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=quality)
    return file.getvalue()


PICTURES: dict[str, Callable[[Image.Image, random.Random], bytes]] = {
    "re-encoded": re_encoded,
    "cropped": cropped,
    "smaller": smaller,
}


def plant_pictures(source: Path, folder: Path, rng: random.Random) -> dict[str, set[tuple[str, str]]]:
    """A folder that links to all pictures of another, with copies of training rows in its test split.

    Returns:
        For each kind of copy the pairs (name of the training row, name of the test row).
    """
    files = sorted(path.relative_to(source) for path in source.rglob("*.jpg"))
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).symlink_to((source / file).resolve())
    train = [file for file in files if file.parts[0] == "train"]
    chosen = iter(rng.sample(train, PLANTED * (len(PICTURES) + 1)))
    planted: dict[str, set[tuple[str, str]]] = {}
    for kind in ("exact", *PICTURES):
        planted[kind] = set()
        for _ in range(PLANTED):
            file = next(chosen)
            copy = Path("test", file.parts[1], f"{kind}-{file.stem}.jpg")
            content = (source / file).read_bytes()
            if kind != "exact":
                content = PICTURES[kind](Image.open(source / file).convert("RGB"), rng)
            (folder / copy).write_bytes(content)
            planted[kind].add((file.as_posix(), copy.as_posix()))
    return planted
