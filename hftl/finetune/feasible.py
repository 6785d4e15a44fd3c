"""Checks of what fine-tuning will need, made before features are computed, so that no typing error costs minutes.

No weight is read: a model's modules and sizes are known from its skeleton.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import is_bf16_available
from torch import nn

from hftl.backbones.bare import Bare
from hftl.backbones.blocks import find_depths
from hftl.backbones.protocol import Target
from hftl.errors import BackboneError, RecipeError, UserError
from hftl.finetune.groups import frozen_blocks
from hftl.finetune.lora import check_lora
from hftl.methods import FineTune, LoRA, Partial

TRACKERS = ("tensorboard", "trackio", "wandb", "mlflow")
BYTES = 4
# Weights are float32, and AdamW keeps two moments of each.
TENSORS_IN_CHECKPOINT = 3
# Refused is only what cannot end well; an estimate that is just above what is free might.
CLEARLY = 0.9


def check(method: FineTune, target: Target, folder: Path, track: Sequence[str] = ()) -> None:
    """See that a run can do what is asked of it, as far as that can be known without weights.

    Args:
        method: what trains, and how.
        target: the pretrained network, and the configuration to build it with.
        folder: where the run will write; need not exist.
        track: trackers to log to.

    Raises:
        RecipeError: a tracker is unknown or not installed, or PEFT refuses the options or target modules of LoRA.
        UserError: this machine does not know the precision, or has clearly not enough space.
        BackboneError: the model has no blocks to freeze, or no class of its own to train quantised.
    """
    check_trackers(track)
    check_precision(method)
    skeleton = target.skeleton()
    total = _numbers_of(skeleton)
    trained = total
    if isinstance(method, LoRA) and method.quantize and isinstance(target.backbone, Bare):
        raise BackboneError(
            f"quantize={method.quantize!r}: {target.backbone.name} has no classification class of its own to train, "
            "and hftl's reads whole weights: leave it out, or use --method head"
        )
    if isinstance(method, Partial):
        depths = find_depths(skeleton, set())
        last = frozen_blocks(method, depths, target.backbone.name) or 0
        trained = sum(p.numel() for name, p in skeleton.named_parameters() if depths.of[name] > last)
    if isinstance(method, LoRA):
        trained = check_lora(skeleton, method, target.backbone)
    check_space(method, folder, total * BYTES, trained * BYTES)


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


def check_precision(method: FineTune) -> None:
    """See that this machine computes in the precision that is asked for.

    Raises:
        UserError: it does not.
    """
    if method.mixed_precision == "fp16" and PartialState().device.type == "cpu":
        # Accelerate would train in float32 and say nothing.
        raise UserError("mixed_precision=fp16 trains on GPUs only; use bf16, or leave it out")
    if method.mixed_precision == "bf16" and not is_bf16_available(ignore_tpu=True):
        raise UserError("mixed_precision=bf16: this GPU has no bfloat16; use fp16, or leave it out")


def check_space(method: FineTune, folder: Path, model: int, trained: int) -> None:
    """See that the checkpoints and the exported model have a place.

    Args:
        method: how many checkpoints are kept.
        folder: where the run will write; need not exist.
        model: bytes of the exported model.
        trained: bytes of the weights that train.

    Raises:
        UserError: there is clearly not enough space.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    checkpoint = trained * (TENSORS_IN_CHECKPOINT + (method.ema is not None))
    # While one is written, those that will be kept are still there.
    count = method.keep + 1 if method.save_every else min(method.keep + 1, method.epochs)
    # The best epoch's weights lie beside the checkpoints.
    needed = model + trained + checkpoint * count
    already = sum(file.stat().st_size for file in (folder / "checkpoints").rglob("*") if file.is_file())
    free = shutil.disk_usage(existing).free + already
    if CLEARLY * needed > free:
        raise UserError(
            f"{existing} has {_gigabytes(free)} free, and the run needs about {_gigabytes(needed)}: a model of "
            f"{_gigabytes(model)} and {count:,} checkpoints of {_gigabytes(checkpoint)}; free some space, give another "
            "folder with --out, or keep fewer with --keep 1"
        )


def _numbers_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"
