"""The one training loop, to be read from top to bottom: epochs of steps, then a measurement and a checkpoint.

The start is measured as epoch 0, so that it can be what is kept; the first trained epoch is number 1.

Everything random is a function of (seed, epoch, row) or of (seed, step, process, micro-batch), and the learning rate is
a function of the step. So a checkpoint holds weights, the optimizer's moments and a few numbers, and a resumed run is
the same run to the bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hftl.backbones.batching import WordBatch, line_logits, odd_rows
from hftl.backbones.blocks import Depths
from hftl.criterion import Criterion
from hftl.errors import BadRowError, ConvergenceError, DataError, Interrupted, RecipeError
from hftl.finetune.checkpoint import Checkpoint, Checkpoints, prune, step_name, write_checkpoint
from hftl.finetune.ema import Ema
from hftl.finetune.engine import Engine, whole
from hftl.finetune.evaluate import logits_of
from hftl.finetune.groups import set_modes
from hftl.finetune.rows import Batch, Encoder, Step, TrainRows
from hftl.finetune.schedule import lr_factor
from hftl.finetune.stop import StopSignals
from hftl.methods import FineTune
from hftl.metrics import evaluate_predictions
from hftl.parallel import all_reduce_sum, met_everywhere, on_main
from hftl.progress import Progress
from hftl.wording import one_line

NAMED_ROWS = 8


@dataclass(frozen=True)
class Watch:
    """The split that is evaluated at the start and after each epoch.

    Attributes:
        encoder: of its rows.
        label_names: of its labels.
        criterion: the metric that orders epochs.
        chooses: whether it decides which epoch is kept; if not, the last one is.
    """

    encoder: Encoder
    label_names: Sequence[str]
    criterion: Criterion
    chooses: bool


@dataclass
class TrainState:
    """Where a run is; plain JSON in and out, so that what is logged after a resume is what would have been.

    Attributes:
        step: optimizer steps done.
        losses: sum of the losses of this epoch's steps.
        history: what was measured at the start, which is epoch 0, and after each epoch done.
        best: number of the best epoch so far; -1 before the start is measured.
    """

    step: int = 0
    losses: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: int = -1


class Loop:
    """Trains a model.

    Args:
        method: how long, how fast, and when to stop.
        engine: holds the model, and the optimizer with the groups of `hftl.finetune.groups.parameter_groups`.
        rows: the training rows, and the loss of them.
        watch: the split that is evaluated after each epoch.
        depths: of the parameters, for unfreezing.
        checkpoints: where the state is saved.
        log: takes an event's name and values; does nothing on other processes than the main one.
        below: modules that only frozen ones follow, which stay in eval mode.
    """

    def __init__(
        self,
        method: FineTune,
        engine: Engine,
        rows: TrainRows,
        watch: Watch,
        depths: Depths,
        checkpoints: Checkpoints,
        *,
        log: Callable[..., None],
        below: Sequence[str] = (),
    ) -> None:
        self.method = method
        self.accelerator = engine.accelerator
        self.engine = engine
        self.loss = rows.loss
        self.rows = rows
        self.watch = watch
        self.depths = depths
        self.checkpoints = checkpoints
        self.log = log
        self.below = below
        self.ema = Ema(engine.trained, method.ema) if method.ema else None
        self.state = TrainState()
        self.chosen: dict[str, Any] = {}
        self.signals = StopSignals()
        self.last_loss = math.nan
        self.total = method.epochs * rows.steps
        self.warmup = round(method.warmup * self.total)

    def choose(self, **chosen: Any) -> None:
        """Settle what was left to choose automatically; checkpoints keep it.

        Args:
            chosen: ``micro_batch``; ``lr``, which the relative learning rates of the groups are multiplied with; and
                ``stored``, whether frozen blocks are read from the store, which only a resume asks.
        """
        self.chosen |= chosen
        if "micro_batch" in chosen:
            self.rows.micro_batch = chosen["micro_batch"]
        if "lr" in chosen:
            for group in self.engine.param_groups:
                group["base_lr"] *= chosen["lr"]

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, *, quiet: bool = True) -> None:
        """Train to the end, from wherever the progress is.

        Args:
            quiet: show no progress.

        Raises:
            Interrupted: SIGTERM or SIGINT came; a checkpoint is written.
            ConvergenceError: the loss or the gradient is NaN or infinite; the state before that step is written.
        """
        counting = Progress("train", self.total, quiet=quiet, unit="steps", done=self.state.step)
        with self.signals, torch.random.fork_rng(), counting as progress:
            if not self.state.history:
                self._measured({"epoch": 0, "step": self.state.step})
            for epoch in range(len(self.state.history) - 1, self.method.epochs):
                self.prepare_epoch(epoch)
                for step in self.rows.epoch(epoch, self.state.step - epoch * self.rows.steps):
                    stop = self._step(epoch, step)
                    progress.advance(note=self._told(epoch, progress))
                    if stop or (self.method.save_every and self.state.step % self.method.save_every == 0):
                        self.save()
                    if stop:
                        raise Interrupted(f"stopped after step {self.state.step} of {self.total}; the state is saved")
                self._finish_epoch(epoch)
                if self._out_of_patience():
                    break

    def _told(self, epoch: int, progress: Progress) -> str:
        """Where training is, beside the steps: epoch, loss, learning rate, speed, and what was measured last."""
        metric = self.watch.criterion.name
        measured = self.state.history[-1].get(metric)
        return ", ".join(
            [
                f"{progress.rate_of(self.rows.batch_size)} rows/s",
                f"epoch {epoch + 1} of {self.method.epochs}",
                f"loss {self.last_loss:.3g}",
                f"lr {max(group['lr'] for group in self.engine.param_groups):.1e}",
                *([f"{metric} {measured:.4f}"] if measured is not None else []),
            ]
        )

    def prepare_epoch(self, epoch: int) -> None:
        """Thaw what trains in an epoch, and put modules into training or eval mode."""
        if self.method.unfreeze:
            for name, parameter in self.engine.trained.items():
                parameter.requires_grad_(self.depths.of[name] > self.depths.blocks - epoch)
        set_modes(self.engine.model, self.below)

    def _step(self, epoch: int, step: Step) -> bool:
        """One optimizer step; whether any process was asked to stop."""
        started = time.monotonic()
        lr = self.set_lr(lr_factor(self.state.step, self.total, self.warmup, self.method.schedule))
        summed = self.accumulate(step, self.state.step)
        self.engine.clip()
        sums = all_reduce_sum(torch.stack([summed / step.weight, summed.new_tensor(float(self.signals.asked))]))
        loss, asked = sums.tolist()
        norm = self.engine.step() if math.isfinite(loss) else math.nan
        if not math.isfinite(loss) or not (math.isfinite(norm) or self.accelerator.scaler):
            with met_everywhere():
                self._not_finite(epoch, step, loss, norm, lr)
        if self.ema:
            self.ema.update(self.state.step)
        self.state.step += 1
        self.state.losses += loss
        self.last_loss = loss
        seconds = round(time.monotonic() - started, 4)
        self.log("step", step=self.state.step, epoch=epoch + 1, loss=loss, norm=norm, lr=lr, seconds_of_step=seconds)
        return bool(asked > 0)

    def accumulate(self, step: Step, number: int) -> Tensor:
        """Gradients of one step's mean loss; this process's sum of losses."""
        world, last = self.accelerator.num_processes, len(step.micro_batches) - 1
        summed = torch.zeros((), device=self.accelerator.device)
        for i, batch in enumerate(step.micro_batches):
            torch.manual_seed(seed_of(self.rows.seed, number, self.rows.rank, i))
            with self.engine.micro_batch(last=i == last):
                loss = self._loss(batch.to(self.accelerator.device), step, i)
                # Processes' gradients are averaged, and what is due is their sum.
                self.engine.backward(loss * (world / step.weight))
            summed += loss.detach()
        return summed

    def _loss(self, batch: Batch, step: Step, number: int) -> Tensor:
        try:
            logits = line_logits(self.engine.wrapped, batch.inputs)
        except ValueError as error:
            raise self._refused(batch, step, number, one_line(error)) from error
        return self.loss(logits, batch.targets, batch.counted)

    def _refused(self, batch: Batch, step: Step, number: int, why: str) -> DataError:
        """Rows that the model cannot read, or not beside one another, as a text with an end token of its own."""
        # Other processes do not take part in asking, so it must not be a model of which they hold parts.
        # Windows of sentences are no rows that could be named.
        unnamed = self.engine.is_spread or isinstance(batch.inputs, WordBatch)
        odd = [] if unnamed else odd_rows(self.engine.unsynchronised, batch.inputs)
        if not odd:
            return DataError(
                f"the model refuses a batch of step {self.state.step + 1}: {why}; its rows: {self._named_rows(step)}; "
                "remove the row that is unlike the others, or give --micro-batch 1"
            )
        rows, _ = self.rows.shares(step.rows)[number]
        name = self.rows.encoder.split.inputs.name(rows[odd[0]])
        return BadRowError(name, f"the model refuses it beside other rows ({why}): remove it, or give --micro-batch 1")

    def _named_rows(self, step: Step) -> str:
        names = [self.rows.encoder.split.inputs.name(row) for row in step.rows]
        more = f" and {len(names) - NAMED_ROWS} more" if len(names) > NAMED_ROWS else ""
        return f"{', '.join(names[:NAMED_ROWS])}{more}"

    def set_lr(self, factor: float) -> float:
        """Multiply the learning rates of all groups; returns the largest."""
        for group in self.engine.param_groups:
            group["lr"] = group["base_lr"] * factor
        return float(max(group["lr"] for group in self.engine.param_groups))

    def _not_finite(self, epoch: int, step: Step, loss: float, norm: float, lr: float) -> None:
        self.engine.forget_gradient()
        self.save()
        names = [self.rows.encoder.split.inputs.name(row) for row in step.rows]
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
        self.log("not_finite", step=self.state.step, epoch=epoch + 1, loss=str(loss), norm=str(norm), lr=lr, rows=names)
        raise ConvergenceError(
            f"{what} at step {self.state.step} (epoch {epoch + 1}, learning rate {lr:.3g}), rows: "
            f"{self._named_rows(step)} (events.jsonl lists all); the state before is saved; lower --lr, or look at "
            "these rows"
        )

    # ── epochs ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _finish_epoch(self, epoch: int) -> None:
        with self.ema.applied() if self.ema else nullcontext():
            train_loss = self.state.losses / self.rows.steps
            self.state.losses = 0.0
            self._measured({"epoch": epoch + 1, "step": self.state.step, "train_loss": train_loss})
        self.save()
        asked = all_reduce_sum(torch.tensor(float(self.signals.asked), device=self.accelerator.device))
        if asked > 0:
            raise Interrupted(f"stopped after epoch {epoch + 1} of {self.method.epochs}; the state is saved")

    def _measured(self, result: dict[str, Any]) -> None:
        """Measure the watched split, and keep the weights if none were better.

        The start takes part: where fine-tuning only makes a solved head worse, the solved head is what is kept.
        """
        self.state.history.append(result | {"split": self.watch.encoder.split.name, **self.measure()})
        if self._is_best():
            self.state.best = result["epoch"]
            if self.watch.chooses:
                self._write("best", {"model": self.engine.weights()})
        self.log("epoch", **self.state.history[-1])

    def measure(self) -> dict[str, float | None]:
        """Metrics of the watched split, each row counted once; the same on every process."""
        logits = logits_of(
            self.accelerator,
            self.engine.unsynchronised,
            self.watch.encoder,
            self.rows.micro_batch,
            is_spread=self.engine.is_spread,
        )
        values = evaluate_predictions(
            self.loss.task, logits.numpy(), self.watch.encoder.split.labels, self.watch.label_names
        )
        if (criterion := self.watch.criterion).name not in values:
            try:
                values[criterion.name] = criterion.value(logits.numpy(), self.watch.encoder.split.labels)
            except RecipeError:
                if self.watch.chooses:
                    raise
                # A function may need, say, a class that these rows lack.
                values[criterion.name] = None
        return {name: _finite(value) for name, value in values.items() if value is None or isinstance(value, float)}

    def _is_best(self) -> bool:
        history = self.state.history
        if self.state.best < 0:
            return True
        criterion = self.watch.criterion
        return score_of(criterion, history[-1]) > score_of(criterion, history[self.state.best])

    def _out_of_patience(self) -> bool:
        waited = len(self.state.history) - 1 - self.state.best
        return self.method.patience is not None and waited >= self.method.patience

    # ── checkpoints ──────────────────────────────────────────────────────────────────────────────────────────────────

    def save(self) -> None:
        """Write a checkpoint and remove old ones."""
        tensors = {"model": self.engine.weights(), "optimizer": self.engine.moments()}
        if self.ema:
            tensors["ema"] = {name: whole(value) for name, value in self.ema.averages.items()}
        self._write(step_name(self.state.step), tensors)
        if self.accelerator.is_main_process:
            prune(self.checkpoints.folder, self.method.keep)
        self.log("checkpoint", step=self.state.step)

    def _write(self, name: str, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        state = {
            "step": self.state.step,
            "losses": self.state.losses,
            "history": self.state.history,
            "best": self.state.best,
            "chosen": self.chosen,
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "made_with": self.checkpoints.made_with,
        }
        on_main(lambda: write_checkpoint(self.checkpoints.folder, name, state, tensors))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        state = checkpoint.state
        self.state = TrainState(state["step"], state["losses"], state["history"], state["best"])
        self.choose(**state["chosen"])
        self.engine.load_weights(checkpoint.tensors["model"])
        self.engine.load_moments(checkpoint.tensors["optimizer"])
        if self.ema:
            self.ema.load(checkpoint.tensors["ema"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def _finite(value: float | None) -> float | None:
    """A value that JSON knows, and that comes last where results are ordered."""
    return value if value is not None and math.isfinite(value) else None


def score_of(criterion: Criterion, result: Mapping[str, Any]) -> tuple[float, float]:
    """What orders results, the better one larger: the metric, then the task's tie-breaker; unknown values come last."""
    tie_breaker = result.get(criterion.task.tie_breaker)
    return (criterion.rank(result.get(criterion.name)), -math.inf if tie_breaker is None else -tie_breaker)


def better_at_start(criterion: Criterion, history: Sequence[Mapping[str, Any]], kept: int) -> list[str]:
    """The names of the metric that chooses and the tie-breaker in which the start was better than what is kept."""
    start, end = (score_of(criterion, history[epoch]) for epoch in (0, kept))
    names = dict.fromkeys((criterion.name, criterion.task.tie_breaker))
    return [name for name, before, after in zip(names, start, end, strict=False) if before > after]


def seed_of(seed: int, step: int, rank: int, micro_batch: int) -> int:
    """The seed of dropout in one forward."""
    return int(np.random.SeedSequence([seed, step, rank, micro_batch]).generate_state(1, np.uint64)[0])
