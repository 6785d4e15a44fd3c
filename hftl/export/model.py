"""A run's model as anybody loads it: a plain transformers folder, or a sentence-transformers one for pooled heads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hftl.backbones.bare import BareImageBackbone
from hftl.backbones.cut.cut import Cut
from hftl.backbones.precision import weights_dtype
from hftl.backbones.protocol import Target
from hftl.backbones.quantized import is_quantized
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
    """Write configuration and preprocessing beside a model's weights, and give a bare model's head files of its own."""
    target.config.save_pretrained(folder)
    target.backbone.save_processor(folder)
    if isinstance(target.backbone, BareImageBackbone):
        target.backbone.part_head(folder, [target.config.id2label[i] for i in range(target.config.num_labels)])


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


def export_sentence_transformer(target: Target, pooling: str, layers: Sequence[Dense], folder: Path) -> list[Exported]:
    """Write a folder that ``sentence_transformers.SentenceTransformer`` loads: body, pooling, and the head's layers.

    ``encode`` gives the logits; the label names stand in ``config.json``.

    Args:
        target: the pretrained text network, and the configuration with the label names.
        pooling: ``"mean"`` or ``"cls"``.
        layers: of the head.
        folder: where to write; made if missing.
    """
    backbone, config = target.backbone, target.config
    parts = ["1_Pooling", *(f"{number}_Dense" for number in range(2, 2 + len(layers)))]
    for part in parts:
        (folder / part).mkdir(parents=True, exist_ok=True)
    write_weights(folder / WEIGHTS, NameRule("", []), backbone.weight_files(), {}, weights_dtype(backbone))
    config.save_pretrained(folder)
    backbone.save_processor(folder)
    modules = [
        {"idx": i, "name": str(i), "path": part, "type": f"sentence_transformers.models.{part.partition('_')[2]}"}
        for i, part in enumerate(["", *parts])
    ]
    modules[0]["type"] = "sentence_transformers.models.Transformer"
    _write_json(folder / "modules.json", modules)
    modes = {f"pooling_mode_{mode}": mode.startswith(pooling + "_tok") for mode in MODES}
    _write_json(folder / parts[0] / "config.json", {"word_embedding_dimension": layers[0].weight.shape[1], **modes})
    for part, layer in zip(parts[1:], layers, strict=True):
        tensors = {"linear.weight": layer.weight, "linear.bias": layer.bias}
        write_weights(folder / part / WEIGHTS, NameRule("", []), {}, tensors, torch.float32)
        size, width = layer.weight.shape
        shape = {"in_features": width, "out_features": size, "bias": True}
        _write_json(folder / part / "config.json", {**shape, "activation_function": layer.activation})
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": backbone.max_length})
    return [Exported(folder, "sentence-transformers")]


MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
