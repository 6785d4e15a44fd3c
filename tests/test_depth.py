"""A backbone's first blocks as a model of its own: what comes out is the same standard class with fewer layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
import tiny
import torch
import transformers
from fake_plugins import Site
from PIL import Image
from runs import Cli
from safetensors import safe_open
from sentence_transformers import SentenceTransformer
from test_bare_backbone import PLUGIN
from torch import Tensor

import hftl
from hftl.backbones.cut.echo import Echo
from hftl.backbones.loading import load_backbone
from hftl.backbones.matching import data_for as data_of
from hftl.backbones.protocol import Target
from hftl.frozen.features import features_of
from hftl.frozen.view import View, open_space
from hftl.heads import cross_validate
from hftl.plugins.registry import find
from hftl.plugins.spec import BackboneOptions
from hftl.store.store import FeatureStore

FAST = hftl.Head(strengths=[1.0], folds=2, calibrate=False)
DEEP = {"num_hidden_layers": 4}
STAGES = {
    "swin": {"image_size": 64, "depths": [2, 1, 1], "num_heads": [2, 2, 2]},
    "convnext": {"hidden_sizes": [8, 16, 24], "depths": [1, 2, 1], "num_stages": 3},
    "resnet": {"hidden_sizes": [8, 16, 24], "depths": [1, 2, 1]},
}
IMAGES = ["vit", "deit", "dinov2", *STAGES]
TEXTS = ["bert", "roberta", "distilbert", "mpnet", "modernbert", "llama", "qwen3"]


def deeper(name: str) -> dict[str, Any]:
    """Options of a model with enough blocks to take some away."""
    if name == "distilbert":
        return {"n_layers": 4}
    return STAGES.get(name, DEEP)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a tiny checkpoint with more blocks than the usual two."""

    def write(name: str) -> Path:
        table = tiny.TEXT if name in tiny.TEXT else tiny.IMAGE
        monkeypatch.setitem(table, name, table[name] | deeper(name))
        return tiny.save(name, tmp_path / name)

    return write


def data_for(name: str, folder: Path) -> Path:
    return runs.write_texts(folder / "data.csv", 60) if name in tiny.TEXT else runs.write_images(folder / "data", 8)


def logits_of(model: Any, run: Path, data: Path) -> Tensor:
    """What a model of plain transformers says of the run's test rows, in the order of its predictions."""
    names = runs.predictions(run)["row"]
    if data.suffix == ".csv":
        texts = [line.rsplit(",", 1)[0] for line in data.read_text().splitlines()[1:]]
        rows = [texts[int(name.rpartition(" row ")[2]) - 1] for name in names]
        tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model")
        batches = [tokenizer([row], return_tensors="pt") for row in rows]
    else:
        processor = transformers.AutoImageProcessor.from_pretrained(run / "model")
        batches = [processor(images=Image.open(data / name), return_tensors="pt") for name in names]
    with torch.no_grad():
        return torch.cat([model(**batch) for batch in batches])


def exported(run: Path, kind: str) -> Any:
    auto = getattr(transformers, f"AutoModelFor{kind}Classification")
    return auto.from_pretrained(run / "model").eval()


def kind_of(name: str) -> str:
    return "Sequence" if name in tiny.TEXT else "Image"


def scores(run: Path) -> np.ndarray:
    """The run's own scores of the test rows."""
    return np.array(runs.predictions(run)["scores"])


@pytest.mark.parametrize("name", [*IMAGES, *TEXTS])
def test_an_export_of_a_depth_is_the_class_with_fewer_layers(name: str, checkpoint, tmp_path: Path) -> None:
    source, data = checkpoint(name), data_for(name, tmp_path)
    done = hftl.run(
        hftl.Recipe(backbone=str(source), data=str(data), method=FAST, depth=2), out=tmp_path / "run", quiet=True
    )
    assert done is not None
    whole = transformers.AutoModel.from_pretrained(source)
    model = exported(done.folder, kind_of(name))
    assert len(blocks_of(model)) == 2
    assert len(blocks_of(whole)) == (3 if name in STAGES else 4)
    logits = logits_of(lambda **batch: model(**batch).logits, done.folder, data)
    np.testing.assert_allclose(logits.softmax(1).numpy(), scores(done.folder), atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "mpnet"])
def test_a_sentence_encoder_of_a_depth_gives_the_runs_scores(name: str, checkpoint, tmp_path: Path) -> None:
    source, data = checkpoint(name), data_for(name, tmp_path)
    head = FAST.model_copy(update={"pooling": "mean"})
    done = hftl.run(
        hftl.Recipe(backbone=str(source), data=str(data), method=head, depth=2), out=tmp_path / "run", quiet=True
    )
    assert done is not None
    encoder = SentenceTransformer(str(done.folder / "model"), device="cpu")
    assert len(blocks_of(encoder)) == 2
    texts = [line.rsplit(",", 1)[0] for line in data.read_text().splitlines()[1:]]
    rows = [texts[int(row.rpartition(" row ")[2]) - 1] for row in runs.predictions(done.folder)["row"]]
    np.testing.assert_allclose(
        torch.from_numpy(encoder.encode(rows)).softmax(1).numpy(), scores(done.folder), atol=1e-5
    )
    # The body is a standard checkpoint of its class, too.
    assert len(blocks_of(transformers.AutoModel.from_pretrained(done.folder / "model"))) == 2


def recipe(folder: Path, source: Path, data: Path) -> Path:
    file = folder / "small.py"
    file.write_text(
        "from hftl import Head, Recipe, recipe\n\n@recipe\ndef small() -> Recipe:\n"
        f"    return Recipe(backbone={str(source)!r}, data={str(data)!r}, method=Head(strengths=[1.0], folds=2))\n"
    )
    return file


def blocks_of(model: Any) -> Any:
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) > 1]
    return lists[0]


@pytest.mark.parametrize("name", ["vit", "bert", "llama"])
def test_a_depth_is_what_the_whole_model_computes_up_to_there(name: str, checkpoint, tmp_path: Path) -> None:
    source, data = checkpoint(name), data_for(name, tmp_path)
    done = hftl.run(
        hftl.Recipe(backbone=str(source), data=str(data), method=FAST, depth=3), out=tmp_path / "run", quiet=True
    )
    assert done is not None
    whole = transformers.AutoModel.from_pretrained(source).eval()
    model = exported(done.folder, kind_of(name))

    def by_hand(**batch: Tensor) -> Tensor:
        # The last hidden state of a decoder is normalised already, those before it are not.
        state = whole(**batch, output_hidden_states=True).hidden_states[3]
        if name == "vit":
            return model.classifier(whole.layernorm(state)[:, 0])
        if name == "bert":
            return model.classifier(whole.pooler(state))
        return model.score(whole.norm(state)[:, -1])

    logits = logits_of(by_hand, done.folder, data)
    np.testing.assert_allclose(logits.softmax(1).numpy(), scores(done.folder), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("bert", hftl.LoRA(r=2, epochs=1)),
        ("vit", hftl.Full(epochs=1)),
        ("llama", hftl.Partial(epochs=1, freeze=1)),
        ("swin", hftl.Full(epochs=1)),
    ],
)
def test_every_method_trains_at_a_depth(name: str, method: Any, checkpoint, tmp_path: Path) -> None:
    source, data = checkpoint(name), data_for(name, tmp_path)
    done = hftl.run(
        hftl.Recipe(backbone=str(source), data=str(data), method=method, depth=2), out=tmp_path / "run", quiet=True
    )
    assert done is not None
    model = exported(done.folder, kind_of(name))
    assert len(blocks_of(model)) == 2
    logits = logits_of(lambda **batch: model(**batch).logits, done.folder, data)
    np.testing.assert_allclose(logits.softmax(1).numpy(), scores(done.folder), atol=1e-5)
    if name == "bert":
        card = (done.folder / "adapter" / "README.md").read_text()
        assert "num_hidden_layers=2," in card
    if name == "llama":
        before, after = transformers.AutoModel.from_pretrained(source).state_dict(), model.model.state_dict()
        changed = {key for key in after if not torch.equal(before[key], after[key])}
        assert "embed_tokens.weight" not in changed
        assert {key.split(".")[1] for key in changed if key.startswith("layers.")} == {"1"}


def test_the_export_has_no_tensor_of_a_block_that_is_gone(checkpoint, tmp_path: Path, cli: Cli) -> None:
    source, data = checkpoint("bert"), data_for("bert", tmp_path)
    made = recipe(tmp_path, source, data)
    cli.ok("run", made, "--depth", "2", "--out", "native")
    cli.ok("run", made, "--depth", "2", "--out", "pooled", "--pooling", "mean")
    for run in ("native", "pooled"):
        with safe_open(Path(run, "model", "model.safetensors"), "pt") as opened:
            numbers = {name.partition("layer.")[2].partition(".")[0] for name in opened.keys() if "layer." in name}  # noqa: SIM118
        assert numbers == {"0", "1"}
        assert json.loads(Path(run, "model", "config.json").read_text())["num_hidden_layers"] == 2


def test_a_run_at_a_depth_is_told_asked_and_done_again(checkpoint, tmp_path: Path, cli: Cli) -> None:
    source, data = checkpoint("bert"), data_for("bert", tmp_path)
    said = cli.ok("run", recipe(tmp_path, source, data), "--depth", "2", "--out", "one")
    assert "the first 2 of 4 blocks" in said
    record = json.loads(Path("one/recipe.json").read_text())
    assert record["recipe"]["depth"] == 2
    assert record["backbone"]["identity"]["depth"] == {"blocks": 2, "of": 4, "config": {"num_hidden_layers": 2}}
    assert "from the first 2 of the 4 blocks of bert" in Path("one/model/README.md").read_text()
    cli.ok("run", "one/recipe.json", "--out", "two")
    one, two = runs.metrics(Path("one")), runs.metrics(Path("two"))
    assert two["features"]["computed"] == 0
    assert one["features"]["space"] == two["features"]["space"]
    assert one["eval"] == two["eval"]
    # Evaluating on rows that are stored reads them, and predicting asks the small model.
    assert "computed" not in cli.ok("evaluate", "one", "--data", data)
    assert cli.ok("predict", "one", "the red cat sat under the tree").strip()
    cli.ok("features", "one", "--depth", "3", "--quiet")


def space_id(source: Path, store: Path, depth: int | None) -> str:
    spec = find(str(source))
    backbone = load_backbone(spec, BackboneOptions(), depth)
    return open_space(FeatureStore(store), backbone, spec.origin, View()).id


def test_a_depth_names_its_own_space_and_the_full_depth_the_ordinary_one(checkpoint, tmp_path: Path) -> None:
    for name in ("vit", "swin"):
        source = checkpoint(name)
        blocks = 4 if name == "vit" else 3
        ids = [space_id(source, tmp_path, depth) for depth in [*range(1, blocks + 1), None]]
        assert ids[-1] == ids[-2]
        assert len(set(ids)) == blocks


def test_a_stage_model_ends_in_a_norm_that_does_nothing(checkpoint, tmp_path: Path) -> None:
    source = checkpoint("swin")
    backbone = load_backbone(find(str(source)), BackboneOptions(), 2)
    target = Target(backbone, backbone.config("single_label", ["a", "b"]))
    model, head = target.build()
    assert head == {"classifier.weight", "classifier.bias"}
    assert target.config.hidden_size == model.classifier.in_features == 32
    assert bool((model.swin.layernorm.weight == 1).all())
    assert bool((model.swin.layernorm.bias == 0).all())


def test_what_has_no_such_depth_is_refused_in_one_line(checkpoint, tmp_path: Path, cli: Cli) -> None:
    data = data_for("bert", tmp_path)

    def refused(name: str, depth: str) -> str:
        return cli.refused("run", recipe(tmp_path, tmp_path / name, data), "--depth", depth)

    checkpoint("bert")
    assert "depth=9: bert has 4 blocks; give 1 to 4" in refused("bert", "9")
    assert "depth" in refused("bert", "0")
    assert "depth" in refused("bert", "deep")
    tiny.save("bart", tmp_path / "bart")
    assert "has 2 lists of blocks" in refused("bart", "1")
    tiny.save("efficientnet", tmp_path / "efficientnet")
    data = data_for("vit", tmp_path)
    assert "its class cannot express it" in refused("efficientnet", "2")


def test_a_backbone_without_depths_is_refused(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.install("stripes", PLUGIN)
    runs.write_images(tmp_path / "data")
    done = site.hftl("run", recipe(tmp_path, Path("stripes"), tmp_path / "data"), "--depth", "1")
    assert done.returncode == 2
    assert "stripes is a Stripes, which offers no depths" in done.stderr


# ── all depths from one pass ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [*IMAGES, *TEXTS])
def test_one_pass_stores_what_runs_at_each_depth_read(name: str, checkpoint, tmp_path: Path, monkeypatch) -> None:
    source, data = checkpoint(name), data_for(name, tmp_path)
    blocks = 3 if name in STAGES else 4
    spec = find(str(source))
    backbone = load_backbone(spec, BackboneOptions())
    read = data_of(backbone, str(data))
    target = Target(backbone, backbone.config(read.task, read.label_names))
    poolings = ("native", "mean") if name in TEXTS else ("native",)
    views = [View(pooling, depth=depth) for depth in range(1, blocks + 1) for pooling in poolings]
    features_of(FeatureStore(tmp_path / "shared"), target, spec.origin, read, views, quiet=True)
    for view in views:
        short = target.at_depth(view.depth)
        own = View(view.pooling)
        stored = features_of(FeatureStore(tmp_path / "shared"), short, spec.origin, read, [own], quiet=True)
        alone = features_of(FeatureStore(tmp_path / "alone"), short, spec.origin, read, [own], quiet=True)
        assert stored.counts["computed"] == 0
        assert alone.counts["computed"] > 0
        assert stored.content == alone.content
        assert stored.id == alone.id
        for split in stored.splits:
            for column, value in stored.splits[split].columns.items():
                expected = values(alone.splits[split].columns[column])
                torch.testing.assert_close(values(value), expected, atol=1e-5, rtol=1e-5)


def values(column: Any) -> Tensor:
    return column if isinstance(column, Tensor) else column.values


# ── which depth ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_layers_probes_every_depth_and_a_run_computes_nothing_again(checkpoint, tmp_path: Path, cli: Cli) -> None:
    source, data = checkpoint("bert"), data_for("bert", tmp_path)
    made = recipe(tmp_path, source, data)
    answer = json.loads(cli.ok("layers", made, "--json"))
    assert [each["depth"] for each in answer["depths"]] == [1, 2, 3, 4]
    for each in answer["depths"]:
        assert 0 <= each["probe"]["low"] <= each["probe"]["value"] <= each["probe"]["high"] <= 1
    assert set(answer["pooled"]) == {"mean", "cls"}
    parameters = [each["parameters"] for each in answer["depths"]]
    assert parameters == sorted(set(parameters))
    same = [each["depth"] for each in answer["depths"] if each["same"]]
    value = {each["depth"]: each["probe"]["value"] for each in answer["depths"]}
    assert answer["chosen"] == min(depth for depth in same if value[depth] >= value[answer["best"]] - 0.005)
    assert answer["best"] in same
    for depth in (1, 3, 4):
        cli.ok("run", made, "--depth", str(depth), "--out", str(depth))
        assert runs.metrics(Path(str(depth)))["features"]["computed"] == 0
    cli.ok("run", made, "--depth", "2", "--pooling", "mean", "--out", "pooled")
    assert runs.metrics(Path("pooled"))["features"]["computed"] == 0
    table = cli.ok("layers", made)
    assert "chosen" in table
    assert f"--depth {answer['chosen']}" in table


def test_the_probe_of_a_depth_is_that_of_its_own_features(checkpoint, tmp_path: Path) -> None:
    source, data = checkpoint("vit"), data_for("vit", tmp_path)
    made = hftl.Recipe(backbone=str(source), data=str(data), method=FAST)
    answer = hftl.layers(made, quiet=True)
    for each in answer.depths:
        alone = hftl.rank(made.model_copy(update={"depth": each.depth}), [str(source)], quiet=True)
        assert alone.backbones[0].probe == each.probe


def test_depths_side_by_side_are_one_head_on_all_their_features(checkpoint, tmp_path: Path, cli: Cli) -> None:
    source, data = checkpoint("vit"), data_for("vit", tmp_path)
    made = hftl.Recipe(backbone=str(source), data=str(data), method=FAST)
    side = hftl.layers(made, together=[4, 2], quiet=True).together
    assert side is not None
    assert side.depths == [2, 4]
    parts = [hftl.features(made.model_copy(update={"depth": d}), quiet=True).of("train") for d in (2, 4)]
    features = torch.from_numpy(np.concatenate([part[0] for part in parts], axis=1))
    labels = torch.from_numpy(parts[0][1])
    held = cross_validate(features, labels, task=hftl.Task.SINGLE_LABEL, num_labels=int(labels.max()) + 1)
    right = held.logits.argmax(1) == labels[held.rows]
    assert side.probe.value == pytest.approx(float(right.double().mean()))
    file = recipe(tmp_path, source, data)
    assert "side by side" in cli.ok("layers", file, "--layers", "1,3")
    assert "has the depths 1 to 4" in cli.refused("layers", file, "--layers", "1,9")
    assert "such as 4,8,12" in cli.refused("layers", file, "--layers", "a")


def test_auto_takes_a_depth_says_why_and_records_the_number(checkpoint, tmp_path: Path, cli: Cli) -> None:
    source, data = checkpoint("bert"), data_for("bert", tmp_path)
    made = recipe(tmp_path, source, data)
    said = cli.ok("run", made, "--depth", "auto", "--out", "auto")
    chosen = json.loads(cli.ok("layers", made, "--json"))["chosen"]
    assert f"depth     Depth {chosen} of 4" in said
    assert json.loads(Path("auto/recipe.json").read_text())["recipe"]["depth"] == chosen
    assert json.loads(Path("auto/model/config.json").read_text())["num_hidden_layers"] == chosen
    assert runs.metrics(Path("auto"))["features"]["computed"] == 0
    assert "give a number" in cli.refused("features", made, "--depth", "auto")


def test_an_echo_that_is_not_the_depths_own_pass_stores_nothing(checkpoint, tmp_path: Path, monkeypatch) -> None:
    source, data = checkpoint("vit"), data_for("vit", tmp_path)
    spec = find(str(source))
    backbone = load_backbone(spec, BackboneOptions())
    read = data_of(backbone, str(data))
    target = Target(backbone, backbone.config(read.task, read.label_names))
    honest = Echo._outputs

    def wrong(self: Echo) -> dict[str, Any]:
        return {name: value + 0.1 * torch.randn_like(value) for name, value in honest(self).items()}

    monkeypatch.setattr(Echo, "_outputs", wrong)
    store = FeatureStore(tmp_path / "store")
    with pytest.raises(hftl.CutError, match="differs from its own"):
        features_of(store, target, spec.origin, read, [View(depth=2)], quiet=True)
    assert not list((tmp_path / "store").rglob("*.safetensors"))
