"""Fine-tuning by each method: what trains, what is kept, what comes out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from finetune import small
from peft import PeftModel
from safetensors.torch import load_file
from sklearn.metrics import f1_score
from transformers import AutoModelForImageClassification

from hftl.backbones.protocol import Target
from hftl.backbones.source import local_source
from hftl.backbones.text import TextBackbone
from hftl.backbones.vision import ImageBackbone
from hftl.criterion import Criterion
from hftl.data import Data, Split
from hftl.errors import BackboneError, HftlError, RecipeError, UserError
from hftl.export.trained import Trained
from hftl.finetune import auto, train
from hftl.finetune.checkpoint import Checkpoints
from hftl.finetune.loop import Loop, Watch
from hftl.finetune.lora import check_lora, linear_modules
from hftl.finetune.resume import settings
from hftl.finetune.rows import Encoder
from hftl.finetune.train import build, finetune
from hftl.methods import FineTune, Full, LoRA, Partial
from hftl.tasks import Task

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
QUICK: dict[str, Any] = {"epochs": 2, "lr": 3e-3, "batch_size": 8, "warmup": 0.0}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> ImageBackbone:
    return small.image_backbone(tmp_path_factory.mktemp("vit"), **NO_DROPOUT)


@pytest.fixture(scope="module")
def data() -> Data:
    return small.picture_data(26, 9)


def target_of(backbone: ImageBackbone, data: Data) -> Target:
    return Target(backbone, backbone.config(data.task, data.label_names))


def run(method: FineTune, backbone: ImageBackbone, data: Data, folder: Path, **options: Any) -> Trained:
    return finetune(method, target_of(backbone, data), data, start=None, seed=0, folder=folder, **options)


def loop_of(method: FineTune, backbone: ImageBackbone, data: Data, folder: Path) -> Loop:
    target = target_of(backbone, data)
    built = build(method, target, {}, 0)
    accelerator = train.accelerator_for(method, folder, ())
    engine = train.engine_for(method, accelerator, built, target)
    rows = train.train_rows(method, target, data, 0, accelerator)
    watch = Watch(Encoder(backbone, data.test), data.label_names, Criterion.of_task(data.task), chooses=False)
    checkpoints = Checkpoints(folder, settings(method, backbone, data, 0))
    return Loop(method, engine, rows, watch, built.depths, checkpoints, log=lambda *_, **__: None)


def final(folder: Path) -> dict[str, torch.Tensor]:
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    return load_file(newest / "model.safetensors")


def inputs(backbone: ImageBackbone, data: Data) -> dict[str, torch.Tensor]:
    rows = [data.test.inputs[i] for i in range(len(data.test))]
    return backbone.collate(backbone.encode(rows, ["row"] * len(rows)))


# ── the step ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("micro_batch", [32, 8, 5, 1])
def test_gradients_do_not_depend_on_how_the_batch_is_cut(
    backbone: ImageBackbone, tmp_path: Path, micro_batch: int
) -> None:
    data = small.picture_data(32, 3)
    method = Full(**QUICK | {"batch_size": 32, "micro_batch": micro_batch, "class_weight": [1.0, 3.0, 0.2]})
    loop = loop_of(method, backbone, data, tmp_path)
    step = next(loop.rows.epoch(0))
    model, _ = backbone.build(backbone.config(data.task, data.label_names))
    model.load_state_dict(loop.engine.model.state_dict())
    device = loop.accelerator.device
    whole = backbone.collate(backbone.encode([data.train.inputs[i] for i in step.rows], ["row"] * 32))
    labels = torch.from_numpy(data.train.labels[list(step.rows)]).to(device)
    logits = model.to(device)(**{name: value.to(device) for name, value in whole.items()}).logits
    expected = F.cross_entropy(logits, labels, weight=torch.tensor([1.0, 3.0, 0.2], device=device))
    expected.backward()

    summed = loop.accumulate(step, 0)

    assert len(step.micro_batches) == -(-32 // micro_batch)
    torch.testing.assert_close(summed / step.weight, expected.detach())
    theirs = dict(model.named_parameters())
    for name, parameter in loop.engine.trained.items():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-6)


def test_gradient_checkpointing_changes_no_result(backbone: ImageBackbone, data: Data, tmp_path: Path) -> None:
    plain = run(Full(**QUICK), backbone, data, tmp_path / "plain")
    method = Full(**QUICK, gradient_checkpointing=True)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    loop = loop_of(method, backbone, data, tmp_path)
    loop.prepare_epoch(0)
    loop.engine.model.vit.layers[0].attention.register_forward_hook(count)
    loop.accumulate(next(loop.rows.epoch(0)), 0)
    assert calls == 2

    torch.testing.assert_close(run(method, backbone, data, tmp_path / "again").logits, plain.logits)


def test_a_compiled_model_gives_the_same_result(
    backbone: ImageBackbone, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The compiler that only traces: what it compiles to is the compiler's business, and takes long.
    monkeypatch.setattr(train, "COMPILER", "eager")
    plain = run(Full(**QUICK | {"epochs": 1}), backbone, data, tmp_path / "plain")

    compiled = run(Full(**QUICK | {"epochs": 1}, compile=True), backbone, data, tmp_path / "compiled")

    # On GPUs two runs in float32 differ by their order of summation.
    tolerance = 5e-3 if torch.cuda.is_available() else 1e-5
    torch.testing.assert_close(compiled.logits, plain.logits, rtol=tolerance, atol=tolerance)
    assert final(tmp_path / "compiled").keys() == final(tmp_path / "plain").keys()


# ── what trains ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_partial_leaves_the_first_blocks_as_they_were(backbone: ImageBackbone, data: Data, tmp_path: Path) -> None:
    trained = run(Partial(**QUICK, freeze=1), backbone, data, tmp_path)
    trained.export(tmp_path / "model")

    before = load_file(backbone.source.folder / "model.safetensors")
    after = load_file(tmp_path / "model" / "model.safetensors")
    same = {name for name, value in before.items() if torch.equal(after[f"vit.{name}"], value)}
    assert same == {name for name in before if name.startswith(("embeddings.", "layers.0.", "encoder.layer.0."))}


def test_thawing_goes_down_one_block_in_each_epoch(backbone: ImageBackbone, data: Data, tmp_path: Path) -> None:
    run(Full(**QUICK | {"epochs": 4}, unfreeze=True, keep=9), backbone, data, tmp_path)

    checkpoints = sorted((tmp_path / "checkpoints").iterdir())
    weights = [load_file(path / "model.safetensors") for path in checkpoints]
    depths = build(Full(), target_of(backbone, data), {}, 0).depths
    for epoch in range(1, 4):
        moved = {name for name in weights[0] if not torch.equal(weights[epoch][name], weights[epoch - 1][name])}
        assert {depths.of[name] for name in moved} == set(range(3 - epoch, 4))


def test_running_statistics_of_frozen_norms_stay(tmp_path: Path, data: Data) -> None:
    backbone = small.image_backbone(tmp_path / "base", "resnet")
    run(Partial(**QUICK, freeze=1), backbone, data, tmp_path / "partial")

    before, after = load_file(tmp_path / "base" / "model.safetensors"), final(tmp_path / "partial")
    moved = {name for name, value in after.items() if "running" in name and not torch.equal(before[name[7:]], value)}
    assert moved
    assert all("stages.1" in name for name in moved)


def test_the_head_starts_from_what_is_given(backbone: ImageBackbone, data: Data, tmp_path: Path) -> None:
    start = {"classifier.weight": torch.full((3, 32), 0.25), "classifier.bias": torch.tensor([1.0, 2.0, 3.0])}
    for method in (Full(), LoRA(), Partial(freeze=1)):
        built = build(method, target_of(backbone, data), start, 0)
        head = {name: p for name, p in built.model.named_parameters() if name in built.head and p.requires_grad}
        assert {name.rpartition(".")[2]: p.detach().tolist() for name, p in head.items()} == {
            "weight": start["classifier.weight"].tolist(),
            "bias": start["classifier.bias"].tolist(),
        }


# ── what is kept ─────────────────────────────────────────────────────────────────────────────────────────────────────


def scripted(monkeypatch: pytest.MonkeyPatch, accuracies: list[float]) -> None:
    """The start, then each epoch, measures one of these."""
    left = iter(accuracies)
    monkeypatch.setattr(Loop, "measure", lambda _: {"accuracy": next(left), "log_loss": 1.0})


@pytest.mark.parametrize("ema", [None, 0.5])
def test_the_running_statistics_of_the_best_epoch_are_kept_with_its_weights(tmp_path: Path, ema: float | None) -> None:
    """A rate that is far too high makes later epochs worse."""
    resnet, three = small.image_backbone(tmp_path / "resnet", "resnet"), small.picture_data(26, 9, 9)
    trained = run(Full(epochs=3, lr=0.5, batch_size=8, ema=ema), resnet, three, tmp_path)
    trained.export(tmp_path / "model")

    assert trained.report["kept_epoch"] < 3
    best = load_file(tmp_path / "checkpoints" / "best" / "model.safetensors")
    exported, last = load_file(tmp_path / "model" / "model.safetensors"), final(tmp_path)
    means = [name for name in best if name.endswith("running_mean")]
    assert means
    assert all(torch.equal(exported[name], best[name]) for name in best)
    assert not any(torch.equal(exported[name], last[name]) for name in means)


def test_the_best_epoch_by_validation_is_kept(
    backbone: ImageBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [0.4, 0.5, 0.9, 0.7])
    said: list[str] = []
    data = small.picture_data(26, 9, 8)

    trained = run(Full(**QUICK | {"epochs": 3}, keep=9), backbone, data, tmp_path, say=said.append)

    trained.export(tmp_path / "model")
    kept = AutoModelForImageClassification.from_pretrained(tmp_path / "model").state_dict()
    of_epoch_2 = load_file(tmp_path / "checkpoints" / "step-00000008" / "model.safetensors")
    assert trained.report["kept_epoch"] == 2
    assert all(torch.equal(kept[name], value) for name, value in of_epoch_2.items())
    assert any("best by accuracy on the validation split" in line for line in said)


def test_thresholds_of_several_labels_are_chosen_on_the_validation_split(
    backbone: ImageBackbone, tmp_path: Path
) -> None:
    data = small.picture_data(26, 9, 8)
    data = replace(data, task=Task.MULTI_LABEL, **{name: several(getattr(data, name)) for name in data.sizes()})

    trained = run(Full(**QUICK | {"epochs": 1}), backbone, data, tmp_path)

    assert data.validation is not None
    trained.export(tmp_path / "model")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "model").eval()
    files = [data.validation.inputs[i] for i in range(len(data.validation))]
    rows = backbone.encode(files, [str(i) for i in range(len(files))])
    with torch.no_grad():
        scores = model(**backbone.collate(rows)).logits.sigmoid().numpy()
    for label, threshold in enumerate(trained.report["thresholds"]):
        truth, cuts = data.validation.labels[:, label], [0.0, *scores[:, label]]
        best = max(f1_score(truth, scores[:, label] > cut, zero_division=0) for cut in cuts)
        # As good as the best one of 9 rows within noise.
        assert f1_score(truth, scores[:, label] > threshold, zero_division=0) > best - 0.3
    assert "thresholds" not in run(Full(**QUICK), backbone, replace(data, validation=None), tmp_path / "no").report


def several(split: Split) -> Split:
    """Class numbers as labels that a row may have several of: its own and those above."""
    return replace(split, labels=(split.labels[:, None] <= np.arange(3)).astype(np.float32))


def test_the_last_epoch_is_kept_where_nothing_may_choose(
    backbone: ImageBackbone, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [0.95, 0.9, 0.5, 0.7])

    trained = run(Full(**QUICK | {"epochs": 3}), backbone, data, tmp_path)

    assert trained.report["kept_epoch"] == 3
    assert {result["split"] for result in trained.report["epochs"]} == {"test"}


def test_training_stops_when_its_patience_ends(
    backbone: ImageBackbone, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [0.4, 0.5, 0.6, 0.6, 0.55, 0.9])
    said: list[str] = []

    trained = run(Full(**QUICK | {"epochs": 9}, patience=2), backbone, data, tmp_path, say=said.append)

    assert [result["epoch"] for result in trained.report["epochs"]] == [0, 1, 2, 3, 4]
    assert trained.report["kept_epoch"] == 2
    assert said == ["epochs    3 training rows set aside to choose the epoch by accuracy, seed 0"]


def test_the_average_is_what_is_evaluated_and_exported(backbone: ImageBackbone, data: Data, tmp_path: Path) -> None:
    trained = run(Full(**QUICK, ema=0.8), backbone, data, tmp_path)
    trained.export(tmp_path / "model")

    average = load_file(tmp_path / "checkpoints" / "step-00000008" / "ema.safetensors")
    exported = AutoModelForImageClassification.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(exported[name], value) for name, value in average.items())
    assert not torch.equal(exported["classifier.weight"], final(tmp_path)["classifier.weight"])


def test_a_loss_that_is_no_number_stops_with_the_rows_named(
    backbone: ImageBackbone, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulate, events = Loop.accumulate, []

    def poisoned(self: Loop, step: Any, number: int) -> torch.Tensor:
        return accumulate(self, step, number) * (float("nan") if number == 5 else 1)

    monkeypatch.setattr(Loop, "accumulate", poisoned)
    with pytest.raises(
        HftlError, match=r"loss is nan at step 5 \(epoch 2, learning rate .*rows: pictures-0 row"
    ) as error:
        run(Full(**QUICK), backbone, data, tmp_path, log=lambda name, **v: events.append((name, v)))

    stopped = next(values for name, values in events if name == "not_finite")
    assert len(stopped["rows"]) == 8
    assert all(row in str(error.value) for row in stopped["rows"])
    assert (tmp_path / "checkpoints" / "step-00000005").is_dir()
    monkeypatch.setattr(Loop, "accumulate", accumulate)
    resumed = run(Full(**QUICK), backbone, data, tmp_path, resume=True)
    whole = run(Full(**QUICK), backbone, data, tmp_path / "whole")
    assert torch.equal(resumed.logits, whole.logits)


# ── resume ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_resume_falls_back_from_a_damaged_checkpoint_and_ends_the_same(
    backbone: ImageBackbone, data: Data, tmp_path: Path
) -> None:
    whole = run(Full(**QUICK, save_every=1, keep=9), backbone, data, tmp_path)
    for step in (8, 7):
        file = tmp_path / "checkpoints" / f"step-0000000{step}" / "optimizer.safetensors"
        file.write_bytes(file.read_bytes()[:-9])
    said: list[str] = []

    resumed = run(Full(**QUICK), backbone, data, tmp_path, resume=True, say=said.append)

    damaged = [line for line in said if "damaged" in line]
    assert len(damaged) == 2
    for step, line in zip((8, 7), damaged, strict=True):
        assert f"checkpoint step-0000000{step} is damaged and not used: optimizer.safetensors" in line
    assert "resume    from step 6 of 8" in said
    assert torch.equal(resumed.logits, whole.logits)


def test_a_resume_with_other_settings_names_them(backbone: ImageBackbone, data: Data, tmp_path: Path) -> None:
    run(Full(**QUICK), backbone, data, tmp_path)

    with pytest.raises(UserError, match=r"began otherwise: method\.lr was 0\.003 and is 0\.1;"):
        run(Full(**QUICK | {"lr": 0.1}), backbone, data, tmp_path, resume=True)
    with pytest.raises(UserError, match="add --resume"):
        run(Full(**QUICK), backbone, data, tmp_path)


def test_a_resume_before_the_first_checkpoint_starts_anew(backbone: ImageBackbone, data: Data, tmp_path: Path) -> None:
    said: list[str] = []

    run(Full(**QUICK), backbone, data, tmp_path, resume=True, say=said.append)

    assert "resume    there is no checkpoint yet; starting anew" in said


def test_half_precision_computes_in_it_and_keeps_float32_weights(
    backbone: ImageBackbone, data: Data, tmp_path: Path
) -> None:
    full = run(Full(**QUICK), backbone, data, tmp_path / "full")
    method = Full(**QUICK, mixed_precision="bf16", save_every=1, keep=9)
    half = run(method, backbone, data, tmp_path / "half")
    assert 0 < float((half.logits - full.logits).abs().max()) < 0.1
    assert {value.dtype for value in final(tmp_path / "half").values()} == {torch.float32}

    for step in (8, 7, 6):
        (tmp_path / "half" / "checkpoints" / f"step-0000000{step}" / "manifest.json").unlink()
    resumed = run(method, backbone, data, tmp_path / "half", resume=True)
    assert resumed.report["resumed_at"] == 5
    assert torch.equal(resumed.logits, half.logits)

    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="fp16 trains on GPUs only"):
            run(Full(**QUICK, mixed_precision="fp16"), backbone, data, tmp_path / "other")


# ── auto ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_largest_micro_batch_that_fits_is_found_without_a_trace(
    backbone: ImageBackbone, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_ = backbone.build

    def small_memory(config: Any) -> tuple[Any, set[str]]:
        model, head = build_(config)

        def full(module: Any, args: Any, kwargs: dict[str, torch.Tensor]) -> None:
            if torch.is_grad_enabled() and len(kwargs["pixel_values"]) > 5:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 bytes")

        model.register_forward_pre_hook(full, with_kwargs=True)
        return model, head

    expected = run(Full(**QUICK | {"batch_size": 16, "micro_batch": 4}), backbone, data, tmp_path / "given")
    monkeypatch.setattr(backbone, "build", small_memory)

    found = run(Full(**QUICK | {"batch_size": 16, "micro_batch": "auto"}), backbone, data, tmp_path / "auto")

    assert found.report["micro_batch"] == 4
    assert torch.equal(found.logits, expected.logits)


def test_memory_for_not_even_one_row_is_an_error(
    backbone: ImageBackbone, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "_fits", lambda *_: False)
    with pytest.raises(BackboneError, match="one row alone"):
        run(Full(**QUICK | {"batch_size": "auto"}), backbone, data, tmp_path)


def test_the_range_test_chooses_a_rate_and_leaves_no_trace(backbone: ImageBackbone, data: Data, tmp_path: Path) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    said: list[str] = []
    method = Full(**QUICK | {"lr": "auto", "layer_decay": 0.5})

    found = run(method, backbone, data, tmp_path / "auto", log=lambda n, **v: events.append((n, v)), say=said.append)

    test = next(values for name, values in events if name == "lr_range")
    chosen = test["chosen"]
    assert found.report["lr"] == chosen
    assert 1e-7 < chosen < test["lrs"][int(np.argmin(test["losses"]))]
    assert len(test["lrs"]) == len(test["losses"]) > 50
    assert len([line for line in said if "loss" in line]) > 10
    given = run(Full(**QUICK | {"lr": chosen, "layer_decay": 0.5}), backbone, data, tmp_path / "given")
    torch.testing.assert_close(given.logits, found.logits, rtol=1e-4, atol=1e-5)
    resumed = run(method, backbone, data, tmp_path / "auto", resume=True)
    assert resumed.report["lr"] == chosen


# ── LoRA ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

VARIANTS: list[dict[str, Any]] = [
    {},
    {"dora": True},
    {"pissa": True, "r": 4},
    {"rslora": False, "alpha": 8.0, "r": 2},
    {"lora": {"target_modules": ["q_proj", "v_proj"], "bias": "lora_only"}, "dropout": 0.1},
]


# PEFT asks transformers for a property that transformers has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("options", VARIANTS, ids=["default", "dora", "pissa", "alpha", "fields"])
def test_adapter_and_merged_model_load_without_hftl(
    backbone: ImageBackbone, data: Data, tmp_path: Path, options: dict[str, Any]
) -> None:
    trained = run(LoRA(**QUICK, **options), backbone, data, tmp_path)
    trained.export(tmp_path / "model")
    batch = inputs(backbone, data)

    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    base = AutoModelForImageClassification.from_pretrained(config["base_model_name_or_path"], num_labels=3)
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    merged = AutoModelForImageClassification.from_pretrained(tmp_path / "model").eval()

    with torch.no_grad():
        torch.testing.assert_close(adapted(**batch).logits, trained.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(merged(**batch).logits, trained.logits, rtol=1e-4, atol=1e-4)
    assert any("classifier" in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert merged.config.id2label == dict(enumerate(small.CLASSES))
    assert trained.report["parameters"]["trained"] < trained.report["parameters"]["all"]


def test_all_linear_layers_of_the_body_are_updated_and_the_head_trains_whole(
    backbone: ImageBackbone, data: Data
) -> None:
    built = build(LoRA(), target_of(backbone, data), {}, 0)

    model, _ = backbone.build(backbone.config(data.task, data.label_names))
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    updated = {
        name.removeprefix("base_model.model.").partition(".lora_A")[0]
        for name, parameter in built.model.named_parameters()
        if ".lora_A." in name and parameter.requires_grad
    }
    assert updated == linear - {"classifier"}
    assert built.model.peft_config["default"].use_rslora
    assert all(p.requires_grad == ("lora_" in n or n in built.head) for n, p in built.model.named_parameters())


def test_a_body_of_convolutions_is_updated_too() -> None:
    assert linear_modules(tiny.model("gpt2"), ["score"])
    assert all("conv" in name or "shortcut" in name for name in linear_modules(tiny.model("resnet"), ["classifier"]))
    with pytest.raises(BackboneError, match="no linear layer"):
        linear_modules(torch.nn.Sequential(torch.nn.ReLU()), [])


def test_layers_with_a_forward_of_their_own_are_offered_by_name_and_can_be_chosen(tmp_path: Path) -> None:
    """Falcon's linear layers are a class of its own."""
    model = tiny.model("falcon")

    with pytest.raises(BackboneError, match=r"it has .*'query_key_value'"):
        linear_modules(model, ["score"])
    chosen = LoRA(lora={"target_modules": ["query_key_value"]})
    assert check_lora(model, chosen, TextBackbone(local_source(tiny.save("falcon", tmp_path)))) > 0


def test_what_peft_refuses_is_an_error_of_the_recipe(backbone: ImageBackbone, data: Data, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"method\.lora:.*rank"):
        run(LoRA(**QUICK, lora={"rank": 3}), backbone, data, tmp_path)
    with pytest.raises(RecipeError, match=r"method\.lora: No modules were targeted"):
        run(LoRA(**QUICK, lora={"target_modules": ["nowhere"]}), backbone, data, tmp_path)


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_pickle_lies_in_a_finished_run(backbone: ImageBackbone, data: Data, tmp_path: Path) -> None:
    for method in (Full(**QUICK, ema=0.9), LoRA(**QUICK)):
        folder = tmp_path / method.name
        run(method, backbone, data, folder).export(folder / "model")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]

    assert len(files) > 15
    for path in files:
        assert path.suffix in (".safetensors", ".json", ".md"), path
        # A pickle since protocol 2, and the zip that torch.save writes.
        assert not path.read_bytes().startswith((b"\x80", b"PK")), path
