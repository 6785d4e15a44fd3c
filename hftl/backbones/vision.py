"""Images: any model that ``AutoModelForImageClassification`` can load."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hftl.backbones.pretrained import PretrainedBackbone
from hftl.backbones.protocol import Encoded
from hftl.data.images import decode_image
from hftl.errors import BackboneError
from hftl.wording import named_error, one_line

# What Pillow reads without plugins and people keep photographs in.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jfif"})


class ImageBackbone(PretrainedBackbone):
    """An image classification model of transformers with its image processor."""

    modality = "image"
    wants: Literal["file", "text"] = "file"
    suffixes = SUFFIXES
    pipeline_tag = "image-classification"
    auto_class = AutoModelForImageClassification

    @cached_property
    def processor(self) -> Any:
        """The checkpoint's image processor (the Pillow one where torchvision is not installed).

        Raises:
            BackboneError: the checkpoint has no image processor.
        """
        try:
            return AutoImageProcessor.from_pretrained(
                self.source.folder, trust_remote_code=False, local_files_only=True
            )
        except Exception as error:  # whatever a processor's class raises on its settings
            raise BackboneError(f"{self.name} has no usable image processor: {one_line(error, 200)}") from error

    def processor_identity(self) -> dict[str, Any]:
        """Every setting of the image processor, defaults included."""
        settings: dict[str, Any] = json.loads(self.processor.to_json_string())
        return settings

    def encode(self, rows: Sequence[bytes], names: Sequence[str]) -> list[Encoded]:
        """Decode and preprocess encoded images, one tensor (channels, height, width) float32 each.

        Raises:
            BadRowError: an image cannot be decoded.
        """
        return [self._encode(decode_image(row, name)) for row, name in zip(rows, names, strict=True)]

    def collate(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """Stack preprocessed images.

        Raises:
            BackboneError: the processor gives images of different sizes.
        """
        first = rows[0].inputs
        try:
            return {name: torch.stack([row.inputs[name] for row in rows]) for name in first}
        except RuntimeError as error:
            raise BackboneError(
                f"{self.name}: its image processor gives images of different sizes, which cannot be batched; "
                "use a backbone whose processor resizes or crops to a fixed size"
            ) from error

    def probes(self) -> list[dict[str, Tensor]]:
        """Two batches of noise images of several sizes."""
        noise = np.random.default_rng(0)
        sizes = [(48, 64), (80, 40), (33, 33), (64, 96)]
        images = [Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes]
        return [self.collate([self._encode(image) for image in images[i::2]]) for i in range(2)]

    def save_processor(self, folder: Path) -> None:
        """Write ``preprocessor_config.json``."""
        self.processor.save_pretrained(folder)

    def _encode(self, image: Image.Image) -> Encoded:
        processor = self.processor
        try:
            inputs = processor(images=image, return_tensors="pt")
        except Exception as error:  # settings that no picture suits, such as one channel's mean for three channels
            raise BackboneError(
                f"{self.name}: its image processor cannot prepare a picture of three channels: "
                f"{named_error(error)[:200]}; see its preprocessor_config.json"
            ) from error
        return Encoded({name: value[0] for name, value in inputs.items() if isinstance(value, Tensor)})
