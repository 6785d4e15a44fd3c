"""Fine-tuning from the command line: flags, the run's folder, a stop and a resume."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from finetune import small
from peft import AutoPeftModelForSequenceClassification, PeftModel
from PIL import Image
from runs import Cli
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    pipeline,
)

from hftl.backbones.protocol import Target
from hftl.backbones.source import local_source
from hftl.backbones.text import TextBackbone
from hftl.errors import BadRowError
from hftl.finetune.loop import Loop
from hftl.finetune.train import finetune
from hftl.methods import Full, LoRA


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe for a tiny model and pictures in folders."""
    small.image_backbone(tmp_path / "base", hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    for split, rows in (("train", 24), ("test", 9)):
        inputs, labels = small.pictures(rows, len(split))
        for i, label in enumerate(labels):
            path = tmp_path / "pictures" / split / small.CLASSES[label] / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(inputs[i])
    file = tmp_path / "small.py"
    file.write_text(
        '"""Tiny."""\n'
        "from hftl import Full, Recipe, recipe\n\n\n"
        "@recipe\n"
        "def small() -> Recipe:\n"
        f"    return Recipe(backbone={str(tmp_path / 'base')!r}, data={str(tmp_path / 'pictures')!r}, "
        "method=Full(lr=1e-3, epochs=2, batch_size=8))\n"
    )
    return file


def events(run: Path, name: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event for event in found if event["event"] == name]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize(
    "flags",
    [["--epochs", "3"], ["--method", "partial", "--freeze", "1"], ["--method", "lora", "--lr", "1e-3", "--r", "2"]],
    ids=["full", "partial", "lora"],
)
def test_a_run_leaves_a_model_that_predicts_as_it_says(
    cli: Cli, recipe: Path, tmp_path: Path, flags: list[str]
) -> None:
    out = tmp_path / "run"

    said = cli.ok("run", recipe, "--out", out, *flags)

    assert "start     the head solved on the features" in said
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["features"]["rows"] == 33
    assert metrics["seconds"]["train"] > 0
    # The start is measured as epoch 0.
    assert [event["epoch"] for event in events(out, "epoch")] == [0, 1, 2, 3]
    assert [epoch["epoch"] for epoch in metrics["finetune"]["epochs"]] == [0, 1, 2, 3]
    assert len(events(out, "step")) == metrics["finetune"]["steps"]
    assert (out / "adapter").is_dir() == ("lora" in flags)
    classify = pipeline("image-classification", model=str(out / "model"))
    table = pq.read_table(out / "predictions.parquet").to_pylist()
    for row in table:
        best = classify(str(tmp_path / "pictures" / row["row"]))[0]
        assert best["label"] == row["prediction"]
        assert best["score"] == pytest.approx(row["score"], abs=1e-4)
    if "lora" in flags:
        pictures = [Image.open(tmp_path / "pictures" / row["row"]).convert("RGB") for row in table]
        batch = AutoImageProcessor.from_pretrained(out / "adapter")(pictures, return_tensors="pt")
        # transformers finds the base model by the adapter, but takes the labels from that one's configuration.
        names = dict(enumerate(small.CLASSES))
        by_name = AutoModelForImageClassification.from_pretrained(out / "adapter", id2label=names)
        base = AutoModelForImageClassification.from_pretrained(tmp_path / "base", id2label=names)
        for model in (by_name, PeftModel.from_pretrained(base, out / "adapter")):
            with torch.no_grad():
                scores = model.eval()(**batch).logits.softmax(1).numpy()
            np.testing.assert_allclose(scores, [row["scores"] for row in table], atol=1e-4)


def test_a_run_that_is_told_to_stop_says_how_to_go_on_and_does(
    cli: Cli, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulate = Loop.accumulate

    def stopped(self: Loop, step: Any, number: int) -> torch.Tensor:
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return accumulate(self, step, number)

    cli.ok("run", recipe, "--out", tmp_path / "whole", "--quiet")
    monkeypatch.setattr(Loop, "accumulate", stopped)
    assert cli("run", recipe, "--out", tmp_path / "run", "--quiet") == 130
    said = cli.err.strip().splitlines()[-1]
    assert said.startswith("hftl: stopped after step 4 of 6; the state is saved; to go on: hftl run ")
    assert not (tmp_path / "run" / "metrics.json").exists()

    monkeypatch.setattr(Loop, "accumulate", accumulate)
    cli.ok(*shlex.split(said.split("to go on: hftl ")[1]))

    whole, resumed = (tmp_path / name / "model" / "model.safetensors" for name in ("whole", "run"))
    assert whole.read_bytes() == resumed.read_bytes()
    assert [event["step"] for event in events(tmp_path / "run", "step")] == [1, 2, 3, 4, 5, 6]
    assert events(tmp_path / "run", "resume")[0]["step"] == 4


def test_without_a_probe_no_feature_is_computed(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    cli.ok("run", recipe, "--out", tmp_path / "run", "--init", "random", "--epochs", "1")

    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["features"]["computed"] == metrics["features"]["rows"] == 0


def test_flags_that_make_no_sense_are_refused(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert "--track 'paper'" in cli.refused("run", recipe, "--out", out, "--track", "paper")
    assert "no field 'folds'" in cli.refused("run", recipe, "--set", "method.folds=3")
    assert "no unfinished run" in cli.refused("run", recipe, "--resume")
    assert "head_lr" in cli.refused("run", recipe, "--lr", "auto", "--head-lr", "0.1")
    assert "has 2 blocks" in cli.refused("run", recipe, "--out", tmp_path / "b", "--method", "partial", "--freeze", "7")
    assert "mixed_precision" in cli.refused("run", recipe, "--mixed-precision", "bf8")


READ_EVENTS = """
import sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

events = EventAccumulator(sys.argv[1])
events.Reload()
for tag in events.Tags()["scalars"]:
    print(tag, *[scalar.step for scalar in events.Scalars(tag)])
"""


def test_a_tracker_gets_every_step(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "hftl", "run", str(recipe), "--out", str(out), "--quiet"]
    done = subprocess.run(
        [*command, "--track", "tensorboard", "--epochs", "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    written = min(out.rglob("events.out.tfevents*"), key=lambda path: len(path.parts))
    # In a process of its own, for tensorboard warns of its own past.
    read = subprocess.run(
        [sys.executable, "-c", READ_EVENTS, str(written.parent)], capture_output=True, text=True, check=False
    )
    assert read.returncode == 0, read.stderr
    steps = {line.split()[0]: [int(step) for step in line.split()[1:]] for line in read.stdout.splitlines()}
    assert steps["step/loss"] == [1, 2, 3]
    assert steps["epoch/accuracy"] == [0, 3]


def text_backbone(folder: Path) -> TextBackbone:
    """A tiny random text model with a vocabulary of its own."""
    words = ["[PAD]", "[UNK]", *(f"w{i}" for i in range(100))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tiny.model("bert").base_model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    ).save_pretrained(folder)
    return TextBackbone(local_source(folder), None)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it
def test_texts_of_all_lengths_keep_their_logits(tmp_path: Path) -> None:
    backbone = text_backbone(tmp_path / "bert")
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 12, (21,), generator=random).tolist()
    texts = [" ".join(f"w{int(i)}" for i in torch.randint(0, 100, (n,), generator=random)) for n in lengths]
    data = small.vectors_data(texts, [i % 2 for i in range(21)], ["even", "odd"])
    config = backbone.config("single_label", ["even", "odd"])

    trained = finetune(
        LoRA(epochs=1, batch_size=6, micro_batch=4, lr=1e-3),
        Target(backbone, config),
        data,
        start=None,
        seed=0,
        folder=tmp_path,
    )
    trained.export(tmp_path / "model")

    classify = pipeline("text-classification", model=str(tmp_path / "model"), top_k=None)
    for text, logits in zip(texts, trained.logits, strict=True):
        scores = {found["label"]: found["score"] for found in classify([text])[0]}
        assert [scores["even"], scores["odd"]] == pytest.approx(logits.softmax(0).tolist(), abs=1e-5)
    batch = AutoTokenizer.from_pretrained(tmp_path / "adapter")(texts, padding=True, return_tensors="pt")
    for kind in (AutoModelForSequenceClassification, AutoPeftModelForSequenceClassification):
        with torch.no_grad():
            logits = kind.from_pretrained(tmp_path / "adapter", id2label=config.id2label).eval()(**batch).logits
        torch.testing.assert_close(logits, trained.logits, atol=1e-5, rtol=1e-4)
    adapter = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == backbone.base_reference == str(tmp_path / "bert")
    assert adapter["modules_to_save"] == ["classifier"]


def test_the_row_that_the_model_refuses_is_named_and_the_advice_works(tmp_path: Path) -> None:
    backbone = TextBackbone(local_source(tiny.save("bart", tmp_path / "bart")))
    # One text holds the token whose number BART's class counts.
    texts = [f"the {word} sat{' [SEP] ran' if i == 3 else ''}" for i, word in enumerate(tiny.WORDS[:8])]
    data = small.vectors_data(texts, [i % 2 for i in range(8)], ["even", "odd"])
    target = Target(backbone, backbone.config(data.task, data.label_names))
    options = {"start": None, "seed": 0}

    with pytest.raises(BadRowError, match=r"^train\.csv row 4: the model refuses it beside .*give --micro-batch 1$"):
        finetune(Full(epochs=1, batch_size=8), target, data, folder=tmp_path / "one", **options)
    trained = finetune(Full(epochs=1, batch_size=8, micro_batch=1), target, data, folder=tmp_path / "two", **options)

    assert trained.logits.shape == (8, 2)
    assert torch.isfinite(trained.logits).all()
