"""The embedded default: the digits' fixed split, the shipped network, and that no digit was pretrained on."""

import hashlib
import importlib.util
import io
import json
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTForImageClassification

from hftl.errors import BackboneError
from hftl.samples import DATASETS, digits, path

PRETRAIN = Path(__file__).parents[1] / "recipes" / "pretrain"
GLYPHS = path("glyph-vit-tiny")


@pytest.fixture(scope="module")
def glyphs() -> ModuleType:
    return load_script("glyphs")


@pytest.fixture(scope="module")
def glyph_vit(glyphs: ModuleType) -> ModuleType:
    return load_script("glyph_vit")


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, PRETRAIN / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # glyph_vit imports glyphs by this name, as it does when run as a script
    spec.loader.exec_module(module)
    return module


# -- data ----------------------------------------------------------------------------------------------------


def test_the_split_is_stratified_and_complete():
    splits = digits()
    true = Counter(str(label) for label in load_digits().target)
    test = Counter(row.label for row in splits["test"])
    assert set(test) == set("0123456789")
    assert all(test[label] == round(true[label] / 3) for label in true)
    assert Counter(row.label for row in splits["train"]) == true - test
    names = [row.name for split in splits.values() for row in split]
    assert sorted(names) == [f"digits/{row:04d}" for row in range(1797)]


def test_the_split_never_moves():
    np.random.seed(7)  # a run's seed must not reach it
    names = "".join(row.name for row in digits()["test"])
    assert (
        hashlib.sha256(names.encode()).hexdigest() == "ce4426499a947da041f98fd4cbfa7dd860de96b31926c38fb2d43c65ff595d09"
    )


def test_the_bytes_are_the_digits_and_the_same_each_time():
    source = load_digits()
    first, second = digits(), digits()
    assert first == second
    for row in first["train"] + first["test"]:
        index = int(row.name.removeprefix("digits/"))
        image = Image.open(io.BytesIO(row.encoded))
        assert (image.format, image.mode, image.size) == ("PNG", "L", (8, 8))
        np.testing.assert_array_equal(np.rint(np.asarray(image) / 255 * 16), source.images[index])
        assert row.label == str(source.target[index])


def test_samples_are_found_by_name():
    assert DATASETS["digits"] is digits
    with pytest.raises(BackboneError, match="glyph-vit-tiny"):
        path("no-such-model")


# -- network -------------------------------------------------------------------------------------------------


def test_the_shipped_network_is_small_and_finite():
    weights = load_file(GLYPHS / "model.safetensors")
    assert sum(tensor.numel() for tensor in weights.values()) <= 2_000_000
    assert (GLYPHS / "model.safetensors").stat().st_size <= 5_000_000
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_plain_transformers_loads_it_and_it_separates_digits():
    model, info = AutoModelForImageClassification.from_pretrained(GLYPHS, num_labels=10, output_loading_info=True)
    assert type(model) is ViTForImageClassification
    assert model.dtype == torch.float32  # stored as fp16, run as fp32
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert not info["unexpected_keys"]

    processor = AutoImageProcessor.from_pretrained(GLYPHS)
    assert processor(Image.new("RGB", (50, 70)), return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)
    features, labels = {}, {}
    for split, rows in digits().items():
        pictures = [Image.open(io.BytesIO(row.encoded)).convert("RGB") for row in rows]
        with torch.inference_mode():
            hidden = model.base_model(processor(pictures, return_tensors="pt")["pixel_values"]).last_hidden_state
        features[split] = hidden[:, 0]
        labels[split] = torch.tensor([int(row.label) for row in rows])
    # Nearest class mean, five labels a class: raw pixels reach 0.68 on the training images, these features 0.94.
    shots = torch.cat([torch.nonzero(labels["train"] == k)[:5, 0] for k in range(10)])
    means = features["train"][shots].reshape(10, 5, -1).mean(1)
    scale = features["train"].std(0)
    nearest = torch.cdist(features["test"] / scale, means / scale).argmin(1)
    assert (nearest == labels["test"]).float().mean() > 0.88


def test_the_card_states_licence_and_making():
    card = (GLYPHS / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n")
    assert "license: apache-2.0" in card.split("---")[1]
    assert "python recipes/pretrain/glyph_vit.py" in card
    assert json.loads((GLYPHS / "config.json").read_text())["model_type"] == "vit"


# -- pretraining ---------------------------------------------------------------------------------------------


def test_no_digit_is_pretrained_on(glyphs: ModuleType):
    chosen = {char for font in glyphs.fonts() for char in glyphs.characters(font)}
    assert len(chosen) > 1000
    assert {"O", "l", "S", "Z", "я", "∑"} <= chosen
    folded = {part for char in chosen for part in char + unicodedata.normalize("NFKD", char)}
    assert not {c for c in folded if unicodedata.category(c) in ("Nd", "Nl", "No")}
    assert not {c for c in folded if unicodedata.numeric(c, None) is not None}
    # superscript, circled, mathematical, Arabic-Indic, dingbat, playing card; and letters drawn like digits
    for char in "0123456789²⁵₃①⑦𝟎𝟗𝟡٣۵➂½Ⅷ🂢З3ƷƧƼ":
        assert glyphs.is_digit(char), char


def test_styled_letters_join_their_plain_letter(glyphs: ModuleType):
    assert [glyphs.base_character(c) for c in "𝒜𝔷ᵃAⒶ"] == ["A", "z", "a", "A", "Ⓐ"]


def test_a_drawing_is_a_function_of_rows_and_seed(glyphs: ModuleType):
    atlas = glyphs.build_atlas([glyphs.FONTS / "cmr10.ttf"], min_glyphs=1)
    rows = torch.arange(24) % len(atlas.label)
    first = glyphs.draw(atlas, rows, seed=5)
    torch.manual_seed(99)
    assert torch.equal(first, glyphs.draw(atlas, rows, seed=5))
    assert not torch.equal(first, glyphs.draw(atlas, rows, seed=6))
    assert first.shape == (24, 32, 32)
    assert 0 <= first.min() < 0.05
    assert 0.9 < first.max() <= 1


def test_thinning_leaves_a_line_of_one_pixel(glyphs: ModuleType):
    bar = np.zeros((1, 80, 80), dtype=bool)
    bar[0, 30:41, 10:70] = True
    thin = glyphs._thin(bar)[0]
    assert thin.any(axis=0).sum() > 45
    assert thin.sum(axis=0).max() <= 2
    assert not (thin & ~bar[0]).any()


def test_pretraining_repeats(glyphs: ModuleType, glyph_vit: ModuleType, tmp_path: Path):
    atlas = glyphs.build_atlas([glyphs.FONTS / "cmr10.ttf"], min_glyphs=1)
    for run in ("first", "second"):
        teacher = glyph_vit.train_teacher(atlas, steps=2, seed=3)
        glyph_vit.save(glyph_vit.train_student(atlas, teacher, steps=2, seed=3), tmp_path / run)
    first, second = (load_file(tmp_path / run / "model.safetensors") for run in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    shipped = load_file(GLYPHS / "model.safetensors")
    assert {name: first[name].shape for name in first} == {name: shipped[name].shape for name in shipped}
    for file in ("config.json", "preprocessor_config.json"):
        made, kept = (json.loads((folder / file).read_text()) for folder in (tmp_path / "first", GLYPHS))
        made.pop("transformers_version", None)
        kept.pop("transformers_version", None)
        assert made == kept
