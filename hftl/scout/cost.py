"""What a backbone costs: its parameters, and how many rows a second it reads on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from accelerate import PartialState

from hftl.backbones.batching import batch_groups, on_device
from hftl.backbones.protocol import Target
from hftl.backbones.weights import tensor_shapes
from hftl.data import Files, Texts
from hftl.frozen.budget import keep_remembered, remembered
from hftl.frozen.extract import device_name
from hftl.onednn import speed_up
from hftl.scout.stored import TrainingRows
from hftl.store.store import FeatureStore, cache_root

# Rows that tell how fast a backbone is, and how many of them share a batch.
TIMED_ROWS, TIMED_BATCH = 64, 16


def parameters(target: Target) -> int:
    """Numbers in the checkpoint; reads the files' headers only."""
    return sum(math.prod(shape) for shape in tensor_shapes(target.backbone.weight_files()).values())


def rows_per_second(known: TrainingRows) -> float:
    """How many rows a second this backbone reads on this machine, decoding and tokenising included.

    Measured once for a feature space and a device, on a few of the rows, and remembered in the store.
    """
    device = PartialState().device

    def measure() -> float:
        chosen = np.random.default_rng(0).permutation(len(known.split))[:TIMED_ROWS]
        equal_lengths = bool(known.stored.content.equal_lengths)
        return measured_speed(known.target, known.split.inputs.select(chosen), device, equal_lengths=equal_lengths)

    return measured_once(known.stored.id, measure)


def measured_once(what: str, measure: Callable[[], float]) -> float:
    """A speed, measured once on a device and remembered in the store; one that cannot be written is measured again."""
    memory, key = FeatureStore(cache_root()).root / "speeds.json", f"{what} {device_name(PartialState().device)}"
    known = remembered(memory).get(key)
    if isinstance(known, (int, float)) and known > 0:
        return float(known)
    measured = measure()
    keep_remembered(memory, key, round(measured, 3))
    return measured


def measured_speed(target: Target, rows: Files | Texts, device: torch.device, *, equal_lengths: bool) -> float:
    """Rows a second of preprocessing and forward, after a first batch that does not count."""
    model, _ = target.build()
    speed_up(model)
    model.to(device)

    def run(batch: Files | Texts) -> None:
        names = [batch.name(i) for i in range(len(batch))]
        encoded = target.backbone.encode([batch[i] for i in range(len(batch))], names)
        for group in batch_groups(encoded, equal_lengths=equal_lengths):
            output = model(**on_device(target.backbone.collate([encoded[i] for i in group]), device))
            # A device that works on its own is waited for by reading from it.
            output.logits.sum().item()

    with torch.inference_mode():
        run(rows[:TIMED_BATCH])
        started = time.monotonic()
        for start in range(0, len(rows), TIMED_BATCH):
            run(rows[start : start + TIMED_BATCH])
    return len(rows) / (time.monotonic() - started)
