"""Extraction: what names a space, what is computed and what is not, and what other tools are handed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import runs
import tiny
import torch
import transformers
from PIL import Image
from runs import Cli, metrics
from safetensors import safe_open
from test_run import write_recipe

from hftl import Head, Recipe, features
from hftl.backbones import hftl_resolve_backbone
from hftl.backbones.cut.capture import Capture
from hftl.frozen import extract as extraction
from hftl.frozen import view
from hftl.frozen.budget import RAMP_ROWS, Ramp, ramp_for, remember
from hftl.frozen.view import View, open_space
from hftl.plugins.spec import BackboneOptions
from hftl.store.store import FeatureStore


def space_of(folder: Path, tmp_path: Path, **changes) -> str:
    options = {"pooling": "native", "precision": "no", "plugin": {"name": "hftl", "version": "1"}} | changes
    backbone = load(folder, max_length=options.pop("max_length", None))
    backbone.commit = options.pop("commit", None)
    backbone.name = options.pop("name", backbone.name)
    asked = View(options["pooling"], options["precision"])
    return open_space(FeatureStore(tmp_path / "store"), backbone, options["plugin"], asked).id


def load(folder: Path, max_length: int | None = None):
    spec = hftl_resolve_backbone(str(folder))
    assert spec is not None
    return spec.load(BackboneOptions(max_length=max_length))


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_each_input_alone_names_another_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    image, text = tiny.save("vit", tmp_path / "image"), tiny.save("bert", tmp_path / "text")
    ids = [space_of(image, tmp_path), space_of(text, tmp_path)]
    changes = (
        {"pooling": "mean"},
        {"pooling": "cls"},
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"plugin": {"name": "other", "version": "1"}},
        {"plugin": {"name": "hftl", "version": "2"}},
        {"commit": "a" * 40, "name": "user/model"},
        {"commit": "b" * 40, "name": "user/model"},
        {"commit": "a" * 40, "name": "user/other"},
    )
    ids += [space_of(image, tmp_path, **change) for change in changes]
    ids.append(space_of(text, tmp_path, max_length=7))
    for name, value in (
        ("image_mean", [0.1, 0.2, 0.3]),
        ("image_std", [0.1, 0.2, 0.3]),
        ("resample", 3),
        ("do_normalize", False),
        ("rescale_factor", 0.5),
        ("size", {"height": 30, "width": 32}),
    ):
        kept = (image / "preprocessor_config.json").read_text()
        edit(image / "preprocessor_config.json", **{name: value})
        ids.append(space_of(image, tmp_path))
        (image / "preprocessor_config.json").write_text(kept)
    for name, value in (("layer_norm_eps", 0.1), ("hidden_act", "relu")):
        kept = (image / "config.json").read_text()
        edit(image / "config.json", **{name: value})
        ids.append(space_of(image, tmp_path))
        (image / "config.json").write_text(kept)
    for name, value in (("padding_side", "left"), ("truncation_side", "left"), ("model_max_length", 9)):
        kept = (text / "tokenizer_config.json").read_text()
        edit(text / "tokenizer_config.json", **{name: value})
        ids.append(space_of(text, tmp_path))
        (text / "tokenizer_config.json").write_text(kept)
    vocabulary = (text / "tokenizer.json").read_text()
    (text / "tokenizer.json").write_text(vocabulary.replace('"cat"', '"car"'))
    ids.append(space_of(text, tmp_path))
    ids.append(space_of(tiny.save("vit", tmp_path / "other", seed=1), tmp_path))
    monkeypatch.setattr(view, "EXTRACTOR_VERSION", 99)
    ids.append(space_of(image, tmp_path))
    assert len(ids) == len(set(ids)) >= 25


def test_what_cannot_change_a_feature_names_the_same_space(tmp_path: Path):
    image = tiny.save("vit", tmp_path / "image")
    before = space_of(image, tmp_path)
    edit(image / "config.json", id2label={"0": "cat"}, label2id={"cat": 0}, _name_or_path="x", transformers_version="0")
    assert space_of(image, tmp_path) == before
    image.rename(tmp_path / "renamed")
    assert space_of(tmp_path / "renamed", tmp_path) == before


def test_one_percent_of_new_rows_computes_one_percent(cli: Cli, tmp_path: Path):
    backbone = tiny.save("bert", tmp_path / "backbone")
    lines = [
        f"{a} {b} {c},{label}" for label, a in enumerate(["cat", "dog"]) for b in tiny.WORDS for c in tiny.WORDS[:8]
    ]
    (tmp_path / "data.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    recipe = write_recipe(tmp_path, backbone, tmp_path / "data.csv")
    cli.ok("run", recipe, "--out", "one")
    assert metrics(Path("one"))["features"]["computed"] == 400
    lines += [f"bird sat under {word},{i % 2}" for i, word in enumerate(["hill", "tree", "rug", "mat"])]
    # New rows and a new order: what is known is known by its content.
    (tmp_path / "data.csv").write_text("text,label\n" + "\n".join(reversed(lines)) + "\n")
    cli.ok("run", recipe, "--out", "two")
    assert metrics(Path("two"))["features"]["computed"] == 4
    assert metrics(Path("two"))["features"]["reused"] == 400


def test_features_are_what_transformers_computes(tmp_path: Path):
    backbone = tiny.save("bert", tmp_path / "backbone")
    data = runs.write_texts(tmp_path / "data.csv", 60)
    texts = [line.rsplit(",", 1)[0] for line in data.read_text().splitlines()[1:]]
    model = transformers.AutoModel.from_pretrained(backbone).eval()
    batch = transformers.AutoTokenizer.from_pretrained(backbone)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**batch)
    weights = batch["attention_mask"][..., None].float()
    expected = {
        "native": output.pooler_output,
        "cls": output.last_hidden_state[:, 0],
        "mean": (output.last_hidden_state * weights).sum(1) / weights.sum(1),
    }
    for pooling, reference in expected.items():
        recipe = Recipe(backbone=str(backbone), data=str(data), method=Head(pooling=pooling))
        matrix = features(recipe, quiet=True)
        order = [int(name.split(" row ")[1]) - 1 for name in matrix.row_names]
        torch.testing.assert_close(torch.from_numpy(matrix.matrix), reference[order], atol=1e-5, rtol=1e-5)
        assert sorted(order) == list(range(60))


def test_several_poolings_come_from_one_pass(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    backbone = tiny.save("bert", tmp_path / "backbone")
    recipe = write_recipe(tmp_path, backbone, runs.write_texts(tmp_path / "data.csv", 100))
    passes = []
    call = Capture.__call__
    monkeypatch.setattr(Capture, "__call__", lambda self, batch: passes.append(len(self.cuts)) or call(self, batch))
    cli.ok("features", recipe, "--pooling", "mean,native,cls", "--quiet")
    assert passes.count(3) > 0
    passes.clear()
    for pooling in ("native", "mean", "cls"):
        cli.ok("features", recipe, "--pooling", pooling, "--quiet")
    assert passes == []
    assert "native, mean, cls, cls+mean" in cli.refused("features", recipe, "--pooling", "max")


def test_the_matrix_is_handed_to_other_tools(cli: Cli, tmp_path: Path):
    backbone = tiny.save("vit", tmp_path / "backbone")
    recipe = write_recipe(tmp_path, backbone, runs.write_images(tmp_path / "data"))
    for name in ("matrix.parquet", "matrix.safetensors", "matrix.npy"):
        assert "18 × 32" in cli.ok("features", recipe, "--export", name)
    table = pq.read_table("matrix.parquet")
    features = np.array(table["features"].to_pylist(), dtype=np.float32)
    with safe_open("matrix.safetensors", "np") as opened:
        np.testing.assert_array_equal(opened.get_tensor("features"), features)
        np.testing.assert_array_equal(opened.get_tensor("labels"), table["label"].to_numpy())
        assert json.loads(opened.metadata()["rows"]) == table["row"].to_pylist()
    np.testing.assert_array_equal(np.load("matrix.npy"), features)
    beside = json.loads(Path("matrix.json").read_text())
    assert beside["label_names"] == ["class0", "class1", "class2"]
    assert [f"class{label}" for label in beside["labels"]] == [row.split("/")[0] for row in beside["rows"]]
    assert ".parquet" in cli.refused("features", recipe, "--export", "matrix.xls")


def test_a_feature_that_is_not_finite_is_named_and_not_stored(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    backbone = tiny.save("vit", tmp_path / "backbone")
    recipe = write_recipe(tmp_path, backbone, runs.write_images(tmp_path / "data"))
    call = Capture.__call__

    def overflowing(self, batch):
        kept = call(self, batch)
        if len(batch["pixel_values"]) > 2:  # the probes are fewer
            kept[0]["features"][1, 0] = float("inf")
        return kept

    with monkeypatch.context() as patched:
        patched.setattr(Capture, "__call__", overflowing)
        cli.ok("run", recipe, "--out", "skipped", "--on-bad-row", "skip")
        (bad,) = json.loads(Path("skipped/skipped.json").read_text())
        monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "another"))
        assert cli("run", recipe, "--out", "run") == 1
        assert bad["row"] in cli.err
        assert "Traceback" not in cli.err
    assert json.loads(cli.ok("cache", "ls", "--json"))[0]["rows"] == 17, "the good rows are kept"
    cli.ok("run", recipe, "--out", "healed")
    assert metrics(Path("healed"))["features"]["computed"] == 1


def test_a_model_of_damaged_weights_is_refused(cli: Cli, tmp_path: Path):
    backbone = tiny.save("vit", tmp_path / "backbone")
    recipe = write_recipe(tmp_path, backbone, runs.write_images(tmp_path / "data"))
    model = transformers.AutoModel.from_pretrained(backbone)
    model.layernorm.weight.data[0] = float("inf")
    model.save_pretrained(backbone)
    assert "NaN or infinite" in cli.refused("run", recipe, "--out", "run")


def test_a_batch_that_does_not_fit_is_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    backbone = tiny.save("vit", tmp_path / "backbone")
    recipe = Recipe(backbone=str(backbone), data=str(runs.write_images(tmp_path / "data")))
    expected = torch.from_numpy(features(recipe, quiet=True).matrix)
    call, sizes = Capture.__call__, []

    def small_device(self, batch):
        sizes.append(len(batch["pixel_values"]))
        if sizes[-1] > 5:
            raise torch.OutOfMemoryError("no memory")
        return call(self, batch)

    monkeypatch.setattr(Capture, "__call__", small_device)
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "another"))
    torch.testing.assert_close(torch.from_numpy(features(recipe, quiet=True).matrix), expected, atol=1e-5, rtol=1e-5)
    assert max(sizes) > 5


def test_half_precision_is_another_space(cli: Cli, tmp_path: Path):
    backbone = tiny.save("vit", tmp_path / "backbone")
    recipe = write_recipe(tmp_path, backbone, runs.write_images(tmp_path / "data"))
    cli.ok("features", recipe, "--export", "full.npy")
    cli.ok("features", recipe, "--export", "half.npy", "--mixed-precision", "bf16")
    full, half = np.load("full.npy"), np.load("half.npy")
    assert 0 < np.abs(full - half).max() < 0.1
    assert len(json.loads(cli.ok("cache", "ls", "--json"))) == 2


def test_progress_in_a_log_file(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    from hftl import progress

    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(progress, "SHOWN_AFTER", 0.0)
    with progress.Progress("features", 3) as bar:
        for _ in range(3):
            bar.advance(1)
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines[:2]] == ["features: 1 of 3 rows", "features: 2 of 3 rows"]
    assert lines[2].startswith("features: 3 rows in")
    assert not any("\x1b" in line or "\r" in line for line in lines)
    with progress.Progress("features", 3, quiet=True) as bar:
        bar.advance(3)
    assert capfd.readouterr().err == ""


def climb(ramp: Ramp, rate: dict[int, float]) -> list[int]:
    """Budgets that a ramp uses on a device that computes at these rates."""
    used = []
    while not ramp.settled:
        used.append(ramp.budget)
        ramp.saw(ramp.budget, ramp.budget / rate[ramp.budget])
        assert len(used) < 10_000
    return sorted(set(used))


def test_the_ramp_stops_where_larger_batches_gain_nothing(tmp_path: Path):
    ramp = Ramp([1, 2, 4, 8, 16])
    assert climb(ramp, {1: 10, 2: 19, 4: 30, 8: 30.1, 16: 99}) == [1, 2, 4, 8]
    assert ramp.budget == 4
    remember(ramp, "gpu", tmp_path / "batches.json")
    again = ramp_for(torch.device("cuda"), by_tokens=False, key="gpu", memory=tmp_path / "batches.json")
    assert (again.settled, again.budget) == (True, 4)
    other = ramp_for(torch.device("cuda"), by_tokens=False, key="other", memory=tmp_path / "batches.json")
    assert list(other.steps) == list(RAMP_ROWS)
    (tmp_path / "batches.json").write_text("{rubbish")
    assert not ramp_for(torch.device("cuda"), by_tokens=False, key="gpu", memory=tmp_path / "batches.json").settled


def test_the_ramp_comes_down_where_memory_ends():
    ramp = Ramp([32, 64, 128, 256])
    climb_to = {32: 10.0, 64: 20.0}
    for _ in range(100):
        if ramp.budget == 128:
            break
        ramp.saw(ramp.budget, ramp.budget / climb_to[ramp.budget])
    ramp.too_large(128)
    assert ramp.settled
    assert ramp.budget == 64


def test_a_cpu_has_a_fixed_batch(tmp_path: Path):
    for by_tokens in (True, False):
        assert ramp_for(torch.device("cpu"), by_tokens=by_tokens, key="x", memory=tmp_path / "none").settled


def test_a_read_only_store_is_used(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    backbone = tiny.save("vit", tmp_path / "backbone")
    recipe = write_recipe(tmp_path, backbone, runs.write_images(tmp_path / "data"))
    cli.ok("run", recipe, "--out", "first")
    cache = tmp_path / "hftl-cache"
    for path in (*cache.rglob("*"), cache):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        cli.ok("run", recipe, "--out", "second")
        assert metrics(Path("second"))["features"]["computed"] == 0
    finally:
        for path in (cache, *cache.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_an_image_that_vanishes_while_it_is_read(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    backbone = tiny.save("vit", tmp_path / "backbone")
    data = runs.write_images(tmp_path / "data")
    recipe = write_recipe(tmp_path, backbone, data)
    image = data / "class0" / "0.png"
    digest = extraction.digest_rows

    def and_then_gone(inputs, index):
        found = digest(inputs, index)
        image.unlink(missing_ok=True)
        return found

    monkeypatch.setattr("hftl.frozen.features.digest_rows", and_then_gone)
    assert "class0/0.png" in cli.refused("run", recipe, "--out", "run")
    Image.new("RGB", (4, 4)).save(image)
