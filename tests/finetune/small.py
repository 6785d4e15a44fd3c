"""A tiny image model in a folder and pictures that it can learn, for tests of fine-tuning."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tiny
from PIL import Image
from transformers import AutoTokenizer, ViTImageProcessorPil

from hftl.backbones.source import local_source
from hftl.backbones.vision import ImageBackbone
from hftl.data import Data, Files, RowNames, Split, Texts
from hftl.tasks import Task

CLASSES = ["red", "green", "blue"]


def image_backbone(folder: Path, name: str = "vit", **overrides: Any) -> ImageBackbone:
    """A tiny random image model without a head, saved and opened again."""
    model = tiny.model(name, **overrides)
    base = getattr(model, model.base_model_prefix)
    base.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return ImageBackbone(local_source(folder))


def pictures(rows: int, seed: int = 0) -> tuple[Files, np.ndarray]:
    """Noisy pictures in which one colour stands out, and which."""
    random = np.random.default_rng(seed)
    labels = np.arange(rows) % len(CLASSES)
    encoded = []
    for label in labels:
        pixels = random.integers(0, 120, (24, 20, 3), dtype=np.uint8)
        pixels[..., label] += 90
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    return Files(pa.chunked_array([pa.array(encoded)]), RowNames([(f"pictures-{seed}", rows)])), labels.astype(np.int64)


def picture_data(train: int = 26, test: int = 9, validation: int = 0) -> Data:
    """Splits of such pictures."""
    parts = {
        name: Split(name, *pictures(rows, seed))
        for seed, (name, rows) in enumerate({"train": train, "test": test, "validation": validation}.items())
        if rows
    }
    return Data(
        ref="pictures",
        task=Task.SINGLE_LABEL,
        label_names=CLASSES,
        train=parts["train"],
        validation=parts.get("validation"),
        test=parts["test"],
        notes=[],
        identity={},
    )


def vectors_data(texts: list[str], labels: list[int], names: list[str]) -> Data:
    """The same texts as training and test split."""
    rows = [(text,) for text in texts]
    split = {
        name: Split(name, Texts(rows, RowNames([(f"{name}.csv", len(rows))])), np.array(labels))
        for name in ("train", "test")
    }
    return Data("texts", Task.SINGLE_LABEL, names, split["train"], None, split["test"], [], {})


def text_backbone_without_mask(folder: Path) -> Path:
    """A tiny BERT that attends to its padding, because its tokenizer gives no mask."""
    tiny.save("bert", folder)
    AutoTokenizer.from_pretrained(folder, model_input_names=["input_ids"]).save_pretrained(folder)
    return folder


def uneven_text_data(train: int, test: int) -> Data:
    """Texts ever longer, of which every other has two words and the rest two to five.

    Two processes that take turns get one length of rows and four.
    """
    splits = []
    for name, count in (("train", train), ("test", test)):
        labels = np.arange(count) % len(CLASSES)
        rows = []
        for i, label in enumerate(labels):
            words = [CLASSES[label], *["a"] * (i // 2 % 4 if i % 2 else 0)]
            rows.append((f"{' '.join(words)} ".ljust(20 + i, "x"),))
        splits.append(Split(name, Texts(rows, RowNames([(f"{name}.csv", count)])), labels.astype(np.int64)))
    return Data("texts", Task.SINGLE_LABEL, CLASSES, splits[0], None, splits[1], [], {})
