"""ONNX folders: what they compute, beside transformers; and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import runs
import tiny
import torch
import transformers
from PIL import Image
from runs import Cli, metrics, predictions
from test_run import write_recipe

import hftl
from hftl import convert
from hftl.backbones.source import local_source
from hftl.backbones.text import TextBackbone
from hftl.backbones.vision import ImageBackbone
from hftl.errors import BackboneError, HftlError, UserError
from hftl.export import onnx

# Tracing takes seconds; HFTL_LONG=1 traces all of them.
NAMES = ["bert", "dinov2", "resnet", *(["mpnet", "vit", "deit", "convnext"] if os.environ.get("HFTL_LONG") else [])]


@pytest.mark.parametrize("name", NAMES)
def test_an_onnx_file_gives_the_logits_of_the_model_for_any_number_and_length_of_rows(
    tmp_path: Path, name: str
) -> None:
    folder = tiny.save(name, tmp_path / name, head=True)
    kind = TextBackbone if name in tiny.TEXT else ImageBackbone
    backbone = kind(local_source(folder))
    model, _ = backbone.load_trained()

    onnx.write_onnx(model, backbone.probes(), tmp_path / "model.onnx")

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    if name in tiny.TEXT:
        plain = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
        lengths = [(1, 3), (5, 9), (2, 30)]
        batches = [
            {"input_ids": torch.randint(5, 15, size), "attention_mask": torch.ones(size).long()} for size in lengths
        ]
        batches[1]["attention_mask"][0, 4:] = 0
    else:
        plain = transformers.AutoModelForImageClassification.from_pretrained(folder)
        side = backbone.probes()[0]["pixel_values"].shape[-1]
        batches = [{"pixel_values": torch.randn(rows, 3, side, side)} for rows in (1, 2, 5)]
    for batch in batches:
        (found,) = session.run(["logits"], {key: value.numpy() for key, value in batch.items()})
        with torch.no_grad():
            wanted = plain.eval()(**batch).logits.numpy()
        np.testing.assert_allclose(found, wanted, atol=1e-4 * max(1.0, float(np.abs(wanted).max())))


def test_texts_of_several_labels_through_a_pooled_head(cli: Cli, tmp_path: Path) -> None:
    backbone = tiny.save("bert", tmp_path / "backbone")
    lines = runs.write_texts(tmp_path / "texts.csv", 120).read_text().splitlines()[1:]
    texts = [line.rsplit(",", 1)[0] for line in lines]
    rows = [{"text": text, "label": [w for w in ("cat", "dog", "red") if w in text.split()]} for text in texts]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = write_recipe(tmp_path, backbone, data)
    cli.ok("run", recipe, "--out", "run", "--task", "multi_label", "--pooling", "mean", "--quiet")

    made = json.loads(cli.ok("export", "run", "--onnx", "--json"))

    assert made["rows"] == len(predictions(Path("run"))["row"])
    assert made["largest_difference"] < 1e-3
    assert made["before"] == pytest.approx(metrics(Path("run"))["eval"]["map"])
    asked = ["the cat sat", "the dog ran and the red cat too"]
    ours, theirs = hftl.load("run").predict(asked), hftl.load("run/onnx").predict(asked)
    assert [row["label"] for row in theirs] == [row["label"] for row in ours]
    for one, other in zip(ours, theirs, strict=True):
        assert other["scores"] == pytest.approx(one["scores"], abs=1e-4)
    # Not of stored features: it is the file that is asked.
    assert hftl.evaluate("run/onnx", str(data), quiet=True)["map"] == pytest.approx(
        hftl.evaluate("run", str(data), quiet=True)["map"], abs=1e-6
    )
    # In 8 bits a row's numbers would depend on its batch: each is what the file gives for it alone.
    small = hftl.to_onnx("run", int8=True, quiet=True)
    assert small.bytes < made["bytes"]
    (alone,), (beside, _) = (hftl.load(small.folder).predict(texts) for texts in (asked[:1], asked))
    assert alone["scores"] == beside["scores"]
    namespace = runs.card_example(Path("run/onnx"), {})
    assert namespace["logits"].shape == (1, 3)
    scores = np.exp(-np.logaddexp(0, -namespace["logits"][0]))
    (some,) = hftl.load("run").predict(["some text"])
    assert dict(zip(namespace["labels"], scores, strict=True)) == pytest.approx(some["scores"], abs=1e-4)


def test_pictures_after_lora_in_float32_and_in_8_bits(cli: Cli, tmp_path: Path) -> None:
    data = runs.write_images(tmp_path / "data")
    recipe = write_recipe(tmp_path, tiny.save("vit", tmp_path / "backbone"), data)
    cli.ok("run", recipe, "--out", "run", "--method", "lora", "--epochs", "1", "--quiet")

    said = cli.ok("export", "run", "--onnx")
    small = hftl.to_onnx("run", int8=True, quiet=True)

    assert re.search(r"^compared  \d+ test rows, logits at most \S+ apart$", said, re.MULTILINE)
    assert small.folder == Path("run/onnx-int8")
    assert small.change.low <= small.after - small.before <= small.change.high
    test = predictions(Path("run"))
    paths = [str(data / row) for row in test["row"]]
    found = hftl.load("run/onnx").predict(paths)
    np.testing.assert_allclose([list(row["scores"].values()) for row in found], test["scores"], atol=1e-4)
    decided = [row["label"] for row in hftl.load("run/onnx-int8").predict(paths)]
    assert np.mean([a == b for a, b in zip(decided, test["label"], strict=True)]) == pytest.approx(small.after)
    # What the card states is what this file was measured to do.
    assert f"| accuracy | {small.after:.4f} |" in Path("run/onnx-int8/README.md").read_text()
    Image.open(paths[0]).convert("RGB").save("photo.jpg")
    assert runs.card_example(Path("run/onnx"), {})["logits"].shape == (1, 3)


@pytest.fixture
def finished(cli: Cli, tmp_path: Path) -> Path:
    recipe = write_recipe(tmp_path, tiny.save("vit", tmp_path / "backbone"), runs.write_images(tmp_path / "data"))
    cli.ok("run", recipe, "--out", "run", "--quiet")
    return tmp_path / "run"


def test_what_cannot_be_exported_is_refused_and_nothing_is_left(
    cli: Cli, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "say which format" in cli.refused("export", finished)
    assert "no folder" in cli.refused("export", tmp_path / "nowhere", "--onnx")
    (tmp_path / "mine").mkdir()
    assert "is no ONNX folder" in cli.refused("export", finished, "--onnx", "--out", tmp_path / "mine")
    monkeypatch.setattr(onnx, "find_spec", lambda name: None if name == "onnxscript" else object())
    assert "pip install 'hftl[onnx]'" in cli.refused("export", finished, "--onnx")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)

    monkeypatch.setattr(convert, "TOLERANCE", 0.0)
    with pytest.raises(HftlError, match="does not give the model's logits"):
        hftl.to_onnx(finished, quiet=True)
    shutil.rmtree(tmp_path / "data" / "class0")
    with pytest.raises(UserError, match="other rows than when"):
        hftl.to_onnx(finished, quiet=True)
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(UserError):
        hftl.to_onnx(finished, quiet=True)
    assert not [path for path in finished.iterdir() if "onnx" in path.name]


def test_a_file_that_is_not_the_one_compared_is_refused(finished: Path) -> None:
    hftl.to_onnx(finished, quiet=True)
    file = finished / "onnx" / "model.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(BackboneError, match="is not the file that was exported"):
        hftl.load(finished / "onnx")
    (finished / "onnx" / "export.json").unlink()
    file.write_bytes(content[:1000])
    with pytest.raises(BackboneError, match="cannot be loaded"):
        hftl.load(finished / "onnx")
