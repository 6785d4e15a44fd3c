"""Values for ``auto``: the largest micro-batch that fits, and a learning rate found by a range test.

Both train for a few steps and then put everything back, so that the run itself begins from the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from hftl.backbones.batching import line_logits
from hftl.data import Texts
from hftl.errors import BackboneError, HftlError
from hftl.finetune.loop import Loop
from hftl.finetune.rows import Step
from hftl.parallel import all_reduce_sum

# From where nothing moves to where everything diverges; each step raises the rate by 18 %.
LOWEST, HIGHEST, STEPS = 1e-7, 1.0, 100
SMOOTHING = 0.8
# The loss, as a multiple of its lowest, from which it will not come back.
DIVERGED = 4.0
PRINTED = 12


@contextmanager
def undone(loop: Loop) -> Iterator[None]:
    """Whatever is trained meanwhile is put back: weights, running statistics, the optimizer, the scaler of float16."""
    weights = {name: value.clone() for name, value in loop.engine.weights().items()}
    scaler = loop.accelerator.scaler.state_dict() if loop.accelerator.scaler else None
    with torch.random.fork_rng():
        try:
            yield
        finally:
            loop.engine.forget_gradient()
            loop.engine.load_moments({})
            loop.engine.load_weights(weights)
            if scaler:
                loop.accelerator.scaler.load_state_dict(scaler)


# ── micro-batch ──────────────────────────────────────────────────────────────────────────────────────────────────────


def largest_micro_batch(loop: Loop) -> int:
    """The largest micro-batch that a training step on the longest rows fits, on every process.

    The process's whole share of a step is tried first, then half of it, and so on. Where memory has no limit that
    raises an error, as on a CPU, the whole share fits.

    Raises:
        BackboneError: not even one row fits.
    """
    size: int = math.ceil(loop.rows.batch_size / loop.accelerator.num_processes)
    while True:
        fits = torch.tensor(float(_fits(loop, size)), device=loop.accelerator.device)
        if float(all_reduce_sum(fits)) == loop.accelerator.num_processes:
            return size
        if size == 1:
            raise BackboneError(
                "one row alone does not fit the device's memory; use --mixed-precision bf16, or another method"
            )
        size = math.ceil(size / 2)


def _fits(loop: Loop, size: int) -> bool:
    try:
        with undone(loop):
            loop.prepare_epoch(loop.method.epochs - 1)
            # Not DDP's wrapper: processes that run out of memory at different times would wait for one another.
            batch = loop.rows.batch(0, _longest(loop, size)).to(loop.accelerator.device)
            loss = loop.loss(line_logits(loop.engine.unsynchronised, batch.inputs), batch.targets, batch.counted)
            loop.accelerator.backward(loss / size)
            loop.set_lr(0.0)
            loop.engine.optimizer.step()
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not should_reduce_batch_size(error):
            raise
    else:
        return True
    clear_device_cache(garbage_collection=True)
    return False


def _longest(loop: Loop, size: int) -> list[int]:
    inputs = loop.rows.encoder.split.inputs
    if not isinstance(inputs, Texts):
        return np.resize(np.arange(len(inputs)), size).tolist()
    order = np.argsort(-inputs.lengths(), kind="stable")
    return np.resize(order, size).tolist()


# ── learning rate ────────────────────────────────────────────────────────────────────────────────────────────────────


def choose_lr(loop: Loop, say: Callable[[str], None]) -> float:
    """Raise the learning rate from step to step until the loss diverges, and choose one well below (Smith 2017).

    Chosen is where the smoothed loss falls most steeply, but at most a tenth and at least a thousandth of where it
    is lowest before it diverges: from a solved head the loss is low from the start and its slope says little.

    Args:
        loop: whose learning rates are relative to the one that is sought.
        say: takes the lines of the curve.

    Raises:
        HftlError: the loss is no number from the start.
    """
    curve = range_test(loop)
    if len(curve) < 2:
        raise HftlError("the loss is NaN or infinite as the range test begins; give --lr, or look at the data")
    rates, losses = np.array(curve).T
    lowest = float(rates[losses.argmin()])
    steepest = float(rates[np.gradient(losses, np.log(rates)).argmin()])
    chosen = min(max(steepest, lowest / 1000), lowest / 10)
    for lr, loss in curve[:: max(len(curve) // PRINTED, 1)]:
        say(f"          {lr:8.1e}  loss {loss:.4f}")
    say(
        f"lr        {chosen:.1e} chosen: steepest at {steepest:.1e}, lowest at {lowest:.1e}, stopped at {rates[-1]:.1e}"
    )
    loop.log("lr_range", lrs=rates.tolist(), losses=losses.tolist(), chosen=chosen)
    return chosen


def range_test(loop: Loop) -> list[tuple[float, float]]:
    """Learning rates and smoothed losses up to where the loss is four times its lowest, or no number."""
    curve: list[tuple[float, float]] = []
    average, best = 0.0, math.inf
    with undone(loop):
        loop.prepare_epoch(loop.method.epochs - 1)
        for number, step in zip(range(STEPS), _steps(loop), strict=False):  # _steps has no end
            lr = LOWEST * (HIGHEST / LOWEST) ** (number / (STEPS - 1))
            loop.set_lr(lr)
            summed = loop.accumulate(step, number)
            loop.engine.clip()
            loss = float(all_reduce_sum(summed / step.weight))
            if not math.isfinite(loss):
                break
            average = SMOOTHING * average + (1 - SMOOTHING) * loss
            smoothed = average / (1 - SMOOTHING ** (number + 1))
            best = min(best, smoothed)
            curve.append((lr, smoothed))
            if smoothed > DIVERGED * best:
                break
            loop.engine.step()
    return curve


def _steps(loop: Loop) -> Iterator[Step]:
    for epoch in count():
        yield from loop.rows.epoch(epoch)
