"""Messages between a process and those that it started: pickled values, with the bytes of tensors beside them.

Pickles are read from these private sockets alone, whose both ends are hftl's own processes. Sockets and not shared
memory: the kernel copies with Python's lock released, a row may be of any size, a small ``/dev/shm`` does not matter,
and a process that is killed leaves nothing behind.
"""

from __future__ import annotations

import io
import pickle
import socket
import struct
from typing import Any

import torch
from torch import Tensor


def send_message(channel: socket.socket, value: Any) -> None:
    """Send one message; blocks until the other side has taken most of it.

    Raises:
        OSError: the other side is gone.
        Exception: the value cannot be pickled; then nothing was sent.
    """
    body = io.BytesIO()
    buffers: list[pickle.PickleBuffer] = []
    _Pickler(body, protocol=5, buffer_callback=buffers.append).dump(value)
    parts = [body.getbuffer(), *(buffer.raw() for buffer in buffers)]
    sizes = [part.nbytes for part in parts]
    channel.sendall(struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes))
    for part in parts:
        channel.sendall(part)


def receive_message(channel: socket.socket) -> Any:
    """The next message; blocks until all of it is here.

    Raises:
        EOFError: the other side is gone.
        OSError: the same, met in another way.
    """
    (count,) = struct.unpack("<I", _exactly(channel, 4))
    sizes = struct.unpack(f"<{count}Q", _exactly(channel, 8 * count))
    body, *buffers = [_exactly(channel, size) for size in sizes]
    return pickle.loads(body, buffers=buffers)


def _exactly(channel: socket.socket, size: int) -> bytearray:
    buffer = bytearray(size)
    view = memoryview(buffer)
    while view:
        got = channel.recv_into(view)
        if not got:
            raise EOFError
        view = view[got:]
    return buffer


class _Pickler(pickle.Pickler):
    """Pickles tensors of the CPU without a copy; torch's own way is one for files."""

    def reducer_override(self, value: Any) -> Any:
        # Exactly a tensor: a subclass may have more to it.
        if type(value) is not Tensor or value.device.type != "cpu" or value.layout != torch.strided:
            return NotImplemented
        # The order of the dimensions in memory is kept, because kernels may choose by it how they sum.
        strides = value.stride()
        order = sorted(range(value.dim()), key=lambda axis: -strides[axis])
        packed = value.detach().permute(order)
        if not packed.is_contiguous():
            order, packed = list(range(value.dim())), value.detach().contiguous()
        content: Any = packed.reshape(-1).view(torch.uint8).numpy()
        return _tensor, (pickle.PickleBuffer(content), value.dtype, tuple(packed.shape), order)


def _tensor(content: Any, dtype: torch.dtype, shape: tuple[int, ...], order: list[int]) -> Tensor:
    # No tensor can be made of a buffer of no bytes.
    packed = torch.frombuffer(content, dtype=dtype).reshape(shape) if len(content) else torch.empty(shape, dtype=dtype)
    return packed.permute([order.index(axis) for axis in range(len(order))])
