"""Logits of a split, each row exactly once, however many processes share the work.

`batches_of` says which rows a process takes at a time; `Encoder.collated` cuts these into groups of equal length for
models whose rows do not stand alone in a padded batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather
from torch import Tensor, nn

from hftl.backbones.batching import batch_logits, line_logits, on_device
from hftl.data import Texts
from hftl.data.dataset import lines_of
from hftl.errors import DataError
from hftl.finetune.rows import Encoder, Group
from hftl.parallel import gather_json, gather_rows
from hftl.progress import Progress
from hftl.wording import one_line


def logits_of(
    accelerator: Accelerator, model: nn.Module, encoder: Encoder, batch_size: int, *, is_spread: bool = False
) -> Tensor:
    """Run a model in eval mode over a split.

    Every process runs the same number of rows; one that has a row less repeats the last, which is then dropped.

    Args:
        accelerator: knows the processes and the device.
        model: without a wrapper that synchronises buffers.
        encoder: of the split.
        batch_size: rows of one forward.
        is_spread: whether processes hold parts of the model, so that they have to run it equally often.

    Returns:
        (n, C) float32 on the CPU, the same on every process; of sentences (words, C).

    Raises:
        DataError: a spread model refuses a batch whose rows it may take alone.
    """
    rows = len(encoder.split.inputs)
    lines = lines_of(encoder.split.labels)
    order = order_of(encoder)
    batches = batches_of(order, batch_size, accelerator.process_index, accelerator.num_processes)
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    with torch.no_grad(), accelerator.autocast():
        batches_ahead = encoder.ahead(encoder.collated, batches)
        run = partial(_in_step, model) if is_spread else partial(_one_by_one, model)
        outputs = []
        with Progress("evaluate", sum(map(len, batches)), quiet=None) as progress:
            for batch, groups in zip(batches, batches_ahead, strict=True):
                outputs.append(_of_groups(accelerator, run, groups, [lines[row] for row in batch]))
                progress.advance(len(batch))
    for module in was_training:
        module.training = True
    computed = torch.cat(outputs)
    if encoder.split.labels.dtype == object:
        found = _gathered(accelerator, computed, order, lines, batch_size)
        return torch.cat([found[row] for row in range(rows)])
    everything = gather_rows(computed, rows).cpu()
    ordered = torch.empty_like(everything)
    ordered[torch.from_numpy(order.copy())] = everything
    return ordered


def _gathered(
    accelerator: Accelerator, mine: Tensor, order: np.ndarray, lines: Sequence[int], batch_size: int
) -> dict[int, Tensor]:
    """The lines of each row, (its words, C) on the CPU, of what every process computed of its own rows."""
    world = accelerator.num_processes
    shares = [[row for rows in batches_of(order, batch_size, rank, world) for row in rows] for rank in range(world)]
    sizes = [sum(lines[row] for row in share) for share in shares]
    # Processes exchange tensors of one size only, so all are filled up to the longest.
    padded = torch.cat([mine, mine.new_zeros(max(sizes) - len(mine), mine.shape[1])])
    parts = gather(padded[None]).cpu() if world > 1 else padded[None].cpu()
    return {
        row: own
        for share, part, size in zip(shares, parts, sizes, strict=True)
        for row, own in zip(share, torch.split(part[:size], [lines[row] for row in share]), strict=True)
    }


def _of_groups(
    accelerator: Accelerator,
    run: Callable[[list[dict[str, Tensor]]], list[Tensor]],
    groups: Sequence[Group],
    lines: Sequence[int],
) -> Tensor:
    """Logits (n, C) float32 of a batch that was collated in groups of rows, which have so many lines each."""
    parts = [part.float() for part in run([on_device(inputs, accelerator.device) for _, inputs in groups])]
    positions = [position for rows, _ in groups for position in rows]
    each = torch.split(torch.cat(parts), [lines[position] for position in positions])
    return torch.cat([each[place] for place in np.argsort(positions)])


def _one_by_one(model: nn.Module, batches: list[dict[str, Tensor]]) -> list[Tensor]:
    """Logits (n, C) of each batch, however many batches other processes have."""
    return [batch_logits(model, batch) for batch in batches]


def _in_step(model: nn.Module, batches: list[dict[str, Tensor]]) -> list[Tensor]:
    """Logits (n, C) of each batch, by as many forwards as the process with the most batches needs.

    Each forward gathers weights from all processes, so that one that ran the model once more would wait for ever. For
    the same reason rows that the model refuses beside one another cannot be tried alone.

    Raises:
        DataError: the model refuses a batch.
    """
    parts = []
    for number in range(max(gather_json(len(batches)))):
        try:
            parts.append(line_logits(model, batches[min(number, len(batches) - 1)]))
        except ValueError as error:
            raise DataError(
                f"the model refuses rows beside one another ({one_line(error)}), and spread over processes it cannot "
                "run them alone: remove the row that is unlike the others, or launch with MULTI_GPU"
            ) from error
    return parts[: len(batches)]


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
