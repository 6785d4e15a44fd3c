"""Base models without a classification class: pooled, trained, exported as themselves with the head beside them."""

from __future__ import annotations

import csv
import json
import re
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
from sentence_transformers import SentenceTransformer
from test_run import write_recipe
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    Siglip2ImageProcessorPil,
)

import hftl
from hftl.backbones import hftl_resolve_backbone
from hftl.backbones.bare import BareImageBackbone, BareTextBackbone
from hftl.backbones.source import local_source
from hftl.backbones.vision import ImageBackbone
from hftl.errors import BackboneError, RecipeError
from hftl.frozen.view import View
from hftl.plugins.spec import BackboneOptions

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
    scores = runs.card_example(Path("run/model"), {"photo.jpg": paths[0]})["logits"].softmax(1)[0].tolist()
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
    data = runs.write_texts(tmp_path / "texts.csv", 20)
    texts = write_recipe(tmp_path, tiny.save("distilbert", tmp_path / "distilbert"), data)
    refused = cli.refused("run", texts, "--pooling", "pooler")
    assert "has no pooled output; take 'cls+mean', 'cls'" in refused
    pictures = write_recipe(tmp_path, save("dinov3_vit", tmp_path / "dino"), runs.write_images(tmp_path / "data"))
    assert "another pass" in cli.refused("features", pictures, "--pooling", "native,mean")
    assert "that is for texts" in cli.refused("run", pictures, "--pooling", "mean", "--hidden", "4")
    folder = save("siglip_vision_model", tmp_path / "siglip")
    (folder / "head.json").write_text("{")
    with pytest.raises(BackboneError, match=r"its head.json is damaged"):
        assert BareImageBackbone(local_source(folder)).pooling


def test_a_base_model_that_returns_nothing_without_a_decoders_inputs_is_refused(cli: Cli, tmp_path: Path) -> None:
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": tiny.TEXT_VOCABULARY}
    AutoModel.from_config(CONFIG_MAPPING["pegasus"](**sizes)).save_pretrained(tmp_path / "pegasus")
    tiny.tokenizer().save_pretrained(tmp_path / "pegasus")
    recipe = write_recipe(tmp_path, tmp_path / "pegasus", runs.write_texts(tmp_path / "texts.csv", 20))
    refused = cli.refused("run", recipe)
    assert "returns nothing that can be pooled to one vector a text" in refused
    assert refused.endswith("take another backbone")


# A text encoder without a classification class.
BARE_TEXT = {**tiny.WIDE, "vocab_size": tiny.TEXT_VOCABULARY, "max_position_embeddings": 64, "pad_token_id": 0}


def save_text(folder: Path, side: str = "right") -> Path:
    config = CONFIG_MAPPING["bert-generation"](**BARE_TEXT, bos_token_id=1, eos_token_id=2)
    assert type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    tiny.tokenizer(side).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["bert-generation", "llama"])
def test_texts_are_pooled_over_their_own_tokens(tmp_path: Path, side: str, name: str) -> None:
    folder = save_text(tmp_path / "model", side)
    if name == "llama":
        folder = tiny.save(name, tmp_path / "llama")
        tiny.tokenizer(side).save_pretrained(folder)
    plain = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["the red cat sat over the very blue hill under two tree", "a dog", "one bird flew"]
    batch = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    assert bool((batch["attention_mask"][1] == 0).any())
    with torch.no_grad():
        alone = [plain(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in texts]
    wanted = {
        "cls": torch.stack([tokens[0] for tokens in alone]),
        "mean": torch.stack([tokens.mean(0) for tokens in alone]),
        "cls+mean": torch.stack([torch.cat([tokens[0], tokens.mean(0)]) for tokens in alone]),
    }
    pooling: Any
    for pooling, vectors in wanted.items():
        backbone = BareTextBackbone(local_source(folder), pooling=pooling)
        assert backbone.tokenizer.padding_side == side
        model: Any
        model, head = backbone.build(backbone.config("single_label", ["a", "b", "c"]))
        # Learned positions shift with padding on the left: such rows run in batches of equal length.
        shifted = side == "left" and name != "llama"
        assert View(pooling).find_cut(model, head, backbone.probes())[1] == shifted
        if shifted:
            batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            torch.testing.assert_close(model(**batch).logits, model.classifier(vectors), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--pooling", "cls+mean"],
        ["--method", "full", "--epochs", "1"],
        ["--method", "lora", "--epochs", "1", "--pooling", "cls"],
        ["--method", "partial", "--freeze", "1", "--epochs", "1"],
        ["--pooling", "cls+mean", "--depth", "1"],
    ],
    ids=["mean", "cls+mean", "full", "lora cls", "partial", "depth"],
)
def test_texts_without_a_classification_class_are_exported_for_sentence_transformers(
    cli: Cli, tmp_path: Path, flags: list[str]
) -> None:
    recipe = write_recipe(tmp_path, save_text(tmp_path / "backbone"), runs.write_texts(tmp_path / "texts.csv", 60))

    said = cli.ok("run", recipe, "--out", "run", *flags)

    assert "of the base model, which has no classification class" in said
    assert "sentence-transformers" in Path("run/model/README.md").read_text()
    test = predictions(Path("run"))
    texts = test["row"]
    table = {row.rsplit(":", 1)[0]: row for row in texts}
    assert table
    with (tmp_path / "texts.csv").open() as file:
        rows = list(csv.DictReader(file))
    chosen = [rows[int(re.findall(r"\d+", name)[-1]) - 1]["text"] for name in texts]
    encoder = SentenceTransformer("run/model", device="cpu")
    scores = torch.from_numpy(encoder.encode(chosen)).softmax(1).numpy()
    np.testing.assert_allclose(scores, test["scores"], atol=1e-4)
    found = hftl.load("run/model").predict(chosen)
    np.testing.assert_allclose([list(row["scores"].values()) for row in found], test["scores"], atol=1e-4)


def test_a_pooled_output_of_texts_is_exported_as_the_base_model_with_its_head(cli: Cli, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path, tiny.save("bert", tmp_path / "backbone"), runs.write_texts(tmp_path / "texts.csv", 60)
    )

    said = cli.ok("run", recipe, "--out", "run", "--pooling", "pooler")
    cli.ok("run", recipe, "--out", "tuned", "--pooling", "pooler", "--method", "full", "--epochs", "1")

    assert "pooling: pooler of the base model, as asked" in said
    for run in (Path("run"), Path("tuned")):
        assert AutoModel.from_pretrained(run / "model").config.architectures == ["BertModel"]
        made = runs.card_example(run / "model", {})
        plain = AutoModel.from_pretrained(run / "model").eval()
        inputs = AutoTokenizer.from_pretrained(run / "model")("some text", return_tensors="pt")
        with torch.no_grad():
            vector = plain(**inputs).pooler_output
        head = load_file(run / "model" / "head.safetensors")
        torch.testing.assert_close(made["logits"], vector @ head["weight"].T + head["bias"])
        answer = hftl.load(run / "model").predict(["some text"])[0]["scores"]
        np.testing.assert_allclose(list(answer.values()), made["logits"].softmax(1)[0].numpy(), atol=1e-5)
    assert metrics(Path("tuned"))["features"]["computed"] == 0


def test_poolings_are_stored_from_one_pass(cli: Cli, tmp_path: Path) -> None:
    pictures = write_recipe(tmp_path, save("dinov3_vit", tmp_path / "dino"), runs.write_images(tmp_path / "data"))
    for pooling, computed in (("cls", 18), ("mean", 0), ("cls+mean", 0), ("pooler", 0)):
        cli.ok("run", pictures, "--out", f"pictures-{pooling}", "--pooling", pooling, "--quiet")
        counts = metrics(Path(f"pictures-{pooling}"))["features"]
        assert (counts["computed"], counts["reused"]) == (computed, 18 - computed)
    both = hftl.features(pictures, pooling="cls+mean", quiet=True).matrix
    parts = [hftl.features(pictures, pooling=pooling, quiet=True).matrix for pooling in ("cls", "mean")]  # type: ignore[arg-type]
    np.testing.assert_array_equal(both, np.concatenate(parts, axis=1))
    listed = json.loads(cli.ok("cache", "ls", "--json"))
    assert {(space["pooling"], space["rows"]) for space in listed} == {("cls", 18), ("mean", 18), ("pooler", 18)}
    # The stored ones are evaluated without the model, whichever they are.
    cli.ok("evaluate", "pictures-cls+mean", "--data", tmp_path / "data")


def test_rows_that_are_known_in_one_pooling_are_not_computed_for_another_unasked(cli: Cli, tmp_path: Path) -> None:
    data = runs.write_texts(tmp_path / "texts.csv", 40)
    recipe = write_recipe(tmp_path, tiny.save("bert", tmp_path / "bert"), data)
    cli.ok("run", recipe, "--out", "mean", "--pooling", "mean", "--quiet")
    first = next(space for space in json.loads(cli.ok("cache", "ls", "--json")) if space["pooling"] == "cls")
    cli.ok("cache", "clear", first["name"], "--yes")

    cli.ok("run", recipe, "--out", "again", "--pooling", "mean", "--quiet")
    assert metrics(Path("again"))["features"]["computed"] == 0
    cli.ok("run", recipe, "--out", "cls", "--pooling", "cls+mean", "--quiet")
    assert metrics(Path("cls"))["features"]["computed"] > 0


def test_patches_that_are_padding_are_not_pooled(cli: Cli, tmp_path: Path) -> None:
    config = CONFIG_MAPPING["siglip2_vision_model"](**tiny.WIDE, patch_size=8, num_patches=16)
    folder = tmp_path / "backbone"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16).save_pretrained(folder)
    data = tmp_path / "data"
    runs.write_images(data)
    for path in data.rglob("*.png"):
        Image.open(path).resize((20, 48)).save(path)

    cli.ok("run", write_recipe(tmp_path, folder, data), "--out", "run", "--quiet")

    test = predictions(Path("run"))
    batch = AutoImageProcessor.from_pretrained("run/model")(Image.open(data / test["row"][0]), return_tensors="pt")
    own = batch["pixel_attention_mask"][0].bool()
    assert not bool(own.all())
    with torch.no_grad():
        tokens = AutoModel.from_pretrained("run/model").eval()(**batch).last_hidden_state[0]
    head = load_file("run/model/head.safetensors")
    scores = (tokens[own].mean(0) @ head["weight"].T + head["bias"]).softmax(0).numpy()
    np.testing.assert_allclose(scores, test["scores"][0], atol=1e-5)
    made = runs.card_example(Path("run/model"), {"photo.jpg": str(data / test["row"][0])})
    np.testing.assert_allclose(made["logits"].softmax(1)[0].numpy(), scores, atol=1e-5)


@pytest.mark.parametrize("kind", ["dinov2", "ijepa", "hiera", "siglip2", "clip"])
def test_a_class_with_a_head_of_the_family_is_preferred(tmp_path: Path, kind: str) -> None:
    CONFIG_MAPPING[kind]().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    loaded = hftl_resolve_backbone(str(tmp_path))
    assert loaded is not None
    assert type(loaded.load(BackboneOptions())) is ImageBackbone


def test_a_base_model_has_a_random_twin_and_depths(cli: Cli, tmp_path: Path) -> None:
    data = runs.write_images(tmp_path / "data")
    recipe = write_recipe(tmp_path, save("dinov3_vit", tmp_path / "backbone"), data)

    found = hftl.transfer(recipe, seeds=2, quiet=True)
    cli.ok("run", recipe, "--out", "short", "--depth", "1", "--quiet")

    assert not [note for note in found.notes if "random" in note]
    assert any("random" in rival.name for rival in found.rivals)
    assert AutoModel.from_pretrained("short/model").config.num_hidden_layers == 1
    # Its last stage is narrower than the whole model's.
    stages = save("dinov3_convnext", tmp_path / "convnext")
    cli.ok("run", recipe, "--backbone", stages, "--out", "staged", "--depth", "2", "--pooling", "mean", "--quiet")
    assert load_file("staged/model/head.safetensors")["weight"].shape == (3, 16)
