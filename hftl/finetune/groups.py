"""Parameters that train: how deep they lie in a model, and in which group of the optimizer they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from hftl.backbones.blocks import block_lists
from hftl.errors import BackboneError, RecipeError


@dataclass(frozen=True)
class Depths:
    """How deep each parameter of a model lies.

    Attributes:
        of: by parameter name: 0 for embeddings, 1 … ``blocks`` for the repeated blocks, ``blocks + 1`` for what follows
            and for the head.
        blocks: number of repeated blocks.
    """

    of: dict[str, int]
    blocks: int


def find_depths(model: nn.Module, head: set[str]) -> Depths:
    """Find the repeated blocks of any architecture: the outermost lists of modules of one class, in the model's order.

    Args:
        model: the whole model.
        head: names of the head's parameters.
    """
    starts = [f"{name}.{i}." for name, count in block_lists(model, head).items() for i in range(count)]
    depth_of: dict[str, int] = {}
    seen = 0
    for name, _ in model.named_parameters():
        inside = next((i for i, start in enumerate(starts) if name.startswith(start)), None)
        if name in head:
            depth_of[name] = len(starts) + 1
        elif inside is not None:
            depth_of[name] = inside + 1
            seen = max(seen, inside + 1)
        else:
            # Registered before the first block: embeddings. After it: final norms and poolers.
            depth_of[name] = len(starts) + 1 if seen else 0
    return Depths(depth_of, len(starts))


def freeze_below(model: nn.Module, depths: Depths, freeze: int, name: str) -> None:
    """Freeze the embeddings and the first blocks.

    Args:
        model: changed in place.
        depths: from `find_depths`.
        freeze: number of blocks; negative counts from the end, as in Python.
        name: the backbone, for the error.

    Raises:
        BackboneError: the model has no repeated blocks.
        RecipeError: it has not that many.
    """
    last = blocks_to_freeze(depths, freeze, name)
    for parameter, module in model.named_parameters():
        if depths.of[parameter] <= last:
            module.requires_grad_(False)


def blocks_to_freeze(depths: Depths, freeze: int, name: str) -> int:
    """How many blocks ``freeze`` stands for, negative numbers counted from the end; raises as `freeze_below`."""
    if not depths.blocks:
        raise BackboneError(f"{name} has no repeated blocks to freeze; use --method full, lora or head")
    if not -depths.blocks <= freeze <= depths.blocks:
        raise RecipeError(f"method.freeze is {freeze}, but {name} has {depths.blocks} blocks")
    return freeze if freeze >= 0 else depths.blocks + freeze


def set_modes(model: nn.Module) -> None:
    """Training mode for what trains; a module whose parameters are all frozen stays in eval mode.

    So the running statistics of a frozen batch norm do not move, and frozen blocks drop nothing out.
    """
    model.train()
    _freeze_modes(model)


def _freeze_modes(module: nn.Module) -> None:
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        module.eval()
        return
    for child in module.children():
        _freeze_modes(child)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to biases, norms and other vectors, nor to a scale of one number."""
    return parameter.dim() > 1 and not name.endswith("bias")


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    depths: Depths,
    head: set[str],
    *,
    lr: float,
    head_lr: float,
    layer_decay: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Groups for the optimizer: one for each learning rate, with and without weight decay.

    Args:
        parameters: those that train.
        depths: how deep they lie.
        head: names of the head's parameters.
        lr: learning rate just below the head.
        head_lr: learning rate of the head.
        layer_decay: what the learning rate is multiplied with for each block further down (Clark et al. 2020, ELECTRA).
        weight_decay: of weights that are neither norms nor biases.

    Returns:
        Dictionaries with ``params``, ``names``, ``lr``, ``base_lr`` and ``weight_decay``, in a fixed order.
    """
    top = depths.blocks + 1
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in parameters:
        decay = decays(name, parameter)
        rate = head_lr if name in head else lr * layer_decay ** (top - depths.of[name])
        # As few groups as there are rates: the optimizer launches its kernel once for each.
        group = groups.setdefault(
            (rate, decay),
            {
                "params": [],
                "names": [],
                "lr": rate,
                "base_lr": rate,
                "weight_decay": weight_decay if decay else 0.0,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return [groups[key] for key in sorted(groups)]
