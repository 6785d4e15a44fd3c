"""Fine-tuning from a pretrained backbone to logits and files: build, start, train, choose, export."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import Tensor, nn

from hftl.backbones.bare import Bare
from hftl.backbones.batching import needs_equal_lengths
from hftl.backbones.blocks import Depths, find_depths
from hftl.backbones.protocol import Target
from hftl.backbones.quantized import is_quantized
from hftl.criterion import Criterion
from hftl.data import Data, Split
from hftl.data.augment import Augmentation
from hftl.data.dataset import Indices
from hftl.data.division import hold_out_rows
from hftl.errors import BackboneError, HftlError, UserError
from hftl.export.model import Dense, export_pooled, finish_export
from hftl.export.trained import Exported, Trained
from hftl.finetune.auto import choose_lr, largest_micro_batch
from hftl.finetune.checkpoint import Checkpoint, Checkpoints, DamagedError, prune, read_checkpoint
from hftl.finetune.engine import Engine
from hftl.finetune.evaluate import logits_of
from hftl.finetune.feasible import check_precision, check_trackers
from hftl.finetune.groups import freeze_below, frozen_blocks, parameter_groups, run_below, set_modes
from hftl.finetune.loop import Loop, Watch, better_at_start
from hftl.finetune.lora import adapter_tensors, add_lora, lora_head, merged_in_full, save_adapter
from hftl.finetune.losses import Loss
from hftl.finetune.memory import peak_memory_bytes
from hftl.finetune.mixing import Mixing
from hftl.finetune.resume import flat_settings, resumed, settings
from hftl.finetune.rows import Encoder, TrainRows
from hftl.finetune.stored import Frozen, run_to, stored_blocks
from hftl.foreign import forget_precision
from hftl.heads.abstention import abstention_report
from hftl.heads.thresholds import threshold_report
from hftl.methods import F1, Aim, FineTune, LoRA, Partial
from hftl.onednn import speed_up
from hftl.parallel import Process, broadcast, broadcast_tensors, on_main
from hftl.progress import Progress
from hftl.store.shard import Digests
from hftl.wording import one_line

DEFAULT_BATCH = 32
# The share of the training rows that chooses the epoch where the data bring no validation split.
SET_ASIDE = 0.1
COMPILER = "inductor"


@dataclass
class Built:
    """A model ready to train.

    Attributes:
        model: what is trained; a ``PeftModel`` for LoRA.
        head: names of its head's parameters.
        depths: of all parameters.
        below: modules that only frozen ones follow; see `hftl.finetune.groups.run_below`.
        frozen: the first blocks, where the method freezes some.
        initial: the adapter before training, for PiSSA.
    """

    model: Any
    head: set[str]
    depths: Depths
    below: Sequence[str]
    frozen: Frozen | None = None
    initial: dict[str, Tensor] | None = None


def finetune(
    method: FineTune,
    target: Target,
    data: Data,
    *,
    criterion: Criterion | None = None,
    start: Mapping[str, Tensor] | None,
    seed: int,
    folder: Path,
    resume: bool = False,
    known: Mapping[str, Digests] | None = None,
    origin: Mapping[str, str] | None = None,
    track: Sequence[str] = (),
    aim: Aim = F1,
    log: Callable[..., None] = lambda *_, **__: None,
    say: Callable[[str], None] = lambda _: None,
    quiet: bool = True,
) -> Trained:
    """Train a model by any of the three methods; every process calls it.

    Args:
        method: what trains, and how.
        target: the pretrained network, and the configuration to build it with.
        data: rows and labels, all of them decodable.
        criterion: the metric that chooses the epoch; None for the task's own.
        start: the head's parameters to start from, by the model's names, on the main process; None leaves the head
            as it is built.
        seed: of every random choice.
        folder: the run's folder; checkpoints go to ``checkpoints`` in it.
        resume: go on from the newest whole checkpoint there.
        known: digests (n, 16) of the rows of splits, by the splits' names, where stored features brought them.
        origin: who registered the backbone, and the version of its features, for frozen blocks to run once and be read
            from the store; None lets them run in every epoch.
        track: trackers of accelerate to log to as well.
        aim: what thresholds are chosen for, on the validation rows.
        log: takes an event's name and its values.
        say: takes a line for a person.
        quiet: show no progress.

    Raises:
        Interrupted: SIGTERM or SIGINT came; the state is saved.
        HftlError: the loss is not finite, or something cannot be written.
        UserError: the method does not fit the backbone or the data, or no checkpoint fits.
    """
    started = time.monotonic()
    criterion = criterion or Criterion.of_task(data.task)
    check_trackers(track)
    accelerator = accelerator_for(method, folder, track)
    # Only the main process reads and writes checkpoints, so it alone says what they depend on: what the data were
    # before any rows were set aside, which is a function of the settings.
    made_with = broadcast(on_main(lambda: settings(method, target.backbone, data, seed, known, criterion)))
    data, chooses = with_validation(data, method, criterion, seed, say)
    built = build(method, target, broadcast_tensors(dict(start) if start else None), seed, mean_target(data))
    if not method.compile:
        speed_up(built.model, rows_vary=target.backbone.wants == "text")
    checkpoints = Checkpoints(folder / "checkpoints", made_with)
    checkpoint = resumed(checkpoints, say) if resume else None
    if not resume and accelerator.is_main_process and any(checkpoints.folder.glob("step-*")):
        raise UserError(
            f"{checkpoints.folder} holds checkpoints; add --resume to go on, or give another folder with --out"
        )

    # Measured while the model is still whole and on the CPU.
    equal_lengths = needs_equal_lengths(built.model.eval(), target.backbone.probes(), target.backbone.name)
    engine = engine_for(method, accelerator, built, target)
    if equal_lengths:
        say("rows      padding changes this model's numbers, so rows are evaluated in batches of equal length (slower)")
    rows = train_rows(method, target, data, seed, accelerator)
    encoder: Callable[[Split], Encoder] = partial(Encoder, target.backbone, equal_lengths=equal_lengths)
    from_store = ExitStack()
    stored = None
    if built.frozen and origin is not None:
        ran = checkpoint.state["chosen"].get("stored") if checkpoint else None
        where = (engine, built.frozen, target, data, origin)
        stored = stored_blocks(method, *where, before=ran, say=say, quiet=quiet)
    if stored:
        from_store.enter_context(stored.continued)
        encoder = stored.encoder
        rows.encoder = encoder(data.train)
    test = encoder(data.test)
    watched = encoder(data.validation) if data.validation else test
    watch = Watch(watched, data.label_names, criterion, chooses)
    log = tracked(log, accelerator)
    loop = Loop(method, engine, rows, watch, built.depths, checkpoints, log=log, below=built.below)
    if built.frozen and not checkpoint:
        loop.choose(stored=stored is not None)
    if track:
        accelerator.init_trackers("hftl", config=flat_settings(checkpoints.made_with))
    if not checkpoint and "auto" in (method.batch_size, method.micro_batch):
        loop.choose(micro_batch=largest_micro_batch(loop))
        say(f"batch     {loop.rows.batch_size} rows a step, {loop.rows.micro_batch} of them at a time on each process")
    if not checkpoint and method.lr == "auto":
        loop.choose(lr=choose_lr(loop, say))
    if checkpoint:
        loop.restore(checkpoint)
        say(f"resume    from step {loop.state.step} of {loop.total}")
        log("resume", step=loop.state.step, of=loop.total)
    before = loop.state.step
    loop.run(quiet=quiet)
    keep_best(loop)
    judge = partial(logits_of, accelerator, engine.unsynchronised, is_spread=engine.is_spread)
    tuned: dict[str, Any] = {}
    with Progress("test", quiet=quiet):
        logits = judge(test, loop.rows.micro_batch)
        held_out = partial(judge, watched, loop.rows.micro_batch)
        if chooses and data.task.link == "sigmoid":
            tuned = threshold_report(held_out(), torch.from_numpy(watched.split.labels), aim)
        elif chooses and aim.metric == "coverage":
            tuned = abstention_report(held_out(), torch.from_numpy(watched.split.labels), aim.least)
    # What is exported is the model as it is.
    from_store.close()
    outside = None
    if data.outside:
        outside = judge(Encoder(target.backbone, data.outside, equal_lengths=equal_lengths), loop.rows.micro_batch)
    for tracker in accelerator.trackers:
        # Not accelerator.end_training, which also ends the processes' group while the model still holds on to it.
        tracker.finish()
    if loop.engine.is_spread:
        built = unsharded(loop, target, seed)
    report = report_of(loop, built, time.monotonic() - started, before) | tuned
    rounded = stored.rows.storage if stored and not stored.rows.is_exact else "float32"
    exported = partial(export, built, target)
    return Trained(logits, "finetune", report, exported, outside=outside, storage=rounded)


# ── what is trained ──────────────────────────────────────────────────────────────────────────────────────────────────


def build(
    method: FineTune, target: Target, start: Mapping[str, Tensor], seed: int, mean: Tensor | None = None
) -> Built:
    """The pretrained model with the head to start from, and only what the method trains left trainable.

    Args:
        method: what trains.
        target: the pretrained network, and the configuration to build it with.
        start: the head's parameters, by name; empty where the head was not solved.
        seed: of what is drawn.
        mean: (C,) of the training targets of a regression, which a head that was not solved starts from.

    Raises:
        BackboneError: the model does not fit the method.
    """
    backbone = target.backbone
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any
        model, head = target.build()
        tensors = model.state_dict()
        with torch.no_grad():
            for name, value in start.items():
                tensors[name].copy_(value)
        if mean is not None and not start:
            start_at_mean(model, head, mean, backbone.probes()[0])
        initial = None
        if isinstance(method, LoRA):
            model = add_lora(model, method, head, backbone)
            head = lora_head(model)
            initial = adapter_tensors(model) if method.pissa else None
        depths = find_depths(model, head)
        last = frozen_blocks(method, depths, backbone.name)
        if isinstance(method, Partial):
            freeze_below(model, depths, last or 0)
        freeze_unused(model, backbone.probes()[0])
        if last and any(p.requires_grad and depths.of.get(n, 0) <= last for n, p in model.named_parameters()):
            # PEFT was told to train something below the first block with an adapter, such as biases.
            last = None
        below = run_below(model, backbone.probes()[0])
        frozen = frozen_part(model, depths, below, last, backbone.probes()[0]) if last else None
    if method.gradient_checkpointing:
        try:
            # Its older name, before transformers renamed it.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        except (ValueError, AttributeError) as error:
            raise BackboneError(f"{backbone.name} knows no gradient checkpointing; leave it out") from error
    return Built(model, head, depths, below, frozen, initial)


def frozen_part(
    model: nn.Module, depths: Depths, below: Sequence[str], count: int, probe: Mapping[str, Tensor]
) -> Frozen:
    """The first blocks, and whether what the last of them returns is random while the model trains."""
    last = depths.names[count - 1]
    set_modes(model, below)
    seen = []
    for seed in range(2):
        torch.manual_seed(seed)
        seen.append(run_to(model, last, probe))
    # A block that is left out at random returns nothing.
    same = all(seen) and len(seen[0]) == len(seen[1])
    same = same and all(torch.equal(one, other) for one, other in zip(*seen, strict=True))
    same = same and not getattr(model.config, "layerdrop", 0)
    return Frozen(count, depths.blocks, last, random=not same)


def mean_target(data: Data) -> Tensor | None:
    """The mean (C,) of the training targets; None where labels are classes."""
    return None if data.task.has_classes else torch.from_numpy(data.train.labels.mean(0, dtype=np.float64)).float()


@torch.no_grad()
def start_at_mean(model: Any, head: set[str], mean: Tensor, probe: Mapping[str, Tensor]) -> None:
    """Let a head that was drawn predict the mean of the targets, as the best constant does.

    From zero, AdamW would need about mean / lr steps to get there, and the body would be torn meanwhile. A bias that is
    not zero comes from a checkpoint that was trained, and stays; so does a head that ends in anything else than a
    linear layer with a bias.

    Args:
        model: changed in place.
        head: names of the head's parameters.
        mean: (C,) of the training targets.
        probe: inputs of a forward, on which it is seen that the bias shifts the logits.
    """
    last = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.bias" in head and module.out_features == len(mean)
    ]
    if not last or bool(last[-1].bias.any()):
        return
    bias = last[-1].bias
    before = model(**probe).logits
    mean = mean.to(bias.device)
    bias.copy_(mean)
    if not torch.allclose(model(**probe).logits - before, mean, rtol=1e-3, atol=1e-3 * float(mean.abs().max())):
        bias.zero_()


def unsharded(loop: Loop, target: Target, seed: int) -> Built:
    """The trained model in one piece, for export: built again, with the weights that training changed."""
    weights = loop.engine.weights()
    built = build(loop.method, target, {}, seed)
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


def rows_set_aside(data: Data, method: FineTune, seed: int) -> tuple[Indices, Indices] | None:
    """Training rows that stay, and those that choose the epoch; None where a split does, or nothing."""
    if data.validation is not None or method.patience is None:
        return None
    return hold_out_rows(data.train, data.task, SET_ASIDE, seed)


def with_validation(
    data: Data, method: FineTune, criterion: Criterion, seed: int, say: Callable[[str], None]
) -> tuple[Data, bool]:
    """The data with what chooses the epoch, and whether anything does."""
    if data.validation is not None:
        say(f"epochs    the best by {criterion.name} on the validation split is kept")
        return data, True
    parts = rows_set_aside(data, method, seed)
    if parts is None:
        say("epochs    no validation split (--patience 2 sets training rows aside for one): the last epoch is kept")
        return data, False
    stays, drawn = parts
    say(f"epochs    {len(drawn):,} training rows set aside to choose the epoch by {criterion.name}, seed {seed}")
    return replace(data, train=data.train.select(stays), validation=data.train.select(drawn, "validation")), True


# ── how it is trained ────────────────────────────────────────────────────────────────────────────────────────────────


def accelerator_for(method: FineTune, folder: Path, track: Sequence[str]) -> Accelerator:
    """Accelerate, as the user's own launcher has configured it.

    Raises:
        UserError: precision or a kind of distribution that this machine, or a checkpoint of hftl, does not know.
    """
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)] if method.unfreeze else []
    forget_precision()
    try:
        accelerator = Accelerator(
            mixed_precision=method.mixed_precision,
            dynamo_backend=COMPILER if method.compile else None,
            log_with=list(track) or None,
            project_dir=str(folder),
            kwargs_handlers=handlers,
        )
    except ValueError as error:
        raise UserError(f"mixed_precision={method.mixed_precision}: {one_line(error)}") from error
    check_precision(method)
    kind = accelerator.distributed_type
    if isinstance(method, LoRA) and method.quantize and kind in (DistributedType.DEEPSPEED, DistributedType.FSDP):
        raise UserError(f"quantize={method.quantize!r} does not run on {kind.value}: launch with MULTI_GPU, or without")
    if kind == DistributedType.DEEPSPEED:
        from hftl.finetune.zero import prepare_for_zero

        prepare_for_zero(accelerator, method)
    # These two keep weights and moments where a checkpoint does not reach.
    elif kind == DistributedType.MEGATRON_LM or (kind == DistributedType.FSDP and not accelerator.is_fsdp2):
        raise UserError(
            f"fine-tuning does not run on {kind.value}; launch with accelerate's MULTI_GPU, FSDP version 2 or DEEPSPEED"
        )
    return accelerator


def engine_for(method: FineTune, accelerator: Accelerator, built: Built, target: Target) -> Engine:
    """The model and an AdamW over what trains, on the devices and spread as the launcher says."""
    # Relative to what the range test will choose.
    lr = 1.0 if method.lr == "auto" else method.lr
    groups = parameter_groups(
        ((name, p) for name, p in built.model.named_parameters() if p.requires_grad),
        built.depths,
        built.head,
        lr=lr,
        head_lr=method.head_lr or lr,
        layer_decay=method.layer_decay,
        weight_decay=method.weight_decay,
    )
    # One kernel for all parameters, where torch has it.
    fused = accelerator.device.type in ("cpu", "cuda")
    optimizer, clip = torch.optim.AdamW(groups, lr=lr, fused=fused), method.clip or math.inf
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from hftl.finetune.zero import ZeroEngine

        return ZeroEngine(accelerator, built.model, optimizer, clip, target.backbone.probes()[0])
    return Engine(accelerator, built.model, optimizer, clip)


def train_rows(method: FineTune, target: Target, data: Data, seed: int, accelerator: Accelerator) -> TrainRows:
    """The training rows in the order of their steps, and the loss of them."""
    num_labels = len(data.label_names)
    weights = data.task.class_weights(
        method.class_weight, torch.from_numpy(data.task.by_line(data.train.labels)), num_labels
    )
    batch_size = DEFAULT_BATCH if method.batch_size == "auto" else method.batch_size
    share_of_one = math.ceil(batch_size / accelerator.num_processes)
    return TrainRows(
        Encoder(target.backbone, data.train),
        Loss(data.task, num_labels, method.label_smoothing, None if weights is None else weights.float()),
        Process(accelerator.device, accelerator.process_index, accelerator.num_processes),
        seed=seed,
        batch_size=batch_size,
        micro_batch=method.micro_batch if isinstance(method.micro_batch, int) else share_of_one,
        augmentation=Augmentation.of(method),
        mixing=Mixing(method.mixup, method.cutmix),
        views=method.views if isinstance(method, (LoRA, Partial)) else None,
    )


def tracked(log: Callable[..., None], accelerator: Accelerator) -> Callable[..., None]:
    """``log``, and accelerate's trackers beside it."""

    def log_and_track(event: str, **values: Any) -> None:
        log(event, **values)
        numbers = {f"{event}/{name}": v for name, v in values.items() if isinstance(v, (int, float))}
        if event in ("step", "epoch") and accelerator.trackers:
            accelerator.log(numbers, step=values["step"])

    return log_and_track


# ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def keep_best(loop: Loop) -> None:
    """Put the weights that are kept into the model: the best epoch's, else the average's if there is one."""
    folder = loop.checkpoints.folder
    if loop.watch.chooses:

        def read() -> Checkpoint:
            try:
                return read_checkpoint(folder / "best")
            except DamagedError as error:
                raise HftlError(f"the best epoch's weights in {folder / 'best'} are damaged: {error}") from error

        best = on_main(read)
        loop.engine.load_weights(broadcast_tensors(best.tensors["model"] if best else None))
    elif loop.ema:
        with torch.no_grad():
            for name, parameter in loop.engine.trained.items():
                parameter.copy_(loop.ema.averages[name])
    if loop.accelerator.is_main_process:
        prune(folder, loop.method.keep)


def export(built: Built, target: Target, folder: Path) -> list[Exported]:
    """Write a folder that transformers loads; for LoRA also ``adapter`` beside it, which PEFT loads.

    Args:
        built: the trained model.
        target: for its preprocessing files and the configuration with the label names.
        folder: where the model goes; made if missing.
    """
    backbone, model = target.backbone, built.model
    exported = [Exported(folder, backbone.library)]
    if hasattr(model, "peft_config"):
        # An adapter of a class that hftl made fits no model that anybody else can load.
        if not isinstance(backbone, Bare):
            adapter = folder.parent / "adapter"
            save_adapter(model, built.initial, adapter)
            backbone.save_processor(adapter)
            exported.append(Exported(adapter, "peft"))
        if is_quantized(model.get_base_model()):
            model = merged_in_full(target, adapter)
            # The weights are whole again, and the backbone's own configuration goes on to say that they are not.
            target = replace(target, config=copy.deepcopy(target.config))
            del target.config.quantization_config
        else:
            model = model.merge_and_unload()
    if isinstance(backbone, Bare):
        head = Dense(model.classifier.weight.detach().cpu(), model.classifier.bias.detach().cpu())
        return export_pooled(target, backbone.pooling, [head], None, folder, model.body)
    model.save_pretrained(folder)
    target.config.architectures = [type(model).__name__]
    # Last, because a model's own save_pretrained writes the configuration that it ran with.
    finish_export(target, folder)
    return exported


def report_of(loop: Loop, built: Built, seconds: float, before: int) -> dict[str, Any]:
    """What ``metrics.json`` tells about the training.

    Args:
        loop: at its end.
        built: the trained model.
        seconds: wall time of all of it.
        before: steps done when this process began, by a run that was stopped.
    """
    model, history = built.model, loop.state.history
    kept = loop.state.best if loop.watch.chooses else len(history) - 1
    return {
        "parameters": {
            # One byte holds two weights of 4 bits.
            "all": model.get_nb_trainable_parameters()[1]
            if is_quantized(model)
            else sum(p.numel() for p in model.parameters()),
            "trained": sum(p.numel() for p in loop.engine.trained.values()),
        },
        "steps": loop.state.step,
        "resumed_at": before or None,
        "epochs": history,
        "kept_epoch": kept,
        "chosen_by": loop.watch.criterion.name if loop.watch.chooses else None,
        "start": {**history[0], "better_in": better_at_start(loop.watch.criterion, history, kept)},
        "batch_size": loop.rows.batch_size,
        "micro_batch": loop.rows.micro_batch,
        "lr": max(group["base_lr"] for group in loop.engine.param_groups),
        "processes": loop.accelerator.num_processes,
        "mixed_precision": loop.accelerator.mixed_precision,
        "peak_memory_bytes": peak_memory_bytes(loop.accelerator.device),
        "seconds": round(seconds, 3),
    }
