"""Logits of a split, each row exactly once, however many processes share the work."""

from __future__ import annotations

import math

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hftl.ahead import ahead
from hftl.data import Texts
from hftl.finetune.rows import Encoder
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
    rank, world = accelerator.process_index, accelerator.num_processes
    inputs = encoder.split.inputs
    rows = len(inputs)
    order = np.arange(rows)
    if isinstance(inputs, Texts):
        # Texts of like length together; the number of characters is near enough to that of tokens.
        order = np.argsort([sum(map(len, text)) for text in inputs.values], kind="stable")
    mine = order[np.minimum(np.arange(rank, math.ceil(rows / world) * world, world), rows - 1)]
    batches = [mine[i : i + batch_size].tolist() for i in range(0, len(mine), batch_size)]
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    found = []
    with torch.no_grad(), accelerator.autocast():
        for batch in ahead(lambda some: encoder.backbone.collate(encoder(some)), batches, encoder.workers):
            batch = {name: value.to(accelerator.device) for name, value in batch.items()}
            found.append(model(**batch).logits.float())
    for module in was_training:
        module.training = True
    everything = gather_rows(torch.cat(found), rows).cpu()
    logits = torch.empty_like(everything)
    logits[torch.from_numpy(order.copy())] = everything
    return logits
