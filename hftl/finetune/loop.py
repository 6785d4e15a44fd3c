"""The one training loop, read it from top to bottom: epochs of steps, each followed by an evaluation and a checkpoint.

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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from hftl.errors import HftlError, Interrupted
from hftl.finetune.checkpoint import Checkpoint, prune, step_name, write_checkpoint
from hftl.finetune.ema import Ema
from hftl.finetune.engine import Engine, whole
from hftl.finetune.evaluate import logits_of
from hftl.finetune.groups import Depths, set_modes
from hftl.finetune.losses import Loss
from hftl.finetune.parallel import on_main, together
from hftl.finetune.rows import Batch, Encoder, Step, TrainRows
from hftl.finetune.schedule import Schedule, lr_factor
from hftl.finetune.stop import StopSignals
from hftl.metrics import evaluate_predictions

# What chooses between epochs; a tie goes to the smaller loss, and then to the earlier epoch.
SCORES = {"single_label": ("accuracy", "log_loss"), "multi_label": ("map", "log_loss"), "regression": ("r2", "mse")}
NAMED_ROWS = 8


@dataclass(frozen=True)
class Plan:
    """The numbers of a run.

    Attributes:
        seed: of dropout, order, augmentation and mixing.
        epochs: passes over the rows.
        schedule: how the learning rate falls.
        warmup: share of the steps in which it rises.
        unfreeze: one more block in each epoch.
        patience: epochs without a better result before it stops; None for never.
        chooses: whether the best epoch is kept, rather than the last.
        save_every: steps between checkpoints; None for the ends of epochs only.
        keep: newest checkpoints to keep.
    """

    seed: int
    epochs: int
    schedule: Schedule = "cosine"
    warmup: float = 0.0
    unfreeze: bool = False
    patience: int | None = None
    chooses: bool = False
    save_every: int | None = None
    keep: int = 2


@dataclass
class Progress:
    """Where a run is; plain JSON in and out, so that what is logged after a resume is what would have been.

    Attributes:
        step: optimizer steps done.
        losses: sum of the losses of this epoch's steps.
        history: for each epoch done what was measured.
        best: number of the best epoch so far; -1 before the first.
    """

    step: int = 0
    losses: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: int = -1


class Loop:
    """Trains a model.

    Args:
        accelerator: knows processes, devices and precision.
        engine: holds the model, and the optimizer with the groups of `hftl.finetune.groups.parameter_groups`.
        loss: of logits and targets.
        rows: the training rows.
        watched: the split that is evaluated after each epoch.
        label_names: of its labels.
        depths: of the parameters, for unfreezing.
        ema: an average to evaluate and keep in place of the weights.
        plan: the numbers.
        made_with: settings that a checkpoint records, for a resume to compare.
        folder: where checkpoints go.
        log: takes an event's name and values; does nothing on other processes than the main one.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        engine: Engine,
        *,
        loss: Loss,
        rows: TrainRows,
        watched: Encoder,
        label_names: Sequence[str],
        depths: Depths,
        ema: Ema | None,
        plan: Plan,
        made_with: Mapping[str, Any],
        folder: Path,
        log: Callable[..., None],
    ) -> None:
        self.accelerator = accelerator
        self.engine = engine
        self.loss = loss
        self.rows = rows
        self.watched = watched
        self.label_names = label_names
        self.depths = depths
        self.ema = ema
        self.plan = plan
        self.made_with = made_with
        self.folder = folder
        self.log = log
        self.progress = Progress()
        self.chosen: dict[str, Any] = {}
        self.signals = StopSignals()
        self.total = plan.epochs * rows.steps
        self.warmup = round(plan.warmup * self.total)

    def choose(self, **chosen: Any) -> None:
        """Settle what was left to choose automatically; checkpoints keep it.

        Args:
            chosen: ``micro_batch``, and ``lr``, which the relative learning rates of the groups are multiplied with.
        """
        self.chosen |= chosen
        if "micro_batch" in chosen:
            self.rows.micro_batch = chosen["micro_batch"]
        if "lr" in chosen:
            for group in self.engine.param_groups:
                group["base_lr"] *= chosen["lr"]

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        """Train to the end, from wherever the progress is.

        Raises:
            Interrupted: SIGTERM or SIGINT came; a checkpoint is written.
            HftlError: the loss or the gradient is NaN or infinite; the state before that step is written.
        """
        with self.signals, torch.random.fork_rng():
            for epoch in range(len(self.progress.history), self.plan.epochs):
                self.prepare_epoch(epoch)
                for step in self.rows.epoch(epoch, self.progress.step - epoch * self.rows.steps):
                    stop = self._step(epoch, step)
                    if stop or (self.plan.save_every and self.progress.step % self.plan.save_every == 0):
                        self.save()
                    if stop:
                        raise Interrupted(
                            f"stopped after step {self.progress.step} of {self.total}; the state is saved"
                        )
                self._finish_epoch(epoch)
                if self._out_of_patience():
                    break

    def prepare_epoch(self, epoch: int) -> None:
        """Thaw what trains in an epoch, and put modules into training or eval mode."""
        if self.plan.unfreeze:
            for name, parameter in self.engine.trained.items():
                parameter.requires_grad_(self.depths.of[name] > self.depths.blocks - epoch)
        set_modes(self.engine.model)

    def _step(self, epoch: int, step: Step) -> bool:
        """One optimizer step; whether any process was asked to stop."""
        started = time.monotonic()
        lr = self.set_lr(lr_factor(self.progress.step, self.total, self.warmup, self.plan.schedule))
        summed = self.accumulate(step, self.progress.step)
        self.engine.clip()
        told = together(torch.stack([summed / step.weight, summed.new_tensor(float(self.signals.asked))]))
        loss, asked = told.tolist()
        norm = self.engine.step() if math.isfinite(loss) else math.nan
        if not math.isfinite(loss) or not (math.isfinite(norm) or self.accelerator.scaler):
            self._not_finite(epoch, step, loss, norm, lr)
        if self.ema:
            self.ema.update(self.progress.step)
        self.progress.step += 1
        self.progress.losses += loss
        seconds = round(time.monotonic() - started, 4)
        self.log("step", step=self.progress.step, epoch=epoch, loss=loss, norm=norm, lr=lr, seconds_of_step=seconds)
        return bool(asked > 0)

    def accumulate(self, step: Step, number: int) -> Tensor:
        """Gradients of one step's mean loss; this process's sum of losses."""
        world, last = self.accelerator.num_processes, len(step.micro_batches) - 1
        summed = torch.zeros((), device=self.accelerator.device)
        for i, batch in enumerate(step.micro_batches):
            torch.manual_seed(seed_of(self.plan.seed, number, self.rows.rank, i))
            with self.engine.micro_batch(last=i == last):
                loss = self._loss(batch.to(self.accelerator.device))
                # Processes' gradients are averaged, and what is due is their sum.
                self.engine.backward(loss * (world / step.weight))
            summed += loss.detach()
        return summed

    def _loss(self, batch: Batch) -> Tensor:
        return self.loss(self.engine.wrapped(**batch.inputs).logits, batch.targets, batch.counted)

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
        self.log("not_finite", step=self.progress.step, epoch=epoch, loss=str(loss), norm=str(norm), lr=lr, rows=names)
        more = f" and {len(names) - NAMED_ROWS} more (events.jsonl lists all)" if len(names) > NAMED_ROWS else ""
        raise HftlError(
            f"{what} at step {self.progress.step} (epoch {epoch}, learning rate {lr:.3g}), rows: "
            f"{', '.join(names[:NAMED_ROWS])}{more}; the state before is saved; lower --lr, or look at these rows"
        )

    # ── epochs ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _finish_epoch(self, epoch: int) -> None:
        with self.ema.applied() if self.ema else nullcontext():
            measured = self.measure()
            result = {"epoch": epoch, "step": self.progress.step, "train_loss": self.progress.losses / self.rows.steps}
            self.progress.history.append(result | {"split": self.watched.split.name, **measured})
            self.progress.losses = 0.0
            if self._is_best():
                self.progress.best = epoch
                if self.plan.chooses:
                    self._write("best", {"model": self.engine.weights()})
        self.log("epoch", **self.progress.history[-1])
        self.save()
        told = together(torch.tensor(float(self.signals.asked), device=self.accelerator.device))
        if told > 0:
            raise Interrupted(f"stopped after epoch {epoch + 1} of {self.plan.epochs}; the state is saved")

    def measure(self) -> dict[str, float | None]:
        """Metrics of the watched split, each row counted once; the same on every process."""
        logits = logits_of(self.accelerator, self.engine.unsynchronised, self.watched, self.rows.micro_batch)
        found = evaluate_predictions(self.loss.task, logits.numpy(), self.watched.split.labels, self.label_names)
        return {name: value for name, value in found.items() if value is None or isinstance(value, float)}

    def _is_best(self) -> bool:
        def score(result: Mapping[str, Any]) -> tuple[float, float]:
            high, low = (result.get(name) for name in SCORES[self.loss.task])
            return (-math.inf if high is None else high, -math.inf if low is None else -low)

        history = self.progress.history
        return self.progress.best < 0 or score(history[-1]) > score(history[self.progress.best])

    def _out_of_patience(self) -> bool:
        waited = len(self.progress.history) - 1 - self.progress.best
        return self.plan.patience is not None and waited >= self.plan.patience

    # ── checkpoints ──────────────────────────────────────────────────────────────────────────────────────────────────

    def save(self) -> None:
        """Write a checkpoint and remove old ones."""
        tensors = {"model": self.engine.weights(), "optimizer": self.engine.moments()}
        if self.ema:
            tensors["ema"] = {name: whole(value) for name, value in self.ema.averages.items()}
        self._write(step_name(self.progress.step), tensors)
        if self.accelerator.is_main_process:
            prune(self.folder, self.plan.keep)
        self.log("checkpoint", step=self.progress.step)

    def _write(self, name: str, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        state = {
            "step": self.progress.step,
            "losses": self.progress.losses,
            "history": self.progress.history,
            "best": self.progress.best,
            "made_with": self.made_with,
            "chosen": self.chosen,
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
        }
        on_main(lambda: write_checkpoint(self.folder, name, state, tensors))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        state = checkpoint.state
        self.progress = Progress(state["step"], state["losses"], state["history"], state["best"])
        self.choose(**state["chosen"])
        self.engine.load_weights(checkpoint.tensors["model"])
        self.engine.load_moments(checkpoint.tensors["optimizer"])
        if self.ema:
            self.ema.load(checkpoint.tensors["ema"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def seed_of(seed: int, step: int, rank: int, micro_batch: int) -> int:
    """The seed of dropout in one forward."""
    return int(np.random.SeedSequence([seed, step, rank, micro_batch]).generate_state(1, np.uint64)[0])
