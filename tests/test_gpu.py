"""What only a GPU can show; skipped where there is none.   pytest tests/test_gpu.py"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import runs
import tiny
import torch
from finetune import small
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
)

import hftl
from hftl import Head, Recipe, features
from hftl.backbones.protocol import Target
from hftl.backbones.vision import ImageBackbone
from hftl.data import Data
from hftl.export.trained import Trained
from hftl.finetune.train import finetune
from hftl.heads import fit_linear, fit_mlp, mlp_logits
from hftl.methods import FineTune, Full, LoRA

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# Before the first product: what cuBLAS needs to give the same bits each time.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
QUICK: dict[str, Any] = {"epochs": 4, "lr": 3e-3, "batch_size": 8, "warmup": 0.0}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> ImageBackbone:
    return small.image_backbone(tmp_path_factory.mktemp("vit"))


@pytest.fixture
def _deterministic() -> Any:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def run(method: FineTune, backbone: ImageBackbone, folder: Path, data: Data | None = None, **options: Any) -> Trained:
    data = data or small.picture_data(26, 9)
    target = Target(backbone, backbone.config(data.task, data.label_names))
    return finetune(method, target, data, start=None, seed=0, folder=folder, **options)


@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression"])
def test_a_head_solved_on_the_gpu_is_the_one_solved_on_the_cpu(task: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 24, generator=generator)
    signal = x @ torch.randn(24, 3, generator=generator) + torch.randn(600, 3, generator=generator)
    y = {"single_label": signal.argmax(1), "multi_label": (signal > 0).float(), "regression": signal}[task]
    on_cpu, on_gpu = (fit_linear(x.to(device), y.to(device), task=task, num_labels=3) for device in ("cpu", "cuda"))
    assert on_gpu.report["chosen"] == pytest.approx(on_cpu.report["chosen"])
    torch.testing.assert_close(on_gpu.logits(x), on_cpu.logits(x), rtol=1e-3, atol=1e-3)


def test_a_hidden_layer_trained_on_the_gpu_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 8, generator=generator).cuda()
    y = (x[:, 0] * x[:, 1] > 0).long()
    fit = fit_mlp(x[:500], y[:500], task="single_label", num_labels=2, hidden=64)
    assert fit.report["calibration"]["folded"]
    assert float((mlp_logits(fit.params, x[500:]).argmax(1) == y[500:]).double().mean()) > 0.85


def test_features_of_pictures_are_what_transformers_computes_on_the_cpu(tmp_path: Path) -> None:
    folder, data = tiny.save("vit", tmp_path / "backbone"), runs.write_images(tmp_path / "data")
    matrix = features(Recipe(backbone=str(folder), data=str(data), method=Head()), quiet=True)
    images = [Image.open(data / name) for name in matrix.row_names]
    batch = AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")
    with torch.no_grad():
        expected = AutoModel.from_pretrained(folder).eval()(**batch).last_hidden_state[:, 0]
    torch.testing.assert_close(torch.from_numpy(matrix.matrix), expected, atol=1e-4, rtol=1e-4)


def test_features_of_texts_are_what_transformers_computes_on_the_cpu(tmp_path: Path) -> None:
    folder, data = tiny.save("bert", tmp_path / "backbone"), runs.write_texts(tmp_path / "data.csv", 60)
    matrix = features(Recipe(backbone=str(folder), data=str(data), method=Head()), quiet=True)
    texts = [line.rsplit(",", 1)[0] for line in data.read_text().splitlines()[1:]]
    chosen = [texts[int(name.split(" row ")[1]) - 1] for name in matrix.row_names]
    batch = AutoTokenizer.from_pretrained(folder)(chosen, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = AutoModel.from_pretrained(folder).eval()(**batch).pooler_output
    torch.testing.assert_close(torch.from_numpy(matrix.matrix), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("kind", [Full, LoRA])
@pytest.mark.usefixtures("_deterministic")
def test_a_run_in_each_precision_learns_resumes_to_the_bit_and_exports_float32(
    backbone: ImageBackbone, tmp_path: Path, kind: type[FineTune], precision: Any
) -> None:
    method = kind(**QUICK, mixed_precision=precision, save_every=1, keep=99, micro_batch=4, crop=0.5, flip=True)
    whole = run(method, backbone, tmp_path / "whole")
    # The first is the start, which no training led to.
    losses = [epoch["train_loss"] for epoch in whole.report["epochs"][1:]]
    assert losses[-1] < losses[0]

    checkpoints = tmp_path / "whole" / "checkpoints"
    newest = sorted(checkpoints.glob("step-*"))
    for folder in newest[6:]:
        (folder / "manifest.json").unlink()
    resumed = run(method, backbone, tmp_path / "whole", resume=True)
    assert resumed.report["resumed_at"] == 6
    assert torch.equal(resumed.logits, whole.logits)

    resumed.export(tmp_path / "model")
    model, told = AutoModelForImageClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not told["missing_keys"]
    assert {value.dtype for value in load_file(tmp_path / "model" / "model.safetensors").values()} == {torch.float32}
    test = small.picture_data(26, 9).test
    batch = backbone.collate(backbone.encode([test.inputs[i] for i in range(9)], ["row"] * 9))
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    tolerance = 1e-4 if precision == "no" else 0.1
    torch.testing.assert_close(resumed.logits, logits, rtol=tolerance, atol=tolerance)


SPREAD = {
    "fsdp2": ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"],
    "zero-2": ["--use_deepspeed", "--zero_stage", "2"],
    "zero-3": ["--use_deepspeed", "--zero_stage", "3"],
}
RECIPE = """
import torch
from hftl import {kind}, Recipe, recipe

torch.use_deterministic_algorithms(True)


@recipe
def spread() -> Recipe:
    method = {kind}(lr=3e-3, epochs=3, batch_size=8, micro_batch=4, save_every=1, keep=99)
    return Recipe(backbone={backbone!r}, data={data!r}, method=method)
"""


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("kind", ["Full", "LoRA"])
@pytest.mark.parametrize("how", SPREAD)
def test_weights_spread_over_all_gpus_are_trained_resumed_and_exported(
    tmp_path: Path, how: str, kind: str, precision: str
) -> None:
    if how != "fsdp2":
        pytest.importorskip("deepspeed")
    small.image_backbone(tmp_path / "base")
    data = runs.write_images(tmp_path / "data", per_class=12, size=32)
    recipe = tmp_path / "spread.py"
    recipe.write_text(RECIPE.format(kind=kind, backbone=str(tmp_path / "base"), data=str(data)))
    launch = ["accelerate.commands.launch", "--num_processes", torch.cuda.device_count(), "--num_machines", "1"]
    launch += ["--dynamo_backend", "no", "--main_process_port", "0", "--mixed_precision", precision, *SPREAD[how], "-m"]
    run_it = ["hftl", "run", recipe, "--mixed-precision", precision, "--out"]

    python(*launch, *run_it, tmp_path / "run")
    whole = load_file(tmp_path / "run" / "model" / "model.safetensors")
    for folder in sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[4:]:
        (folder / "manifest.json").unlink()
    (tmp_path / "run" / "metrics.json").unlink()
    said = python(*launch, *run_it, tmp_path / "run", "--resume")

    assert "from step 4 of" in said
    resumed = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    python(*run_it, tmp_path / "alone")
    alone = load_file(tmp_path / "alone" / "model" / "model.safetensors")
    for name, value in alone.items():
        # AdamW moves a weight by up to lr each step, whatever the size of its gradient.
        torch.testing.assert_close(whole[name], value, rtol=0, atol=1e-3 if precision == "no" else 3e-2)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not here")
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("bits", ["8bit", "4bit"])
@pytest.mark.filterwarnings("ignore")
def test_lora_on_quantised_weights_learns_and_its_exports_are_loaded_without_hftl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: str, precision: Any
) -> None:
    # bitsandbytes wants multiples of 64.
    monkeypatch.setitem(tiny.TEXT, "llama", tiny.TEXT["llama"] | {"hidden_size": 64, "intermediate_size": 128})
    base = tiny.save_causal("llama", tmp_path / "base")
    data = runs.write_texts(tmp_path / "data.csv", 90)
    method = LoRA(epochs=3, lr=3e-3, batch_size=8, quantize=bits, mixed_precision=precision)  # type: ignore[arg-type]
    out = tmp_path / "run"
    assert hftl.run(Recipe(backbone=str(base), data=str(data), method=method), out=out, quiet=True)
    told = runs.metrics(out)["finetune"]
    losses = [epoch["train_loss"] for epoch in told["epochs"]]
    assert losses[-1] < losses[1]
    whole = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    assert told["parameters"]["all"] > sum(p.numel() for p in whole.parameters())
    assert told["parameters"]["trained"] < told["parameters"]["all"] / 2

    table = runs.predictions(out)
    lines = [line.rsplit(",", 1)[0] for line in data.read_text().splitlines()[1:]]
    texts = [lines[int(row.rpartition(" ")[2]) - 1] for row in table["row"]]
    scores, dtype = torch.tensor(table["scores"]), torch.bfloat16 if precision == "bf16" else torch.float32
    asked = {
        "8bit": BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0, llm_int8_skip_modules=["score"]),
        "4bit": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=["score"],
        ),
    }[bits]
    quantised = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=3, pad_token_id=2, dtype=dtype, quantization_config=asked
    )
    tolerance = 0.05 if bits == "8bit" or precision == "bf16" else 2e-3
    adapted = PeftModel.from_pretrained(quantised, str(out / "adapter"))
    assert float((plain_scores(adapted, out / "adapter", texts) - scores).abs().max()) < tolerance
    shown = runs.card_example(out / "adapter", {'"base"': repr(str(base)), '"some text"': repr(texts)})
    labels = [each["label"] for each in shown["classify"](texts)]
    assert [a == b for a, b in zip(labels, table["prediction"], strict=True)].count(False) <= 1
    if (out / "model").exists():
        merged = AutoModelForSequenceClassification.from_pretrained(out / "model")
        assert "quantization_config" not in merged.config.to_dict()
        assert merged.dtype == dtype
        assert float((plain_scores(merged.cuda(), out / "model", texts) - scores).abs().max()) < tolerance
    else:
        # Products of 8 bits round what goes into them too, which merged weights do not.
        assert (bits, precision) == ("8bit", "no")


def plain_scores(model: Any, folder: Path, texts: list[str]) -> torch.Tensor:
    inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt").to("cuda")
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(**inputs).logits
    return logits.float().softmax(-1).cpu()


def python(*arguments: Any) -> str:
    """Run a module in a process of its own."""
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_memory_that_ends_halves_the_micro_batch(tmp_path: Path) -> None:
    backbone = small.image_backbone(tmp_path / "vit", hidden_size=512, intermediate_size=8192, num_hidden_layers=8)
    data = small.picture_data(512, 9)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, 1.6e9 / total))
    try:
        method = Full(**QUICK | {"epochs": 1, "batch_size": 512, "micro_batch": "auto"})
        found = run(method, backbone, tmp_path / "run", data)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert found.report["micro_batch"] in (16, 32, 64, 128, 256)
    state = json.loads(next((tmp_path / "run" / "checkpoints").glob("step-*/state.json")).read_text())
    assert state["chosen"]["micro_batch"] == found.report["micro_batch"]
