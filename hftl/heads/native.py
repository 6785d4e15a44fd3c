"""Heads that have no exact solution, trained on cached features: a class's own head module, or any forward.

Several learning rates and weight decays are trained at once. Their parameters are stacked, ``torch.func.vmap`` runs
the caller's forward over the stack, and AdamW (Loshchilov & Hutter, *Decoupled weight decay regularization*, ICLR
2019, Algorithm 2) updates it with a learning rate and a decay for each. Held-out rows choose the setting and when to
stop; then that setting is trained on all rows for as long.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hftl.errors import ConvergenceError, DataError
from hftl.heads.calibration import calibration_report, fit_temperature
from hftl.heads.checks import check_labels, loss_weights
from hftl.heads.folds import task_folds
from hftl.heads.judging import Judge, judged, undefined_everywhere
from hftl.heads.thresholds import threshold_report
from hftl.methods import F1, Aim
from hftl.progress import counted
from hftl.tasks import ClassWeight, Link, Task

Params = dict[str, Tensor]
Features = dict[str, Tensor]
# (parameters, features with rows first, whether training) -> logits (rows, num_labels)
Forward = Callable[[Params, Features, bool], Tensor]

# Every learning rate is tried with every weight decay.
LEARNING_RATES = (3e-4, 1e-3, 3e-3)
WEIGHT_DECAYS = (0.01, 0.1)
ROUNDS = 30  # at most so many passes over the rows
PATIENCE = 6  # rounds without improvement of any setting before stopping
BATCH_ROWS = 128
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_WARM_UP = 0.05  # share of all steps
_STEPS_PER_ROUND = 20  # at least, however few rows there are
_HELD_OUT_FOLDS = 5  # one of them is held out where no validation split is given
_EVALUATION_ROWS = 1024
_PROVED_ROWS = 32


@dataclass(frozen=True)
class NativeFit:
    """A trained head.

    Attributes:
        params: as given to ``fit_native``, trained.
        report: what ``metrics.json`` tells about the head; plain JSON values.
    """

    params: Params
    report: dict[str, Any]


@dataclass(frozen=True)
class _LabelledRows:
    """Rows on the device: features by name, labels, and weights (n, 1 or num_labels) with mean one."""

    features: Features
    labels: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> "_LabelledRows":
        features = {name: value[index] for name, value in self.features.items()}
        return _LabelledRows(features, self.labels[index], self.weights[index])


@dataclass(frozen=True)
class _Setting:
    learning_rate: float
    weight_decay: float


def fit_native(
    forward: Forward,
    params: Params,
    features: Features,
    labels: Tensor,
    *,
    task: Task | str,
    num_labels: int,
    class_weight: ClassWeight = None,
    validation: tuple[Features, Tensor] | None = None,
    groups: Tensor | None = None,
    calibrate: bool = True,
    aim: Aim = F1,
    judge: Judge | None = None,
    dealt: Tensor | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> NativeFit:
    """Train a head whose forward the caller gives, from the parameters that the caller gives.

    A round is one pass over the rows (at least 20 steps). The learning rate warms up and then follows a cosine over all
    rounds; biases and norms are not decayed. Without a validation split, a fifth of the rows is held out to choose the
    setting and the round, and the chosen one is trained anew on all rows; with a split, the best parameters are kept as
    they are. A temperature fitted on the rows that chose is folded into the last layer, where it is proved to scale the
    logits. The same inputs and seed give the same bits on the same device and number of threads.

    Args:
        forward: ``forward(params, features, train)`` gives logits (n, num_labels) for features whose first
            dimension is n. Where vmap cannot run it, it is called for one setting after another.
        params: the initial parameters; not changed.
        features: tensors with rows first, on any device.
        labels: as for ``fit_linear``.
        task: what the labels mean.
        num_labels: classes, labels or targets.
        class_weight: as for ``fit_linear``.
        validation: features and labels to choose on.
        groups: (n,) int64, the group of each row; a group is held out whole.
        calibrate: divide the logits by a temperature fitted on the rows that chose (classification only).
        aim: what thresholds of several labels are chosen for.
        judge: the metric that chooses, in place of the loss; as of ``fit_linear``.
        dealt: (n,) int64, the fold of each row, of which the first is held out; dealt by label where None.
        seed: decides the held-out rows, the order of the batches and dropout.
        device: where to train; that of the first feature where None.

    Raises:
        DataError: features or labels are malformed or not finite.
        UserError: an option or a weight makes no sense.
        ConvergenceError: no setting gives a finite validation loss.
    """
    task = Task(task)
    settings = [_Setting(rate, decay) for rate in LEARNING_RATES for decay in WEIGHT_DECAYS]
    device = torch.device(device) if device is not None else next(iter(features.values())).device
    rows = _labelled(features, labels, task, num_labels, class_weight, device)
    params = {name: value.detach().to(device) for name, value in params.items()}
    if validation is None:
        training, judging = _hold_out(rows, task, seed, dealt, groups)
    else:
        training, judging = rows, _labelled(*validation, task, num_labels, None, device)
    # Dropout draws from torch's global generators, whose state is the caller's.
    generators = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=generators):
        torch.manual_seed(seed)
        search = _Search(_vmap_or_loop(forward, params, training, len(settings)), task, settings)
        costs = None if judge is None else partial(_costs_of_settings, judge, task, aim)
        best, history = _search_settings(search, params, training, judging, seed, costs)
        if validation is None:
            torch.manual_seed(seed)
            final = _Search(_looped(forward), task, [settings[best.setting]])
            *_, trained = final.walk(params, rows, seed, until=best.round)
            refitted = {name: value[0] for name, value in trained.items()}
        else:
            refitted = best.params
    report = {
        "kind": "native",
        "task": task,
        "chosen_on": "validation split" if validation else f"{len(judging)} held-out rows, then trained on all rows",
        "settings": history,
        "chosen": {
            "learning_rate": settings[best.setting].learning_rate,
            "weight_decay": settings[best.setting].weight_decay,
            "rounds": best.round,
        },
        "validation": best.loss,
        **best.chosen_by(judge),
        "converged": best.round < ROUNDS,
        "stacked": search.stacked,
        "parameters": sum(value.numel() for value in params.values()),
    }
    judged, loss = best.logits, task.link
    if task.has_classes and calibrate:
        temperature = _temperature(best.logits, judging, loss)
        scaled = _scaled(forward, refitted, judging, temperature, num_labels)
        measured = calibration_report(best.logits, judging.labels, temperature, loss)
        report["calibration"] = {**measured, "folded": scaled is not None}
        if scaled:
            refitted, judged = scaled, judged / temperature
    if loss == "sigmoid":
        report |= threshold_report(judged, judging.labels, aim)
    return NativeFit(refitted, report)


@dataclass(frozen=True)
class _Best:
    """The best of a search: what it costs, which setting it is, after how many rounds, and what it was then.

    Attributes:
        cost: what the metric says, less being better; the loss where none chooses, infinite where it is undefined.
        loss: on the judging rows.
    """

    cost: float
    loss: float
    setting: int
    round: int
    params: Params
    logits: Tensor

    def chosen_by(self, judge: Judge | None) -> dict[str, Any]:
        """What a report tells of the choice."""
        if judge is None:
            return {}
        if math.isinf(self.cost):
            return {"chosen_by": undefined_everywhere(judge)}
        return {"chosen_by": judge.name, "metric": -judge.sign * self.cost}


class _Search:
    """AdamW on stacked parameters, one setting of learning rate and weight decay for each."""

    def __init__(self, forward: "_Stacked", task: Task, settings: list[_Setting]) -> None:
        self.forward, self.task, self.settings = forward.run, task, settings
        self.stacked = forward.vmapped

    def walk(self, params: Params, rows: _LabelledRows, seed: int, until: int) -> Iterator[Params]:
        """Train from ``params`` for ``until`` rounds, yielding the stacked parameters after each."""
        count, device = len(self.settings), rows.labels.device
        stack = {name: value.expand(count, *value.shape).clone() for name, value in params.items()}
        moments = {name: (torch.zeros_like(value), torch.zeros_like(value)) for name, value in stack.items()}
        rates = torch.tensor([s.learning_rate for s in self.settings], device=device)
        decays = torch.tensor([s.weight_decay for s in self.settings], device=device)
        steps = max(math.ceil(len(rows) / BATCH_ROWS), _STEPS_PER_ROUND)
        batches = _batches(len(rows), BATCH_ROWS, seed)
        for step in range(1, until * steps + 1):
            batch = rows.take(next(batches).to(device))
            gradients = self._gradients(stack, batch)
            # Of all rounds, not of ``until``: the refit then walks the rates that led to the chosen round.
            rate = rates * _schedule(step, ROUNDS * steps)
            for name, value in stack.items():
                _adamw(value, gradients[name], moments[name], rate, decays, step)
            if step % steps == 0:
                yield stack

    def _gradients(self, stack: Params, batch: _LabelledRows) -> Params:
        leaves = {name: value.requires_grad_() for name, value in stack.items()}
        logits = self.forward(leaves, batch.features, True)  # (settings, rows, num_labels)
        losses = _losses(logits, batch.labels, batch.weights, self.task)
        # The settings share nothing, so the gradient of the sum holds the gradient of each.
        gradients = torch.autograd.grad(losses.mean(1).sum(), list(leaves.values()), materialize_grads=True)
        for value in stack.values():
            value.requires_grad_(False)
        return dict(zip(leaves, gradients, strict=True))

    @torch.no_grad()
    def logits(self, stack: Params, rows: _LabelledRows) -> Tensor:
        """Logits (settings, rows, num_labels) without dropout."""
        index = torch.arange(len(rows), device=rows.labels.device)
        blocks = [rows.take(block).features for block in torch.split(index, _EVALUATION_ROWS)]
        return torch.cat([self.forward(stack, features, False) for features in blocks], dim=1)


def _search_settings(
    search: _Search,
    params: Params,
    training: _LabelledRows,
    judging: _LabelledRows,
    seed: int,
    costs_of: Callable[[Tensor, Tensor], np.ndarray] | None,
) -> tuple[_Best, list[dict[str, Any]]]:
    """Train all settings until none improves any more; return the best and the history of each.

    What chooses is the loss, or ``costs_of`` logits (settings, rows, num_labels) and labels.
    """
    count = len(search.settings)
    lowest, reached = np.full((count, 2), math.inf), np.zeros(count, dtype=np.int64)
    best: _Best | None = None
    walk = search.walk(params, training, seed, ROUNDS)
    for finished, stack in zip(counted("search", range(1, ROUNDS + 1), unit="rounds at most"), walk, strict=True):
        logits = search.logits(stack, judging)
        losses = _losses(logits, judging.labels, judging.weights, search.task).mean(1).cpu().numpy()
        costs = losses if costs_of is None else costs_of(logits, judging.labels)
        # The loss decides between what the metric calls the same; False for NaN.
        improved = (costs < lowest[:, 0]) | ((costs == lowest[:, 0]) & (losses < lowest[:, 1]))
        lowest[improved], reached[improved] = np.stack([costs, losses], 1)[improved], finished
        setting = int(np.lexsort(lowest.T[::-1])[0])
        if improved[setting] and (best is None or tuple(lowest[setting]) < (best.cost, best.loss)):
            copy = {name: value[setting].clone() for name, value in stack.items()}
            cost, loss = lowest[setting].tolist()
            best = _Best(cost, loss, setting, finished, copy, logits[setting])
        if finished - int(reached.max()) >= PATIENCE:
            break
    if best is None:
        raise ConvergenceError("native head: no learning rate gives a finite loss; try smaller learning rates")
    history = [
        {
            "learning_rate": setting.learning_rate,
            "weight_decay": setting.weight_decay,
            "validation": float(loss) if math.isfinite(loss) else None,
            "rounds": int(when),
        }
        for setting, (_, loss), when in zip(search.settings, lowest.tolist(), reached, strict=True)
    ]
    return best, history


def _costs_of_settings(judge: Judge, task: Task, aim: Aim, logits: Tensor, labels: Tensor) -> np.ndarray:
    """What a metric says of logits (settings, rows, num_labels), less being better; infinite where it is undefined."""
    values = []
    for each in logits:
        thresholds = threshold_report(each, labels, aim)["thresholds"] if task.link == "sigmoid" else None
        values.append(-judge.sign * judged(judge, each, labels, thresholds, rule="best").value)
    return np.nan_to_num(values, nan=math.inf, posinf=math.inf, neginf=math.inf)


@dataclass(frozen=True)
class _Stacked:
    """A forward on stacked parameters, and whether vmap runs it."""

    run: Forward
    vmapped: bool


def _vmap_or_loop(forward: Forward, params: Params, rows: _LabelledRows, count: int) -> _Stacked:
    """Run ``forward`` over a stack with vmap where that gives what one call after another gives."""

    def run(stack: Params, features: Features, train: bool) -> Tensor:
        one = torch.func.vmap(lambda p: forward(p, features, train), randomness="different")
        logits: Tensor = one(stack)
        return logits

    few = rows.take(torch.arange(min(4, len(rows)), device=rows.labels.device))
    stack = {name: value.expand(count, *value.shape).clone() for name, value in params.items()}
    try:
        with torch.no_grad():
            run(stack, few.features, True)
            stacked, alone = run(stack, few.features, False)[0], forward(params, few.features, False)
            same = torch.allclose(stacked, alone, rtol=1e-3, atol=1e-4)
    except Exception:  # vmap refuses with many kinds of errors; a real fault shows again in the loop
        same = False
    return _Stacked(run, vmapped=True) if same else _looped(forward)


def _looped(forward: Forward) -> _Stacked:
    def run(stack: Params, features: Features, train: bool) -> Tensor:
        count = len(next(iter(stack.values())))
        each = ({name: value[i] for name, value in stack.items()} for i in range(count))
        return torch.stack([forward(params, features, train) for params in each])

    return _Stacked(run, vmapped=False)


def _adamw(
    value: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], rate: Tensor, decay: Tensor, step: int
) -> None:
    """One AdamW update in place; the leading dimension of all tensors is that of ``rate`` and ``decay``.

    torch's own optimizer has one learning rate for a tensor, and here each slice of a stack has its own.
    """
    mean, square = moments
    shape = (-1, *[1] * (value.ndim - 1))
    rate, decay = rate.view(shape), decay.view(shape)
    if value.ndim > 2:  # a matrix in each setting: biases and norms are not decayed
        value.mul_(1 - rate * decay)
    mean.lerp_(gradient, 1 - _BETAS[0])
    square.lerp_(gradient.square(), 1 - _BETAS[1])
    unbiased = (square / (1 - _BETAS[1] ** step)).sqrt_().add_(_EPSILON)
    value.sub_(rate / (1 - _BETAS[0] ** step) * mean / unbiased)


def _schedule(step: int, total: int) -> float:
    """Linear warm-up, then a cosine to zero: the factor of the learning rate at ``step`` of ``total``."""
    warm = max(1.0, _WARM_UP * total)
    if step < warm:
        return step / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1.0, total - warm)))


def _batches(rows: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Row indices of batches for ever: seeded permutations, one after another; a rest is its own batch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.split(torch.randperm(rows, generator=generator), batch_size)


def _losses(logits: Tensor, labels: Tensor, weights: Tensor, task: Task) -> Tensor:
    """Weighted losses (settings, rows) of logits (settings, rows, num_labels)."""
    if task.link == "softmax":
        target = labels.expand(len(logits), -1).flatten()
        losses = F.cross_entropy(logits.flatten(0, 1), target, reduction="none").view(*logits.shape[:2], 1)
    elif task.link == "sigmoid":
        losses = F.binary_cross_entropy_with_logits(logits, labels.expand_as(logits), reduction="none")
    else:
        losses = (logits - labels).square()
    return (losses * weights).mean(-1)


def _labelled(
    features: Features, labels: Tensor, task: Task, num_labels: int, class_weight: ClassWeight, device: torch.device
) -> _LabelledRows:
    count = len(labels)
    for name, value in features.items():
        if len(value) != count:
            raise DataError(f"features {name!r}: {len(value)} rows, but {count} labels")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise DataError(f"features {name!r} contain NaN or Inf; recompute those rows")
    labels = check_labels(labels, count, task, num_labels).to(device)
    if not task.has_classes:
        labels = labels.float()
    weights = loss_weights(labels, task, num_labels, class_weight)
    weights = (weights / weights.mean()).float()
    return _LabelledRows({name: value.to(device) for name, value in features.items()}, labels, weights)


def _hold_out(
    rows: _LabelledRows, task: Task, seed: int, dealt: Tensor | None, groups: Tensor | None
) -> tuple[_LabelledRows, _LabelledRows]:
    """A fifth of the rows, stratified by class, to judge on; classes of one row stay in training."""
    # The deal of the linear heads, of which one fold is enough here: each fold more would be one more training.
    if dealt is None:
        folds = task_folds(rows.labels, task, _HELD_OUT_FOLDS, seed, groups)
    else:
        folds = dealt.to(rows.labels.device)
    held = folds == 0
    if not bool(held.any()) or bool(held.all()):
        raise DataError(f"native head: {len(rows)} rows are too few to hold some out; give a validation split")
    return rows.take(torch.nonzero(~held).flatten()), rows.take(torch.nonzero(held).flatten())


def _temperature(logits: Tensor, judging: _LabelledRows, loss: Link) -> float:
    """The temperature of held-out rows; one where all are predicted right, since then any sharpening looks better."""
    right = logits.argmax(1) == judging.labels if loss == "softmax" else (logits > 0) == (judging.labels > 0)
    if bool(right.all()):
        return 1.0
    return fit_temperature(logits, judging.labels, judging.weights, loss)


@torch.no_grad()
def _scaled(
    forward: Forward, params: Params, rows: _LabelledRows, temperature: float, num_labels: int
) -> Params | None:
    """Parameters that give the logits divided by ``temperature``; None where scaling the last layers does not.

    Candidates are modules whose parameters have a row for each label: all of them (some models average the logits of
    two layers), or one. What they give is compared, so that a layer that only looks like the last is not taken for it.
    """
    last = {name: name.rpartition(".")[0] for name, value in params.items() if value.shape[:1] == (num_labels,)}
    modules = list(dict.fromkeys(last.values()))
    few = rows.take(torch.arange(min(_PROVED_ROWS, len(rows)), device=rows.labels.device))
    wanted = forward(params, few.features, False) / temperature
    for chosen in (modules, *([module] for module in reversed(modules))):
        scaled = {name: value / temperature if last.get(name) in chosen else value for name, value in params.items()}
        if torch.allclose(forward(scaled, few.features, False), wanted, rtol=1e-4, atol=1e-5):
            return scaled
    return None
