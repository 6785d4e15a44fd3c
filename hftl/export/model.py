"""A run's model as anybody loads it: a plain transformers folder, or a sentence-transformers one for pooled heads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hftl.backbones.protocol import Backbone
from hftl.backbones.split import Split
from hftl.backbones.weights import NameRule, write_weights

WEIGHTS = "model.safetensors"


def fold(split: Split, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """A solved linear head as the parameters of the model's own Linear."""
    folded = {f"{split.linear}.weight": weight}
    return folded | {f"{split.linear}.bias": bias} if split.bias else folded


def export_model(
    backbone: Backbone, config: Any, info: Mapping[str, Any], head: Mapping[str, Tensor], folder: Path
) -> None:
    """Write a folder that ``transformers.pipeline`` loads without hftl.

    Args:
        backbone: the pretrained network.
        config: the configuration with the label names.
        info: what the feature space records: the architecture, and how weights are named.
        head: the trained head's parameters by the model's names, float32.
        folder: where to write; made if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config.architectures = [info["architecture"]]
    if info["weights"] is None:
        # Names that no simple rule explains: the class itself knows how to save them.
        model, _ = backbone.build(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in head:
                    parameter.copy_(head[name])
        model.save_pretrained(folder)  # type: ignore[operator]
    else:
        write_weights(folder / WEIGHTS, NameRule(**info["weights"]), backbone.weight_files(), head, torch.float32)
    # Last, for a model's own save_pretrained writes the configuration that it ran with.
    config.save_pretrained(folder)
    backbone.save_processor(folder)


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


def export_sentence_transformer(
    backbone: Backbone, config: Any, pooling: str, layers: Sequence[Dense], folder: Path
) -> None:
    """Write a folder that ``sentence_transformers.SentenceTransformer`` loads: body, pooling, and the head's layers.

    ``encode`` gives the logits; the label names stand in ``config.json``.

    Args:
        backbone: the pretrained text network.
        config: the configuration with the label names.
        pooling: ``"mean"`` or ``"cls"``.
        layers: of the head.
        folder: where to write; made if missing.
    """
    parts = ["1_Pooling", *(f"{number}_Dense" for number in range(2, 2 + len(layers)))]
    for part in parts:
        (folder / part).mkdir(parents=True, exist_ok=True)
    write_weights(folder / WEIGHTS, NameRule("", []), backbone.weight_files(), {}, torch.float32)
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
    _write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": backbone.identity()["processor"]["max_length"]},
    )


MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
