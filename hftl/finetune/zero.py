"""An engine for DeepSpeed, whose ZeRO keeps moments, gradients and weights in parts (Rajbhandari et al. 2020).

DeepSpeed's own checkpoints are pickles. Here tensors are put together by its public functions and saved as those of
any run are; so a run may go on with DeepSpeed or without.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from deepspeed import zero
from deepspeed.utils import (
    lazy_init_hp_params_optimizer_state,
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor
from transformers.integrations import unset_hf_deepspeed_config

from hftl.backbones.batching import on_device
from hftl.errors import UserError
from hftl.finetune.engine import Engine
from hftl.methods import FineTune
from hftl.wording import one_line

# What ZeRO spreads of AdamW's state; the number of steps is the same for all parameters.
MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroEngine(Engine):
    """A model in training under DeepSpeed with ZeRO of stage 1, 2 or 3.

    Args:
        accelerator: set up by `prepare_for_zero`.
        model: what is trained.
        optimizer: an AdamW over what trains.
        clip: largest norm of the gradient; infinite for no clipping.
        probe: inputs of a forward.

    Raises:
        UserError: DeepSpeed's configuration says what is the method's to say.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: Any,
        optimizer: torch.optim.Optimizer,
        clip: float,
        probe: Mapping[str, Tensor],
    ) -> None:
        config = accelerator.deepspeed_plugin.deepspeed_config
        # The loop itself cuts steps into parts and weighs these.
        config |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "train_batch_size": "auto"}
        config["gradient_clipping"] = clip if math.isfinite(clip) else 0.0
        try:
            super().__init__(accelerator, model, optimizer, clip)
        except (ValueError, AssertionError) as error:
            raise UserError(f"DeepSpeed: {one_line(error)}") from error
        self.stage = accelerator.deepspeed_plugin.zero_stage
        self.probe = on_device(probe, accelerator.device)
        if accelerator.mixed_precision == "bf16":
            # DeepSpeed turns the model's weights into bfloat16, but not its inputs.
            model.register_forward_pre_hook(_in_bfloat16, with_kwargs=True)

    # ── a step ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:  # noqa: D102
        self.wrapped.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:  # noqa: D102
        # Accelerate's own would take the step as well, before anyone has looked at the loss.
        self.wrapped.backward(loss)

    def clip(self) -> None:
        """Nothing: DeepSpeed clips in its step."""

    def step(self) -> float:
        """Update the weights; DeepSpeed leaves them where the gradient's norm is NaN or infinite."""
        self.wrapped.step()
        return float(self.wrapped.get_global_grad_norm())

    # ── what a checkpoint holds ──────────────────────────────────────────────────────────────────────────────────────

    @property
    def is_spread(self) -> bool:
        """True: the weights in full precision are in parts, even where the model's own are not."""
        return True

    def weights(self) -> dict[str, Tensor]:  # noqa: D102
        trained = {name: safe_get_full_fp32_param(parameter).cpu() for name, parameter in self.trained.items()}
        return trained | {name: value.cpu() for name, value in self.buffers().items()}

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:  # noqa: D102
        buffers = self.buffers()
        for name, value in weights.items():
            if name in buffers:
                buffers[name].copy_(value)
                continue
            parameter = self.trained[name]
            with zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(value)
            self._set_part(parameter, value)

    def moments(self) -> dict[str, Tensor]:  # noqa: D102
        states = list(self._adam.state.values())
        if not states:
            return {}
        self._link_moments()
        moments = {f"step:{name}": states[0]["step"].to("cpu", copy=True) for name in self.trained}
        for kind in MOMENTS:
            moments |= {f"{kind}:{n}": safe_get_full_optimizer_state(p, kind).cpu() for n, p in self.trained.items()}
        return moments

    def load_moments(self, moments: Mapping[str, Tensor]) -> None:  # noqa: D102
        if not moments:
            return
        self._make_moments()
        for key, value in moments.items():
            kind, _, name = key.partition(":")
            if kind in MOMENTS:
                self._set_part(self.trained[name], value, kind)
        for state in self._adam.state.values():
            state["step"].fill_(moments[f"step:{next(iter(self.trained))}"])

    def _set_part(self, parameter: Any, value: Tensor, kind: str | None = None) -> None:
        """Set this process's part of a weight in full precision, or of a moment, from the whole."""
        value = value.to(self.accelerator.device)
        if self.stage < 3:
            if kind:
                safe_set_full_optimizer_state(parameter, value, kind)
            else:
                safe_set_full_fp32_param(parameter, value)
            return
        # Not so at stage 3, where these fail for a parameter that processes cannot share evenly.
        size = parameter.ds_tensor.numel()
        filled = F.pad(value.flatten(), (0, size * self.accelerator.num_processes - value.numel()))
        part = filled[self.accelerator.process_index * size :][:size]
        if kind:
            safe_set_local_optimizer_state(parameter, part, kind)
        else:
            safe_set_local_fp32_param(parameter, part)

    def _make_moments(self) -> None:
        """AdamW makes its moments at the first step, and ZeRO knows them only then: take one that changes nothing."""
        for group in self.param_groups:
            group["lr"] = 0.0
        with self.micro_batch(last=True):
            self.backward(self.wrapped(**self.probe).logits.float().sum() * 0.0)
        self.step()
        self._link_moments()

    def _link_moments(self) -> None:
        """Tell parameters where their moments are; DeepSpeed 0.19 does so for the optimizer's first group only."""
        optimizer = self.optimizer.optimizer
        if self.stage < 3:
            for parameters, part in zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True):
                lazy_init_hp_params_optimizer_state(parameters, part, self._adam.state)

    @property
    def _adam(self) -> Any:
        """The optimizer over this process's parts: in ZeRO's, in accelerate's."""
        return self.optimizer.optimizer.optimizer


def prepare_for_zero(accelerator: Accelerator, method: FineTune) -> None:
    """See that DeepSpeed can do what a method asks for, before a model is built.

    Raises:
        UserError: it cannot.
    """
    if accelerator.deepspeed_plugin.zero_stage not in (1, 2, 3):
        raise UserError("DeepSpeed runs with ZeRO of stage 1, 2 or 3; without it, launch with accelerate's MULTI_GPU")
    asked = {
        "mixed_precision=fp16": accelerator.mixed_precision == "fp16",
        "compile": method.compile,
        "ema": method.ema,
        "unfreeze": method.unfreeze,
        "lr=auto": method.lr == "auto",
        "batch_size=auto": method.batch_size == "auto",
        "micro_batch=auto": method.micro_batch == "auto",
    }
    if unknown := [name for name, wanted in asked.items() if wanted]:
        raise UserError(f"{unknown[0]} does not work with DeepSpeed; leave it out, or launch with MULTI_GPU or FSDP2")
    # With stage 3 transformers would spread the weights while it reads them, and the head could not be set.
    unset_hf_deepspeed_config()


def _in_bfloat16(_: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return positional, {
        name: value.bfloat16() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in named.items()
    }
