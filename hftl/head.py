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
    job = _Job(method, backbone, config, features, data, seed, device)
    if method.hidden:
        return job.perceptron(method.hidden)
    return job.native() if features.split.kind == "replay" else job.linear()


@dataclass(frozen=True)
class _Job:
    """What `train_head` was given, and one method for each kind of head."""

    method: Head
    backbone: Backbone
    config: Any
    features: Features
    data: Data
    seed: int
    device: torch.device

    def linear(self) -> TrainedHead:
        """The exact solution, for a head that is one linear layer on one vector."""
        method, split = self.method, self.features.split
        vectors, labels = self._vectors(), self._labels()
        fit = fit_linear(
            vectors["train"],
            labels["train"],
            task=self.data.task,
            num_labels=len(self.data.label_names),
            strengths=method.strengths,
            folds=method.folds,
            rule=method.rule,
            class_weight=method.class_weight,
            calibrate=method.calibrate,
            bias=split.bias,
            validation=(vectors["validation"], labels["validation"]) if "validation" in vectors else None,
            seed=self.seed,
        )
        weight, bias = fit.weight.cpu(), fit.bias.cpu()
        if self.data.task == "single_label":
            fit.report["baselines"] = baselines(vectors["train"], labels["train"], vectors["test"], labels["test"])
        logits = fit.logits(vectors["test"]).cpu()
        if split.kind == "pooled":
            return TrainedHead(logits, self._export_pooled([Dense(weight, bias)]), fit.report)
        parameters = fold(split, weight, bias)
        return TrainedHead(logits, self._export(parameters), fit.report, parameters)

    def perceptron(self, hidden: int) -> TrainedHead:
        """One hidden layer on pooled tokens, trained with AdamW."""
        vectors, labels = self._vectors(), self._labels()
        held = ({"features": vectors["validation"]}, labels["validation"]) if "validation" in vectors else None
        fit = fit_mlp(
            vectors["train"],
            labels["train"],
            task=self.data.task,
            num_labels=len(self.data.label_names),
            hidden=hidden,
            class_weight=self.method.class_weight,
            calibrate=self.method.calibrate,
            validation=held,
            seed=self.seed,
        )
        logits = mlp_logits(fit.params, vectors["test"]).cpu()
        weights = {name: value.cpu() for name, value in fit.params.items()}
        layers = [
            Dense(weights["hidden.weight"], weights["hidden.bias"], "torch.nn.modules.activation.GELU"),
            Dense(weights["output.weight"], weights["output.bias"]),
        ]
        return TrainedHead(logits, self._export_pooled(layers), fit.report)

    def native(self) -> TrainedHead:
        """The model's own head, trained with AdamW on its forward replayed from the store."""
        split = self.features.split
        model = self.backbone.skeleton(self.config)
        start = initial_head(model, set(split.head), self.seed)
        if needs_weights(model, split):
            model, _ = self.backbone.build(self.config)
        columns = {name: _as_tensors(part, split) for name, part in self.features.parts.items()}
        labels = self._labels()
        with replaying(model, split) as replay:

            def forward(parameters: dict[str, Tensor], kept: dict[str, Tensor], train: bool) -> Tensor:
                _set_training(model, train)
                return replay(kept, parameters)

            fit = fit_native(
                forward,
                start,
                columns["train"],
                labels["train"],
                task=self.data.task,
                num_labels=len(self.data.label_names),
                class_weight=self.method.class_weight,
                calibrate=self.method.calibrate,
                validation=(columns["validation"], labels["validation"]) if "validation" in columns else None,
                seed=self.seed,
                device=self.device,
            )
            with torch.no_grad():
                blocks = [forward(fit.params, block, False).cpu() for block in _blocks(columns["test"], self.device)]
        parameters = {name: value.cpu() for name, value in fit.params.items()}
        return TrainedHead(torch.cat(blocks), self._export(parameters), fit.report, parameters)

    def _vectors(self) -> dict[str, Tensor]:
        return {name: part.columns["features"].to(self.device) for name, part in self.features.parts.items()}

    def _labels(self) -> dict[str, Tensor]:
        parts = self.features.parts
        return {name: torch.from_numpy(part.split.labels).to(self.device) for name, part in parts.items()}

    def _export(self, parameters: dict[str, Tensor]) -> Callable[[Path], None]:
        return partial(export_model, self.backbone, self.config, self.features.space.info or {}, parameters)

    def _export_pooled(self, layers: list[Dense]) -> Callable[[Path], None]:
        pooling = self.features.split.pooling or ""
        return partial(export_sentence_transformer, self.backbone, self.config, pooling, layers)


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
