"""Base models without a classification class: pooled, trained, exported as themselves with the head beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
import tiny
import torch
from PIL import Image
from runs import Cli, metrics, predictions
from safetensors.torch import load_file
from test_run import write_recipe
from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoImageProcessor, AutoModel

import hftl
from hftl.backbones.bare import BareImageBackbone
from hftl.backbones.source import local_source
from hftl.errors import BackboneError, RecipeError
from hftl.frozen.view import View

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
# Model type, its configuration, and how many tokens stand before the first patch.
TYPES: dict[str, tuple[dict[str, Any], int]] = {
    "dinov3_vit": ({**SMALL, "num_register_tokens": 4}, 5),
    "dinov3_convnext": ({"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "image_size": 64}, 1),
    "aimv2_vision_model": (SMALL, 0),
    "siglip_vision_model": (SMALL, 0),
    "clip_vision_model": ({**SMALL, "projection_dim": 16}, 1),
    "vit_mae": (SMALL, 1),
    "pixio": (SMALL, 8),
}


def save(kind: str, folder: Path) -> Path:
    config = CONFIG_MAPPING[kind](**TYPES[kind][0])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    side = config.image_size
    tiny.ViTImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", TYPES)
def test_a_base_model_is_cut_exactly_under_each_pooling(tmp_path: Path, kind: str) -> None:
    folder, skip = save(kind, tmp_path / kind), TYPES[kind][1]
    assert CONFIG_MAPPING[kind] not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    plain = AutoModel.from_pretrained(folder).eval()
    if kind == "vit_mae":
        plain.config.mask_ratio = 0.0
    batch = BareImageBackbone(local_source(folder)).probes()[0]
    with torch.no_grad():
        output = plain(**batch)
    # Its order of patches is drawn anew in each call of a masked autoencoder.
    tokens = output.last_hidden_state
    wanted = {"mean": tokens[:, skip:].mean(1)}
    if skip:
        wanted["cls"] = tokens[:, 0]
        wanted["cls+mean"] = torch.cat([wanted["cls"], wanted["mean"]], 1)
    if "pooler_output" in output:
        wanted["pooler"] = output.pooler_output
    for pooling in ("mean", "cls", "cls+mean", "pooler"):
        backbone = BareImageBackbone(local_source(folder), pooling)
        if pooling not in wanted:
            with pytest.raises(RecipeError, match="take "):
                assert backbone.pooling
            continue
        model, head = backbone.build(backbone.config("single_label", ["a", "b", "c"]))
        cut, _ = View().find_cut(model, head, backbone.probes())
        assert (cut.kind, cut.width) == ("linear", wanted[pooling].shape[1])
        with torch.no_grad():
            logits = model(**batch).logits
            torch.testing.assert_close(logits, model.classifier(wanted[pooling]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("dinov3_vit", []),
        ("dinov3_convnext", ["--pooling", "pooler"]),
        ("siglip_vision_model", []),
        ("vit_mae", ["--pooling", "cls"]),
        ("dinov3_vit", ["--method", "lora", "--epochs", "1"]),
        ("aimv2_vision_model", ["--method", "full", "--epochs", "1"]),
    ],
    ids=["dinov3", "convnext pooler", "siglip", "mae cls", "dinov3 lora", "aimv2 full"],
)
def test_a_run_leaves_the_base_model_with_its_head_beside_it(
    cli: Cli, tmp_path: Path, kind: str, flags: list[str]
) -> None:
    data = runs.write_images(tmp_path / "data")
    recipe = write_recipe(tmp_path, save(kind, tmp_path / "backbone"), data)

    said = cli.ok("run", recipe, "--out", "run", *flags)

    assert "of the base model, which has no classification class" in said
    test = predictions(Path("run"))
    paths = [str(data / row) for row in test["row"]]
    Image.open(paths[0]).convert("RGB").save("photo.jpg", quality=100, subsampling=0)
    # The card's lines, on plain transformers and torch.
    code = Path("run/model/README.md").read_text().split("```python\n")[1].split("```")[0]
    assert "hftl" not in code
    assert len(code.strip().splitlines()) < 24
    namespace: dict[str, Any] = {}
    exec(code.replace("PATH_OR_REPO_ID", "run/model").replace("photo.jpg", paths[0]), namespace)
    scores = namespace["logits"].softmax(1)[0].tolist()
    assert scores == pytest.approx(list(test["scores"][0]), abs=1e-4)
    # What was saved is the base model in its own class.
    saved = AutoModel.from_pretrained("run/model")
    assert saved.config.architectures == [type(saved).__name__]
    assert set(load_file("run/model/head.safetensors")) == {"weight", "bias"}
    assert not Path("run/adapter").exists()
    found = hftl.load("run/model").predict(paths)
    np.testing.assert_allclose([list(row["scores"].values()) for row in found], test["scores"], atol=1e-4)
    assert hftl.evaluate("run", str(data), quiet=True)["accuracy"] >= 0


def test_a_classification_class_gives_way_to_a_pooling_that_is_asked_for(cli: Cli, tmp_path: Path) -> None:
    data = runs.write_images(tmp_path / "data")
    recipe = write_recipe(tmp_path, tiny.save("vit", tmp_path / "backbone"), data)

    cli.ok("run", recipe, "--out", "native", "--quiet")
    cli.ok("run", recipe, "--out", "mean", "--pooling", "cls+mean", "--quiet")
    cli.ok("run", recipe, "--out", "again", "--pooling", "cls+mean", "--quiet")

    assert not Path("native/model/head.json").exists()
    assert json.loads(Path("mean/model/head.json").read_text())["pooling"] == "cls+mean"
    assert metrics(Path("mean"))["features"]["computed"] == metrics(Path("again"))["features"]["reused"] == 18
    assert AutoImageProcessor.from_pretrained("mean/model").size["height"] == 32
    # A classifier's checkpoint brings no pooler, so that its pooled output would be noise.
    other = tiny.save("vit", tmp_path / "classifier", head=True)
    refused = cli.refused("run", recipe, "--backbone", other, "--pooling", "pooler")
    assert "lack what its pooled output is made by" in refused


def test_what_cannot_be_pooled_is_refused(cli: Cli, tmp_path: Path) -> None:
    texts = write_recipe(tmp_path, tiny.save("bert", tmp_path / "bert"), runs.write_texts(tmp_path / "texts.csv", 20))
    assert "take 'native', 'mean', 'cls'" in cli.refused("run", texts, "--pooling", "pooler")
    pictures = write_recipe(tmp_path, save("dinov3_vit", tmp_path / "dino"), runs.write_images(tmp_path / "data"))
    assert "give --set method.pooling=mean" in cli.refused("features", pictures, "--pooling", "mean")
    folder = save("siglip_vision_model", tmp_path / "siglip")
    (folder / "head.json").write_text("{")
    with pytest.raises(BackboneError, match=r"its head.json is damaged"):
        assert BareImageBackbone(local_source(folder)).pooling


def test_a_base_model_has_a_random_twin_and_depths(cli: Cli, tmp_path: Path) -> None:
    data = runs.write_images(tmp_path / "data")
    recipe = write_recipe(tmp_path, save("dinov3_vit", tmp_path / "backbone"), data)

    found = hftl.transfer(recipe, seeds=2, quiet=True)
    cli.ok("run", recipe, "--out", "short", "--depth", "1", "--quiet")

    assert not [note for note in found.notes if "random" in note]
    assert any("random" in rival.name for rival in found.rivals)
    assert AutoModel.from_pretrained("short/model").config.num_hidden_layers == 1
