"""Logits of a split, each row exactly once, however many processes share the work.

`batches_of` says which rows a process takes at a time; `Encoder.collated` cuts these into groups of equal length for
models whose rows do not stand alone in a padded batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hftl.ahead import ahead
from hftl.backbones.batching import batch_logits, on_device
from hftl.data import Texts
from hftl.finetune.rows import Encoder, Group
from hftl.parallel import gather_rows


def logits_of(accelerator: Accelerator, model: nn.Module, encoder: Encoder, batch_size: int) -> Tensor:
    """Run a model in eval mode over a split.

    Every process runs the same number of rows; one that has a row less repeats the last, which is then dropped.

    Args:
        accelerator: knows the processes and the device.
        model: without a wrapper that synchronises buffers.
        encoder: of the split.
        batch_size: rows of one forward.

    Returns:
        (n, C) float32 on the CPU, the same on every process.
    """
    rows = len(encoder.split.inputs)
    order = order_of(encoder)
    batches = batches_of(order, batch_size, accelerator.process_index, accelerator.num_processes)
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    with torch.no_grad(), accelerator.autocast():
        batches_ahead = ahead(encoder.collated, batches, encoder.workers)
        outputs = [_of_groups(accelerator, model, groups) for groups in batches_ahead]
    for module in was_training:
        module.training = True
    everything = gather_rows(torch.cat(outputs), rows).cpu()
    ordered = torch.empty_like(everything)
    ordered[torch.from_numpy(order.copy())] = everything
    return ordered


def _of_groups(accelerator: Accelerator, model: nn.Module, groups: Sequence[Group]) -> Tensor:
    """Logits (n, C) float32 of a batch that was collated in groups of rows."""
    parts = [batch_logits(model, on_device(inputs, accelerator.device)).float() for _, inputs in groups]
    positions = torch.tensor([position for rows, _ in groups for position in rows], device=parts[0].device)
    return torch.cat(parts)[positions.argsort()]


def order_of(encoder: Encoder) -> np.ndarray:
    """The rows of a split in the order in which they are run: texts of like length together, to pad little."""
    inputs = encoder.split.inputs
    if not isinstance(inputs, Texts):
        return np.arange(len(inputs))
    return np.argsort(inputs.lengths(), kind="stable")


def batches_of(order: np.ndarray, batch_size: int, rank: int, world: int) -> list[list[int]]:
    """A process's batches: every ``world``-th row, and the last again where it has a row less than others."""
    rows = len(order)
    mine = order[np.minimum(np.arange(rank, math.ceil(rows / world) * world, world), rows - 1)]
    return [mine[i : i + batch_size].tolist() for i in range(0, len(mine), batch_size)]
