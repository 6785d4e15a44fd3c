"""What cannot end well is refused before a feature is computed, in one line that helps."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from finetune import small
from peft import PeftModel
from runs import Cli, write_images
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, ViTForImageClassification

from hftl.backbones.protocol import Target
from hftl.errors import BackboneError, RecipeError, UserError
from hftl.finetune.feasible import check, check_space
from hftl.finetune.lora import add_lora, check_targets, save_adapter
from hftl.finetune.train import build, finetune
from hftl.methods import Full, LoRA, Partial
from hftl.store.store import cache_root


@pytest.fixture
def run(cli: Cli, tmp_path: Path) -> list[str]:
    """The arguments of a run on pictures, whose features were never computed."""
    small.image_backbone(tmp_path / "base")
    write_images(tmp_path / "pictures", 6)
    return ["run", "--backbone", str(tmp_path / "base"), "--data", str(tmp_path / "pictures"), "--out", "out"]


TARGETS = 'method.lora.target_modules=["q_proj","v_porj"]'


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--track", "paper"], "--track 'paper': hftl logs to tensorboard, trackio, wandb, mlflow"),
        (["--mixed-precision", "fp16"], "fp16 trains on GPUs only"),
        (["--method", "partial", "--freeze", "7"], "has 2 blocks"),
        (["--method", "lora", "--set", TARGETS], "no module 'v_porj' (did you mean 'v_proj'"),
        (["--method", "lora", "--set", 'method.lora={"rank":3}'], "method.lora: "),
        (["--epochs", "10000000", "--keep", "10000000"], "10,000,000 checkpoints of"),
        (["--method", "head", "--resume"], "method=head has no checkpoints: run the same command without --resume"),
        (["--method", "head", "--track", "tensorboard"], "--track logs the steps of fine-tuning"),
    ],
    ids=["tracker", "precision", "blocks", "targets", "peft", "disk", "resume", "track-head"],
)
def test_it_is_refused_before_features_are_computed(
    cli: Cli, run: list[str], tmp_path: Path, flags: list[str], words: str
) -> None:
    line = cli.refused(*run[:1], _recipe(tmp_path, run), *run[5:], *flags)

    assert words in line
    assert not (tmp_path / "out").exists()
    assert not (cache_root() / "features").exists()


def test_layers_that_lora_cannot_replace_are_refused_before_features_are_computed(cli: Cli, tmp_path: Path) -> None:
    """MobileNet reads the stride of its convolutions, which PEFT's layers do not have."""
    small.image_backbone(tmp_path / "base", "mobilenet_v2")
    write_images(tmp_path / "pictures", 6)
    recipe = _recipe(tmp_path, ["run", "", str(tmp_path / "base"), "", str(tmp_path / "pictures")])

    line = cli.refused("run", recipe, "--method", "lora")

    assert "does not run with LoRA's layers in place of its own" in line
    assert not (cache_root() / "features").exists()


def _recipe(folder: Path, run: list[str]) -> Path:
    file = folder / "small.py"
    file.write_text(
        "from hftl import Full, Recipe, recipe\n\n\n@recipe\ndef small() -> Recipe:\n"
        f"    return Recipe(backbone={run[2]!r}, data={run[4]!r}, method=Full(epochs=1))\n"
    )
    return file


def test_a_folder_that_cannot_be_made_is_refused_before_features(cli: Cli, run: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    line = cli.refused("run", _recipe(tmp_path, run), "--out", tmp_path / "file" / "run")

    assert "cannot write to the folder" in line
    assert not (cache_root() / "features").exists()


# ── disk ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_takes_about_the_space_that_is_asked_for(tmp_path: Path) -> None:
    backbone = small.image_backbone(tmp_path / "base")
    data = small.picture_data(16, 6, 6)
    target = Target(backbone, backbone.config(data.task, data.label_names))

    finetune(Full(epochs=4, batch_size=8, keep=2), target, data, start=None, seed=0, folder=tmp_path / "run").export(
        tmp_path / "run" / "model"
    )

    taken = sum(file.stat().st_size for file in (tmp_path / "run").rglob("*") if file.is_file())
    weights = 4 * sum(parameter.numel() for parameter in target.skeleton().parameters())
    # The model, the best epoch's weights, and two checkpoints with two moments each; a third while it is written.
    assert 0.9 < taken / (weights * (1 + 1 + 3 * 2)) < 1.3


def test_checkpoints_that_are_there_already_count_as_room(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    method = Full(epochs=1, keep=1)
    with pytest.raises(UserError, match=r"GB free, and the run needs about .* GB: .*give another folder with --out"):
        check_space(method, tmp_path / "new" / "run", free, free)

    check_space(method, tmp_path / "new" / "run", free // 100, free // 100)


# ── LoRA ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_target_module_must_be_there_and_close_ones_are_offered() -> None:
    model = tiny.model("bert")
    for good in (None, "all-linear", ["query", "value"], r".*\.(query|key)", ["bert.pooler.dense"]):
        check_targets(model, good, "bert")

    with pytest.raises(RecipeError, match=r"bert has no module 'valeu' \(did you mean 'value'\?\); it has 'word_emb"):
        check_targets(model, ["query", "valeu"], "bert")
    with pytest.raises(RecipeError, match=r"a text is a pattern for whole names; write \[\"query\"\]"):
        check_targets(model, "query", "bert")
    with pytest.raises(RecipeError, match=r"no module of bert fits the pattern 'q_.*'; it has"):
        check_targets(model, "q_.*", "bert")
    with pytest.raises(RecipeError, match=r"'\(' is no pattern"):
        check_targets(model, "(", "bert")


def test_a_model_that_reads_its_layers_own_attributes_is_refused_in_one_line(tmp_path: Path) -> None:
    backbone = small.image_backbone(tmp_path / "base", "mobilenet_v2")

    with pytest.raises(BackboneError, match=r"does not run with LoRA's layers .*stride.*; use --method full or par"):
        build(LoRA(), Target(backbone, backbone.config("single_label", ["a", "b", "c"])), {}, 0)


# PEFT asks transformers for a property that transformers has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_routers_of_experts_are_left_alone_and_the_adapter_loads_with_peft(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    experts = {"intermediate_size": 48, "num_local_experts": 2, "vocab_size": 120, "pad_token_id": 0}
    torch.manual_seed(0)
    config = AutoConfig.for_model("phimoe", **sizes, **experts, num_labels=3)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path / "base")
    batch = {"input_ids": torch.randint(3, 100, (2, 8)), "attention_mask": torch.ones(2, 8, dtype=torch.long)}
    backbone: Any = SimpleNamespace(
        name="phimoe", base_reference=str(tmp_path / "base"), commit=None, probes=lambda: [batch]
    )

    wrapped = add_lora(model, LoRA(r=2), {"score.weight"}, backbone).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        expected = wrapped(**batch).logits
    save_adapter(wrapped, None, tmp_path / "adapter")

    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        torch.testing.assert_close(PeftModel.from_pretrained(base, tmp_path / "adapter")(**batch).logits, expected)
        torch.testing.assert_close(wrapped.merge_and_unload()(**batch).logits, expected, rtol=1e-4, atol=1e-5)
    assert not any("router" in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))


@pytest.mark.parametrize("name", ["vit", "swin", "resnet", "convnext", "dinov2"])
def test_nothing_that_runs_is_refused(tmp_path: Path, name: str) -> None:
    backbone = small.image_backbone(tmp_path / "base", name)
    target = Target(backbone, backbone.config("single_label", ["a", "b", "c"]))

    for method in (Full(), LoRA(), LoRA(dora=True), LoRA(pissa=True, r=2), Partial(freeze=1)):
        check(method, target, tmp_path / "runs" / "new")


# ── what cannot be cut ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_model_that_cannot_be_cut_is_fine_tuned_from_its_own_head_which_is_said(
    cli: Cli, run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = ViTForImageClassification.forward

    def leaky(self: Any, pixel_values: torch.Tensor, **more: Any) -> Any:
        # The logits depend on the input beside the frozen body, which no cached feature can know.
        output = forward(self, pixel_values, **more)
        output.logits = output.logits * (1 + pixel_values.mean((1, 2, 3))[:, None])
        return output

    monkeypatch.setattr(ViTForImageClassification, "forward", leaky)
    recipe = _recipe(tmp_path, run)
    assert cli.refused("run", recipe, "--out", "head", "--method", "head").endswith("fine-tune it instead")

    for method in ("full", "lora"):
        said = cli.ok("run", recipe, "--out", method, "--method", method)

        (line,) = [line for line in said.splitlines() if line.startswith("start     ")][:1]
        assert line.startswith("start     the head as the checkpoint has it, because it cannot be solved on features: ")
        assert "fine-tune" not in line
        assert (tmp_path / method / "metrics.json").exists()
