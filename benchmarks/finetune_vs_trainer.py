"""Steps per second, peak memory and loss curve beside ``transformers.Trainer``: same model, rows, precision,
accumulation.

    python benchmarks/finetune_vs_trainer.py [--case digits|text|images] [--data REF] [--method full|lora] [--pairs 5]
        [--steps 60] [--batch 32] [--micro 16] [--threads 2] [--precision no|bf16] [--compile] [--workers 0]

Each run has a process of its own; the two take turns, and which goes first alternates. Both see the same rows in the
same order, with dropout off, a linear schedule and no weight decay, and log every step; neither evaluates nor saves
in between. Both encode a row when they first meet it and keep it in memory. A step's time is the median interval
between the ends of steps after the first five; its CPU time is taken in the same way, and is what to look at on a
machine that others use too. LoRA is PEFT with the same configuration under both. On a GPU, ``--backbone vit-b16`` is a
ViT-B/16 at 224 pixels with random weights, ``--workers`` are the Trainer's loader's, memory is the GPU's, and the
arithmetic of a step, counted by torch, gives the share of ``--peak`` (TFLOP/s; an H100's and H200's bf16 by default).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import tell_machine

WARM_UP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=["digits", "text", "images"], default="digits")
    parser.add_argument("--data", help="a data reference, for text and images")
    parser.add_argument("--backbone")
    parser.add_argument("--method", choices=["full", "lora"], default="full")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--micro", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=["no", "bf16"], default="no")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--peak", type=float, default=989.0)
    parser.add_argument("--role", choices=["hftl", "trainer"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        print(json.dumps({"hftl": hftl_run, "trainer": trainer_run}[arguments.role](arguments)))
        return
    found: dict[str, list[dict[str, Any]]] = {"hftl": [], "trainer": []}
    for pair in range(arguments.pairs):
        for role in ("hftl", "trainer") if pair % 2 == 0 else ("trainer", "hftl"):
            found[role].append(in_a_process(role, arguments.threads))
        mine, theirs = found["hftl"][-1], found["trainer"][-1]
        print(
            f"pair {pair + 1}: hftl {shown(mine)}; Trainer {shown(theirs)}",
            flush=True,
        )
    report(found, arguments)


def in_a_process(role: str, threads: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--role", role],
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def shown(run: dict[str, Any]) -> str:
    return f"{run['steps_per_second']:.3f} steps/s, {run['cpu']:.3f} CPU s/step, {run['memory'] / 2**20:.0f} MiB"


def report(found: dict[str, list[dict[str, Any]]], arguments: argparse.Namespace) -> None:
    pairs = list(zip(found["hftl"], found["trainer"], strict=True))
    for what, name in (("steps per second", "steps_per_second"), ("CPU time a step", "cpu"), ("peak memory", "memory")):
        ratios = [mine[name] / theirs[name] for mine, theirs in pairs]
        print(f"{what:17} {np.median(ratios):.3f} x Trainer (median of pairs; {min(ratios):.3f} to {max(ratios):.3f})")
    for role, runs in found.items():
        rate = np.median([run["steps_per_second"] for run in runs])
        flops = found["trainer"][0].get("flops")
        share = f", {rate * flops / (arguments.peak * 1e12):.1%} of {arguments.peak:.0f} TFLOP/s" if flops else ""
        print(f"{role:17} {rate * arguments.batch:,.0f} rows/s{share}")
    mine, theirs = (np.array(found[role][0]["losses"]) for role in ("hftl", "trainer"))
    worst = np.abs(mine - theirs).max()
    print(f"loss curve        {mine[0]:.4f} to {mine[-1]:.4f}; largest difference {worst:.1e} over {len(mine)} steps")


def job(arguments: argparse.Namespace) -> tuple[Any, Any, Any, Any]:
    """Backbone, configuration without dropout, data of exactly so many full batches, and the method."""
    from dataclasses import replace

    from hftl.backbones.loading import load_backbone
    from hftl.data import load_data
    from hftl.methods import Full, LoRA
    from hftl.plugins.registry import find
    from hftl.plugins.spec import BackboneOptions

    default = {"digits": "hftl/glyph-vit-tiny", "text": "minilm-l6", "images": ""}[arguments.case]
    if arguments.backbone == "vit-b16":
        arguments.backbone = vit_b16()
    backbone = load_backbone(find(arguments.backbone or default), BackboneOptions(offline=True))
    data = load_data(arguments.data or "sample:digits", wants=backbone.wants, suffixes=backbone.suffixes)
    rows = np.random.default_rng(0).permutation(len(data.train))[: arguments.steps * arguments.batch]
    rows = rows[: len(rows) // arguments.batch * arguments.batch]
    parts = {
        name: split.select(chosen)
        for name, split, chosen in (("train", data.train, rows), ("test", data.test, np.arange(2)))
    }
    data = replace(data, **parts, validation=None)
    config = backbone.config(data.task, data.label_names)
    for name, value in list(vars(config).items()):
        if ("drop" in name or "dropout" in name) and isinstance(value, float):
            setattr(config, name, 0.0)
    options: dict[str, Any] = {
        "epochs": math.ceil(arguments.steps / (len(rows) // arguments.batch)),
        "lr": 1e-4,
        "batch_size": arguments.batch,
        "micro_batch": arguments.micro,
        "schedule": "linear",
        "warmup": 0.0,
        "weight_decay": 0.0,
        "mixed_precision": arguments.precision,
        "compile": arguments.compile,
    }
    return backbone, config, data, (LoRA if arguments.method == "lora" else Full)(**options)


def vit_b16() -> str:
    """A folder with ViT-B/16 as its paper has it; made once."""
    import transformers

    folder = Path(tempfile.gettempdir()) / "hftl-benchmark-vit-b16"
    if not (folder / "preprocessor_config.json").exists():
        transformers.ViTModel(transformers.ViTConfig()).save_pretrained(folder)
        transformers.ViTImageProcessorPil().save_pretrained(folder)
    return str(folder)


def flops_of_step(model: Any, batch: dict[str, Any], arguments: argparse.Namespace) -> float:
    """Floating point operations of a step's matrix products, forward and backward, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    batch = {name: value.to(model.device) for name, value in batch.items()}
    with FlopCounterMode(display=False) as counter:
        model(**batch).logits.sum().backward()
    return float(counter.get_total_flops()) / len(next(iter(batch.values()))) * arguments.batch


def measured(ends: list[tuple[float, float]], losses: list[float]) -> dict[str, Any]:
    import torch

    # Of all intervals the median, so that an epoch's end, with an evaluation or a checkpoint, is no step.
    wall, cpu = np.median(np.diff(ends, axis=0)[WARM_UP:], axis=0)
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated()
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"steps_per_second": float(1 / wall), "cpu": float(cpu), "memory": memory, "losses": losses}


def hftl_run(arguments: argparse.Namespace) -> dict[str, Any]:
    from hftl.backbones.protocol import Target
    from hftl.finetune.train import finetune

    backbone, config, data, method = job(arguments)
    ends: list[tuple[float, float]] = []
    losses: list[float] = []

    def log(event: str, **values: Any) -> None:
        if event == "step":
            ends.append((time.perf_counter(), time.process_time()))
            losses.append(values["loss"])

    with tempfile.TemporaryDirectory() as folder:
        finetune(method, Target(backbone, config), data, start=None, seed=0, folder=Path(folder), log=log)
    return measured(ends, losses)


def trainer_run(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from hftl.backbones.protocol import Target
    from hftl.finetune.losses import Loss
    from hftl.finetune.rows import Encoder, TrainRows
    from hftl.finetune.train import build
    from hftl.parallel import Process

    backbone, config, data, method = job(arguments)
    built = build(method, Target(backbone, config), {}, 0)
    encoder = Encoder(backbone, data.train)

    class Rows(torch.utils.data.Dataset[dict[str, Any]]):
        def __len__(self) -> int:
            return len(data.train)

        def __getitem__(self, row: int) -> dict[str, Any]:
            return {"row": encoder([row])[0], "label": int(data.train.labels[row])}

    rows = TrainRows(
        Encoder(backbone, data.train),
        Loss("single_label", len(data.label_names)),
        Process(torch.device("cpu")),
        seed=0,
        batch_size=arguments.batch,
        micro_batch=arguments.micro,
    )
    order = [micro for epoch in range(method.epochs) for micro in micro_batches(rows, epoch)]

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        labels = torch.tensor([item["label"] for item in batch])
        return {**backbone.collate([item["row"] for item in batch]), "labels": labels}

    ends: list[tuple[float, float]] = []
    losses: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append((time.perf_counter(), time.process_time()))

        def on_log(self, _args: Any, _state: Any, _control: Any, logs: dict[str, float], **_kwargs: Any) -> None:
            if "loss" in logs:
                losses.append(logs["loss"])

    class Ordered(Trainer):
        def get_train_dataloader(self) -> Any:
            loader = torch.utils.data.DataLoader(
                Rows(),
                batch_sampler=order,
                collate_fn=collate,
                num_workers=arguments.workers,
                pin_memory=torch.cuda.is_available(),
            )
            return self.accelerator.prepare(loader)

    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(
            output_dir=folder,
            max_steps=len(order) // math.ceil(arguments.batch / arguments.micro),
            per_device_train_batch_size=arguments.micro,
            gradient_accumulation_steps=math.ceil(arguments.batch / arguments.micro),
            learning_rate=method.lr,
            lr_scheduler_type="linear",
            weight_decay=0.0,
            max_grad_norm=1.0,
            bf16=arguments.precision == "bf16",
            torch_compile=arguments.compile,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["labels"],
        )
        Ordered(built.model, options, train_dataset=Rows(), callbacks=[Clock()]).train()
    result = measured(ends, losses)
    if torch.cuda.is_available():
        result["flops"] = flops_of_step(built.model, backbone.collate(encoder(range(8))), arguments)
    return result


def micro_batches(rows: Any, epoch: int) -> list[list[int]]:
    order = rows.order(epoch).tolist()
    steps = [order[i : i + rows.batch_size] for i in range(0, len(order), rows.batch_size)]
    return [list(share) for step in steps for share, _ in rows.shares(step)]


if __name__ == "__main__":
    tell_machine()
    main()
