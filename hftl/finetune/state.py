"""Tensors of a model and its optimizer, whole and by name, whatever distributed form they have on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(value: Tensor) -> Tensor:
    """A tensor without its sharding; every process must call it."""
    value = value.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 has spread a model's parameters over processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


@torch.no_grad()
def assign(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded."""
    target.copy_(_like(value, target))


def _like(value: Tensor, target: Tensor) -> Tensor:
    if isinstance(target, DTensor):
        return distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    return value.to(target.device)


def optimizer_state(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """AdamW's moments and step counts, named ``exp_avg:PARAMETER`` and so on, on the CPU."""
    return {
        f"{kind}:{name}": whole(value).cpu()
        for name, parameter in parameters.items()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_state` gave."""
    optimizer.state.clear()
    for key, value in saved.items():
        kind, _, name = key.partition(":")
        parameter = parameters[name]
        state: dict[str, Any] = optimizer.state[parameter]
        # Step counts lie beside the parameter where the fused kernel reads them there, else on the CPU.
        state[kind] = _like(value, parameter) if value.dim() or optimizer.defaults["fused"] else value
        if kind == "step":
            state[kind] = value.to(parameter.device) if optimizer.defaults["fused"] else value
