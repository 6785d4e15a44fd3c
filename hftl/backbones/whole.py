"""Whether a checkpoint's configuration, weights and preprocessing belong together; each check refuses what does not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from hftl.backbones.weights import tensor_shapes
from hftl.errors import BackboneError
from hftl.wording import named_error

if TYPE_CHECKING:
    from hftl.backbones.pretrained import PretrainedBackbone

# How many times the checkpoint's numbers a model may hold (a checkpoint may lack tied or shared ones), and how many
# besides: a new head.
MOST_DESCRIBED, FREE_DESCRIBED = 4, 100_000_000


def check_size(backbone: PretrainedBackbone, config: Any) -> None:
    """Refuse a configuration that describes far more than its weights hold, before memory is taken for it.

    Raises:
        BackboneError: it does.
    """
    try:
        held = sum(math.prod(shape) for shape in tensor_shapes(backbone.weight_files()).values())
    except SafetensorError:
        return  # loading them says what is wrong
    described = sum(parameter.numel() for parameter in backbone.skeleton(config).parameters())
    if described > MOST_DESCRIBED * held + FREE_DESCRIBED:
        raise BackboneError(
            f"{backbone.name}: its config.json describes {described:,} parameters, its weights hold {held:,}; "
            "they do not belong together: fetch it again"
        )


def check_shapes(backbone: PretrainedBackbone, model: Any, mismatched: set[str]) -> None:
    """Refuse weights of the body that have another shape than the configuration says.

    transformers would draw them anew, and they would be trained like a head: only the labels may change a shape.

    Args:
        backbone: whose they are.
        model: built of it.
        mismatched: names of its parameters whose shape was another one in the checkpoint.

    Raises:
        BackboneError: some are of the body.
    """
    head = backbone.head_of(model)
    if backbone.shortened:
        mismatched = mismatched - backbone.shortened.norm
    wrong = sorted(mismatched - head) if head else []
    if wrong:
        raise BackboneError(
            f"{backbone.name}: {len(wrong):,} of its weights, such as {wrong[0]}, have another shape than its "
            "config.json says; they do not belong together: fetch it again"
        )


def first_mismatch(backbone: PretrainedBackbone, config: Any) -> str | None:
    """The first tensor whose shape is not what the configuration describes, which transformers only logs."""
    try:
        held = tensor_shapes(backbone.weight_files())
    except SafetensorError:
        return None
    model = backbone.skeleton(config)
    for name, value in model.state_dict().items():
        shape = held.get(name, held.get(name.removeprefix(f"{model.base_model_prefix}.")))
        if shape is not None and shape != list(value.shape):
            return f"its {name} has the shape {shape}, its config.json describes {list(value.shape)}"
    return None


def drawn_beside(backbone: PretrainedBackbone, model: Any, head: set[str], untrained: set[str]) -> list[str]:
    """The body's parameters that the checkpoint lacks: a whole part that ends the body, such as a pooler.

    Many checkpoints were published without one, and it is trained as the head is.

    Args:
        backbone: whose they are.
        model: built of it.
        head: names of its head's parameters.
        untrained: names of all parameters that the checkpoint lacks.

    Raises:
        BackboneError: others are missing, and the logits depend on them.
    """
    body = [name for name, _ in model.named_parameters() if name not in head]
    drawn = [name for name in body if name in untrained]
    # Without a base class nobody knows what is body and what is head.
    if not head or not drawn:
        return []
    parts = {name: name.removeprefix(f"{model.base_model_prefix}.").partition(".")[0] for name in body}
    held = [name for name in body if name not in untrained]
    held_parts = {parts[name] for name in held}
    after = set(body[body.index(held[-1]) :]) if held else set()
    gone = [name for name in drawn if name not in after or parts[name] in held_parts]
    if gone and _matter(backbone, model, gone):
        raise BackboneError(
            f"{backbone.name}: its weights lack {len(gone):,} tensors that config.json describes, such as {gone[0]}; "
            "they do not belong together, or the copy is not whole: fetch it again"
        )
    return [name for name in drawn if name not in gone]


def _matter(backbone: PretrainedBackbone, model: nn.Module, names: Sequence[str]) -> bool:
    """Whether the logits depend on any of some parameters."""
    logits = model(**backbone.probes()[0]).logits
    gradients = torch.autograd.grad(logits.sum(), [model.get_parameter(name) for name in names], allow_unused=True)
    return any(gradient is not None for gradient in gradients)


def check_fit(backbone: PretrainedBackbone, model: nn.Module) -> None:
    """Run the model once on what its preprocessing gives.

    Raises:
        BackboneError: the two do not fit.
    """
    batch = backbone.probes()[0]
    try:
        with torch.no_grad():
            model(**batch)
    except Exception as error:  # whatever the model's class raises on inputs that it was not made for
        shapes = ", ".join(f"{name} {tuple(value.shape[1:])}" for name, value in batch.items())
        raise BackboneError(
            f"{backbone.name}: the model cannot read what its own preprocessing gives ({shapes} a row): "
            f"{named_error(error)[:200]}; the two files config.json and {backbone.processor_file} do not fit each other"
        ) from error
