"""What several processes must agree on, passed as tensors so that nothing is ever pickled."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast as broadcast_tensor
from accelerate.utils import gather, reduce
from torch import Tensor

from hftl import errors
from hftl.errors import BadRowError, HftlError
from hftl.lifetime import follow_launcher


@dataclass(frozen=True)
class Process:
    """This process among those that share a work.

    Attributes:
        device: where it computes.
        rank: its number, from 0.
        world: how many there are.
    """

    device: torch.device
    rank: int = 0
    world: int = 1

    @classmethod
    def current(cls) -> Process:
        """This process, as the launcher started it."""
        state = PartialState()
        return cls(state.device, state.process_index, state.num_processes)


def processes_here() -> int:
    """How many processes of the launcher run on this machine; all of them where it does not say."""
    world: int = PartialState().num_processes
    said = os.environ.get("LOCAL_WORLD_SIZE", "")
    return min(world, int(said)) if said.isdecimal() and int(said) else world


def start_processes() -> PartialState:
    """This process's place among those of the launcher."""
    # On CPUs accelerate joins the processes of a launcher only if it is told that CPUs are meant.
    follow_launcher()
    return PartialState(cpu=not torch.accelerator.is_available())


def broadcast(value: Any) -> Any:
    """A JSON value of the main process, on every process."""
    state = PartialState()
    if state.num_processes == 1:
        return value
    text = json.dumps(value).encode() if state.is_main_process else b""
    size = broadcast_tensor(torch.tensor([len(text)], device=state.device))
    data = torch.zeros(int(size), dtype=torch.uint8, device=state.device)
    if state.is_main_process:
        data.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
    return json.loads(bytes(broadcast_tensor(data).cpu().numpy()).decode())


def broadcast_tensors(tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """Named tensors of the main process, on the CPU of every process."""
    state = PartialState()
    if state.num_processes == 1:
        return tensors or {}
    mine = tensors or {}
    described = broadcast([[n, list(t.shape), str(t.dtype).removeprefix("torch.")] for n, t in mine.items()])
    received = {}
    for name, shape, dtype in described:
        empty = torch.zeros(shape, dtype=getattr(torch, dtype), device=state.device)
        value = mine[name].to(state.device) if state.is_main_process else empty
        received[name] = broadcast_tensor(value.contiguous()).cpu()
    return received


def gather_json(value: Any) -> list[Any]:
    """A JSON value of each process, in the order of their ranks, on every process."""
    state = PartialState()
    if state.num_processes == 1:
        return [value]
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(state.device)
    sizes = gather(torch.tensor([len(text)], device=state.device)).tolist()
    # Processes exchange tensors of one size only, so all are filled up to the longest.
    padded = torch.zeros(max(sizes), dtype=torch.uint8, device=state.device)
    padded[: len(text)] = text
    rows = gather(padded[None]).cpu()
    return [json.loads(bytes(row[:size].numpy()).decode()) for row, size in zip(rows, sizes, strict=True)]


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
    message = broadcast(str(error) if error else None)
    with met_everywhere():
        if error is not None:
            raise error
        if message is not None:
            raise HftlError(message)
    return result


@contextmanager
def met_everywhere() -> Iterator[None]:
    """Around what all processes do alike: an error of one is an error of all."""
    try:
        yield
    except HftlError as error:
        error.everywhere = True
        raise


def on_all(work: Callable[[], Any]) -> list[Any]:
    """Do something on every process and hand its JSON value to all; an error of one is raised by all.

    Returns:
        What ``work`` gave on each process, in the order of their ranks.

    Raises:
        HftlError: a process raised it; its class is the same everywhere.
    """
    value, error = None, None
    try:
        value = work()
    except HftlError as caught:
        error = caught
    outcomes = gather_json([value, error_as_json(error) if error else None])
    with met_everywhere():
        if error is not None:
            raise error
        for _, problem in outcomes:
            if problem is not None:
                raise error_from_json(problem)
    return [theirs for theirs, _ in outcomes]


def error_as_json(error: HftlError) -> list[str]:
    """An error as JSON, for another process to raise."""
    if isinstance(error, BadRowError):
        return ["BadRowError", error.row, error.why]
    return [type(error).__name__, str(error)]


def error_from_json(problem: list[str]) -> HftlError:
    """The error that another process met."""
    kind, *arguments = problem
    # Rooms have subclasses of their own with more arguments; elsewhere their nearest public class will do.
    error_class = getattr(errors, kind, HftlError)
    made: HftlError = error_class(*arguments)
    return made


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum of a small tensor over all processes."""
    total: Tensor = reduce(values, "sum")
    return total


def gather_rows(mine: Tensor, rows: int) -> Tensor:
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
    blocks = gather(mine.contiguous()).view(world, len(mine), *mine.shape[1:])
    interleaved: Tensor = blocks.transpose(0, 1).reshape(world * len(mine), *mine.shape[1:])
    return interleaved[:rows]
