"""Glyph images to pretrain on: which characters, their shapes, and how a shape becomes a small image of writing.

Three stages, each a function: ``characters`` picks letters and symbols and never a digit; ``build_atlas`` renders them
once from the fonts that matplotlib ships, as distance fields; ``draw`` turns rows of the atlas into distorted images, a
pure function of (rows, seed).

The scan is modelled on what small images of writing go through: a binary drawing, cut to its bounding box, counted down
to a few grey pixels (an 8x8 image of UCI Optdigits counts the ink in 4x4 blocks of a 32x32 bitmap).
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
UNICODE_FONTS = ("DejaVuSans*.ttf", "DejaVuSerif*.ttf", "STIXGeneral*.ttf")
TEX_FONTS = ("cm[birst]*.ttf", "cmmi10.ttf")  # slots follow TeX: only A-Z and a-z are where Unicode has them
CALLIGRAPHIC = "cmsy10.ttf"  # only A-Z

# Letters easily taken for a digit 2..9, by hand (Cyrillic Ze and Latin Ezh for 3); and, as measured, those whose
# drawing overlaps a digit's by more than 0.88 (cosine), B and 8 aside.
DIGIT_LOOKALIKES = frozenset(
    "\u01a7\u01a8\u03e8\u03e9\ua644\ua645\u14bf\u1546\u01bb\ua75a\ua75b\u0577"  # 2
    "\u01b7\u0292\u021c\u021d\u0417\u0437\u04e0\u04e1\ua76a\ua76b"  # 3
    "\ua7ab\u025c\u025d\u2ccc\u0293\u01b8\u01b9\u1d08\u1d9f\u1dbe\u10d5"  # 3
    "\u13ce\u04b6\u04b7\u04cb\u04cc\u0447\u0427"  # 4
    "\u01bc\u01bd"  # 5
    "\u0431\u13ee\u2cd2\u2cd3\u0184\u0185\u0183\u1d77"  # 6
    "\u204a"  # 7
    "\u0222\u0223\u0b03\u260b\u0545\u0551"  # 8
    "\ua76e\ua76f\u2cca\u2ccb\u018d"  # 9
)
NUMBER_WORDS = re.compile(
    r"DIGIT|NUMBER|NUMERAL|PLAYING CARD|KEYCAP|TELEGRAPH|HEXAGRAM|TONE (TWO|FIVE|SIX)|FRACTION|NUMERO"
)
NO_SHAPE = re.compile(r"BRAILLE|BLOCK|SHADE|BOX DRAWINGS|TETRAGRAM|QUADRANT|COMBINING")

BOX = 64  # a glyph's longer side while its outline is measured, in pixels
CELL = 40  # a stored field's side: BOX plus margin, at half resolution
MARGIN = (2 * CELL - BOX) // 2
CANVAS = 48  # the side of the drawing before it is cut to its bounding box
SIZE = 32  # the side of a finished image


def is_digit(char: str) -> bool:
    """Whether a character is a digit, stands for one (superscript, circled, mathematical), or is drawn like one."""
    return (
        any(unicodedata.category(c).startswith("N") for c in char + unicodedata.normalize("NFKD", char))
        or unicodedata.numeric(char, None) is not None
        or bool(DIGIT_LOOKALIKES & {char, *unicodedata.normalize("NFKD", char)})
        or NUMBER_WORDS.search(unicodedata.name(char, "")) is not None
    )


def fonts() -> list[Path]:
    """Return the font files in a fixed order."""
    found = {file for pattern in (*UNICODE_FONTS, *TEX_FONTS, CALLIGRAPHIC) for file in FONTS.glob(pattern)}
    return sorted(found - set(FONTS.glob("*Display.ttf")))


def characters(font: Path) -> list[str]:
    """Return the letters and symbols that a font draws, in code-point order: no digits, accents or marks."""
    if font.name == CALLIGRAPHIC:
        return [chr(c) for c in range(ord("A"), ord("Z") + 1)]
    if font.name.startswith("cm"):
        return [c for c in map(chr, range(ord("A"), ord("z") + 1)) if c.isalpha()]
    return [c for c in map(chr, sorted(FT2Font(str(font)).get_charmap())) if _wanted(c)]


def _wanted(char: str) -> bool:
    category = unicodedata.category(char)
    if category[0] not in "LSP" or category in ("Lm", "Sk") or is_digit(char):
        return False
    accented = unicodedata.normalize("NFD", char) != char
    return not accented and NO_SHAPE.search(unicodedata.name(char, "")) is None


def base_character(char: str) -> str:
    """Return the plain letter that a styled one (script, fraktur, double-struck, superscript) is a font variant of."""
    folded = unicodedata.normalize("NFKC", char)
    styled = unicodedata.decomposition(char).startswith(("<font>", "<super>", "<sub>"))
    return folded if styled and len(folded) == 1 else char


class Atlas(NamedTuple):
    """Every glyph's shape, and the class it belongs to.

    Attributes:
        outline: ``(glyphs, CELL, CELL)`` int8, signed distance to the outline, positive inside, in BOX pixels / 4.
        skeleton: ``(glyphs, CELL, CELL)`` int8, distance to the glyph's centre line, in BOX pixels / 4.
        label: ``(glyphs,)`` int64, classes 0..C-1.
        names: the characters of each class, joined; their order is the classes' order.
    """

    outline: Tensor
    skeleton: Tensor
    label: Tensor
    names: list[str]


def build_atlas(files: list[Path], min_glyphs: int) -> Atlas:
    """Render every character of the fonts that has at least ``min_glyphs`` drawings; about a minute for all fonts."""
    masks: list[np.ndarray] = []
    chars: list[str] = []
    for file in files:
        font = ImageFont.truetype(str(file), 96)
        for char in characters(file):
            mask = _render(font, char)
            if mask is not None:
                masks.append(mask)
                chars.append(base_character(char))
    stack = np.stack(masks)
    label, names = _classes(chars, stack)
    enough = np.bincount(label) >= min_glyphs
    rows = enough[label]
    stack, label = stack[rows], (np.cumsum(enough) - 1)[label[rows]]
    names = [name for name, kept in zip(names, enough, strict=True) if kept]

    outline = np.stack([_field(ndimage.distance_transform_edt(m) - ndimage.distance_transform_edt(~m)) for m in stack])
    skeleton = np.stack([_field(ndimage.distance_transform_edt(~m)) for m in _thin(stack)])
    return Atlas(torch.from_numpy(outline), torch.from_numpy(skeleton), torch.from_numpy(label), names)


def _render(font: ImageFont.FreeTypeFont, char: str) -> np.ndarray | None:
    """Draw one character, cut to its bounding box and scaled to fit BOX; None where the font draws (nearly) nothing."""
    image = Image.new("L", (256, 256))
    ImageDraw.Draw(image).text((64, 48), char, fill=255, font=font)
    bounds = image.getbbox()
    if bounds is None or max(bounds[2] - bounds[0], bounds[3] - bounds[1]) < 16:
        return None
    glyph = image.crop(bounds)
    scale = BOX / max(glyph.size)
    width, height = (max(1, round(side * scale)) for side in glyph.size)
    cell = np.zeros((2 * CELL, 2 * CELL), dtype=bool)
    top, left = (2 * CELL - height) // 2, (2 * CELL - width) // 2
    cell[top : top + height, left : left + width] = np.asarray(glyph.resize((width, height))) > 127
    return cell if cell.any() and not cell[MARGIN:-MARGIN, MARGIN:-MARGIN].all() else None


def _field(distance: np.ndarray) -> np.ndarray:
    """Halve a distance field's resolution (it is smooth) and store it as int8 quarters of a pixel."""
    halved = distance.reshape(CELL, 2, CELL, 2).mean(axis=(1, 3))
    return np.clip(np.rint(4 * halved), -127, 127).astype(np.int8)


def _thin(masks: np.ndarray) -> np.ndarray:
    """Return centre lines one pixel wide of ``(n, h, w)`` bool masks (Zhang & Suen 1984), all glyphs at once."""
    image = masks.copy()
    active = np.arange(len(image))
    while len(active):
        before = image[active]
        part = before
        for first in (True, False):
            padded = np.pad(part, ((0, 0), (1, 1), (1, 1)))
            n, s = padded[:, :-2, 1:-1], padded[:, 2:, 1:-1]
            w, e = padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]
            ring = [
                n,
                padded[:, :-2, 2:],
                e,
                padded[:, 2:, 2:],
                s,
                padded[:, 2:, :-2],
                w,
                padded[:, :-2, :-2],
            ]
            neighbours = sum(p.astype(np.int8) for p in ring)
            crossings = sum((~a & b).astype(np.int8) for a, b in zip(ring, ring[1:] + ring[:1], strict=True))
            open_sides = ~(n & e & s) & ~(e & s & w) if first else ~(n & e & w) & ~(n & s & w)
            part = part & ~((neighbours >= 2) & (neighbours <= 6) & (crossings == 1) & open_sides)
        image[active] = part
        active = active[(part != before).any(axis=(1, 2))]
    return image


def _classes(chars: list[str], masks: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Number the classes: characters whose first drawings are alike share one (A of Latin and Cyrillic; c and C)."""
    first = {char: row for row, char in reversed(list(enumerate(chars)))}
    order = sorted(first)
    small = masks[[first[c] for c in order]].reshape(len(order), 20, 4, 20, 4).mean(axis=(2, 4), dtype=np.float32)
    flat = small.reshape(len(order), -1)
    ink = flat.sum(axis=1)
    overlap = flat @ flat.T
    norm = np.sqrt(np.outer((flat**2).sum(1), (flat**2).sum(1)))
    alike = (overlap / norm > 0.96) & (np.abs(ink[:, None] - ink) < 0.12 * ink[:, None])
    group = np.arange(len(order))
    for i in range(len(order)):
        group[i] = group[np.flatnonzero(alike[i, : i + 1])[0]]
    roots, index = np.unique(group, return_inverse=True)
    names = ["".join(c for c, g in zip(order, index, strict=True) if g == k) for k in range(len(roots))]
    of = dict(zip(order, index, strict=True))
    return np.array([of[c] for c in chars], dtype=np.int64), names


def draw(atlas: Atlas, rows: Tensor, seed: int) -> Tensor:
    """Draw rows of the atlas as a shaky pen would and scan them small.

    Args:
        atlas: the shapes.
        rows: ``(n,)`` int64 rows of the atlas.
        seed: everything random follows from it.

    Returns:
        ``(n, SIZE, SIZE)`` float32 in 0..1, ink bright on black.
    """
    rng = torch.Generator().manual_seed(seed)
    drawing = _pen(atlas, rows, rng)
    return _scan(_cut_to_box(drawing, rng), rng)


def _uniform(rng: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=rng)


def _waves(rng: torch.Generator, n: int, channels: int, knots: int, size: int) -> Tensor:
    """Smooth random fields ``(n, channels, size, size)``, standard deviation near 1 at the knots."""
    knots_at = torch.randn(n, channels, knots, knots, generator=rng)
    return functional.interpolate(knots_at, size=size, mode="bicubic", align_corners=True)


def _pen(atlas: Atlas, rows: Tensor, rng: torch.Generator) -> Tensor:
    """Distort the shapes and ink them: outlines made bolder or lighter, or centre lines followed by a pen."""
    n = len(rows)
    fields = torch.stack((atlas.outline[rows], atlas.skeleton[rows]), dim=1).float() / 4

    angle = torch.randn(n, generator=rng) * 0.16
    shear = torch.randn(n, generator=rng) * 0.25
    stretch = torch.exp(torch.randn(n, generator=rng) * 0.22)
    zoom = 1.25
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    x_row = torch.stack((cos * stretch, shear * cos - sin), dim=-1)
    y_row = torch.stack((sin * stretch, shear * sin + cos), dim=-1)
    line = torch.linspace(-1, 1, CANVAS)
    plane = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1)
    grid = torch.stack((torch.einsum("hwc,nc->nhw", plane, x_row), torch.einsum("hwc,nc->nhw", plane, y_row)), dim=-1)
    tilt = torch.randn(n, 2, generator=rng) * 0.12  # perspective
    grid = grid / (1 + torch.einsum("hwc,nc->nhw", plane, tilt)).clamp(min=0.5).unsqueeze(-1)
    shake = _uniform(rng, 0.0, 0.16, n, 1, 1, 1) * _waves(rng, n, 2, 4, CANVAS)
    grid = grid + shake.permute(0, 2, 3, 1)

    outline, skeleton = functional.grid_sample(fields, grid, padding_mode="border", align_corners=False).unbind(1)
    bolder = torch.randn(n, 1, 1, generator=rng) * 1.5
    width = _uniform(rng, 2.0, 6.0, n, 1, 1)
    pressure = _uniform(rng, 0.0, 0.25, n, 1, 1) * _waves(rng, n, 1, 3, CANVAS).squeeze(1)
    by_pen = torch.rand(n, 1, 1, generator=rng) < 0.6
    ink = torch.where(by_pen, width * (1 + pressure) - skeleton, outline + bolder)
    return torch.sigmoid(ink * 1.5)


def _cut_to_box(drawing: Tensor, rng: torch.Generator) -> Tensor:
    """Move and scale each drawing so that its ink fills the image, as scanned characters are, with some play."""
    n = len(drawing)
    line = torch.linspace(-1, 1, CANVAS)
    centre, half = [], []
    for axis in (1, 2):  # x from columns, y from rows
        seen = drawing.amax(dim=axis) > 0.5
        low = torch.where(seen, line, 1.0).amin(dim=1)
        high = torch.where(seen, line, -1.0).amax(dim=1)
        centre.append((low + high) / 2)
        half.append(((high - low) / 2 + 1 / CANVAS).clamp(min=0.06))
    longer = torch.maximum(half[0], half[1])
    play = 1 + torch.randn(n, 2, generator=rng).abs() * 0.06
    move = torch.randn(n, 2, generator=rng) * 0.03
    squeeze = _uniform(rng, 0.0, 0.35, n)  # how far the shorter side is stretched towards a full square
    sides = [longer * (h / longer) ** squeeze * play[:, i] for i, h in enumerate(half)]
    out = (torch.arange(SIZE) * 2 + 1) / SIZE - 1
    x = (centre[0] + move[:, 0])[:, None] + sides[0][:, None] * out
    y = (centre[1] + move[:, 1])[:, None] + sides[1][:, None] * out
    grid = torch.stack((x[:, None, :].expand(n, SIZE, SIZE), y[:, :, None].expand(n, SIZE, SIZE)), dim=-1)
    return functional.grid_sample(drawing[:, None], grid, align_corners=True).squeeze(1)


def _scan(drawing: Tensor, rng: torch.Generator) -> Tensor:
    """Count ink in blocks and scale back to SIZE: two thirds at 8x8 in 17 greys, the rest at 16x16 and 32x32."""
    ink = ((drawing - 0.5) * _uniform(rng, 2.0, 12.0, len(drawing), 1, 1) + 0.5).clamp(0, 1)[:, None]
    n = len(ink)
    coarse, middle = 2 * n // 3, 5 * n // 6
    small = torch.round(functional.avg_pool2d(ink[:coarse], 4) * 16) / 16
    medium = functional.avg_pool2d(ink[coarse:middle], 2)
    scaled = [functional.interpolate(part, size=SIZE, mode="bilinear", align_corners=False) for part in (small, medium)]
    return torch.cat((*scaled, ink[middle:])).squeeze(1)
