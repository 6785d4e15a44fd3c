"""Matrix products of float32 on CPUs, by oneDNN where it is the faster of the two libraries that torch carries.

torch multiplies float32 matrices on x86 with MKL, which leaves half of an AVX-512 unit idle on processors that are not
its maker's; oneDNN, which torch carries for convolutions, does not. Both compute in full float32.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from hftl.foreign import onednn_linear

# oneDNN compiles a kernel of nearly a megabyte for each number of rows, and what it sets free is scattered. Where the
# number varies from batch to batch, rows are multiplied in pieces of these sizes. Few kernels are kept, so that they
# weigh little beside a model, but enough for one batch after another of the same size.
_PIECES = (1024, 512, 256, 128)
# Layers with fewer inputs or outputs, like LoRA's, lose more by being cut into pieces than the faster library wins.
_NARROW = 64
_KERNELS_KEPT = "48"


@lru_cache(maxsize=1)
def _kernel() -> Callable[..., Tensor] | None:
    """oneDNN's linear layer; None on a CPU without AVX-512, and in a torch built without it."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    # oneDNN reads it when it compiles its first kernel, which is after this first call and before any product.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _KERNELS_KEPT)
    return onednn_linear()


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """The product of two matrices, (n, k) and (k, m), without a gradient."""
    return _product(a, b.T) if _suits(a, b) else a @ b


def speed_up(model: nn.Module, *, rows_vary: bool = False) -> None:
    """Let every ``nn.Linear`` of a model multiply by the faster library; parameters and names stay as they are.

    Args:
        model: the model.
        rows_vary: whether training will see batches of many sizes, as texts of all lengths make them.
    """
    if _kernel() is None:
        return
    for module in model.modules():
        if type(module) is nn.Linear and not (rows_vary and min(module.weight.shape) < _NARROW):
            module.__class__ = _LinearOfAnyRows if rows_vary else _Linear


class _Linear(nn.Linear):
    in_pieces = False

    def forward(self, input: Tensor) -> Tensor:
        if not _suits(input, self.weight) or torch.is_autocast_enabled("cpu"):
            return F.linear(input, self.weight, self.bias)
        if torch.is_grad_enabled():
            output: Tensor = _Differentiable.apply(  # type: ignore[no-untyped-call]
                input, self.weight, self.bias, self.in_pieces
            )
            return output
        return _of_rows(input, self.weight, self.bias, self.in_pieces)


class _LinearOfAnyRows(_Linear):
    in_pieces = True


class _Differentiable(torch.autograd.Function):
    """``y = x W^T + b``, with the gradients ``g W``, ``g^T x`` and the sum of ``g`` over rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, in_pieces: bool) -> Tensor:
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        ctx.in_pieces = in_pieces
        return _of_rows(x, weight, bias, in_pieces)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        of_x = _of_rows(gradient, weight.T, None, ctx.in_pieces) if weight is not None else None
        of_weight = _over_rows(gradient, x, ctx.in_pieces) if x is not None else None
        return of_x, of_weight, gradient.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None, None


def _of_rows(x: Tensor, weight: Tensor, bias: Tensor | None, in_pieces: bool) -> Tensor:
    """``x W^T + b`` for x (…, k)."""
    if not in_pieces:
        return _product(x, weight, bias)
    pieces = _pieces(x.flatten(0, -2))
    parts = [_product(_filled(piece), weight, bias)[: len(piece)] for piece in pieces]
    return (torch.cat(parts) if len(parts) > 1 else parts[0]).view(*x.shape[:-1], -1)


def _over_rows(g: Tensor, x: Tensor, in_pieces: bool) -> Tensor:
    """``g^T x`` summed over the rows of g (…, m) and x (…, k)."""
    g, x = g.flatten(0, -2), x.flatten(0, -2)
    if not in_pieces:
        return _product(g.T, x.T)
    total = g.new_zeros(g.shape[1], x.shape[1])
    for left, right in zip(_pieces(g), _pieces(x), strict=True):
        total += _product(_filled(left).T, _filled(right).T)
    return total


def _pieces(rows: Tensor) -> list[Tensor]:
    """Rows (n, k), n ≥ 1, cut into as few pieces of the sizes as there can be; the last may be short."""
    sizes: list[int] = []
    left = len(rows)
    while left > 0:
        sizes.append(next((size for size in _PIECES if size <= left), left))
        left -= sizes[-1]
    return list(torch.split(rows, sizes))


def _filled(piece: Tensor) -> Tensor:
    """A piece with rows of zeros up to the smallest size."""
    missing = _PIECES[-1] - len(piece)
    return F.pad(piece, (0, 0, 0, missing)) if missing > 0 else piece


def _suits(a: Tensor, b: Tensor) -> bool:
    plain = a.device.type == "cpu" and a.dtype == b.dtype == torch.float32
    return plain and a.dim() >= 2 and a.numel() > 0 and _kernel() is not None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b`` for x (…, k) and W (m, k) of any strides."""
    kernel = _kernel()
    assert kernel is not None
    return kernel(x, weight, bias, "none", [], "")
