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
    parts = _message(value)
    sizes = [part.nbytes for part in parts]
    channel.sendall(struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes))
    for part in parts:
        channel.sendall(part)


def same_message(one: Any, other: Any) -> bool:
    """Whether two values are the same to the bit as messages: NaN is then NaN, and how tensors lie in memory counts.

    Raises:
        Exception: one of them cannot be pickled.
    """
    return _message(one) == _message(other)


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


def _message(value: Any) -> list[memoryview]:
    body = io.BytesIO()
    buffers: list[pickle.PickleBuffer] = []
    _Pickler(body, protocol=5, buffer_callback=buffers.append).dump(value)
    return [body.getbuffer(), *(buffer.raw() for buffer in buffers)]


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
        # From the first of its numbers to the last, with what lies between: how it lies in memory is kept, because
        # kernels may choose by it how they sum.
        shape, strides = tuple(value.shape), value.stride()
        span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if value.numel() else 0
        content: Any = value.detach().as_strided((span,), (1,)).view(torch.uint8).numpy()
        return _tensor, (pickle.PickleBuffer(content), value.dtype, shape, strides)


def _tensor(content: Any, dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    # No tensor can be made of a buffer of no bytes.
    numbers = torch.frombuffer(content, dtype=dtype) if len(content) else torch.empty(0, dtype=dtype)
    return numbers.as_strided(shape, strides)
