"""What a backbone costs: its parameters, how many rows a second it reads on this machine, what a first pass takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import PartialState
from torch import nn

from hftl.backbones.batching import batch_groups, on_device
from hftl.backbones.protocol import Encoded, Target
from hftl.backbones.weights import tensor_shapes
from hftl.data import Data, Files, Texts
from hftl.decoding import decoder_of
from hftl.frozen.budget import keep_remembered, ramp_for, remembered, within_budget
from hftl.frozen.depths import Models
from hftl.frozen.extract import device_name
from hftl.frozen.features import joined_id
from hftl.frozen.shares import stored_rows
from hftl.frozen.view import View, open_space
from hftl.onednn import speed_up
from hftl.plugins.spec import BackboneSpec
from hftl.scout.stored import TrainingRows
from hftl.store.store import FeatureStore, cache_root

# Rows that tell how fast a backbone is; a slow one is asked for fewer of them, in about so many seconds.
TIMED_ROWS, TIMED_SECONDS = 64, 4.0
# Rows that run before the clock does, because a first pass allocates and compiles.
FIRST_ROWS = 4


def parameters(target: Target) -> int:
    """Numbers in the checkpoint; reads the files' headers only."""
    return sum(math.prod(shape) for shape in tensor_shapes(target.backbone.weight_files()).values())


def rows_per_second(known: TrainingRows) -> float:
    """How many rows a second this backbone reads on this machine, decoding and tokenising included.

    Measured once for a feature space and a device, on a few of the rows, and remembered in the store; see
    `measured_speed`.
    """

    def measure() -> float:
        model, _ = known.target.build()
        speed_up(model)
        equal_lengths = bool(known.stored.content.equal_lengths)
        few = _few_of(known.split.inputs)
        return measured_speed(model, known.target, few, what=known.stored.id, equal_lengths=equal_lengths)

    return measured_once(f"rows/s {known.stored.id}", measure)


def measured_once(what: str, measure: Callable[[], float]) -> float:
    """A speed, measured once on a device and remembered in the store; one that cannot be written is measured again."""
    memory, key = FeatureStore(cache_root()).root / "speeds.json", f"{what} {device_name(PartialState().device)}"
    known = remembered(memory).get(key)
    if isinstance(known, (int, float)) and known > 0:
        return float(known)
    measured = measure()
    keep_remembered(memory, key, round(measured, 3))
    return measured


def measured_speed(model: nn.Module, target: Target, rows: Files | Texts, *, what: str, equal_lengths: bool) -> float:
    """Rows a second of preprocessing and forward, in batches as an extraction fills them.

    Texts are tokenised at once and run longest first; pictures are decoded ahead. What is left after a few seconds is
    taken to cost what the rest did. So short a work is decoded in threads: where a long one waits for these on idle
    cores, and other processes take over, it is faster than this.

    Args:
        model: the backbone's, in eval mode.
        target: the backbone.
        rows: some.
        what: names the features, and what an extraction of them found out about batches.
        equal_lengths: whether padding changes the model's numbers.
    """
    device, backbone = PartialState().device, target.backbone
    model.to(device)
    by_tokens = backbone.wants == "text"
    memory = FeatureStore(cache_root()).root / "batches.json"
    ramp = ramp_for(device, by_tokens=by_tokens, key=f"{what} {device_name(device)}", memory=memory)

    decoder = decoder_of(backbone)

    def encode(row: int) -> Encoded:
        return decoder([rows[row]], [rows.name(row)])[0]

    def run(batch: list[Encoded]) -> None:
        for group in batch_groups(batch, equal_lengths=equal_lengths):
            output = model(**on_device(backbone.collate([batch[i] for i in group]), device))
            # A device that works on its own is waited for by reading from it.
            output.logits.sum().item()

    def work_of(row: Encoded) -> int:
        return row.cost if by_tokens else 1

    every, done = range(len(rows)), 0
    with torch.inference_mode():
        run([encode(row) for row in every[:FIRST_ROWS]])
        started, total = time.monotonic(), len(rows)
        ready: Iterator[Encoded] = decoder.ahead(encode, every, decoder.threads, FIRST_ROWS)
        if by_tokens:
            texts = sorted(ready, key=lambda row: -row.cost)
            ready, total = iter(texts), sum(map(work_of, texts))
        for batch in within_budget(ready, lambda row: row.cost, ramp):
            run(batch)
            done += sum(map(work_of, batch))
            if time.monotonic() - started > TIMED_SECONDS:
                break
        return len(rows) * done / total / (time.monotonic() - started)


@dataclass(frozen=True)
class FirstPass:
    """What it takes to have the features of some rows.

    Attributes:
        rows: that are not stored.
        start: seconds until the first of them runs: the weights are read, and a new cut is proved.
        speed: rows a second, at least; see `measured_speed`.
    """

    rows: int
    start: float
    speed: float

    @property
    def seconds(self) -> float:
        """Of all of it; 0 where every row is stored."""
        return self.start + self.rows / self.speed if self.rows else 0.0


def first_pass(spec: BackboneSpec, target: Target, data: Data, view: View) -> FirstPass:
    """What it will take to compute the features of rows that are not stored yet, measured on a few of them.

    Args:
        spec: the backbone as it is registered.
        target: the backbone.
        data: the rows, of which those to train on are read.
        view: what is kept of a row.

    Raises:
        BackboneError: its weights cannot be read.
        CutError: it cannot be cut exactly.
        BadRowError: a row cannot be decoded.
    """
    rows = count_lacking(spec, target, data, view)
    if not rows:
        return FirstPass(0, 0.0, math.inf)
    started = time.monotonic()
    parts, device = view.parts, PartialState().device
    models = Models(target, parts, new=True)
    # All of them, because an extraction proves each.
    contents = [models.content(part, device) for part in parts]
    equal_lengths = any(content.equal_lengths for content in contents)
    start = time.monotonic() - started
    store = FeatureStore(cache_root())
    what = joined_id([open_space(store, target.backbone, spec.origin, part) for part in parts])

    def measure() -> float:
        few = _few_of(data.train.inputs)
        return measured_speed(models.whole.model, target, few, what=what, equal_lengths=equal_lengths)

    return FirstPass(rows, start, measured_once(f"rows/s {what}", measure))


def count_lacking(spec: BackboneSpec, target: Target, data: Data, view: View) -> int:
    """How many rows of some data have no features in the store."""
    return len(stored_rows(FeatureStore(cache_root()), spec, target, data, view).missing)


def _few_of(rows: Files | Texts) -> Files | Texts:
    return rows.select(np.random.default_rng(0).permutation(len(rows))[:TIMED_ROWS])
