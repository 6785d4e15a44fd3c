"""What several processes must agree on, passed as tensors so that nothing is ever pickled."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, gather, reduce
from torch import Tensor

from hftl.errors import HftlError


def share(value: Any) -> Any:
    """A JSON value of the main process, on every process."""
    state = PartialState()
    if state.num_processes == 1:
        return value
    text = json.dumps(value).encode() if state.is_main_process else b""
    size = broadcast(torch.tensor([len(text)], device=state.device))
    data = torch.zeros(int(size), dtype=torch.uint8, device=state.device)
    if state.is_main_process:
        data.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
    return json.loads(bytes(broadcast(data).cpu().numpy()).decode())


def share_tensors(tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """Named tensors of the main process, on the CPU of every process."""
    state = PartialState()
    if state.num_processes == 1:
        return tensors or {}
    mine = tensors or {}
    described = share([[n, list(t.shape), str(t.dtype).removeprefix("torch.")] for n, t in mine.items()])
    shared = {}
    for name, shape, dtype in described:
        empty = torch.zeros(shape, dtype=getattr(torch, dtype), device=state.device)
        value = mine[name].to(state.device) if state.is_main_process else empty
        shared[name] = broadcast(value.contiguous()).cpu()
    return shared


def on_main(work: Callable[[], Any]) -> Any:
    """Do something on the main process only; what goes wrong there is raised on all, so that none waits for ever.

    Returns:
        What ``work`` gave, on the main process; None elsewhere.

    Raises:
        HftlError: the main process raised it.
    """
    state = PartialState()
    result, error = None, None
    if state.is_main_process:
        try:
            result = work()
        except HftlError as caught:
            error = caught
    told = share(str(error) if error else None)
    if error is not None:
        raise error
    if told is not None:
        raise HftlError(told)
    return result


def together(values: Tensor) -> Tensor:
    """The sum of a small tensor over all processes."""
    total: Tensor = reduce(values, "sum")
    return total


def in_order(mine: Tensor, rows: int) -> Tensor:
    """Rows computed by processes in turn, put together again.

    Args:
        mine: (ceil(rows / world), …); process r computed rows r, r + world, …, and anything for those past the end.
        rows: how many there are.

    Returns:
        (rows, …), each row once, on every process.
    """
    world = PartialState().num_processes
    if world == 1:
        return mine[:rows]
    everybody: Tensor = gather(mine.contiguous())
    blocks = everybody.view(world, len(mine), *mine.shape[1:])
    return blocks.transpose(0, 1).reshape(world * len(mine), *mine.shape[1:])[:rows]
