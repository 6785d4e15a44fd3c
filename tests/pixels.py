"""Small backbones whose rows are a picture's pixels, in a module that another process can import."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from hftl.backbones.protocol import Encoded
from hftl.data.images import decode_image


class Pixels:
    """Rows are pictures of 8 × 8 pixels."""

    name = "pixels"
    wants = "file"
    scale: ClassVar[float] = 1.0

    def encode(self, rows: Sequence[bytes], names: Sequence[str]) -> list[Encoded]:
        pictures = [decode_image(row, name).resize((8, 8)) for row, name in zip(rows, names, strict=True)]
        arrays = [np.asarray(picture, dtype=np.float32) * self.scale for picture in pictures]
        # Colours stay the last dimension in memory, as many image processors leave them.
        return [Encoded({"pixels": torch.from_numpy(array).permute(2, 0, 1)}) for array in arrays]


class Scaled(Pixels):
    """Multiplies by what this process has set, which others do not know."""


class Odd(Pixels):
    """Gives numbers in all the ways they may lie in memory, and warns at every picture that is large."""

    def encode(self, rows: Sequence[bytes], names: Sequence[str]) -> list[Encoded]:
        if any(len(row) > 2_000 for row in rows):
            warnings.warn(f"{names[0]} is large", UserWarning, stacklevel=1)
        return [Encoded(row.inputs | in_odd_ways(row.inputs["pixels"])) for row in super().encode(rows, names)]


def in_odd_ways(pixels: torch.Tensor) -> dict[str, Any]:
    """A picture's numbers, each in a layout of its own."""
    grey = pixels.mean(0, keepdim=True)
    return {
        "same colours": grey.expand(3, 8, 8),
        "one channel": grey.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        "row": grey.reshape(64, 1).T,
        "part": pixels[:, 2:6, 1:5],
        "unknown": grey / 0 * 0,
        "none": grey[:0],
        "array": pixels.contiguous().numpy(),
        "read-only": np.frombuffer(grey.numpy().tobytes(), np.uint8),
    }


class WithThreads(Pixels):
    """Leaves a thread behind, as a library may."""

    def encode(self, rows: Sequence[bytes], names: Sequence[str]) -> list[Encoded]:
        import threading

        threading.Thread(target=threading.Event().wait, daemon=True).start()
        return super().encode(rows, names)
