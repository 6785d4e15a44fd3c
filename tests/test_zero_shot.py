"""What a backbone with a text tower says without a label, held to transformers' own models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import runs
import tiny
import torch
from PIL import Image
from runs import Cli, metrics, predictions
from safetensors.torch import load_file
from test_run import write_recipe
from transformers import CONFIG_MAPPING, AutoImageProcessor, AutoModel, AutoTokenizer, Siglip2ImageProcessorPil

import hftl
from hftl.backbones import hftl_resolve_backbone
from hftl.backbones.blocks import find_depths
from hftl.backbones.loading import load_backbone
from hftl.errors import RecipeError
from hftl.plugins.spec import BackboneOptions

PROMPTS = ["the {label} sat", "one {label}"]
LABELS = ["cat", "dog", "red_bird"]


def save(kind: str, folder: Path) -> Path:
    """A tiny model with both towers, its image processor and its tokenizer."""
    if kind != "siglip2":
        tiny.save(kind, folder)
    else:
        vision = {**tiny.WIDE, "patch_size": 8, "num_patches": 16}
        config = CONFIG_MAPPING[kind](vision_config=vision, text_config=tiny.IMAGE["siglip"]["text_config"])
        with torch.random.fork_rng():
            torch.manual_seed(0)
            AutoModel.from_config(config).save_pretrained(folder)
        Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def pictures(folder: Path) -> Path:
    runs.write_images(folder)
    for number, label in enumerate(LABELS):
        (folder / f"class{number}").rename(folder / label)
    return folder


def logits_of(folder: Path, paths: list[str], texts: list[str]) -> torch.Tensor:
    """Logits (n, texts) of transformers' own forward over both towers."""
    model = AutoModel.from_pretrained(folder).eval()
    seen = AutoImageProcessor.from_pretrained(folder)(
        [Image.open(path).convert("RGB") for path in paths], return_tensors="pt"
    )
    length = model.config.text_config.max_position_embeddings
    read = AutoTokenizer.from_pretrained(folder)(
        texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    if "pixel_attention_mask" in seen:
        # Its mask is of the texts.
        read = {"input_ids": read["input_ids"], "attention_mask": read["attention_mask"]}
    with torch.no_grad():
        logits: torch.Tensor = model(**seen, **read).logits_per_image
    return logits


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2"])
def test_one_prompt_gives_the_logits_of_the_model_itself(cli: Cli, tmp_path: Path, kind: str) -> None:
    data, folder = pictures(tmp_path / "data"), save(kind, tmp_path / "backbone")
    recipe = write_recipe(tmp_path, folder, data)

    said = json.loads(cli.ok("zero-shot", recipe, "--prompt", PROMPTS[0], "--out", "model", "--json"))

    paths = [str(path) for path in sorted(data.glob("*/*.png"))]
    wanted = logits_of(folder, paths, ["the cat sat", "the dog sat", "the red bird sat"]).softmax(1).numpy()
    found = hftl.load("model").predict(paths)
    assert list(found[0]["scores"]) == LABELS
    np.testing.assert_allclose([list(row["scores"].values()) for row in found], wanted, atol=2e-5)
    assert [each["said"] for each in said["labels"]] == ["the cat sat", "the dog sat", "the red bird sat"]
    assert said["score"]["low"] <= said["score"]["value"] <= said["score"]["high"]
    # The test rows' embeddings are kept, and the model itself is what is exported.
    again = hftl.zero_shot(recipe, prompts=PROMPTS[:1], quiet=True)
    assert again.score.value == pytest.approx(said["score"]["value"])
    assert type(AutoModel.from_pretrained("model")) is type(AutoModel.from_pretrained(folder))
    assert "model exists" in cli.refused("zero-shot", recipe, "--out", "model")


def test_several_prompts_are_averaged_at_length_one(tmp_path: Path) -> None:
    data, folder = pictures(tmp_path / "data"), save("clip", tmp_path / "backbone")
    answer = hftl.zero_shot(
        hftl.Recipe(backbone=str(folder), data=str(data)), prompts=PROMPTS, out=tmp_path / "model", quiet=True
    )
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    with torch.no_grad():
        for label in ("cat", "dog", "red bird"):
            vectors = []
            for prompt in PROMPTS:
                vector = model.get_text_features(
                    **tokenizer(prompt.format(label=label), return_tensors="pt")
                ).pooler_output
                vectors.append(vector[0] / vector[0].norm())
            mean = torch.stack(vectors).mean(0)
            rows.append(mean / mean.norm() * model.logit_scale.exp())
    written = load_file(tmp_path / "model" / "head.safetensors")["weight"]
    torch.testing.assert_close(written, torch.stack(rows), atol=1e-4, rtol=1e-4)
    assert answer.prompts == PROMPTS


def test_it_stands_among_the_baselines_of_a_run_that_is_made_afterwards(cli: Cli, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, save("clip", tmp_path / "backbone"), pictures(tmp_path / "data"))
    cli.ok("run", recipe, "--out", "before", "--quiet")
    answer = hftl.zero_shot(recipe, quiet=True)

    said = cli.ok("run", recipe, "--out", "after", "--report")

    assert "zero_shot" not in metrics(Path("before"))["head"]["baselines"]
    assert metrics(Path("after"))["head"]["baselines"]["zero_shot"] == answer.score.value
    assert "accuracy of zero_shot" in said
    assert "text tower, no label" in Path("after/report.html").read_text()
    cli.ok("run", recipe, "--out", "embedded", "--pooling", "projection", "--quiet")
    # The test rows are known, the others are not.
    counts = metrics(Path("embedded"))["features"]
    assert counts["reused"] == answer.rows
    test = predictions(Path("embedded"))
    paths = [str(tmp_path / "data" / row) for row in test["row"]]
    Image.open(paths[0]).save("photo.jpg")
    scores = runs.card_example(Path("embedded/model"), {"photo.jpg": paths[0]})["logits"].softmax(1)[0].tolist()
    assert scores == pytest.approx(list(test["scores"][0]), abs=1e-4)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_fine_tuning_starts_from_the_names_of_the_labels(cli: Cli, tmp_path: Path, method: str) -> None:
    recipe = write_recipe(tmp_path, save("siglip", tmp_path / "backbone"), pictures(tmp_path / "data"))
    answer = hftl.zero_shot(recipe, prompts=PROMPTS, quiet=True)
    # Asked afterwards, and none of the run's business.
    other = hftl.zero_shot(recipe, prompts=["what ran cat {label} over was who very"], quiet=True)
    assert other.score.value != answer.score.value
    start = [
        "--pooling",
        "projection",
        "--set",
        "method.init=zero-shot",
        "--set",
        f"method.prompts={json.dumps(PROMPTS)}",
    ]

    said = cli.ok("run", recipe, "--out", "run", "--method", method, *start, "--epochs", "1", "--lr", "1e-9")

    assert "the text tower's embeddings of 'the cat sat'" in said
    made = metrics(Path("run"))
    assert made["finetune"]["start"]["accuracy"] == pytest.approx(answer.score.value)
    assert made["eval"]["accuracy"] == pytest.approx(answer.score.value)
    assert made["finetune"]["baselines"]["zero_shot"] == answer.score.value
    cli.ok("run", recipe, "--out", "head", "--quiet")
    assert metrics(Path("head"))["head"]["baselines"]["zero_shot"] == other.score.value


def test_what_has_no_text_tower_or_no_place_for_a_label_is_refused(cli: Cli, tmp_path: Path) -> None:
    data = pictures(tmp_path / "data")
    recipe = write_recipe(tmp_path, save("clip", tmp_path / "clip"), data)
    assert "has no place for the label" in cli.refused("zero-shot", recipe, "--prompt", "a photo")
    blind = write_recipe(tmp_path, tiny.save("vit", tmp_path / "vit"), data)
    assert "has no text tower beside it" in cli.refused("zero-shot", blind)
    assert "goes with pooling='projection'" in cli.refused(
        "run", recipe, "--method", "full", "--set", "method.init=zero-shot"
    )
    half = tiny.save("clip", tmp_path / "half", head=True)
    tiny.tokenizer().save_pretrained(half)
    # A checkpoint of the classification class has no text tower, whose embeddings would be noise.
    assert "its weights lack" in cli.refused("zero-shot", write_recipe(tmp_path, half, data))
    with pytest.raises(RecipeError, match="no prompt"):
        hftl.zero_shot(recipe, prompts=[])


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_text_tower_that_is_never_run_has_no_blocks_to_freeze(tmp_path: Path, kind: str) -> None:
    folder = save(kind, tmp_path / kind)
    spec = hftl_resolve_backbone(str(folder))
    assert spec is not None
    backbone = load_backbone(spec, BackboneOptions(), pooling="projection", trains_body=True)
    model, head = backbone.build(backbone.config("single_label", LABELS))
    depths = find_depths(model, head)
    assert depths.blocks == len(AutoModel.from_pretrained(folder).vision_model.encoder.layers)
    assert all("text" not in name for name in depths.names)
    seen = {name: depth for name, depth in depths.of.items() if "vision_model.embeddings" in name}
    assert seen
    assert set(seen.values()) == {0}


def test_a_start_of_label_names_is_for_one_label_a_row(cli: Cli, tmp_path: Path) -> None:
    data = pictures(tmp_path / "data")
    table = tmp_path / "data.jsonl"
    rows = [
        {"image": str(path), "label": ["cat", "dog"][: 1 + i % 2]} for i, path in enumerate(sorted(data.rglob("*.png")))
    ]
    table.write_text("\n".join(map(json.dumps, rows)))
    recipe = write_recipe(tmp_path, save("clip", tmp_path / "clip"), table)
    said = cli.refused("run", recipe, "--method", "full", "--pooling", "projection", "--init", "zero-shot")
    assert "one label a row" in said
