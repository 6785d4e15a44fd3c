"""Features of tiny models on every built-in path, pinned: a number that changes needs another feature version.

After a change that is meant, raise ``FEATURE_VERSION`` in ``hftl/backbones/__init__.py`` and write the file anew:

    HFTL_PIN_FEATURES=1 python -m pytest tests/test_feature_version.py
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from PIL import Image

import hftl
from hftl.backbones import FEATURE_VERSION
from hftl.backbones.loading import load_backbone
from hftl.frozen.view import View, open_space
from hftl.plugins.registry import find
from hftl.plugins.spec import BackboneOptions
from hftl.store.store import FeatureStore

PINNED = Path(__file__).with_name("feature_version.json")
# Of each row so many values, and its norm, in which all of them are.
VALUES = 6
TEXTS = ["the red cat sat", "a dog", "one bird flew over the very blue hill under two tree", "who is not the one"] * 2
PATHS: dict[str, tuple[str, str, bool]] = {
    "image, native": ("vit", "native", False),
    "text, native, linear": ("bert", "native", False),
    "text, native, last token": ("llama", "native", False),
    "text, native, replay": ("roberta", "native", False),
    "text, mean": ("bert", "mean", False),
    "text, cls": ("bert", "cls", False),
    "pairs of texts": ("bert", "native", True),
}
CHANGED = (
    "the features of {path} are not what feature version {version} stands for: if that is meant, raise FEATURE_VERSION "
    "in hftl/backbones/__init__.py, so that what is stored is computed again, and pin them anew (see this file's top)"
)


def checkpoint(name: str, folder: Path) -> Path:
    """A tiny model whose weights are drawn by numpy, whose generator is the same everywhere."""
    tiny.save(name, folder)
    model = transformers.AutoModel.from_pretrained(folder)
    draw = np.random.default_rng(0)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            values = (
                draw.normal(0, 0.3, parameter.shape) if parameter.dim() > 1 else draw.normal(1, 0.1, parameter.shape)
            )
            parameter.copy_(torch.from_numpy(values).float())
    model.save_pretrained(folder)
    return folder


def data(folder: Path, *, image: bool, pairs: bool) -> Path:
    draw = np.random.default_rng(1)
    for split in ("train", "test"):
        if image:
            for i in range(8):
                file = folder / split / "ab"[i % 2] / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)
        else:
            folder.mkdir(exist_ok=True)
            second = [",a second text" if pairs else ""] * len(TEXTS)
            lines = [
                f"{split} {text}{more},{'ab'[i % 2]}" for i, (text, more) in enumerate(zip(TEXTS, second, strict=True))
            ]
            head = "text,text_pair,label" if pairs else "text,label"
            (folder / f"{split}.csv").write_text("\n".join([head, *lines]) + "\n")
    return folder


def computed(path: str, folder: Path) -> list[list[float]]:
    name, pooling, pairs = PATHS[path]
    source = checkpoint(name, folder / "model")
    rows = data(folder / "data", image=name == "vit", pairs=pairs)
    recipe = hftl.Recipe(backbone=str(source), data=str(rows), input_columns=["text", "text_pair"] if pairs else None)
    matrix = hftl.features(recipe, pooling=pooling, quiet=True)  # type: ignore[arg-type]
    order = sorted(range(len(matrix)), key=lambda i: (matrix.split[i], matrix.row_names[i]))
    values = torch.from_numpy(matrix.matrix[order]).double()
    summary = torch.cat([values[:, :VALUES], values.norm(dim=1, keepdim=True)], 1)
    return [[float(f"{value:.7g}") for value in row] for row in summary.tolist()]


def space_name(folder: Path) -> str:
    source = checkpoint("bert", folder / "model")
    spec = find(str(source))
    backbone = load_backbone(spec, BackboneOptions())
    return open_space(FeatureStore(folder / "store"), backbone, spec.origin, View()).id


@pytest.fixture(scope="module")
def pinned() -> Iterator[dict[str, Any]]:
    anew = bool(os.environ.get("HFTL_PIN_FEATURES"))
    empty = {"version": FEATURE_VERSION, "transformers": transformers.__version__, "features": {}}
    content: dict[str, Any] = empty if anew else json.loads(PINNED.read_text())
    yield content
    if anew:
        text = json.dumps(content, indent=1)
        # One line for a row.
        PINNED.write_text(re.sub(r"\n\s+(?=[-\d\]])", " ", text) + "\n")


@pytest.mark.parametrize("path", PATHS)
def test_features_are_those_of_their_version(path: str, pinned: dict[str, Any], tmp_path: Path) -> None:
    values = computed(path, tmp_path)
    known = pinned["features"].setdefault(path, values)
    assert pinned["version"] == FEATURE_VERSION, "pin the features anew (see this file's top)"
    # Another processor rounds otherwise; anything that is done otherwise moves more.
    np.testing.assert_allclose(
        values, known, rtol=1e-4, atol=1e-5, err_msg=CHANGED.format(path=path, version=FEATURE_VERSION)
    )


def test_features_keep_their_name(pinned: dict[str, Any], tmp_path: Path) -> None:
    """Whatever is stored is found by the space's name; a changed identity forgets all of it."""
    if pinned["transformers"] != transformers.__version__:
        pytest.skip("another transformers writes other configurations of the tiny model")
    name = space_name(tmp_path)
    assert pinned.setdefault("space", name) == name, CHANGED.format(path="all paths", version=FEATURE_VERSION)
