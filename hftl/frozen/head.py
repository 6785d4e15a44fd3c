"""The head method: a head trained on stored features, and the model that it becomes part of.

Where the model's own head is one linear layer on one vector, it is solved exactly; elsewhere the whole head is
trained with the model's own forward replayed on what is stored; and who asks for a hidden layer on pooled tokens gets a
perceptron. None reads the frozen weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hftl.backbones.bare import HEAD, Bare
from hftl.backbones.cut.cut import Cut
from hftl.backbones.cut.replay import STATISTICS, initial_head, measured_buffers, needs_weights, replaying
from hftl.backbones.pooling import Pooled
from hftl.backbones.protocol import Target
from hftl.backbones.weights import NameRule
from hftl.criterion import Criterion
from hftl.data import Data
from hftl.data.dataset import rows_of_lines
from hftl.data.division import fold_count, folds_of
from hftl.data.scope import OUTSIDE
from hftl.export.model import Dense, export_model, export_pooled, fold
from hftl.export.trained import Exported, Trained, not_kept
from hftl.frozen.features import SplitFeatures, StoredFeatures, line_columns
from hftl.frozen.rounding import logit_slack
from hftl.frozen.vectors import matrix_of
from hftl.heads import baselines, fit_linear, fit_linear_folds, fit_mlp, fit_native, mlp_logits
from hftl.heads.baselines import neighbours_among
from hftl.heads.basis import STRENGTHS_OF_A_PATH
from hftl.heads.matrix import Matrix
from hftl.heads.nested import FOLDS_THAT_SHARE
from hftl.heads.precision import device_with_float64
from hftl.methods import F1, Aim, Head
from hftl.store.values import Ragged, by_row

EVALUATION_ROWS = 1024
# Of a network's outputs, which fine-tuning goes on with.
LEAST_DEVIATION = 1e-6
# Of what heads of folds that are solved together hold: their scales, themselves at each strength, what they say.
MOST_BYTES_OF_FOLDS = 2 << 30
# Of which one is held out, where a head has no exact solution.
FOLDS_OF_A_SEARCH = 5


def train_head(
    method: Head,
    target: Target,
    features: StoredFeatures,
    data: Data,
    *,
    seed: int,
    device: torch.device,
    aim: Aim = F1,
    criterion: Criterion | None = None,
    tolerance: float = 1e-10,
) -> Trained:
    """Train the head on stored features.

    Args:
        method: its options.
        target: the pretrained network, whose weights are not read, and the configuration with the label names.
        features: the stored features of all splits.
        data: what the labels mean.
        seed: of folds, batches and initial values.
        device: where to compute; the CPU instead where it has no float64.
        aim: what thresholds are chosen for.
        criterion: the metric that chooses the strength, or the setting and the round, where a recipe named one; the
            held-out loss does otherwise, and where it is None.
        tolerance: relative distance from the minimum at which a linear head stops.

    Raises:
        ConvergenceError: there is no finite solution.
        UserError: an option does not fit the data.
    """
    judge = criterion if criterion and criterion.is_stated else None
    job = _Job(method, target, features, data, seed, device_with_float64(device), aim, judge, tolerance)
    if method.hidden:
        return job.perceptron(method.hidden)
    return job.native() if features.content.cut.kind == "replay" else job.linear()


def train_folds(
    method: Head,
    target: Target,
    features: StoredFeatures,
    data: Data,
    dealt: np.ndarray,
    *,
    seed: int,
    device: torch.device,
    aim: Aim = F1,
    criterion: Criterion | None = None,
    tolerance: float = 1e-5,
) -> list[Trained] | None:
    """The heads without each fold of the training rows in turn, all at once; the fold is what each is scored on.

    Args:
        method: as of `train_head`.
        target: as of `train_head`.
        features: as of `train_head`.
        data: as of `train_head`.
        dealt: int64 (n,), the fold of each training row, from 0, or -1.
        seed: as of `train_head`.
        device: as of `train_head`.
        aim: as of `train_head`.
        criterion: as of `train_head`.
        tolerance: as of `train_head`.

    Returns:
        What each says of its fold, and cannot be exported; None where folds do not share heads (`folds_share`).

    Raises:
        ConvergenceError: there is no finite solution.
        UserError: an option does not fit the data.
    """
    if not folds_share(method, features, data, int(dealt.max()) + 1):
        return None
    judge = criterion if criterion and criterion.is_stated else None
    job = _Job(method, target, features, data, seed, device_with_float64(device), aim, judge, tolerance)
    return job.folds(torch.from_numpy(dealt))


def folds_share(method: Head, features: StoredFeatures, data: Data, folds: int) -> bool:
    """Whether a head without two folds serves both (`hftl.heads.nested`).

    It is exact and of classes, folds are neither few nor many, weights do not depend on which rows there are, rows have
    one view each, and what each head's own scales take, and what it says at each strength, fits into memory.
    """
    cut, weights = features.content.cut, method.class_weight
    if method.hidden or cut.kind == "replay" or not data.task.has_classes or folds not in FOLDS_THAT_SHARE:
        return False
    if features.splits["train"].views:
        return False
    if weights is not None and (isinstance(weights, str) or min(weights) <= 0):
        return False
    width, outputs, pairs = cut.width, len(data.label_names), folds * (folds - 1)
    rows = len(features.splits["train"].split)
    scales = pairs // 2 * width**2 * 4
    paths = pairs * (min(width, rows) + 1) * outputs * 4 * len(method.strengths or range(STRENGTHS_OF_A_PATH))
    return scales + paths + 2 * folds * rows * outputs * 4 <= MOST_BYTES_OF_FOLDS


@dataclass(frozen=True)
class _Job:
    """What `train_head` was given, and one method for each kind of head."""

    method: Head
    target: Target
    features: StoredFeatures
    data: Data
    seed: int
    device: torch.device
    aim: Aim
    judge: Criterion | None
    tolerance: float

    @property
    def cut(self) -> Cut:
        return self.features.content.cut

    def linear(self) -> Trained:
        """The exact solution, for a head that is one linear layer on one vector."""
        method, cut = self.method, self.cut
        vectors, labels = self._vectors(), self._labels()
        views = [columns["features"].to(self.device) for columns in self.features.splits["train"].views]
        fit = fit_linear(
            torch.cat([vectors["train"].whole(), *views]) if views else vectors["train"],
            labels["train"],
            task=self.data.task.unit,
            num_labels=len(self.data.label_names),
            strengths=method.strengths,
            folds=method.folds,
            rule=method.rule,
            class_weight=method.class_weight,
            calibrate=method.calibrate,
            aim=self.aim,
            bias=cut.bias,
            validation=(vectors["validation"], labels["validation"]) if "validation" in vectors else None,
            judge=self.judge,
            dealt=self._dealt(self._folds()),
            groups=self._groups(),
            least=LEAST_DEVIATION if self.data.task.of_words else 0.0,
            views=1 + len(views),
            tolerance=self.tolerance,
            seed=self.seed,
        )
        weight, bias = fit.weight.cpu(), fit.bias.cpu()
        if views:
            fit.report["views"] = 1 + len(views)
        fit.report["parameters"] = weight.numel() + (bias.numel() if cut.bias else 0)
        free: dict[str, np.ndarray] = {}
        if self.data.task.is_exclusive:
            free = _right(vectors["train"], labels["train"], vectors["test"], labels["test"])
            if (among := neighbours_among(vectors["train"])) < len(vectors["train"]):
                fit.report["neighbours_among"] = among
        # What heads say of held-out words is of no use to whom sentences are rows.
        held_out = None if self.data.task.of_words else fit.held_out
        logits = vectors["test"].made(fit.logits, len(fit.bias)).cpu()
        storage = method.storage
        stored: dict[str, Any] = {
            "free": free,
            "storage": storage,
            "slack": logit_slack(vectors["test"], weight, storage),
        }
        if others := self.features.splits["test"].views:
            each = [logits, *(fit.logits(columns["features"].to(self.device)).cpu() for columns in others)]
            stored["by_views"] = self.data.task.averaged(torch.stack(each))
        outside = vectors[OUTSIDE].made(fit.logits, len(fit.bias)).cpu() if OUTSIDE in vectors else None
        if cut.kind == "pooled":
            # The class that is to be fine-tuned has a place for it.
            own = {f"{HEAD}.weight": weight, f"{HEAD}.bias": bias} if isinstance(self.target.backbone, Bare) else {}
            export = self._export_pooled([Dense(weight, bias)])
            return Trained(logits, "head", fit.report, export, own, fit.held_out, outside, **stored)
        parameters = fold(cut, weight, bias)
        export = self._export(parameters)
        return Trained(logits, "head", fit.report, export, parameters, held_out, outside, **stored)

    def folds(self, dealt: Tensor) -> list[Trained]:
        """The exact solutions without each fold."""
        vectors, labels, method = self._vectors(), self._labels(), self.method
        assert not isinstance(method.class_weight, str)
        fits = fit_linear_folds(
            vectors["train"],
            labels["train"],
            dealt,
            task=self.data.task,
            num_labels=len(self.data.label_names),
            strengths=method.strengths,
            rule=method.rule,
            class_weight=method.class_weight,
            calibrate=method.calibrate,
            aim=self.aim,
            bias=self.cut.bias,
            validation=(vectors["validation"], labels["validation"]) if "validation" in vectors else None,
            judge=self.judge,
            groups=self._groups(),
            tolerance=self.tolerance,
        )
        found = []
        for number, fit in enumerate(fits):
            free: dict[str, np.ndarray] = {}
            if self.data.task.is_exclusive and len(fit.logits):
                own = (dealt == number).to(self.device)
                parts = [(vectors["train"].take(rows), labels["train"][rows]) for rows in (~own, own)]
                free = _right(*parts[0], *parts[1])
            found.append(Trained(fit.logits.cpu(), "head", fit.report, not_kept, free=free))
        return found

    def perceptron(self, hidden: int) -> Trained:
        """One hidden layer on pooled tokens, trained with AdamW."""
        vectors = {name: matrix.whole() for name, matrix in self._vectors().items()}
        labels = self._labels()
        held = ({"features": vectors["validation"]}, labels["validation"]) if "validation" in vectors else None
        fit = fit_mlp(
            vectors["train"],
            labels["train"],
            task=self.data.task,
            num_labels=len(self.data.label_names),
            hidden=hidden,
            class_weight=self.method.class_weight,
            calibrate=self.method.calibrate,
            aim=self.aim,
            validation=held,
            judge=self.judge,
            dealt=self._dealt(fold_count(self.features.splits["train"].split, FOLDS_OF_A_SEARCH)),
            seed=self.seed,
        )
        logits = mlp_logits(fit.params, vectors["test"]).cpu()
        weights = {name: value.cpu() for name, value in fit.params.items()}
        layers = [
            Dense(weights["hidden.weight"], weights["hidden.bias"], "torch.nn.modules.activation.GELU"),
            Dense(weights["output.weight"], weights["output.bias"]),
        ]
        outside = mlp_logits(fit.params, vectors[OUTSIDE]).cpu() if OUTSIDE in vectors else None
        export, storage = self._export_pooled(layers), self.method.storage
        return Trained(logits, "head", fit.report, export, outside=outside, storage=storage)

    def native(self) -> Trained:
        """The model's own head, trained with AdamW on its forward replayed from the store."""
        model = self.target.skeleton()
        start = initial_head(model, set(self.cut.head), self.seed)
        if needs_weights(model, self.cut):
            model, _ = self.target.build()
        columns = {name: _as_tensors(features, self.cut) for name, features in self._parts().items()}
        labels = self._labels()
        with replaying(model, self.cut) as replay:
            on_device = {name: value.to(self.device) for name, value in start.items()}
            buffers = measured_buffers(replay, on_device, _shuffled_blocks(columns["train"], self.seed, self.device))

            def forward(parameters: dict[str, Tensor], kept: dict[str, Tensor], train: bool) -> Tensor:
                _set_training(model, train)
                return replay(kept, {**parameters, **buffers})

            fit = fit_native(
                forward,
                start,
                columns["train"],
                labels["train"],
                task=self.data.task.unit,
                num_labels=len(self.data.label_names),
                class_weight=self.method.class_weight,
                calibrate=self.method.calibrate,
                aim=self.aim,
                validation=(columns["validation"], labels["validation"]) if "validation" in columns else None,
                judge=self.judge,
                dealt=self._dealt(fold_count(self.features.splits["train"].split, FOLDS_OF_A_SEARCH)),
                groups=self._sentences(),
                seed=self.seed,
                device=self.device,
            )
            with torch.no_grad():
                asked = {
                    name: torch.cat(
                        [forward(fit.params, b, False).cpu() for b in _row_blocks(columns[name], self.device)]
                    )
                    for name in ("test", OUTSIDE)
                    if name in columns
                }
        parameters = {name: value.cpu() for name, value in (fit.params | buffers).items()}
        export = self._export(parameters)
        storage, outside = self.method.storage, asked.get(OUTSIDE)
        return Trained(asked["test"], "head", fit.report, export, parameters, outside=outside, storage=storage)

    def _folds(self) -> int:
        """Folds of a choice of strengths; fewer than are usual where groups are, unless they were stated."""
        folds = self.method.folds
        usual = folds == Head.model_fields["folds"].default
        return fold_count(self.features.splits["train"].split, folds) if usual else folds

    def _dealt(self, folds: int) -> Tensor | None:
        """The fold of each training row, where columns of the data decide about it; none where a split judges."""
        if "validation" in self.features.splits:
            return None
        split = self.features.splits["train"].split
        if split.marks.folds is not None and len(np.unique(split.marks.folds)) < 2:
            # Of a column of two folds one is held out.
            split = replace(split, marks=replace(split.marks, folds=None))
        dealt = folds_of(split, self.data.task, folds, self.seed)
        if dealt is None:
            return None
        sentences = self._sentences()
        return torch.from_numpy(dealt) if sentences is None else torch.from_numpy(dealt)[sentences.cpu()]

    def _vectors(self) -> dict[str, Matrix]:
        return {name: matrix_of(self.features, part, self.device) for name, part in self._parts().items()}

    def _parts(self) -> dict[str, SplitFeatures]:
        """The splits, and the rows that are out of scope where there are some."""
        outside = self.features.outside
        return self.features.splits | ({} if outside is None else {OUTSIDE: outside})

    def _labels(self) -> dict[str, Tensor]:
        task = self.data.task
        lines = {name: task.by_line(part.split.labels) for name, part in self.features.splits.items()}
        return {name: torch.from_numpy(each).to(self.device) for name, each in lines.items()}

    def _sentences(self) -> Tensor | None:
        """The sentence of each training word, which folds do not part; None where rows are no sentences."""
        if not self.data.task.of_words:
            return None
        return torch.from_numpy(rows_of_lines(self.features.splits["train"].split.labels)).to(self.device)

    def _groups(self) -> Tensor | None:
        """What folds do not part: sentences of words, the groups of other rows; None where rows are independent."""
        groups = self.features.splits["train"].split.marks.groups
        if self.data.task.of_words or groups is None:
            return self._sentences()
        return torch.from_numpy(groups).to(self.device)

    def _export(self, parameters: dict[str, Tensor]) -> Callable[[Path], list[Exported]]:
        content = self.features.content
        return partial(export_model, self.target, content.architecture, content.weights, parameters)

    def _export_pooled(self, layers: list[Dense]) -> Callable[[Path], list[Exported]]:
        backbone = self.target.backbone
        if isinstance(backbone, Bare):
            return partial(export_pooled, self.target, backbone.pooling, layers, self.features.content.weights)
        # Beside a classification class, sentence-transformers finds the base model in the checkpoint as it is.
        # Quantised weights are the model's own, which the checkpoint does not hold.
        rule = None if getattr(backbone, "quantize", None) else NameRule("", [])
        return partial(export_pooled, self.target, Pooled(self.cut.pooling or ""), layers, rule)


def _right(known: Matrix, labels: Tensor, asked: Matrix, truth: Tensor) -> dict[str, np.ndarray]:
    """Which rows what costs nothing gets right; see `hftl.heads.baselines`."""
    return {name: right.numpy() for name, right in baselines(known, labels, asked, truth).items()}


def _as_tensors(features: SplitFeatures, cut: Cut) -> dict[str, Tensor]:
    """The kept columns with rows (or words) first; ragged ones padded on the right with zeros."""
    tensors = {}
    columns = line_columns(features.columns, cut)
    for name in cut.kept():
        value = columns[name]
        if isinstance(value, Ragged):
            value = nn.utils.rnn.pad_sequence(by_row(value), batch_first=True)
        tensors[name] = value
    return tensors


def _row_blocks(columns: Mapping[str, Tensor], device: torch.device) -> list[dict[str, Tensor]]:
    rows = len(next(iter(columns.values())))
    starts = range(0, rows, EVALUATION_ROWS)
    return [{name: v[start : start + EVALUATION_ROWS].to(device) for name, v in columns.items()} for start in starts]


def _shuffled_blocks(columns: Mapping[str, Tensor], seed: int, device: torch.device) -> list[dict[str, Tensor]]:
    """Rows in random order, in blocks of even size: where rows lie by class, a block must not be of one class."""
    rows = len(next(iter(columns.values())))
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    blocks = order.chunk(math.ceil(rows / EVALUATION_ROWS))
    return [{name: value[block].to(device) for name, value in columns.items()} for block in blocks]


def _set_training(model: nn.Module, train: bool) -> None:
    """Dropout of the head on or off; statistics stay as they were measured, and what is frozen does not run."""
    if model.training != train:
        model.train(train)
        for module in model.modules():
            if isinstance(module, STATISTICS):
                module.eval()
