"""LoRA through PEFT, whose defaults know only some heads and no images; so modules are named here."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from hftl.backbones.protocol import Backbone
from hftl.errors import BackboneError, RecipeError
from hftl.methods import LoRA
from hftl.wording import one_line

SAVED = ".modules_to_save."
WEIGHTS = "adapter_model.safetensors"


def add_lora(model: nn.Module, method: LoRA, head: set[str], backbone: Backbone) -> PeftModel:
    """Wrap a model with low-rank updates; its head trains whole.

    Args:
        model: with the head to start from; changed in place.
        method: rank, scale and any other field of PEFT's ``LoraConfig``.
        head: names of the head's parameters.
        backbone: for its name and commit, which the adapter records.

    Raises:
        RecipeError: PEFT refuses the options.
        BackboneError: the head is no module of its own, or there is no linear layer to update.
    """
    heads = head_modules(model, head, backbone.name)
    fields: dict[str, Any] = {
        "r": method.r,
        "lora_alpha": method.alpha if method.alpha is not None else method.r,
        "lora_dropout": method.dropout,
        "use_rslora": method.rslora,
        "use_dora": method.dora,
        "init_lora_weights": "pissa" if method.pissa else True,
        "target_modules": linear_modules(model, heads),
        "modules_to_save": heads,
        "base_model_name_or_path": backbone.base_reference,
        "revision": backbone.commit,
    }
    # PEFT records what the model says it was loaded from, which is a folder of this machine.
    model.name_or_path = backbone.base_reference  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():
            # PEFT asks transformers for a property that transformers has renamed.
            warnings.simplefilter("ignore", FutureWarning)
            return get_peft_model(model, LoraConfig(**fields | method.lora))
    except (TypeError, ValueError) as error:
        raise RecipeError(f"method.lora: {one_line(error)}") from error


def head_modules(model: nn.Module, head: set[str], name: str) -> list[str]:
    """The outermost modules all of whose parameters belong to the head, which together hold all of it.

    Raises:
        BackboneError: a parameter of the head lies directly in a module that has others too.
    """
    found: list[str] = []
    for module_name, module in model.named_modules():
        own = {f"{module_name}.{parameter}" for parameter, _ in module.named_parameters()}
        inside = any(module_name.startswith(f"{outer}.") for outer in found)
        if module_name and own and own <= head and not inside:
            found.append(module_name)
    covered = {p for p in head if any(p.startswith(f"{module}.") for module in found)}
    if covered != head:
        raise BackboneError(
            f"{name}: {sorted(head - covered)[0]} is no module of its own; use --method full or partial"
        )
    return found


def linear_modules(model: nn.Module, heads: list[str]) -> list[str]:
    """All linear layers of the body; where there are none, its convolutions.

    Raises:
        BackboneError: there is neither.
    """
    body = [
        (name, module)
        for name, module in model.named_modules()
        if not any(name == head or name.startswith(f"{head}.") for head in heads)
    ]
    linear = [name for name, module in body if isinstance(module, (nn.Linear, Conv1D))]
    found = linear or [name for name, module in body if isinstance(module, nn.Conv2d) and module.groups == 1]
    if not found:
        raise BackboneError(
            "the model has no linear layer for LoRA; name others with --set method.lora.target_modules=…"
        )
    return found


def lora_head(model: nn.Module) -> set[str]:
    """Names of the head's parameters in a wrapped model."""
    return {name for name, _ in model.named_parameters() if SAVED in name}


def save_adapter(model: PeftModel, initial: dict[str, torch.Tensor] | None, folder: Path) -> None:
    """Write a standard PEFT folder: updates and head in safetensors, and the configuration.

    Args:
        model: the wrapped model.
        initial: the adapter before training, where its start changed the base weights (PiSSA): it is subtracted, so
            that the adapter fits the base model as it is published.
        folder: where to write.
    """
    if initial is None:
        model.save_pretrained(str(folder), save_embedding_layers=False)
        return
    with tempfile.TemporaryDirectory() as start, warnings.catch_warnings():
        # PEFT advises to do what is being done.
        warnings.filterwarnings("ignore", message="PiSSA changes the base weights", category=UserWarning)
        save_file(initial, Path(start) / WEIGHTS)
        model.save_pretrained(str(folder), save_embedding_layers=False, path_initial_model_for_weight_conversion=start)
    # The conversion keeps only the updates, and the head belongs to the adapter.
    converted = load_file(folder / WEIGHTS)
    save_file(adapter_tensors(model) | converted, folder / WEIGHTS, metadata={"format": "pt"})


def adapter_tensors(model: PeftModel) -> dict[str, torch.Tensor]:
    """A copy of the adapter's tensors under the names that PEFT stores them."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: value.detach().clone().contiguous() for name, value in state.items()}
