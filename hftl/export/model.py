"""A run's model as anybody loads it: a plain transformers folder, or a base model with its head for pooled ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hftl.backbones.bare import HEAD_FACTS, HEAD_WEIGHTS, Bare
from hftl.backbones.cut.cut import Cut
from hftl.backbones.pooling import Pooled
from hftl.backbones.precision import weights_dtype
from hftl.backbones.protocol import Target
from hftl.backbones.quantized import is_quantized
from hftl.backbones.sentence import MODES, POOLINGS
from hftl.backbones.weights import NameRule, write_weights
from hftl.export.trained import Exported

WEIGHTS = "model.safetensors"


def fold(cut: Cut, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """A solved linear head as the parameters of the model's own Linear."""
    folded = {f"{cut.linear}.weight": weight}
    return folded | {f"{cut.linear}.bias": bias} if cut.bias else folded


def export_model(
    target: Target, architecture: str, rule: NameRule | None, head: Mapping[str, Tensor], folder: Path
) -> list[Exported]:
    """Write a folder that ``transformers.pipeline`` loads without hftl.

    Args:
        target: the pretrained network, and the configuration with the label names.
        architecture: the model's class.
        rule: how the checkpoint's tensors are renamed; None where only the class itself can save them.
        head: the trained head's parameters and buffers by the model's names, float32.
        folder: where to write; made if missing.
    """
    backbone, config = target.backbone, target.config
    folder.mkdir(parents=True, exist_ok=True)
    config.architectures = [architecture]
    if rule is None:
        model, _ = target.build()
        if is_quantized(model):
            # Of a quantised checkpoint transformers converts no tensor, and would feed a float32 head 16 bits.
            for name in head:
                model.get_parameter(name).data = model.get_parameter(name).data.to(weights_dtype(backbone))
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name in head:
                    tensor.copy_(head[name])
        model.save_pretrained(folder)  # type: ignore[operator]
    else:
        write_weights(folder / WEIGHTS, rule, backbone.weight_files(), head, weights_dtype(backbone))
    # Last, because a model's own save_pretrained writes the configuration that it ran with.
    finish_export(target, folder)
    return [Exported(folder, backbone.library)]


def finish_export(target: Target, folder: Path) -> None:
    """Write configuration and preprocessing beside a model's weights."""
    target.config.save_pretrained(folder)
    target.backbone.save_processor(folder)


@dataclass(frozen=True)
class Dense:
    """A layer of a head: ``activation(features @ weight.T + bias)``.

    Attributes:
        weight: (out, in) float32.
        bias: (out,) float32.
        activation: the name of a module of torch, as sentence-transformers imports it.
    """

    weight: Tensor
    bias: Tensor
    activation: str = "torch.nn.modules.linear.Identity"


def export_pooled(
    target: Target, pooled: Pooled, layers: Sequence[Dense], rule: NameRule | None, folder: Path, body: Any = None
) -> list[Exported]:
    """Write a base model in its own class, and what pools and classifies what it returns.

    What sentence-transformers can hold is written for it: its ``encode`` gives the logits. All else has its head in
    ``head.safetensors`` and ``head.json`` beside it. The label names stand in ``config.json`` in either case.

    Args:
        target: the pretrained network, and the configuration with the label names.
        pooled: how its tokens are pooled.
        layers: of the head; for anything but sentence-transformers, one.
        rule: how the checkpoint's tensors are renamed; None where only the class itself can save them.
        folder: where to write; made if missing.
        body: the base model where it was trained; None for the checkpoint's weights.
    """
    backbone, config = target.backbone, target.config
    folder.mkdir(parents=True, exist_ok=True)
    if body is None and rule is None:
        model, _ = target.build()
        body = model.base_model
    if body is not None:
        body.save_pretrained(folder)
        config.architectures = [type(body).__name__]
    elif rule is not None:
        write_weights(folder / WEIGHTS, rule, backbone.weight_files(), {}, weights_dtype(backbone))
        if isinstance(backbone, Bare):
            config.architectures = [backbone.base_class]
    # Last, because a model's own save_pretrained writes the configuration that it ran with.
    finish_export(target, folder)
    if backbone.wants == "text" and pooled.kind in POOLINGS:
        _write_modules(folder, pooled, layers, backbone.max_length)
        return [Exported(folder, "sentence-transformers")]
    head = {"weight": layers[0].weight, "bias": layers[0].bias}
    write_weights(folder / HEAD_WEIGHTS, NameRule("", []), {}, head, torch.float32)
    names = [config.id2label[number] for number in range(config.num_labels)]
    facts = asdict(pooled)
    _write_json(folder / HEAD_FACTS, {"pooling": facts.pop("kind"), **facts, "labels": names})
    return [Exported(folder, backbone.library)]


def _write_modules(folder: Path, pooled: Pooled, layers: Sequence[Dense], max_length: int | None) -> None:
    """Write what sentence-transformers runs after the body: the pooling, and the head's layers."""
    parts = ["1_Pooling", *(f"{number}_Dense" for number in range(2, 2 + len(layers)))]
    for part in parts:
        (folder / part).mkdir(parents=True, exist_ok=True)
    modules = [
        {"idx": i, "name": str(i), "path": part, "type": f"sentence_transformers.models.{part.partition('_')[2]}"}
        for i, part in enumerate(["", *parts])
    ]
    modules[0]["type"] = "sentence_transformers.models.Transformer"
    _write_json(folder / "modules.json", modules)
    modes = {mode: MODES.get(mode) in pooled.parts for mode in (*MODES, *OTHER_MODES)}
    width = layers[0].weight.shape[1] // len(pooled.parts)
    _write_json(folder / parts[0] / "config.json", {"word_embedding_dimension": width, **modes})
    for part, layer in zip(parts[1:], layers, strict=True):
        tensors = {"linear.weight": layer.weight, "linear.bias": layer.bias}
        write_weights(folder / part / WEIGHTS, NameRule("", []), {}, tensors, torch.float32)
        size, width = layer.weight.shape
        shape = {"in_features": width, "out_features": size, "bias": True}
        _write_json(folder / part / "config.json", {**shape, "activation_function": layer.activation})
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length})


# Its other modes, which are none of hftl's.
OTHER_MODES = tuple(f"pooling_mode_{mode}" for mode in ("max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens"))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
