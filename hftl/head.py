"""The head method: a head trained on stored features, and the model that it becomes part of.

Where the model's own head is one linear layer on one vector, it is solved exactly; elsewhere the whole head is
trained with the model's own forward replayed on what is stored; and who asks for a hidden layer on pooled tokens gets a
perceptron. None reads the frozen weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hftl.backbones.protocol import Backbone
from hftl.backbones.replay import initial_head, needs_weights, replaying
from hftl.backbones.split import Split
from hftl.data import Data
from hftl.export.model import Dense, export_model, export_sentence_transformer, fold
from hftl.features.values import Ragged
from hftl.frozen import Features, Part
from hftl.heads import baselines, fit_linear, fit_mlp, fit_native, mlp_logits
from hftl.methods import Head

EVALUATION_ROWS = 1024


@dataclass
class TrainedHead:
    """A trained head.

    Attributes:
        logits: (n, C) float32 of the test split.
        export: writes the model folder.
        report: for ``metrics.json``.
        parameters: the head's parameters by the model's names, for fine-tuning to start from; empty for a pooled head.
    """

    logits: Tensor
    export: Callable[[Path], None]
    report: dict[str, Any]
    parameters: dict[str, Tensor] = field(default_factory=dict)


def train_head(
    method: Head,
    backbone: Backbone,
    config: Any,
    features: Features,
    data: Data,
    seed: int,
    device: torch.device,
) -> TrainedHead:
    """Train the head on stored features.

    Args:
        method: its options.
        backbone: the pretrained network; its weights are not read.
        config: the configuration with the label names.
        features: the stored features of all splits.
        data: what the labels mean.
        seed: of folds, batches and initial values.
        device: where to compute.

    Raises:
        ConvergenceError: there is no finite solution.
        UserError: an option does not fit the data.
    """
    replayed = features.split.kind == "replay"
    train = _perceptron if method.hidden else _native if replayed else _linear
    return train(method, backbone, config, features, data, seed, device)


def _linear(
    method: Head,
    backbone: Backbone,
    config: Any,
    features: Features,
    data: Data,
    seed: int,
    device: torch.device,
) -> TrainedHead:
    """The exact solution, for a head that is one linear layer on one vector."""
    split, info = features.split, features.space.info or {}
    vectors = {name: part.columns["features"].to(device) for name, part in features.parts.items()}
    labels = {name: torch.from_numpy(part.split.labels).to(device) for name, part in features.parts.items()}
    fit = fit_linear(
        vectors["train"],
        labels["train"],
        task=data.task,
        num_labels=len(data.label_names),
        strengths=method.strengths,
        folds=method.folds,
        rule=method.rule,
        class_weight=method.class_weight,
        calibrate=method.calibrate,
        bias=split.bias,
        validation=(vectors["validation"], labels["validation"]) if "validation" in vectors else None,
        seed=seed,
    )
    weight, bias = fit.weight.cpu(), fit.bias.cpu()
    if data.task == "single_label":
        fit.report["baselines"] = baselines(vectors["train"], labels["train"], vectors["test"], labels["test"])
    logits = fit.logits(vectors["test"]).cpu()
    if split.kind == "pooled":
        layers = [Dense(weight, bias)]
        export = partial(export_sentence_transformer, backbone, config, split.pooling or "", layers)
        return TrainedHead(logits, export, fit.report)
    parameters = fold(split, weight, bias)
    return TrainedHead(logits, partial(export_model, backbone, config, info, parameters), fit.report, parameters)


def _perceptron(
    method: Head,
    backbone: Backbone,
    config: Any,
    features: Features,
    data: Data,
    seed: int,
    device: torch.device,
) -> TrainedHead:
    """One hidden layer on pooled tokens, trained with AdamW."""
    vectors = {name: part.columns["features"].to(device) for name, part in features.parts.items()}
    labels = {name: torch.from_numpy(part.split.labels).to(device) for name, part in features.parts.items()}
    held = ({"features": vectors["validation"]}, labels["validation"]) if "validation" in vectors else None
    fit = fit_mlp(
        vectors["train"],
        labels["train"],
        task=data.task,
        num_labels=len(data.label_names),
        hidden=method.hidden or 0,
        class_weight=method.class_weight,
        calibrate=method.calibrate,
        validation=held,
        seed=seed,
    )
    logits = mlp_logits(fit.params, vectors["test"]).cpu()
    weights = {name: value.cpu() for name, value in fit.params.items()}
    layers = [
        Dense(weights["hidden.weight"], weights["hidden.bias"], "torch.nn.modules.activation.GELU"),
        Dense(weights["output.weight"], weights["output.bias"]),
    ]
    export = partial(export_sentence_transformer, backbone, config, features.split.pooling or "", layers)
    return TrainedHead(logits, export, fit.report)


def _native(
    method: Head,
    backbone: Backbone,
    config: Any,
    features: Features,
    data: Data,
    seed: int,
    device: torch.device,
) -> TrainedHead:
    """The model's own head, trained with AdamW on its forward replayed from the store."""
    split, info = features.split, features.space.info or {}
    model = backbone.skeleton(config)
    start = initial_head(model, set(split.head), seed)
    if needs_weights(model, split):
        model, _ = backbone.build(config)
    columns = {name: _as_tensors(part, split) for name, part in features.parts.items()}
    labels = {name: torch.from_numpy(part.split.labels) for name, part in features.parts.items()}
    with replaying(model, split) as replay:

        def forward(parameters: dict[str, Tensor], kept: dict[str, Tensor], train: bool) -> Tensor:
            _set_training(model, train)
            return replay(kept, parameters)

        fit = fit_native(
            forward,
            start,
            columns["train"],
            labels["train"],
            task=data.task,
            num_labels=len(data.label_names),
            class_weight=method.class_weight,
            calibrate=method.calibrate,
            validation=(columns["validation"], labels["validation"]) if "validation" in columns else None,
            seed=seed,
            device=device,
        )
        with torch.no_grad():
            logits = torch.cat([forward(fit.params, block, False).cpu() for block in _blocks(columns["test"], device)])
    parameters = {name: value.cpu() for name, value in fit.params.items()}
    return TrainedHead(logits, partial(export_model, backbone, config, info, parameters), fit.report, parameters)


def _as_tensors(part: Part, split: Split) -> dict[str, Tensor]:
    """The kept columns with rows first; ragged ones padded on the right with zeros."""
    tensors = {}
    for name in split.kept():
        value = part.columns[name]
        if isinstance(value, Ragged):
            rows = torch.split(value.values, value.lengths.tolist())
            value = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        tensors[name] = value
    return tensors


def _blocks(columns: Mapping[str, Tensor], device: torch.device) -> list[dict[str, Tensor]]:
    rows = len(next(iter(columns.values())))
    starts = range(0, rows, EVALUATION_ROWS)
    return [{name: v[start : start + EVALUATION_ROWS].to(device) for name, v in columns.items()} for start in starts]


def _set_training(model: nn.Module, train: bool) -> None:
    """Dropout of the head on or off; what is frozen never leaves eval mode, for it does not run."""
    if model.training != train:
        model.train(train)
