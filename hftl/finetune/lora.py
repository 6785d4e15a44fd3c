"""LoRA through PEFT, whose defaults know only some heads and no images; so modules are named here."""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hftl.backbones.batching import on_device
from hftl.backbones.blocks import find_depths
from hftl.backbones.precision import weights_dtype
from hftl.backbones.protocol import Backbone, Target
from hftl.backbones.quantized import is_quantized, is_quantized_linear
from hftl.errors import BackboneError, RecipeError
from hftl.finetune.groups import frozen_blocks
from hftl.methods import LoRA
from hftl.wording import did_you_mean, listing, named_error, one_line

SAVED = ".modules_to_save."
WEIGHTS = "adapter_model.safetensors"
# What PEFT has low-rank updates for.
WRAPPED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.MultiheadAttention, Conv1D)


def check_lora(skeleton: nn.Module, method: LoRA, backbone: Backbone) -> int:
    """See that PEFT takes the options and that the target modules are there, on a model without weights.

    Args:
        skeleton: of the model, on the meta device; changed in place.
        method: the options.
        backbone: for its name.

    Returns:
        How many numbers the low-rank updates hold.

    Raises:
        RecipeError: PEFT refuses the options, or a target module is not there.
        BackboneError: there is no linear layer to update, or the model does not run with PEFT's layers in place of its
            own, where a model without weights can tell.
    """
    check_targets(skeleton, method.lora.get("target_modules"), backbone.name)
    fields = {"r": method.r} | _targets(skeleton, _beside_body(skeleton), method, backbone.name)
    probe = on_device(backbone.probes()[0], torch.device("meta"))
    runs = _runs(skeleton, probe)
    # Starting values are computed from weights, which a skeleton does not have.
    wrapped = _wrapped(skeleton, fields | {"init_lora_weights": False, "use_dora": False})
    if runs:
        check_runs(wrapped, probe, backbone.name)
    return sum(parameter.numel() for parameter in wrapped.parameters() if parameter.requires_grad)


def check_targets(model: nn.Module, targets: Any, name: str) -> None:
    """See that each target module is one of the model's; PEFT itself is content if any of them is.

    Args:
        model: the model.
        targets: ``target_modules`` of PEFT's ``LoraConfig``: names or endings of names, or a pattern, or None.
        name: the backbone, for the error.

    Raises:
        RecipeError: one of them is not there.
    """
    if targets is None or targets == "all-linear":
        return
    names = [module_name for module_name, module in model.named_modules() if isinstance(module, WRAPPED)]
    endings = list(dict.fromkeys(module_name.rpartition(".")[2] for module_name in names))
    field = "method.lora.target_modules"
    if isinstance(targets, str):
        try:
            if any(re.fullmatch(targets, module_name) for module_name in names):
                return
        except re.error as error:
            raise RecipeError(f"{field}: {targets!r} is no pattern ({error}); give a list of names") from error
        if targets in {*names, *endings}:
            raise RecipeError(f"{field}: a text is a pattern for whole names; write [{json.dumps(targets)}]")
        raise RecipeError(f"{field}: no module of {name} fits the pattern {targets!r}; it has {listing(endings)}")
    everything = [module_name for module_name, _ in model.named_modules()]
    for target in targets:
        if not any(module_name == target or module_name.endswith(f".{target}") for module_name in everything):
            guess = did_you_mean(str(target), names if "." in str(target) else endings)
            raise RecipeError(f"{field}: {name} has no module {target!r}{guess}; it has {listing(endings)}")


def add_lora(model: nn.Module, method: LoRA, head: set[str], backbone: Backbone) -> PeftModel:
    """Wrap a model with low-rank updates; its head trains whole.

    Args:
        model: with the head to start from; changed in place.
        method: rank, scale and any other field of PEFT's ``LoraConfig``.
        head: names of the head's parameters.
        backbone: for its name and commit, which the adapter records.

    Raises:
        RecipeError: PEFT refuses the options.
        BackboneError: the head is no module of its own, there is no linear layer to update, or the model does not run
            with PEFT's layers in place of its own.
    """
    heads = head_modules(model, head, backbone.name)
    if is_quantized(model):
        # What is not quantised becomes float32, so that norms and sums of what blocks return are exact.
        prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    fields: dict[str, Any] = {
        "r": method.r,
        "lora_alpha": method.alpha if method.alpha is not None else method.r,
        "lora_dropout": method.dropout,
        "use_rslora": method.rslora,
        "use_dora": method.dora,
        "init_lora_weights": "pissa" if method.pissa else True,
        "modules_to_save": heads,
        "base_model_name_or_path": backbone.base_reference,
        "revision": backbone.commit,
    }
    # PEFT records what the model says it was loaded from, which is a folder of this machine.
    model.name_or_path = backbone.base_reference  # type: ignore[assignment]
    wrapped = _wrapped(model, fields | _targets(model, heads, method, backbone.name))
    check_runs(wrapped, backbone.probes()[0], backbone.name)
    return wrapped


def _targets(model: nn.Module, heads: list[str], method: LoRA, name: str) -> dict[str, Any]:
    """The fields of PEFT's configuration that the user gives, with target modules in any case."""
    asked = method.lora.get("target_modules")
    if method.from_block is None:
        return ({} if asked else {"target_modules": linear_modules(model, heads)}) | method.lora
    head = {p for p, _ in model.named_parameters() if any(p.startswith(f"{module}.") for module in heads)}
    depths = find_depths(model, head)
    last = frozen_blocks(method, depths, name) or 0
    deep = {parameter.rpartition(".")[0] for parameter, depth in depths.of.items() if depth > last}
    known = linear_modules(model, heads) if asked in (None, "all-linear") else _modules_called(model, asked)
    chosen = [module for module in known if module in deep]
    if not chosen:
        raise RecipeError(f"method.from_block is {method.from_block}, and from there on LoRA has no layer to update")
    # By their whole names, which no module of an earlier block has.
    return method.lora | {"target_modules": chosen}


def _modules_called(model: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """The modules that PEFT's ``target_modules`` stands for: a pattern of whole names, or names and endings."""
    names = [name for name, module in model.named_modules() if isinstance(module, WRAPPED)]
    if isinstance(targets, str):
        return [name for name in names if re.fullmatch(targets, name)]
    return [name for name in names if any(name == target or name.endswith(f".{target}") for target in targets)]


def check_runs(wrapped: PeftModel, probe: Mapping[str, Tensor], name: str) -> None:
    """See that a model runs with PEFT's layers in place of its own.

    Args:
        wrapped: the model.
        probe: inputs of a forward.
        name: the backbone, for the error.

    Raises:
        BackboneError: it does not.
    """
    try:
        with torch.no_grad():
            wrapped(**probe)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        # Some models read a layer's own attributes (its stride, to pad the input by), which PEFT's layers do not have.
        raise BackboneError(
            f"{name} does not run with LoRA's layers in place of its own ({named_error(error)}); use --method full or "
            "partial, or choose layers with --set 'method.lora.target_modules=[…]'"
        ) from error


def _beside_body(skeleton: nn.Module) -> list[str]:
    """What stands beside the body in a class of transformers, which is where a head is; none in other classes."""
    children = [name for name, _ in skeleton.named_children()]
    body = getattr(skeleton, "base_model_prefix", "")
    return [name for name in children if name != body] if body in children else []


def _runs(skeleton: nn.Module, probe: Mapping[str, Tensor]) -> bool:
    """Whether a model runs without weights; not where a forward asks what its numbers are."""
    try:
        with torch.no_grad():
            skeleton(**probe)
    except Exception:  # whatever a class raises on tensors that hold nothing
        return False
    return True


def _wrapped(model: nn.Module, fields: dict[str, Any]) -> PeftModel:
    try:
        with warnings.catch_warnings():
            # PEFT asks transformers for a property that transformers has renamed.
            warnings.simplefilter("ignore", FutureWarning)
            return get_peft_model(model, LoraConfig(**fields))
    except (TypeError, ValueError) as error:
        raise RecipeError(f"method.lora: {one_line(error)}") from error


def head_modules(model: nn.Module, head: set[str], name: str) -> list[str]:
    """The outermost modules all of whose parameters belong to the head, which together hold all of it.

    Raises:
        BackboneError: a parameter of the head lies directly in a module that has others too.
    """
    outermost: list[str] = []
    for module_name, module in model.named_modules():
        own = {f"{module_name}.{parameter}" for parameter, _ in module.named_parameters()}
        inside = any(module_name.startswith(f"{outer}.") for outer in outermost)
        if module_name and own and own <= head and not inside:
            outermost.append(module_name)
    covered = {p for p in head if any(p.startswith(f"{module}.") for module in outermost)}
    if covered != head:
        raise BackboneError(
            f"{name}: {sorted(head - covered)[0]} is no module of its own; use --method full or partial"
        )
    return outermost


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
    linear = [name for name, module in body if _is_plain_linear(module)]
    # A low-rank update of a grouped convolution would mix channels that the layer keeps apart.
    chosen = linear or [name for name, module in body if isinstance(module, nn.Conv2d) and module.groups == 1]
    if not chosen:
        others = list(dict.fromkeys(name.rpartition(".")[2] for name, module in body if isinstance(module, WRAPPED)))
        if not others:
            raise BackboneError("the model has no linear layer for LoRA; use --method full or partial")
        raise BackboneError(
            "the model has no linear layer that is surely one for LoRA: use --method full or partial, or name layers "
            f"with --set 'method.lora.target_modules=[…]'; it has {listing(others)}"
        )
    return chosen


def _is_plain_linear(module: nn.Module) -> bool:
    """Whether a module maps linearly; a subclass with a forward of its own, such as a router of experts, may not."""
    plain = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    return plain or isinstance(module, Conv1D) or is_quantized_linear(module)


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


def merged_in_full(target: Target, adapter: Path) -> Any:
    """A trained model of quantised weights as one of whole weights, which nobody needs bitsandbytes to load.

    The updates are added to what the quantised weights stand for, and not to them, which would round them once more.

    Args:
        target: the pretrained network, whose weights are quantised anew: some devices pack those that ran otherwise.
        adapter: what `save_adapter` wrote of it.
    """
    model: Any
    model, _ = target.build()
    with warnings.catch_warnings():
        # PEFT asks transformers for a property that transformers has renamed.
        warnings.simplefilter("ignore", FutureWarning)
        whole = PeftModel.from_pretrained(model.dequantize(weights_dtype(target.backbone)), str(adapter))
    return whole.merge_and_unload()


def adapter_tensors(model: PeftModel) -> dict[str, torch.Tensor]:
    """A copy of the adapter's tensors under the names that PEFT stores them."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: value.detach().clone().contiguous() for name, value in state.items()}
