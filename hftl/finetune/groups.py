"""Parameters that train: how deep they lie in a model, and in which group of the optimizer they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from hftl.backbones.blocks import Depths
from hftl.errors import BackboneError, RecipeError
from hftl.methods import FineTune, LoRA, Partial


def freeze_below(model: nn.Module, depths: Depths, last: int) -> None:
    """Freeze the embeddings and the first ``last`` blocks.

    Args:
        model: changed in place.
        depths: from `hftl.backbones.blocks.find_depths`.
        last: from `frozen_blocks`.
    """
    for parameter, module in model.named_parameters():
        if depths.of[parameter] <= last:
            module.requires_grad_(False)


def frozen_blocks(method: FineTune, depths: Depths, name: str) -> int | None:
    """How many of the first blocks a method freezes; None where it trains something in all of them.

    Args:
        method: what trains.
        depths: from `hftl.backbones.blocks.find_depths`.
        name: the backbone, for the error.

    Raises:
        BackboneError: the model has no repeated blocks.
        RecipeError: it has not that many.
    """
    if isinstance(method, Partial):
        field, asked, most = "freeze", method.freeze, depths.blocks
    elif isinstance(method, LoRA) and method.from_block is not None:
        field, asked, most = "from_block", method.from_block, depths.blocks - 1
    else:
        return None
    if not depths.blocks:
        others = "full or head" if isinstance(method, LoRA) else "full, lora or head"
        raise BackboneError(f"{name} has no repeated blocks to freeze; use --method {others}")
    if not -depths.blocks <= asked <= most:
        raise RecipeError(f"method.{field} is {asked}, but {name} has {depths.blocks} blocks: give at most {most}")
    return asked if asked >= 0 else depths.blocks + asked


def set_modes(model: nn.Module, below: Sequence[str] = ()) -> None:
    """Training mode for what trains; a module whose parameters are all frozen stays in eval mode.

    So the running statistics of a frozen batch norm do not move, and frozen blocks drop nothing out.

    Args:
        model: changed in place.
        below: modules without parameters of their own that only frozen ones follow, from `run_below`.
    """
    model.train()
    _freeze_modes(model)
    for name in below:
        model.get_submodule(name).eval()


@torch.no_grad()
def run_below(model: nn.Module, batch: Mapping[str, Tensor]) -> list[str]:
    """Innermost modules that run before anything that trains, and only then, such as a dropout of the embeddings.

    Args:
        model: with what trains marked.
        batch: inputs of a forward.
    """
    ran: dict[str, list[bool]] = {}
    reached = False

    def reach(*_: object) -> None:
        nonlocal reached
        reached = True

    def note(name: str) -> Any:
        return lambda *_: ran.setdefault(name, []).append(reached)

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
                hooks.callback(module.register_forward_pre_hook(reach).remove)
            elif next(module.children(), None) is None:
                hooks.callback(module.register_forward_hook(note(name)).remove)
        model(**batch)
    return [name for name, after in ran.items() if not any(after)]


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
