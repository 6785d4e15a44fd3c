"""Cached features stand in for the frozen part of a model exactly, whatever its architecture."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

from hftl.backbones import hftl_resolve_backbone
from hftl.backbones.cut.capture import Capture
from hftl.backbones.cut.cut import Cut
from hftl.backbones.cut.replay import replaying
from hftl.backbones.cut.search import find_cut, prove
from hftl.errors import CutError
from hftl.plugins.spec import BackboneOptions

LINEAR = {
    *("bert", "falcon", "gpt2", "llama", "qwen3", "gemma", "gemma3_text", "mistral"),
    *("vit", "deit", "dinov2", "beit", "swin", "convnext", "resnet", "mobilenet_v2", "mobilevit", "efficientnet"),
    *("clip", "siglip"),
}
LABELS = ["x", "y", "z"]


def _backbone(name: str, folder: Path, **options):
    spec = hftl_resolve_backbone(str(tiny.save(name, folder, **options)))
    assert spec is not None
    return spec.load(BackboneOptions())


CHECKPOINTS = [(name, head) for name in (*tiny.TEXT, *tiny.IMAGE) for head in (False, True)]
# Only its classification class tells the distilled DeiT from the other.
CHECKPOINTS.remove(("deit-distilled", False))


@pytest.mark.parametrize(("name", "head"), CHECKPOINTS, ids=[f"{n}-{'head' if h else 'base'}" for n, h in CHECKPOINTS])
def test_replayed_logits_are_the_models(name: str, head: bool, tmp_path: Path):
    backbone = _backbone(name, tmp_path, head=head)
    model, trainable = backbone.build(backbone.config("single_label", LABELS))
    probes = backbone.probes()
    cut = Cut.from_json(json.loads(json.dumps(asdict(find_cut(model, trainable, probes)))))
    assert (cut.kind == "linear") == (name in LINEAR)
    # Another head than the one the cut was found with, and other rows.
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name in trainable:
                parameter.normal_(generator=torch.Generator().manual_seed(7))
    for batch in probes:
        flipped = {key: value.flip(0) for key, value in batch.items()}
        with torch.no_grad():
            expected = model(**flipped).logits
        kept = Capture(model, [cut])(flipped)[0]
        if cut.kind == "linear":
            linear = model.get_submodule(cut.linear)
            actual = nn.functional.linear(kept["features"], linear.weight, linear.bias)
        else:
            with replaying(model, cut) as replay, torch.no_grad():
                actual = replay(kept)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["roberta", "xlnet", "bart", "modernbert-mean", "deberta-v2"])
def test_the_replay_needs_no_frozen_weights(name: str, tmp_path: Path):
    backbone = _backbone(name, tmp_path)
    config = backbone.config("single_label", LABELS)
    model, trainable = backbone.build(config)
    batch = backbone.probes()[0]
    cut = find_cut(model, trainable, [batch])
    with torch.no_grad():
        expected = model(**batch).logits
    kept = Capture(model, [cut])(batch)[0]
    head = {key: value.detach() for key, value in model.named_parameters() if key in trainable}
    skeleton = backbone.skeleton(config)
    # A class may allocate some tensors in its own way; none holds the checkpoint's weights.
    assert any(parameter.is_meta for parameter in skeleton.parameters())
    with replaying(skeleton, cut) as replay, torch.no_grad():
        actual = replay(kept, head)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_what_is_kept_is_small(tmp_path: Path):
    widths = {"bert": 32, "llama": 32, "dinov2": 64, "resnet": 16}
    for name, width in widths.items():
        backbone = _backbone(name, tmp_path / name)
        model, trainable = backbone.build(backbone.config("single_label", LABELS))
        assert find_cut(model, trainable, backbone.probes()).kept() == {"features": ("float32", [width])}
    backbone = _backbone("roberta", tmp_path / "roberta")
    model, trainable = backbone.build(backbone.config("single_label", LABELS))
    assert find_cut(model, trainable, backbone.probes()).kept()["roberta.0"] == ("float32", [1, 32])


class Output:
    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


class Leaky(nn.Module):
    """A model whose logits depend on its input beside the frozen body: no cached feature can know that."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.head = nn.Sequential(nn.Linear(8, 3), nn.Tanh())

    def forward(self, pixel_values: torch.Tensor) -> Output:
        return Output(self.head(self.body(pixel_values)) * pixel_values.sum(1, keepdim=True))


def test_a_model_that_cannot_be_cut_is_refused():
    model = Leaky().eval()
    head = {name for name, _ in model.named_parameters() if name.startswith("head")}
    probes = [{"pixel_values": torch.randn(4, 4, generator=torch.Generator().manual_seed(0))}]
    with pytest.raises(CutError, match="Leaky cannot be cached exactly"):
        find_cut(model, head, probes)


def test_a_wrong_cut_does_not_pass_the_proof(tmp_path: Path):
    backbone = _backbone("vit", tmp_path)
    model, trainable = backbone.build(backbone.config("single_label", LABELS))
    probes = backbone.probes()
    cut = find_cut(model, trainable, probes)
    # The forward of a model that puts something between its head and its logits.
    model.register_forward_hook(lambda module, args, output: Output(output.logits * 1.01))
    with pytest.raises(CutError, match="differ"):
        prove(model, cut, probes)


def test_no_architecture_is_named_in_the_code():
    source = "\n".join(path.read_text().lower() for path in Path("hftl/backbones").rglob("[!_]*.py"))
    source += "\n".join(path.read_text().lower() for path in Path("hftl/frozen").glob("*.py"))
    names = {name.split("-")[0] for name in (*tiny.TEXT, *tiny.IMAGE)} - {"clip"}
    assert not [name for name in sorted(names) if f"{name}for" in source or f'"{name}"' in source]
