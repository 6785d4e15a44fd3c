"""Fine-tuning from a pretrained backbone to logits and files: build, start, train, choose, export."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import Tensor, nn

from hftl.backbones.protocol import Backbone
from hftl.data import Data
from hftl.data.splits import hold_out
from hftl.errors import BackboneError, HftlError, RecipeError, UserError
from hftl.finetune.augment import Augmentation, Mixing
from hftl.finetune.auto import choose_lr, largest_micro_batch
from hftl.finetune.checkpoint import Checkpoint, DamagedError, prune, read_checkpoint
from hftl.finetune.ema import Ema
from hftl.finetune.engine import Engine
from hftl.finetune.evaluate import logits_of
from hftl.finetune.groups import Depths, find_depths, freeze_below, parameter_groups
from hftl.finetune.loop import Loop, Plan
from hftl.finetune.lora import adapter_tensors, add_lora, lora_head, save_adapter
from hftl.finetune.losses import Loss, class_weights
from hftl.finetune.parallel import on_main, share_tensors
from hftl.finetune.resume import flat, resumed, settings
from hftl.finetune.rows import Encoder, TrainRows
from hftl.matmul import speed_up
from hftl.methods import FineTune, LoRA, Partial

DEFAULT_BATCH = 32
SET_ASIDE = 0.1
COMPILER = "inductor"
TRACKERS = ("tensorboard", "trackio", "wandb", "mlflow")


@dataclass
class Trained:
    """A fine-tuned model.

    Attributes:
        logits: (n, C) float32 of the test split.
        export: writes the model folder (and beside it ``adapter`` for LoRA); on the main process.
        report: for ``metrics.json``.
    """

    logits: Tensor
    export: Callable[[Path], None]
    report: dict[str, Any]


@dataclass
class Built:
    """A model ready to train.

    Attributes:
        model: what is trained; a ``PeftModel`` for LoRA.
        head: names of its head's parameters.
        depths: of all parameters.
        initial: the adapter before training, for PiSSA.
    """

    model: Any
    head: set[str]
    depths: Depths
    initial: dict[str, Tensor] | None = None


def finetune(
    method: FineTune,
    backbone: Backbone,
    config: Any,
    data: Data,
    *,
    start: Mapping[str, Tensor] | None,
    seed: int,
    folder: Path,
    resume: bool = False,
    track: Sequence[str] = (),
    log: Callable[..., None] = lambda *_, **__: None,
    say: Callable[[str], None] = lambda _: None,
) -> Trained:
    """Train a model by any of the three methods; every process calls it.

    Args:
        method: what trains, and how.
        backbone: the pretrained network.
        config: the configuration to build it with.
        data: rows and labels, all of them decodable.
        start: the head's parameters to start from, by the model's names, on the main process; None leaves the head
            as it is built.
        seed: of every random choice.
        folder: the run's folder; checkpoints go to ``checkpoints`` in it.
        resume: go on from the newest whole checkpoint there.
        track: trackers of accelerate to log to as well.
        log: takes an event's name and its values.
        say: takes a line for a person.

    Raises:
        Interrupted: SIGTERM or SIGINT came; the state is saved.
        HftlError: the loss is not finite, or something cannot be written.
        UserError: the method does not fit the backbone or the data, or no checkpoint fits.
    """
    started = time.monotonic()
    check_trackers(track)
    data, chooses = splits(data, method, seed, say)
    accelerator = _accelerator(method, folder, track)
    built = build(method, backbone, config, share_tensors(dict(start) if start else None), seed)
    if not method.compile:
        speed_up(built.model, rows_vary=backbone.wants == "text")
    checkpoints = folder / "checkpoints"
    made_with = settings(method, backbone, data, seed)
    checkpoint = resumed(checkpoints, made_with, say) if resume else None
    if not resume and accelerator.is_main_process and any(checkpoints.glob("step-*")):
        raise UserError(f"{checkpoints} holds checkpoints; add --resume to go on, or give another folder with --out")

    loop, test = assemble(method, accelerator, built, backbone, data, seed, chooses, made_with, checkpoints, log)
    if track:
        accelerator.init_trackers("hftl", config=flat(made_with))
    if not checkpoint and "auto" in (method.batch_size, method.micro_batch):
        loop.choose(micro_batch=largest_micro_batch(loop))
        say(f"batch     {loop.rows.batch_size} rows a step, {loop.rows.micro_batch} of them at a time on each process")
    if not checkpoint and method.lr == "auto":
        loop.choose(lr=choose_lr(loop, say))
    if checkpoint:
        loop.restore(checkpoint)
        say(f"resume    from step {loop.progress.step} of {loop.total}")
        log("resume", step=loop.progress.step, of=loop.total)
    before = loop.progress.step
    loop.run()
    _settle(loop, checkpoints, chooses)
    logits = logits_of(accelerator, loop.engine.unsynchronised, test, loop.rows.micro_batch)
    for tracker in accelerator.trackers:
        # Not accelerator.end_training, which also ends the processes' group while the model still holds on to it.
        tracker.finish()
    if loop.engine.is_spread:
        built = unsharded(loop, method, backbone, config, seed)
    seconds = time.monotonic() - started
    return Trained(
        logits, lambda target: export(built, backbone, config, target), _report(loop, built, seconds, before)
    )


# ── what is trained ──────────────────────────────────────────────────────────────────────────────────────────────────


def build(method: FineTune, backbone: Backbone, config: Any, start: Mapping[str, Tensor], seed: int) -> Built:
    """The pretrained model with the head to start from, and only what the method trains left trainable.

    Raises:
        BackboneError: the model does not fit the method.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any
        model, head = backbone.build(config)
        with torch.no_grad():
            for name, value in start.items():
                model.get_parameter(name).copy_(value)
        initial = None
        if isinstance(method, LoRA):
            model = add_lora(model, method, head, backbone)
            head = lora_head(model)
            initial = adapter_tensors(model) if method.pissa else None
        depths = find_depths(model, head)
        if isinstance(method, Partial):
            freeze_below(model, depths, method.freeze, backbone.name)
        freeze_unused(model, backbone.probes()[0])
    if method.gradient_checkpointing:
        try:
            # Its older name, before transformers renamed it.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        except (ValueError, AttributeError) as error:
            raise BackboneError(f"{backbone.name} knows no gradient checkpointing; leave it out") from error
    return Built(model, head, depths, initial)


def unsharded(loop: Loop, method: FineTune, backbone: Backbone, config: Any, seed: int) -> Built:
    """The trained model in one piece, for export: built again, with the weights that training changed."""
    weights = loop.engine.weights()
    built = build(method, backbone, config, {}, seed)
    with torch.no_grad():
        for name, value in [*built.model.named_parameters(), *built.model.named_buffers()]:
            if name in weights:
                value.copy_(weights[name])
    return built


def freeze_unused(model: nn.Module, batch: Mapping[str, Tensor]) -> None:
    """Freeze parameters that the logits do not depend on: processes would wait for their gradients for ever."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    gradients: Sequence[Tensor | None] = torch.autograd.grad(model(**batch).logits.sum(), trained, allow_unused=True)
    for parameter, gradient in zip(trained, gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)


def splits(data: Data, method: FineTune, seed: int, say: Callable[[str], None]) -> tuple[Data, bool]:
    """The data with what chooses the epoch, and whether anything does."""
    if data.validation is not None:
        say("epochs    the best by the validation split is kept")
        return data, True
    if method.patience is None:
        say("epochs    no validation split: the last epoch is kept, and the test split chooses nothing")
        return data, False
    stays, drawn = hold_out(data.train.labels, data.task, SET_ASIDE, seed)
    say(f"epochs    {len(drawn):,} training rows set aside to choose the epoch, seed {seed}")
    return replace(data, train=data.train.select(stays), validation=data.train.select(drawn, "validation")), True


# ── how it is trained ────────────────────────────────────────────────────────────────────────────────────────────────


def check_trackers(track: Sequence[str]) -> None:
    """See that what is to be logged to is known and installed.

    Raises:
        RecipeError: it is not.
    """
    for name in track:
        if name not in TRACKERS:
            raise RecipeError(f"--track {name!r}: hftl logs to {', '.join(TRACKERS)}")
        if find_spec(name) is None:
            raise RecipeError(f"--track {name} needs a package that is not installed: pip install {name}")


def _accelerator(method: FineTune, folder: Path, track: Sequence[str]) -> Accelerator:
    """Accelerate, as the user's own launcher has configured it.

    Raises:
        UserError: precision or a kind of distribution that this machine, or a checkpoint of hftl, does not know.
    """
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)] if method.unfreeze else []
    # Accelerate keeps the first run's precision for all runs of a process, unless told to forget it.
    AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(
            mixed_precision=method.mixed_precision,
            dynamo_backend=COMPILER if method.compile else None,
            log_with=list(track) or None,
            project_dir=str(folder),
            kwargs_handlers=handlers,
        )
    except ValueError as error:
        raise UserError(f"mixed_precision={method.mixed_precision}: {' '.join(str(error).split())}") from error
    if method.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        # Accelerate would train in float32 and say nothing.
        raise UserError("mixed_precision=fp16 trains on GPUs only; use bf16, or leave it out")
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        from hftl.finetune.zero import prepare_for_zero

        prepare_for_zero(accelerator, method)
    # These two keep weights and moments where a checkpoint does not reach.
    elif kind == DistributedType.MEGATRON_LM or (kind == DistributedType.FSDP and not accelerator.is_fsdp2):
        raise UserError(
            f"fine-tuning does not run on {kind.value}; launch with accelerate's MULTI_GPU, FSDP version 2 or DEEPSPEED"
        )
    return accelerator


def assemble(
    method: FineTune,
    accelerator: Accelerator,
    built: Built,
    backbone: Backbone,
    data: Data,
    seed: int,
    chooses: bool,
    made_with: Mapping[str, Any],
    checkpoints: Path,
    log: Callable[..., None],
) -> tuple[Loop, Encoder]:
    """The loop with everything in its place, and the encoder of the test split."""
    labels = torch.from_numpy(data.train.labels)
    weights = class_weights(method.class_weight, labels, data.task, len(data.label_names))
    loss = Loss(data.task, len(data.label_names), method.label_smoothing, weights)
    test = Encoder(backbone, data.test)
    # Relative to what the range test will choose.
    lr = 1.0 if method.lr == "auto" else method.lr
    model = built.model
    groups = parameter_groups(
        ((name, p) for name, p in model.named_parameters() if p.requires_grad),
        built.depths,
        built.head,
        lr=lr,
        head_lr=method.head_lr or lr,
        layer_decay=method.layer_decay,
        weight_decay=method.weight_decay,
    )
    fused = accelerator.device.type in ("cpu", "cuda")
    optimizer, clip = torch.optim.AdamW(groups, lr=lr, fused=fused), method.clip or math.inf
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from hftl.finetune.zero import ZeroEngine

        engine: Engine = ZeroEngine(accelerator, model, optimizer, clip, backbone.probes()[0])
    else:
        engine = Engine(accelerator, model, optimizer, clip)
    batch_size = DEFAULT_BATCH if method.batch_size == "auto" else method.batch_size
    share_of_one = math.ceil(batch_size / accelerator.num_processes)
    rows = TrainRows(
        Encoder(backbone, data.train),
        loss,
        seed=seed,
        batch_size=batch_size,
        micro_batch=method.micro_batch if isinstance(method.micro_batch, int) else share_of_one,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        pin_memory=accelerator.device.type == "cuda",
        augmentation=Augmentation(method.flip, method.crop, method.trivial_augment),
        mixing=Mixing(method.mixup, method.cutmix),
    )

    def tell(event: str, **values: Any) -> None:
        log(event, **values)
        numbers = {f"{event}/{name}": v for name, v in values.items() if isinstance(v, (int, float))}
        if event in ("step", "epoch") and accelerator.trackers:
            accelerator.log(numbers, step=values["step"])

    loop = Loop(
        accelerator,
        engine,
        loss=loss,
        rows=rows,
        watched=Encoder(backbone, data.validation) if data.validation else test,
        label_names=data.label_names,
        depths=built.depths,
        ema=Ema(engine.trained, method.ema) if method.ema else None,
        plan=Plan(
            seed,
            method.epochs,
            method.schedule,
            method.warmup,
            method.unfreeze,
            method.patience,
            chooses,
            method.save_every,
            method.keep,
        ),
        made_with=made_with,
        folder=checkpoints,
        log=tell,
    )
    return loop, test


# ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _settle(loop: Loop, checkpoints: Path, chooses: bool) -> None:
    """Put the weights that are kept into the model: the best epoch's, else the average's if there is one."""
    if chooses:

        def read() -> Checkpoint:
            try:
                return read_checkpoint(checkpoints / "best")
            except DamagedError as error:
                raise HftlError(f"the best epoch's weights in {checkpoints / 'best'} are damaged: {error}") from error

        best = on_main(read)
        loop.engine.load_weights(share_tensors(best.tensors["model"] if best else None))
    elif loop.ema:
        with torch.no_grad():
            for name, parameter in loop.engine.trained.items():
                parameter.copy_(loop.ema.averages[name])
    if loop.accelerator.is_main_process:
        prune(checkpoints, loop.plan.keep)


def export(built: Built, backbone: Backbone, config: Any, folder: Path) -> None:
    """Write a folder that transformers loads; for LoRA also ``adapter`` beside it, which PEFT loads.

    Args:
        built: the trained model.
        backbone: for its preprocessing files.
        config: with the label names.
        folder: where the model goes; made if missing.
    """
    model = built.model
    if hasattr(model, "peft_config"):
        save_adapter(model, built.initial, folder.parent / "adapter")
        backbone.save_processor(folder.parent / "adapter")
        model = model.merge_and_unload()
    model.save_pretrained(folder)
    config.architectures = [type(model).__name__]
    # Last, for a model's own save_pretrained writes the configuration that it ran with.
    config.save_pretrained(folder)
    backbone.save_processor(folder)


def _report(loop: Loop, built: Built, seconds: float, before: int) -> dict[str, Any]:
    parameters = list(built.model.parameters())
    device = loop.accelerator.device
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "parameters": {
            "all": sum(p.numel() for p in parameters),
            "trained": sum(p.numel() for p in loop.engine.trained.values()),
        },
        "steps": loop.progress.step,
        "resumed_at": before or None,
        "epochs": loop.progress.history,
        "kept_epoch": loop.progress.best if loop.plan.chooses else len(loop.progress.history) - 1,
        "batch_size": loop.rows.batch_size,
        "micro_batch": loop.rows.micro_batch,
        "lr": max(group["base_lr"] for group in loop.engine.param_groups),
        "processes": loop.accelerator.num_processes,
        "mixed_precision": loop.accelerator.mixed_precision,
        "peak_memory_bytes": peak,
        "seconds": round(seconds, 3),
    }
