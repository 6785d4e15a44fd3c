"""The devices' part of a step, backward and update; and weights and moments, whole and by name.

A model in training may lie spread over processes: with FSDP2 as tensors that know their shards, with DeepSpeed in
buffers of its own (`hftl.finetune.zero`). A checkpoint holds whole tensors, whatever made it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from hftl.errors import UserError
from hftl.foreign import block_classes


class Engine:
    """A model in training under accelerate: in one process or several, with DDP or FSDP2.

    Args:
        accelerator: knows processes, devices and precision.
        model: what is trained; moved to the device.
        optimizer: an AdamW over what trains.
        clip: largest norm of the gradient; infinite for no clipping.

    Raises:
        UserError: the model does not run under FSDP2.

    Attributes:
        model: the model itself, of which ``wrapped`` may be a distributed wrapper.
        unsynchronised: what to call outside of training, where DDP's wrapper would synchronise buffers.
        trained: its parameters that train, by name.
    """

    def __init__(self, accelerator: Accelerator, model: Any, optimizer: torch.optim.Optimizer, clip: float) -> None:
        self.accelerator = accelerator
        self.model = model
        self.wrapped: Any
        self.optimizer: Any
        if accelerator.is_fsdp2:
            spread_by_block(accelerator.state.fsdp_plugin, model)
        self.wrapped, self.optimizer = accelerator.prepare(model, optimizer)
        # FSDP2 gathers a compiled model's weights when the wrapper is called, not the model.
        self.unsynchronised = self.wrapped if accelerator.is_fsdp2 else model
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.clip_at = clip
        self.norm: Any = None

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups, in each of which ``lr`` may be set."""
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        return groups

    # ── a step ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of each part of a step; processes exchange gradients in the last."""
        return nullcontext() if last else self.accelerator.no_sync(self.wrapped)

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients, which are averaged over processes."""
        self.accelerator.backward(loss)

    def clip(self) -> None:
        """Scale the gradient down to the largest norm allowed; does not wait for the device."""
        self.norm = self.accelerator.clip_grad_norm_(list(self.trained.values()), self.clip_at)

    def step(self) -> float:
        """Update the weights and forget the gradient, whose norm before clipping is returned.

        Where that is NaN or infinite, the weights stay. A scaler of float16 gradients meets it now and then, and
        lowers its scale.
        """
        norm = float(whole(self.norm))
        if math.isfinite(norm) or self.accelerator.scaler:
            self.optimizer.step()
        self.forget_gradient()
        return norm

    def forget_gradient(self) -> None:
        """Free it, whether or not a step was taken."""
        self.optimizer.zero_grad(set_to_none=True)

    # ── what a checkpoint holds ──────────────────────────────────────────────────────────────────────────────────────

    @property
    def is_spread(self) -> bool:
        """Whether no process has the whole model."""
        return any(isinstance(parameter, DTensor) for parameter in self.model.parameters())

    def weights(self) -> dict[str, Tensor]:
        """What training changes, on the CPU: trained parameters, and buffers such as running statistics."""
        return {name: whole(value).cpu() for name, value in {**self.trained, **self.buffers()}.items()}

    def buffers(self) -> dict[str, Tensor]:
        """The buffers that a model's files hold."""
        saved = set(self.model.state_dict())
        return {name: value for name, value in self.model.named_buffers() if name in saved}

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Set what `weights` gave."""
        targets = {**self.trained, **self.buffers()}
        for name, value in weights.items():
            assign(targets[name], value)

    def moments(self) -> dict[str, Tensor]:
        """AdamW's moments and step counts, named ``exp_avg:PARAMETER`` and so on, on the CPU."""
        states = self.optimizer.optimizer.state
        return {
            f"{kind}:{name}": whole(value).cpu()
            for name, parameter in self.trained.items()
            for kind, value in states.get(parameter, {}).items()
        }

    def load_moments(self, moments: Mapping[str, Tensor]) -> None:
        """Set what `moments` gave; an empty mapping forgets all."""
        optimizer = self.optimizer.optimizer
        optimizer.state.clear()
        for key, value in moments.items():
            kind, _, name = key.partition(":")
            parameter = self.trained[name]
            state: dict[str, Any] = optimizer.state[parameter]
            if kind != "step":
                state[kind] = _like(value, parameter)
            else:
                # Step counts lie beside the parameter where the fused kernel reads them there, else on the CPU.
                state[kind] = value.to(parameter.device) if optimizer.defaults["fused"] else value


def spread_by_block(plugin: FullyShardedDataParallelPlugin, model: Any) -> None:
    """Name the classes of modules that FSDP2 gathers one at a time, where the user has named none.

    A model names them itself, but among them what holds its input embedding (``ViTEmbeddings``, ``BertEmbeddings``);
    accelerate 1.15 spreads the embedding once more afterwards, and fails.

    Raises:
        UserError: the model does not know its input embedding, which accelerate asks for.
    """
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError as error:
        raise UserError(
            f"{type(model).__name__} names no input embedding, without which FSDP2 does not run; launch with MULTI_GPU"
        ) from error
    if plugin.transformer_cls_names_to_wrap is None:
        holders = {type(module).__name__ for module in model.modules() if embedding in module.modules()}
        plugin.transformer_cls_names_to_wrap = [name for name in block_classes(model) if name not in holders]


def whole(value: Tensor) -> Tensor:
    """A tensor without its sharding; every process must call it."""
    value = value.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value


@torch.no_grad()
def assign(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded."""
    target.copy_(_like(value, target))


def _like(value: Tensor, target: Tensor) -> Tensor:
    if isinstance(target, DTensor):
        return distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    return value.to(target.device)
